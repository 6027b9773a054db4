// SPDX-License-Identifier: MIT OR Apache-2.0
//! The smallest XDP program there is: veth hands packets that XDP sends only to a peer that runs an XDP program itself.

use std::{
    ffi::CString,
    io,
    mem::zeroed,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    os::unix::ffi::OsStrExt,
    path::Path,
};

use anyhow::{Context, Result};
use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_prog_type};
use nix::libc;

use super::Namespace;

/// `r0 = XDP_PASS; exit`.
const INSTRUCTIONS: [u64; 2] = [0x0000_0002_0000_00b7, 0x0000_0000_0000_0095];

/// Loads the program and pins it.
pub(super) fn pin(path: &Path) -> Result<()> {
    // SAFETY: bpf_attr is a union of integers, for which zeroes are valid.
    let mut attr: bpf_attr = unsafe { zeroed() };
    attr.__bindgen_anon_3.prog_type = bpf_prog_type::BPF_PROG_TYPE_XDP as u32;
    attr.__bindgen_anon_3.insns = INSTRUCTIONS.as_ptr() as u64;
    attr.__bindgen_anon_3.insn_cnt = INSTRUCTIONS.len() as u32;
    attr.__bindgen_anon_3.license = c"GPL".as_ptr() as u64;
    let program = bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr).context("can't load an XDP program")?;
    // SAFETY: the kernel has just given us this descriptor; nobody else has it.
    let program = unsafe { OwnedFd::from_raw_fd(program) };

    let name = CString::new(path.as_os_str().as_bytes()).context("a path without zero bytes")?;
    // SAFETY: as above.
    let mut attr: bpf_attr = unsafe { zeroed() };
    attr.__bindgen_anon_4.pathname = name.as_ptr() as u64;
    attr.__bindgen_anon_4.bpf_fd = program.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr).with_context(|| format!("can't pin a program at {}", path.display()))?;
    Ok(())
}

/// Attaches the pinned program to an interface, in the driver.
pub(super) fn attach(namespace: &Namespace, interface: &str, path: &Path) -> Result<()> {
    namespace.run("ip", &["link", "set", "dev", interface, "xdpdrv", "pinned", &path.display().to_string()]).map(drop)
}

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: `attr` is valid for its size, and so is every pointer in it: the callers hold what they point to.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as libc::c_long, attr, size_of::<bpf_attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(i32::try_from(result).expect("a descriptor")) }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Programs that aya can't load, because they call functions of the kernel that are no helpers: the system calls for them.

use std::{
    io,
    os::fd::{AsFd as _, FromRawFd as _, OwnedFd},
};

use aya_obj::generated::bpf_cmd;
use bytemuck::{Pod, Zeroable};
use nix::libc;

use super::{IdAttr, InfoAttr, address, address_mut, bpf, raw};

/// Times that a program is loaded while signals come in between.
const ATTEMPTS: u32 = 5;

/// The start of the attributes of `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct LoadAttr {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log: [u32; 4],
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    ifindex: u32,
    expected_attach_type: u32,
    debug_info: [u32; 9],
    attach_to: [u32; 2],
    relocations: u32,
    descriptors: u64,
}

// `fd_array` of the kernel's.
const _: () = assert!(std::mem::offset_of!(LoadAttr, descriptors) == 120);

/// `struct bpf_btf_info`.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct TypesInfo {
    types: u64,
    types_len: u32,
    id: u32,
    name: u64,
    name_len: u32,
    is_of_kernel: u32,
}

/// Loads a program of a type, with the attach type that it is expected to have. An instruction that calls a function of the kernel names
/// 0, or 1 where it is the module's.
pub fn load_program(
    (program_type, attach_type): (u32, u32),
    name: &str,
    instructions: &[u64],
    module: Option<&OwnedFd>,
) -> io::Result<OwnedFd> {
    const LICENSE: &[u8] = b"GPL\0";
    // The first one is the kernel itself, which needs no descriptor.
    let descriptors = [0, module.map_or(0, |module| raw(module.as_fd()))];
    let mut attr = LoadAttr {
        program_type,
        instruction_count: u32::try_from(instructions.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        instructions: address(instructions),
        license: address(LICENSE),
        expected_attach_type: attach_type,
        descriptors: address(&descriptors),
        ..LoadAttr::default()
    };
    let most = attr.name.len() - 1;
    attr.name.iter_mut().zip(name.bytes().take(most)).for_each(|(to, from)| *to = from);
    let mut attempts = ATTEMPTS;
    loop {
        // SAFETY: instructions, licence and descriptors are live, and as long as is said.
        match unsafe { bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr) } {
            // SAFETY: the kernel has just made this descriptor for us.
            Ok(fd) => return Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
            // A signal, which the verifier gives way to.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && attempts > 1 => attempts -= 1,
            Err(error) => return Err(error),
        }
    }
}

/// Opens the type information of a module that is loaded. Needs `CAP_SYS_ADMIN`.
pub fn open_module_types(name: &str) -> io::Result<OwnedFd> {
    let mut id = 0;
    loop {
        let mut attr = IdAttr { id, ..IdAttr::default() };
        // SAFETY: the attributes hold no addresses.
        unsafe { bpf(bpf_cmd::BPF_BTF_GET_NEXT_ID, &mut attr) }?;
        id = attr.next_id;
        let mut attr = IdAttr { id, ..IdAttr::default() };
        // SAFETY: the attributes hold no addresses.
        let fd = match unsafe { bpf(bpf_cmd::BPF_BTF_GET_FD_BY_ID, &mut attr) } {
            // It has gone meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
            fd => fd?,
        };
        // SAFETY: the kernel has just made this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        if name_of(&fd)? == name.as_bytes() {
            return Ok(fd);
        }
    }
}

fn name_of(types: &OwnedFd) -> io::Result<Vec<u8>> {
    /// More than a module's name has (`MODULE_NAME_LEN`).
    const MOST: usize = 64;
    let mut name = [0_u8; MOST];
    let mut known = TypesInfo { name: address_mut(&mut name), name_len: MOST as u32, ..TypesInfo::default() };
    let mut attr =
        InfoAttr { bpf_fd: raw(types.as_fd()), info_len: size_of::<TypesInfo>() as u32, info: address_mut(&mut known) };
    // SAFETY: both buffers are live, and as long as is said.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    let is_of_kernel = known.is_of_kernel != 0;
    Ok(if is_of_kernel { name.iter().copied().take_while(|&byte| byte != 0).collect() } else { Vec::new() })
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the machine finds on its disk, which is in its memory: the tests, the agent, the programs that they run with their
//! libraries, and the kernel's modules. Everything lies where it lies on this machine, so that paths compiled in hold.

use std::{
    fs::{self, File},
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::{
    cpio::Archive,
    kernel::{self, Unpacked},
    plan::Run,
};
use crate::shell;

/// What tests run besides the agent.
const PROGRAMS: [&str; 13] = [
    "ip",
    "tc",
    "nginx",
    "dnsmasq",
    "iperf3",
    "wrk",
    "tcpdump",
    "ethtool",
    "curl",
    "dig",
    "ping",
    "traceroute",
    "hping3",
];

/// Devices and hooks of the tests' worlds, and what tells the agent of sockets: no module is loaded on demand there.
const MODULES: [&str; 9] =
    ["veth", "bridge", "sch_ingress", "cls_bpf", "8021q", "bonding", "vxlan", "tcp_diag", "udp_diag"];

/// Directories that somebody expects.
const DIRECTORIES: [&str; 8] =
    ["/dev", "/proc", "/sys", "/tmp", "/run", "/var/log/nginx", "/var/lib/nginx", "/var/lib/misc"];

/// Files of this machine that programs read.
const FILES: [&str; 5] = ["/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/nginx/mime.types", "/etc/protocols"];

/// Writes the disk of a kernel's machine that does these runs, and says where it is.
///
/// # Errors
/// When something that belongs on it can't be read.
pub fn write(directory: &Path, kernel: &Unpacked, agent: &Path, runs: &[Run]) -> Result<PathBuf> {
    let mut archive = Archive::default();
    DIRECTORIES.iter().for_each(|directory| archive.add_directory(Path::new(directory)));
    archive.add_program(Path::new("/init"), include_bytes!("init.sh").to_vec());
    archive.add_program(Path::new("/busybox"), read(&shell::find("busybox").context("there is no busybox")?)?);
    archive.add(Path::new("/tests"), runs.iter().map(Run::command).collect::<String>().into_bytes());
    for file in FILES.map(Path::new).iter().filter(|file| file.is_file()) {
        archive.add(file, read(file)?);
    }
    for program in PROGRAMS {
        let path = shell::find(program).with_context(|| format!("there is no {program}"))?;
        add_with_libraries(&mut archive, &path, read(&path)?)?;
    }
    for program in runs.iter().map(|run| run.path.as_path()).chain([agent]) {
        add_with_libraries(&mut archive, program, stripped(program)?)?;
    }
    let object = shell::root().join("target/bpf/shunt");
    archive.add(&object, read(&object)?);
    add_directory(&mut archive, &shell::root().join("manifests/sample"))?;
    add_modules(&mut archive, kernel)?;
    let disk = directory.join("disk.cpio");
    let file = File::create(&disk).with_context(|| format!("can't write {}", disk.display()))?;
    let mut file = BufWriter::new(file);
    archive.write(&mut file).and_then(|()| file.flush()).with_context(|| format!("can't write {}", disk.display()))?;
    Ok(disk)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("can't read {}", file.display()))
}

/// A program of ours without its debug information, most of which would be megabytes of line numbers.
fn stripped(program: &Path) -> Result<Vec<u8>> {
    let output = shell::root().join("target/vm/stripped");
    shell::run_quietly(Command::new("strip").arg("--strip-debug").arg(program).arg("-o").arg(&output))?;
    read(&output)
}

fn add_with_libraries(archive: &mut Archive, path: &Path, contents: Vec<u8>) -> Result<()> {
    archive.add_program(path, contents);
    // Fails on a static program, which has none.
    let text = shell::output(Command::new("ldd").arg(path)).unwrap_or_default();
    for library in libraries(&text).filter(|library| !archive.has(library)).collect::<Vec<_>>() {
        archive.add_program(library, read(library)?);
    }
    Ok(())
}

/// Paths in lines such as `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x1)` or `/lib64/ld-linux-x86-64.so.2 (0x1)`.
fn libraries(text: &str) -> impl Iterator<Item = &Path> {
    let words = text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    words.map(Path::new)
}

fn add_directory(archive: &mut Archive, directory: &Path) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("can't read {}", directory.display()))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        archive.add(&path, read(&path)?);
    }
    Ok(())
}

/// The modules, and a list of them in the order in which they can be loaded.
fn add_modules(archive: &mut Archive, kernel: &Unpacked) -> Result<()> {
    let mut list = String::new();
    for file in kernel.modules(&MODULES)? {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let place = Path::new("/lib/modules").join(name.trim_end_matches(".xz"));
        list += &format!("{}\n", place.display());
        archive.add(&place, kernel::contents(&file)?);
    }
    archive.add(Path::new("/modules"), list.into_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_those_that_lie_somewhere() {
        let text = "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/libc.so.6 (0x2)\n\t/lib64/ld.so.2 (0x3)\n\tstatically linked\n";
        assert_eq!(libraries(text).collect::<Vec<_>>(), [Path::new("/lib/libc.so.6"), Path::new("/lib64/ld.so.2")]);
    }
}

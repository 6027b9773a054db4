// SPDX-License-Identifier: MIT OR Apache-2.0
//! `image`: a static agent, and an image with nothing in it but that. Needs no container engine.
//!
//! Static, because the image has no C library; and so one file serves on a machine without Kubernetes too.

mod oci;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use object::{
    Object, ObjectKind,
    elf::PT_INTERP,
    read::elf::{ElfFile64, ProgramHeader},
};
use serde_json::json;

use crate::{build_ebpf, packages, shell, toolchain};

#[derive(clap::Args)]
pub struct Arguments {
    /// The machine that it is for.
    #[arg(long, value_enum, default_value_t = Architecture::host())]
    architecture: Architecture,
    /// Name and tag of the image. `localhost` is what container engines call images that come from no registry.
    #[arg(long, default_value = concat!("localhost/shunt:", env!("CARGO_PKG_VERSION")))]
    name: String,
    /// Where to write the image; default: target/image/
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Machines that Shunt is built for.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Architecture {
    #[value(name = "x86_64")]
    X86_64,
    #[value(name = "aarch64")]
    Aarch64,
}

impl Architecture {
    const fn host() -> Self {
        if cfg!(target_arch = "aarch64") { Self::Aarch64 } else { Self::X86_64 }
    }

    const fn target(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-unknown-linux-musl",
            Self::Aarch64 => "aarch64-unknown-linux-musl",
        }
    }

    /// As images call it.
    const fn image_name(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// C compilers that will do, and the Debian package of the last one. Part of the TLS library is in C.
    const fn compilers(self) -> (&'static [&'static str], &'static str) {
        match self {
            Self::X86_64 => (&["x86_64-linux-musl-gcc", "musl-gcc"], "musl-tools"),
            Self::Aarch64 => (&["aarch64-linux-musl-gcc", "aarch64-linux-gnu-gcc"], "gcc-aarch64-linux-gnu"),
        }
    }
}

/// Builds everything, writes the image and says what it weighs.
pub fn run(arguments: &Arguments) -> Result<()> {
    let architecture = arguments.architecture;
    build_ebpf::build(&build_ebpf::Arguments::default())?;
    let program = build_static(architecture)?;
    let bytes = fs::read(&program).with_context(|| format!("can't read {}", program.display()))?;
    check_static(&bytes).with_context(|| format!("{} is no static program", program.display()))?;
    if architecture == Architecture::host() {
        let version = shell::output(Command::new(&program).arg("--version"));
        ensure!(version.is_some(), "{} does not run", program.display());
    }
    let image = oci::write(&oci::Contents {
        name: &arguments.name,
        architecture: architecture.image_name(),
        path: "lb-agent",
        program: &bytes,
        labels: json!({
            "org.opencontainers.image.title": "shunt",
            "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
            "org.opencontainers.image.licenses": "MIT OR Apache-2.0",
        }),
    })?;
    let output = arguments
        .output
        .clone()
        .unwrap_or_else(|| shell::root().join(format!("target/image/shunt-{}.tar", architecture.image_name())));
    write(&output, &image)?;
    println!("{}: {}, static", program.display(), mebibytes(bytes.len()));
    println!("{}: {}, {}, {}", output.display(), mebibytes(image.len()), arguments.name, oci::digest(&image));
    Ok(())
}

/// Builds the agent without a C library to load. Paths of this machine are taken out, so that the same source gives the
/// same program elsewhere.
fn build_static(architecture: Architecture) -> Result<PathBuf> {
    let target = architecture.target();
    toolchain::ensure_target(target)?;
    let compiler = find_compiler(architecture)?;
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo_home = cargo_home.or_else(|| Some(env::home_dir()?.join(".cargo"))).unwrap_or_default();
    let rustflags = [
        format!("--remap-path-prefix={}=/shunt", shell::root().display()),
        format!("--remap-path-prefix={}=/cargo", cargo_home.display()),
        "-Ctarget-feature=+crt-static".to_owned(),
    ];
    let in_name = target.replace('-', "_");
    let mut cargo = shell::cargo();
    cargo.args(["build", "--release", "--locked", "--package", "lb-agent", "--target", target]);
    cargo.args(["--config", "profile.release.strip=\"symbols\""]);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", rustflags.join("\x1f")).env(format!("CC_{in_name}"), &compiler);
    if architecture != Architecture::host() {
        // The host's linker knows the host's machine only; start files and libc come with the target.
        cargo.env(format!("CARGO_TARGET_{}_LINKER", in_name.to_uppercase()), "rust-lld");
    }
    shell::run(&mut cargo)?;
    Ok(shell::root().join("target").join(target).join("release/lb-agent"))
}

fn find_compiler(architecture: Architecture) -> Result<PathBuf> {
    let (names, package) = architecture.compilers();
    let find = || names.iter().find_map(|name| shell::find(name));
    if let Some(compiler) = find() {
        return Ok(compiler);
    }
    if architecture != Architecture::host() {
        bail!(
            "no C compiler for {}: install one of {} (on Debian: {package})",
            architecture.target(),
            names.join(", ")
        );
    }
    packages::ensure(&[package], "compile the C parts of a static program")?;
    find().with_context(|| format!("{package} is installed, but has no {}", names.join(" or ")))
}

/// Fails on a program that needs a loader; without one nobody could load libraries for it.
fn check_static(bytes: &[u8]) -> Result<()> {
    let elf = ElfFile64::<object::Endianness>::parse(bytes).context("not a 64-bit ELF file")?;
    ensure!(matches!(elf.kind(), ObjectKind::Executable | ObjectKind::Dynamic), "not a program");
    let endian = elf.endian();
    let has_loader = elf.elf_program_headers().iter().any(|header| header.p_type(endian) == PT_INTERP);
    ensure!(!has_loader, "it names a loader");
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(directory)
        .and_then(|()| fs::write(path, bytes))
        .with_context(|| format!("can't write {}", path.display()))
}

fn mebibytes(bytes: usize) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::check_static;

    #[test]
    fn a_program_with_a_loader_is_not_static() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let error = check_static(&own).unwrap_err().to_string();
        assert_eq!(error, "it names a loader");
        assert!(check_static(b"#!/bin/sh").is_err());
    }
}

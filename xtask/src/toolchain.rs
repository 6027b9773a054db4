// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a compiler needs to build for BPF beyond itself: the source of `core`, and bpf-linker.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{packages, shell};

/// The oldest bpf-linker that will do, and the one that is installed where none is.
const BPF_LINKER: [u32; 3] = [0, 13, 0];
/// Of what [`BPF_LINKER`] must be built with: the LLVM of the pinned Rust compiler, whose bitcode it links.
const LLVM_PACKAGES: [&str; 2] = ["llvm-22-dev", "libpolly-22-dev"];
const LLVM_FEATURE: &str = "llvm-22";
const LLVM_BIN: &str = "/usr/lib/llvm-22/bin";

/// Sees to it that `core` can be built, for which its source is needed.
pub fn ensure_rust_src() -> Result<()> {
    let sysroot = sysroot()?;
    if sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file() {
        return Ok(());
    }
    let remedy = "install the source of Rust's core library: `rustup component add rust-src` in this directory";
    rustup(&sysroot, &["component", "add", "rust-src"], remedy)
}

/// Sees to it that programs can be built for a target, for which its standard library is needed.
pub fn ensure_target(target: &str) -> Result<()> {
    let sysroot = sysroot()?;
    if sysroot.join("lib/rustlib").join(target).join("lib").is_dir() {
        return Ok(());
    }
    let remedy = format!("install Rust's standard library for it: `rustup target add {target}` in this directory");
    rustup(&sysroot, &["target", "add", target], &remedy)
}

fn sysroot() -> Result<PathBuf> {
    let sysroot = shell::find("rustc")
        .and_then(|rustc| shell::output(Command::new(rustc).args(["--print", "sysroot"]).current_dir(shell::root())))
        .context("can't run rustc; install Rust from https://rustup.rs")?;
    Ok(sysroot.into())
}

/// Adds what a toolchain lacks.
fn rustup(sysroot: &Path, arguments: &[&str], remedy: &str) -> Result<()> {
    let what = arguments.last().copied().unwrap_or_default();
    let Some(rustup) = shell::find("rustup") else {
        bail!("{} lacks {what}, and there is no rustup to add it; {remedy}", sysroot.display());
    };
    eprintln!("adding {what} to {}", sysroot.display());
    shell::run(Command::new(rustup).args(arguments).current_dir(shell::root())).with_context(|| remedy.to_owned())
}

/// Sees to it that there is a bpf-linker, and says where.
pub fn ensure_bpf_linker() -> Result<PathBuf> {
    if let Some(linker) = find_bpf_linker() {
        return Ok(linker);
    }
    install_bpf_linker()?;
    find_bpf_linker().context("bpf-linker has been installed, but `bpf-linker --version` does not work")
}

/// A bpf-linker that works and is new enough.
fn find_bpf_linker() -> Option<PathBuf> {
    let linker = shell::find("bpf-linker")?;
    let version = parse_version(&shell::output(Command::new(&linker).arg("--version"))?)?;
    (version >= BPF_LINKER).then_some(linker)
}

/// The version in `bpf-linker 0.13.0`.
fn parse_version(line: &str) -> Option<[u32; 3]> {
    let mut numbers = line.split_whitespace().nth(1)?.split('.').map(str::parse);
    Some([numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?])
}

fn install_bpf_linker() -> Result<()> {
    let version = BPF_LINKER.map(|number| number.to_string()).join(".");
    let remedy = format!(
        "install bpf-linker {version} or newer, built with LLVM 22 or newer, on PATH: `cargo binstall bpf-linker@{version}`, \
         or its release from https://github.com/aya-rs/bpf-linker/releases, \
         or with LLVM 22's development files: `PATH={LLVM_BIN}:$PATH cargo install bpf-linker@{version} \
         --no-default-features --features {LLVM_FEATURE}`"
    );
    if let Some(lacking) = LLVM_PACKAGES.iter().find(|package| !packages::is_available(package)) {
        bail!("bpf-linker is lacking, and apt has no {lacking} to build it with; {remedy}");
    }
    packages::ensure(&LLVM_PACKAGES, "build bpf-linker").with_context(|| remedy.clone())?;
    eprintln!("building bpf-linker {version}");
    let mut path = OsString::from(LLVM_BIN);
    path.push(":");
    path.push(env::var_os("PATH").unwrap_or_default());
    let mut cargo = shell::cargo();
    cargo.args(["install", "bpf-linker", "--locked", "--version", &version, "--force"]);
    cargo.args(["--no-default-features", "--features", LLVM_FEATURE]).env("PATH", path);
    shell::run(&mut cargo).context(remedy)
}

#[cfg(test)]
mod tests {
    use super::parse_version;

    #[test]
    fn versions_compare_as_numbers() {
        assert_eq!(parse_version("bpf-linker 0.13.0"), Some([0, 13, 0]));
        assert!(parse_version("bpf-linker 0.9.14") < parse_version("bpf-linker 0.13.0"));
        assert_eq!(parse_version("error: no LLVM"), None);
    }
}

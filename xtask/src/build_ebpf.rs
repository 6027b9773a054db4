// SPDX-License-Identifier: MIT OR Apache-2.0
//! `build-ebpf`: lb-ebpf to `target/bpf/shunt`, which the agent embeds, and `target/bpf/bench`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{inspect, shell, toolchain};

const TARGET: &str = "bpfel-unknown-none";
const PROFILE: &str = "bpf";
/// The programs of a node, and those of `bench packet`.
const BINARIES: [&str; 2] = [NODE, "bench"];
const NODE: &str = "shunt";

#[derive(clap::Args, Default)]
pub struct Arguments {
    /// Compile the programs' debug log in. It costs time per packet: never for a release.
    #[arg(long)]
    pub log: bool,
    /// Run clippy on the programs instead of building them.
    #[arg(long)]
    pub clippy: bool,
}

/// Builds the object and says where it is. Without a change this takes as long as cargo needs to see that.
pub fn build(arguments: &Arguments) -> Result<PathBuf> {
    toolchain::ensure_rust_src()?;
    let linker = toolchain::ensure_bpf_linker()?;
    // A directory of its own: other flags and another profile than the host's programs, which may be building meanwhile.
    let target_dir = shell::root().join("target/bpf-build");
    let mut cargo = shell::cargo();
    cargo.arg(if arguments.clippy { "clippy" } else { "build" });
    cargo.args(["--package", "lb-ebpf", "--profile", PROFILE, "--target", TARGET, "-Z", "build-std=core"]);
    cargo.arg("--target-dir").arg(&target_dir);
    if arguments.log {
        cargo.args(["--features", "log"]);
    }
    if arguments.clippy {
        cargo.args(["--", "--deny", "warnings"]);
    }
    // `-Z` on the pinned stable compiler: see rust-toolchain.toml.
    cargo.env("RUSTC_BOOTSTRAP", "1").env("CARGO_ENCODED_RUSTFLAGS", rustflags(&linker));
    shell::run(&mut cargo)?;
    let objects = shell::root().join("target/bpf");
    if !arguments.clippy {
        let built = target_dir.join(TARGET).join(PROFILE);
        BINARIES.iter().try_for_each(|binary| publish(&built.join(binary), &objects.join(binary)))?;
    }
    Ok(objects.join(NODE))
}

/// Flags for rustc in cargo's encoding, in which they may hold blanks.
fn rustflags(linker: &Path) -> String {
    [
        format!("-Clinker={}", linker.display()),
        "-Clink-arg=--btf".to_owned(),
        // Or copies through pointers become calls to a byte loop; the verifier walks twice as many instructions then.
        "-Clink-arg=--disable-expand-memcpy-in-order".to_owned(),
        // BTF is made of debug information.
        "-Cdebuginfo=2".to_owned(),
        // 32-bit operations and jumps: all kernels since 5.1 have them.
        "-Ctarget-cpu=v3".to_owned(),
    ]
    .join("\x1f")
}

/// Copies a sound object to where the agent's build looks for it; an unchanged one is left alone, and so is the agent.
fn publish(built: &Path, object: &Path) -> Result<()> {
    let bytes = fs::read(built).with_context(|| format!("can't read {}", built.display()))?;
    if fs::read(object).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    inspect::check(&bytes).with_context(|| format!("{} can't be loaded", built.display()))?;
    let directory = object.parent().expect("target/bpf/");
    fs::create_dir_all(directory)
        .and_then(|()| fs::write(object, &bytes))
        .with_context(|| format!("can't write {}", object.display()))?;
    eprintln!("{}: {} bytes", object.display(), bytes.len());
    Ok(())
}

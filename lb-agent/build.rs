// SPDX-License-Identifier: MIT OR Apache-2.0
//! Puts the built eBPF object where `dataplane` embeds it from, so that one binary is all there is to deploy.
//!
//! The object is built by `cargo xtask build-ebpf` and not from here: it needs another target and a linker of its own,
//! and a plain `cargo check` of the agent shall need neither. `SHUNT_EBPF_OBJECT` names another object;
//! `SHUNT_NO_EBPF=1` embeds none, for builds that only look at the code: such an agent refuses to run.

use std::{env, fs, path::PathBuf, process::ExitCode};

const OBJECT: &str = "SHUNT_EBPF_OBJECT";
const NO_OBJECT: &str = "SHUNT_NO_EBPF";

fn main() -> ExitCode {
    println!("cargo::rerun-if-env-changed={OBJECT}");
    println!("cargo::rerun-if-env-changed={NO_OBJECT}");
    let variable = |name| PathBuf::from(env::var_os(name).unwrap_or_default());
    let embedded = variable("OUT_DIR").join("shunt");
    if env::var_os(NO_OBJECT).is_some_and(|value| value == "1") {
        return conclude(fs::write(embedded, []), "writing an empty object");
    }
    let object = match env::var_os(OBJECT) {
        Some(path) => PathBuf::from(path),
        None => variable("CARGO_MANIFEST_DIR").join("../target/bpf/shunt"),
    };
    println!("cargo::rerun-if-changed={}", object.display());
    if !object.is_file() {
        println!("cargo::error=no eBPF object at {}: run `cargo xtask build-ebpf` first", object.display());
        return ExitCode::FAILURE;
    }
    conclude(fs::copy(object, embedded), "copying the eBPF object")
}

fn conclude<T>(result: std::io::Result<T>, act: &str) -> ExitCode {
    match result {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            println!("cargo::error={act}: {error}");
            ExitCode::FAILURE
        }
    }
}

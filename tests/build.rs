// SPDX-License-Identifier: MIT OR Apache-2.0
//! Finds out whether there is a real cluster to test on: libtest can't skip a test when it runs, only ignore one that was
//! built so. Without a cluster such tests are ignored by name, with the reason, and `cargo xtask test` says so.

use std::env;

/// A kubeconfig file.
const VARIABLE: &str = "KUBECONFIG_E2E";

fn main() {
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    println!("cargo::rustc-check-cfg=cfg(has_cluster)");
    if env::var_os(VARIABLE).is_some_and(|path| !path.is_empty()) {
        println!("cargo::rustc-cfg=has_cluster");
    }
}

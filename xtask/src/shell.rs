// SPDX-License-Identifier: MIT OR Apache-2.0
//! Running other programs: each failure names the whole command.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// The repository's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask/ lies in the repository")
}

/// The cargo that runs us, so that the pinned toolchain is used throughout; started in the repository's root.
pub fn cargo() -> Command {
    let cargo = env::var_os("CARGO").map(PathBuf::from).or_else(|| find("cargo")).unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root());
    // What cargo tells us of our own package is no business of those that it builds for us: ring's build script would run again
    // for it, and all that stands on ring be built again, by turns with a cargo that is started by hand.
    let is_ours = |name: &OsStr| {
        let name = name.to_string_lossy();
        name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
    };
    for (name, _) in env::vars_os().filter(|(name, _)| is_ours(name)) {
        command.env_remove(name);
    }
    command
}

/// Runs `command` to its end, its output on our terminal; anything but success is an error.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("can't start {}", display(command)))?;
    if !status.success() {
        bail!("`{}` failed: {status}", display(command));
    }
    Ok(())
}

/// The same, but shows what it prints only when it fails.
pub fn run_quietly(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("can't start {}", display(command)))?;
    if !output.status.success() {
        let printed = [output.stdout, output.stderr].concat();
        bail!("`{}` failed: {}\n{}", display(command), output.status, String::from_utf8_lossy(&printed).trim());
    }
    Ok(())
}

/// The command as one would type it, without its environment.
fn display(command: &Command) -> String {
    let words = [command.get_program()].into_iter().chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// What `command` prints, or `None` when it can't be started or fails.
pub fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Where `program` is: on PATH, in cargo's own bin directory, or where Debian keeps administrators' programs.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let places = env::split_paths(&path).chain([cargo_bin(), "/usr/sbin".into(), "/sbin".into()]);
    places.map(|place| place.join(program)).find(|file| file.is_file())
}

/// Where `cargo install` puts programs.
fn cargo_bin() -> PathBuf {
    let home = env::var_os("CARGO_INSTALL_ROOT").or_else(|| env::var_os("CARGO_HOME")).map(PathBuf::from);
    let home = home.or_else(|| env::home_dir().map(|home| home.join(".cargo")));
    home.unwrap_or_default().join("bin")
}

/// Whether we may change this machine.
pub fn is_root() -> bool {
    output(Command::new("id").arg("-u")).as_deref() == Some("0")
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Debian packages: which are lacking, and their installation without any of their services being started.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::shell;

/// Installs those of `packages` that are not installed, or says how. `purpose` completes "needed to ...".
pub fn ensure(packages: &[&str], purpose: &str) -> Result<()> {
    let lacking: Vec<&str> = packages.iter().copied().filter(|package| !is_installed(package)).collect();
    if lacking.is_empty() {
        return Ok(());
    }
    let names = lacking.join(" ");
    let Some(apt) = shell::find("apt-get") else {
        bail!(
            "needed to {purpose}: what Debian calls {names}. This machine has no apt-get: install them by its own means"
        );
    };
    if !shell::is_root() {
        bail!("needed to {purpose}: {names}. Install them (only root can): sudo apt-get install {names}");
    }
    eprintln!("installing {names} (needed to {purpose})");
    let _no_services = ServicesHeldBack::new()?;
    let install = || {
        let mut command = Command::new(&apt);
        command.args(["install", "--yes", "--no-install-recommends"]).args(&lacking);
        shell::run_quietly(command.env("DEBIAN_FRONTEND", "noninteractive"))
    };
    // A fresh machine has no package lists, an old one has outdated ones.
    shell::run_quietly(Command::new(&apt).arg("update"))
        .and_then(|()| install())
        .with_context(|| format!("needed to {purpose}: {names}. Is this machine's apt configured, with a network?"))
}

/// Whether apt knows a version of `package` that it could install.
pub fn is_available(package: &str) -> bool {
    if is_installed(package) {
        return true;
    }
    let known =
        || shell::output(Command::new("apt-cache").args(["show", package])).is_some_and(|text| !text.is_empty());
    // Without package lists nothing is known yet.
    known() || (shell::is_root() && shell::output(Command::new("apt-get").arg("update")).is_some() && known())
}

fn is_installed(package: &str) -> bool {
    let status =
        shell::output(Command::new("dpkg-query").args(["--show", "--showformat=${db:Status-Status}", package]));
    status.as_deref() == Some("installed")
}

/// While this lives, packages that are installed don't start their services: Debian's `policy-rc.d` forbids it.
struct ServicesHeldBack {
    /// The file that we have made; `None` where the machine has a policy of its own.
    policy: Option<PathBuf>,
}

impl ServicesHeldBack {
    fn new() -> Result<Self> {
        let path = Path::new("/usr/sbin/policy-rc.d");
        if path.exists() {
            return Ok(Self { policy: None });
        }
        let policy = Some(path.to_owned());
        let held_back = Self { policy };
        fs::write(path, "#!/bin/sh\nexit 101\n")
            .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("can't write {}", path.display()))?;
        Ok(held_back)
    }
}

impl Drop for ServicesHeldBack {
    fn drop(&mut self) {
        if let Some(policy) = &self.policy
            && let Err(error) = fs::remove_file(policy)
        {
            eprintln!(
                "can't remove {}: {error}; remove it, or no service starts when it is installed",
                policy.display()
            );
        }
    }
}

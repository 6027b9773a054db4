// SPDX-License-Identifier: MIT OR Apache-2.0
//! The agent as a pod: the API server's address in its environment, a token and an authority's certificate mounted where the
//! kubelet mounts them, and TLS.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::{agent::Agent, objects::serving, tls::Front};

/// Mounts the first argument where a pod has its credentials, seen by nobody else, and becomes the rest.
const AS_A_POD: &str = "set -e
    mount -t tmpfs none /var/run/
    mkdir -p /var/run/secrets/kubernetes.io/serviceaccount
    mount --bind \"$1\" /var/run/secrets/kubernetes.io/serviceaccount
    shift
    exec \"$@\"";
/// The test below that is the agent.
const AGENT: &str = "pod::an_agent_that_another_test_starts_as_a_pod";

/// Credentials as the kubelet writes them: files are links into a directory that is exchanged as a whole.
struct Credentials(TempDir);

impl Credentials {
    fn write(token: &str, authority: &str) -> Result<Self> {
        let credentials = Self(tempfile::tempdir().context("a directory")?);
        for file in ["token", "ca.crt", "namespace"] {
            symlink(Path::new("..data").join(file), credentials.path().join(file))?;
        }
        credentials.rotate(token, authority)?;
        Ok(credentials)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn rotate(&self, token: &str, authority: &str) -> Result<()> {
        let version = self.path().join(format!("..{token}"));
        fs::create_dir(&version)?;
        for (file, text) in [("token", token), ("ca.crt", authority), ("namespace", "kube-system")] {
            fs::write(version.join(file), text)?;
        }
        let draft = self.path().join("..data_tmp");
        symlink(PathBuf::from(format!("..{token}")), &draft)?;
        fs::rename(&draft, self.path().join("..data"))?;
        Ok(())
    }
}

/// An agent as a pod, in a process of its own.
pub struct Pod {
    child: Child,
    credentials: Credentials,
    authority: String,
}

impl Pod {
    /// Starts one with this token that talks to the API server behind the front.
    pub fn start(front: &Front, token: &str) -> Result<Self> {
        let credentials = Credentials::write(token, front.authority())?;
        let child = Command::new("unshare")
            .args(["--mount", "sh", "-c", AS_A_POD, "sh"])
            .arg(credentials.path())
            .arg(env::current_exe()?)
            .args(["--ignored", "--exact", AGENT])
            .env("KUBERNETES_SERVICE_HOST", front.address().ip().to_string())
            .env("KUBERNETES_SERVICE_PORT", front.address().port().to_string())
            .env("HOME", "/nonexistent")
            .env_remove("KUBECONFIG")
            .stdin(Stdio::null())
            .spawn()
            .context("can't start unshare")?;
        Ok(Self { child, credentials, authority: front.authority().to_owned() })
    }

    /// Exchanges its token, as the kubelet does.
    pub fn rotate(&self, token: &str) -> Result<()> {
        self.credentials.rotate(token, &self.authority)
    }

    /// Waits until it has seen everything and ended well.
    pub fn wait(mut self) -> Result<()> {
        let status = self.child.wait()?;
        ensure!(status.success(), "the agent in the pod: {status}");
        Ok(())
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // It has ended already, most often.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test of its own: [`Pod`] runs it. It sees first one Service, and with the second token another one.
#[test]
#[ignore = "it is started by a_rotated_token_is_read_again, as a pod"]
fn an_agent_that_another_test_starts_as_a_pod() -> Result<()> {
    let agent = Agent::run_in_cluster()?;
    agent.wait_served(&serving(&[(1, &[])]))?;
    agent.wait_served_within(super::tokens::A_MINUTE_AND_A_HALF, &serving(&[(1, &[]), (2, &[])]))
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! The key of the flow hash, which all nodes of a cluster share: from a Secret, which the first agent that finds it empty
//! fills.
//!
//! Agents may read and update that one Secret, and create none: who may create Secrets in `kube-system` can give himself
//! tokens. Of several agents that find it empty the API server takes the first one's update; the others read that.

use std::{fmt, io, str::FromStr, time::Duration};

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{Api, Client, api::PostParams};
use tokio::time;

use super::{
    Backoff, Closed, KIND_PAUSE, Server,
    failure::{CONFLICT, FORBIDDEN, NOT_FOUND, chain},
};
use crate::{
    hash_seed::{HashSeed, HashSeedError},
    problem::Problem,
    source::Event,
};

/// Where in the Secret it stands.
const KEY: &str = "hash-seed";

/// A Secret that is replaced is noticed within this time: agents that start meanwhile have the new one.
const LOOK_AGAIN: Duration = Duration::from_secs(600);

/// Updates that may cross those of other agents before it is a failure like any other.
const ATTEMPTS: usize = 4;

/// A Secret's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretName {
    namespace: String,
    name: String,
}

/// A Secret's place could not be read.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} names no Secret; give NAMESPACE/NAME, such as kube-system/shunt-hash-seed")]
pub struct SecretNameError {
    text: String,
}

impl FromStr for SecretName {
    type Err = SecretNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text
            .split_once('/')
            .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty() && !name.contains('/'));
        let (namespace, name) = parts.ok_or_else(|| SecretNameError { text: text.into() })?;
        Ok(Self { namespace: namespace.into(), name: name.into() })
    }
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Why the Secret gives no seed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{}", chain(.0))]
    Api(#[from] kube::Error),
    #[error("its {KEY} is none: {0}")]
    Malformed(#[from] HashSeedError),
    #[error("can't make a new one: {0}")]
    Random(#[from] io::Error),
    #[error("other agents changed it {ATTEMPTS} times while this one tried to")]
    Conflicts,
}

impl Failure {
    /// Whether the server has answered, and will go on answering so until somebody changes something.
    fn is_lasting(&self) -> bool {
        match self {
            Self::Api(kube::Error::Api(status)) => matches!(status.code, NOT_FOUND | FORBIDDEN),
            Self::Api(_) | Self::Conflicts => false,
            Self::Malformed(_) | Self::Random(_) => true,
        }
    }

    fn problem(&self, name: &SecretName) -> Problem {
        let remedy = match self {
            Self::Api(kube::Error::Api(status)) if status.code == FORBIDDEN => {
                "let the agent's user get and update it (manifests/rbac.yaml)"
            }
            Self::Malformed(_) => "remove that key from the Secret, and an agent makes a new one",
            _ => {
                "create it (manifests/hash-seed.yaml; an empty one is filled), or give all agents one --hash-seed-file"
            }
        };
        let remedy = format!(
            "{remedy}; until then this node has a seed of its own, and flows that move here from another node meet other backends"
        );
        Problem::new(format!("Secret {name}"), format!("gives no seed for the flow hash: {self}"), remedy)
    }
}

impl Server {
    /// Follows the Secret until the receiver is dropped. The first sync waits for it, but not for one that isn't there.
    pub(super) async fn follow_hash_seed(&self, client: &Client, name: &SecretName) -> Closed {
        let secrets = Api::<Secret>::namespaced(client.clone(), &name.namespace);
        let mut backoff = Backoff::default();
        let (mut is_listed, mut complaint) = (false, None);
        loop {
            let (event, is_over, pause) = match agree(&secrets, &name.name).await {
                Ok(seed) => {
                    backoff.reset();
                    complaint = None;
                    (Some(Event::HashSeed(seed)), true, LOOK_AGAIN)
                }
                Err(failure) => {
                    let problem = failure.problem(name);
                    let is_new = complaint.replace(problem.clone()).as_ref() != Some(&problem);
                    let event = is_new.then_some(Event::Problem(problem));
                    (event, failure.is_lasting(), backoff.pause(KIND_PAUSE).max(self.asked.remaining()))
                }
            };
            if let Some(event) = event
                && self.send(event).await.is_err()
            {
                return Closed;
            }
            if is_over && !std::mem::replace(&mut is_listed, true) && self.count_listed().await.is_err() {
                return Closed;
            }
            time::sleep(pause).await;
        }
    }
}

/// The seed in the Secret; where there is none yet, one that this agent puts there, or another agent does meanwhile.
async fn agree(secrets: &Api<Secret>, name: &str) -> Result<HashSeed, Failure> {
    for _ in 0..ATTEMPTS {
        let mut secret = secrets.get(name).await?;
        let data = secret.data.get_or_insert_default();
        if let Some(ByteString(text)) = data.get(KEY) {
            return Ok(String::from_utf8_lossy(text).trim().parse()?);
        }
        let seed = HashSeed::random()?;
        data.insert(KEY.to_owned(), ByteString(seed.to_hex().into_bytes()));
        // With the version that was read: the server refuses it if somebody has changed the Secret since.
        match secrets.replace(name, &PostParams::default(), &secret).await {
            Ok(_) => {
                tracing::info!(secret = name, "the seed of the flow hash was made, for all nodes of the cluster");
                return Ok(seed);
            }
            Err(kube::Error::Api(status)) if status.code == CONFLICT => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Failure::Conflicts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_has_a_namespace_and_a_name() {
        let name: SecretName = "kube-system/shunt-hash-seed".parse().unwrap();
        assert_eq!(name.to_string(), "kube-system/shunt-hash-seed");
        for text in ["", "shunt", "/shunt", "kube-system/", "a/b/c"] {
            let error = text.parse::<SecretName>().unwrap_err().to_string();
            assert!(error.contains("NAMESPACE/NAME"), "{error}");
        }
    }
}

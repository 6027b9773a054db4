// SPDX-License-Identifier: MIT OR Apache-2.0
//! A client of the Kubernetes API that goes on with the credentials of its files when these change: client certificates are
//! renewed, authorities replaced.
//!
//! The files are looked at before a request, now and then, and soon after one that the server has refused. What is under way stays
//! on the connection that it has. Files of tokens are read by the client itself.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use http::{Request, Response, StatusCode};
use kube::{
    Client, Config,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::time::Instant;
use tower::Service;

use super::{
    READ_TIMEOUT,
    counted::{self, AskedPause},
};
use crate::source::{ApiRequests, SourceError};

/// How long what the files hold is taken for granted.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// The same, after the server has refused the credentials.
const LOOK_SOON: Duration = Duration::from_secs(1);

/// The authority of a pod's API server.
const POD_AUTHORITY: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";

/// Where the credentials are from, and who counts the requests.
#[derive(Clone)]
pub(super) struct Origin {
    /// A file; without it the usual ones, or the pod's own.
    pub(super) kubeconfig: Option<PathBuf>,
    pub(super) requests: ApiRequests,
    pub(super) asked: AskedPause,
}

impl Origin {
    /// In words.
    pub(super) fn text(&self) -> String {
        match &self.kubeconfig {
            Some(path) => format!("kubeconfig {}", path.display()),
            None => "the default kubeconfig or the pod's own credentials".to_owned(),
        }
    }

    /// A client that follows the files, and the URL of its server.
    ///
    /// # Errors
    /// When the credentials can't be read, or are no good.
    pub(super) async fn client(self) -> Result<(Client, String), SourceError> {
        let stamp = stamp(self.kubeconfig.clone()).await;
        let config = self.load().await?;
        let (url, namespace) = (config.cluster_url.to_string(), config.default_namespace.clone());
        let client = self.connect(config)?;
        let held = Held { client, stamp, looked: Instant::now(), is_doubtful: false, is_told: false };
        let following = Following { origin: self, held: Arc::new(Mutex::new(held)) };
        Ok((Client::new(following, namespace), url))
    }

    fn connect(&self, config: Config) -> Result<Client, SourceError> {
        counted::client(config, &self.requests, &self.asked).map_err(SourceError::Client)
    }

    async fn load(&self) -> Result<Config, SourceError> {
        let mut config = match &self.kubeconfig {
            Some(path) => {
                let failed = |source| SourceError::Kubeconfig { path: path.clone(), source };
                let file = Kubeconfig::read_from(path).map_err(failed)?;
                Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(failed)?
            }
            None => Config::infer().await.map_err(SourceError::NoKubeconfig)?,
        };
        config.read_timeout = Some(READ_TIMEOUT);
        config.reset_reader_on_write = true;
        // Whoever asks tries again by itself, and says so; in here it would be neither told nor counted.
        config.default_retry = false;
        Ok(config)
    }
}

/// What the files hold, in short; 0 where they can't be read.
async fn stamp(kubeconfig: Option<PathBuf>) -> u64 {
    tokio::task::spawn_blocking(move || read_stamp(kubeconfig.as_deref())).await.unwrap_or_default()
}

fn read_stamp(kubeconfig: Option<&Path>) -> u64 {
    let mut hasher = DefaultHasher::new();
    let mut add = |path: &str| std::fs::read(path).ok().hash(&mut hasher);
    let file = match kubeconfig {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    let Ok(file) = file else {
        if kubeconfig.is_some() {
            return 0;
        }
        add(POD_AUTHORITY);
        return hasher.finish();
    };
    let users = file.auth_infos.iter().filter_map(|named| named.auth_info.as_ref());
    users.flat_map(|user| [&user.client_certificate, &user.client_key]).flatten().for_each(|path| add(path));
    let clusters = file.clusters.iter().filter_map(|named| named.cluster.as_ref());
    clusters.filter_map(|cluster| cluster.certificate_authority.as_ref()).for_each(|path| add(path));
    serde_json::to_string(&file).ok().hash(&mut hasher);
    hasher.finish()
}

/// The client in use, and of which state of the files it is.
struct Held {
    client: Client,
    stamp: u64,
    looked: Instant,
    /// Whether the server has refused the credentials since.
    is_doubtful: bool,
    /// Whether it has been said that the files can't be used.
    is_told: bool,
}

/// Sends each request by the client of the moment.
#[derive(Clone)]
struct Following {
    origin: Origin,
    held: Arc<Mutex<Held>>,
}

impl Following {
    fn with_held<T>(&self, act: impl FnOnce(&mut Held) -> T) -> T {
        act(&mut self.held.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn current(&self) -> Client {
        let is_due = self.with_held(|held| {
            let pause = if held.is_doubtful { LOOK_SOON } else { LOOK_AGAIN };
            let is_due = held.looked.elapsed() >= pause;
            if is_due {
                (held.looked, held.is_doubtful) = (Instant::now(), false);
            }
            is_due
        });
        if is_due {
            self.look().await;
        }
        self.with_held(|held| held.client.clone())
    }

    async fn look(&self) {
        let stamp = stamp(self.origin.kubeconfig.clone()).await;
        let is_same = self.with_held(|held| {
            let is_same = held.stamp == stamp;
            // They may have been others, or none, in between.
            held.is_told &= !is_same;
            is_same
        });
        if is_same {
            return;
        }
        let from = self.origin.text();
        match self.origin.load().await.and_then(|config| self.origin.connect(config)) {
            Ok(client) => {
                tracing::info!(from, "the credentials have changed, and are those of all requests from now on");
                self.with_held(|held| (held.client, held.stamp, held.is_told) = (client, stamp, false));
            }
            // Half of a file, perhaps: the next look sees the rest.
            Err(error) if !self.with_held(|held| std::mem::replace(&mut held.is_told, true)) => {
                tracing::warn!(
                    from, %error,
                    "the credentials have changed and can't be used; those of before are, as long as they are good"
                );
            }
            Err(_) => {}
        }
    }
}

impl Service<Request<Body>> for Following {
    type Response = Response<Body>;
    type Error = kube::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let own = self.clone();
        let sent = async move {
            let answer = own.current().await.send(request).await;
            // A server that does not take the certificate may break the connection off instead.
            if answer.as_ref().map_or(true, |response| response.status() == StatusCode::UNAUTHORIZED) {
                own.with_held(|held| held.is_doubtful = true);
            }
            answer
        };
        sent.boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn files_that_come_back_as_they_were_are_good_again_and_the_next_failure_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config");
        let text = json!({
            "clusters": [{"name": "c", "cluster": {"server": "http://192.0.2.1"}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        });
        let write = || fs::write(&path, text.to_string()).unwrap();
        write();
        let (requests, asked) = (ApiRequests::default(), AskedPause::default());
        let origin = Origin { kubeconfig: Some(path.clone()), requests, asked };
        let client = origin.connect(origin.load().await.unwrap()).unwrap();
        let stamp = stamp(Some(path.clone())).await;
        let held = Held { client, stamp, looked: Instant::now(), is_doubtful: false, is_told: false };
        let following = Following { origin, held: Arc::new(Mutex::new(held)) };
        for _ in 0..2 {
            fs::remove_file(&path).unwrap();
            following.look().await;
            assert!(following.with_held(|held| held.is_told));
            write();
            following.look().await;
            assert!(!following.with_held(|held| held.is_told));
        }
    }

    #[test]
    fn a_change_of_any_file_is_seen_but_not_of_a_token_that_the_client_reads_itself() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for name in ["certificate", "key", "authority", "token"] {
            fs::write(at(name), "first").unwrap();
        }
        let write = |server: &str| {
            let text = json!({
                "clusters": [{"name": "c", "cluster": {"server": server, "certificate-authority": "authority"}}],
                "users": [{"name": "u", "user": {"client-certificate": "certificate", "client-key": at("key"), "tokenFile": "token"}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "x",
            });
            fs::write(at("config"), text.to_string()).unwrap();
        };
        let stamp = || read_stamp(Some(&at("config")));
        assert_eq!(stamp(), 0, "no file");
        write("https://192.0.2.1");
        let mut before = stamp();
        for name in ["certificate", "key", "authority"] {
            fs::write(at(name), "second").unwrap();
            assert_ne!(std::mem::replace(&mut before, stamp()), before, "{name}");
        }
        fs::write(at("token"), "second").unwrap();
        assert_eq!(stamp(), before);
        write("https://192.0.2.2");
        assert_ne!(stamp(), before);
    }
}

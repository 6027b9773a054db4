// SPDX-License-Identifier: MIT OR Apache-2.0
//! `--source kube`: follows the Kubernetes API.
//!
//! Decides what is asked for and what to do when the answer fails: say so once, wait, ask again. Whatever fails, nothing
//! that is known is taken back (rule 8). Which objects have gone is [`Known`]'s business.

use std::{
    fmt::Debug,
    path::PathBuf,
    pin::pin,
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};

use futures::StreamExt;
use http::{Request, Uri};
use k8s_openapi::{
    Resource as _,
    api::{
        core::v1::{Node, Service},
        discovery::v1::EndpointSlice,
        networking::v1::ServiceCIDR,
    },
};
use kube::{
    Api, Client, Resource,
    client::Body,
    runtime::watcher::{self, watcher},
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::mpsc,
    time::{self, Instant},
};

use super::{ApiRequests, Event, Object, SourceError};
use crate::problem::Problem;

mod backoff;
mod counted;
mod credentials;
mod failure;
mod hash_seed;
mod known;
mod lean;

use backoff::Backoff;
use counted::AskedPause;
use credentials::Origin;
use failure::{BAD_REQUEST, FORBIDDEN, Failure, GONE, NOT_FOUND, UNPROCESSABLE};
pub use hash_seed::SecretName;
use known::Known;
use lean::Lean;

/// Services that are another proxy's business are not ours (rule 1).
const SERVICE_LABELS: &str = "!service.kubernetes.io/service-proxy-name";
/// Nor are headless ones. Servers before Kubernetes 1.31 can't leave those out.
const SERVICE_FIELDS: &str = "spec.clusterIP!=None";
/// Slices of headless Services (rule 2).
const SLICE_LABELS: &str = "!service.kubernetes.io/headless";

/// Services, EndpointSlices, the own Node, and ServiceCIDRs.
const KINDS: u8 = 4;

/// How long a list that is streamed may keep silent before it is asked for anew.
const STREAM_PATIENCE: Duration = Duration::from_secs(60);
/// How long a plain list may take, which is one piece: it says nothing until its last byte is here, and begun anew it begins from nothing.
/// A connection on which nothing comes at all ends by [`READ_TIMEOUT`].
const LIST_PATIENCE: Duration = Duration::from_secs(300);
/// For how long lists are plain after one that is streamed was refused, or came to no end: servers are upgraded while agents run, and
/// connections break for other reasons, too.
const PLAIN_LISTS: Duration = Duration::from_secs(3600);
/// How long a watch lasts before it is asked for anew, in seconds. One that says nothing for five more is given up: a
/// connection whose other end has gone without a word looks like one on which nothing happens. Shorter would notice that
/// sooner, and cost the API server more: these are 73 requests a second for every thousand nodes.
const WATCH_SECS: u32 = 55;
/// How long any connection may keep silent: above that of a watch, whose silence the watcher itself ends.
const READ_TIMEOUT: Duration = Duration::from_secs(70);

const _: () = assert!(WATCH_SECS + 5 <= 60 && READ_TIMEOUT.as_secs() > WATCH_SECS as u64 + 5);

/// The longest pause after a failure.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Failures further apart than this, which is longer than any back-off, are not of the same outage.
const OUTAGE_GAP: Duration = Duration::from_secs(120);

/// The longest time for which what the server may lack is not asked for again: servers are upgraded while agents run.
const KIND_PAUSE: Duration = Duration::from_secs(600);

/// Which API, and as whom.
#[derive(Clone, Debug)]
pub struct KubeOptions {
    /// Credentials; without them `$KUBECONFIG`, `~/.kube/config`, or the pod's own are taken.
    pub kubeconfig: Option<PathBuf>,
    /// The own Node's name.
    pub node_name: String,
    /// How long a watch lasts before it is asked for anew, in seconds.
    pub watch_secs: u32,
    /// The Secret with the seed of the flow hash; `None` where that is given otherwise.
    pub hash_seed: Option<SecretName>,
    /// Where requests are counted.
    pub requests: ApiRequests,
}

impl KubeOptions {
    /// With the usual times, and requests counted for nobody.
    #[must_use]
    pub fn new(kubeconfig: Option<PathBuf>, node_name: String) -> Self {
        Self { kubeconfig, node_name, watch_secs: WATCH_SECS, hash_seed: None, requests: ApiRequests::default() }
    }

    fn origin(&self, asked: &AskedPause) -> Origin {
        let (kubeconfig, requests) = (self.kubeconfig.clone(), self.requests.clone());
        Origin { kubeconfig, requests, asked: asked.clone() }
    }
}

/// Feeds the objects of a cluster into `events` until the receiver is dropped.
///
/// # Errors
/// When the credentials can't be read. A server that doesn't answer is no error: it is asked again and again.
pub async fn run_kube(options: KubeOptions, events: mpsc::Sender<Event>) -> Result<(), SourceError> {
    let unlisted = AtomicU8::new(KINDS + u8::from(options.hash_seed.is_some()));
    let asked = AskedPause::default();
    let origin = options.origin(&asked);
    let text = origin.text();
    let (client, url) = origin.client().await?;
    let server = Server { url, origin: text, events, unlisted, asked };
    let everything = || watcher::Config::default().timeout(options.watch_secs);
    let own_node = format!("metadata.name={}", options.node_name);
    let followed = async {
        tokio::join!(
            server.follow::<Lean<Service>>(
                &client,
                everything().labels(SERVICE_LABELS),
                Some(SERVICE_FIELDS),
                Need::Must
            ),
            server.follow::<Lean<EndpointSlice>>(&client, everything().labels(SLICE_LABELS), None, Need::Must),
            server.follow::<Node>(&client, everything().fields(&own_node), None, Need::Must),
            server.follow::<ServiceCIDR>(&client, everything(), None, Need::May),
            async {
                if let Some(name) = &options.hash_seed {
                    server.follow_hash_seed(&client, name).await;
                }
            },
        )
    };
    tokio::select! {
        () = server.events.closed() => {}
        _ = followed => {}
    }
    Ok(())
}

/// A client with the same credentials as the source's, for what the agent tells the API.
///
/// # Errors
/// When the credentials can't be read.
pub async fn connect(options: &KubeOptions) -> Result<Client, SourceError> {
    Ok(options.origin(&AskedPause::default()).client().await?.0)
}

/// The API server, for all watches.
struct Server {
    url: String,
    origin: String,
    events: mpsc::Sender<Event>,
    /// Kinds whose first list isn't complete.
    unlisted: AtomicU8,
    /// What the server has asked for in its last answers.
    asked: AskedPause,
}

/// The receiver of the events is gone.
struct Closed;

impl Server {
    /// Follows one kind until the receiver is dropped.
    async fn follow<K>(
        &self,
        client: &Client,
        config: watcher::Config,
        spare_fields: Option<&'static str>,
        need: Need,
    ) -> Closed
    where
        K: Resource + Into<Object> + Clone + Debug + DeserializeOwned + Send + 'static,
        K::DynamicType: Default,
    {
        let mut watch = Watch::new(K::plural(&K::DynamicType::default()).into_owned(), spare_fields, need);
        loop {
            // The first list comes from the server's watch cache: with a limit and no version older servers ask etcd, once for every
            // node. Another server's cache may be older than what is known, so that no later list may.
            let (client, mut config) = if watch.is_listed {
                (without_version_0(client), config.clone())
            } else {
                (client.clone(), watcher::Config { page_size: None, ..config.clone().any_semantic() })
            };
            if let Some(fields) = watch.spare_fields {
                config = config.fields(fields);
            }
            watch.streams_lists = watch.may_stream_lists(Instant::now());
            if watch.streams_lists {
                config = config.streaming_lists();
            }
            watch.is_watching = false;
            let mut stream = pin!(watcher(Api::<K>::all(client), config));
            loop {
                let failure = match watch.next(stream.next()).await {
                    // The watcher begins anew without a word, and without a pause, if a list that is streamed just ends.
                    Ok(watcher::Event::Init) if watch.known.is_listing() && !watch.has_failed => Failure::End,
                    Ok(event) => {
                        watch.has_failed = false;
                        if self.take_in(&mut watch, event).await.is_err() {
                            return Closed;
                        }
                        continue;
                    }
                    Err(failure) => failure,
                };
                watch.has_failed = true;
                if let Some(fields) = watch.take_refused_fields(&failure) {
                    let cause = watch.describe(&failure);
                    tracing::info!(server = self.url, kind = watch.kind, fields, cause, "going on with all of these");
                    break;
                }
                if watch.gives_up_streams(&failure, Instant::now()) {
                    let cause = watch.describe(&failure);
                    tracing::debug!(server = self.url, kind = watch.kind, cause, "going on with plain lists");
                    break;
                }
                if self.bear(&mut watch, &failure).await.is_err() {
                    return Closed;
                }
                watch.is_watching &= failure.status() != Some(GONE);
                time::sleep(watch.pause(&failure, self.asked.remaining())).await;
                if failure.begins_anew() {
                    break;
                }
            }
        }
    }

    async fn take_in(&self, watch: &mut Watch, event: watcher::Event<impl Into<Object>>) -> Result<(), Closed> {
        let is_list_complete = matches!(event, watcher::Event::InitDone);
        if matches!(event, watcher::Event::Apply(_) | watcher::Event::Delete(_)) {
            watch.backoff.reset();
            watch.was_gone = false;
        }
        watch.is_watching |= is_list_complete;
        if is_the_servers(&event) && watch.complaint.take().is_some() {
            tracing::info!(server = self.url, kind = watch.kind, "the API server answers again");
        }
        let is_listing_before = watch.known.is_listing();
        for news in watch.known.handle(event) {
            self.send(news).await?;
        }
        let is_listing = watch.known.is_listing();
        if watch.is_listed && is_listing != is_listing_before && watch.kind == Service::URL_PATH_SEGMENT {
            self.send(Event::Relisting(is_listing)).await?;
        }
        if is_list_complete { self.set_listed(watch).await } else { Ok(()) }
    }

    /// What there is of one kind is known.
    async fn set_listed(&self, watch: &mut Watch) -> Result<(), Closed> {
        if std::mem::replace(&mut watch.is_listed, true) {
            return Ok(());
        }
        if std::mem::replace(&mut watch.is_counted, true) {
            return self.send(Event::ServiceCidrsUnknown(false)).await;
        }
        self.count_listed().await
    }

    /// One more of what there is at the start has been sent. The last one speaks for all (rule 7).
    async fn count_listed(&self) -> Result<(), Closed> {
        if self.unlisted.fetch_sub(1, Ordering::AcqRel) == 1 { self.send(Event::Synced).await } else { Ok(()) }
    }

    /// Says what failed, and goes on without a kind of objects where that can be.
    async fn bear(&self, watch: &mut Watch, failure: &Failure) -> Result<(), Closed> {
        match failure.status() {
            // It knows no such kind: as good as an empty list.
            Some(NOT_FOUND) if watch.need == Need::May => {
                let cause = watch.describe(failure);
                if !watch.is_listed {
                    tracing::info!(
                        server = self.url,
                        kind = watch.kind,
                        cause,
                        "going on without this kind of objects"
                    );
                }
                for news in watch.known.forget() {
                    self.send(news).await?;
                }
                self.set_listed(watch).await
            }
            // What there is of it is not known, and does not hold the rest back.
            Some(FORBIDDEN) if watch.need == Need::May => {
                self.complain(watch, failure).await?;
                if watch.is_listed || std::mem::replace(&mut watch.is_counted, true) {
                    return Ok(());
                }
                self.send(Event::ServiceCidrsUnknown(true)).await?;
                self.count_listed().await
            }
            _ => self.complain(watch, failure).await,
        }
    }

    /// Says what failed, once in an outage.
    async fn complain(&self, watch: &mut Watch, failure: &Failure) -> Result<(), Closed> {
        let cause = watch.describe(failure);
        if failure.status() == Some(GONE) {
            // The server's history is short, and a list mends it.
            tracing::debug!(server = self.url, kind = watch.kind, cause, "listing anew");
            return Ok(());
        }
        let now = Instant::now();
        let last = watch.complaint.replace((cause.clone(), now));
        if last.is_some_and(|(said, at)| said == cause && now - at < watch.outage_gap()) {
            return Ok(());
        }
        let remedy = failure.remedy(&watch.kind, &self.origin);
        let subject = format!("Kubernetes API server {}", self.url);
        let waiting = "; asked again until it answers, with all that is known in force";
        self.send(Event::Problem(Problem::new(subject, cause, remedy + waiting))).await
    }

    async fn send(&self, event: Event) -> Result<(), Closed> {
        self.events.send(event).await.map_err(|_| Closed)
    }
}

/// A client for which a list that is streamed is of the version of now at least, as every plain one is that names none: the watcher asks
/// for version 0, which is any that the server has in its cache.
fn without_version_0(client: &Client) -> Client {
    let own = client.clone();
    let sent = move |request| {
        let sent = own.clone();
        async move {
            let sent = sent.send(drop_version_0(request)).await;
            // The outer client says once more that the request failed.
            sent.map_err(|error| match error {
                kube::Error::Service(cause) => cause,
                other => other.into(),
            })
        }
    };
    Client::new(tower::service_fn(sent), client.default_namespace())
}

fn drop_version_0(mut request: Request<Body>) -> Request<Body> {
    const VERSION_0: &str = "resourceVersion=0";
    if let Some((path, query)) = request.uri().path_and_query().and_then(|text| text.as_str().split_once('?'))
        && query.split('&').any(|pair| pair == VERSION_0)
    {
        let kept: Vec<_> = query.split('&').filter(|pair| *pair != VERSION_0).collect();
        let mut parts = request.uri().clone().into_parts();
        parts.path_and_query = format!("{path}?{}", kept.join("&")).parse().ok();
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    }
    request
}

/// `Init` is the watcher's own word, said before it asks; all others are the server's.
const fn is_the_servers<K>(event: &watcher::Event<K>) -> bool {
    !matches!(event, watcher::Event::Init)
}

/// Whether the agent can do without a kind of objects.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    /// Nothing is programmed without it.
    Must,
    /// ServiceCIDRs: some servers don't know them, and some don't let us see them.
    May,
}

/// One kind that is followed.
struct Watch {
    /// Plural, as in the API's paths.
    kind: String,
    need: Need,
    /// Objects that a field selector keeps away are ignored where they come: a server that does not know it is asked without.
    spare_fields: Option<&'static str>,
    /// Whether the list is asked for as the beginning of a watch (KEP-3157).
    streams_lists: bool,
    /// Until when a server that does not do that is asked for plain ones.
    is_plain_until: Option<Instant>,
    /// Whether the list is complete, from which the watch goes on.
    is_watching: bool,
    /// Whether the last thing that happened was a failure.
    has_failed: bool,
    known: Known,
    /// Whether a list was ever complete.
    is_listed: bool,
    /// Whether the first sync waits for it no more, because it is listed, or may not be read.
    is_counted: bool,
    backoff: Backoff,
    /// Whether the server has said, since the last change that it told, that it has forgotten our version.
    was_gone: bool,
    /// What failed last, and when, if nothing has come since.
    complaint: Option<(String, Instant)>,
}

impl Watch {
    fn new(kind: String, spare_fields: Option<&'static str>, need: Need) -> Self {
        let (known, backoff) = (Known::default(), Backoff::default());
        Self {
            kind,
            need,
            spare_fields,
            streams_lists: true,
            is_plain_until: None,
            is_watching: false,
            has_failed: false,
            known,
            is_listed: false,
            is_counted: false,
            backoff,
            was_gone: false,
            complaint: None,
        }
    }

    /// Gives the field selector up if it is what the server refuses, and returns it. For good: servers are upgraded seldom, and
    /// what they tell too much is a matter of traffic.
    fn take_refused_fields(&mut self, failure: &Failure) -> Option<&'static str> {
        let path = self.spare_fields?.split('!').next()?;
        let is_refused = failure.status() == Some(BAD_REQUEST) && self.describe(failure).contains(path);
        self.spare_fields.take_if(|_| is_refused)
    }

    fn may_stream_lists(&self, now: Instant) -> bool {
        self.is_plain_until.is_none_or(|until| until <= now)
    }

    /// Whether this failure is the last one, for a while, of lists that are streamed: the server refuses them, or does not end them.
    fn gives_up_streams(&mut self, failure: &Failure, now: Instant) -> bool {
        let is_refused = matches!(failure.status(), Some(BAD_REQUEST | UNPROCESSABLE)) || failure.is_endless();
        let gives_up = self.streams_lists && !self.is_watching && is_refused;
        if gives_up {
            self.is_plain_until = Some(now + PLAIN_LISTS);
        }
        gives_up
    }

    fn describe(&self, failure: &Failure) -> String {
        failure.describe(&self.kind, self.is_watching)
    }

    /// How long to wait after a failure. The server may have asked for some time.
    fn pause(&mut self, failure: &Failure, asked: Duration) -> Duration {
        let is_fresh = self.backoff.note(Instant::now());
        // A list is what it takes. Where another one is forgotten as soon as it is complete, haste makes it worse.
        if failure.status() == Some(GONE) && !std::mem::replace(&mut self.was_gone, true) {
            return asked;
        }
        let is_lacking = self.need == Need::May && failure.status() == Some(NOT_FOUND);
        let longest = if is_lacking { KIND_PAUSE } else { failure.longest_pause(is_fresh) };
        self.backoff.pause(longest).max(asked)
    }

    /// Failures further apart than this are not of the same outage.
    fn outage_gap(&self) -> Duration {
        if self.need == Need::May { 2 * KIND_PAUSE } else { OUTAGE_GAP }
    }

    /// Waits for the next event. In a list there is always more to come, in a watch there may be nothing for hours.
    async fn next<K>(
        &self,
        event: impl Future<Output = Option<watcher::Result<watcher::Event<K>>>>,
    ) -> Result<watcher::Event<K>, Failure> {
        let event = if !self.is_watching {
            let patience = if self.streams_lists { STREAM_PATIENCE } else { LIST_PATIENCE };
            time::timeout(patience, event).await.map_err(|_| Failure::Silence(patience))?
        } else {
            event.await
        };
        event.ok_or(Failure::End)?.map_err(Failure::Watcher)
    }
}

#[cfg(test)]
mod tests;

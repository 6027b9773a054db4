// SPDX-License-Identifier: MIT OR Apache-2.0
//! A client of the Kubernetes API whose requests are counted, and which hears a server that asks for some time.

use std::{
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::{FutureExt as _, future::BoxFuture};
use http::{HeaderMap, Request, Response, header::RETRY_AFTER};
use kube::{Client, Config, client::ClientBuilder};
use tower::{Layer, Service};

use crate::source::ApiRequests;

/// The longest time that a server gets: what asks for more does not know better.
const LONGEST_ASKED: Duration = Duration::from_secs(60);

/// When a server wants to be asked again, by the header `Retry-After` (RFC 9110, section 10.2.3), which it adds to status 429
/// and 503.
#[derive(Clone, Debug, Default)]
pub struct AskedPause(Arc<Mutex<Option<Instant>>>);

impl AskedPause {
    /// Reads the headers of an answer. A date, which the header may bear instead of seconds, no API server sends.
    fn note(&self, status: u16, headers: &HeaderMap, now: Instant) {
        let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        if let Some(seconds) = seconds.filter(|_| matches!(status, 429 | 503)) {
            let until = now + LONGEST_ASKED.min(Duration::from_secs(seconds));
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
        }
    }

    /// How long it still wants to be left alone.
    pub fn remaining(&self) -> Duration {
        let until = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        until.map(|until| until.saturating_duration_since(Instant::now())).unwrap_or_default()
    }
}

/// Makes a client.
///
/// # Errors
/// When the configuration is no good.
pub fn client(config: Config, requests: &ApiRequests, asked: &AskedPause) -> kube::Result<Client> {
    // Without a user and password that the URL may hold.
    let host = config.cluster_url.host().unwrap_or_default();
    let host = config.cluster_url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    let layer = Counting { host, requests: requests.clone(), asked: asked.clone() };
    Ok(ClientBuilder::try_from(config)?.with_layer(&layer).build())
}

#[derive(Clone)]
struct Counting {
    host: String,
    requests: ApiRequests,
    asked: AskedPause,
}

impl<S> Layer<S> for Counting {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted { inner, counting: self.clone() }
    }
}

#[derive(Clone)]
struct Counted<S> {
    inner: S,
    counting: Counting,
}

impl<S, A, B> Service<Request<A>> for Counted<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let (method, start) = (request.method().clone(), Instant::now());
        let Counting { host, requests, asked } = self.counting.clone();
        let count = move |answer: &Result<Response<B>, S::Error>| {
            let status = answer.as_ref().ok().map(|response| response.status().as_u16());
            if let Ok(response) = answer {
                asked.note(response.status().as_u16(), response.headers(), Instant::now());
            }
            requests.observe(method.as_str(), &host, status, start.elapsed());
        };
        self.inner.call(request).inspect(count).boxed()
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! A client of the Kubernetes API whose requests are counted.

use std::{
    task::{Context, Poll},
    time::Instant,
};

use futures::{FutureExt as _, future::BoxFuture};
use http::{Request, Response};
use kube::{Client, Config, client::ClientBuilder};
use tower::{Layer, Service};

use crate::source::ApiRequests;

/// Makes a client.
///
/// # Errors
/// When the configuration is no good.
pub fn client(config: Config, requests: &ApiRequests) -> kube::Result<Client> {
    // Without a user and password that the URL may hold.
    let host = config.cluster_url.host().unwrap_or_default();
    let host = config.cluster_url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    Ok(ClientBuilder::try_from(config)?.with_layer(&Counting { host, requests: requests.clone() }).build())
}

#[derive(Clone)]
struct Counting {
    host: String,
    requests: ApiRequests,
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
        let Counting { host, requests } = self.counting.clone();
        let count = move |answer: &Result<Response<B>, S::Error>| {
            let status = answer.as_ref().ok().map(|response| response.status().as_u16());
            requests.observe(method.as_str(), &host, status, start.elapsed());
        };
        self.inner.call(request).inspect(count).boxed()
    }
}

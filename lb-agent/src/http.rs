// SPDX-License-Identifier: MIT OR Apache-2.0
//! The agent's HTTP ports: opened before anything is touched, so that a taken port is told at once.

use std::{io, net::SocketAddr};

use axum::Router;
use tokio::net::TcpListener;
use tracing::error;

/// A port that can't be opened.
#[derive(Debug, thiserror::Error)]
#[error(
    "can't listen on {address}; stop what listens there (`ss -ltnp` shows it; is it another agent, or kube-proxy?), or \
     give another address in {flag}"
)]
pub struct BindError {
    /// The address.
    pub address: SocketAddr,
    /// The flag that it came from.
    pub flag: &'static str,
    /// Why not.
    pub source: io::Error,
}

/// Opens a port.
///
/// # Errors
/// Where it can't be had.
pub async fn bind(address: SocketAddr, flag: &'static str) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| BindError { address, flag, source })
}

/// Answers requests for as long as the process lives.
pub async fn serve(listener: TcpListener, router: Router) {
    if let Err(error) = axum::serve(listener, router).await {
        error!("an HTTP port of the agent broke: {error}");
    }
}

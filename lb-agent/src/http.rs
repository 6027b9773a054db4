// SPDX-License-Identifier: MIT OR Apache-2.0
//! The agent's HTTP ports: opened before anything is touched, so that a taken port is told at once.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
};

use axum::Router;
use tokio::net::TcpListener;
use tracing::error;

/// A port that can't be opened.
#[derive(Debug, thiserror::Error)]
#[error("can't listen on {address}: {source}; {}, or give another address in {flag}", remedy(source))]
pub struct BindError {
    /// The address.
    pub address: SocketAddr,
    /// The flag that it came from.
    pub flag: &'static str,
    /// Why not.
    pub source: io::Error,
}

fn remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        ErrorKind::AddrInUse => "stop what listens there (`ss -ltnp` shows it; is it another agent, or kube-proxy?)",
        ErrorKind::AddrNotAvailable => "bring up the device with that address (`ip link set lo up`)",
        _ => "see whether this process may",
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_port_names_its_flag_and_a_remedy() {
        let first = bind(SocketAddr::from(([127, 0, 0, 1], 0)), "--metrics-bind-address").await.unwrap();
        let address = first.local_addr().unwrap();
        let text = bind(address, "--metrics-bind-address").await.unwrap_err().to_string();
        for part in [address.to_string().as_str(), "ss -ltnp", "--metrics-bind-address"] {
            assert!(text.contains(part), "{text}");
        }
    }
}

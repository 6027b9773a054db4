// SPDX-License-Identifier: MIT OR Apache-2.0
//! The agent's HTTP ports: opened before anything is touched, so that a taken port is told at once.

use std::{
    io::{self, ErrorKind},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use axum::Router;
use nix::{
    libc,
    sys::socket::{setsockopt, sockopt::Ipv6V6Only},
};
use tokio::net::{TcpListener, TcpSocket};
use tracing::error;

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 128;

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

/// Opens a port. Like kube-proxy's, one on `0.0.0.0` answers on the addresses of both families.
///
/// # Errors
/// Where it can't be had.
pub async fn bind(address: SocketAddr, flag: &'static str) -> Result<TcpListener, BindError> {
    let opened = if address.ip() == Ipv4Addr::UNSPECIFIED {
        match listen((Ipv6Addr::UNSPECIFIED, address.port()).into(), false) {
            // A kernel without IPv6.
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => listen(address, false),
            other => other,
        }
    } else {
        listen(address, false)
    };
    opened.map_err(|source| BindError { address, flag, source })
}

/// Listens on an address; with `only_own_family` the IPv6 one `::` leaves the port of IPv4 to others.
///
/// # Errors
/// Where that can't be had.
pub fn listen(address: SocketAddr, only_own_family: bool) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if address.is_ipv6() {
        setsockopt(&socket, Ipv6V6Only, &only_own_family)?;
    }
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Answers requests for as long as the process lives.
pub async fn serve(listener: TcpListener, router: Router) {
    if let Err(error) = axum::serve(listener, router).await {
        error!("an HTTP port of the agent broke: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[tokio::test]
    async fn rule_69_the_unspecified_address_is_that_of_both_families() {
        let listener = bind(SocketAddr::from(([0; 4], 0)), "--healthz-bind-address").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        for ip in ["127.0.0.1", "::1"] {
            let to: SocketAddr = (ip.parse::<IpAddr>().unwrap(), port).into();
            tokio::net::TcpStream::connect(to).await.unwrap_or_else(|error| panic!("{to}: {error}"));
        }
        let text = bind(SocketAddr::from(([0; 4], port)), "--healthz-bind-address").await.unwrap_err().to_string();
        assert!(text.contains(&format!("0.0.0.0:{port}")), "{text}");
        let own = bind(SocketAddr::from(([127, 0, 0, 1], 0)), "--healthz-bind-address").await.unwrap();
        let port = own.local_addr().unwrap().port();
        assert!(tokio::net::TcpStream::connect(("::1", port)).await.is_err(), "an address is just that");
    }

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

// SPDX-License-Identifier: MIT OR Apache-2.0
//! The agent's HTTP ports: opened before anything is touched, so that a taken port is told at once.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::Router;
use hyper::{
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use nix::{
    libc,
    sys::socket::{setsockopt, sockopt::Ipv6V6Only},
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    task::AbortHandle,
};
use tracing::debug;

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

/// How long a connection may take for the head of a request, the first or the next one.
const PATIENCE: Duration = Duration::from_secs(30);

/// Pause after a connection that could not be accepted: perhaps no descriptor is left.
const PAUSE: Duration = Duration::from_secs(1);

/// The open connections of one port, or of several: no more than so many. Then a new one takes the place of the oldest that waits
/// for a request, so that whoever asks is answered, however many others are silent.
#[derive(Clone, Debug)]
pub struct Connections {
    most: usize,
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    next_id: u64,
    /// The oldest first.
    by_id: BTreeMap<u64, Connection>,
}

#[derive(Debug)]
struct Connection {
    task: AbortHandle,
    is_asking: Arc<AtomicBool>,
}

impl Connections {
    /// At most so many.
    #[must_use]
    pub fn at_most(most: usize) -> Self {
        Self { most, open: Arc::default() }
    }

    /// Serves a connection on a task of its own.
    fn serve(&self, stream: TcpStream, router: Router) {
        let is_asking = Arc::new(AtomicBool::new(false));
        // The lock is held until the task is noted: it can't end before.
        let mut open = self.open();
        let id = open.next_id;
        open.next_id += 1;
        let place = Place { connections: self.clone(), id };
        let asking = Arc::clone(&is_asking);
        let task = tokio::spawn(async move {
            let _place = place;
            serve_connection(stream, router, asking).await;
        });
        open.by_id.insert(id, Connection { task: task.abort_handle(), is_asking });
        if open.by_id.len() > self.most {
            let is_silent = |(_, connection): &(&u64, &Connection)| !connection.is_asking.load(Ordering::Relaxed);
            let victim = open.by_id.iter().find(is_silent).or(open.by_id.iter().next()).map(|(&id, _)| id);
            if let Some(victim) = victim.and_then(|id| open.by_id.remove(&id)) {
                victim.task.abort();
            }
        }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place among the others, until it ends.
struct Place {
    connections: Connections,
    id: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.open().by_id.remove(&self.id);
    }
}

async fn serve_connection(stream: TcpStream, router: Router, is_asking: Arc<AtomicBool>) {
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |request| {
        is_asking.store(true, Ordering::Relaxed);
        let (answer, is_asking) = (router.call(request), Arc::clone(&is_asking));
        async move {
            let answer = answer.await;
            is_asking.store(false, Ordering::Relaxed);
            answer
        }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
        debug!("a connection to an HTTP port of the agent ended: {error}");
    }
}

/// Answers requests for as long as it is polled; connections that are open then outlive it.
pub async fn serve(listener: TcpListener, router: Router, connections: Connections) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => connections.serve(stream, router.clone()),
            Err(error) => {
                debug!("a connection to an HTTP port of the agent was not accepted: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

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

    /// A server of "ok" at most so many connections at once, and its address.
    async fn ok(most: usize) -> (SocketAddr, Connections) {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0)), "--healthz-bind-address").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Connections::at_most(most);
        let router = Router::new().route("/", axum::routing::get(|| async { "ok" }));
        tokio::spawn(serve(listener, router, connections.clone()));
        (address, connections)
    }

    async fn ask(address: SocketAddr) -> io::Result<String> {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// Thread kubermatic 15829: a thousand connections that say nothing, to a process that may open 1024 files at first.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn pitfall_33_silent_connections_keep_no_probe_from_its_answer() {
        crate::dataplane::lift_file_limit().unwrap();
        let (address, connections) = ok(64).await;
        let mut silent = Vec::new();
        for _ in 0..1000 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        for _ in 0..10 {
            let answer = tokio::time::timeout(Duration::from_secs(5), ask(address)).await.unwrap().unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("ok"), "{answer}");
        }
        assert!(connections.open().by_id.len() <= 64);
        drop(silent);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_says_nothing_is_closed() {
        let (address, connections) = ok(2).await;
        let mut silent = TcpStream::connect(address).await.unwrap();
        let start = tokio::time::Instant::now();
        let mut said = Vec::new();
        silent.read_to_end(&mut said).await.unwrap();
        assert!(start.elapsed() >= PATIENCE, "{:?}", start.elapsed());
        tokio::task::yield_now().await;
        assert!(connections.open().by_id.is_empty());
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

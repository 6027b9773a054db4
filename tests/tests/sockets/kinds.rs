// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sockets of less common kinds, and what they do at the door.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use shunt_tests::{
    load::{
        Protocol,
        talk::{self, Outcome, Talk},
    },
    world::{Family, Namespace, Options, for_each_kind, wait_for, wait_to_meet, wait_until},
};
use socket2::{Domain, Socket, Type};

use crate::service::{ALL, NAME, disconnect, inside, localhost, mapped, node, refused, service, world};

const LIMIT: Duration = Duration::from_secs(5);

/// Asks on a connection, and returns who answers.
fn ask(mut stream: impl Read + Write) -> Result<String> {
    let mut buffer = [0; 256];
    stream.write_all(b"who?\n")?;
    hear(&mut stream, &mut buffer)
}

fn hear(stream: &mut impl Read, buffer: &mut [u8]) -> Result<String> {
    let length = stream.read(buffer)?;
    let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
    ensure!(ALL.iter().any(|pod| answer.starts_with(pod)), "{answer}");
    Ok(answer)
}

/// A counter of `/proc/net/netstat` in the namespace of this thread.
fn tcp_counter(name: &str) -> Result<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/net/netstat")?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next().context("no names")?, lines.next().context("no values")?);
    let position = names.split(' ').position(|known| known == name).with_context(|| format!("no {name}"))?;
    Ok(values.split(' ').nth(position).context("too few values")?.parse()?)
}

/// TCP fast open connects and sends in one call: that passes the door as `connect` does, and the SYN bears the data.
#[test]
fn tcp_fast_open_passes_the_door() -> Result<()> {
    const MSG_FASTOPEN: i32 = 0x2000_0000;
    /// Clients, servers, either without a cookie, and all servers (`ip-sysctl.rst`).
    const ALL_OF_IT: &str = "1543";
    let world = world(Options::HOST_SOCKETS, &[])?;
    for namespace in ALL.map(|pod| world.pod(pod).namespace()).into_iter().chain([node(&world)]) {
        namespace.sysctl(&[("net/ipv4/tcp_fastopen", ALL_OF_IT)])?;
    }
    // Servers learn of it when they begin to listen.
    let _servers = ALL.map(|pod| Reusing::start(world.pod(pod).namespace(), 1));
    world.put(reusing_slices(world.slices(NAME, &ALL)))?;
    for_each_kind(|protocol, family| wait_to_meet(node(&world), protocol, inside(family), &["reusing-0"]))?;
    node(&world).enter(|| -> Result<()> {
        for family in Family::BOTH {
            let (to, before) = (inside(family), tcp_counter("TCPFastOpenActive")?);
            let mut socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            socket.set_read_timeout(Some(LIMIT))?;
            socket.send_to_with_flags(b"who?\n", &to.into(), MSG_FASTOPEN)?;
            ensure!(socket.peer_addr()?.as_socket() == Some(to), "{:?}", socket.peer_addr()?.as_socket());
            let mut buffer = [0; 256];
            let length = socket.read(&mut buffer)?;
            ensure!(buffer[..length].starts_with(b"reusing-0"), "{:?}", &buffer[..length]);
            ensure!(tcp_counter("TCPFastOpenActive")? > before, "the SYN bore no data");
        }
        Ok(())
    })?
}

/// Clients that share a port are told apart: each is shown what it asked itself, and hears whom it asked.
#[test]
fn sockets_that_share_a_port_are_told_apart() -> Result<()> {
    let world = world(Options::HOST_SOCKETS, &[])?;
    node(&world).enter(|| -> Result<()> {
        for (family, any) in [(Family::V4, Ipv4Addr::UNSPECIFIED.into()), (Family::V6, Ipv6Addr::UNSPECIFIED.into())] {
            let open = |port: u16, to: SocketAddr| -> Result<Socket> {
                let socket = Socket::new(Domain::for_address(to), Type::DGRAM, None)?;
                socket.set_reuse_port(true)?;
                socket.set_read_timeout(Some(LIMIT))?;
                socket.bind(&SocketAddr::new(any, port).into())?;
                socket.connect(&to.into())?;
                Ok(socket)
            };
            let [first, second] = [inside(family), localhost(family)];
            let one = open(0, first)?;
            let port = one.local_addr()?.as_socket().context("no address")?.port();
            let other = open(port, second)?;
            for (socket, to) in [(&one, first), (&other, second)] {
                ensure!(socket.peer_addr()?.as_socket() == Some(to));
            }
        }
        Ok(())
    })?
}

/// Servers that share a port in a pod (SO_REUSEPORT) all get connections and datagrams.
#[test]
fn servers_that_share_a_port_are_all_reached() -> Result<()> {
    let world = world(Options::ALL_SOCKETS, &[])?;
    let _servers = Reusing::start(world.pod("web-2").namespace(), 2)?;
    world.put(reusing_slices(world.slices(NAME, &["web-2"])))?;
    for_each_kind(|protocol, family| {
        [node(&world), world.pod("client").namespace()]
            .into_iter()
            .try_for_each(|from| wait_to_meet(from, protocol, inside(family), &["reusing-0", "reusing-1"]))
    })
}

/// TCP without blocking, by IPv4, IPv6 and mapped addresses, at localhost too.
#[test]
fn connections_that_do_not_block_come_about() -> Result<()> {
    let world = world(Options::HOST_SOCKETS, &[])?;
    node(&world).enter(|| -> Result<()> {
        for to in Family::BOTH.into_iter().flat_map(|family| [inside(family), localhost(family)]) {
            for (domain, to) in [(Domain::for_address(to), to), (Domain::IPV6, mapped(to))] {
                let stream = Socket::new(domain, Type::STREAM.nonblocking(), None)?;
                let under_way = stream.connect(&to.into());
                /// `EINPROGRESS`
                const IN_PROGRESS: i32 = 115;
                let is_right = under_way.as_ref().is_ok_and(|()| true)
                    || under_way.as_ref().is_err_and(|error| error.raw_os_error() == Some(IN_PROGRESS));
                ensure!(is_right, "{to}: {under_way:?}");
                wait_until("the connection", LIMIT, || Ok(stream.peer_addr().is_ok()))?;
                ensure!(stream.take_error()?.is_none() && stream.peer_addr()?.as_socket() == Some(to));
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(LIMIT))?;
                ask(&stream)?;
            }
        }
        Ok(())
    })?
}

/// A TCP socket that is let go by AF_UNSPEC connects anew, to another Service address and to no Service.
#[test]
fn a_tcp_socket_connects_twice() -> Result<()> {
    let world = world(Options::HOST_SOCKETS, &[])?;
    node(&world).enter(|| -> Result<()> {
        for family in Family::BOTH {
            let direct = SocketAddr::new(world.pod("web-1").address(family), shunt_tests::world::echo_port());
            let socket = Socket::new(Domain::for_address(direct), Type::STREAM, None)?;
            socket.set_read_timeout(Some(LIMIT))?;
            for to in [inside(family), localhost(family), direct, inside(family)] {
                socket.connect(&to.into())?;
                ensure!(socket.peer_addr()?.as_socket() == Some(to), "{:?}", socket.peer_addr()?.as_socket());
                ask(&socket)?;
                disconnect(&socket)?;
            }
        }
        Ok(())
    })?
}

/// An ICMP error from a backend reaches the connected UDP socket that was sent there, and TCP is refused.
#[test]
fn a_closed_port_of_a_backend_is_an_error_of_the_socket() -> Result<()> {
    let world = world(Options::HOST_SOCKETS, &[])?;
    let mut slices = world.slices(NAME, &["web-2"]);
    for port in slices.iter_mut().filter_map(|slice| slice["ports"].as_array_mut()).flatten() {
        port["port"] = json!(7_999);
    }
    world.put(slices)?;
    for_each_kind(|protocol, family| {
        [inside(family), localhost(family)]
            .into_iter()
            .try_for_each(|to| wait_for(node(&world), protocol, to, &Outcome::Refused))
    })?;
    let row = node(&world).enter(|| -> Result<UdpSocket> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(inside(Family::V4))?;
        Ok(socket)
    })??;
    // It is the backend that refuses, not the door.
    let sockets = world.node("node-a").lb_agent("get sockets -o json")?;
    ensure!(sockets.contains("7999"), "{sockets}");
    row.send(b"who?\n")?;
    row.set_read_timeout(Some(LIMIT))?;
    let error = row.recv(&mut [0; 64]).expect_err("nobody listens");
    ensure!(error.kind() == io::ErrorKind::ConnectionRefused, "{error}");
    Ok(())
}

/// Mapped addresses are refused, reset and closed like others.
#[test]
fn mapped_addresses_are_refused_and_reset_like_others() -> Result<()> {
    let world = world(Options::HOST_SOCKETS, &[])?;
    let to = mapped(inside(Family::V4));
    let attempt = |protocol| talk::outcome(node(&world).enter(|| talk_mapped(protocol, to)?.ask())?);
    for protocol in Protocol::BOTH {
        ensure!(matches!(attempt(protocol)?, Outcome::Answered(_)));
    }
    let reset = json!({ "metadata": { "annotations": { "shunt.dev/on-backend-removal": "reset" } } });
    crate::service::serve(&world, &reset, &["web-1"])?;
    let mut talk = node(&world).enter(|| talk_mapped(Protocol::Tcp, to))??;
    ensure!(talk.ask()?.server == "web-1");
    world.put([service(&reset)].into_iter().chain(world.slices(NAME, &[])))?;
    let error = talk.hear().expect_err("reset");
    ensure!(error.kind() == io::ErrorKind::ConnectionAborted, "{error}");
    for protocol in Protocol::BOTH {
        ensure!(attempt(protocol)? == refused(protocol), "{protocol:?}");
    }
    Ok(())
}

/// A flow by an IPv6 socket, also where the address is a mapped one.
fn talk_mapped(protocol: Protocol, to: SocketAddr) -> io::Result<Talk> {
    Talk::begin_at(protocol, SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)), to, LIMIT)
}

/// Where [`Reusing`] servers listen.
const REUSED_PORT: u16 = 7100;

/// Slices whose endpoints are such servers.
fn reusing_slices<const N: usize>(mut slices: [serde_json::Value; N]) -> [serde_json::Value; N] {
    for port in slices.iter_mut().filter_map(|slice| slice["ports"].as_array_mut()).flatten() {
        port["port"] = json!(REUSED_PORT);
    }
    slices
}

/// Servers that share one port, TCP and UDP: the number N answers like an echo server called `reusing-N`.
struct Reusing(Arc<AtomicBool>);

impl Reusing {
    fn start(namespace: &Namespace, count: usize) -> Result<Self> {
        let servers = Self(Arc::default());
        for number in 0..count {
            let open = |kind: Type| -> io::Result<Socket> {
                let socket = Socket::new(Domain::IPV6, kind, None)?;
                socket.set_only_v6(false)?;
                socket.set_reuse_port(true)?;
                socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, REUSED_PORT)).into())?;
                socket.set_read_timeout(Some(Duration::from_millis(200)))?;
                Ok(socket)
            };
            let (stream, datagram) = namespace.enter(|| -> io::Result<_> {
                let stream = open(Type::STREAM)?;
                stream.listen(64)?;
                Ok((TcpListener::from(stream), UdpSocket::from(open(Type::DGRAM)?)))
            })??;
            let answer = move |client: SocketAddr| {
                format!("reusing-{number} {} {}\n", client.ip().to_canonical(), client.port())
            };
            let [one, other] = [&servers.0, &servers.0].map(Arc::clone);
            thread::spawn(move || {
                while !one.load(Ordering::Relaxed) {
                    let Ok((stream, client)) = stream.accept() else { continue };
                    thread::spawn(move || converse(stream, &answer(client)));
                }
            });
            thread::spawn(move || {
                while !other.load(Ordering::Relaxed) {
                    if let Ok((_, client)) = datagram.recv_from(&mut [0; 64]) {
                        let _ = datagram.send_to(answer(client).as_bytes(), client);
                    }
                }
            });
        }
        Ok(servers)
    }
}

impl Drop for Reusing {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn converse(mut stream: TcpStream, answer: &str) {
    while stream.read(&mut [0; 64]).is_ok_and(|length| length > 0) {
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

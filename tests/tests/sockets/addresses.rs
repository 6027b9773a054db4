// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an application is shown: the Service, whatever its socket is.

use std::{
    io::{Read, Write},
    net::{Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use shunt_tests::world::{Family, Options};
use socket2::{Domain, Socket, Type};

use crate::service::{ALL, disconnect, inside, localhost, mapped, node, world};

const LIMIT: Duration = Duration::from_secs(5);

fn peer(socket: &Socket) -> Result<SocketAddr> {
    socket.peer_addr()?.as_socket().context("no address")
}

/// The server that answers on a connected socket, or after a `send_to`.
fn server(answer: &[u8]) -> Result<String> {
    let text = std::str::from_utf8(answer)?;
    let name = text.split_whitespace().next().context("an empty answer")?;
    ensure!(ALL.contains(&name), "{text}");
    Ok(name.to_owned())
}

fn connect(domain: Domain, kind: Type, to: SocketAddr) -> Result<Socket> {
    let socket = Socket::new(domain, kind, None)?;
    socket.set_read_timeout(Some(LIMIT))?;
    socket.connect(&to.into()).with_context(|| format!("{to}"))?;
    Ok(socket)
}

fn ask(mut socket: &Socket) -> Result<String> {
    let mut buffer = [0; 256];
    socket.write_all(b"who?\n")?;
    let length = socket.read(&mut buffer)?;
    server(&buffer[..length])
}

/// `getpeername` names what was asked for; the socket's own address is a real one.
#[test]
fn getpeername_shows_the_service() -> Result<()> {
    let world = world(Options::HOST_SOCKETS, &[])?;
    node(&world).enter(|| -> Result<()> {
        for family in Family::BOTH {
            for to in [inside(family), localhost(family)] {
                for (domain, to) in [(Domain::for_address(to), to), (Domain::IPV6, mapped(to))] {
                    for kind in [Type::STREAM, Type::DGRAM] {
                        let socket = connect(domain, kind, to)?;
                        ensure!(peer(&socket)? == to, "{kind:?}: {:?}", peer(&socket)?);
                        ask(&socket).with_context(|| format!("{kind:?} {to}"))?;
                    }
                }
            }
        }
        Ok(())
    })?
}

/// Without a connection too: one socket, several Services, each answer from the address that was asked.
#[test]
fn recvmsg_shows_the_service_to_sockets_without_a_connection() -> Result<()> {
    let world = world(Options::HOST_SOCKETS, &[])?;
    node(&world).enter(|| -> Result<()> {
        let both = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
        for family in Family::BOTH {
            let own = UdpSocket::bind((family.pick("0.0.0.0", "::"), 0))?;
            for (socket, to) in
                [inside(family), localhost(family)].into_iter().flat_map(|to| [(&own, to), (&both, mapped(to))])
            {
                socket.set_read_timeout(Some(LIMIT))?;
                let mut met = Vec::new();
                for _ in 0..8 {
                    let mut buffer = [0; 256];
                    socket.send_to(b"who?\n", to)?;
                    let (length, from) = socket.recv_from(&mut buffer)?;
                    ensure!(from == to, "asked {to}, answered by {from}");
                    met.push(server(&buffer[..length])?);
                }
                met.dedup();
                ensure!(met.len() == 1, "the datagrams of one socket keep together: {met:?}");
            }
        }
        Ok(())
    })?
}

/// A connected UDP socket hears of an ICMP error, connects elsewhere, and is let go by AF_UNSPEC, as without us.
#[test]
fn sockets_connect_twice_and_disconnect() -> Result<()> {
    let world = world(Options::HOST_SOCKETS, &[])?;
    let direct = SocketAddr::new(world.pod("web-1").address(Family::V4), 9);
    node(&world).enter(|| -> Result<()> {
        let socket = connect(Domain::IPV4, Type::DGRAM, inside(Family::V4))?;
        ask(&socket)?;
        socket.connect(&localhost(Family::V4).into())?;
        ensure!(peer(&socket)? == localhost(Family::V4));
        ask(&socket)?;
        socket.connect(&direct.into())?;
        ensure!(peer(&socket)? == direct, "of no Service");
        let error = ask(&socket).expect_err("nobody listens there");
        let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        ensure!(kind == Some(std::io::ErrorKind::ConnectionRefused), "{error}");
        disconnect(&socket)?;
        ensure!(socket.peer_addr().is_err(), "disconnected");
        socket.connect(&inside(Family::V4).into())?;
        ask(&socket)?;
        Ok(())
    })?
}

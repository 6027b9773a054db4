// SPDX-License-Identifier: MIT OR Apache-2.0
//! Real clients among the processes of a node, and sockets of less common kinds.

use std::{
    io::Read,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use shunt_tests::{
    load::dns,
    world::{Family, Options, sample},
};
use socket2::{Domain, Socket, Type};

use crate::service::{ALL, inside, localhost, node, world};

const LIMIT: Duration = Duration::from_secs(5);

/// curl, dig and wrk, by ClusterIP and by NodePorts on localhost.
#[test]
fn curl_dig_and_wrk_of_a_node_are_served() -> Result<()> {
    let world = world(Options::HOST_SOCKETS, &[])?;
    for family in Family::BOTH {
        let here = localhost(family).ip();
        for to in [sample::web(family), sample::web_at(here)] {
            let body = node(&world).run("curl", &["-sS", "--max-time", "5", &format!("http://{to}/")])?;
            ensure!(body.starts_with("web-"), "{to}: {body}");
        }
        let wrk = node(&world).run("wrk", &["-t1", "-c4", "-d1s", &format!("http://{}/", sample::web(family))])?;
        ensure!(!wrk.contains("Socket errors") && wrk.contains("Requests/sec"), "{wrk}");
        for to in [sample::dns(family), sample::dns_at(here)] {
            let (at, port) = (format!("@{}", to.ip()), to.port().to_string());
            for transport in ["+notcp", "+tcp"] {
                let arguments = ["-p", &port, &at, transport, "+short", "+tries=1", "+time=5", dns::NAME];
                let answer = node(&world).run("dig", &arguments)?;
                ensure!(answer.trim() == dns::ADDRESS_V4.to_string(), "{to} {transport}: {answer}");
            }
        }
    }
    Ok(())
}

/// TCP fast open connects and sends in one call: that passes the door as `connect` does.
#[test]
fn tcp_fast_open_passes_the_door() -> Result<()> {
    const MSG_FASTOPEN: i32 = 0x2000_0000;
    let world = world(Options::HOST_SOCKETS, &[])?;
    node(&world).enter(|| -> Result<()> {
        for family in Family::BOTH {
            let to = inside(family);
            let mut socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            socket.set_read_timeout(Some(LIMIT))?;
            socket.send_to_with_flags(b"who?\n", &to.into(), MSG_FASTOPEN)?;
            ensure!(socket.peer_addr()?.as_socket() == Some(to), "{:?}", socket.peer_addr()?.as_socket());
            let mut buffer = [0; 256];
            let length = socket.read(&mut buffer)?;
            let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
            ensure!(ALL.iter().any(|pod| answer.starts_with(pod)), "{answer}");
        }
        Ok(())
    })?
}

/// Sockets that share a port are told apart: each is shown what it asked itself.
#[test]
fn sockets_that_share_a_port_are_told_apart() -> Result<()> {
    let world = world(Options::HOST_SOCKETS, &[])?;
    node(&world).enter(|| -> Result<()> {
        let open = |port: u16, to: SocketAddr| -> Result<Socket> {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
            socket.set_reuse_port(true)?;
            socket.set_read_timeout(Some(LIMIT))?;
            socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
            socket.connect(&to.into())?;
            Ok(socket)
        };
        let [first, second] = [inside(Family::V4), localhost(Family::V4)];
        let one = open(0, first)?;
        let port = one.local_addr()?.as_socket().context("no address")?.port();
        let other = open(port, second)?;
        for (socket, to) in [(&one, first), (&other, second)] {
            ensure!(socket.peer_addr()?.as_socket() == Some(to));
        }
        Ok(())
    })?
}

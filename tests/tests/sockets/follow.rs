// SPDX-License-Identifier: MIT OR Apache-2.0
//! Backends go: UDP follows its Service, TCP stays unless its Service wants otherwise.

use std::{
    io,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use shunt_tests::{
    load::{Protocol, talk::Talk},
    world::{Family, Namespace, Options, World},
};

use crate::service::{NAME, inside, is_closed, node, serve, world};

const LIMIT: Duration = Duration::from_secs(5);
const STEP: Duration = Duration::from_millis(5);
/// From a change of a file to an answer by the new endpoint: with room for a busy machine.
const SOON: Duration = Duration::from_secs(2);

/// Begins a flow that web-1 answers, then lets web-2 be the only endpoint.
fn begin(world: &World, from: &Namespace, protocol: Protocol, family: Family) -> Result<(Talk, Instant)> {
    serve(world, &json!({}), &["web-1"])?;
    let mut talk = from.enter(|| Talk::begin(protocol, inside(family), LIMIT))??;
    ensure!(talk.ask()?.server == "web-1");
    let start = Instant::now();
    world.put(world.slices(NAME, &["web-2"]))?;
    Ok((talk, start))
}

/// Asks until another answers, or an error comes.
fn ask_until(talk: &mut Talk, server: &str) -> Result<io::Result<()>> {
    let start = Instant::now();
    while start.elapsed() < SOON {
        match talk.ask() {
            Ok(answer) if answer.server == server => return Ok(Ok(())),
            Ok(_) => sleep(STEP),
            Err(error) => return Ok(Err(error)),
        }
    }
    bail!("still the old endpoint")
}

/// Pitfall 8, and threads cilium 12859, 48096 and 48244: a connected UDP socket of a node's process is closed when its
/// backend has gone, and the next one meets the new one.
#[test]
fn pitfall_8_connected_udp_of_a_process_ends_with_its_backend() -> Result<()> {
    let world = world(Options::HOST_SOCKETS, &[])?;
    for family in Family::BOTH {
        let (mut talk, start) = begin(&world, node(&world), Protocol::Udp, family)?;
        let ended = ask_until(&mut talk, "web-2")?;
        let error = ended.err().context("closed, not moved")?;
        ensure!(is_closed(&error), "{error}");
        let answer = node(&world).enter(|| Talk::begin(Protocol::Udp, inside(family), LIMIT)?.ask())??;
        ensure!(answer.server == "web-2" && start.elapsed() < SOON, "{answer:?} after {:?}", start.elapsed());
        println!("{family:?}: a process was told and reached the new endpoint {:?} after the change", start.elapsed());
    }
    Ok(())
}

/// A process that waits for an answer is woken.
#[test]
fn a_process_that_waits_on_a_closed_socket_is_woken() -> Result<()> {
    let world = world(Options::HOST_SOCKETS, &[])?;
    let (mut talk, start) = begin(&world, node(&world), Protocol::Udp, Family::V4)?;
    // Nothing was asked: there will be no answer.
    let error = talk.hear().expect_err("no answer");
    ensure!(error.kind() == io::ErrorKind::ConnectionAborted && start.elapsed() < SOON, "{error}");
    Ok(())
}

/// The same for a pod, whose socket need not notice: its next datagram goes to the new endpoint, without an error.
#[test]
fn pitfall_8_connected_udp_of_a_pod_moves_with_its_next_datagram() -> Result<()> {
    let world = world(Options::ALL_SOCKETS, &[])?;
    for family in Family::BOTH {
        let (mut talk, start) = begin(&world, world.pod("client").namespace(), Protocol::Udp, family)?;
        ask_until(&mut talk, "web-2")??;
        println!("{family:?}: a pod's socket reached the new endpoint {:?} after the change", start.elapsed());
    }
    Ok(())
}

/// A socket without a connection moves with its next datagram, of a process and of a pod.
#[test]
fn udp_without_a_connection_moves_with_its_next_datagram() -> Result<()> {
    let world = world(Options::ALL_SOCKETS, &[])?;
    for from in [node(&world), world.pod("client").namespace()] {
        for family in Family::BOTH {
            serve(&world, &json!({}), &["web-1"])?;
            from.enter(|| -> Result<()> {
                let socket = std::net::UdpSocket::bind((family.pick("0.0.0.0", "::"), 0))?;
                socket.set_read_timeout(Some(LIMIT))?;
                let ask = || -> Result<String> {
                    let mut buffer = [0; 256];
                    socket.send_to(b"who?\n", inside(family))?;
                    let (length, from) = socket.recv_from(&mut buffer)?;
                    ensure!(from == inside(family), "answered by {from}");
                    Ok(String::from_utf8_lossy(&buffer[..length]).split_whitespace().next().unwrap_or("").to_owned())
                };
                ensure!(ask()? == "web-1");
                let start = Instant::now();
                world.put(world.slices(NAME, &["web-2"]))?;
                while ask()? != "web-2" {
                    ensure!(start.elapsed() < SOON, "still the old endpoint");
                    sleep(STEP);
                }
                println!("{family:?}: the socket reached the new endpoint {:?} after the change", start.elapsed());
                Ok(())
            })??;
        }
    }
    Ok(())
}

/// Rule 58: an established connection keeps its endpoint, of a process and of a pod.
#[test]
fn rule_58_tcp_keeps_its_endpoint() -> Result<()> {
    let world = world(Options::ALL_SOCKETS, &[])?;
    for from in [node(&world), world.pod("client").namespace()] {
        let (mut talk, _) = begin(&world, from, Protocol::Tcp, Family::V4)?;
        serve(&world, &json!({}), &["web-2"])?;
        sleep(Duration::from_millis(300));
        ensure!(talk.ask()?.server == "web-1");
    }
    Ok(())
}

/// With `shunt.dev/on-backend-removal: reset` a process hears ECONNABORTED at once, and a pod gets a RST for its next
/// segment.
#[test]
fn rule_58_tcp_is_reset_where_its_service_wants_that() -> Result<()> {
    let world = world(Options::ALL_SOCKETS, &[])?;
    let reset = json!({ "metadata": { "annotations": { "shunt.dev/on-backend-removal": "reset" } } });
    for family in Family::BOTH {
        for (from, wanted) in [
            (node(&world), io::ErrorKind::ConnectionAborted),
            (world.pod("client").namespace(), io::ErrorKind::ConnectionReset),
        ] {
            serve(&world, &reset, &["web-1"])?;
            let mut talk = from.enter(|| Talk::begin(Protocol::Tcp, inside(family), LIMIT))??;
            ensure!(talk.ask()?.server == "web-1");
            world.put(world.slices(NAME, &["web-2"]))?;
            let error = ask_until(&mut talk, "web-2")?.err().context("not reset")?;
            ensure!(error.kind() == wanted, "{error}");
        }
    }
    Ok(())
}

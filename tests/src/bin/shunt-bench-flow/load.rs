// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is measured: by which client, and how its rate is read.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::Value;
use shunt_tests::{
    bench::{Aim, Place, on_one_cpu},
    world::{Family, Namespace},
};

/// Of one measurement.
const TIME: Duration = Duration::from_secs(1);

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// TCP, as much as goes through: `iperf3` with so many streams.
    Stream(u8),
    /// HTTP requests on connections that stay: `wrk`.
    Requests,
    /// HTTP requests, each on a connection of its own.
    Connections,
    /// Datagrams there and back, one at a time.
    Datagrams {
        /// Whether the socket is connected, and so the packet doors' business in a pod.
        is_connected: bool,
    },
}

impl Kind {
    /// The server.
    pub const fn place(self) -> Place {
        match self {
            Self::Stream(_) => Place::Iperf,
            Self::Requests | Self::Connections => Place::Web,
            Self::Datagrams { .. } => Place::Echo,
        }
    }

    /// Of its rate.
    pub const fn unit(self) -> &'static str {
        match self {
            Self::Stream(_) => "Gbit/s",
            Self::Requests | Self::Connections | Self::Datagrams { .. } => "1000/s",
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Stream(1) => "iperf3, one stream",
            Self::Stream(_) => "iperf3, eight streams",
            Self::Requests => "wrk, keep-alive",
            Self::Connections => "wrk, a connection each",
            Self::Datagrams { is_connected: true } => "UDP echo, connected",
            Self::Datagrams { is_connected: false } => "UDP echo, unconnected",
        }
    }
}

/// Where the client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// A pod of Shunt's node, to a ClusterIP.
    Pod,
    /// Outside, to a NodePort.
    Outside,
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Test {
    pub from: From,
    /// Whether the server is on another node than the one that is asked.
    pub is_elsewhere: bool,
    pub family: Family,
    pub kind: Kind,
}

const STREAM: Kind = Kind::Stream(1);
const UNCONNECTED: Kind = Kind::Datagrams { is_connected: false };
const CONNECTED: Kind = Kind::Datagrams { is_connected: true };

impl Test {
    /// All, in the order of the table.
    pub fn all() -> Vec<Self> {
        let test = |from, is_elsewhere, family| move |kind| Self { from, is_elsewhere, family, kind };
        let here = [STREAM, Kind::Stream(8), Kind::Requests, Kind::Connections, CONNECTED, UNCONNECTED];
        let others = [STREAM, Kind::Requests, UNCONNECTED];
        let mut tests: Vec<_> = here.map(test(From::Pod, false, Family::V4)).into();
        tests.extend(others.map(test(From::Pod, true, Family::V4)));
        tests.extend(others.map(test(From::Outside, false, Family::V4)));
        tests.extend(others.map(test(From::Outside, true, Family::V4)));
        tests.extend(others.map(test(From::Pod, false, Family::V6)));
        tests.extend(others.map(test(From::Outside, true, Family::V6)));
        tests
    }

    /// What the client wants to reach.
    pub const fn aim(self) -> Aim {
        Aim { place: self.kind.place(), is_elsewhere: self.is_elsewhere, family: self.family }
    }

    /// For people.
    pub fn name(self) -> String {
        let from = if self.from == From::Pod { "pod" } else { "outside" };
        let place = if self.is_elsewhere { "elsewhere" } else { "here" };
        let family = if self.family == Family::V4 { "" } else { ", IPv6" };
        format!("{from}, backend {place}{family}: {}", self.kind.name())
    }
}

/// Runs a client, and returns its rate.
///
/// Each way has client ports of its own: behind every way is the same server, and what the kernel and the programs remember of
/// one way's connections is no other's business.
pub fn run(kind: Kind, from: &Namespace, to: SocketAddr, ports: RangeInclusive<u16>) -> Result<f64> {
    let range = format!("{} {}", ports.start(), ports.end());
    from.sysctl(&[("net/ipv4/ip_local_port_range", &range)])?;
    match kind {
        Kind::Stream(streams) => iperf3(from, to, streams),
        Kind::Requests => wrk(from, to, &[]),
        Kind::Connections => wrk(from, to, &["-H", "Connection: close"]),
        Kind::Datagrams { is_connected } => from.enter(|| on_one_cpu(|| echo(to, is_connected)))??,
    }
}

fn iperf3(from: &Namespace, to: SocketAddr, streams: u8) -> Result<f64> {
    let (ip, port, seconds) = (to.ip().to_string(), to.port().to_string(), TIME.as_secs().to_string());
    let streams = streams.to_string();
    let output = from.run("iperf3", &["-c", &ip, "-p", &port, "-t", &seconds, "-P", &streams, "--json"])?;
    let answer: Value = serde_json::from_str(&output).context("not iperf3's JSON")?;
    let rate = answer["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(rate.with_context(|| output.clone())? / 1e9)
}

fn wrk(from: &Namespace, to: SocketAddr, more: &[&str]) -> Result<f64> {
    let (url, seconds) = (format!("http://{to}/"), format!("{}s", TIME.as_secs()));
    let arguments = [&["-t", "1", "-c", "8", "-d", &seconds], more, &[&url]].concat();
    let output = from.run("wrk", &arguments)?;
    let rate = output.lines().find_map(|line| line.strip_prefix("Requests/sec:")?.trim().parse::<f64>().ok());
    Ok(rate.with_context(|| output.clone())? / 1e3)
}

fn echo(to: SocketAddr, is_connected: bool) -> Result<f64> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(TIME))?;
    if is_connected {
        socket.connect(to)?;
    }
    let mut buffer = [0; 256];
    let (start, mut count) = (Instant::now(), 0_u32);
    while start.elapsed() < TIME {
        if is_connected {
            socket.send(b"who?\n")?
        } else {
            socket.send_to(b"who?\n", to)?
        };
        socket.recv_from(&mut buffer).context("no answer")?;
        count += 1;
    }
    Ok(f64::from(count) / start.elapsed().as_secs_f64() / 1e3)
}

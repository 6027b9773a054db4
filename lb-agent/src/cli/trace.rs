// SPDX-License-Identifier: MIT OR Apache-2.0
//! `lb-agent trace`: where a packet would go, and why, answered by the live programs.

mod answer;
mod device;
mod packet;
mod socket;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

use anyhow::{Context as _, ensure};
use lb_common::{
    config::{Net, role},
    flow::protocol,
};
use serde::Serialize;

use self::answer::TraceAnswer;
use crate::dataplane::{DEFAULT_BPFFS, Door, Maps, Pins, ask};

/// Flags of `trace`.
#[derive(Clone, Debug, clap::Args)]
pub struct TraceArgs {
    /// The client; its port matters, because it is part of what chooses the backend
    #[arg(long, value_name = "IP[:PORT]", required_unless_present = "socket")]
    pub from: Option<Client>,
    /// Ask the socket door: what becomes of a connection of a process here. With `--from`, its socket is bound to that
    /// address. For a pod, run this in the pod's network namespace (`nsenter --net=...`) with `--socket-lb all`
    #[arg(long, conflicts_with = "in_interface")]
    pub socket: bool,
    /// Where it wants to go: a Service's address and port, or a node's address and a node port
    #[arg(long, value_name = "IP:PORT")]
    pub to: SocketAddr,
    /// Protocol of the packet
    #[arg(long, value_enum, default_value_t = Protocol::Tcp)]
    pub proto: Protocol,
    /// Device by which the packet arrives: it decides whether the client counts as inside or outside. Default: the
    /// device that leads back to the client; where that has no programs (a bridge, say), the first pod interface if it
    /// is not an uplink or the client is a backend on this node, else the first uplink. For the node itself, and for a pod
    /// that was born while no agent ran, the net's device (`shunt0`, or `lo`), by which the packet leaves
    #[arg(long, value_name = "IF")]
    pub in_interface: Option<String>,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// Directory of the pinned maps and programs
    #[arg(long, value_name = "DIR", default_value = DEFAULT_BPFFS)]
    pub bpffs: PathBuf,
}

/// A protocol above IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Protocol {
    /// A SYN
    Tcp,
    /// A datagram
    Udp,
    /// An INIT
    Sctp,
}

impl Protocol {
    const fn number(self) -> u8 {
        match self {
            Self::Tcp => protocol::TCP,
            Self::Udp => protocol::UDP,
            Self::Sctp => protocol::SCTP,
        }
    }
}

/// Form of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// Lines for people
    Text,
    /// One JSON object, whose field names stay
    Json,
}

/// An address with or without a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client(pub SocketAddr);

impl Client {
    /// Of a client that was given without: an ephemeral one.
    const PORT: u16 = 40_000;
}

impl FromStr for Client {
    type Err = std::net::AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        match bare.parse::<IpAddr>() {
            Ok(ip) => Ok(Self(SocketAddr::new(ip, Self::PORT))),
            Err(_) => text.parse().map(Self),
        }
    }
}

/// Asks, and prints the answer.
///
/// # Errors
/// When the programs can't be asked.
pub fn run(args: &TraceArgs) -> anyhow::Result<()> {
    let text = if args.socket { form(&socket::trace(args)?, args.output) } else { form(&trace(args)?, args.output) };
    Ok(super::answer::print(text?.trim_end())?)
}

fn form<A: fmt::Display + Serialize>(answer: &A, output: Output) -> anyhow::Result<String> {
    match output {
        Output::Text => Ok(answer.to_string()),
        Output::Json => serde_json::to_string_pretty(answer).context("writing JSON"),
    }
}

/// Asks.
///
/// # Errors
/// When the programs can't be asked.
pub fn trace(args: &TraceArgs) -> anyhow::Result<TraceAnswer> {
    let (from, to) = (args.from.context("--from is missing")?.0, args.to);
    ensure!(from.is_ipv4() == to.is_ipv4(), "--from {} and --to {to} are of different IP versions", from.ip());
    let pins = Pins::new(&args.bpffs);
    pins.check_serving()?;
    let maps = Maps::open(&pins)?;
    let dump = maps.dump()?;
    let device = match &args.in_interface {
        Some(name) => device::named(name, &dump)?,
        None => {
            let net = maps.config.get(0).map(|config| config.net).filter(Net::is_there);
            device::choose((from.ip(), to.ip()), net.map(|net| net.ifindex), &dump, &pins)?
        }
    };
    let question = packet::build(device.mac, from, to, args.proto.number());
    let door = if device.role & role::NET == 0 { Door::TcIngress } else { Door::Net };
    let answer = ask(&pins, &maps, (door, device.ifindex), &question)?;
    Ok(TraceAnswer::new((from, to, args.proto.number()), &device, &answer, &dump))
}

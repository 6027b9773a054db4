// SPDX-License-Identifier: MIT OR Apache-2.0
//! `trace --socket`: what the socket door does with a connection of a process here.

use std::{fmt, net::SocketAddr};

use anyhow::ensure;
use lb_common::{
    address::Address,
    frontend::FrontendKey,
    trace::{TraceRecord, trace_step, trace_verdict},
    verdict::Reason,
};
use serde::Serialize;

use super::{
    Client, TraceArgs,
    answer::{TraceBackend, backend, decision, find_frontend, verdict},
};
use crate::{
    dataplane::{Maps, Pins, ask_socket},
    diff::{Dump, FrontendText, ProtocolText, unit_of_name},
};

/// The answer. Its field names are for scripts, and stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SocketAnswer {
    /// The address that the socket is bound to; `null` where it is not.
    pub from: Option<SocketAddr>,
    /// Where it wants to go.
    pub to: SocketAddr,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// `10.96.0.1:80/TCP`; `null` where there is none.
    pub frontend: Option<String>,
    /// `namespace/name:port` of the Service port that the frontend leads to.
    pub service: Option<String>,
    /// `none`, `frontend` (but no backend) or `new` (backend chosen).
    pub decision: &'static str,
    /// The backend, by chance one of several; `null` where none was reached.
    pub backend: Option<TraceBackend>,
    /// `not-ours`, `translated`, `rejected` or `dropped`.
    pub verdict: &'static str,
    /// Why it was refused: the label of `shunt_reasons` in the metrics.
    pub reason: Option<&'static str>,
}

/// Asks.
pub fn trace(args: &TraceArgs) -> anyhow::Result<SocketAnswer> {
    let to = args.to;
    let from = args.from.map(|Client(from)| SocketAddr::new(from.ip(), 0));
    ensure!(from.is_none_or(|from| from.is_ipv4() == to.is_ipv4()), "--from and --to are of different IP versions");
    let protocol = args.proto.number();
    let pins = Pins::new(&args.bpffs);
    pins.check_serving()?;
    let maps = Maps::open(&pins)?;
    let record = ask_socket(&pins, &maps, (from, to), protocol)?;
    Ok(SocketAnswer::new((from, to, protocol), &record, &maps.dump()?))
}

impl SocketAnswer {
    /// Reads the record in the light of what the maps hold.
    pub fn new((from, to, protocol): (Option<SocketAddr>, SocketAddr, u8), record: &TraceRecord, dump: &Dump) -> Self {
        let is_ours = record.verdict != trace_verdict::NOT_OURS;
        let local_node_port = FrontendKey::node_port(to.is_ipv4(), to.port().to_be(), protocol);
        let frontend = if Address::from(to.ip()).is_this_machine() {
            dump.frontends.get(&local_node_port).map(|frontend| (local_node_port, frontend.service))
        } else {
            find_frontend(to, protocol, dump)
        };
        let frontend = frontend.filter(|_| is_ours);
        let service = frontend.and_then(|(_, service)| unit_of_name(dump.names.get(&service)?));
        let has_backend = record.step == trace_step::DECIDED;
        let is_refused = matches!(record.verdict, trace_verdict::REJECTED | trace_verdict::DROPPED);
        Self {
            from,
            to,
            protocol: ProtocolText(protocol).to_string(),
            frontend: frontend.map(|(key, _)| FrontendText(&key).to_string()),
            service: service.map(|id| id.to_string()),
            decision: decision(record.step),
            backend: has_backend.then(|| backend(record.backend, dump)).flatten(),
            verdict: verdict(record.verdict),
            reason: is_refused.then(|| Reason::from_index(record.reason).map(Reason::as_str)).flatten(),
        }
    }
}

/// As aligned lines.
impl fmt::Display for SocketAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { protocol, to, .. } = self;
        match self.from {
            Some(from) => writeln!(f, "socket      {protocol} {} -> {to}, of a process here", from.ip())?,
            None => writeln!(f, "socket      {protocol} -> {to}, of a process here")?,
        }
        match (&self.frontend, &self.service) {
            (Some(frontend), Some(service)) => writeln!(f, "frontend    {frontend} of {service}")?,
            (Some(frontend), None) => writeln!(f, "frontend    {frontend}")?,
            (None, _) => writeln!(f, "frontend    none")?,
        }
        match &self.backend {
            Some(TraceBackend { address, index, state, local }) => {
                let place = if *local { "on this node" } else { "on another node" };
                writeln!(f, "backend     {address} {place}, {state} (index {index}), this time")?;
            }
            None => writeln!(f, "backend     none")?,
        }
        let reason = self.reason.unwrap_or("no reason given");
        match self.verdict {
            "translated" => {
                writeln!(f, "verdict     translated: its packets have the backend's address from the start")
            }
            "rejected" => writeln!(f, "verdict     refused, ECONNREFUSED ({reason})"),
            "dropped" => writeln!(f, "verdict     refused, EPERM ({reason})"),
            _ => writeln!(f, "verdict     left alone: of no Service, or a pod's that the packet doors serve"),
        }
    }
}

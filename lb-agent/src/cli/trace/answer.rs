// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the programs decided, for people and for scripts. Pure.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    config::role,
    frontend::{FrontendKey, backend_flags, backend_state},
    trace::{trace_step, trace_verdict},
    verdict::Reason,
};
use serde::Serialize;

use super::{device::Device, packet};
use crate::{
    dataplane::{self, Answer},
    diff::{Dump, FrontendText, ProtocolText, unit_of_name},
};

/// The answer. Its field names are for scripts, and stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TraceAnswer {
    /// The client.
    pub from: SocketAddr,
    /// Where it wants to go.
    pub to: SocketAddr,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The device by which the packet arrives.
    pub in_interface: String,
    /// Whether the client counts as inside this node.
    pub internal: bool,
    /// Whether the packet leaves by that device, and meets the net.
    #[serde(rename = "net")]
    pub is_at_net: bool,
    /// `10.96.0.1:80/TCP`; `null` where there is none.
    pub frontend: Option<String>,
    /// `namespace/name:port` of the Service port that the frontend leads to.
    pub service: Option<String>,
    /// `none`, `flow` (established), `frontend` (but no backend) or `new` (backend chosen).
    pub decision: &'static str,
    /// The backend; `null` where none was reached.
    pub backend: Option<TraceBackend>,
    /// The tuple that the packet leaves with; `null` where it stays as it is.
    pub translated: Option<Translated>,
    /// `not-ours`, `translated`, `forwarded`, `passed`, `rejected`, `dropped` or `left-to-tc`.
    pub verdict: &'static str,
    /// Why, for packets that were not translated: the label of `shunt_reasons` in the metrics.
    pub reason: Option<&'static str>,
    /// The device that a forwarded packet leaves by; `null` where the network stack routes it.
    pub out_interface: Option<String>,
}

/// A backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TraceBackend {
    /// Its address and port.
    pub address: SocketAddr,
    /// Its index in the maps.
    pub index: u32,
    /// `active`, `draining` or `gone`.
    pub state: &'static str,
    /// Whether it runs on this node.
    pub local: bool,
}

/// A packet's new tuple.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Translated {
    /// Its source.
    pub source: SocketAddr,
    /// Its destination.
    pub destination: SocketAddr,
}

impl TraceAnswer {
    /// Reads the record in the light of what the maps hold.
    pub fn new(
        (from, to, protocol): (SocketAddr, SocketAddr, u8),
        device: &Device,
        answer: &Answer,
        dump: &Dump,
    ) -> Self {
        let record = &answer.record;
        let frontend = find_frontend(to, protocol, dump);
        let service = frontend.and_then(|(_, service)| unit_of_name(dump.names.get(&service)?));
        let has_backend = matches!(record.step, trace_step::FLOW | trace_step::DECIDED);
        let translated = packet::tuple(&answer.packet).filter(|&tuple| tuple != (from, to));
        let is_translated = matches!(record.verdict, trace_verdict::TRANSLATED | trace_verdict::FORWARDED);
        let is_ours = record.verdict != trace_verdict::NOT_OURS;
        Self {
            from,
            to,
            protocol: ProtocolText(protocol).to_string(),
            in_interface: device.name.clone(),
            internal: device.role & (role::POD | role::NET) != 0,
            is_at_net: device.role & role::NET != 0,
            frontend: frontend.map(|(key, _)| FrontendText(&key).to_string()),
            service: service.map(|id| id.to_string()),
            decision: decision(record.step),
            backend: has_backend.then(|| backend(record.backend, dump)).flatten(),
            translated: translated.map(|(source, destination)| Translated { source, destination }),
            verdict: verdict(record.verdict),
            reason: if is_translated || !is_ours {
                None
            } else {
                Reason::from_index(record.reason).map(Reason::as_str)
            },
            out_interface: (record.ifindex != 0).then(|| device_name(record.ifindex)),
        }
    }

    fn decision_text(&self) -> &'static str {
        match self.decision {
            "flow" => "an established flow: its entry says where to",
            "frontend" => "no backend may be used",
            "new" => "a new flow: the backend was chosen from the lookup table",
            _ => "none",
        }
    }

    fn verdict_text(&self) -> String {
        let reason = self.reason.unwrap_or("no reason given");
        match self.verdict {
            "translated" if self.is_at_net => "translated, and handed to the network stack, by shunt0".to_owned(),
            "translated" => "translated, and handed to the network stack".to_owned(),
            "forwarded" => {
                format!("translated, and sent out by {}", self.out_interface.as_deref().unwrap_or("an unknown device"))
            }
            "passed" => format!("passed untouched ({reason})"),
            "rejected" => format!("rejected with an ICMP error ({reason})"),
            "dropped" => format!("dropped ({reason})"),
            "left-to-tc" => "left to TC".to_owned(),
            _ => "passed untouched: of no Service".to_owned(),
        }
    }
}

/// As aligned lines.
impl fmt::Display for TraceAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = if self.internal { "inside" } else { "outside" };
        let Self { protocol, from, to, in_interface, .. } = self;
        let how = if self.is_at_net { "leaving by" } else { "arriving by" };
        writeln!(f, "packet      {protocol} {from} -> {to}, {how} {in_interface} from {place}")?;
        match (&self.frontend, &self.service) {
            (Some(frontend), Some(service)) => writeln!(f, "frontend    {frontend} of {service}")?,
            (Some(frontend), None) => writeln!(f, "frontend    {frontend}")?,
            (None, _) => writeln!(f, "frontend    none")?,
        }
        writeln!(f, "decision    {}", self.decision_text())?;
        match &self.backend {
            Some(TraceBackend { address, index, state, local }) => {
                let place = if *local { "on this node" } else { "on another node" };
                writeln!(f, "backend     {address} {place}, {state} (index {index})")?;
            }
            None => writeln!(f, "backend     none")?,
        }
        match &self.translated {
            Some(Translated { source, destination }) => writeln!(f, "translation {source} -> {destination}")?,
            None => writeln!(f, "translation none")?,
        }
        writeln!(f, "verdict     {}", self.verdict_text())
    }
}

/// The frontend that the address and port belong to, and its Service port: as the programs look it up.
pub(super) fn find_frontend(to: SocketAddr, protocol: u8, dump: &Dump) -> Option<(FrontendKey, u32)> {
    let own = FrontendKey::new(to.ip().into(), to.port().to_be(), protocol);
    let node_port = FrontendKey::node_port(to.is_ipv4(), to.port().to_be(), protocol);
    let answers_node_ports = dump.node_addresses.contains(&to.ip().into());
    let undefined = FrontendKey::any_port(own.address);
    let candidates = [Some(own), answers_node_ports.then_some(node_port), Some(undefined)];
    candidates.into_iter().flatten().find_map(|key| Some((key, dump.frontends.get(&key)?.service)))
}

pub(super) fn backend(index: u32, dump: &Dump) -> Option<TraceBackend> {
    let backend = dump.backends.get(index as usize)?;
    let address = SocketAddr::new(IpAddr::from(backend.address), u16::from_be(backend.port_be));
    let state = match backend.state {
        backend_state::ACTIVE => "active",
        backend_state::DRAINING => "draining",
        _ => "gone",
    };
    Some(TraceBackend { address, index, state, local: backend.flags & backend_flags::LOCAL != 0 })
}

pub(super) const fn decision(step: u32) -> &'static str {
    match step {
        trace_step::FLOW => "flow",
        trace_step::FRONTEND => "frontend",
        trace_step::DECIDED => "new",
        _ => "none",
    }
}

pub(super) const fn verdict(verdict: u32) -> &'static str {
    match verdict {
        trace_verdict::TRANSLATED => "translated",
        trace_verdict::FORWARDED => "forwarded",
        trace_verdict::PASSED => "passed",
        trace_verdict::REJECTED => "rejected",
        trace_verdict::DROPPED => "dropped",
        trace_verdict::LEFT_TO_TC => "left-to-tc",
        trace_verdict::RESET => "reset",
        _ => "not-ours",
    }
}

fn device_name(ifindex: u32) -> String {
    dataplane::device_name(ifindex).unwrap_or_else(|| format!("index {ifindex}"))
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is measured: a template of packets, how many flows they belong to, and what must become of them.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use lb_common::{
    bench::{FRAME_LEN_V4, FRAME_LEN_V6, Template},
    flow::tcp_flags::{ACK, SYN},
};
use shunt_tests::{
    packets::{
        Ran, Segment, Target,
        node::{HERE, OUTSIDE, THERE, pick},
        template,
    },
    reference::{Version, is_sound},
};

/// Packets of a case in a round, where each takes little time.
const PACKETS: u32 = 1 << 20;
/// Where each makes a flow: few enough for the table not to fill up, all rounds together.
const NEW_FLOWS: u32 = 10_000;
/// As many as the peers were measured with.
const MANY: Flows = Flows::Many(1 << 16);

/// From one of many flows to the next: 2^32 divided by the golden ratio, far away in memory.
const STRIDE: u32 = 0x9e37_79b1;

const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;

/// How many flows the packets belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flows {
    /// One, established.
    One,
    /// So many, established, one packet of each after the other.
    Many(u32),
    /// Each packet begins one.
    New,
}

/// A row of the table.
pub struct Case {
    /// What it is.
    pub name: &'static str,
    /// The program.
    pub target: Target,
    /// Of the packets.
    pub version: Version,
    /// How many.
    pub flows: Flows,
    /// Packets in a round.
    pub packets: u32,
    /// The packet.
    pub template: Template,
    /// What a client sends before it.
    pub opening: Vec<Template>,
    /// The client and the frontend whose flow's reply this is: it can be written only when the flow exists.
    pub reply_of: Option<(SocketAddr, SocketAddr)>,
    /// `XDP_*` of every packet.
    pub action: u32,
    /// Nanoseconds, net of the floor, that it shall take.
    pub shall: Option<f64>,
}

/// All rows, in the order of the table; the floors first, IPv4 and IPv6.
pub fn all() -> Vec<Case> {
    let [v4, v6] = Version::BOTH;
    let (there, here) = (THERE.at_node(v4), HERE.at_node(v4));
    let [far, near, new] = ["203.0.113.0", "203.0.113.64", "100.96.0.0"].map(end);
    let [far_v6, near_v6] = ["2001:db8:c::", "2001:db8:c::1:0"].map(end);
    let stranger = SocketAddr::new(pick(OUTSIDE, v4), 80);
    let floor =
        |name, from, to| Case { target: Target::Floor, ..Case::new(name, (from, to), ACK, Flows::One, XDP_PASS) };
    let established = Case::established;
    vec![
        floor("floor", far, there),
        floor("floor, IPv6", far_v6, THERE.at_node(v6)),
        established("established, backend elsewhere", (far, there), Flows::One, XDP_TX).shall(30.0),
        established("the same, 64k flows", (far, there), MANY, XDP_TX),
        established("established, backend here", (near, here), Flows::One, XDP_PASS).shall(30.0),
        established("the same, 64k flows", (near, here), MANY, XDP_PASS),
        Case { target: Target::Lookup, ..established("bare look-up, 64k flows", (near, here), MANY, XDP_PASS) },
        Case { reply_of: Some((far, there)), ..established("reply from elsewhere", (far, there), Flows::One, XDP_TX) }
            .shall(30.0),
        Case { packets: NEW_FLOWS, ..Case::new("SYN of a new flow", (new, there), SYN, Flows::New, XDP_TX) }
            .shall(480.0),
        Case::new("packet of no Service", (far, stranger), ACK, Flows::One, XDP_PASS).shall(8.0),
        established("IPv6: established, backend elsewhere", (far_v6, THERE.at_node(v6)), Flows::One, XDP_TX),
        established("IPv6: established, backend here", (near_v6, HERE.at_node(v6)), Flows::One, XDP_PASS),
    ]
}

/// A client in whose address and port the lower bits are free for the number of the flow.
fn end(address: &str) -> SocketAddr {
    SocketAddr::new(address.parse().expect("an address"), 0x4000)
}

impl Case {
    fn new(name: &'static str, ends: (SocketAddr, SocketAddr), flags: u8, flows: Flows, action: u32) -> Self {
        let (mask, stride) = match flows {
            Flows::One => (0, 1),
            Flows::Many(count) => (count - 1, STRIDE),
            Flows::New => ((1 << 22) - 1, 1),
        };
        Self {
            name,
            target: Target::Xdp,
            version: Version::of(ends.1.ip()),
            flows,
            packets: PACKETS,
            template: Template { mask, stride, ..template(&Segment::tcp(ends.0, ends.1, flags)) },
            opening: Vec::new(),
            reply_of: None,
            action,
            shall: None,
        }
    }

    fn established(name: &'static str, ends: (SocketAddr, SocketAddr), flows: Flows, action: u32) -> Self {
        let [syn, ack] = [SYN, ACK].map(|flags| Self::new(name, ends, flags, flows, action));
        let opening = [syn.template, ack.template].map(|template| Template { stride: 1, ..template });
        Self { opening: opening.to_vec(), ..ack }
    }

    fn shall(self, nanoseconds: f64) -> Self {
        Self { shall: Some(nanoseconds), ..self }
    }

    /// The template of one of its flows alone.
    pub const fn at(&self, flow: u32) -> Template {
        Template { counter: flow, stride: 1, ..self.template }
    }

    /// Whether a packet has fared as it must.
    pub fn check(&self, ran: &Ran) -> Result<()> {
        ensure!(ran.action == self.action, "action {}, not {}", ran.action, self.action);
        ensure!(is_sound(&ran.frame), "a wrong checksum: {:02x?}", ran.frame);
        Ok(())
    }
}

/// The frame of a template's flow 0, padded like the wrapper's.
pub fn frame_of(template: &Template, version: Version) -> Vec<u8> {
    let len = match version {
        Version::V4 => FRAME_LEN_V4,
        Version::V6 => FRAME_LEN_V6,
    };
    bytemuck::bytes_of(&template.frame)[..len].to_vec()
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is measured: packets, how many flows they belong to, and what must become of them.

use std::net::SocketAddr;

use lb_common::bench::Script;
use shunt_tests::{
    packets::{POD, Target, UPLINK},
    reference::{Door, Verdict, Version},
};

use crate::{
    node,
    report::Shall,
    talk::{Line, Talk, script},
};

/// Packets of a case in a round, where each takes little time.
const PACKETS: u32 = 1 << 20;
/// Flows that a case begins where each of its turns does: few enough for the tables not to fill up, all cases together.
const NEW_FLOWS: u32 = 12_000;
/// As many as the peers were measured with.
const MANY: Flows = Flows::Many(1 << 16);

/// From one of many flows to the next: 2^32 divided by the golden ratio, far away in memory.
const STRIDE: u32 = 0x9e37_79b1;

/// The first of many clients whose backends are elsewhere.
const MANY_FAR: &str = "203.0.113.32";

/// The rows that others are compared with: the physical limits.
pub const BARE: &str = "bare look-up and stores";
const BARE_MANY: &str = "bare look-up and stores, 64k flows";
const TC_BARE: &str = "TC: bare look-up and stores";
const TC_BARE_MANY: &str = "TC: bare look-up and stores, 64k flows";
const NO_SERVICE: &str = "packet of no Service";
const ESTABLISHED: &str = "established, backend elsewhere";
const TC_NO_SERVICE: &str = "TC: packet of no Service";
const TC_ESTABLISHED: &str = "TC: established, pod to ClusterIP";

/// How many flows the packets belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flows {
    /// One, which stays.
    One,
    /// So many, which stay, a turn of each after the other.
    Many(u32),
    /// Each turn begins one.
    New,
}

/// A row of the table.
#[derive(Clone)]
pub struct Case {
    /// What it is, in which no two are alike.
    pub name: &'static str,
    /// Whose programs.
    pub target: Target,
    /// By the first packet's: XDP, or TC.
    pub door: Door,
    /// Of the packets.
    pub version: Version,
    /// How many.
    pub flows: Flows,
    /// CPUs that work at a time.
    pub cpus: u32,
    /// The device by which packets come, or leave.
    pub ifindex: u32,
    /// What was said before.
    pub opening: Vec<Line>,
    /// What is measured, together.
    pub lines: Vec<Line>,
    /// Whether that is one answer to the last packet of the opening: it can be written only when the flow exists.
    pub is_reply: bool,
    /// Of every packet that is measured.
    pub verdict: Verdict,
    /// The row that is its physical limit.
    pub bare: &'static str,
    /// What it shall take.
    pub shall: Option<Shall>,
}

/// All rows of this machine, in the order of the table.
pub fn all(has_two_cpus: bool) -> Vec<Case> {
    let mut cases = [xdp(), tc()].concat();
    cases.retain(|case| has_two_cpus || case.cpus == 1);
    cases
}

fn xdp() -> Vec<Case> {
    let [v4, v6] = Version::BOTH;
    let (elsewhere, here) = (node::elsewhere(v4), node::here(v4));
    let far = Talk::xdp(end("203.0.113.0"), elsewhere);
    let many_far = Talk::xdp(end(MANY_FAR), elsewhere);
    // From other nodes' pods, for the room that there is: clients are to be in reach of the uplink.
    let new = |net| Talk::xdp(end(net), elsewhere);
    let far_v6 = Talk::xdp(end("2001:db8:c::"), node::elsewhere(v6));
    let one_way = Talk::xdp(end("203.0.113.128"), elsewhere).question();
    let sends_back = |name, talk: Talk| Case::new(name, vec![talk.ack()], Verdict::Transmit).after(talk.handshake());
    let begins = |name, lines| Case { flows: Flows::New, ..Case::new(name, lines, Verdict::Transmit) };
    let passes = |name, frontend| Case::new(name, vec![Talk::xdp(end("203.0.113.0"), frontend).ack()], Verdict::Pass);
    let many = |case: Case| Case { flows: MANY, bare: BARE_MANY, ..case };
    vec![
        Case { target: Target::Bare, ..Case::new(BARE, vec![far.ack()], Verdict::Transmit) },
        many(Case { target: Target::Bare, ..Case::new(BARE_MANY, vec![many_far.ack()], Verdict::Transmit) }),
        sends_back(ESTABLISHED, far).shall(0.40),
        many(sends_back("established, backend elsewhere, 64k flows", many_far)).shall(0.45),
        // Of the same flows.
        many(Case {
            cpus: 2,
            ..Case::new("established, backend elsewhere, 64k flows, two CPUs", vec![many_far.ack()], Verdict::Transmit)
        }),
        at_home("established, backend here", "203.0.113.64", here).shall(0.40),
        many(at_home("established, backend here, 64k flows", "203.0.113.96", here)).shall(0.45),
        Case { is_reply: true, ..Case::new("reply from elsewhere", vec![far.reply()], Verdict::Transmit) }
            .after(far.handshake())
            .shall(0.40),
        begins("SYN of a new flow", vec![new("10.2.64.0").syn()]).shall(0.36),
        begins("SYN, SYN-ACK, ACK", new("10.2.80.0").handshake()).shall(0.40),
        begins("short connection, 8 packets", new("10.2.96.0").connection()),
        begins("UDP question and answer", new("10.2.112.0").exchange()),
        Case::new("one-way UDP", vec![one_way], Verdict::Transmit).shall_of(ESTABLISHED, 1.1),
        passes(NO_SERVICE, node::stranger(v4)).shall(0.25),
        passes("to the node itself", node::own_port(v4)).shall_of(NO_SERVICE, 1.5),
        sends_back("IPv6: established, backend elsewhere", far_v6).shall(0.45),
        at_home("IPv6: established, backend here", "2001:db8:c::1:0", node::here(v6)).shall(0.45),
    ]
}

/// An established flow to a backend on this node: its answers leave by TC.
fn at_home(name: &'static str, client: &str, frontend: SocketAddr) -> Case {
    let talk = Talk::xdp(end(client), frontend);
    let handshake = Talk::tc_and_back(end(client), frontend).handshake();
    Case::new(name, vec![talk.ack()], Verdict::Pass).after(handshake)
}

fn tc() -> Vec<Case> {
    let [v4, v6] = Version::BOTH;
    let pod = |client| Talk::tc_and_back(end(client), node::cluster_ip(v4));
    let (one, many_pods) = (pod("10.1.0.0"), pod("10.1.0.32"));
    let [outside, many_outside] = ["203.0.113.160", MANY_FAR].map(|client| Talk::tc(end(client), node::elsewhere(v4)));
    let pod_v6 = Talk::tc_and_back(end("fd00:1::"), node::cluster_ip(v6));
    let case = |name, lines: Vec<Line>| Case { ifindex: POD, bare: TC_BARE, ..Case::new(name, lines, Verdict::Pass) };
    let begins = |name, lines| Case { flows: Flows::New, ..case(name, lines) };
    let many = |case: Case| Case { flows: MANY, bare: TC_BARE_MANY, ..case };
    let from_backend = Talk::leaving(node::backend(v4), node::stranger(v4));
    vec![
        Case { target: Target::Bare, ..case(TC_BARE, vec![outside.ack()]) },
        // Of the same flows as at XDP: there is one bare table.
        many(Case { target: Target::Bare, ..case(TC_BARE_MANY, vec![many_outside.ack()]) }),
        case(TC_ESTABLISHED, vec![one.ack()]).after(one.handshake()).shall(0.40),
        many(case("TC: established, pod to ClusterIP, 64k flows", vec![many_pods.ack()]).after(many_pods.handshake()))
            .shall(0.45),
        Case { is_reply: true, ..case("TC: reply to a pod", vec![one.reply()]) }.after(one.handshake()).shall(0.40),
        Case {
            ifindex: UPLINK,
            verdict: Verdict::Redirect,
            ..case("TC: established, NodePort, backend elsewhere", vec![outside.ack()])
        }
        .after(outside.handshake())
        .shall(0.40),
        begins("TC: SYN of a new flow", vec![pod("10.1.16.0").syn()]).shall(0.36),
        begins("TC: SYN, SYN-ACK, ACK", pod("10.1.32.0").handshake()).shall(0.40),
        begins("TC: short connection, 8 packets", pod("10.1.48.0").connection()),
        begins("TC: UDP question and answer", pod("10.1.64.0").exchange()),
        case("TC: one-way UDP", vec![pod("10.1.80.0").question()]).shall_of(TC_ESTABLISHED, 1.1),
        case(TC_NO_SERVICE, vec![Talk::tc(end("10.1.0.0"), node::stranger(v4)).ack()]).shall(0.25),
        case("TC: to the node itself", vec![Talk::tc(end("10.1.0.0"), node::own_port(v4)).ack()])
            .shall_of(TC_NO_SERVICE, 1.5),
        Case { ifindex: UPLINK, ..case("TC: from a backend, no flow", vec![from_backend.ack()]) }
            .shall_of(TC_NO_SERVICE, 1.5),
        case("TC, IPv6: established, pod to ClusterIP", vec![pod_v6.ack()]).after(pod_v6.handshake()).shall(0.45),
    ]
}

/// A client in whose address and port the lower bits are free for the number of the flow.
pub fn end(address: &str) -> SocketAddr {
    SocketAddr::new(address.parse().expect("an address"), 0x4000)
}

impl Case {
    fn new(name: &'static str, lines: Vec<Line>, verdict: Verdict) -> Self {
        let (door, version) = (lines[0].door, lines[0].version);
        Self {
            name,
            target: Target::Doors,
            door,
            version,
            flows: Flows::One,
            cpus: 1,
            ifindex: UPLINK,
            opening: Vec::new(),
            lines,
            is_reply: false,
            verdict,
            bare: BARE,
            shall: None,
        }
    }

    fn after(self, opening: Vec<Line>) -> Self {
        Self { opening, ..self }
    }

    /// This share of what it took at first.
    fn shall(self, share: f64) -> Self {
        Self { shall: Some(Shall { of: None, share }), ..self }
    }

    /// This share of another row.
    fn shall_of(self, row: &'static str, share: f64) -> Self {
        Self { shall: Some(Shall { of: Some(row), share }), ..self }
    }

    /// Flows that stay.
    pub const fn staying(&self) -> u32 {
        match self.flows {
            Flows::One => 1,
            Flows::Many(count) => count,
            Flows::New => 0,
        }
    }

    /// How often all is said in a turn, of which there are so many.
    pub const fn times(&self, turns: u32) -> u32 {
        match self.flows {
            Flows::New if NEW_FLOWS / turns == 0 => 1,
            Flows::New => NEW_FLOWS / turns,
            Flows::One | Flows::Many(_) => PACKETS,
        }
    }

    /// What is measured, from flow 0 on.
    pub fn script(&self) -> Script {
        let (mask, stride) = match self.flows {
            Flows::One => (0, 1),
            Flows::Many(count) => (count - 1, STRIDE),
            Flows::New => ((1 << 22) - 1, 1),
        };
        Script { mask, stride, ..script(&self.lines, self.ifindex) }
    }

    /// The same of one of its flows alone.
    pub fn script_at(&self, flow: u32) -> Script {
        Script { counter: flow, stride: 1, ..self.script() }
    }

    /// What comes before, in the order of flows.
    pub fn opening_script(&self) -> Script {
        Script { mask: self.script().mask, ..script(&self.opening, self.ifindex) }
    }

    /// By which hook that comes.
    pub fn opening_door(&self) -> Door {
        self.opening.first().map_or(self.door, |line| line.door)
    }
}

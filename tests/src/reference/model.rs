// SPDX-License-Identifier: MIT OR Apache-2.0
//! The whole decision, one packet at a time.

use std::fmt;

use lb_common::{
    flow::{protocol, tcp_flags},
    trace::{TraceRecord, trace_step, trace_verdict},
    verdict::Reason,
};

use super::{
    affinity::Affinities,
    answer::{self, Message},
    counters::Counters,
    decide::{self, Decision, Question},
    flow::{Entry, Flows, Found, Look, NextHop, Now, Tuple},
    fragment::{Datagram, Fragments},
    packet::{Body, Packet, Segment, addresses, parse},
    quote::Quote,
    rewrite::{Rewrite, rewrite},
    setup::{Setup, Version},
    verdict::{Arrival, Door, End, Verdict},
};

/// What must come of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The hook's verdict.
    pub verdict: Verdict,
    /// The frame as it leaves the program.
    pub frame: Vec<u8>,
    /// Counters that moved, and how far.
    pub moved: Counters,
    /// The answer to a trace; all zero for other packets.
    pub record: TraceRecord,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, counted {}\n{:02x?}", self.verdict, self.moved, self.frame)?;
        if self.record == TraceRecord::default() { Ok(()) } else { write!(f, "\n{:?}", self.record) }
    }
}

/// Shunt on one node.
#[derive(Clone, Debug)]
pub struct Model {
    /// What the agent has written, and the kernel's routes.
    pub setup: Setup,
    /// The flow table.
    pub flows: Flows,
    /// The affinity table.
    pub affinities: Affinities,
    /// The table of fragmented datagrams.
    pub fragments: Fragments,
    /// Counted so far.
    pub counters: Counters,
    /// ICMP errors sent in a tick: the tick, and how many.
    rejects: (u32, u32),
}

impl Model {
    /// Without flows.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        Self {
            setup,
            flows: Flows::default(),
            affinities: Affinities::default(),
            fragments: Fragments::default(),
            counters: Counters::default(),
            rejects: (0, 0),
        }
    }

    /// What comes of a packet that arrives now.
    pub fn step(&mut self, arrival: &Arrival, now: Now) -> Outcome {
        if arrival.door == Door::NetArrival {
            return self.step_at_arrival(arrival);
        }
        let before = self.counters.clone();
        let mut run = Run { arrival, now, frame: arrival.frame.clone(), record: TraceRecord::default() };
        let parsed = parse(&run.frame, arrival.door, arrival.ifindex, &self.setup);
        let verdict = match parsed {
            Ok(packet) => {
                let result = self.process(&mut run, &packet);
                result.unwrap_or_else(|end| self.conclude(&mut run, Some(&packet), end))
            }
            Err(end) => self.conclude(&mut run, None, end),
        };
        let Run { frame, mut record, .. } = run;
        if !arrival.is_trace {
            record = TraceRecord::default();
        }
        Outcome { verdict, frame, moved: self.counters.since(&before), record }
    }

    /// What the net has made arrive by its device is forwarded by the stack, or received where it is a reply of a Service; but what
    /// begins in this node, and is for it, goes on by the loopback device.
    fn step_at_arrival(&self, arrival: &Arrival) -> Outcome {
        let is_own = |address| self.setup.is_taken_for_own(address);
        let goes_on = addresses(&arrival.frame).is_some_and(|(src, dst)| {
            dst.is_loopback() || is_own(dst) && (is_own(src) || self.setup.is_net_source(src))
        });
        let verdict = if goes_on { Verdict::Redirect } else { Verdict::Pass };
        Outcome { verdict, frame: arrival.frame.clone(), moved: Counters::default(), record: TraceRecord::default() }
    }

    fn process(&mut self, run: &mut Run<'_>, packet: &Packet) -> Result<Verdict, End> {
        match &packet.body {
            Body::Segment(segment) => self.process_segment(run, packet, segment),
            Body::Later(id) => self.process_later_fragment(run, packet, *id),
            Body::Error(quote) => self.process_error(run, packet, quote),
            // At a ClusterIP there is nobody but its ports (rule 44).
            Body::Echo if run.arrival.door != Door::Egress && self.setup.guarded.contains(&packet.dst) => {
                Err(End::Reject(Reason::UndefinedPort))
            }
            Body::Echo => Err(End::NotOurs),
        }
    }

    /// Packets with ports: they have a flow, or begin one.
    fn process_segment(&mut self, run: &mut Run<'_>, packet: &Packet, segment: &Segment) -> Result<Verdict, End> {
        let is_egress = run.arrival.door == Door::Egress;
        let is_trace = run.arrival.is_trace;
        let look = Look { key: segment.key, signs: segment.signs, door: run.arrival.door };
        match self.flows.find(&look, &self.setup, run.now, is_trace) {
            Found::Elsewhere => Err(End::NotOurs),
            Found::Nothing | Found::Orphan(_) if is_egress => Err(End::NotOurs),
            Found::Orphan(entry) => {
                run.note_flow(&entry);
                // A reset is never answered with a reset.
                let is_reset = segment.signs.flags & tcp_flags::RST != 0;
                Err(if is_reset { End::Drop(Reason::BackendGone) } else { End::Reset(Reason::BackendGone) })
            }
            Found::Entry(entry) => {
                run.note_flow(&entry);
                check_fragment(segment, &entry)?;
                self.note_fragment(run, segment);
                self.follow(run, packet, segment.key, entry)
            }
            Found::Nothing => {
                let mut entry = self.decide(run, segment)?;
                check_fragment(segment, &entry)?;
                self.note_fragment(run, segment);
                let exit = self.exit(run, &mut entry, packet)?;
                Ok(self.send(run, packet, &entry, exit))
            }
        }
    }

    /// The ports of a flow's first fragments are kept for the later ones.
    fn note_fragment(&mut self, run: &Run<'_>, segment: &Segment) {
        if let Some(id) = segment.fragment
            && !run.arrival.is_trace
        {
            self.fragments.note(segment.key, id, run.now.tick);
        }
    }

    /// Fragments without ports follow the first one. They change nothing of the flow.
    fn process_later_fragment(&mut self, run: &mut Run<'_>, packet: &Packet, id: u32) -> Result<Verdict, End> {
        let is_egress = run.arrival.door == Door::Egress;
        let (src, dst, protocol) = (packet.src, packet.dst, packet.headers.protocol);
        let Some(key) = self.fragments.find(Datagram { src, dst, id, protocol }, run.now.tick) else {
            return Err(if is_egress {
                End::NotOurs
            } else if self.setup.guarded.contains(&dst) {
                End::Drop(Reason::OrphanFragment)
            } else {
                End::Pass(Reason::OrphanFragment)
            });
        };
        match self.flows.0.get(&key) {
            None => Err(End::Drop(Reason::OrphanFragment)),
            Some(entry) if !entry.is_at(run.arrival.door) => Err(End::NotOurs),
            Some(&entry) => self.go_along(run, packet, key, entry),
        }
    }

    /// An error goes the way of the packets that it may stop. It changes nothing of the flow, nor does it matter to it
    /// whether the backend is still there.
    fn process_error(&mut self, run: &mut Run<'_>, packet: &Packet, quote: &Quote) -> Result<Verdict, End> {
        let key = quote.answers();
        match self.flows.0.get(&key) {
            Some(&entry) if entry.is_at(run.arrival.door) => self.go_along(run, packet, key, entry),
            _ => Err(End::NotOurs),
        }
    }

    /// A packet without ports of its own goes the way of a flow, of which nothing changes but the next hop.
    fn go_along(&mut self, run: &mut Run<'_>, packet: &Packet, key: Tuple, mut entry: Entry) -> Result<Verdict, End> {
        run.note_flow(&entry);
        let exit = self.exit(run, &mut entry, packet);
        if !run.arrival.is_trace {
            self.flows.note_next_hop(key, &entry);
        }
        Ok(self.send(run, packet, &entry, exit?))
    }

    /// A packet of a flow that was decided before.
    fn follow(&mut self, run: &mut Run<'_>, packet: &Packet, key: Tuple, mut entry: Entry) -> Result<Verdict, End> {
        let exit = self.exit(run, &mut entry, packet);
        if !run.arrival.is_trace {
            // The next hop may be a new one.
            self.flows.note_next_hop(key, &entry);
        }
        Ok(self.send(run, packet, &entry, exit?))
    }

    /// A new flow: both its entries are written, and counted.
    fn decide(&mut self, run: &mut Run<'_>, segment: &Segment) -> Result<Entry, End> {
        let arrival = run.arrival;
        let Arrival { door, is_trace, .. } = *arrival;
        if !decide::comes_in(&self.setup, arrival) {
            return Err(End::NotOurs);
        }
        let question = Question { segment, arrival, now: run.now };
        if segment.is_direct {
            return self.decide_direct(is_trace, &question);
        }
        let frontend = decide::find_frontend(&self.setup, segment.key)?;
        if decide::answers_node(&self.setup, segment) {
            return Err(End::NotOurs);
        }
        let (service, client) = (frontend.service, segment.key.src.ip());
        run.record.step = trace_step::FRONTEND;
        run.record.service = service;
        run.record.internal = u32::from(decide::is_internal(&self.setup, arrival, client));
        let Decision { backend, result } =
            decide::decide(&self.setup, (&self.flows, &self.affinities), frontend, &question);
        if let Some(backend) = backend {
            run.record.step = trace_step::DECIDED;
            run.record.backend = backend;
        }
        if is_trace {
            return result.map(|(entry, _)| entry);
        }
        if let Some(backend) = backend
            && frontend.affinity.is_some()
        {
            self.affinities.note(&self.setup, service, client, (backend, run.now.tick));
        }
        let counters = self.counters.service(service);
        match result {
            Ok((entry, yields)) => {
                if let Some(rank) = yields {
                    *self.counters.evictions.entry(rank.label()).or_default() += 1;
                }
                let (entry, is_new) = self.flows.begin(segment.key, entry, &segment.signs);
                if entry.is_nets && entry.is_snat {
                    self.setup.passing.insert((entry.to.src, entry.to.protocol));
                }
                if is_new {
                    self.counters.service(service).flows += 1;
                    self.counters.backend(entry.backend).flows += 1;
                }
                return Ok(entry);
            }
            // It is for TC to send the error, and to count it.
            Err(End::Reject(_)) if door == Door::Xdp => {}
            Err(End::Reject(_)) => counters.rejected += 1,
            Err(End::Drop(Reason::NoLocalEndpoints | Reason::SourceRange)) => counters.dropped += 1,
            Err(_) => {}
        }
        result.map(|(entry, _)| entry)
    }

    /// A flow that is no Service's is written where a decision says so; nobody counts it.
    fn decide_direct(&mut self, is_trace: bool, question: &Question<'_>) -> Result<Entry, End> {
        let Question { segment, .. } = question;
        let (entry, yields) = decide::decide_direct(&self.setup, &self.flows, question)?;
        if is_trace {
            return Err(End::NotOurs);
        }
        if let Some(rank) = yields {
            *self.counters.evictions.entry(rank.label()).or_default() += 1;
        }
        Ok(self.flows.begin(segment.key, entry, &segment.signs).0)
    }

    /// How a packet of the flow goes on. Packets of source-translated flows are forwarded at once; of the net's flows, those to backends
    /// elsewhere. What would go back to a net that is no more the stack has.
    fn exit(&self, run: &Run<'_>, entry: &mut Entry, packet: &Packet) -> Result<Exit, End> {
        if entry.is_handed_to_net() {
            let exit = self.setup.net_addresses().map_or(Exit::Stack, |addresses| Exit::Net { addresses });
            return if run.arrival.door == Door::Xdp { Err(End::LeaveToTc) } else { Ok(exit) };
        }
        if !entry.is_snat {
            // The other door would take it for a Service's once more.
            let (to, protocol) = (entry.to.dst, entry.to.protocol);
            let stays = self.setup.filters_in(to.ip()) && self.setup.filters_in_port(to, protocol);
            return if run.arrival.door == Door::Xdp && stays { Err(End::LeaveToTc) } else { Ok(Exit::Stack) };
        }
        if packet.has_tags() {
            return Err(End::LeaveToTc);
        }
        if packet.ttl <= 1 {
            return Err(End::Reject(Reason::TtlExpired));
        }
        let is_xdp = run.arrival.door == Door::Xdp;
        let out = decide::look_up(&self.setup, entry, is_xdp)?;
        if run.frame.len() - packet.headers.ip > usize::from(self.setup.mtu) {
            // Whether TC will find segments in it, to be cut later, XDP can't see.
            return Err(if is_xdp { End::LeaveToTc } else { End::Reject(Reason::TooBig) });
        }
        let Some(next_hop) = entry.next_hop else {
            return if is_xdp { Err(End::LeaveToTc) } else { Ok(Exit::Neighbour { ifindex: out }) };
        };
        let takes_xdp = self.setup.interfaces.get(&out).is_some_and(|interface| interface.takes_xdp);
        if is_xdp && out != run.arrival.ifindex && !takes_xdp { Err(End::LeaveToTc) } else { Ok(Exit::Wire(next_hop)) }
    }

    fn send(&mut self, run: &mut Run<'_>, packet: &Packet, entry: &Entry, exit: Exit) -> Verdict {
        let arrival = run.arrival;
        if arrival.is_trace {
            run.record.verdict = if exit.is_forwarded() { trace_verdict::FORWARDED } else { trace_verdict::TRANSLATED };
            run.record.ifindex = exit.ifindex();
            let bits = [entry.is_reply, entry.is_snat, entry.resets].map(u32::from);
            run.record.flow_flags = bits[0] | bits[1] << 1 | bits[2] << 2;
        } else if (entry.backend as usize) < self.setup.backends.len() {
            let direction = usize::from(entry.is_reply);
            let counters = self.counters.backend(entry.backend);
            counters.packets[direction] += 1;
            counters.bytes[direction] += run.frame.len() as u64;
        }
        let ethernet = match exit {
            Exit::Wire(NextHop { addresses, .. }) | Exit::Net { addresses } => Some(addresses),
            Exit::Stack | Exit::Neighbour { .. } => None,
        };
        let change = Rewrite { entry, forwards: exit.is_forwarded(), ethernet, door: arrival.door };
        rewrite(&mut run.frame, packet, &change);
        match exit {
            Exit::Stack => Verdict::Pass,
            Exit::Wire(to) if arrival.door == Door::Xdp && to.ifindex == arrival.ifindex => Verdict::Transmit,
            Exit::Wire(_) | Exit::Neighbour { .. } | Exit::Net { .. } => Verdict::Redirect,
        }
    }

    /// Counts why a packet ended early, and gives the verdict; a reject may turn it into an ICMP error.
    fn conclude(&mut self, run: &mut Run<'_>, packet: Option<&Packet>, end: End) -> Verdict {
        if run.arrival.is_trace {
            return note_end(&mut run.record, end);
        }
        let is_answer = matches!(end, End::Reject(_) | End::Reset(_));
        // TC makes the answer.
        let end = if is_answer && run.arrival.door == Door::Xdp { End::LeaveToTc } else { end };
        self.counters.count(end);
        match end {
            End::NotOurs | End::LeaveToTc | End::Pass(_) => Verdict::Pass,
            End::Drop(_) => Verdict::Drop,
            End::Reset(_) => {
                let answer = answer::reset(&run.frame, packet.expect("a segment"));
                self.send_back(run, answer)
            }
            End::Reject(Reason::TtlExpired) => self.send_error(run, packet.expect("a packet"), Message::TimeExceeded),
            End::Reject(Reason::TooBig) => {
                self.send_error(run, packet.expect("a packet"), Message::TooBig { mtu: self.setup.mtu })
            }
            End::Reject(_) => self.send_error(run, packet.expect("a packet"), Message::PortUnreachable),
        }
    }

    /// Gives this tick's budget of ICMP errors back.
    pub fn renew_reject_budget(&mut self) {
        self.rejects = (0, 0);
    }

    /// Turns a packet into an ICMP error about it, unless such a packet is never answered, or too many were.
    fn send_error(&mut self, run: &mut Run<'_>, packet: &Packet, message: Message) -> Verdict {
        if answer::is_unanswerable(&run.frame, packet) {
            return self.conclude(run, None, End::Drop(Reason::AnswerForbidden));
        }
        if self.rejects.0 != run.now.tick {
            self.rejects = (run.now.tick, 0);
        }
        if self.rejects.1 >= self.setup.rejects_per_tick {
            return self.conclude(run, None, End::Drop(Reason::RejectLimit));
        }
        self.rejects.1 += 1;
        // By the net's device nothing comes but from addresses that are routed there.
        let is_nets = run.arrival.door == Door::Net;
        let source = self.setup.node.get(&Version::of(packet.src)).copied().filter(|_| !is_nets);
        let answer = answer::error(&run.frame, packet, message, source);
        self.send_back(run, answer)
    }

    /// The way that a packet came; at the net, as one that arrives by its device.
    fn send_back(&self, run: &mut Run<'_>, mut answer: Vec<u8>) -> Verdict {
        if run.arrival.door == Door::Net
            && let Some(addresses) = self.setup.net_addresses()
        {
            answer[..12].copy_from_slice(&addresses);
        }
        run.frame = answer;
        Verdict::Redirect
    }
}

/// The checksum of SCTP is over all of a packet: for other ports it can't be corrected in a fragment.
fn check_fragment(segment: &Segment, entry: &Entry) -> Result<(), End> {
    let ports = |tuple: Tuple| (tuple.src.port(), tuple.dst.port());
    let is_sctp = segment.key.protocol == protocol::SCTP && segment.fragment.is_some();
    if is_sctp && ports(segment.key) != ports(entry.to) { Err(End::Drop(Reason::SctpFragment)) } else { Ok(()) }
}

/// One packet on its way.
struct Run<'a> {
    arrival: &'a Arrival,
    now: Now,
    frame: Vec<u8>,
    record: TraceRecord,
}

impl Run<'_> {
    /// A trace is told that there is a flow.
    fn note_flow(&mut self, entry: &Entry) {
        self.record.step = trace_step::FLOW;
        self.record.backend = entry.backend;
    }
}

/// How a packet goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Exit {
    /// The network stack routes it.
    Stack,
    /// Out of the flow's next hop.
    Wire(NextHop),
    /// Out of a device, to a neighbour that the kernel resolves.
    Neighbour { ifindex: u32 },
    /// As one that arrives by the net's device.
    Net { addresses: [u8; 12] },
}

impl Exit {
    /// Whether it leaves this node.
    const fn is_forwarded(&self) -> bool {
        matches!(self, Self::Wire(_) | Self::Neighbour { .. })
    }

    /// The device; 0 where the stack chooses it.
    const fn ifindex(&self) -> u32 {
        match self {
            Self::Stack | Self::Net { .. } => 0,
            Self::Wire(next_hop) => next_hop.ifindex,
            Self::Neighbour { ifindex } => *ifindex,
        }
    }
}

fn note_end(record: &mut TraceRecord, end: End) -> Verdict {
    let (verdict, reason, action) = match end {
        End::NotOurs => (trace_verdict::NOT_OURS, 0, Verdict::Pass),
        End::LeaveToTc => (trace_verdict::LEFT_TO_TC, Reason::LeftToTc as u32, Verdict::Pass),
        End::Pass(reason) => (trace_verdict::PASSED, reason as u32, Verdict::Pass),
        End::Reject(reason) => (trace_verdict::REJECTED, reason as u32, Verdict::Pass),
        End::Reset(reason) => (trace_verdict::RESET, reason as u32, Verdict::Pass),
        End::Drop(reason) => (trace_verdict::DROPPED, reason as u32, Verdict::Drop),
    };
    record.verdict = verdict;
    record.reason = reason;
    action
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Several CPUs at once on the same flows: the tables are shared by all (katran 14, 155), and what one CPU does between two
//! steps of another costs no packet and sends none astray. The model knows one packet at a time, so it is not asked here.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use anyhow::{Context, Result, ensure};
use lb_common::{flow::protocol, verdict::Reason};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use shunt_tests::{
    packets::{
        Kernel, POD, Random, Rig, Room, Segment, UPLINK,
        node::{self, CALLER, HERE, NODE, OUTSIDE, THERE, pick},
        with_rig, with_rig_for,
    },
    reference::{Arrival, Counters, Door, Verdict, Version},
};

use crate::step::{ALL_PROTOCOLS, answer, end, first, next, source_port};

/// CPUs that take part.
const CPUS: usize = 2;
/// Reasons that nothing here may bring about.
const UNHEARD_OF: [Reason; 6] = [
    Reason::NoSourcePort,
    Reason::FlowInsertFailed,
    Reason::RewriteFailed,
    Reason::TableCorrupt,
    Reason::MapMissing,
    Reason::Malformed,
];

/// Does the work on all CPUs at once, each told its number, and gives what came of it.
fn at_once<T: Send>(rig: &Rig, work: impl Fn(&Kernel, usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    let (kernel, work) = (rig.kernel(), &work);
    let waiting = AtomicUsize::new(CPUS);
    let run = |cpu: usize| {
        let mut own = CpuSet::new();
        own.set(cpu)?;
        let stays = sched_setaffinity(Pid::from_raw(0), &own);
        waiting.fetch_sub(1, Ordering::SeqCst);
        while waiting.load(Ordering::SeqCst) != 0 {
            std::hint::spin_loop();
        }
        stays.context("the first CPUs are not ours")?;
        work(kernel, cpu)
    };
    thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = (0..CPUS).map(|cpu| scope.spawn(move || run(cpu))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}

/// What becomes of a packet.
fn pass(kernel: &Kernel, (door, ifindex): (Door, u32), packet: &Segment) -> Result<(Verdict, Vec<u8>)> {
    let arrival = Arrival { door, ifindex, frame: packet.build(), is_trace: false };
    let ran = kernel.run(&arrival)?.context("a frame that the kernel takes")?;
    Ok((ran.verdict, ran.frame))
}

fn is_unheard_of(counted: &Counters) -> Result<()> {
    let seen: Vec<&str> =
        UNHEARD_OF.iter().map(|reason| reason.as_str()).filter(|label| counted.reasons.contains_key(label)).collect();
    ensure!(seen.is_empty(), "{seen:?} in {counted}");
    Ok(())
}

/// Flows of different clients, begun at one moment, each want a port of a small range. Who loses one to another CPU finds
/// another; it is not turned away, nor do two share one.
#[test]
fn flows_that_begin_at_once_get_a_port_each_cilium_35010() -> Result<()> {
    const ROUNDS: u16 = 1_500;
    const FLOWS: u16 = 2;
    with_rig(node::setup, |rig| {
        rig.change(|setup| setup.source_ports = 50_000..=50_015)?;
        let setup = rig.model().setup.clone();
        for round in 0..ROUNDS {
            let version = Version::BOTH[usize::from(round % 2)];
            let protocol = ALL_PROTOCOLS[usize::from(round % 3)];
            let client = |cpu: usize, flow: u16| end(OUTSIDE, version, 10_000 + round * 8 + cpu as u16 * FLOWS + flow);
            let begun = at_once(rig, |kernel, cpu| {
                let begin = |flow| {
                    pass(kernel, (Door::Xdp, UPLINK), &first(protocol, client(cpu, flow), THERE.at_node(version)))
                };
                (0..FLOWS).map(begin).collect::<Result<Vec<_>>>()
            })?;
            let mut ports = BTreeMap::new();
            for (cpu, flows) in begun.into_iter().enumerate() {
                for (flow, (verdict, frame)) in (0..).zip(flows) {
                    ensure!(verdict == Verdict::Transmit, "round {round}: {verdict:?}");
                    let port = source_port(&frame, version);
                    let other = ports.insert(port, client(cpu, flow));
                    ensure!(other.is_none(), "round {round}: {port} is that of {other:?}, too");
                }
            }
            for (port, client) in ports {
                let reply = answer(protocol, THERE.backend(version), SocketAddr::new(pick(NODE, version), port));
                let (_, frame) = pass(rig.kernel(), (Door::Xdp, UPLINK), &reply)?;
                let expected = reply.between(THERE.at_node(version), client).build();
                ensure!(is_same_way(&frame, &expected, version), "{client} by {port}: {frame:02x?}");
            }
            is_unheard_of(&rig.unobserved()?)?;
            rig.restart(setup.clone())?;
        }
        Ok(())
    })
}

/// Whether two frames go from and to the same addresses and ports.
fn is_same_way(one: &[u8], other: &[u8], version: Version) -> bool {
    let names = if version == Version::V4 { 26..38 } else { 22..58 };
    one[names.clone()] == other[names]
}

/// A flow, and how its packets are named on either side of this node.
struct Known {
    protocol: u8,
    version: Version,
    /// The client's packets: door and device, the client's own name for them, and the backend's.
    there: ((Door, u32), [SocketAddr; 2], [SocketAddr; 2]),
    /// Where the backend's are translated.
    back: (Door, u32),
}

impl Known {
    fn begin(rig: &Rig, protocol: u8, version: Version, port: u16) -> Result<Vec<Self>> {
        let (outside, inside) = (end(OUTSIDE, version, port), end(CALLER, version, port));
        let ways = [
            (HERE, (Door::Xdp, UPLINK), outside, HERE.at_node(version), (Door::Egress, UPLINK)),
            (THERE, (Door::Xdp, UPLINK), outside, THERE.at_node(version), (Door::Ingress, UPLINK)),
            (HERE, (Door::Ingress, POD), inside, HERE.at_cluster_ip(version), (Door::Egress, POD)),
        ];
        let begin = |(service, at, client, frontend, back): (
            node::Service,
            (Door, u32),
            SocketAddr,
            SocketAddr,
            (Door, u32),
        )| {
            let (_, frame) = pass(rig.kernel(), at, &first(protocol, client, frontend))?;
            let own = if back.0 == Door::Egress { client.ip() } else { pick(NODE, version) };
            let own = SocketAddr::new(own, source_port(&frame, version));
            Ok(Self { protocol, version, there: (at, [client, frontend], [own, service.backend(version)]), back })
        };
        ways.into_iter().map(begin).collect()
    }

    /// One packet of any kind, either way; `number` chooses. Returns how often it was missed.
    ///
    /// A flow that has grown up, ended and begun again in between two looks at the tables is not found: an interrupt may give the
    /// other CPU the time. It is there the next time, and is never another's.
    fn go_on(&self, kernel: &Kernel, number: usize) -> Result<usize> {
        let (at, [client, frontend], [own, backend]) = self.there;
        let packet = |src, dst| match (self.protocol, number / 2 % 8) {
            (protocol::TCP, 0) => Segment::tcp(src, dst, 0x04),
            (protocol::TCP, 1) => Segment::tcp(src, dst, 0x11),
            (protocol::SCTP, 0) => Segment::sctp(src, dst, 6),
            (_, 2) => first(self.protocol, src, dst),
            (protocol::TCP, 3) if number.is_multiple_of(2) => answer(self.protocol, src, dst),
            _ => next(self.protocol, src, dst),
        };
        let (at, sent, expected) = if number.is_multiple_of(2) {
            (at, packet(client, frontend), packet(own, backend))
        } else {
            (self.back, packet(backend, own), packet(frontend, client))
        };
        let (_, mut frame) = pass(kernel, at, &sent)?;
        let is_missed = is_same_way(&frame, &sent.build(), self.version);
        if is_missed {
            (_, frame) = pass(kernel, at, &sent)?;
        }
        let is_right = is_same_way(&frame, &expected.build(), self.version);
        ensure!(is_right, "{:?}: {:02x?} became {frame:02x?}", self.there, sent.build());
        Ok(usize::from(is_missed))
    }
}

/// Whole lives of the same flows and of neighbouring ones, on all CPUs: they grow up, end, and begin again while others look.
#[test]
fn flows_of_all_cpus_are_never_mistaken_katran_14_155_cilium_47293() -> Result<()> {
    const PACKETS: usize = 60_000;
    const MOST_MISSED: usize = 2;
    with_rig(node::setup, |rig| {
        let mut flows = Vec::new();
        for version in Version::BOTH {
            for protocol in ALL_PROTOCOLS {
                for port in 40_000..40_004 {
                    flows.extend(Known::begin(rig, protocol, version, port)?);
                }
            }
        }
        at_once(rig, |kernel, cpu| {
            let mut random = Random::new(cpu as u64);
            let mut missed = 0;
            for number in 0..PACKETS {
                let flow = &flows[random.below(flows.len())];
                let went_on = flow.go_on(kernel, random.below(1 << 16));
                missed += went_on.with_context(|| format!("packet {number} of CPU {cpu}"))?;
            }
            ensure!(missed <= MOST_MISSED, "{missed} of {PACKETS} packets of CPU {cpu} were missed");
            Ok(())
        })?;
        is_unheard_of(&rig.unobserved()?)
    })
}

/// A table of one element, which one CPU holds while the other wants it: no entry, but every packet goes on.
#[test]
fn a_table_that_refuses_an_entry_costs_no_packet_cilium_35010() -> Result<()> {
    const TRIES: usize = 3_000;
    const PACKETS: u16 = 500;
    with_rig_for(Room::of(1), node::setup, |rig| {
        let version = Version::V4;
        for _ in 0..TRIES {
            at_once(rig, |kernel, cpu| {
                for port in 0..PACKETS {
                    let client = end(CALLER, version, 10_000 + port * CPUS as u16 + cpu as u16);
                    let syn = first(protocol::TCP, client, HERE.at_cluster_ip(version));
                    let (verdict, frame) = pass(kernel, (Door::Ingress, POD), &syn)?;
                    let expected = syn.between(client, HERE.backend(version)).build();
                    ensure!(verdict == Verdict::Pass && frame == expected, "{verdict:?}: {frame:02x?}");
                }
                Ok(())
            })?;
            if rig.unobserved()?.reasons.contains_key(Reason::FlowInsertFailed.as_str()) {
                return Ok(());
            }
        }
        anyhow::bail!("no entry was refused")
    })
}

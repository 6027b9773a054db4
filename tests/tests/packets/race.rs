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
use lb_common::{
    flow::{
        FlowState, protocol,
        tcp_flags::{ACK, FIN},
    },
    verdict::Reason,
};
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
    reference::{Arrival, Counters, Door, Entry, Tuple, Verdict, Version},
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
    let arrival = Arrival { door, ifindex, arrived_by: 0, frame: packet.build(), is_trace: false };
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
        rig.change(|setup| setup.source_ports = [Some(50_000..=50_015), None])?;
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
    /// A flow that has ended and begun again in another slot in between two looks at the table is not found: an interrupt may give the
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

/// Whole lives of the same flows and of neighbouring ones, on all CPUs: they are established, end, and begin again while others look.
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

/// Entries of a table in which all tuples have the same two sets.
const TWO_SETS: u32 = 8;

/// A table full of flows that live: no entry for a new one. It goes on without where its source is kept; else its reply would find
/// nobody.
#[test]
fn a_full_table_costs_no_packet_whose_source_is_kept_cilium_35010() -> Result<()> {
    with_rig_for(Room::of(TWO_SETS), node::setup, |rig| {
        let refused = Reason::FlowInsertFailed.as_str();
        for version in Version::BOTH {
            let frontend = HERE.at_cluster_ip(version);
            let (there, back) = ((Door::Ingress, POD), (Door::Egress, POD));
            for port in 10_000..10_000 + (TWO_SETS / 2) as u16 {
                let client = end(CALLER, version, port);
                pass(rig.kernel(), there, &first(protocol::TCP, client, frontend))?;
                pass(rig.kernel(), back, &answer(protocol::TCP, HERE.backend(version), client))?;
                pass(rig.kernel(), there, &next(protocol::TCP, client, frontend))?;
            }
            let before = rig.kernel_flows()?;
            let count =
                |rig: &Rig| Ok::<_, anyhow::Error>(rig.unobserved()?.reasons.get(refused).copied().unwrap_or(0));
            let counted = count(rig)?;
            let late = first(protocol::TCP, end(CALLER, version, 20_000), frontend);
            let (verdict, frame) = pass(rig.kernel(), there, &late)?;
            let expected = late.between(end(CALLER, version, 20_000), HERE.backend(version)).build();
            ensure!(verdict == Verdict::Pass && frame == expected, "{verdict:?}: {frame:02x?}");
            ensure!(count(rig)? == counted + 1, "{}", rig.unobserved()?);
            let outside = first(protocol::TCP, end(OUTSIDE, version, 20_000), THERE.at_node(version));
            let (verdict, frame) = pass(rig.kernel(), (Door::Xdp, UPLINK), &outside)?;
            ensure!(verdict == Verdict::Pass && frame == outside.build(), "XDP leaves it to TC: {verdict:?}");
            let (verdict, _) = pass(rig.kernel(), (Door::Ingress, UPLINK), &outside)?;
            ensure!(verdict == Verdict::Drop && count(rig)? == counted + 2, "{verdict:?}, {}", rig.unobserved()?);
            let tuples = |flows: BTreeMap<Tuple, Entry>| flows.into_keys().collect::<Vec<_>>();
            ensure!(tuples(rig.kernel_flows()?) == tuples(before), "those who live have been moved");
        }
        Ok(())
    })
}

/// Both ends' FINs on two CPUs at once: an hour it took until the flow was forgotten, where one of them was lost.
#[test]
fn a16_no_fin_is_lost_when_both_ends_close_at_once() -> Result<()> {
    const ROUNDS: u16 = 500;
    with_rig(node::setup, |rig| {
        let version = Version::V4;
        let frontend = HERE.at_cluster_ip(version);
        let (there, back) = ((Door::Ingress, POD), (Door::Egress, POD));
        for round in 0..ROUNDS {
            let client = end(CALLER, version, 10_000 + round);
            pass(rig.kernel(), there, &first(protocol::TCP, client, frontend))?;
            pass(rig.kernel(), back, &answer(protocol::TCP, HERE.backend(version), client))?;
            pass(rig.kernel(), there, &next(protocol::TCP, client, frontend))?;
            at_once(rig, |kernel, cpu| {
                let (at, fin) = if cpu == 0 {
                    (there, Segment::tcp(client, frontend, FIN | ACK))
                } else {
                    (back, Segment::tcp(HERE.backend(version), client, FIN | ACK))
                };
                pass(kernel, at, &fin)
            })?;
        }
        let open = rig.flows_in(&[FlowState::ESTABLISHED, FlowState::FIN_ORIGINAL, FlowState::FIN_REPLY])?;
        ensure!(open.is_empty(), "a FIN was lost of {open:?}");
        ensure!(rig.flows_in(&[FlowState::CLOSING])?.len() == 2 * usize::from(ROUNDS), "some flows are not there");
        Ok(())
    })
}

/// All tuples in two sets, and more flows than there are slots: each packet takes a slot from another flow, on two CPUs at once.
#[test]
fn two_cpus_on_two_sets_leave_a_sound_table() -> Result<()> {
    for version in Version::BOTH {
        with_rig_for(Room::of(TWO_SETS), node::setup, |rig| crowd_together(rig, version))
            .with_context(|| format!("{version:?}"))?;
    }
    Ok(())
}

fn crowd_together(rig: &mut Rig, version: Version) -> Result<()> {
    const ROUNDS: usize = 20;
    const PACKETS: usize = 4_000;
    rig.change(|setup| setup.source_ports = [Some(50_000..=50_007), None])?;
    for round in 0..ROUNDS {
        at_once(rig, |kernel, cpu| {
            let mut random = Random::new((round * CPUS + cpu) as u64);
            (0..PACKETS).try_for_each(|number| {
                crowd(kernel, version, &mut random).with_context(|| format!("packet {number} of CPU {cpu}"))
            })
        })?;
        // Reads every entry, and fails where a tuple stands twice or a slot stays claimed.
        let flows = rig.kernel_flows()?;
        is_whole(&flows)?;
        rig.wait(9)?;
        make_whole(rig, &flows)?;
    }
    let counted = rig.unobserved()?;
    let unheard_of = [Reason::RewriteFailed, Reason::TableCorrupt, Reason::MapMissing, Reason::Malformed];
    ensure!(unheard_of.iter().all(|reason| !counted.reasons.contains_key(reason.as_str())), "{counted}");
    Ok(())
}

/// One packet of a few clients and backends, either way, which must leave as it came or as it should.
fn crowd(kernel: &Kernel, version: Version, random: &mut Random) -> Result<()> {
    let protocol = random.pick(&ALL_PROTOCOLS);
    let client = end(OUTSIDE, version, 40_000 + random.below(6) as u16);
    let service = random.pick(&[HERE, THERE]);
    let (frontend, backend) = (service.at_node(version), service.backend(version));
    let packet = |random: &mut Random, src, dst| match random.below(4) {
        0 => first(protocol, src, dst),
        1 if protocol == protocol::TCP => Segment::tcp(src, dst, FIN | ACK),
        _ => next(protocol, src, dst),
    };
    if random.chance(60) {
        let sent = packet(random, client, frontend);
        let (verdict, frame) = pass(kernel, (Door::Xdp, UPLINK), &sent)?;
        let is_untouched = frame == sent.build();
        if service.port == HERE.port {
            let expected = sent.between(client, backend).build();
            ensure!(verdict == Verdict::Pass && is_same_way(&frame, &expected, version), "{verdict:?} {frame:02x?}");
        } else if !is_untouched {
            let node = SocketAddr::new(pick(NODE, version), source_port(&frame, version));
            ensure!((50_000..50_008).contains(&node.port()), "from {node}");
            let expected = sent.between(node, backend).build();
            ensure!(
                verdict == Verdict::Transmit && is_same_way(&frame, &expected, version),
                "{verdict:?} {frame:02x?}"
            );
        }
        return Ok(());
    }
    let (at, own) = if service.port == HERE.port {
        ((Door::Egress, UPLINK), client)
    } else {
        ((Door::Xdp, UPLINK), end(NODE, version, 50_000 + random.below(8) as u16))
    };
    let sent = answer(protocol, backend, own);
    let (_, frame) = pass(kernel, at, &sent)?;
    let is_right = |client| is_same_way(&frame, &sent.clone().between(frontend, client).build(), version);
    let is_some_clients = (40_000..40_006).any(|port| is_right(end(OUTSIDE, version, port)));
    let is_own = service.port == THERE.port || is_right(client);
    ensure!(frame == sent.build() || is_some_clients && is_own, "{frame:02x?}");
    Ok(())
}

/// No reply tuple is that of two flows: where two entries of clients lead to one, it is only one's own.
fn is_whole(flows: &BTreeMap<Tuple, Entry>) -> Result<()> {
    for (tuple, entry) in flows {
        ensure!(is_of_one_service(tuple, entry), "torn: {tuple:?} {entry:?}");
    }
    let mut owners: BTreeMap<Tuple, Tuple> = BTreeMap::new();
    for (tuple, entry) in flows.iter().filter(|(_, entry)| !entry.is_reply) {
        let reply = entry.to.reversed();
        let owns = flows.get(&reply).is_some_and(|reply| reply.to == tuple.reversed());
        if owns && let Some(other) = owners.insert(reply, *tuple) {
            anyhow::bail!("{reply:?} belongs to both {tuple:?} and {other:?}");
        }
    }
    Ok(())
}

/// Whether an entry's words are all of one Service.
fn is_of_one_service(tuple: &Tuple, entry: &Entry) -> bool {
    let version = Version::of(tuple.src.ip());
    [HERE, THERE].iter().any(|service| {
        let (frontend, backend) = (service.at_node(version), service.backend(version));
        if entry.is_reply {
            tuple.src == backend && entry.to.src == frontend
        } else {
            tuple.dst == frontend && entry.to.dst == backend
        }
    })
}

/// A lost half is made again by the next packet that looks after it, or the flow is decided anew, or there is no room.
fn make_whole(rig: &Rig, flows: &BTreeMap<Tuple, Entry>) -> Result<()> {
    for (tuple, _) in flows.iter().filter(|(_, entry)| !entry.is_reply) {
        pass(rig.kernel(), (Door::Xdp, UPLINK), &next(tuple.protocol, tuple.src, tuple.dst))?;
        let now = rig.kernel_flows()?;
        if let Some(entry) = now.get(tuple) {
            let reply = now.get(&entry.to.reversed());
            let is_there = reply.is_some_and(|reply| reply.to == tuple.reversed());
            let is_full = now.len() == TWO_SETS as usize;
            ensure!(is_there || is_full, "{tuple:?} has no other half, but {reply:?}");
        }
    }
    Ok(())
}

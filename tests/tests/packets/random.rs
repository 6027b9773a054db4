// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random packets, 100,000 of them or as many as `SHUNT_PACKETS` says: kernel and model must agree about each.

use std::{
    collections::BTreeMap,
    env,
    io::{Write, stderr},
    str::FromStr,
};

use anyhow::{Context, Result, ensure};
use lb_common::{flow::protocol, verdict::Reason};
use shunt_tests::{
    packets::{Random, Rig},
    reference::{Arrival, Door, Outcome, Verdict, is_sound},
};

use crate::workers::share;

/// What came of packets, and how often.
type Seen = BTreeMap<String, u64>;

const PACKETS: u64 = 100_000;
const SEED: u64 = 20_261_123;
/// Packets on one node, before the next.
const SEGMENT: u64 = 500;
/// Packets from one comparison of the flow tables to the next.
const COMPARISON: u64 = 50;

/// Reasons that no packet can bring about.
const IMPOSSIBLE: [Reason; 8] = [
    Reason::RejectFailed,
    Reason::FlowInsertFailed,
    Reason::RewriteFailed,
    Reason::MapMissing,
    // Of sockets.
    Reason::LoopbackSource,
    // Of routes that the network of these tests has not.
    Reason::RouteRefuses,
    Reason::ForwardingOff,
    Reason::RouteWraps,
];

/// Kinds of flows that must be left at the ends, and of packets that must be among those translated.
const KINDS: [&str; 17] = [
    "half-open flow",
    "established flow",
    "fin-original flow",
    "fin-reply flow",
    "closing flow",
    "reset flow",
    "unreplied flow",
    "replied flow",
    "stream flow",
    "net flow",
    "forwarded net flow",
    "translated ICMP error",
    "translated options",
    "translated extension header",
    "translated fragment",
    "translated SCTP",
    "translated tag",
];

#[test]
fn random_packets_fare_as_the_model_says() -> Result<()> {
    let packets = setting("SHUNT_PACKETS", PACKETS)?;
    let seed = setting("SHUNT_SEED", SEED)?;
    let segments = usize::try_from(packets.div_ceil(SEGMENT))?;
    // Each segment can be run alone, so it does not matter who runs it.
    let shares: Vec<Seen> = share(segments, |rig, segment, seen| {
        let segment = segment as u64;
        let (seed, count) = (seed + segment, SEGMENT.min(packets - segment * SEGMENT));
        run(rig, seed, count, seen)
            .with_context(|| format!("SHUNT_SEED={seed} SHUNT_PACKETS={count} brings this about again"))
    })?;
    let mut seen = Seen::new();
    for (what, count) in shares.into_iter().flatten() {
        *seen.entry(what).or_default() += count;
    }
    let words: Vec<String> = seen.iter().map(|(what, count)| format!("{what} {count}")).collect();
    writeln!(stderr(), "{packets} random packets from seed {seed}: {}", words.join(", "))?;
    if packets >= PACKETS {
        let all = Reason::ALL.iter().filter(|reason| !IMPOSSIBLE.contains(reason)).map(|reason| reason.as_str());
        let missed: Vec<&str> = all.chain(KINDS).filter(|&label| !seen.contains_key(label)).collect();
        ensure!(missed.is_empty(), "the generator has missed {missed:?}");
    }
    Ok(())
}

/// One node, with packets and events.
fn run(rig: &mut Rig, seed: u64, packets: u64, seen: &mut Seen) -> Result<()> {
    let mut random = Random::new(seed);
    let setup = random.setup(&rig.network);
    rig.restart(setup)?;
    for number in 1..=packets {
        event(rig, &mut random).with_context(|| format!("event before packet {number}"))?;
        let arrival = random.arrival(rig.model());
        let Some(outcome) = rig.try_send(&arrival).with_context(|| format!("packet {number}"))? else {
            count(seen, "untested");
            continue;
        };
        let stays_sound = !is_sound(&arrival.frame) || is_sound(&outcome.frame) || outcome.frame == arrival.frame;
        ensure!(stays_sound, "packet {number} has lost its checksums: {arrival:02x?}\n{outcome}");
        note(seen, &arrival, &outcome);
        if number % COMPARISON == 0 || number == packets {
            rig.compare_flows().with_context(|| format!("after packet {number}"))?;
        }
    }
    for flow in rig.model().flows.0.values() {
        count(seen, &format!("{} flow", flow.state.as_str()));
        if flow.is_nets {
            count(seen, if flow.is_snat { "forwarded net flow" } else { "net flow" });
        }
    }
    Ok(())
}

/// Now and then something happens between packets.
fn event(rig: &mut Rig, random: &mut Random) -> Result<()> {
    match random.below(100) {
        0 => rig.wait(random.pick(&[1, 4, 200])),
        1 => rig.change(|setup| random.change(setup)),
        2..4 => {
            let flows = &rig.model().flows.0;
            let victim = flows.keys().nth(random.below(flows.len().max(1))).copied();
            victim.map_or(Ok(()), |victim| rig.evict(victim))
        }
        4 => {
            let datagrams = &rig.model().fragments.0;
            let victim = datagrams.keys().nth(random.below(datagrams.len().max(1))).copied();
            victim.map_or(Ok(()), |victim| rig.evict_fragment(victim))
        }
        5 => {
            let affinities = &rig.model().affinities.0;
            let victim = affinities.keys().nth(random.below(affinities.len().max(1))).copied();
            victim.map_or(Ok(()), |victim| rig.evict_affinity(victim))
        }
        _ => Ok(()),
    }
}

fn note(seen: &mut Seen, arrival: &Arrival, outcome: &Outcome) {
    if arrival.is_trace {
        return count(seen, "trace");
    }
    outcome.moved.reasons.keys().for_each(|label| count(seen, label));
    if !outcome.moved.backends.is_empty() && outcome.frame != arrival.frame {
        let verdict = match outcome.verdict {
            Verdict::Pass => "translated",
            Verdict::Transmit | Verdict::Redirect => "forwarded",
            Verdict::Drop => "dropped",
        };
        count(seen, &format!("{verdict} by {}", if arrival.door == Door::Xdp { "XDP" } else { "TC" }));
        count(seen, &format!("translated {}", kind(&arrival.frame)));
    }
}

/// What a frame is, at first glance.
fn kind(frame: &[u8]) -> &'static str {
    let (ethertype, ip) = (&frame[12..14], &frame[14..]);
    match ethertype {
        [0x08, 0x00] if ip[0] != 0x45 => "options",
        [0x08, 0x00] if ip[6] & 0x3f != 0 || ip[7] != 0 => "fragment",
        [0x08, 0x00] => of_protocol(ip[9]),
        [0x86, 0xdd] => of_protocol(ip[6]),
        _ => "tag",
    }
}

fn of_protocol(number: u8) -> &'static str {
    match number {
        protocol::TCP => "TCP",
        protocol::UDP => "UDP",
        protocol::SCTP => "SCTP",
        protocol::ICMP | protocol::ICMPV6 => "ICMP error",
        44 => "fragment",
        _ => "extension header",
    }
}

fn count(seen: &mut Seen, what: &str) {
    *seen.entry(what.to_owned()).or_default() += 1;
}

fn setting<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(name: &str, default: T) -> Result<T> {
    match env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text}")),
        Err(_) => Ok(default),
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! One flood: flows are established, first packets rush in while backends are exchanged, and every flow sends again.

use std::{net::SocketAddr, ops::RangeInclusive, time::Duration};

use anyhow::{Result, ensure};
use bytemuck::Zeroable;
use lb_common::{
    bench::{Script, Step},
    flow::{FlowState, protocol, tcp_flags::SYN},
    verdict::Reason,
};
use shunt_tests::{
    packets::{Rig, Room, Segment, Target, UPLINK, Wrapper, template, with_rig_for},
    reference::{Door, Verdict, Version},
};

use crate::{
    living::Living,
    report::Row,
    scene::{self, Served},
};

/// SYNs of one family before the next one's turn.
const TURN: u32 = 50_000;
/// Of the flows that must be left as they were.
pub const SHALL: f64 = 0.99;

/// States of flows whose client has spoken again after an answer.
const ESTABLISHED: [FlowState; 3] = [FlowState::ESTABLISHED, FlowState::REPLIED, FlowState::STREAM];
/// States of flows that have only begun.
const PENDING: [FlowState; 2] = [FlowState::HALF_OPEN, FlowState::UNREPLIED];

/// What to do.
#[derive(Clone)]
pub struct Plan {
    /// For people.
    pub name: &'static str,
    /// Of living flows and of the flood, half and half.
    pub versions: &'static [Version],
    /// Living flows altogether.
    pub flows: u32,
    /// SYNs of each family.
    pub syns: u32,
    /// The node's own for translated flows: to one backend no more go at a time.
    pub source_ports: RangeInclusive<u16>,
}

/// Does it.
pub fn measure(plan: &Plan) -> Result<Row> {
    with_rig_for(
        Room::DEFAULT,
        |network| scene::setup(network, plan.source_ports.clone()),
        |rig| {
            let living = establish(rig, plan)?;
            let all = living.len();
            let established = count(rig, &living)?;
            ensure!(established == all, "before the flood only {established} of {all} flows had their entries");
            let mut wrapper = Wrapper::load()?;
            let mut floods: Vec<_> = plan.versions.iter().map(|&version| Flood::new(version)).collect();
            pour(rig, &mut wrapper, Target::Doors, &mut floods, plan.syns / 2)?;
            rig.change(|setup| scene::serve(setup, Served::New))?;
            let rest = plan.syns - plan.syns / 2;
            let time = pour(rig, &mut wrapper, Target::Doors, &mut floods, rest)?;
            let floor = pour(rig, &mut wrapper, Target::Floor, &mut floods, rest)?;

            let refused = rig.counters()?.reasons.get(Reason::NoSourcePort.as_str()).copied().unwrap_or_default();

            let with_entries = count(rig, &living)?;
            let [established, pending] =
                [rig.flows_in(&ESTABLISHED)?, rig.flows_in(&PENDING)?].map(|flows| flows.len());
            let mut kept = 0;
            for flow in &living {
                kept += usize::from(flow.goes_on(rig)?);
            }
            Ok(Row {
                name: plan.name,
                flows: all,
                with_entries: with_entries as f64 / all as f64,
                kept: kept as f64 / all as f64,
                established_entries: established,
                pending_entries: pending,
                refused: refused as f64 / (f64::from(plan.syns) * floods.len() as f64),
                syn_ns: time.saturating_sub(floor).as_nanos() as f64 / (f64::from(rest) * floods.len() as f64),
            })
        },
    )
}

/// Flows of all families, half TCP and half UDP.
fn establish(rig: &mut Rig, plan: &Plan) -> Result<Vec<Living>> {
    let mut living = Vec::new();
    let kinds: Vec<_> =
        plan.versions.iter().flat_map(|&version| [(version, protocol::TCP), (version, protocol::UDP)]).collect();
    for (version, protocol) in &kinds {
        for number in 0..plan.flows / kinds.len() as u32 {
            living.push(Living::establish(rig, *version, *protocol, number)?);
        }
    }
    Ok(living)
}

fn count(rig: &Rig, living: &[Living]) -> Result<usize> {
    let established = rig.flows_in(&ESTABLISHED)?;
    Ok(living.iter().filter(|flow| flow.has_entries(&established)).count())
}

/// First packets of one family, no two of one flow.
struct Flood {
    version: Version,
    script: Script,
}

impl Flood {
    fn new(version: Version) -> Self {
        let address = match version {
            Version::V4 => "100.96.0.0",
            Version::V6 => "2001:db8:c:1::",
        };
        // The lower bits are free for the number of the flow.
        let client = SocketAddr::new(address.parse().expect("an address"), 0x4000);
        let frame = template(&Segment::tcp(client, scene::frontend(version), SYN));
        let mut script: Script = Zeroable::zeroed();
        script.steps[0] = Step { ends_flow: 1, ..Step::new(frame, protocol::TCP, 0) };
        Self { version, script: Script { count: 1, mask: (1 << 22) - 1, stride: 1, ifindex: UPLINK, ..script } }
    }
}

/// So many of each to a target, in turns. Gives the CPU time of all.
fn pour(rig: &Rig, wrapper: &mut Wrapper, target: Target, floods: &mut [Flood], syns: u32) -> Result<Duration> {
    wrapper.aim(rig.object(), target)?;
    let mut time = Duration::ZERO;
    let mut left = syns;
    while left > 0 {
        let turn = left.min(TURN);
        for flood in &mut *floods {
            let ran = wrapper.run(Door::Xdp, flood.version, &flood.script, turn)?;
            // Where no source port is free, a SYN is dropped.
            let is_fine = target == Target::Floor || matches!(ran.verdict, Some(Verdict::Transmit | Verdict::Drop));
            ensure!(is_fine, "{:?} within the flood", ran.verdict);
            flood.script.counter += turn;
            time += ran.time;
        }
        left -= turn;
    }
    Ok(time)
}

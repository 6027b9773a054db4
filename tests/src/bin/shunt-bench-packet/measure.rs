// SPDX-License-Identifier: MIT OR Apache-2.0
//! Measuring: all cases in turns, on one core. Each case first proves that it does what it claims to measure.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lb_common::{bench, maps};
use shunt_tests::{
    packets::{Rig, Room, Target, Wrapper, sizes, with_rig_for},
    reference::Outcome,
};

use crate::{
    case::{Case, Flows},
    report::Report,
    scene,
};

/// Flows that are looked at before and after the measurement.
const SAMPLES: u32 = 256;

/// Measures all cases in turns.
pub fn measure(rounds: u32) -> Result<Report> {
    with_rig_for(Room::of(bench::FLOWS), scene::setup, |rig| {
        let mut cases = crate::case::all();
        // All through kernel and model first: of what the wrapper sends, the model knows nothing.
        let outcomes = cases.iter_mut().map(|case| scene::begin(rig, case)).collect::<Result<Vec<_>>>()?;
        rig.compare_flows()?;
        let mut wrapper = Wrapper::load()?;
        for (case, outcome) in cases.iter_mut().zip(&outcomes) {
            prepare(rig, &mut wrapper, case, outcome).with_context(|| format!("before `{}`", case.name))?;
        }
        wrapper.grow_flows(rig.object())?;
        wrapper.copy_flows(rig.object())?;
        let before = cases.iter().map(|case| sample(rig, &mut wrapper, case)).collect::<Result<Vec<_>>>()?;
        let times = take_turns(rig, &mut wrapper, &mut cases, rounds)?;
        for (case, before) in cases.iter().zip(&before) {
            let after = sample(rig, &mut wrapper, case)?;
            ensure!(after == *before, "{}: packets fare otherwise than before the measurement", case.name);
        }
        let memory = [maps::FLOWS_V4, maps::FLOWS_V6].map(|map| Ok((map, rig.object().memory(map)?)));
        let memory = memory.into_iter().collect::<Result<Vec<_>>>()?;
        Ok(Report::new(&cases, &times, sizes()?, memory))
    })
}

/// The wrapper must write the very packet that kernel and model have seen, and the same must come of it. Then all flows
/// of the case begin. Of the other programs there is nothing to prove yet.
fn prepare(rig: &Rig, wrapper: &mut Wrapper, case: &mut Case, outcome: &Outcome) -> Result<()> {
    if case.target != Target::Xdp {
        return Ok(());
    }
    wrapper.aim(rig.object(), case.target)?;
    let ran = wrapper.run(case.version, &case.template, 1)?;
    ensure!(ran.action == case.action, "action {}, not {}", ran.action, case.action);
    ensure!(ran.frame == outcome.frame, "{:02x?}, not {:02x?}", ran.frame, outcome.frame);
    match case.flows {
        Flows::One => {}
        Flows::Many(count) => {
            for opening in &case.opening {
                wrapper.run(case.version, opening, count)?;
            }
        }
        // The first has begun just now.
        Flows::New => case.template.counter = 1,
    }
    Ok(())
}

/// Nanoseconds per packet, by case and round.
fn take_turns(rig: &Rig, wrapper: &mut Wrapper, cases: &mut [Case], rounds: u32) -> Result<Vec<Vec<f64>>> {
    let mut times = vec![Vec::new(); cases.len()];
    // One round more: the first warms up.
    for round in 0..=rounds {
        for (case, times) in cases.iter_mut().zip(&mut times) {
            wrapper.aim(rig.object(), case.target)?;
            let ran = wrapper.run(case.version, &case.template, case.packets)?;
            ensure!(ran.action == case.action, "{}: action {} in round {round}", case.name, ran.action);
            if round > 0 {
                times.push(per_packet(ran.time, case.packets));
            }
            if case.flows == Flows::New {
                case.template.counter += case.packets;
            }
        }
    }
    Ok(times)
}

/// What comes of packets of flows spread over all of the case, each proven sound; none where flows don't stay.
fn sample(rig: &Rig, wrapper: &mut Wrapper, case: &Case) -> Result<Vec<Vec<u8>>> {
    let count = match case.flows {
        Flows::One => 1,
        Flows::Many(count) => count,
        Flows::New => return Ok(Vec::new()),
    };
    wrapper.aim(rig.object(), case.target)?;
    let flows = (0..count).step_by((count / SAMPLES).max(1) as usize);
    flows
        .map(|flow| {
            let ran = wrapper.run(case.version, &case.at(flow), 1)?;
            case.check(&ran).with_context(|| format!("{}, flow {flow}", case.name))?;
            Ok(ran.frame)
        })
        .collect()
}

fn per_packet(time: Duration, packets: u32) -> f64 {
    time.as_nanos() as f64 / f64::from(packets)
}

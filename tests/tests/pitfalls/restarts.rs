// SPDX-License-Identifier: MIT OR Apache-2.0
//! Flows that live while agents come and go.

use std::{
    panic::resume_unwind,
    sync::atomic::{AtomicBool, Ordering},
    thread::{self, sleep},
    time::Duration,
};

use anyhow::{Result, ensure};
use serde_json::json;
use shunt_tests::{
    load::Protocol,
    world::{Options, World},
};

use crate::service::{ALL, Flow, NAME, begin, service, wait_to_meet_by_all_ways};

const PAUSE: Duration = Duration::from_millis(300);
/// By each way.
const FLOWS: usize = 3;

/// Ends both agents and starts new ones, after a crash and after SIGTERM; with other flags if they are told to grow.
fn restart(world: &mut World, grows: bool) -> Result<()> {
    for (is_killed, size) in [(true, "200000"), (false, "300000")] {
        for node in world.nodes_mut() {
            if is_killed {
                node.agent_mut().kill()?;
            } else {
                ensure!(node.agent_mut().terminate()?.success());
            }
        }
        sleep(PAUSE);
        if grows {
            for node in world.nodes_mut() {
                ["--max-frontends", "--max-backends", "--max-sockets"]
                    .iter()
                    .for_each(|flag| node.set_flag(flag, size));
            }
        }
        world.start_agents()?;
        sleep(PAUSE);
    }
    Ok(())
}

/// Asks all flows in turn until told to end; returns how often. Each must be answered every time, by the same server.
fn go_on(flows: &mut [Flow], is_over: &AtomicBool) -> Result<usize> {
    let mut rounds = 0;
    while !is_over.load(Ordering::Relaxed) {
        flows.iter_mut().try_for_each(Flow::is_the_same)?;
        rounds += 1;
    }
    Ok(rounds)
}

/// Threads cilium 29667 (entries whose backend is on another node), kubernetes 139628, 126130 and 122740 (UDP), and kubernetes
/// 75360 (everything, for seconds): flows that live go on while the agent is away, and when it is back. A flow that is decided
/// anew would get another backend most often: only one served when they began, now three do.
fn established_flows_outlive_agents(options: Options, grows: bool) -> Result<()> {
    let mut world = World::with_echoes(options, &[])?;
    world.put([service(NAME, 0, &json!({}))].into_iter().chain(world.slices(NAME, &["web-1"])))?;
    wait_to_meet_by_all_ways(&world, 0, &["web-1"])?;
    let mut flows = begin(&world, 0, Protocol::Tcp, FLOWS)?;
    flows.extend(begin(&world, 0, Protocol::Udp, FLOWS)?);
    world.put(world.slices(NAME, &ALL))?;
    wait_to_meet_by_all_ways(&world, 0, &ALL)?;
    let is_over = AtomicBool::new(false);
    let rounds = thread::scope(|scope| {
        let asking = scope.spawn(|| go_on(&mut flows, &is_over));
        let restarted = restart(&mut world, grows);
        is_over.store(true, Ordering::Relaxed);
        let rounds = asking.join().unwrap_or_else(|panic| resume_unwind(panic));
        restarted.and(rounds)
    })?;
    println!("{} flows were asked {rounds} times each", flows.len());
    ensure!(rounds > 10, "{rounds} rounds");
    flows.iter_mut().try_for_each(Flow::is_the_same)?;
    wait_to_meet_by_all_ways(&world, 0, &ALL)
}

#[test]
fn pitfalls_1_9_24_established_flows_outlive_agents_by_tc() -> Result<()> {
    established_flows_outlive_agents(Options::TC, false)
}

#[test]
fn pitfalls_1_9_24_established_flows_outlive_agents_with_xdp() -> Result<()> {
    established_flows_outlive_agents(Options::XDP, false)
}

#[test]
fn established_flows_outlive_maps_that_grow() -> Result<()> {
    established_flows_outlive_agents(Options::XDP, true)
}

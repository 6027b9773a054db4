// SPDX-License-Identifier: MIT OR Apache-2.0
//! UDP flows of an endpoint that a Service has lost, or that has stopped to serve while it is still listed.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use shunt_tests::{
    load::Protocol,
    world::{Options, World, wait_until},
};

use crate::service::{Flow, LIMIT, NAME, begin, service, wait_to_meet_by_all_ways};

/// Another Service with the same endpoint.
const OTHER: &str = "store";

/// Waits until all flows are answered by that server.
fn wait_to_follow(flows: &mut [Flow], server: &str) -> Result<()> {
    flows.iter_mut().try_for_each(|flow| {
        wait_until(&format!("a flow following to {server}"), LIMIT, || {
            Ok(flow.ask().is_ok_and(|answer| answer.server == server))
        })
    })
}

fn conditions(ready: bool, serving: bool, terminating: bool) -> Value {
    json!({ "conditions": { "ready": ready, "serving": serving, "terminating": terminating } })
}

/// Thread cilium 27726: an endpoint that one Service has lost and another still has is gone for the flows of the first, and for
/// no others. Rule 59: so is one that stays in the slice and does not serve any more; one that terminates and still serves
/// keeps its flows.
fn flows_leave_what_their_service_has_lost(options: Options) -> Result<()> {
    let world = World::with_echoes(options, &[])?;
    for (name, number) in [(NAME, 0), (OTHER, 1)] {
        world.put([service(name, number, &json!({}))].into_iter().chain(world.slices(name, &["web-1"])))?;
        wait_to_meet_by_all_ways(&world, number, &["web-1"])?;
    }
    let mut flows = begin(&world, 0, Protocol::Udp, 1)?;
    let mut others = begin(&world, 1, Protocol::Udp, 1)?;
    for server in ["web-2", "web-1", "web-3"] {
        world.put(world.slices(NAME, &[server]))?;
        wait_to_follow(&mut flows, server)?;
        others.iter_mut().try_for_each(Flow::is_the_same)?;
    }

    for is_terminating in [false, true] {
        let gone = ("web-3", conditions(false, false, is_terminating));
        world.put(world.patched_slices(NAME, &[gone, ("web-2", json!({}))]))?;
        wait_to_follow(&mut flows, "web-2")?;
        let back = [("web-3", json!({})), ("web-2", conditions(false, false, is_terminating))];
        world.put(world.patched_slices(NAME, &back))?;
        wait_to_follow(&mut flows, "web-3")?;
    }
    let draining = ("web-3", conditions(false, true, true));
    world.put(world.patched_slices(NAME, &[draining, ("web-2", json!({}))]))?;
    wait_to_meet_by_all_ways(&world, 0, &["web-2"])?;
    for flow in &mut flows {
        let answer = flow.ask()?;
        ensure!(answer.server == "web-3", "{answer:?} although the endpoint serves");
    }
    others.iter_mut().try_for_each(Flow::is_the_same)
}

#[test]
fn pitfall_3_rule_59_udp_flows_leave_what_their_service_has_lost_by_tc() -> Result<()> {
    flows_leave_what_their_service_has_lost(Options::TC)
}

#[test]
fn pitfall_3_rule_59_udp_flows_leave_what_their_service_has_lost_with_xdp() -> Result<()> {
    flows_leave_what_their_service_has_lost(Options::XDP)
}

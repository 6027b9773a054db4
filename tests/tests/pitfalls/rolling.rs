// SPDX-License-Identifier: MIT OR Apache-2.0
//! Rolling updates of a Service whose external policy is Local.

use std::{
    net::SocketAddr,
    panic::resume_unwind,
    sync::atomic::{AtomicBool, Ordering},
    thread::{self, sleep},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use shunt_tests::{
    load::{
        http,
        talk::{self, Outcome},
    },
    world::{Echo, Family, LinkKind, Options, World, for_each_kind, wait_for, wait_until},
};

use crate::service::{LIMIT, NAME, node_port, service};

const HEALTH_PORT: u16 = 32_061;
const SUCCESSOR: &str = "web-4";
/// How long one answer may take, so that there are several within [`LIMIT`].
const ONE_ANSWER: Duration = Duration::from_secs(2);
/// Time for some new flows.
const PAUSE: Duration = Duration::from_millis(300);

/// Waits until a load balancer would hear from node-a that it has so many endpoints, by both families.
fn wait_for_health(world: &World, count: usize) -> Result<()> {
    let status = if count > 0 { 200 } else { 503 };
    for family in Family::BOTH {
        let to = SocketAddr::new(world.node("node-a").address(family), HEALTH_PORT);
        let mut seen = String::new();
        let heard = wait_until(&format!("{to} saying {status} and {count}"), LIMIT, || {
            let answer = world.outside().enter(|| http::get(to, "/", ONE_ANSWER))?;
            seen = format!("{answer:?}");
            let wanted = format!("\"localEndpoints\": {count},");
            let is_wanted = |answer: http::Response| {
                answer.status == status && String::from_utf8_lossy(&answer.body).contains(&wanted)
            };
            Ok(answer.is_ok_and(is_wanted))
        });
        heard.with_context(|| format!("{seen}\n{}", world.node("node-a").agent().log_tail()))?;
    }
    Ok(())
}

fn endpoints(world: &World, pods: &[(&str, Value)]) -> Result<()> {
    world.put(world.patched_slices(NAME, pods))
}

/// node-a's only pod is replaced as a Deployment does it: at every step new flows are served here.
fn roll(world: &World) -> Result<()> {
    let ready = || json!({});
    let starting = || json!({ "conditions": { "ready": false, "serving": false, "terminating": false } });
    let terminating = || json!({ "conditions": { "ready": false, "serving": true, "terminating": true } });
    let elsewhere = ("web-2", ready());
    // Where new ones should go elsewhere, who comes all the same is still served.
    endpoints(world, &[("web-1", terminating()), (SUCCESSOR, starting()), elsewhere.clone()])?;
    wait_for_health(world, 0)?;
    sleep(PAUSE);
    endpoints(world, &[("web-1", terminating()), (SUCCESSOR, ready()), elsewhere.clone()])?;
    wait_for_health(world, 1)?;
    sleep(PAUSE);
    endpoints(world, &[(SUCCESSOR, ready()), elsewhere.clone()])?;
    sleep(PAUSE);
    endpoints(world, &[(SUCCESSOR, terminating()), elsewhere])?;
    wait_for_health(world, 0)?;
    sleep(PAUSE);
    Ok(())
}

/// Threads cilium 32815 and kubernetes 85643: no new flow is dropped while the last pod of a node is replaced, and load balancers
/// are told before it is.
fn rolling_update(options: Options) -> Result<()> {
    let mut world = World::with_echoes(options, &[])?;
    world.add_pod(SUCCESSOR, "node-a", 14, LinkKind::Bridged)?;
    let echo = Echo::start(world.pod(SUCCESSOR).namespace(), SUCCESSOR)?;
    world.pod_mut(SUCCESSOR).run(echo);
    let spec = json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": HEALTH_PORT });
    world.put([service(NAME, 0, &spec)].into_iter().chain(world.slices(NAME, &["web-1", "web-2"])))?;
    let world = &world;
    let to = |family| SocketAddr::new(world.node("node-a").address(family), node_port(0));
    for_each_kind(|protocol, family| {
        wait_for(world.outside(), protocol, to(family), &Outcome::Answered("web-1".to_owned()))
    })?;
    wait_for_health(world, 1)?;

    let is_over = AtomicBool::new(false);
    let load = || {
        for_each_kind(|protocol, family| {
            world.outside().enter(|| -> Result<()> {
                let mut count = 0;
                while !is_over.load(Ordering::Relaxed) {
                    let answer = talk::ask(protocol, to(family), LIMIT / 4).with_context(|| format!("flow {count}"))?;
                    ensure!(["web-1", SUCCESSOR].contains(&&*answer.server), "{answer:?}");
                    count += 1;
                }
                ensure!(count > 10, "{count} flows");
                Ok(())
            })?
        })
    };
    thread::scope(|scope| {
        let load = scope.spawn(load);
        let rolled = roll(world);
        is_over.store(true, Ordering::Relaxed);
        rolled.and(load.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })?;
    // It goes at last: that was told above.
    world.put(world.slices(NAME, &["web-2"]))?;
    for_each_kind(|protocol, family| wait_for(world.outside(), protocol, to(family), &Outcome::Silence))
}

#[test]
fn pitfall_16_a_rolling_update_with_local_policy_drops_no_flow_by_tc() -> Result<()> {
    rolling_update(Options::TC)
}

#[test]
fn pitfall_16_a_rolling_update_with_local_policy_drops_no_flow_with_xdp() -> Result<()> {
    rolling_update(Options::XDP)
}

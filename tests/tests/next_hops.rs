// SPDX-License-Identifier: MIT OR Apache-2.0
//! Next hops that only Shunt uses: what the kernel knows of them must stay true.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use shunt_tests::{
    load::{Protocol, talk},
    world::{Family, Namespace, Options, World, objects, wait_to_meet, wait_until},
};

const NAME: &str = "shop";
const HOST: u8 = 91;
const NODE_PORT: u16 = 30_091;
/// For one answer.
const PATIENCE: Duration = Duration::from_millis(300);
/// How long a machine may be out of reach that has moved to another Ethernet address and told nobody: 10 s, and as much again on a machine
/// that has other things to do. The time that it took is printed.
const LIMIT: Duration = Duration::from_secs(20);

/// The Ethernet address of a machine.
fn mac(machine: &Namespace) -> Result<String> {
    let text = machine.run("ip", &["-o", "link", "show", "eth0"])?;
    let word = text.split_whitespace().skip_while(|word| *word != "link/ether").nth(1);
    Ok(word.with_context(|| text.clone())?.to_owned())
}

/// Gives a machine another Ethernet address. It asks for nobody's, so that none learns of it by that.
fn move_silently(world: &World, machine: &Namespace, address: &str) -> Result<()> {
    let others = [("172.20.0.11", "fd00:20::11", "node-a"), ("172.20.0.12", "fd00:20::12", "node-b")];
    let mut lines = format!("link set eth0 address {address}\n");
    for (v4, v6, node) in others {
        let node = world.node(node).namespace();
        if node.name() != machine.name() {
            let mac = mac(node)?;
            for ip in [v4, v6] {
                lines += &format!("neigh replace {ip} lladdr {mac} nud permanent dev eth0\n");
            }
        }
    }
    machine.sysctl(&[("net/ipv4/conf/eth0/arp_notify", "0"), ("net/ipv6/conf/eth0/ndisc_notify", "0")])?;
    machine.ip(&lines)
}

/// cilium 37725, 34503 and amazon-vpc-cni-k8s 3628: all connections timed out for as long as anybody tried.
fn is_found_again(options: Options, rules: &str) -> Result<()> {
    let world = World::with_echoes_on(options, &[], |world| world.node("node-a").namespace().ip(rules))?;
    let spec = json!({ "type": "NodePort", "ports": objects::ports(Some(NODE_PORT)) });
    let service = objects::service(NAME, HOST, &json!({ "spec": spec }));
    world.put([service].into_iter().chain(world.slices(NAME, &["web-2"])))?;
    let at = |family| SocketAddr::new(world.node("node-a").address(family), NODE_PORT);
    // The backend's node, and then the client, to which the answers go by node-a.
    for (round, machine) in [world.node("node-b").namespace(), world.outside()].into_iter().enumerate() {
        for (turn, family) in Family::BOTH.into_iter().enumerate() {
            wait_to_meet(world.outside(), Protocol::Tcp, at(family), &["web-2"])?;
            move_silently(&world, machine, &format!("02:00:00:00:0{round}:0{turn}"))?;
            let start = Instant::now();
            let mut failures = 0;
            wait_until(&format!("{family:?} by {}", machine.name()), LIMIT, || {
                let answer = world.outside().enter(|| talk::ask(Protocol::Tcp, at(family), PATIENCE))?;
                failures += u32::from(answer.is_err());
                Ok(answer.is_ok())
            })?;
            println!("{family:?}, {}: found again after {:?}", machine.name(), start.elapsed());
            ensure!(failures > 0, "{family:?}: nobody noticed the move, which was to be silent");
        }
    }
    Ok(())
}

#[test]
fn pitfall_27_a_next_hop_that_moved_is_found_again_by_tc() -> Result<()> {
    is_found_again(Options::TC, "")
}

#[test]
fn pitfall_27_a_next_hop_that_moved_is_found_again_with_xdp() -> Result<()> {
    is_found_again(Options::XDP, "")
}

/// Where ways are not the same for all packets, none is kept.
#[test]
fn pitfall_27_a_next_hop_that_moved_is_found_again_with_routing_rules() -> Result<()> {
    is_found_again(Options::TC, "rule add from 192.0.2.1 lookup 100")
}

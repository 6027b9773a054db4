// SPDX-License-Identifier: MIT OR Apache-2.0
//! The socket door, with real sockets.

use anyhow::{Result, ensure};
use shunt_tests::{
    load::{self, Target},
    world::{Family, Options, World, sample},
};

#[test]
fn rule_30_node_processes_reach_services_and_node_ports_on_localhost() -> Result<()> {
    let world = World::with_agents(Options::HOST_SOCKETS)?;
    for node in world.nodes() {
        for family in Family::BOTH {
            let targets = [
                Target::Http(sample::web(family)),
                Target::Http(sample::web_at(node.address(family))),
                Target::Http(sample::web_at(family.pick("127.0.0.1", "::1"))),
                Target::Dns(sample::dns(family), sample::DNS_BACKEND.to_owned()),
                Target::Dns(sample::dns_at(family.pick("127.0.0.1", "::1")), sample::DNS_BACKEND.to_owned()),
            ];
            for target in targets {
                let tally = load::send(node.namespace(), std::slice::from_ref(&target), 60, &|| {})?;
                ensure!(tally.failed() == 0, "{} {target:?}: {:?}", node.name(), tally.errors);
            }
        }
    }
    Ok(())
}

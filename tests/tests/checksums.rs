// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every packet on every link has right checksums, where no offload hides them.

use anyhow::{Result, ensure};
use shunt_tests::{
    load::{self, Target},
    world::{Family, Options, World, sample},
};

/// Every kind of path at once: ClusterIP and NodePort, TCP and UDP, both families, local and remote backends, hairpin,
/// rejects.
fn traffic(world: &World) -> Result<()> {
    for family in Family::BOTH {
        let web = |at| Target::Http(at);
        let dns = |at| Target::Dns(at, sample::DNS_BACKEND.to_owned());
        let inside = [web(sample::web(family)), dns(sample::dns(family))];
        for pod in ["client", "caller", "web-1", "web-3"] {
            let tally = load::send(world.pod(pod).namespace(), &inside, 40, &|| {})?;
            ensure!(tally.failed() == 0, "{pod} {family:?}: {:?}", tally.errors);
        }
        for node in world.nodes() {
            let outside = [web(sample::web_at(node.address(family))), dns(sample::dns_at(node.address(family)))];
            let tally = load::send(world.outside(), &outside, 40, &|| {})?;
            ensure!(tally.failed() == 0, "{} {family:?}: {:?}", node.name(), tally.errors);
        }
    }
    world.route_web_to(&[])
}

/// Thread aya 1562: whatever an offload would hide is right.
fn all_checksums_are_right(options: Options) -> Result<()> {
    let world = World::with_agents(options)?;
    let captures = world.capture(&[])?;
    traffic(&world)?;
    captures.finish()?;
    Ok(())
}

#[test]
fn pitfall_23_all_checksums_are_right_by_tc() -> Result<()> {
    all_checksums_are_right(Options::TC_WITHOUT_OFFLOADS)
}

#[test]
fn pitfall_23_all_checksums_are_right_with_xdp() -> Result<()> {
    all_checksums_are_right(Options::XDP)
}

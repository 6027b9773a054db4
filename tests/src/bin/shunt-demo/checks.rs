// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is checked: each way to a Service, and two things that must not be noticed.

use std::time::Duration;

use anyhow::Result;
use shunt_tests::{
    load::{self, Load, Source, Tally, Target},
    world::{Family, LinkKind, World, sample},
};

use crate::{
    progress::{Progress, millis},
    report::Check,
};

/// Requests per client of a path.
const REQUESTS: usize = 600;
/// Load that goes on while something changes: threads per client, and the pause of each between requests.
const THREADS: usize = 2;
const PAUSE: Duration = Duration::from_millis(2);
const BEFORE: Duration = Duration::from_secs(2);
/// Until a change of a manifest must have reached the packets.
const SETTLE: Duration = Duration::from_secs(1);
const AFTER: Duration = Duration::from_secs(3);

/// A way to the Services.
pub struct Path {
    name: &'static str,
    family: Family,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    ClusterIp,
    NodePort,
}

/// All ways.
pub const PATHS: [Path; 4] = [
    Path { name: "clusterip-v4", family: Family::V4, kind: Kind::ClusterIp },
    Path { name: "clusterip-v6", family: Family::V6, kind: Kind::ClusterIp },
    Path { name: "nodeport-v4", family: Family::V4, kind: Kind::NodePort },
    Path { name: "nodeport-v6", family: Family::V6, kind: Kind::NodePort },
];

impl Path {
    /// Sends requests this way and sees to it that every backend answers some.
    pub fn run(&self, world: &World, progress: &Progress) -> Result<Check> {
        let clients = match self.kind {
            Kind::ClusterIp => vec![world.pod("client").namespace(), world.pod("caller").namespace()],
            Kind::NodePort => vec![world.outside()],
        };
        progress.step(self.name, Some((clients.len() * REQUESTS) as u64));
        let targets = targets(world, self.kind, self.family);
        let mut tally = Tally::default();
        for client in clients {
            tally.merge(&load::send(client, &targets, REQUESTS, &|| progress.advance())?);
        }
        let problems = sample::WEB_BACKENDS.iter().filter(|backend| tally.answered_by(backend) == 0);
        let problems = problems.map(|backend| format!("{backend} answered no request")).collect();
        Ok(Check { name: self.name, tally, change: None, problems, note: None })
    }
}

/// HTTP and DNS requests, two to one.
fn targets(world: &World, kind: Kind, family: Family) -> Vec<Target> {
    let pair = |web, dns| [Target::Http(web), Target::Http(web), Target::Dns(dns, sample::DNS_BACKEND.to_owned())];
    match kind {
        Kind::ClusterIp => pair(sample::web(family), sample::dns(family)).to_vec(),
        Kind::NodePort => {
            let addresses = world.nodes().map(|node| node.address(family));
            addresses.flat_map(|address| pair(sample::web_at(address), sample::dns_at(address))).collect()
        }
    }
}

/// Load over all ways at once.
fn load_everywhere(world: &World) -> Result<Load> {
    let both = |kind| Family::BOTH.into_iter().flat_map(|family| targets(world, kind, family)).collect();
    let sources = [
        Source { namespace: world.pod("client").namespace(), targets: both(Kind::ClusterIp) },
        Source { namespace: world.pod("caller").namespace(), targets: both(Kind::ClusterIp) },
        Source { namespace: world.outside(), targets: both(Kind::NodePort) },
    ];
    Load::start(&sources, THREADS, PAUSE)
}

/// Under load, a new backend takes the place of an old one.
pub fn drain(world: &mut World, progress: &Progress) -> Result<Check> {
    const NAME: &str = "drain";
    progress.step(NAME, Some(millis(BEFORE + SETTLE + AFTER)));
    let load = load_everywhere(world)?;
    progress.pass(BEFORE)?;
    load.next_phase();
    progress.say("web-4 takes the place of web-2");
    world.add_web_pod("web-4", "node-a", 204, LinkKind::Routed)?;
    world.wait_for_web("web-4")?;
    world.set_web_endpoints(&["web-1", "web-3", "web-4"])?;
    progress.pass(SETTLE)?;
    load.next_phase();
    progress.pass(AFTER)?;
    let [before, change, after] = phases(load);
    let mut problems = Vec::new();
    if after.answered_by("web-2") > 0 {
        problems.push(format!("web-2 still answered {} new requests", after.answered_by("web-2")));
    }
    if after.answered_by("web-4") == 0 {
        problems.push("web-4 answered no request".to_owned());
    }
    let note = format!(
        "web-2 was replaced by web-4 under load; web-2 answered {} new requests afterwards",
        after.answered_by("web-2")
    );
    Ok(Check {
        name: NAME,
        tally: sum(&[&before, &change, &after]),
        change: Some((before, after)),
        problems,
        note: Some(note),
    })
}

/// Under load, the agents of both nodes are killed, stay away for a while, and come back.
pub fn agent_killed(world: &mut World, progress: &Progress) -> Result<Check> {
    const NAME: &str = "agent-killed";
    progress.step(NAME, Some(millis(BEFORE + AFTER + AFTER)));
    let load = load_everywhere(world)?;
    progress.pass(BEFORE)?;
    progress.say("both agents killed");
    for node in world.nodes_mut() {
        node.agent_mut().kill()?;
    }
    load.next_phase();
    progress.pass(AFTER)?;
    load.next_phase();
    progress.say("agents started again");
    world.start_agents()?;
    progress.pass(AFTER)?;
    let [before, without, after] = phases(load);
    let problems = if without.requests() == 0 { vec!["no request was sent meanwhile".to_owned()] } else { Vec::new() };
    let note = format!("{} of these requests began while no agent was running", without.requests());
    let tally = sum(&[&before, &without, &after]);
    Ok(Check { name: NAME, tally, change: None, problems, note: Some(note) })
}

/// The tallies of a load with two changes of phase.
fn phases(load: Load) -> [Tally; 3] {
    load.finish().try_into().expect("next_phase has been called twice")
}

fn sum(tallies: &[&Tally]) -> Tally {
    let mut sum = Tally::default();
    tallies.iter().for_each(|tally| sum.merge(tally));
    sum
}

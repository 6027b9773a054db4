// SPDX-License-Identifier: MIT OR Apache-2.0
//! The agent comes and goes: packets must not notice.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
    thread::sleep,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use shunt_tests::{
    load::{self, Target},
    world::{Family, Node, Options, World, sample, wait_until},
};

const PAUSE: Duration = Duration::from_secs(1);

/// Thread kubernetes 75360: requests go on while agents are killed and started again.
fn restarts_lose_nothing(options: Options) -> Result<()> {
    let mut world = World::with_agents(options)?;
    let load = world.load_web()?;
    for _ in 0..3 {
        for node in world.nodes_mut() {
            node.agent_mut().kill()?;
        }
        sleep(PAUSE / 2);
        world.start_agents()?;
    }
    sleep(PAUSE);
    let [tally] = <[_; 1]>::try_from(load.finish()).expect("one phase");
    ensure!(tally.failed() == 0 && tally.requests() > 100, "{} requests, {:?}", tally.requests(), tally.errors);
    Ok(())
}

#[test]
fn pitfall_24_agents_killed_and_restarted_under_load_lose_nothing_by_tc() -> Result<()> {
    restarts_lose_nothing(Options::TC)
}

#[test]
fn pitfall_24_agents_killed_and_restarted_under_load_lose_nothing_with_xdp() -> Result<()> {
    restarts_lose_nothing(Options::XDP)
}

/// Room for backends: the sample takes some of it.
const ROOM: u32 = 48;
/// Endpoints of a Service for which that is not enough.
const MANY: usize = 64;

/// The flags of all maps that get another size in place, for that many times `ROOM`.
fn set_sizes(world: &mut World, times: u32) {
    const FLAGS: [&str; 10] = [
        "--max-frontends",
        "--max-backends",
        "--max-services",
        "--max-source-ranges",
        "--max-affinity",
        "--max-fragments",
        "--max-interfaces",
        "--max-node-addresses",
        "--max-sockets",
        "--max-table-slots",
    ];
    for node in world.nodes_mut() {
        for flag in FLAGS {
            let size = if flag == "--max-table-slots" { 65_536 * times } else { ROOM * times };
            node.set_flag(flag, &size.to_string());
        }
    }
}

/// A Service at which nobody asks, with many endpoints.
fn many() -> String {
    let endpoints = (1..=MANY).map(|last| format!("- addresses: [10.250.0.{last}]\n"));
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{ name: many, namespace: default }}\n\
         spec: {{ type: ClusterIP, ipFamilies: [IPv4], clusterIP: 10.96.0.77, clusterIPs: [10.96.0.77], \
         ports: [{{ name: http, protocol: TCP, port: 80 }}] }}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{ name: many-1, namespace: default, labels: {{ kubernetes.io/service-name: many }} }}\n\
         addressType: IPv4\nports: [{{ name: http, protocol: TCP, port: 8080 }}]\nendpoints:\n{}",
        endpoints.collect::<String>()
    )
}

/// How many endpoints of it a node's maps hold.
fn count_many(node: &Node) -> Result<usize> {
    Ok(node.lb_agent("get backends")?.lines().filter(|line| line.contains("10.250.0.")).count())
}

/// A full map: the flag is raised and the agent restarted; nothing else is needed, and nobody notices.
#[test]
fn maps_grow_and_shrink_at_restarts_under_load_and_lose_nothing() -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(30);
    let mut world = World::new(Options::XDP)?;
    world.apply_sample()?;
    set_sizes(&mut world, 1);
    world.start_agents()?;
    world.apply("many.yaml", &many())?;
    for node in world.nodes() {
        wait_until("the Service without room being named", LIMIT, || {
            let log = node.agent().log();
            Ok(log.lines().any(|line| line.contains("default/many") && line.contains("--max-backends")))
        })?;
        let held = count_many(node)?;
        ensure!(held > 0 && held < MANY, "as many as fit: {held}");
    }
    world.serves()?;
    let load = world.load_web()?;
    // The last is too small for what is there by then.
    for (times, is_done) in [(4, true), (3, true), (1, false)] {
        for node in world.nodes_mut() {
            node.agent_mut().terminate()?;
        }
        set_sizes(&mut world, times);
        world.start_agents()?;
        for node in world.nodes() {
            wait_until("all endpoints having room", LIMIT, || Ok(count_many(node)? == MANY))?;
            let log = node.agent().log();
            let said =
                if is_done { "map BACKENDS gets " } else { "map BACKENDS keeps its 144 entries, not the 48 asked for" };
            ensure!(log.contains(said), "{said} in {}", node.agent().log_tail());
        }
        sleep(PAUSE);
    }
    let [tally] = <[_; 1]>::try_from(load.finish()).expect("one phase");
    ensure!(tally.failed() == 0 && tally.requests() > 100, "{} requests, {:?}", tally.requests(), tally.errors);
    Ok(())
}

/// What changed while the agent was away is applied when it comes back.
#[test]
fn changes_during_an_absence_are_caught_up_with() -> Result<()> {
    let mut world = World::with_agents(Options::TC)?;
    for node in world.nodes_mut() {
        node.agent_mut().kill()?;
    }
    world.set_web_endpoints(&["web-3"])?;
    world.serves()?;
    world.start_agents()?;
    world.route_web_to(&["web-3"])
}

#[test]
fn sigterm_leaves_forwarding_in_place() -> Result<()> {
    let mut world = World::with_agents(Options::TC)?;
    for node in world.nodes_mut() {
        let status = node.agent_mut().terminate()?;
        ensure!(status.success(), "{}: {status}", node.name());
    }
    world.serves()
}

/// Process 1 of a container gets no signal for which it has no handler: an agent that is told to stop while it starts would be
/// killed when the patience of the kubelet ends.
#[test]
fn sigterm_during_the_start_is_heard() -> Result<()> {
    let mut world = World::new(Options::TC)?;
    world.apply_sample()?;
    let node = world.node_mut("node-a");
    node.start_agent(shunt_tests::world::Xdp::Off)?;
    // It loads its programs next, which takes seconds.
    wait_until("the agent's first words", PAUSE * 10, || Ok(node.agent().log().contains("the maps take up to")))?;
    let status = node.agent_mut().terminate()?;
    ensure!(status.success() && node.agent().log().contains("told to stop"), "{status}: {}", node.agent().log_tail());
    world.start_agents()?;
    world.serves()
}

/// Rule 76: with `--config` the agent ends when that file changes, so that it is started with what it says then.
#[test]
fn rule_76_an_agent_ends_when_its_configuration_changes_and_forwarding_goes_on() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("config.conf");
    let write = |cidr: &str| {
        let text = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
        std::fs::write(&file, format!("{text}clusterCIDR: {cidr}\n"))
    };
    write("10.244.0.0/16")?;
    let mut world = World::new(Options::TC)?;
    world.apply_sample()?;
    for node in world.nodes_mut() {
        node.add_flags(&["--config", &file.display().to_string()]);
    }
    world.start_agents()?;
    write("10.0.0.0/8")?;
    for node in world.nodes_mut() {
        let status = node.agent_mut().wait_end("the agent's end after a change of its configuration")?;
        ensure!(status.code() == Some(1), "{}: {status}", node.name());
        ensure!(node.agent().log().contains("--config has changed"), "{}", node.agent().log_tail());
    }
    world.serves()?;
    world.start_agents()?;
    world.serves()
}

/// Programs attached to a node's interfaces by links or filters, XDP ones too.
fn attached(node: &Node) -> Result<usize> {
    let links = node.namespace().run("ip", &["-o", "link"])?;
    let names = links.lines().filter_map(|line| line.split([':', '@']).nth(1)).map(|name| name.trim().to_owned());
    let names: Vec<String> = names.collect();
    let tcx = node.namespace().enter(|| {
        let hooks =
            names.iter().flat_map(|name| [TcAttachType::Ingress, TcAttachType::Egress].map(|hook| (name, hook)));
        // Unknown before Linux 6.6, where filters serve.
        let programs = hooks.filter_map(|(name, hook)| SchedClassifier::query_tcx(name, hook).ok());
        programs.map(|(_, programs)| programs.len()).sum::<usize>()
    })?;
    let mut filters = 0;
    for (name, hook) in names.iter().flat_map(|name| ["ingress", "egress"].map(|hook| (name, hook))) {
        // Fails on a device that never had any.
        let output = node.namespace().command("tc").args(["filter", "show", "dev", name, hook]).output()?;
        filters += String::from_utf8_lossy(&output.stdout).matches(" shunt_tc_").count();
    }
    Ok(tcx + filters + links.lines().filter(|line| line.contains("xdp")).count())
}

#[test]
fn cleanup_removes_everything() -> Result<()> {
    let mut world = World::with_agents(Options::XDP)?;
    for node in world.nodes_mut() {
        ensure!(attached(node)? > 0);
        node.agent_mut().terminate()?;
        let plan = node.lb_agent("cleanup --dry-run")?;
        ensure!(attached(node)? > 0, "a dry run removes nothing: {plan}");
        node.lb_agent("cleanup")?;
        ensure!(attached(node)? == 0);
        let left: Vec<_> = std::fs::read_dir(node.bpffs()).into_iter().flatten().flatten().collect();
        ensure!(left.is_empty(), "{left:?}");
    }
    let targets = [Target::Http(sample::web_at(world.node("node-a").address(Family::V4)))];
    ensure!(load::send(world.outside(), &targets, 1, &|| {})?.failed() == 1, "still served after cleanup");
    // As in a DaemonSet: it stays, until it is told to stop.
    let node = world.node("node-a");
    let arguments = ["cleanup", "--stay", "--bpffs"].map(str::to_owned).into_iter();
    let mut staying = node.agent_command(&arguments.chain([node.bpffs().display().to_string()]).collect::<Vec<_>>())?;
    let mut staying = staying.stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(staying.stdout.take().context("a pipe")?).read_line(&mut line)?;
    ensure!(line.starts_with("nothing of Shunt's at "), "{line}");
    sleep(PAUSE);
    ensure!(staying.try_wait()?.is_none(), "it has ended");
    kill(Pid::from_raw(staying.id().try_into()?), Signal::SIGTERM)?;
    ensure!(staying.wait()?.success());
    // And everything can be made anew.
    world.start_agents()?;
    world.serves()
}

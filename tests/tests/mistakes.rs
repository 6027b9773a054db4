// SPDX-License-Identifier: MIT OR Apache-2.0
//! Mistakes of all kinds: each is named with its subject and what to do, and what worked before keeps working.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use shunt_tests::{
    api_server::{ApiServer, world_and_server},
    load,
    world::{Node, Options, Process, World, Xdp, objects, wait_until},
};

const LIMIT: Duration = Duration::from_secs(15);
/// Frontends that there is room for in a map that is to be full: more than the sample takes.
const ROOM: usize = 40;

/// What an agent says that is expected to give up.
fn fails(node: &Node, arguments: &[String]) -> Result<String> {
    let output = node.agent_command(arguments)?.output().context("can't start the agent")?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    ensure!(!output.status.success(), "it should have failed: {said}");
    Ok(said)
}

fn replace(arguments: &mut [String], option: &str, value: &str) {
    let position = arguments.iter().position(|word| word == option).expect("an option that is given");
    value.clone_into(&mut arguments[position + 1]);
}

#[test]
fn a_second_agent_on_the_same_bpffs_is_refused() -> Result<()> {
    let world = World::with_agents(Options::TC)?;
    let node = world.node("node-a");
    let mut arguments = node.agent_arguments(Xdp::Off);
    replace(&mut arguments, "--healthz-bind-address", "127.0.0.1:20256");
    replace(&mut arguments, "--metrics-bind-address", "127.0.0.1:20249");
    let said = fails(node, &arguments)?;
    ensure!(said.contains(&node.bpffs().display().to_string()), "names the directory: {said}");
    world.serves()
}

/// With a directory and ports of its own it would translate every packet again, and what it leaves behind would answer first.
#[test]
fn a_second_agent_in_the_same_network_namespace_is_refused() -> Result<()> {
    let world = World::with_agents(Options::TC)?;
    let node = world.node("node-a");
    let mut arguments = node.agent_arguments(Xdp::Off);
    replace(&mut arguments, "--healthz-bind-address", "127.0.0.1:20256");
    replace(&mut arguments, "--metrics-bind-address", "127.0.0.1:20249");
    let elsewhere = node.bpffs().with_file_name("elsewhere");
    replace(&mut arguments, "--bpffs", &elsewhere.display().to_string());
    let said = fails(node, &arguments)?;
    let process = format!("(process {})", node.agent().pid());
    ensure!(said.contains("runs in this network namespace") && said.contains(&process), "{said}");
    world.serves()
}

/// An uplink that does not exist is named, with what to do.
#[test]
fn an_uplink_that_does_not_exist_is_named() -> Result<()> {
    let world = World::new(Options::TC)?;
    world.apply_sample()?;
    let node = world.node("node-a");
    let mut arguments = node.agent_arguments(Xdp::Off);
    replace(&mut arguments, "--uplink", "eth7");
    let said = fails(node, &arguments)?;
    ensure!(said.contains("eth7"), "{said}");
    Ok(())
}

/// Broken files are named, and what worked before keeps working; mended ones are applied.
#[test]
fn broken_manifests_are_named_and_change_nothing() -> Result<()> {
    let world = World::with_agents(Options::TC)?;
    world.apply("web-endpoints.yaml", "kind: EndpointSlice\n  nonsense: [")?;
    world.apply("impossible.yaml", "{ apiVersion: v1, kind: Service, metadata: { name: odd }, spec: { ports: 7 } }")?;
    for node in world.nodes() {
        for file in ["web-endpoints.yaml", "impossible.yaml"] {
            wait_until(&format!("{file} being named in the log"), LIMIT, || Ok(node.agent().log().contains(file)))?;
        }
    }
    world.serves()?;
    world.route_web_to(&["web-1", "web-3"])
}

/// Files that were broken while no agent ran: what the earlier agent wrote stays until they are mended.
#[test]
fn manifests_broken_before_a_restart_take_nothing_away() -> Result<()> {
    let mut world = World::with_agents(Options::TC)?;
    for node in world.nodes_mut() {
        node.agent_mut().terminate()?;
    }
    for file in ["web.yaml", "web-endpoints.yaml"] {
        world.apply(file, "kind: [")?;
    }
    world.start_agents()?;
    world.serves()
}

/// A map that is full: the Service that finds no room is named, with the flag to raise; the others are served.
#[test]
fn a_full_map_is_named_and_the_rest_is_served() -> Result<()> {
    let world = World::new(Options::TC)?;
    world.apply_sample()?;
    let node = world.node("node-a");
    let mut arguments = node.agent_arguments(Xdp::Off);
    arguments.extend(["--max-frontends".to_owned(), ROOM.to_string()]);
    let log = world.site().directory().join("full.log");
    let _agent = Process::start(node.agent_command(&arguments)?, &log)?;
    wait_until("the sample being served", LIMIT, || Ok(world.serves().is_ok()))?;
    world.apply("more.yaml", &large_service())?;
    wait_until("the Service without room being named", LIMIT, || {
        let log = std::fs::read_to_string(&log)?;
        Ok(log.contains("default/more") && log.contains("--max-frontends"))
    })?;
    world.serves()
}

/// What the gauges and counters of problems say on node-a, all together.
fn problems(world: &World) -> Result<f64> {
    let metrics = "127.0.0.1:10249".parse().expect("an address");
    let answer = world.node("node-a").namespace().enter(|| load::http::get(metrics, "/metrics", LIMIT))??;
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    let lines = text.lines().filter(|line| line.starts_with("shunt_problems_current"));
    Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
}

/// Waits until a mistake in a Service is told by an Event on it, in the log, and by the metric.
fn is_told(server: &ApiServer, world: &World, name: &str, words: &str, make: impl FnOnce()) -> Result<()> {
    let before = problems(world)?;
    make();
    let what = format!("a warning about {name} with {words:?}");
    server.wait_for_event(&what, |event| {
        let note = event["note"].as_str().unwrap_or_default();
        event["type"] == "Warning" && event["regarding"]["name"] == name && note.contains(words)
    })?;
    wait_until(&format!("the log telling of {name}"), LIMIT, || {
        let log = world.node("node-a").agent().log();
        Ok(log.lines().any(|line| line.contains(&format!("default/{name}")) && line.contains(words)))
    })?;
    wait_until(&format!("the metric telling of {name}"), LIMIT, || Ok(problems(world)? > before))
}

/// A bad annotation, a frontend that is another's, a table that is full: whoever made the Service learns of it by an Event,
/// whoever runs the node by the log and a metric; and all else is served.
#[test]
fn rule_79_bad_input_is_told_by_event_log_and_metric() -> Result<()> {
    let (server, mut world) = world_and_server(Options::TC)?;
    for node in world.nodes_mut() {
        node.agent_mut().terminate()?;
        node.lb_agent("cleanup")?;
        node.add_flags(&["--max-frontends", &ROOM.to_string()]);
    }
    world.start_agents()?;
    let annotated = objects::service("odd", 78, &json!({ "metadata": { "annotations": { ANNOTATION: "perhaps" } } }));
    is_told(&server, &world, "odd", ANNOTATION, || server.apply(annotated))?;
    let mut owner = objects::service("owner", 79, &json!({}));
    owner["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
    let mut loser = objects::service("loser", 79, &json!({}));
    loser["metadata"]["creationTimestamp"] = json!("2026-02-01T00:00:00Z");
    is_told(&server, &world, "loser", "default/owner", || {
        [owner, loser].into_iter().for_each(|one| server.apply(one))
    })?;
    let large: Value = serde_saphyr::from_str(&large_service())?;
    is_told(&server, &world, "more", "--max-frontends", || server.apply(large))?;
    world.serves()
}

const ANNOTATION: &str = "shunt.dev/on-backend-removal";

/// A Service with more ports than there is room for.
fn large_service() -> String {
    let ports = (1..=ROOM).map(|port| format!("    - {{ name: p{port}, protocol: TCP, port: {port} }}\n"));
    format!(
        "apiVersion: v1\n\
         kind: Service\n\
         metadata: {{ name: more, namespace: default }}\n\
         spec:\n  \
           type: ClusterIP\n  \
           ipFamilies: [IPv4]\n  \
           clusterIP: 10.96.0.77\n  \
           clusterIPs: [10.96.0.77]\n  \
           ports:\n{}",
        ports.collect::<String>()
    )
}

/// An API server that can't be reached is named, and forwarding goes on. The node may be sent traffic if an earlier agent has left
/// Services there, and not otherwise.
#[test]
fn an_unreachable_api_server_is_named() -> Result<()> {
    let mut world = World::with_agents(Options::TC)?;
    world.node_mut("node-a").agent_mut().terminate()?;
    let kubeconfig = world.site().directory().join("kubeconfig");
    std::fs::write(&kubeconfig, KUBECONFIG)?;
    let node = world.node("node-a");
    let mut arguments = node.agent_arguments(Xdp::Off);
    replace(&mut arguments, "--source", "kube");
    arguments.extend(["--kubeconfig".to_owned(), kubeconfig.display().to_string()]);
    let start = |name: &str| -> Result<Process> {
        let log = world.site().directory().join(name);
        let agent = Process::start(node.agent_command(&arguments)?, &log)?;
        wait_until("the API server being named", LIMIT, || Ok(std::fs::read_to_string(&log)?.contains("127.0.0.1:6")))?;
        Ok(agent)
    };
    let healthz = || -> Result<u16> {
        let address = "127.0.0.1:10256".parse().expect("an address");
        Ok(node.namespace().enter(|| load::http::get(address, "/healthz", LIMIT))??.status)
    };
    let agent = start("unreachable.log")?;
    world.serves()?;
    ensure!(healthz()? == 200, "what serves is not eligible");
    drop(agent);
    node.lb_agent("cleanup")?;
    let _agent = start("unreachable-anew.log")?;
    ensure!(healthz()? == 503, "what serves nothing is eligible");
    Ok(())
}

const KUBECONFIG: &str = "
apiVersion: v1
kind: Config
clusters: [{ name: c, cluster: { server: 'http://127.0.0.1:6' } }]
users: [{ name: u, user: {} }]
contexts: [{ name: x, context: { cluster: c, user: u } }]
current-context: x
";

/// Without the capabilities that it needs it says which.
#[test]
fn a_missing_capability_is_named() -> Result<()> {
    let mut world = World::new(Options::TC)?;
    world.apply_sample()?;
    let node = world.node_mut("node-a");
    node.limit_capabilities(&[]);
    let said = fails(node, &node.agent_arguments(Xdp::Off))?;
    ensure!(said.contains("CAP_BPF") && said.contains("CAP_NET_ADMIN"), "{said}");
    Ok(())
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! The real agent as a process, on a directory of manifests or on an API server, in a network namespace with nothing but a
//! loopback device.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lb_agent::{
    dataplane::{Maps, Pins},
    source::Object,
};
use lb_common::frontend::{Frontend, FrontendKey, Target};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shunt_tests::{
    api_server::ApiServer,
    load::http,
    world::{Namespace, Site, agent_binary},
};

use crate::{memory::Resident, objects::Shape, spread::Spread};

const HEALTHZ: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10256);
const NODE: &str = "node-0";
const LIMIT: Duration = Duration::from_secs(60);
const PROBE_LIMIT: Duration = Duration::from_secs(1);
const PROBE_PAUSE: Duration = Duration::from_millis(2);
/// Between two looks at the map.
const LOOK_PAUSE: Duration = Duration::from_micros(200);

/// What was measured at one size.
#[derive(Debug, Serialize, Deserialize)]
pub struct Outside {
    /// From the start of the process to the first good answer of its `/healthz`: reading all objects included.
    pub ready_ms: f64,
    /// From a manifest renamed into its place, or an object changed in the API server, to its frontend or its table written, in
    /// microseconds: with a directory a pause for the end of the burst of changes included.
    pub change_us: Spread,
    /// The agent, after all of that.
    pub resident: Resident,
}

/// Measures one size on a directory, with so many changes.
pub fn measure_directory(shape: Shape, changes: u32) -> Result<Outside> {
    let (site, namespace) = node()?;
    let manifests = site.directory().join("manifests");
    fs::create_dir(&manifests).with_context(|| format!("can't create {}", manifests.display()))?;
    let put = |service: u32, objects: &[Object], _: Option<&Object>| write(&manifests, service, objects);
    let source = vec![format!("dir:{}", manifests.display())];
    measure(&site, &namespace, &source, shape, changes, put)
}

/// The same on an API server.
pub fn measure_cluster(shape: Shape, changes: u32) -> Result<Outside> {
    let (site, namespace) = node()?;
    let server = namespace.enter(ApiServer::start_locally)??;
    let kubeconfig = site.directory().join("kubeconfig");
    // Without a Node the agent is not eligible for traffic, and not ready to our eyes.
    server.apply(json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": NODE } }));
    server.write_kubeconfig(&kubeconfig, &json!({})).context("can't write the kubeconfig")?;
    let put = |_: u32, objects: &[Object], changed: Option<&Object>| {
        let objects = changed.map_or(objects, std::slice::from_ref);
        let values = objects.iter().map(served).collect::<serde_json::Result<Vec<_>>>()?;
        let start = Instant::now();
        values.into_iter().for_each(|value| server.apply(value));
        Ok(start)
    };
    let source = ["kube", "--kubeconfig"].map(str::to_owned).into_iter().chain([kubeconfig.display().to_string()]);
    measure(&site, &namespace, &source.collect::<Vec<_>>(), shape, changes, put)
}

/// An object as a real server sends it: with a note of who wrote which field, which is nearly half of it where it is small.
fn served(object: &Object) -> serde_json::Result<Value> {
    let mut value = value(object)?;
    let port = json!({ ".": {}, "f:name": {}, "f:port": {}, "f:protocol": {}, "f:targetPort": {} });
    let written = json!({
        "f:metadata": { "f:labels": { ".": {}, "f:kubernetes.io/service-name": {} } },
        "f:spec": { "f:ports": { ".": {}, r#"k:{"port":80,"protocol":"TCP"}"#: port }, "f:sessionAffinity": {}, "f:type": {} },
    });
    value["metadata"]["managedFields"] = json!([{
        "manager": "kube-controller-manager",
        "operation": "Update",
        "apiVersion": "v1",
        "time": "2026-11-26T02:14:10Z",
        "fieldsType": "FieldsV1",
        "fieldsV1": written,
    }]);
    Ok(value)
}

fn node() -> Result<(Site, Namespace)> {
    let site = Site::new()?;
    let namespace = Namespace::create(&site, "node")?;
    namespace.ip("link set lo up")?;
    Ok((site, namespace))
}

/// `put` gives a Service's objects to the agent's source, of which just one may have changed, and says when it did.
fn measure(
    site: &Site,
    namespace: &Namespace,
    source: &[String],
    shape: Shape,
    changes: u32,
    put: impl Fn(u32, &[Object], Option<&Object>) -> Result<Instant>,
) -> Result<Outside> {
    for service in 0..shape.services {
        let objects: Vec<_> = [shape.service(service)].into_iter().chain(shape.slices(service)).collect();
        put(service, &objects, None)?;
    }
    let start = Instant::now();
    let mut agent = Agent::start(site, namespace, source, shape)?;
    let ready = namespace.enter(|| agent.wait_ready(start))?;
    ready.with_context(|| fs::read_to_string(site.directory().join("agent.log")).unwrap_or_default())?;
    let ready_ms = start.elapsed().as_secs_f64() * 1000.0;

    let maps = Maps::open(&Pins::new(&site.bpffs()))?;
    let mut spread = Spread::recorder()?;
    for round in 0..changes {
        let service = shape.changed_service(round);
        let key = shape.frontend(service);
        let look = || look(&maps, &key);
        let before = look()?;
        let slice = shape.changed_slice(round);
        let slices = shape.slices(service).map(|other| if other.id() == slice.id() { slice.clone() } else { other });
        let objects: Vec<_> = [shape.service(service)].into_iter().chain(slices).collect();
        let changed = put(service, &objects, Some(&slice))?;
        wait_for_change(&before, look)?;
        spread.record(changed.elapsed());
    }
    let resident = Resident::of(&agent.0.id().to_string())?;
    Ok(Outside { ready_ms, change_us: spread.finish(), resident })
}

/// A frontend, and the slots of its table for outside clients: the table is changed in place where its size allows.
type Seen = Option<(Frontend, Vec<u32>)>;

fn look(maps: &Maps, key: &FrontendKey) -> Result<Seen> {
    let Some(frontend) = maps.frontends.get(key)? else { return Ok(None) };
    let [_, Target { offset, slots }] = frontend.targets;
    let words = maps.tables.words().iter().skip(offset as usize).take(slots as usize);
    Ok(Some((frontend, words.map(|word| word.load(Ordering::Relaxed)).collect())))
}

fn wait_for_change(before: &Seen, look: impl Fn() -> Result<Seen>) -> Result<()> {
    let start = Instant::now();
    while look()? == *before {
        ensure!(start.elapsed() < LIMIT, "a change was not written within {LIMIT:?}");
        thread::sleep(LOOK_PAUSE);
    }
    Ok(())
}

/// Puts one Service and its slices into a file, all at once. Returns when it was there.
fn write(manifests: &Path, service: u32, objects: &[Object]) -> Result<Instant> {
    let documents: serde_json::Result<Vec<_>> = objects.iter().map(|object| Ok(value(object)?.to_string())).collect();
    let path: PathBuf = manifests.join(format!("service-{service}.yaml"));
    let hidden = manifests.join(format!(".service-{service}.yaml"));
    fs::write(&hidden, documents?.join("\n---\n")).with_context(|| format!("can't write {}", hidden.display()))?;
    let renamed = Instant::now();
    fs::rename(&hidden, &path).with_context(|| format!("can't write {}", path.display()))?;
    Ok(renamed)
}

fn value(object: &Object) -> serde_json::Result<Value> {
    match object {
        Object::Service(object) => serde_json::to_value(object),
        Object::EndpointSlice(object) => serde_json::to_value(object),
        Object::Node(object) => serde_json::to_value(object),
        Object::ServiceCidr(object) => serde_json::to_value(object),
    }
}

/// The agent's process; ends with this value.
struct Agent(Child);

impl Agent {
    fn start(site: &Site, namespace: &Namespace, source: &[String], shape: Shape) -> Result<Self> {
        let log = site.directory().join("agent.log");
        let log = File::create(&log).with_context(|| format!("can't create {}", log.display()))?;
        let mut command = namespace.command(agent_binary()?);
        command.args(["run", "--node-name", NODE, "--socket-lb", "off", "--source"]).args(source);
        command.arg("--bpffs").arg(site.bpffs()).env_remove("RUST_LOG");
        command.args(["--max-table-slots", &shape.capacities().table_slots.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Ok(Self(command.spawn().context("can't start the agent")?))
    }

    fn wait_ready(&mut self, start: Instant) -> Result<()> {
        while !http::get(HEALTHZ, "/healthz", PROBE_LIMIT).is_ok_and(|response| response.status == 200) {
            let ended = self.0.try_wait().context("can't wait for the agent")?;
            ensure!(ended.is_none(), "the agent has ended");
            ensure!(start.elapsed() < LIMIT, "the agent was not ready within {LIMIT:?}");
            thread::sleep(PROBE_PAUSE);
        }
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended already: that is fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

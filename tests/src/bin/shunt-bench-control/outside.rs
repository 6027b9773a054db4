// SPDX-License-Identifier: MIT OR Apache-2.0
//! The real agent as a process, on a directory of manifests, in a network namespace with nothing but a loopback device.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lb_agent::{
    dataplane::{Maps, Pins},
    source::Object,
};
use lb_common::frontend::Frontend;
use serde::{Deserialize, Serialize};
use shunt_tests::{
    load::http,
    world::{Namespace, Site, agent_binary},
};

use crate::{memory::Resident, objects::Shape, spread::Spread};

const HEALTHZ: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10256);
const LIMIT: Duration = Duration::from_secs(60);
const PROBE_LIMIT: Duration = Duration::from_secs(1);
const PROBE_PAUSE: Duration = Duration::from_millis(2);
/// Between two looks at the map.
const LOOK_PAUSE: Duration = Duration::from_micros(200);

/// What was measured at one size.
#[derive(Debug, Serialize, Deserialize)]
pub struct Outside {
    /// From the start of the process to the first good answer of its `/healthz`: reading all manifests included.
    pub ready_ms: f64,
    /// From a manifest renamed into its place to its frontend written, in microseconds: a pause for the end of the burst
    /// of changes included.
    pub change_us: Spread,
    /// The agent, after all of that.
    pub resident: Resident,
}

/// Measures one size, with so many changes.
pub fn measure(shape: Shape, changes: u32) -> Result<Outside> {
    let site = Site::new()?;
    let manifests = site.directory().join("manifests");
    fs::create_dir(&manifests).with_context(|| format!("can't create {}", manifests.display()))?;
    for service in 0..shape.services {
        let objects = [shape.service(service)].into_iter().chain(shape.slices(service));
        write(&manifests, service, &objects.collect::<Vec<_>>())?;
    }
    let namespace = Namespace::create(&site, "node")?;
    namespace.ip("link set lo up")?;
    let start = Instant::now();
    let mut agent = Agent::start(&site, &namespace, &manifests, shape)?;
    namespace.enter(|| agent.wait_ready(start))??;
    let ready_ms = start.elapsed().as_secs_f64() * 1000.0;

    let maps = Maps::open(&Pins::new(&site.bpffs()))?;
    let mut spread = Spread::recorder()?;
    for round in 0..changes {
        let service = shape.changed_service(round);
        let key = shape.frontend(service);
        let look = || maps.frontends.get(&key).map_err(anyhow::Error::from);
        let before = look()?;
        let slice = shape.changed_slice(round);
        let slices = shape.slices(service).map(|other| if other.id() == slice.id() { slice.clone() } else { other });
        let objects: Vec<_> = [shape.service(service)].into_iter().chain(slices).collect();
        let changed = write(&manifests, service, &objects)?;
        wait_for_change(before, look)?;
        spread.record(changed.elapsed());
    }
    let resident = Resident::of(&agent.0.id().to_string())?;
    Ok(Outside { ready_ms, change_us: spread.finish(), resident })
}

fn wait_for_change(before: Option<Frontend>, look: impl Fn() -> Result<Option<Frontend>>) -> Result<()> {
    let start = Instant::now();
    while look()? == before {
        ensure!(start.elapsed() < LIMIT, "a change was not written within {LIMIT:?}");
        thread::sleep(LOOK_PAUSE);
    }
    Ok(())
}

/// Puts one Service and its slices into a file, all at once. Returns when it was there.
fn write(manifests: &Path, service: u32, objects: &[Object]) -> Result<Instant> {
    let documents: Result<Vec<_>, _> = objects.iter().map(text).collect();
    let path: PathBuf = manifests.join(format!("service-{service}.yaml"));
    let hidden = manifests.join(format!(".service-{service}.yaml"));
    fs::write(&hidden, documents?.join("\n---\n")).with_context(|| format!("can't write {}", hidden.display()))?;
    let renamed = Instant::now();
    fs::rename(&hidden, &path).with_context(|| format!("can't write {}", path.display()))?;
    Ok(renamed)
}

fn text(object: &Object) -> serde_json::Result<String> {
    match object {
        Object::Service(object) => serde_json::to_string(object),
        Object::EndpointSlice(object) => serde_json::to_string(object),
        Object::Node(object) => serde_json::to_string(object),
        Object::ServiceCidr(object) => serde_json::to_string(object),
    }
}

/// The agent's process; ends with this value.
struct Agent(Child);

impl Agent {
    fn start(site: &Site, namespace: &Namespace, manifests: &Path, shape: Shape) -> Result<Self> {
        let log = site.directory().join("agent.log");
        let log = File::create(&log).with_context(|| format!("can't create {}", log.display()))?;
        let mut command = namespace.command(agent_binary()?);
        command.args(["run", "--node-name", "node-0", "--source"]).arg(format!("dir:{}", manifests.display()));
        command.arg("--bpffs").arg(site.bpffs()).env("RUST_LOG", "info");
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

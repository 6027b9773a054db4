// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pods of different nodes that reach each other through a VXLAN: everything works as without.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use shunt_tests::{
    load::{Protocol, Talk, talk},
    world::{Options, World, for_each_kind, objects, wait_to_meet},
};

const NAME: &str = "shop";
const HOST: u8 = 88;
const NODE_PORT: u16 = 30_088;
const ALL: [&str; 3] = ["web-1", "web-2", "web-3"];
const LIMIT: Duration = Duration::from_secs(5);
const BYTES: usize = 300_000;

/// From pods and from outside, to backends on either node; the ones elsewhere see the overlay's address of the node.
#[test]
fn services_work_over_a_vxlan() -> Result<()> {
    let world = World::with_echoes_on(Options::TC, &[], |world| world.lay_over())?;
    let spec = json!({ "type": "NodePort", "ports": objects::ports(Some(NODE_PORT)) });
    let service = objects::service(NAME, HOST, &json!({ "spec": spec }));
    world.put([service].into_iter().chain(world.slices(NAME, &ALL)))?;
    for_each_kind(|protocol, family| {
        let inside = objects::cluster_ip(HOST, family);
        for pod in ["client", "caller", "web-3"] {
            wait_to_meet(world.pod(pod).namespace(), protocol, inside, &ALL)?;
        }
        for node in world.nodes() {
            let to = SocketAddr::new(node.address(family), NODE_PORT);
            wait_to_meet(world.outside(), protocol, to, &ALL).with_context(|| node.name().to_owned())?;
            let overlay = family.pick(&format!("10.245.{}.0", node.number()), &format!("fd00:245:{}::", node.number()));
            for _ in 0..20 {
                let answer = world.outside().enter(|| talk::ask(protocol, to, LIMIT))??;
                let is_here = world.pod(&answer.server).node_name() == node.name();
                ensure!(
                    if is_here { answer.client == answer.local } else { answer.client.ip() == overlay },
                    "{answer:?}"
                );
            }
            if protocol == Protocol::Tcp {
                for _ in 0..6 {
                    let begin =
                        || world.outside().enter(|| Talk::begin(protocol, to, LIMIT))?.map_err(anyhow::Error::from);
                    begin()?.upload(BYTES).context("upload")?;
                    begin()?.download(BYTES).context("download")?;
                }
            }
        }
        Ok(())
    })
}

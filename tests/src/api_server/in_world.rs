// SPDX-License-Identifier: MIT OR Apache-2.0
//! The world of namespaces with an API server outside of it, which its agents follow.

use std::{fs, net::SocketAddr, path::Path};

use anyhow::{Context, Result};
use serde_json::json;

use super::ApiServer;
use crate::world::{Family, Options, World};

const PORT: u16 = 6443;

/// A world whose agents are ready, and the server that has told them of the sample's web Service.
///
/// # Errors
/// As [`World::with_agents`], and when the server can't be started.
pub fn world_and_server(options: Options) -> Result<(ApiServer, World)> {
    let mut world = World::new(options)?;
    let address = SocketAddr::new(world.outside_address(Family::V4), PORT);
    let server = world.outside().enter(|| ApiServer::start(address))??;
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the repository")?.join("manifests/sample");
    for file in ["nodes.yaml", "web.yaml", "web-endpoints.yaml"] {
        server.apply_yaml(&fs::read_to_string(sample.join(file))?)?;
    }
    let kubeconfig = world.site().directory().join("kubeconfig");
    server.write_kubeconfig(&kubeconfig, &json!({}))?;
    world.nodes_mut().for_each(|node| node.follow_cluster(&kubeconfig));
    world.start_agents()?;
    Ok((server, world))
}

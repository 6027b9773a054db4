// SPDX-License-Identifier: MIT OR Apache-2.0
//! The seed of the flow hash is the cluster's: the first agent makes it, the others take it from the Secret.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use shunt_tests::{
    api_server::{ApiServer, Fault, Resource, Verb},
    world::wait_until,
};

use super::{
    agent::{A_WHILE, Agent, PATIENCE},
    objects::{service, serving},
};

const SECRET: &str = "default/shunt-hash-seed";
const NAME: &str = "shunt-hash-seed";

/// The Secret as the manifests have it.
fn empty_secret() -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": NAME, "namespace": "default"}, "type": "Opaque"})
}

/// A server with one Service.
fn server() -> Result<ApiServer> {
    let server = ApiServer::start_locally()?;
    server.apply(service("web", 1));
    Ok(server)
}

#[test]
fn agents_of_a_cluster_share_the_seed_that_the_first_one_made() -> Result<()> {
    let server = server()?;
    server.apply(empty_secret());
    let agents = [(); 3].map(|()| Agent::sharing_seed(&server, SECRET));
    let mut seeds = Vec::new();
    for agent in agents {
        let agent = agent?;
        agent.wait_synced()?;
        seeds.push(agent.hash_seed().context("no seed although the first sync is over")?);
    }
    ensure!(seeds.iter().all(|seed| *seed == seeds[0]), "they differ");
    let secret = server.object(Resource::Secrets, NAME).context("the Secret has gone")?;
    ensure!(secret["data"]["hash-seed"].is_string() && secret["type"] == "Opaque", "{secret}");
    // One that comes later.
    let updates = server.count(Resource::Secrets, Verb::Update);
    let late = Agent::sharing_seed(&server, SECRET)?;
    late.wait_synced()?;
    ensure!(late.hash_seed() == Some(seeds[0]) && server.count(Resource::Secrets, Verb::Update) == updates);
    Ok(())
}

/// An agent that serves although it has no seed of the cluster.
fn serves(server: &ApiServer) -> Result<Agent> {
    let agent = Agent::sharing_seed(server, SECRET)?;
    agent.wait_served(&serving(&[(1, &[])]))?;
    ensure!(agent.hash_seed().is_none());
    Ok(agent)
}

#[test]
fn a_cluster_without_the_secret_is_served_and_takes_it_up_when_it_comes() -> Result<()> {
    let server = server()?;
    let agent = serves(&server)?;
    server.apply(empty_secret());
    wait_until("the seed", PATIENCE, || Ok(agent.hash_seed().is_some()))
}

#[test]
fn a_secret_that_may_not_be_read_or_is_no_seed_holds_nothing_back() -> Result<()> {
    let forbidding = server()?;
    (0..50).for_each(|_| forbidding.inject(Resource::Secrets, Verb::Get, Fault::Status(403)));
    serves(&forbidding)?;
    let malformed = server()?;
    let mut secret = empty_secret();
    secret["data"] = json!({"hash-seed": "MTIz"});
    malformed.apply(secret);
    serves(&malformed)?;
    Ok(())
}

#[test]
fn the_first_sync_waits_for_a_server_that_has_yet_to_say_which_seed_it_is() -> Result<()> {
    let server = server()?;
    server.apply(empty_secret());
    server.inject(Resource::Secrets, Verb::Get, Fault::Status(500));
    let agent = Agent::sharing_seed(&server, SECRET)?;
    std::thread::sleep(A_WHILE);
    ensure!(!agent.is_synced(), "flows would be decided by another seed than on other nodes");
    agent.wait_synced()?;
    ensure!(agent.hash_seed().is_some());
    Ok(())
}

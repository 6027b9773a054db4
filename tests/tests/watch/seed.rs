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

/// An agent that serves although it has no seed of the cluster, and says why.
fn serves_and_warns(server: &ApiServer, told: &str) -> Result<Agent> {
    let agent = Agent::sharing_seed(server, SECRET)?;
    agent.wait_served(&serving(&[(1, &[])]))?;
    let is_told = |event: &Value| event["note"].as_str().is_some_and(|note| note.contains(told));
    let event = server.wait_for_event("a warning", |event| event["type"] == "Warning" && is_told(event))?;
    let note = event["note"].as_str().unwrap_or_default();
    ensure!(note.contains("Secret default/shunt-hash-seed") || note.contains("seed for the flow hash"), "{event}");
    ensure!(note.contains("until then this node has a seed of its own"), "{event}");
    Ok(agent)
}

#[test]
fn a_cluster_without_the_secret_is_served_with_a_warning_and_takes_it_up_when_it_comes() -> Result<()> {
    let server = server()?;
    let agent = serves_and_warns(&server, "create it (manifests/hash-seed.yaml")?;
    ensure!(agent.hash_seed().is_none());
    server.apply(empty_secret());
    wait_until("the seed", PATIENCE, || Ok(agent.hash_seed().is_some()))
}

#[test]
fn a_secret_that_may_not_be_read_or_is_no_seed_is_a_warning() -> Result<()> {
    let forbidding = server()?;
    (0..50).for_each(|_| forbidding.inject(Resource::Secrets, Verb::Get, Fault::Status(403)));
    serves_and_warns(&forbidding, "let the agent's user get and update it")?;
    let malformed = server()?;
    let mut secret = empty_secret();
    secret["data"] = json!({"hash-seed": "MTIz"});
    malformed.apply(secret);
    let agent = serves_and_warns(&malformed, "remove that key from the Secret")?;
    ensure!(agent.hash_seed().is_none());
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

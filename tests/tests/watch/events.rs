// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is wrong with a Service is told where its owner looks.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use shunt_tests::api_server::ApiServer;

use super::{
    agent::{A_WHILE, Agent, NODE},
    objects::{service, serving},
};

/// A Service whose only port can't be.
fn impossible(name: &str, number: u16) -> Value {
    let mut object = service(name, number);
    object["spec"]["ports"][0]["port"] = json!(70_000);
    object
}

#[test]
fn a_problem_of_a_service_is_one_warning_event_on_it() -> Result<()> {
    let server = ApiServer::start_locally()?;
    server.apply(impossible("web", 1));
    server.apply(service("dns", 2));
    let agent = Agent::start(&server)?;
    let event = server.wait_for_event("a warning", |event| event["type"] == "Warning")?;
    let regarding = &event["regarding"];
    ensure!(
        (&regarding["kind"], &regarding["name"], &regarding["namespace"])
            == (&json!("Service"), &json!("web"), &json!("default")),
        "{event}"
    );
    ensure!(regarding["uid"] == "uid-1", "describe finds it by the UID: {event}");
    let note = event["note"].as_str().unwrap_or_default();
    ensure!(note.contains("port 70000 is out of range") && note.contains("use 1 to 65535"), "{event}");
    agent.wait_served(&serving(&[(2, &[])]))?;

    // The same mistake again and again, and then another one.
    for round in 0..5 {
        let mut object = impossible("web", 1);
        object["metadata"]["annotations"] = json!({"round": round.to_string()});
        server.apply(object);
    }
    let mut worse = impossible("web", 1);
    worse["spec"]["type"] = json!("Nodeport");
    server.apply(worse);
    server.wait_for_event("the other one", |event| {
        event["note"].as_str().is_some_and(|note| note.contains("Nodeport"))
    })?;
    std::thread::sleep(A_WHILE);
    let warnings = server.events().into_iter().filter(|event| event["type"] == "Warning").count();
    ensure!(warnings == 2, "{:?}", server.events());
    Ok(())
}

#[test]
fn rule_79_the_start_is_told_to_a_server_that_was_away_then() -> Result<()> {
    let server = ApiServer::start_locally()?;
    server.go_away()?;
    let _agent = Agent::start(&server)?;
    std::thread::sleep(A_WHILE);
    server.come_back()?;
    let event = server.wait_for_event("the start", |event| event["reason"] == "Starting")?;
    ensure!(event["regarding"]["kind"] == "Node" && event["type"] == "Normal", "{event}");
    Ok(())
}

#[test]
fn pitfall_6_source_ports_that_run_out_are_one_warning_event_on_the_node() -> Result<()> {
    let server = ApiServer::start_locally()?;
    server.apply(service("web", 1));
    let agent = Agent::start(&server)?;
    agent.wait_synced()?;
    agent.turn_flow_away();
    let event = server.wait_for_event("a warning", |event| event["type"] == "Warning")?;
    ensure!((&event["regarding"]["kind"], &event["regarding"]["name"]) == (&json!("Node"), &json!(NODE)), "{event}");
    ensure!(event["reason"] == "SourcePortsExhausted", "{event}");
    ensure!(event["note"].as_str().is_some_and(|note| note.contains("--source-ports (61000-65535")), "{event}");
    Ok(())
}

#[test]
fn rule_18_who_loses_a_contested_frontend_is_told() -> Result<()> {
    let server = ApiServer::start_locally()?;
    for (name, created) in [("young", "2026-02-01T00:00:00Z"), ("old", "2026-01-01T00:00:00Z")] {
        let mut object = service(name, 1);
        object["metadata"]["creationTimestamp"] = json!(created);
        server.apply(object);
    }
    let _agent = Agent::start(&server)?;
    let event = server.wait_for_event("a warning", |event| event["type"] == "Warning")?;
    ensure!(event["regarding"]["name"] == "young", "{event}");
    Ok(())
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is watched, and what is not (rules 1 to 7).

use anyhow::{Context, Result, ensure};
use serde_json::json;
use shunt_tests::api_server::{ApiServer, Resource, Verb};

use super::{
    agent::{Agent, NODE},
    objects::{labelled, node, service, serving, slice},
    scenarios,
};

#[test]
fn rule_1_a_service_of_another_proxy_is_as_good_as_deleted() -> Result<()> {
    let server = ApiServer::start_locally()?;
    let agent = Agent::start(&server)?;
    scenarios::another_proxys_service(&server, || Ok(agent.served()))
}

/// Headless Services come and go, and are not served.
fn ignores_headless_services(server: &ApiServer) -> Result<()> {
    let mut headless = service("headless", 2);
    headless["spec"]["clusterIP"] = json!("None");
    server.apply(headless.clone());
    server.apply(service("web", 1));
    let agent = Agent::start(server)?;
    agent.wait_served(&serving(&[(1, &[])]))?;
    // Both ways, as far as the API allows them.
    server.apply(service("headless", 2));
    agent.wait_served(&serving(&[(1, &[]), (2, &[])]))?;
    server.apply(headless);
    agent.wait_served(&serving(&[(1, &[])]))
}

#[test]
fn rule_1_headless_services_are_not_asked_for() -> Result<()> {
    ignores_headless_services(&ApiServer::start_locally()?)
}

/// As before Kubernetes 1.31.
#[test]
fn rule_1_headless_services_are_ignored_where_the_server_can_not_leave_them_out() -> Result<()> {
    let server = ApiServer::start_locally()?;
    server.forget_field("spec.clusterIP");
    ignores_headless_services(&server)
}

#[test]
fn rule_2_a_slice_labelled_headless_takes_its_endpoints_away() -> Result<()> {
    let server = ApiServer::start_locally()?;
    let agent = Agent::start(&server)?;
    scenarios::headless_slice(&server, || Ok(agent.served()))
}

#[test]
fn rule_5_only_the_own_node_counts_and_its_zone_is_followed() -> Result<()> {
    let server = ApiServer::start_locally()?;
    let mut hinted = slice("web", &["10.0.0.1", "10.0.0.2"]);
    for (endpoint, zone) in [(0, "here"), (1, "there")] {
        hinted["endpoints"][endpoint]["hints"] = json!({"forZones": [{"name": zone}]});
    }
    [node("node-b", "there"), node(NODE, "here"), service("web", 1), hinted]
        .into_iter()
        .for_each(|object| server.apply(object));
    let agent = Agent::start(&server)?;
    agent.wait_served(&serving(&[(1, &["10.0.0.1"])]))?;
    server.apply(node("node-b", "here"));
    server.apply(node(NODE, "there"));
    agent.wait_served(&serving(&[(1, &["10.0.0.2"])]))?;
    server.delete(Resource::Nodes, NODE);
    agent.wait_served(&serving(&[(1, &["10.0.0.1", "10.0.0.2"])]))
}

#[test]
fn rule_7_nothing_is_programmed_before_every_first_list_is_complete() -> Result<()> {
    for late in Resource::WATCHED {
        let server = ApiServer::start_locally()?;
        server.apply(service("web", 1));
        server.apply(slice("web", &["10.0.0.1"]));
        server.hold(late, Verb::List);
        let agent = Agent::start(&server)?;
        server.wait_for(late, Verb::List, 1)?;
        agent.keeps_serving(&serving(&[]))?;
        assert!(!agent.is_synced(), "{late:?} is missing");
        server.release(late, Verb::List);
        agent.wait_served(&serving(&[(1, &["10.0.0.1"])]))?;
    }
    Ok(())
}

/// Seen on kube-proxy 1.36.2: the own Node's first state was missed where it came late. Here the zone's hints hold from the first
/// write on, whichever list comes last.
#[test]
fn pitfall_26_zone_hints_hold_at_the_first_sync_whichever_list_comes_last() -> Result<()> {
    for late in Resource::WATCHED {
        let server = ApiServer::start_locally()?;
        let mut hinted = slice("web", &["10.0.0.1", "10.0.0.2"]);
        for (endpoint, zone) in
            hinted["endpoints"].as_array_mut().context("endpoints")?.iter_mut().zip(["here", "there"])
        {
            endpoint["hints"] = json!({ "forZones": [{ "name": zone }] });
        }
        server.apply(service("web", 1));
        server.apply(hinted);
        server.apply(node(NODE, "here"));
        server.hold(late, Verb::List);
        let agent = Agent::start(&server)?;
        server.wait_for(late, Verb::List, 1)?;
        agent.keeps_serving(&serving(&[]))?;
        server.release(late, Verb::List);
        agent.wait_synced()?;
        let served = agent.served();
        ensure!(served == serving(&[(1, &["10.0.0.1"])]), "{late:?} last: {served:?}");
    }
    Ok(())
}

#[test]
fn rule_7_nothing_is_removed_before_every_first_list_is_complete() -> Result<()> {
    for late in [Resource::Services, Resource::EndpointSlices] {
        let server = ApiServer::start_locally()?;
        [service("web", 1), slice("web", &["10.0.0.1"]), service("old", 2)]
            .into_iter()
            .for_each(|object| server.apply(object));
        let agent = Agent::start(&server)?;
        let before = serving(&[(1, &["10.0.0.1"]), (2, &[])]);
        agent.wait_served(&before)?;
        let maps = agent.stop();

        server.delete(Resource::Services, "old");
        server.apply(slice("web", &["10.0.0.2"]));
        server.hold(late, Verb::List);
        let agent = Agent::adopt(&server, maps)?;
        agent.keeps_serving(&before)?;
        server.release(late, Verb::List);
        agent.wait_served(&serving(&[(1, &["10.0.0.2"])]))?;
    }
    Ok(())
}

#[test]
fn rule_6_a_server_that_does_not_know_service_cidrs_will_do() -> Result<()> {
    let server = ApiServer::start_locally()?;
    server.forget_kind(Resource::ServiceCidrs);
    server.apply(service("web", 1));
    let agent = Agent::start(&server)?;
    agent.wait_served(&serving(&[(1, &[])]))
}

#[test]
fn rule_1_a_label_that_comes_while_the_server_is_away_hides_too() -> Result<()> {
    let server = ApiServer::start_locally()?;
    server.apply(service("web", 1));
    server.apply(service("dns", 2));
    let agent = Agent::start(&server)?;
    agent.wait_served(&serving(&[(1, &[]), (2, &[])]))?;
    server.go_away()?;
    server.apply(labelled(service("web", 1), "service.kubernetes.io/service-proxy-name", ""));
    server.forget_history();
    server.come_back()?;
    agent.wait_served(&serving(&[(2, &[])]))
}

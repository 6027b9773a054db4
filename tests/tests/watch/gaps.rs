// SPDX-License-Identifier: MIT OR Apache-2.0
//! Watches that end, servers that are away, and versions that are forgotten: nothing is lost, nothing is taken back (rule 8).

use std::time::Duration;

use anyhow::{Result, ensure};
use shunt_tests::api_server::{ApiServer, Fault, Resource, Verb};

use super::{
    agent::{Agent, Served},
    objects::{service, serving, slice},
};

/// A server with the Services `web` and `dns`, and an agent that serves them.
fn started() -> Result<(ApiServer, Agent)> {
    let server = ApiServer::start_locally()?;
    [service("web", 1), slice("web", &["10.0.0.1"]), service("dns", 2)]
        .into_iter()
        .for_each(|object| server.apply(object));
    let agent = Agent::start(&server)?;
    agent.wait_served(&before())?;
    for resource in [Resource::Services, Resource::EndpointSlices] {
        server.wait_for(resource, Verb::Watch, 1)?;
    }
    Ok((server, agent))
}

fn before() -> Served {
    serving(&[(1, &["10.0.0.1"]), (2, &[])])
}

/// Something of everything: deleted, changed, new.
fn change(server: &ApiServer) {
    server.delete(Resource::Services, "dns");
    server.apply(slice("web", &["10.0.0.2", "10.0.0.3"]));
    server.apply(service("new", 3));
}

fn after() -> Served {
    serving(&[(1, &["10.0.0.2", "10.0.0.3"]), (3, &[])])
}

#[test]
fn rule_8_a_server_that_is_away_changes_nothing_and_what_changed_meanwhile_is_caught_up_with() -> Result<()> {
    let (server, agent) = started()?;
    server.go_away()?;
    change(&server);
    agent.keeps_serving(&before())?;
    server.come_back()?;
    agent.wait_served(&after())
}

#[test]
fn rule_8_objects_deleted_in_a_gap_are_missed_after_history_was_forgotten() -> Result<()> {
    let (server, agent) = started()?;
    server.go_away()?;
    change(&server);
    server.forget_history();
    server.come_back()?;
    agent.wait_served(&after())?;
    ensure!(server.count(Resource::Services, Verb::List) > 1, "410 in the stream leads to a list");
    Ok(())
}

#[test]
fn rule_8_a_watch_that_says_nothing_any_more_is_given_up() -> Result<()> {
    let server = ApiServer::start_locally()?;
    [service("web", 1), slice("web", &["10.0.0.1"]), service("dns", 2)]
        .into_iter()
        .for_each(|object| server.apply(object));
    for resource in [Resource::Services, Resource::EndpointSlices] {
        server.inject(resource, Verb::Watch, Fault::Stall);
    }
    let agent = Agent::impatient(&server)?;
    agent.wait_served(&before())?;
    for resource in [Resource::Services, Resource::EndpointSlices] {
        server.wait_for(resource, Verb::Watch, 1)?;
    }
    change(&server);
    agent.keeps_serving(&before())?;
    agent.wait_served(&after())?;
    ensure!(server.count(Resource::Services, Verb::List) == 1, "the next watch goes on where the silent one was");
    Ok(())
}

#[test]
fn a_broken_connection_goes_on_where_it_was() -> Result<()> {
    let (server, agent) = started()?;
    let lists = server.count(Resource::Services, Verb::List);
    server.disconnect();
    change(&server);
    agent.wait_served(&after())?;
    ensure!(server.count(Resource::Services, Verb::List) == lists, "no list was needed");
    Ok(())
}

#[test]
fn bookmarks_keep_a_quiet_watch_from_being_forgotten() -> Result<()> {
    let (server, agent) = started()?;
    let lists = server.count(Resource::EndpointSlices, Verb::List);
    for round in 0..20 {
        server.apply(service("busy", 100 + round));
    }
    agent.wait_served(&serving(&[(1, &["10.0.0.1"]), (2, &[]), (119, &[])]))?;
    server.wait_for_bookmark(Resource::EndpointSlices)?;
    server.forget_history();
    server.disconnect();
    server.wait_for(Resource::EndpointSlices, Verb::Watch, 2)?;
    server.apply(slice("web", &["10.0.0.2"]));
    agent.wait_served(&serving(&[(1, &["10.0.0.2"]), (2, &[]), (119, &[])]))?;
    ensure!(server.count(Resource::EndpointSlices, Verb::List) == lists, "no list was needed");
    Ok(())
}

/// One fault strikes the next watch of both kinds, while things change.
fn survives(faults: &[Fault]) -> Result<()> {
    let (server, agent) = started()?;
    for resource in [Resource::Services, Resource::EndpointSlices] {
        faults.iter().for_each(|fault| server.inject(resource, Verb::Watch, *fault));
    }
    server.disconnect();
    change(&server);
    agent.wait_served(&after())
}

#[test]
fn http_410_in_the_stream() -> Result<()> {
    survives(&[Fault::GoneInStream])
}

#[test]
fn http_410_at_the_start_of_a_watch() -> Result<()> {
    survives(&[Fault::Status(410)])
}

#[test]
fn http_410_again_and_again() -> Result<()> {
    survives(&[Fault::Status(410), Fault::GoneInStream, Fault::Status(410)])
}

#[test]
fn http_500_and_429() -> Result<()> {
    survives(&[Fault::Status(500), Fault::Status(429)])
}

#[test]
fn a_watch_that_is_closed_unanswered() -> Result<()> {
    survives(&[Fault::HangUp, Fault::HangUp])
}

#[test]
fn a_watch_that_breaks_in_the_middle_of_an_event() -> Result<()> {
    survives(&[Fault::BreakAfter(40), Fault::BreakAfter(300)])
}

#[test]
fn a_watch_that_dribbles() -> Result<()> {
    survives(&[Fault::Dribble(64, Duration::from_millis(5))])
}

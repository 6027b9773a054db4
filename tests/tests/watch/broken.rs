// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lists that break off, dribble or expire: half of a list is not taken for the whole.

use std::time::Duration;

use anyhow::{Result, ensure};
use shunt_tests::api_server::{ApiServer, Fault, Resource, Verb};

use super::{
    agent::{Agent, Served},
    objects::{service, serving},
};

/// More than some clients ask for at a time.
const SERVICES: u16 = 1100;

fn name(number: u16) -> String {
    format!("web-{number:04}")
}

/// A server with many Services.
fn big_server() -> Result<ApiServer> {
    let server = ApiServer::start_locally()?;
    (0..SERVICES).for_each(|number| server.apply(service(&name(number), number)));
    Ok(server)
}

fn all() -> Served {
    let numbers: Vec<(u16, &[&str])> = (0..SERVICES).map(|number| (number, &[][..])).collect();
    serving(&numbers)
}

/// An agent serves everything; then a list is needed while one Service goes, and goes wrong first.
fn relists(faults: &[Fault]) -> Result<()> {
    relists_from(big_server()?, faults)?;
    relists_from(big_server()?.streaming_lists(), faults)
}

fn relists_from(server: ApiServer, faults: &[Fault]) -> Result<()> {
    let agent = Agent::start(&server)?;
    agent.wait_served(&all())?;
    server.go_away()?;
    server.delete(Resource::Services, &name(SERVICES - 1));
    server.forget_history();
    faults.iter().for_each(|fault| server.inject(Resource::Services, Verb::List, *fault));
    server.come_back()?;
    let gone = serving(&[(SERVICES - 1, &[])]).into_keys().next().expect("one");
    let mut wanted: Served = all();
    wanted.remove(&gone);
    // At no time less than that: the loop below would see it.
    while agent.served() != wanted {
        let now = agent.served();
        ensure!(wanted.keys().all(|frontend| now.contains_key(frontend)), "something was taken back");
        ensure!(server.count(Resource::Services, Verb::List) < 100, "lists without an end");
        std::thread::sleep(Duration::from_millis(20));
    }
    ensure!(server.pending_faults() == 0, "some fault has not struck");
    Ok(())
}

#[test]
fn rule_89_a_list_is_one_answer_from_the_servers_cache() -> Result<()> {
    for server in [big_server()?, big_server()?.streaming_lists()] {
        let agent = Agent::start(&server)?;
        agent.wait_served(&all())?;
        ensure!(server.count(Resource::Services, Verb::List) == 1, "no pages");
    }
    Ok(())
}

#[test]
fn rule_7_a_first_list_that_breaks_off_is_not_taken_for_the_whole() -> Result<()> {
    breaks_off_at_the_start(big_server()?)?;
    breaks_off_at_the_start(big_server()?.streaming_lists())
}

fn breaks_off_at_the_start(server: ApiServer) -> Result<()> {
    let agent = Agent::start(&server)?;
    agent.wait_served(&all())?;
    let maps = agent.stop();
    server.inject(Resource::Services, Verb::List, Fault::BreakAfter(100_000));
    server.hold(Resource::Services, Verb::List);
    let agent = Agent::adopt(&server, maps)?;
    server.release(Resource::Services, Verb::List);
    while !agent.is_synced() {
        ensure!(agent.served() == all(), "something was removed");
    }
    ensure!(agent.served() == all() && server.pending_faults() == 0);
    Ok(())
}

#[test]
fn rule_8_a_half_written_list_deletes_nothing() -> Result<()> {
    relists(&[Fault::BreakAfter(0), Fault::BreakAfter(50_000)])
}

#[test]
fn rule_8_a_list_that_dribbles_deletes_nothing_meanwhile() -> Result<()> {
    relists(&[Fault::Dribble(4096, Duration::from_millis(20))])
}

#[test]
fn rule_8_a_list_that_is_refused_for_a_while_is_begun_anew() -> Result<()> {
    relists(&[Fault::Status(410), Fault::Status(500)])
}

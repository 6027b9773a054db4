// SPDX-License-Identifier: MIT OR Apache-2.0
//! Credentials that are exchanged while the agent runs, as the kubelet does with a pod's every hour.

use std::{fs, thread::sleep, time::Duration};

use anyhow::{Context, Result};
use serde_json::json;
use shunt_tests::{
    api_server::{ApiServer, Resource, Verb},
    world::wait_until,
};

use super::{
    agent::{Agent, empty},
    objects::{service, serving},
    pod::Pod,
    tls::Front,
};

/// The client reads a token's file at least once a minute.
pub const A_MINUTE_AND_A_HALF: Duration = Duration::from_secs(90);

/// A server that answers whoever has the first token, and has one Service.
fn server() -> Result<ApiServer> {
    let server = ApiServer::start_locally()?;
    server.accept_tokens(&["first"]);
    server.apply(service("web", 1));
    Ok(server)
}

/// Two agents at once, because it takes a minute: one with a kubeconfig that names a token's file, and one in a pod, by TLS.
#[test]
fn a_rotated_token_is_read_again() -> Result<()> {
    let servers = [server()?, server()?];
    let directory = tempfile::tempdir().context("a directory")?;
    let (kubeconfig, token) = (directory.path().join("kubeconfig"), directory.path().join("token"));
    fs::write(&token, "first")?;
    servers[0].write_kubeconfig(&kubeconfig, &json!({"tokenFile": token}))?;
    let agent = Agent::run(&kubeconfig, empty())?;
    let front = Front::start(servers[1].address())?;
    let pod = Pod::start(&front, "first")?;
    agent.wait_served(&serving(&[(1, &[])]))?;
    for resource in Resource::WATCHED {
        servers[1].wait_for(resource, Verb::Watch, 1)?;
    }

    // As the kubelet does it: the old one is good for a while yet.
    servers.iter().for_each(|server| server.accept_tokens(&["first", "second"]));
    fs::write(&token, "second")?;
    pod.rotate("second")?;
    for server in &servers {
        wait_until("the new token", A_MINUTE_AND_A_HALF, || {
            server.disconnect();
            sleep(Duration::from_secs(1));
            Ok(server.last_token().as_deref() == Some("second"))
        })?;
        server.accept_tokens(&["second"]);
        server.apply(service("dns", 2));
    }
    agent.wait_served(&serving(&[(1, &[]), (2, &[])]))?;
    pod.wait()
}

/// A client certificate that is renewed stands in the kubeconfig, or in a file that it names. So does this token.
#[test]
fn credentials_that_are_renewed_in_the_kubeconfig_are_taken_without_a_restart() -> Result<()> {
    let server = server()?;
    let directory = tempfile::tempdir().context("a directory")?;
    let kubeconfig = directory.path().join("kubeconfig");
    server.write_kubeconfig(&kubeconfig, &json!({"token": "first"}))?;
    let agent = Agent::run(&kubeconfig, empty())?;
    agent.wait_served(&serving(&[(1, &[])]))?;
    // The old ones are good no more, and half of the new file is written.
    server.accept_tokens(&["second"]);
    fs::write(&kubeconfig, "{\"clusters\": [")?;
    server.disconnect();
    server.apply(service("dns", 2));
    sleep(Duration::from_secs(3));
    agent.keeps_serving(&serving(&[(1, &[])]))?;
    server.write_kubeconfig(&kubeconfig, &json!({"token": "second"}))?;
    agent.wait_served(&serving(&[(1, &[]), (2, &[])]))
}

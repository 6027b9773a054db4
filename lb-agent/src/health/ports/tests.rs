// SPDX-License-Identifier: MIT OR Apache-2.0
//! Real ports on the loopback device.

use std::{
    io,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::sleep,
};

use super::*;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn key() -> ServiceKey {
    ServiceKey::new("default", "web")
}

fn check(port: u16, count: usize) -> Option<HealthCheck> {
    Some(HealthCheck { port, local_endpoints: [Some(count), None] })
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind((LOOPBACK, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

fn ports(health: &Health) -> HealthPorts {
    let mut ports = HealthPorts::new(health.clone());
    ports.set_addresses(&[LOOPBACK]);
    ports
}

async fn get(port: u16) -> io::Result<String> {
    let mut stream = TcpStream::connect((LOOPBACK, port)).await?;
    stream.write_all(b"GET /any/path HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

/// Waits until nobody listens: a server that is told to end does so when its runtime gets round to it.
async fn wait_closed(port: u16) {
    let start = Instant::now();
    while get(port).await.is_ok() {
        assert!(start.elapsed() < Duration::from_secs(10), "port {port} stays open");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn rule_66_the_answer_is_kube_proxys() {
    let (health, port) = (Health::default(), free_port());
    let mut ports = ports(&health);
    ports.set(&key(), check(port, 2)).unwrap();
    let text = get(port).await.unwrap();
    let body = "{\n\t\"service\": {\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"web\"\n\t},\n\
                \t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}";
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    assert!(text.ends_with(&format!("\r\n\r\n{body}")), "{text}");
    for line in [
        "content-type: application/json\r\n",
        "x-content-type-options: nosniff\r\n",
        "x-load-balancing-endpoint-weight: 2\r\n",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
}

#[tokio::test]
async fn rule_67_without_local_endpoints_or_health_it_is_503() {
    let (health, port) = (Health::default(), free_port());
    let mut ports = ports(&health);
    ports.set(&key(), check(port, 0)).unwrap();
    let text = get(port).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 503") && text.contains("\"serviceProxyHealthy\": true"), "{text}");
    ports.set(&key(), check(port, 1)).unwrap();
    assert!(get(port).await.unwrap().starts_with("HTTP/1.1 200"), "the count is followed");
    health.set_waiting(Instant::now().checked_sub(Duration::from_secs(61)).unwrap());
    let text = get(port).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 503") && text.contains("\"serviceProxyHealthy\": false"), "{text}");
}

#[tokio::test]
async fn pitfall_16_endpoints_that_go_are_told_before_the_rest() {
    let port = free_port();
    let mut ports = ports(&Health::default());
    ports.lower(&key(), check(port, 1));
    assert!(get(port).await.is_err(), "nothing is opened");
    ports.set(&key(), check(port, 2)).unwrap();
    ports.lower(&key(), check(port, 3));
    assert!(get(port).await.unwrap().contains("\"localEndpoints\": 2"), "new ones wait");
    ports.lower(&key(), check(port, 0));
    assert!(get(port).await.unwrap().starts_with("HTTP/1.1 503"));
}

#[tokio::test]
async fn rule_68_ports_follow_their_service_and_the_nodes_addresses() {
    let (first, second) = (free_port(), free_port());
    let mut ports = ports(&Health::default());
    ports.set(&key(), check(first, 1)).unwrap();
    ports.set(&key(), check(second, 1)).unwrap();
    assert!(get(second).await.is_ok());
    wait_closed(first).await;
    assert_eq!(ports.set_addresses(&[]), [key()]);
    ports.set(&key(), check(second, 1)).unwrap();
    wait_closed(second).await;
    ports.set_addresses(&HealthPorts::EVERYWHERE);
    ports.set(&key(), Some(HealthCheck { port: second, local_endpoints: [Some(1), Some(1)] })).unwrap();
    assert!(get(second).await.is_ok(), "both families have a port of the same number");
    ports.set(&key(), None).unwrap();
    wait_closed(second).await;
}

#[tokio::test]
async fn rule_68_a_taken_port_is_a_problem_and_is_tried_again() {
    let taken = std::net::TcpListener::bind((LOOPBACK, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut ports = ports(&Health::default());
    let problem = ports.set(&key(), check(port, 1)).unwrap_err();
    assert_eq!(problem.reason, "FailedToStartServiceHealthcheck");
    assert!(problem.to_string().contains(&format!("127.0.0.1:{port}: Address already in use")), "{problem}");
    drop(taken);
    ports.set(&key(), check(port, 1)).unwrap();
    assert!(get(port).await.is_ok());
}

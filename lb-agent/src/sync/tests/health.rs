// SPDX-License-Identifier: MIT OR Apache-2.0
//! What load balancers hear at health check ports while the maps change, and when they don't.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::*;

/// Thread kubernetes 85643: load balancers hear that a node's endpoints have gone although their removal from the maps fails
/// at first, and of new ones only when the maps have them.
#[tokio::test]
async fn pitfall_16_a_health_check_port_turns_before_the_maps_lose_endpoints_and_after_they_get_them() {
    let port = free_port();
    let mut world = World::answering_at("all".parse().unwrap(), fake_doors());
    let web = service("web").of_type("LoadBalancer").tcp("http", 80).external_policy("Local");
    let with = |ips: &[&str]| {
        let empty = slice("web-1", "web").tcp("http", 8080).with(endpoint("10.0.0.9"));
        ips.iter().fold(empty, |slice, ip| slice.with(endpoint(ip).on("node-1"))).applied()
    };
    world.event(web.edit(|spec| spec.health_check_node_port = Some(port.into())).applied());
    world.event(with(&["10.0.0.1"])).event(Event::Synced).settle();
    assert_eq!(status(port).await, "200");

    world.doors().maps.fail_after(0);
    world.event(with(&[])).settle();
    assert!(world.text().contains("10.0.0.1:8080") && world.agent.reporter.standing() == 1, "{}", world.text());
    assert_eq!(status(port).await, "503");
    world.now += Duration::from_secs(1);
    world.settle();
    assert_eq!(world.agent.reporter.standing(), 0);

    world.doors().maps.fail_after(0);
    world.event(with(&["10.0.0.1"])).settle();
    assert_eq!(status(port).await, "503");
    world.now += Duration::from_secs(1);
    world.settle();
    assert_eq!(status(port).await, "200");
}

/// A load balancer would send traffic to a node where nobody serves it.
#[tokio::test]
async fn a_service_that_no_map_has_room_for_fails_its_health_check_port() {
    let cases = [
        ("frontends", Capacities { frontends: 1, ..Capacities::default() }),
        ("backends", Capacities { backends: 2, ..Capacities::default() }),
        ("Service ports", Capacities { services: 1, ..Capacities::default() }),
    ];
    for (what, capacities) in cases {
        let port = free_port();
        let doors = FakeDoors { maps: Fake::new(capacities), ..FakeDoors::default() };
        let mut world = World::answering_at("all".parse().unwrap(), doors);
        let web = service("web").of_type("LoadBalancer").tcp("http", 80).external_policy("Local");
        let two = slice("web-1", "web").tcp("http", 8080);
        let two = two.with(endpoint("10.0.0.1").on("node-1")).with(endpoint("10.0.0.2").on("node-1"));
        world.event(web.edit(|spec| spec.health_check_node_port = Some(port.into())).applied());
        let wake_at = world.event(two.applied()).event(Event::Synced).settle();
        assert_eq!((world.agent.reporter.standing(), &*status(port).await), (1, "503"), "{what}, {wake_at:?}");
    }
}

/// A Service that stays as it was found, because its split names nobody who is there, is served; so its health is told.
#[tokio::test]
async fn a_service_that_is_kept_over_a_restart_answers_for_its_health() {
    let port = free_port();
    let web = |split: &str| {
        let web = service("web").of_type("LoadBalancer").tcp("http", 80).external_policy("Local");
        let web = web.annotation("shunt.dev/split", split);
        web.edit(|spec| spec.health_check_node_port = Some(port.into())).applied()
    };
    let part = || {
        let slice = slice("v1-1", "v1").tcp("http", 8080).with(endpoint("10.0.0.1").on("node-1"));
        [service("v1").cluster_ips(&["10.96.0.11"]).tcp("http", 80).applied(), slice.applied()]
    };
    let mut before = World::answering_at("all".parse().unwrap(), fake_doors());
    before.events(part()).event(web("v1=1")).event(Event::Synced).settle();
    assert_eq!(status(port).await, "200");
    let doors = before.into_doors();
    while TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
        tokio::task::yield_now().await;
    }
    let mut world = World::answering_at("all".parse().unwrap(), doors);
    world.events(part()).event(web("v1=1,v2=1")).event(Event::Synced).settle();
    assert_eq!(world.agent.reporter.standing(), 1, "kept");
    assert_eq!(status(port).await, "200");
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// What a load balancer hears at a health check port.
async fn status(port: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.split(' ').nth(1).unwrap_or_default().to_owned()
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! The net: whoever reaches a Service's address untranslated is served all the same. Without socket doors that is the nodes' own
//! processes; and it is pods whose devices have no door, as they were born while no agent ran.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use shunt_tests::{
    load::{
        Protocol,
        talk::{self, Outcome, Talk},
    },
    world::{
        Echo, Family, LinkKind, Namespace, Options, Sockets, World, for_each_kind, kinds, objects, wait_for,
        wait_to_meet, wait_until,
    },
};

const NAME: &str = "shop";
const HOST: u8 = 96;
const NODE_PORT: u16 = 30_096;
const ALL: [&str; 3] = ["web-1", "web-2", "web-3"];
/// Born while no agent runs, with a server: bridged and routed.
const LATE: [(&str, u16, LinkKind); 2] = [("late-1", 55, LinkKind::Bridged), ("late-2", 155, LinkKind::Routed)];
const PATIENCE: Duration = Duration::from_secs(2);

/// An address outside the ServiceCIDRs, which a load balancer has given.
fn load_balancer(family: Family) -> IpAddr {
    family.pick("198.51.100.96", "2001:db8:96::1")
}

fn service() -> serde_json::Value {
    let ingress = Family::BOTH.map(|family| json!({ "ip": load_balancer(family) }));
    let spec = json!({ "type": "LoadBalancer", "ports": objects::ports(Some(NODE_PORT)) });
    objects::service(NAME, HOST, &json!({ "spec": spec, "status": { "loadBalancer": { "ingress": ingress } } }))
}

/// The load balancer's pool is given to the net; ClusterIPs have routes one by one, as in this world nobody tells of ServiceCIDRs.
const FLAGS: [&str; 6] =
    ["--nodeport-addresses", "all", "--net", "auto", "--service-cidr", "198.51.100.0/24,2001:db8:96::/64"];

fn world(options: Options) -> Result<World> {
    let world = World::with_echoes(options, &FLAGS)?;
    wait_until("the net standing", Duration::from_secs(10), || {
        Ok(world.node("node-a").namespace().run("ip", &["rule"])?.contains("lookup 83"))
    })?;
    world.put([service()].into_iter().chain(world.slices(NAME, &ALL)))?;
    Ok(world)
}

/// The Service's own addresses.
fn addresses(family: Family) -> Vec<SocketAddr> {
    vec![objects::cluster_ip(HOST, family), SocketAddr::new(load_balancer(family), objects::ECHO_PORT)]
}

/// Those, and its NodePort: what a node-a's process asks at one of the node's addresses leaves by the loopback device. (What a pod asks
/// there is received, and meets no program but that of the pod's own device.)
fn ways_from_node(world: &World, family: Family) -> Vec<SocketAddr> {
    let node_port = SocketAddr::new(world.node("node-a").address(family), NODE_PORT);
    addresses(family).into_iter().chain([node_port]).collect()
}

/// New flows from node-a are answered by all these, each way.
fn node_meets(world: &World, servers: &[&str]) -> Result<()> {
    let node = world.node("node-a").namespace();
    for_each_kind(|protocol, family| {
        ways_from_node(world, family).into_iter().try_for_each(|to| wait_to_meet(node, protocol, to, servers))
    })
}

/// New flows from a pod are.
fn pod_meets(world: &World, pod: &str, servers: &[&str]) -> Result<()> {
    for_each_kind(|protocol, family| {
        let mut addresses = addresses(family).into_iter();
        addresses.try_for_each(|to| wait_to_meet(world.pod(pod).namespace(), protocol, to, servers))
    })
    .with_context(|| pod.to_owned())
}

/// Packets whose source can't be right, and those of no connection, go nowhere; nor do any for the node that it has not asked for.
fn be_strict(node: &Namespace) -> Result<()> {
    let devices = ["all", "default", "eth0", "cni0", "shunt0"];
    for device in devices {
        node.sysctl(&[(&format!("net/ipv4/conf/{device}/rp_filter"), "1")])?;
    }
    let invalid = "ct state invalid drop";
    node.run(
        "nft",
        &[&format!(
            "table inet strict {{
                 chain raw {{ type filter hook prerouting priority -300; meta nfproto ipv6 fib saddr . iif oif missing drop; }}
                 chain input {{ type filter hook input priority 0; policy drop; {invalid}; iif lo accept; \
                     ct state established,related accept; icmpv6 type {{ 133-136 }} accept; icmp type echo-request accept; }}
                 chain forward {{ type filter hook forward priority 0; {invalid}; }}
                 chain output {{ type filter hook output priority 0; {invalid}; }}
             }}"
        )],
    )?;
    Ok(())
}

/// Rules 27 to 33, by packets: no socket door is open.
#[test]
fn the_nodes_own_processes_are_served() -> Result<()> {
    let world = world(Options::TC)?;
    let node = world.node("node-a").namespace();
    node_meets(&world, &ALL)?;
    be_strict(node)?;
    node_meets(&world, &ALL)
}

#[test]
fn the_nodes_own_processes_are_served_with_xdp() -> Result<()> {
    let world = world(Options::XDP)?;
    node_meets(&world, &ALL)
}

/// Where the backend is the node itself the packet must reach it by a device from which firewalls let it in.
#[test]
fn a_backend_in_the_nodes_network_is_served() -> Result<()> {
    let mut world = world(Options::TC)?;
    let echo = Echo::start(world.node("node-a").namespace(), "node-a")?;
    let slices = Family::BOTH.map(|family| {
        let mut slice = world.slices(NAME, &["web-1"])[usize::from(family == Family::V6)].clone();
        slice["endpoints"][0]["addresses"] = json!([world.node("node-a").address(family)]);
        slice["endpoints"][0]["nodeName"] = json!("node-a");
        slice
    });
    world.put(slices)?;
    let node = world.node("node-a").namespace();
    be_strict(node)?;
    node_meets(&world, &["node-a"])?;
    world.node_mut("node-a").agent_mut().kill()?;
    add_late_pods(&mut world)?;
    for (name, ..) in LATE {
        pod_meets(&world, name, &["node-a"])?;
    }
    drop(echo);
    Ok(())
}

/// Rule 40 and rule 44: nobody serves, and who asks hears so at once; to an address that is nobody's nothing goes out.
#[test]
fn the_nodes_own_processes_are_refused() -> Result<()> {
    let world = world(Options::TC)?;
    let node = world.node("node-a").namespace();
    world.put(world.slices(NAME, &[]))?;
    for (protocol, family) in kinds() {
        for to in ways_from_node(&world, family) {
            wait_for(node, protocol, to, &Outcome::Refused)?;
        }
        let nobody = SocketAddr::new(family.pick("198.51.100.77", "2001:db8:96::77"), 7);
        ensure!(talk::attempt(node, protocol, nobody)? == Outcome::Silence, "{protocol:?} {nobody}");
    }
    Ok(())
}

/// A connected UDP socket of the node follows the Service: to another backend, to none, and back, without an error in between.
#[test]
fn a_connected_udp_socket_of_the_node_follows_the_service() -> Result<()> {
    for options in [Options::TC, Options::HOST_SOCKETS] {
        let world = world(options)?;
        node_meets(&world, &ALL)?;
        // Addresses of load balancers the socket door keeps, where it is open.
        let is_nets = |to: &SocketAddr| {
            options.sockets == Sockets::Off || Family::BOTH.map(load_balancer).iter().all(|ip| *ip != to.ip())
        };
        world.node("node-a").namespace().enter(|| follows(&world, is_nets))??;
    }
    Ok(())
}

/// A connected socket of IPv6 that sends by IPv4 (`::ffff:10.96.0.1`), to which the kernel says the address with each datagram.
#[test]
fn a_connected_udp_socket_of_ipv6_reaches_an_ipv4_service() -> Result<()> {
    let world = world(Options::HOST_SOCKETS)?;
    node_meets(&world, &ALL)?;
    world.node("node-a").namespace().enter(|| -> Result<()> {
        let IpAddr::V4(service) = objects::cluster_ip(HOST, Family::V4).ip() else { unreachable!() };
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect((service.to_ipv6_mapped(), objects::ECHO_PORT))?;
        for _ in 0..3 {
            let mut answer = [0; 256];
            socket.send(b"who?\n")?;
            let length = socket.recv(&mut answer)?;
            ensure!(answer[..length].starts_with(b"web-"), "{:?}", String::from_utf8_lossy(&answer[..length]));
        }
        Ok(())
    })?
}

fn follows(world: &World, is_nets: impl Fn(&SocketAddr) -> bool) -> Result<()> {
    for family in Family::BOTH {
        for to in ways_from_node(world, family).into_iter().filter(&is_nets) {
            let mut talk = Talk::begin(Protocol::Udp, to, PATIENCE)?;
            for servers in [&["web-1"][..], &["web-2"], &["web-3"], &["web-1"]] {
                world.put(world.slices(NAME, servers))?;
                wait_until(&format!("{servers:?} answering at {to}"), Duration::from_secs(10), || {
                    let answer = talk.ask().with_context(|| format!("{servers:?} {to}"))?;
                    Ok(servers.contains(&answer.server.as_str()))
                })?;
            }
            world.put(world.slices(NAME, &[]))?;
            wait_until(&format!("a refusal at {to}"), Duration::from_secs(10), || {
                Ok(talk.ask().is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused))
            })?;
            world.put(world.slices(NAME, &["web-2"]))?;
            wait_until(&format!("web-2 answering again at {to}"), Duration::from_secs(10), || {
                Ok(talk.ask().is_ok_and(|answer| answer.server == "web-2"))
            })?;
        }
    }
    Ok(())
}

fn add_late_pods(world: &mut World) -> Result<()> {
    for (name, host, link) in LATE {
        world.add_pod(name, "node-a", host, link)?;
        let echo = Echo::start(world.pod(name).namespace(), name)?;
        world.pod_mut(name).run(echo);
    }
    Ok(())
}

/// Flannel's rules, and those of others: what pods send out of the pods' network gets the node's address, and that to a Service looks like
/// it.
fn masquerade(node: &Namespace) -> Result<()> {
    node.run(
        "nft",
        &["table inet hide { chain postrouting { type nat hook postrouting priority srcnat;
             ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade;
             ip6 saddr fd00:244::/32 ip6 daddr != fd00:244::/32 masquerade; }; }"],
    )
    .map(drop)
}

/// Both ends may have been born without an agent; and nothing is lost when one comes.
#[test]
fn pods_that_are_born_while_no_agent_runs_are_served() -> Result<()> {
    serves_the_newborn(world(Options::TC)?)
}

/// Then the net knows their flows under the node's address, and the door would not know them again.
#[test]
fn pods_that_are_born_while_no_agent_runs_are_served_behind_a_masquerade() -> Result<()> {
    let world = world(Options::TC)?;
    masquerade(world.node("node-a").namespace())?;
    serves_the_newborn(world)
}

/// `trace` of the node itself, and of a pod without a door.
fn says_that_it_is_the_net(world: &World) -> Result<()> {
    for family in Family::BOTH {
        let node = world.node("node-a");
        let (own, to) = (node.address(family), objects::cluster_ip(HOST, family));
        let at_node = SocketAddr::new(own, NODE_PORT);
        let late = world.pod("late-2").address(family);
        for (from, to, device) in [(own, to, "shunt0"), (late, to, "shunt0"), (own, at_node, "lo")] {
            let said = node.lb_agent(&format!("trace --from {from} --to {to}"))?;
            let is_decided = said.contains("verdict     translated, and");
            ensure!(is_decided && said.contains(&format!("leaving by {device} from inside")), "{said}");
        }
    }
    Ok(())
}

fn serves_the_newborn(mut world: World) -> Result<()> {
    // The agent knows them as endpoints before they are.
    add_late_pods(&mut world)?;
    let servers = ["late-1", "late-2", "web-1", "web-2", "web-3"];
    world.put(world.slices(NAME, &servers))?;
    pod_meets(&world, "client", &servers)?;
    world.node_mut("node-a").agent_mut().kill()?;
    for (name, ..) in LATE {
        world.remove_pod(name)?;
    }
    add_late_pods(&mut world)?;
    says_that_it_is_the_net(&world)?;
    for strict in [false, true] {
        if strict {
            be_strict(world.node("node-a").namespace())?;
        }
        for (name, ..) in LATE {
            pod_meets(&world, name, &servers)?;
        }
        // By doors, to backends without.
        pod_meets(&world, "client", &servers)?;
        node_meets(&world, &servers)?;
    }
    // Flows go on when the doors open, and when they have.
    let mut talks = Vec::new();
    for (name, (protocol, family)) in LATE.into_iter().flat_map(|(name, ..)| kinds().map(move |kind| (name, kind))) {
        for to in addresses(family) {
            for _ in 0..8 {
                let talk = world.pod(name).namespace().enter(|| Talk::begin(protocol, to, PATIENCE))??;
                talks.push((name, protocol, to, talk));
            }
        }
    }
    let ask_all = |talks: &mut Vec<(&str, Protocol, SocketAddr, Talk)>, when: &str| {
        talks.iter_mut().try_for_each(|(name, protocol, to, talk)| {
            talk.ask().map(drop).with_context(|| format!("{name} {protocol:?} {to} {when}"))
        })
    };
    ask_all(&mut talks, "before the agent starts")?;
    let xdp = world.options().xdp;
    world.node_mut("node-a").start_agent(xdp)?;
    ask_all(&mut talks, "while the agent starts")?;
    world.node("node-a").agent().wait_ready()?;
    for _ in 0..3 {
        ask_all(&mut talks, "when the doors are open")?;
        std::thread::sleep(Duration::from_millis(700));
    }
    for (name, ..) in LATE {
        pod_meets(&world, name, &servers)?;
    }
    Ok(())
}

/// A pod that reaches itself through its Service (rule 49).
#[test]
fn a_pod_without_a_door_reaches_itself() -> Result<()> {
    let mut world = world(Options::TC)?;
    add_late_pods(&mut world)?;
    for (name, host, link) in LATE {
        world.put(world.slices(NAME, &[name]))?;
        pod_meets(&world, "client", &[name])?;
        world.node_mut("node-a").agent_mut().kill()?;
        world.remove_pod(name)?;
        world.add_pod(name, "node-a", host, link)?;
        let echo = Echo::start(world.pod(name).namespace(), name)?;
        world.pod_mut(name).run(echo);
        pod_meets(&world, name, &[name])?;
        let xdp = world.options().xdp;
        world.node_mut("node-a").start_agent(xdp)?;
        world.node("node-a").agent().wait_ready()?;
    }
    Ok(())
}

/// Raw sockets pass no socket door, and a SYN of theirs is answered by the backend (pitfall 38).
#[test]
fn a_raw_socket_of_the_node_reaches_a_service() -> Result<()> {
    let world = world(Options::HOST_SOCKETS)?;
    node_meets(&world, &ALL)?;
    for family in Family::BOTH {
        let to = objects::cluster_ip(HOST, family);
        let (ip, port) = (to.ip().to_string(), to.port().to_string());
        let flag = if family == Family::V4 { "-4" } else { "-6" };
        let arguments = [flag, "-T", "-n", "-q", "1", "-w", "2", "-m", "4", "-p", &port, &ip];
        let shown = world.node("node-a").namespace().run("traceroute", &arguments)?;
        ensure!(shown.lines().skip(1).any(|line| line.contains(&ip) && line.contains(" ms")), "{shown}");
    }
    Ok(())
}

/// The node's kernel sends without a socket of a process: a tunnel whose other end is a Service (pitfall 34).
#[test]
fn a_tunnel_of_the_kernel_reaches_a_service() -> Result<()> {
    let world = world(Options::HOST_SOCKETS)?;
    let ports = json!([{ "name": "vxlan", "protocol": "UDP", "port": 4789 }]);
    world.put([objects::service("tunnel", HOST + 1, &json!({ "spec": { "ports": ports } }))])?;
    let slices = world.slices("tunnel", &["web-2"]).map(|mut slice| {
        slice["ports"] = json!([{ "name": "vxlan", "protocol": "UDP", "port": 4789 }]);
        slice
    });
    world.put(slices)?;
    for family in Family::BOTH {
        let node = world.node("node-a");
        let service = objects::cluster_ip(HOST + 1, family).ip();
        let (own, pod) = (node.address(family), world.pod("web-2").address(family));
        let add = |namespace: &Namespace, local: IpAddr, remote: IpAddr, last: u8| {
            namespace.ip(&format!(
                "link add vx0 mtu 1350 type vxlan id 7 local {local} remote {remote} dstport 4789 srcport 4789 4790\n\
                 addr add 192.168.77.{last}/24 dev vx0\nlink set vx0 up"
            ))
        };
        add(node.namespace(), own, service, 1)?;
        add(world.pod("web-2").namespace(), pod, own, 2)?;
        wait_until(&format!("{family:?}: an echo through the tunnel"), Duration::from_secs(10), || {
            Ok(node.namespace().run("ping", &["-c", "1", "-W", "1", "192.168.77.2"]).is_ok())
        })?;
        for namespace in [node.namespace(), world.pod("web-2").namespace()] {
            namespace.ip("link del vx0")?;
        }
    }
    Ok(())
}

/// Nothing of it is left behind.
#[test]
fn cleanup_takes_the_net_away() -> Result<()> {
    let mut world = world(Options::TC)?;
    let has = |world: &World, what: &str, arguments: &[&str]| -> Result<bool> {
        Ok(world.node("node-a").namespace().run("ip", arguments)?.contains(what))
    };
    wait_until("the net standing", Duration::from_secs(10), || {
        let has_rules = has(&world, "lookup 83", &["rule"])? && has(&world, "lookup 83", &["-6", "rule"])?;
        Ok(has_rules && has(&world, "shunt0", &["link"])?)
    })?;
    world.node_mut("node-a").agent_mut().terminate()?;
    let dry = world.node("node-a").lb_agent("cleanup --dry-run")?;
    ensure!(dry.contains("shunt0") && has(&world, "shunt0", &["link"])?, "{dry}");
    let said = world.node("node-a").lb_agent("cleanup")?;
    ensure!(said.contains("shunt0"), "{said}");
    ensure!(!has(&world, "shunt0", &["link"])?, "the device is there still");
    for family in ["-4", "-6"] {
        ensure!(!has(&world, "lookup 83", &[family, "rule"])?, "{family}: the rule is there still");
    }
    Ok(())
}

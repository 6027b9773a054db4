// SPDX-License-Identifier: MIT OR Apache-2.0
//! Things change while traffic flows: backends, pods, Services.

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread::sleep,
    time::Duration,
};

use anyhow::{Result, ensure};
use shunt_tests::world::{Family, LinkKind, Options, World, sample, wait_until};

const SETTLE: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_secs(5);

fn backends_change_under_load(options: Options) -> Result<()> {
    let mut world = World::with_agents(options)?;
    world.add_web_pod("web-4", "node-a", 14, LinkKind::Bridged)?;
    world.wait_for_web("web-4")?;
    let load = world.load_web()?;
    // Every set is another Maglev table; indices are freed and used again.
    for _ in 0..3 {
        for backends in [&["web-1", "web-3", "web-4"][..], &["web-4"], &["web-1", "web-2", "web-3"]] {
            world.set_web_endpoints(backends)?;
            sleep(SETTLE / 2);
        }
    }
    world.route_web_to(&["web-2", "web-4"])?;
    // What was asked before may be answered yet.
    sleep(SETTLE);
    load.next_phase();
    sleep(SETTLE);
    let [during, after] = <[_; 2]>::try_from(load.finish()).expect("two phases");
    ensure!(during.failed() == 0 && after.failed() == 0, "{:?} {:?}", during.errors, after.errors);
    ensure!(after.backends.keys().eq(["web-2", "web-4"]), "{:?}", after.backends);
    Ok(())
}

#[test]
fn backends_change_under_load_by_tc() -> Result<()> {
    backends_change_under_load(Options::TC)
}

#[test]
fn backends_change_under_load_with_xdp() -> Result<()> {
    backends_change_under_load(Options::XDP)
}

/// Rule 58: an established connection stays with its backend when that leaves the Service.
#[test]
fn rule_58_established_connections_stay() -> Result<()> {
    let world = World::with_agents(Options::TC)?;
    world.route_web_to(&["web-2"])?;
    let ask = |stream: &mut TcpStream| -> Result<String> {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")?;
        let mut buffer = [0; 1024];
        let length = stream.read(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    for family in Family::BOTH {
        let targets = [
            (world.pod("client").namespace(), sample::web(family)),
            (world.outside(), sample::web_at(world.node("node-a").address(family))),
        ];
        for (from, to) in targets {
            let mut stream = from.enter(|| TcpStream::connect_timeout(&to, LIMIT))??;
            stream.set_read_timeout(Some(LIMIT))?;
            ensure!(ask(&mut stream)?.contains("\r\n\r\nweb-2 "));
            world.route_web_to(&["web-1"])?;
            for _ in 0..3 {
                let answer = ask(&mut stream)?;
                ensure!(answer.contains("\r\n\r\nweb-2 "), "{to}: {answer}");
            }
            world.route_web_to(&["web-2"])?;
        }
    }
    Ok(())
}

/// A pod whose link appears while the agent runs is served, and nothing of it stays when it has gone.
#[test]
fn pods_links_are_attached_live_and_forgotten() -> Result<()> {
    let mut world = World::with_agents(Options::TC)?;
    let before = pinned(&world)?;
    for (kind, host) in [(LinkKind::Bridged, 15), (LinkKind::Routed, 215)] {
        world.add_pod("late", "node-a", host, kind)?;
        for family in Family::BOTH {
            wait_until(&format!("a {kind:?} pod being served {family:?}"), LIMIT, || {
                let connect = || TcpStream::connect_timeout(&sample::web(family), Duration::from_millis(200));
                Ok(world.pod("late").namespace().enter(connect)?.is_ok())
            })?;
        }
        ensure!(pinned(&world)? > before);
        world.remove_pod("late")?;
        wait_until("the pod's links being forgotten", LIMIT, || Ok(pinned(&world)? == before))?;
    }
    Ok(())
}

/// How many files node-a's agent has pinned.
fn pinned(world: &World) -> Result<usize> {
    let mut directories = vec![world.node("node-a").bpffs().clone()];
    let mut count = 0;
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() { directories.push(entry.path()) } else { count += 1 }
        }
    }
    Ok(count)
}

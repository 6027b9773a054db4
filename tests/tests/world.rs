// SPDX-License-Identifier: MIT OR Apache-2.0
//! The world itself, without Shunt: what the other tests take for granted.

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::Result;
use shunt_tests::{
    load::{self, Target, dns},
    world::{Capture, Family, Options, World, http_port},
};

const LIMIT: Duration = Duration::from_secs(2);
const PODS: [&str; 4] = ["web-1", "web-2", "web-3", "caller"];

#[test]
fn pods_of_all_kinds_reach_each_other_and_nothing_stays_behind() -> Result<()> {
    let world = World::new(Options::TC)?;
    let (name, directory, bpffs) =
        (world.site().name().to_owned(), world.site().directory().clone(), world.site().bpffs().clone());
    for from in PODS {
        for family in Family::BOTH {
            let web =
                ["web-1", "web-2", "web-3"].map(|pod| SocketAddr::new(world.pod(pod).address(family), http_port()));
            let tally = load::send(world.pod(from).namespace(), &web.map(Target::Http), 12, &|| {})?;
            assert_eq!(tally.failed(), 0, "{from} {family:?}: {:?}", tally.errors);
            for pod in ["web-1", "web-2", "web-3"] {
                assert_eq!(tally.answered_by(pod), 4, "{from} {family:?}");
            }
            let server = SocketAddr::new(world.pod("dns-1").address(family), 5353);
            world.pod(from).namespace().enter(|| dns::query(server, 7, LIMIT))??;
        }
    }
    drop(world);
    assert!(!directory.exists() && !bpffs.exists());
    let namespaces = std::fs::read_dir("/run/netns")?.flatten().map(|entry| entry.file_name());
    let left: Vec<_> = namespaces.filter(|entry| entry.to_string_lossy().starts_with(&name)).collect();
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}

#[test]
fn the_outside_client_knows_no_way_to_a_pod() -> Result<()> {
    let world = World::new(Options::TC)?;
    for family in Family::BOTH {
        let target = Target::Http(SocketAddr::new(world.pod("web-1").address(family), http_port()));
        let tally = load::send(world.outside(), &[target], 1, &|| {})?;
        assert_eq!(tally.failed(), 1, "{family:?}");
    }
    Ok(())
}

#[test]
fn captures_see_wrong_checksums_unless_offloads_are_off() -> Result<()> {
    for (options, is_right) in [(Options::TC, false), (Options::TC_WITHOUT_OFFLOADS, true), (Options::XDP, true)] {
        let world = World::new(options)?;
        let client = world.pod("client").namespace();
        let capture = Capture::start(world.site(), client, "eth0", "tcp")?;
        let target = Target::Http(SocketAddr::new(world.pod("web-2").address(Family::V4), http_port()));
        assert_eq!(load::send(client, &[target], 4, &|| {})?.failed(), 0);
        let outcome = capture.finish();
        assert_eq!(outcome.is_ok(), is_right, "{options:?}: {:?}", outcome.err());
    }
    Ok(())
}

#[test]
fn pods_come_and_go() -> Result<()> {
    use shunt_tests::world::LinkKind;
    let mut world = World::new(Options::TC)?;
    world.add_web_pod("web-4", "node-a", 204, LinkKind::Routed)?;
    let interface = world.pod("web-4").interface();
    assert!(world.node("node-a").namespace().run("ip", &["link", "show", &interface]).is_ok());
    world.remove_pod("web-4")?;
    assert!(world.node("node-a").namespace().run("ip", &["link", "show", &interface]).is_err());
    assert!(!Path::new("/run/netns").join(format!("{}-web-4", world.site().name())).exists());
    Ok(())
}

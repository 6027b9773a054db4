// SPDX-License-Identifier: MIT OR Apache-2.0
//! Session affinity: which backend a client stays with, and for how long (rules 54 to 57).

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result, ensure};
use lb_common::flow::protocol;
use shunt_tests::{
    packets::{
        POD, Rig, UPLINK,
        node::{self, BACKEND_PORT, Both, CALLER, HERE, OUTSIDE, pick},
        with_rig,
    },
    reference::{Affinity, Backend, Door, List, Setup, Version},
};

use crate::step::{PROTOCOLS, end, first, send};

/// Idle ticks.
const TIMEOUT: u32 = 100;
/// Backends of the Service.
const BACKENDS: u32 = 10;
/// The backend that a changed table sends everybody to.
const SUCCESSOR: Both = ["10.1.0.99", "fd00:1::99"];

/// The first of a version's backends; the successor comes after them.
fn first_index(version: Version) -> u32 {
    if version == Version::V4 { 40 } else { 52 }
}

fn successor_index(version: Version) -> u32 {
    first_index(version) + BACKENDS
}

/// [`HERE`] with affinity and ten backends.
fn prepare(setup: &mut Setup) {
    for version in Version::BOTH {
        for number in 0..BACKENDS {
            let address = format!("{}{number}", if version == Version::V4 { "10.1.0.10" } else { "fd00:1::10" });
            let address = address.parse().expect("an address");
            node::add_backend(setup, first_index(version) + number, (address, BACKEND_PORT), true);
        }
        let slots: Vec<u32> = (0..101).map(|slot| first_index(version) + slot % BACKENDS).collect();
        node::change_frontends(setup, HERE.index(version), |frontend| {
            frontend.tables = [slots.clone(), slots.clone()];
            frontend.affinity = Some(TIMEOUT);
        });
    }
}

/// Sends new clients elsewhere; the other backends stay in their lists.
fn change_tables(setup: &mut Setup, version: Version) {
    let index = successor_index(version);
    node::add_backend(setup, index, (pick(SUCCESSOR, version), BACKEND_PORT), true);
    node::change_frontends(setup, HERE.index(version), |frontend| frontend.tables = [vec![index; 7], vec![index; 7]]);
}

/// The index of the backend that a new flow gets.
fn backend_of(rig: &mut Rig, at: (Door, u32), protocol: u8, ends: (SocketAddr, SocketAddr)) -> Result<u32> {
    let sent = send(rig, at, first(protocol, ends.0, ends.1).build())?;
    let chosen: Vec<u32> =
        sent.moved.backends.iter().filter(|(_, moved)| moved.flows == 1).map(|(&index, _)| index).collect();
    ensure!(chosen.len() == 1, "not a new flow: {sent:?}");
    Ok(chosen[0])
}

/// The same for a client outside, from one of its ports to the NodePort.
fn from_outside(rig: &mut Rig, version: Version, port: u16) -> Result<u32> {
    let door = Door::IN[usize::from(port % 2)];
    backend_of(rig, (door, UPLINK), protocol::TCP, (end(OUTSIDE, version, port), HERE.at_node(version)))
}

/// What stands in the table for a client.
fn affinity(rig: &Rig, client: IpAddr) -> Result<Affinity> {
    rig.compare_flows()?;
    let key = (HERE.index(Version::of(client)), client);
    rig.model().affinities.0.get(&key).copied().with_context(|| format!("no affinity of {client}"))
}

#[test]
fn rule_54_a_client_stays_with_its_backend_from_all_ports_to_all_frontends() -> Result<()> {
    with_rig(node::setup, |rig| {
        rig.change(prepare)?;
        for version in Version::BOTH {
            for (client, ways) in [
                (OUTSIDE, [(Door::Xdp, UPLINK), (Door::Ingress, UPLINK)]),
                (CALLER, [(Door::Ingress, POD), (Door::Ingress, POD)]),
            ] {
                let mut met = BTreeSet::new();
                for port in 40_000..40_010 {
                    for (at, frontend) in ways.into_iter().zip([HERE.at_node(version), HERE.at_cluster_ip(version)]) {
                        for protocol in PROTOCOLS {
                            met.insert(backend_of(rig, at, protocol, (end(client, version, port), frontend))?);
                        }
                    }
                }
                ensure!(met.len() == 1, "{client:?} met {met:?}");
            }
        }
        rig.compare_flows()
    })
}

#[test]
fn clients_are_spread_and_without_affinity_their_flows_are() -> Result<()> {
    with_rig(node::setup, |rig| {
        rig.change(prepare)?;
        for version in Version::BOTH {
            let mut met = BTreeSet::new();
            for host in 1..=50 {
                let client = format!("{}{host}", if version == Version::V4 { "203.0.113." } else { "2001:db8:c::" });
                let ends = (SocketAddr::new(client.parse()?, 40_000), HERE.at_node(version));
                met.insert(backend_of(rig, (Door::Xdp, UPLINK), protocol::TCP, ends)?);
            }
            ensure!(met.len() > 5, "{met:?}");
            let index = HERE.index(version);
            rig.change(|setup| node::change_frontends(setup, index, |frontend| frontend.affinity = None))?;
            let met = (41_000..41_050).map(|port| from_outside(rig, version, port)).collect::<Result<BTreeSet<_>>>()?;
            ensure!(met.len() > 5, "{met:?}");
        }
        rig.compare_flows()
    })
}

#[test]
fn a_lost_affinity_meets_the_same_backend() -> Result<()> {
    with_rig(node::setup, |rig| {
        rig.change(prepare)?;
        for version in Version::BOTH {
            let before = from_outside(rig, version, 40_000)?;
            rig.restart(rig.model().setup.clone())?;
            ensure!(rig.model().affinities.0.is_empty(), "not lost");
            let after = from_outside(rig, version, 40_001)?;
            ensure!(after == before, "{after}, not {before}");
        }
        rig.compare_flows()
    })
}

#[test]
fn rule_55_each_new_flow_refreshes_and_idleness_ends() -> Result<()> {
    with_rig(node::setup, |rig| {
        rig.change(prepare)?;
        for version in Version::BOTH {
            let chosen = from_outside(rig, version, 40_000)?;
            rig.change(|setup| change_tables(setup, version))?;
            for port in 40_001..40_004 {
                // Two ticks to spare: one may end while we wait.
                rig.wait(TIMEOUT - 2)?;
                let kept = from_outside(rig, version, port)?;
                ensure!(kept == chosen, "port {port}: {kept}, not {chosen}");
            }
            rig.wait(TIMEOUT + 1)?;
            let late = from_outside(rig, version, 40_004)?;
            ensure!(late == successor_index(version), "{late}");
            let noted = affinity(rig, pick(OUTSIDE, version))?;
            ensure!(noted.backend == late, "{noted:?}");
        }
        Ok(())
    })
}

#[test]
fn rule_55_a_flow_that_goes_on_refreshes_nothing() -> Result<()> {
    with_rig(node::setup, |rig| {
        rig.change(prepare)?;
        for version in Version::BOTH {
            from_outside(rig, version, 40_000)?;
            rig.wait(5)?;
            let before = affinity(rig, pick(OUTSIDE, version))?;
            for door in Door::IN {
                let frame = first(protocol::TCP, end(OUTSIDE, version, 40_000), HERE.at_node(version)).build();
                send(rig, (door, UPLINK), frame)?;
            }
            let after = affinity(rig, pick(OUTSIDE, version))?;
            ensure!(after == before, "{after:?}, not {before:?}");
        }
        Ok(())
    })
}

#[test]
fn rule_56_a_backend_that_left_the_list_is_left() -> Result<()> {
    with_rig(node::setup, |rig| {
        rig.change(prepare)?;
        for version in Version::BOTH {
            let chosen = from_outside(rig, version, 40_000)?;
            rig.change(|setup| {
                change_tables(setup, version);
                setup.backends[chosen as usize].is_listed = [false, true];
            })?;
            let moved = from_outside(rig, version, 40_001)?;
            ensure!(moved == successor_index(version), "{moved}");
            ensure!(affinity(rig, pick(OUTSIDE, version))?.backend == moved, "not noted");
            // It does not come back to the old one.
            rig.change(|setup| setup.backends[chosen as usize].is_listed = [true, true])?;
            let kept = from_outside(rig, version, 40_002)?;
            ensure!(kept == moved, "{kept}");
        }
        Ok(())
    })
}

#[test]
fn rule_56_a_backend_that_has_gone_is_left_even_if_its_index_serves_again() -> Result<()> {
    with_rig(node::setup, |rig| {
        rig.change(prepare)?;
        for version in Version::BOTH {
            let chosen = from_outside(rig, version, 40_000)?;
            let address = rig.model().setup.backends[chosen as usize].address.context("in use")?;
            rig.change(|setup| {
                change_tables(setup, version);
                let generation = setup.backends[chosen as usize].generation + 1;
                setup.backends[chosen as usize] = Backend::free(generation);
            })?;
            let moved = from_outside(rig, version, 40_001)?;
            ensure!(moved == successor_index(version), "{moved}");
            // Another client's goes as well, and its index has a new owner before the client comes again.
            let pod = (end(CALLER, version, 40_000), HERE.at_cluster_ip(version));
            backend_of(rig, (Door::Ingress, POD), protocol::TCP, pod)?;
            rig.change(|setup| {
                node::add_backend(setup, chosen, address, true);
                let successor = successor_index(version);
                let generation = setup.backends[successor as usize].generation + 1;
                setup.backends[successor as usize] = Backend::free(generation);
                node::add_backend(setup, successor, (pick(SUCCESSOR, version), BACKEND_PORT), true);
                node::change_frontends(setup, HERE.index(version), |frontend| {
                    frontend.tables = [vec![chosen; 7], vec![chosen; 7]];
                });
            })?;
            let pod = (end(CALLER, version, 40_001), HERE.at_cluster_ip(version));
            let moved = backend_of(rig, (Door::Ingress, POD), protocol::TCP, pod)?;
            ensure!(moved == chosen, "{moved}");
        }
        rig.compare_flows()
    })
}

#[test]
fn rule_56_the_list_is_that_of_the_clients_side() -> Result<()> {
    with_rig(node::setup, |rig| {
        rig.change(prepare)?;
        for version in Version::BOTH {
            let index = HERE.index(version);
            rig.change(|setup| {
                node::change_frontends(setup, index, |frontend| frontend.lists = [List::Cluster, List::Local]);
            })?;
            let outside = from_outside(rig, version, 40_000)?;
            let pod = |port| (end(CALLER, version, port), HERE.at_cluster_ip(version));
            let inside = backend_of(rig, (Door::Ingress, POD), protocol::TCP, pod(40_000))?;
            rig.change(|setup| {
                change_tables(setup, version);
                setup.backends[outside as usize].is_listed = [true, false];
                setup.backends[inside as usize].is_listed = [true, false];
            })?;
            let moved = from_outside(rig, version, 40_001)?;
            ensure!(moved == successor_index(version), "outside, the local list counts: {moved}");
            let kept = backend_of(rig, (Door::Ingress, POD), protocol::TCP, pod(40_001))?;
            ensure!(kept == inside, "inside, the cluster list counts: {kept}");
        }
        rig.compare_flows()
    })
}

#[test]
fn rule_57_the_client_is_known_by_its_own_address_where_its_source_is_translated() -> Result<()> {
    with_rig(node::setup, |rig| {
        rig.change(|setup| {
            prepare(setup);
            setup.masquerades_all = true;
        })?;
        for version in Version::BOTH {
            let chosen = from_outside(rig, version, 40_000)?;
            ensure!(affinity(rig, pick(OUTSIDE, version))?.backend == chosen, "not noted");
        }
        Ok(())
    })
}

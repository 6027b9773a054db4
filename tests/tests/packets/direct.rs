// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a pod sends to a backend itself, from a port by which a Service's flow leads there: the backend must be able to tell them apart
//! (openshift/sdn 269, cilium 47396, 8739).

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use lb_common::flow::{
    protocol,
    tcp_flags::{ACK, FIN, RST, SYN},
};
use shunt_tests::{
    packets::{
        POD, Rig, Segment, UPLINK,
        node::{self, CALLER, HERE, OUTSIDE, Service, THERE},
        with_rig,
    },
    reference::{Door, Tuple, Version},
};

use crate::step::{PROTOCOLS, Step, answer, end, first, next, send, source_port, take};

const IN: (Door, u32) = (Door::Ingress, POD);
const OUT: (Door, u32) = (Door::Egress, POD);

/// A pod, a Service and its backend.
#[derive(Clone, Copy)]
struct Ends {
    protocol: u8,
    client: SocketAddr,
    frontend: SocketAddr,
    backend: SocketAddr,
    version: Version,
}

impl Ends {
    fn of(service: Service, version: Version, protocol: u8) -> Self {
        let (frontend, backend) = (service.at_cluster_ip(version), service.backend(version));
        Self { protocol, client: end(CALLER, version, 40_000), frontend, backend, version }
    }

    fn all() -> impl Iterator<Item = Self> {
        let kinds = Version::BOTH.into_iter().flat_map(|version| PROTOCOLS.map(|protocol| (version, protocol)));
        kinds.flat_map(|(version, protocol)| [HERE, THERE].map(|service| Self::of(service, version, protocol)))
    }

    /// The flow of the Service, as far as it goes without the client's second packet.
    fn begin_service(&self, rig: &mut Rig) -> Result<()> {
        let Self { protocol, client, frontend, backend, .. } = *self;
        let there = send(rig, IN, first(protocol, client, frontend).build())?;
        ensure!(
            there.frame == first(protocol, client, backend).build(),
            "the Service's flow has another port: {there:?}"
        );
        self.goes_on(rig)
    }

    /// The Service's flow goes on as it began.
    fn goes_on(&self, rig: &mut Rig) -> Result<()> {
        let Self { protocol, client, frontend, backend, .. } = *self;
        let back = send(rig, OUT, answer(protocol, backend, client).build())?;
        ensure!(back.frame == answer(protocol, frontend, client).build(), "an answer of the Service: {back:?}");
        let there = send(rig, IN, next(protocol, client, frontend).build())?;
        ensure!(there.frame == next(protocol, client, backend).build(), "{there:?}");
        Ok(())
    }

    /// The pod speaks to the backend itself; gives the port by which it is seen there.
    fn begin_direct(&self, rig: &mut Rig) -> Result<u16> {
        let Self { protocol, client, backend, version, .. } = *self;
        let there = send(rig, IN, first(protocol, client, backend).build())?;
        let port = source_port(&there.frame, version);
        let seen = SocketAddr::new(client.ip(), port);
        ensure!(there.frame == first(protocol, seen, backend).build(), "{there:?}");
        Ok(port)
    }

    /// Both ends of the direct flow hear each other, and nobody is counted for it.
    fn direct_goes_on(&self, rig: &mut Rig, port: u16) -> Result<()> {
        let Self { protocol, client, backend, .. } = *self;
        let seen = SocketAddr::new(client.ip(), port);
        let back = send(rig, OUT, answer(protocol, backend, seen).build())?;
        ensure!(back.frame == answer(protocol, backend, client).build(), "an answer to the pod: {back:?}");
        let there = send(rig, IN, next(protocol, client, backend).build())?;
        ensure!(there.frame == next(protocol, seen, backend).build(), "{there:?}");
        let counted = rig.counters()?;
        ensure!(counted.services.values().all(|service| service.dropped == 0), "{counted}");
        Ok(())
    }
}

#[test]
fn pitfall_30_a_pod_reaches_a_backend_itself_by_the_port_of_a_services_flow() -> Result<()> {
    for ends in Ends::all() {
        with_rig(node::setup, |rig| {
            ends.begin_service(rig)?;
            let port = ends.begin_direct(rig)?;
            ensure!(port != 40_000 && rig.model().setup.is_source_port(port), "by port {port}");
            for _ in 0..3 {
                ends.direct_goes_on(rig, port)?;
                ends.goes_on(rig)?;
            }
            rig.compare_flows()
        })
        .with_context(|| format!("{:?} {:?}", ends.protocol, ends.backend))?;
    }
    Ok(())
}

/// UDP that was direct first moves aside when the Service's flow begins; a connection that was there first can't be known.
#[test]
fn pitfall_30_udp_in_the_other_order() -> Result<()> {
    for ends in Ends::all().filter(|ends| ends.protocol == protocol::UDP) {
        with_rig(node::setup, |rig| {
            ensure!(ends.begin_direct(rig)? == 40_000, "nobody is in the way yet");
            ends.begin_service(rig)?;
            let port = ends.begin_direct(rig)?;
            ensure!(port != 40_000, "the backend can't tell the two apart");
            ends.direct_goes_on(rig, port)?;
            ends.goes_on(rig)?;
            rig.compare_flows()
        })?;
    }
    Ok(())
}

#[test]
fn direct_traffic_that_nobody_is_in_the_way_of_is_let_alone() -> Result<()> {
    with_rig(node::setup, |rig| {
        for ends in Ends::all() {
            let Ends { protocol, client, backend, version, .. } = ends;
            for packet in [first(protocol, client, backend), next(protocol, client, backend)] {
                take(rig, [Step::untouched("nobody is in the way", IN, packet.build(), "")])?;
            }
            // Nor from other doors, or to other ports, where somebody is.
            ends.begin_service(rig)?;
            for at in [(Door::Ingress, UPLINK), (Door::Xdp, UPLINK)] {
                take(rig, [Step::untouched("by another door", at, first(protocol, client, backend).build(), "")])?;
            }
            let other = SocketAddr::new(backend.ip(), 9_999);
            take(rig, [Step::untouched("another port", IN, first(protocol, client, other).build(), "")])?;
            let another = end(CALLER, version, 40_001);
            take(rig, [Step::untouched("another client", IN, first(protocol, another, backend).build(), "")])?;
            let outside = end(OUTSIDE, version, 40_000);
            take(rig, [Step::untouched("an outsider", IN, first(protocol, outside, backend).build(), "")])?;
            if protocol == protocol::TCP {
                for flags in [ACK, FIN | ACK, RST, SYN | ACK] {
                    let segment = Segment::tcp(client, backend, flags).build();
                    take(rig, [Step::untouched("a connection that nobody has seen begin", IN, segment, "")])?;
                }
            }
        }
        Ok(())
    })
}

/// A new connection by the same port finds its way after the one before, and after the Service's flow has ended.
#[test]
fn pitfall_30_a_direct_connection_ends_and_another_begins() -> Result<()> {
    for version in Version::BOTH {
        with_rig(node::setup, |rig| {
            let ends = Ends::of(HERE, version, protocol::TCP);
            ends.begin_service(rig)?;
            let port = ends.begin_direct(rig)?;
            ends.direct_goes_on(rig, port)?;
            let Ends { client, backend, .. } = ends;
            let seen = SocketAddr::new(client.ip(), port);
            send(rig, IN, Segment::tcp(client, backend, FIN | ACK).build())?;
            send(rig, OUT, Segment::tcp(backend, seen, FIN | ACK).build())?;
            let again = ends.begin_direct(rig)?;
            ensure!(again != 40_000, "the Service's flow is still there");
            ends.direct_goes_on(rig, again)?;
            ends.goes_on(rig)?;
            let tuple = Tuple { src: client, dst: backend, protocol: protocol::TCP };
            ensure!(rig.kernel_flow(tuple)?.is_some(), "no flow");
            rig.compare_flows()
        })?;
    }
    Ok(())
}

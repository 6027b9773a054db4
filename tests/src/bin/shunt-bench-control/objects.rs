// SPDX-License-Identifier: MIT OR Apache-2.0
//! Services and EndpointSlices by number, as many as it takes, and the change of one endpoint.

use std::net::Ipv4Addr;

use k8s_openapi::{
    api::{
        core::v1::{Service, ServicePort, ServiceSpec},
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use lb_agent::{diff::Capacities, source::Object};
use lb_common::{flow::protocol, frontend::FrontendKey};

/// What the EndpointSlice controller puts into a slice by default.
const ENDPOINTS_A_SLICE: u32 = 100;
const NAMESPACE: &str = "bench";
const NODES: u32 = 100;
/// Services of three endpoints for which the maps have room by default.
const MOST_BY_DEFAULT: u32 = 15_000;
const PORT: u16 = 80;

/// How many of what.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// ClusterIP Services with one TCP port each.
    pub services: u32,
    /// Of each Service.
    pub endpoints: u32,
}

impl Shape {
    /// All objects, in the order in which an API server lists them: Services first.
    pub fn objects(self) -> impl Iterator<Item = Object> + Send {
        let services = (0..self.services).map(move |number| self.service(number));
        services.chain((0..self.services).flat_map(move |number| self.slices(number)))
    }

    /// One Service.
    pub fn service(self, number: u32) -> Object {
        Object::Service(Box::new(service(number)))
    }

    /// The slices of one Service.
    pub fn slices(self, service: u32) -> impl Iterator<Item = Object> + Send {
        (0..self.slices_a_service()).map(move |part| self.slice(service, part, None))
    }

    /// The Service of the `round`-th change. Not one after another: no neighbour shall have warmed a cache.
    pub fn changed_service(self, round: u32) -> u32 {
        round.wrapping_mul(7919) % self.services
    }

    /// A slice in which one endpoint has been replaced, by another one in each round.
    pub fn changed_slice(self, round: u32) -> Object {
        self.slice(self.changed_service(round), round % self.slices_a_service(), Some(round))
    }

    /// Maps as large as they are by default; only for more Services than these hold, with room for more tables.
    pub fn capacities(self) -> Capacities {
        let default = Capacities::default();
        let is_large = self.services > MOST_BY_DEFAULT;
        Capacities { table_slots: default.table_slots * if is_large { 2 } else { 1 }, ..default }
    }

    /// What the frontend of a Service is known by.
    pub fn frontend(self, service: u32) -> FrontendKey {
        FrontendKey::new(cluster_ip(service).into(), PORT.to_be(), protocol::TCP)
    }

    const fn slices_a_service(self) -> u32 {
        self.endpoints.div_ceil(ENDPOINTS_A_SLICE)
    }

    fn slice(self, service: u32, part: u32, replaced_in: Option<u32>) -> Object {
        let first = part * ENDPOINTS_A_SLICE;
        let numbers = first..self.endpoints.min(first + ENDPOINTS_A_SLICE);
        let address = |number: u32| match replaced_in {
            Some(round) if number == first => Ipv4Addr::from(0x0b00_0000 + round),
            _ => Ipv4Addr::from(0x0a00_0000 + service * self.endpoints + number),
        };
        let endpoints = numbers.map(|number| endpoint(address(number), number)).collect();
        let port = EndpointPort {
            name: Some("http".into()),
            port: Some(8080),
            protocol: Some("TCP".into()),
            app_protocol: None,
        };
        let mut metadata = metadata(format!("{}-{part}", service_name(service)));
        metadata.labels = Some([("kubernetes.io/service-name".to_owned(), service_name(service))].into());
        Object::EndpointSlice(Box::new(EndpointSlice {
            address_type: "IPv4".into(),
            endpoints: Some(endpoints),
            metadata,
            ports: Some(vec![port]),
        }))
    }
}

fn service_name(number: u32) -> String {
    format!("service-{number}")
}

fn cluster_ip(service: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a61_0000 + service)
}

fn metadata(name: String) -> ObjectMeta {
    ObjectMeta { name: Some(name), namespace: Some(NAMESPACE.into()), ..ObjectMeta::default() }
}

fn service(number: u32) -> Service {
    let ip = cluster_ip(number).to_string();
    let port = ServicePort {
        name: Some("http".into()),
        port: PORT.into(),
        protocol: Some("TCP".into()),
        target_port: None,
        ..ServicePort::default()
    };
    let spec = ServiceSpec {
        type_: Some("ClusterIP".into()),
        cluster_ip: Some(ip.clone()),
        cluster_ips: Some(vec![ip]),
        ip_families: Some(vec!["IPv4".into()]),
        ports: Some(vec![port]),
        ..ServiceSpec::default()
    };
    Service { metadata: metadata(service_name(number)), spec: Some(spec), status: None }
}

fn endpoint(address: Ipv4Addr, number: u32) -> Endpoint {
    Endpoint {
        addresses: vec![address.to_string()],
        conditions: Some(EndpointConditions { ready: Some(true), serving: Some(true), terminating: Some(false) }),
        node_name: Some(format!("node-{}", number % NODES)),
        ..Endpoint::default()
    }
}

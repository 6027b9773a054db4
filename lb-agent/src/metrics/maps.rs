// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the programs count, as metrics: the numbers are read from the maps, the labels come from the one loop.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use lb_common::{
    counters::{BackendCounters, ServiceCounters},
    maps::{FLOWS_V4, FLOWS_V6},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet},
    metrics::MetricType,
};

use crate::{
    compile::UnitId,
    dataplane::{Census, Counters, MapError, Maps, OpenFlows},
    diff::ProtocolText,
};

/// What indices in the maps stand for, at one moment, and how full the maps are.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    /// Service ports by their index.
    pub services: Vec<(u32, UnitId)>,
    /// Backends by their index.
    pub backends: Vec<(u32, UnitId, SocketAddr)>,
    /// Name, entries and capacity of the maps that can get full.
    pub usage: Vec<(&'static str, u64, u64)>,
}

/// What a scrape shows of the maps.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    directory: Directory,
    counters: Counters,
    census: Census,
    /// How many there are.
    source_ports: u64,
}

impl Snapshot {
    /// Reads the counters, and walks once through the flow tables.
    pub(super) fn read(mut directory: Directory, maps: &Maps) -> Result<Self, MapError> {
        let (counters, census) = (maps.counters()?, maps.census()?);
        let capacities = [maps.flows_v4.capacity(), maps.flows_v6.capacity()].map(u64::from);
        let tables = [FLOWS_V4, FLOWS_V6].into_iter().zip(census.entries).zip(capacities);
        directory.usage.extend(tables.map(|((name, count), capacity)| (name, count, capacity)));
        let config = maps.config.get(0).unwrap_or_default();
        let source_ports = config.source_ports.map(|range| u64::from(range.len())).iter().sum();
        Ok(Self { directory, counters, census, source_ports })
    }

    /// Decisions, by Service port.
    fn services(&self) -> impl Iterator<Item = (&UnitId, ServiceCounters)> {
        let counters = &self.counters.services;
        let services = self.directory.services.iter();
        services.map(|(index, unit)| (unit, counters.get(index).copied().unwrap_or_default()))
    }

    /// Flows, by Service port and endpoint.
    fn open_flows(&self) -> impl Iterator<Item = (&UnitId, &SocketAddr, OpenFlows)> {
        let open = &self.census.backends;
        let backends = self.directory.backends.iter();
        backends.map(|(index, unit, socket)| (unit, socket, open.get(index).copied().unwrap_or_default()))
    }

    /// Traffic, by Service port and endpoint.
    fn backends(&self) -> impl Iterator<Item = (&UnitId, &SocketAddr, BackendCounters)> {
        let counters = &self.counters.backends;
        let backends = self.directory.backends.iter();
        backends.map(|(index, unit, socket)| (unit, socket, counters.get(index).copied().unwrap_or_default()))
    }
}

/// Shows the latest snapshot.
#[derive(Debug)]
pub(super) struct MapCounters(pub(super) Arc<Mutex<Snapshot>>);

impl Collector for MapCounters {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let snapshot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        encode_services(&mut encoder, &snapshot)?;
        encode_backends(&mut encoder, &snapshot)?;
        let reasons = snapshot.counters.reasons.iter().map(|(reason, count)| ([("reason", reason.as_str())], *count));
        counters(&mut encoder, "shunt_reasons", "Packets that left the pipeline early, by reason", reasons)?;
        let evictions = snapshot.counters.evictions.iter().map(|(kind, count)| ([("kind", kind.as_str())], *count));
        let help = "Flows that were alive and yielded their place in the flow table to new ones, by what they were";
        counters(&mut encoder, "shunt_flow_evictions", help, evictions)?;
        let flows =
            ["IPv4", "IPv6"].into_iter().zip(snapshot.census.flows).map(|(family, n)| ([("ip_family", family)], n));
        gauges(&mut encoder, "shunt_flows", "Flows that have not expired, by family", flows)?;
        let sizes = |pick: fn(&(&'static str, u64, u64)) -> u64| {
            snapshot.directory.usage.iter().map(move |map| ([("map", map.0)], pick(map))).collect::<Vec<_>>()
        };
        gauges(&mut encoder, "shunt_map_entries", "Entries in a map", sizes(|map| map.1))?;
        gauges(&mut encoder, "shunt_map_capacity", "Entries that a map can hold", sizes(|map| map.2))?;
        let help = "Source ports in use towards the endpoint that most are used towards";
        let in_use = snapshot.census.source_ports;
        encoder.encode_descriptor("shunt_source_ports_in_use", help, None, MetricType::Gauge)?.encode_gauge(&in_use)?;
        let help = "Ports for source translation";
        let all = snapshot.source_ports;
        encoder.encode_descriptor("shunt_source_ports", help, None, MetricType::Gauge)?.encode_gauge(&all)
    }
}

/// A metric: its name, its help, and how to get it from what is counted.
type Series<T, V> = (&'static str, &'static str, fn(&T) -> V);

/// Labels of a Service port.
type UnitLabels = [(&'static str, String); 5];

fn unit_labels(unit: &UnitId) -> UnitLabels {
    [
        ("namespace", unit.namespace.clone()),
        ("service", unit.name.clone()),
        ("port", unit.port_name.clone()),
        ("protocol", ProtocolText(unit.protocol).to_string()),
        ("ip_family", if unit.is_v4 { "IPv4".to_owned() } else { "IPv6".to_owned() }),
    ]
}

fn encode_services(encoder: &mut DescriptorEncoder<'_>, snapshot: &Snapshot) -> Result<(), std::fmt::Error> {
    let series: [Series<ServiceCounters, u64>; 3] = [
        ("shunt_service_flows", "New flows that got a backend", |counters| counters.flows),
        ("shunt_service_rejected_packets", "Packets rejected with an ICMP error", |counters| counters.rejected),
        ("shunt_service_dropped_packets", "Packets dropped", |counters| counters.dropped),
    ];
    for (name, help, pick) in series {
        let samples = snapshot.services().map(|(unit, own)| (unit_labels(unit), pick(&own)));
        counters(encoder, name, help, samples)?;
    }
    Ok(())
}

fn encode_backends(encoder: &mut DescriptorEncoder<'_>, snapshot: &Snapshot) -> Result<(), std::fmt::Error> {
    let labels = |unit: &UnitId, backend: &SocketAddr| {
        let mut labels = unit_labels(unit).to_vec();
        labels.push(("backend", backend.to_string()));
        labels
    };
    let by_direction: [Series<BackendCounters, [u64; 2]>; 2] = [
        ("shunt_backend_packets", "Packets translated, by backend", |counters| counters.packets),
        ("shunt_backend_bytes", "Bytes of the packets translated, by backend", |counters| counters.bytes),
    ];
    for (name, help, pick) in by_direction {
        let samples = snapshot.backends().flat_map(|(unit, backend, own)| {
            ["original", "reply"].into_iter().zip(pick(&own)).map(move |(direction, count)| {
                let mut labels = labels(unit, backend);
                labels.push(("direction", direction.to_owned()));
                (labels, count)
            })
        });
        counters(encoder, name, help, samples)?;
    }
    let flows = snapshot.backends().map(|(unit, backend, own)| (labels(unit, backend), own.flows));
    counters(encoder, "shunt_backend_flows", "New flows, by backend", flows)?;
    let open = snapshot.open_flows().flat_map(|(unit, backend, own)| {
        [("active", own.active), ("inactive", own.inactive)].map(|(state, count)| {
            let mut labels = labels(unit, backend);
            labels.push(("state", state.to_owned()));
            (labels, count)
        })
    });
    let help = "Flows that have not expired, by backend: active ones are established, as ipvsadm has it";
    gauges(encoder, "shunt_backend_open_flows", help, open)
}

fn counters<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    samples: impl IntoIterator<Item = (L, u64)>,
) -> Result<(), std::fmt::Error> {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in samples {
        metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
    }
    Ok(())
}

pub(super) fn gauges<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    samples: impl IntoIterator<Item = (L, u64)>,
) -> Result<(), std::fmt::Error> {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in samples {
        metric.encode_family(&labels)?.encode_gauge(&value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use lb_common::{
        flow::{Evicted, protocol},
        verdict::Reason,
    };
    use prometheus_client::{encoding::text::encode, registry::Registry};

    use super::*;

    fn text(snapshot: Snapshot) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(MapCounters(Arc::new(Mutex::new(snapshot)))));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn protocols_are_named_as_in_kubernetes() {
        let unit = |protocol| UnitId {
            namespace: "default".into(),
            name: "web".into(),
            port_name: String::new(),
            protocol,
            is_v4: true,
        };
        for (number, name) in [(protocol::TCP, "TCP"), (protocol::UDP, "UDP"), (protocol::SCTP, "SCTP")] {
            assert!(unit_labels(&unit(number)).contains(&("protocol", name.to_owned())));
        }
    }

    #[test]
    fn counters_carry_their_service_and_backend() {
        let unit = UnitId {
            namespace: "default".into(),
            name: "web".into(),
            port_name: "http".into(),
            protocol: protocol::TCP,
            is_v4: true,
        };
        let backend = "10.0.0.1:8080".parse().unwrap();
        let directory = Directory {
            services: vec![(1, unit.clone())],
            backends: vec![(7, unit, backend)],
            usage: vec![("FRONTENDS", 1, 10)],
        };
        let counters = Counters {
            reasons: vec![(Reason::NoRoute, 2)],
            services: BTreeMap::from([(1, ServiceCounters { flows: 3, rejected: 0, dropped: 0 })]),
            backends: BTreeMap::from([(7, BackendCounters { packets: [5, 4], bytes: [500, 400], flows: 3 })]),
            evictions: vec![(Evicted::Pending, 6)],
        };
        let census = Census {
            flows: [9, 1],
            backends: HashMap::from([(7, OpenFlows { active: 2, inactive: 1 })]),
            source_ports: 5,
            ..Census::default()
        };
        let snapshot = Snapshot { directory, counters, census, source_ports: 100 };
        let text = text(snapshot);
        let unit = "namespace=\"default\",service=\"web\",port=\"http\",protocol=\"TCP\",ip_family=\"IPv4\"";
        for line in [
            format!("shunt_service_flows_total{{{unit}}} 3\n"),
            format!("shunt_backend_packets_total{{{unit},backend=\"10.0.0.1:8080\",direction=\"reply\"}} 4\n"),
            format!("shunt_backend_bytes_total{{{unit},backend=\"10.0.0.1:8080\",direction=\"original\"}} 500\n"),
            format!("shunt_backend_open_flows{{{unit},backend=\"10.0.0.1:8080\",state=\"active\"}} 2\n"),
            format!("shunt_backend_open_flows{{{unit},backend=\"10.0.0.1:8080\",state=\"inactive\"}} 1\n"),
            "shunt_flow_evictions_total{kind=\"pending\"} 6\n".into(),
            "shunt_flows{ip_family=\"IPv4\"} 9\n".into(),
            "shunt_reasons_total{reason=\"no-route\"} 2\n".into(),
            "shunt_map_capacity{map=\"FRONTENDS\"} 10\n".into(),
            "shunt_source_ports_in_use 5\n".into(),
            "shunt_source_ports 100\n".into(),
        ] {
            assert!(text.contains(&line), "{line} in\n{text}");
        }
    }
}

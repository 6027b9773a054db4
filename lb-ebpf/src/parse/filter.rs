// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Whether a packet may be of a Service: the address filter, a bitmap with one hash (Bloom filter), and ClusterIPs.

use lb_common::{
    filter::{Filter, WHOLE},
    flow::FlowKey,
    frontend::FrontendKey,
};

use crate::{
    kernel::{global_fn::number, maps, work::Scratch},
    packet::{Packet, header::Header},
};

/// Which way a packet crosses the device.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Into this node.
    Ingress,
    /// Out of it.
    Egress,
}

number!(Hook: u32, value => u32::from(value == Self::Egress), bits => match bits {
    0 => Self::Ingress,
    _ => Self::Egress,
});

impl Hook {
    /// What the filter knows of a packet's addresses: 0 where it is of no Service.
    #[inline(always)]
    pub fn knows<F: Header>(self, filter: &Filter, src: &F::Addr, dst: &F::Addr) -> u64 {
        match self {
            Self::Ingress => filter.destination(F::filter_bit(dst)),
            Self::Egress => u64::from(filter.has_source(F::filter_bit(src))),
        }
    }

    /// Whether a packet may be of a Service by its ports, too. `known` is what the filter knows of its addresses.
    #[inline(always)]
    pub fn concerns<F: Header>(self, filter: &Filter, known: u64, key: &FlowKey<F>) -> bool {
        match self {
            Self::Ingress => {
                known & WHOLE != 0
                    || filter.has_port(
                        F::filter_port_bit(&key.dst, key.dport_be, key.protocol),
                        key.dport_be,
                        key.protocol,
                    )
            }
            Self::Egress => filter.has_backend(F::filter_port_bit(&key.src, key.sport_be, key.protocol)),
        }
    }
}

/// What a packet is to us that is of no Service.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direct {
    /// Nothing.
    No,
    /// If it is UDP or opens a connection, perhaps the first one of a pod to a backend itself: the client's port may be that of a
    /// Service's flow to that backend.
    First,
    /// Perhaps one of such a flow that got another port.
    Flow,
}

/// Whether a packet comes from a pod, and goes to an address where a backend is.
#[inline(always)]
pub fn may_be_direct<P: Packet, F: Header>(packet: &P, filter: &Filter, hook: Hook, dst: &F::Addr) -> bool {
    !P::IS_XDP && hook == Hook::Ingress && filter.is_pods(packet.ifindex()) && filter.has_source(F::filter_bit(dst))
}

/// What a packet of no Service is by its ports.
#[inline(always)]
pub fn direct<P: Packet, F: Header>(packet: &P, filter: &Filter, hook: Hook, key: &FlowKey<F>) -> Direct {
    if !may_be_direct::<P, F>(packet, filter, hook, &key.dst)
        || !filter.has_backend(F::filter_port_bit(&key.dst, key.dport_be, key.protocol))
    {
        Direct::No
    } else if filter.has_direct(F::filter_port_bit(&key.src, key.sport_be, key.protocol)) {
        Direct::Flow
    } else {
        Direct::First
    }
}

/// Whether the destination is a ClusterIP, of which all ports are spoken for (rule 44).
#[inline(always)]
pub fn is_cluster_ip<F: Header>(scratch: &mut Scratch<F>) -> bool {
    let address = F::widen(&scratch.parsed.key.dst);
    scratch.frontend_key = FrontendKey::any_port(address);
    address.is_v4() == F::IS_V4 && maps::find_frontend(&scratch.frontend_key).is_some()
}

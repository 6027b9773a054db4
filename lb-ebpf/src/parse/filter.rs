// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Whether a packet may be of a Service: the address filter, a bitmap with one hash (Bloom filter), and ClusterIPs.

use lb_common::{
    config::family_index,
    filter::{Filter, KNOWN, WHOLE},
    flow::{FlowKey, Hook},
    frontend::FrontendKey,
};

use crate::{
    kernel::{global_fn::number, maps, work::Scratch},
    packet::{Packet, header::Header},
};

number!(Hook: u32, value => value as u32, bits => match bits {
    0 => Self::Ingress,
    1 => Self::Egress,
    _ => Self::Net,
});

/// What the filter knows of the addresses of a packet at a hook: 0 where it is of no Service.
#[inline(always)]
pub fn knows<F: Header>(hook: Hook, filter: &Filter, src: &F::Addr, dst: &F::Addr) -> u64 {
    match hook {
        Hook::Net if is_net_source::<F>(dst) => KNOWN | WHOLE,
        Hook::Ingress | Hook::Net => filter.destination(F::filter_bit(dst)),
        Hook::Egress => u64::from(filter.has_source(F::filter_bit(src))),
    }
}

/// Whether an address is the source that the net gives to packets for backends here.
#[inline(always)]
pub fn is_net_source<F: Header>(address: &F::Addr) -> bool {
    maps::config().is_ok_and(|config| {
        let source = &config.net.sources[family_index(F::IS_V4)];
        !source.is_unspecified() && F::narrow(source) == *address
    })
}

/// Whether a packet may be of a Service by its ports, too. `known` is what the filter knows of its addresses.
#[inline(always)]
pub fn concerns<F: Header>(hook: Hook, filter: &Filter, known: u64, key: &FlowKey<F>) -> bool {
    match hook {
        Hook::Ingress | Hook::Net => {
            known & WHOLE != 0
                || filter.has_port(F::filter_port_bit(&key.dst, key.dport_be, key.protocol), key.dport_be, key.protocol)
        }
        Hook::Egress => filter.has_backend(F::filter_port_bit(&key.src, key.sport_be, key.protocol)),
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

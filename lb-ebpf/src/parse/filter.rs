// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Whether a packet may be of a Service: the address filter, a bitmap with one hash (Bloom filter), and ClusterIPs.

use lb_common::{
    frontend::FrontendKey,
    maps::{FILTER_EGRESS, FILTER_INGRESS},
};

use crate::{
    kernel::{global_fn::number, maps, work::Scratch},
    packet::header::Header,
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
    /// Whether a packet may be of a Service: the one look at the address filter.
    #[inline(always)]
    pub fn concerns<F: Header>(self, src: &F::Addr, dst: &F::Addr) -> bool {
        match self {
            Self::Ingress => maps::filter_contains(FILTER_INGRESS, F::filter_bit(dst)),
            Self::Egress => maps::filter_contains(FILTER_EGRESS, F::filter_bit(src)),
        }
    }
}

/// Whether the destination is a ClusterIP, of which all ports are spoken for (rule 44).
#[inline(always)]
pub fn is_cluster_ip<F: Header>(scratch: &mut Scratch<F>) -> bool {
    let address = F::widen(&scratch.parsed.key.dst);
    scratch.frontend_key = FrontendKey::any_port(address);
    address.is_v4() == F::IS_V4 && maps::find_frontend(&scratch.frontend_key).is_some()
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! From which ranges the cluster allocates ClusterIPs (rule 6): what is in them and nobody's is dropped (rule 44).

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::ServiceCIDR;

use super::{fault::Faults, value::parse_cidr};
use crate::problem::Problem;

/// The ranges of all ServiceCIDR objects, by the object's name.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ServiceCidrs {
    of_object: BTreeMap<String, BTreeSet<IpNet>>,
}

impl ServiceCidrs {
    /// Takes in an object. What can't be read is returned, and the rest of it counts.
    pub(super) fn apply(&mut self, object: &ServiceCIDR) -> Vec<Problem> {
        let name = object.metadata.name.clone().unwrap_or_default();
        let mut faults = Faults::new(format!("ServiceCIDR {name}"));
        let texts = object.spec.iter().filter_map(|spec| spec.cidrs.as_ref()).flatten();
        let mut ranges = BTreeSet::new();
        for text in texts {
            match parse_cidr(text) {
                Some(range) if range.prefix_len() > 0 => drop(ranges.insert(range)),
                _ => faults.tell(
                    format!("\"{text}\" is no range of ClusterIPs, and is skipped"),
                    "give CIDRs such as 10.96.0.0/12",
                ),
            }
        }
        self.of_object.insert(name, ranges);
        faults.finish().0
    }

    /// An object has gone.
    pub(super) fn remove(&mut self, name: &str) {
        self.of_object.remove(name);
    }

    /// All ranges.
    pub(super) fn ranges(&self) -> BTreeSet<IpNet> {
        self.of_object.values().flatten().copied().collect()
    }
}

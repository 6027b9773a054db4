// SPDX-License-Identifier: MIT OR Apache-2.0
//! Values of flags of `lb-agent run` that have a form of their own.

use std::{net::IpAddr, path::PathBuf, str::FromStr};

use ipnet::IpNet;
use lb_common::{
    address::Address,
    config::{Cidr, family_index},
};

/// The flag `--source`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceSpec {
    /// The Kubernetes API.
    Kube,
    /// A directory of manifests.
    Dir(PathBuf),
}

/// `--source` could not be read.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is no source; give `kube`, or `dir:PATH` for a directory of manifests")]
pub struct SourceSpecError {
    text: String,
}

impl FromStr for SourceSpec {
    type Err = SourceSpecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            None if text == "kube" => Ok(Self::Kube),
            Some(("dir", path)) if !path.is_empty() => Ok(Self::Dir(path.into())),
            _ => Err(SourceSpecError { text: text.into() }),
        }
    }
}

/// A time span in whole seconds, written with a unit: `90s`, `15m`, `24h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seconds(pub u32);

/// A time span could not be read.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is no time span such as 90s, 15m or 24h")]
pub struct SecondsError {
    text: String,
}

impl FromStr for Seconds {
    type Err = SecondsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let unit = text.chars().next_back()?;
            let factor = match unit {
                's' => 1,
                'm' => 60,
                'h' => 3600,
                _ => return None,
            };
            let number: u32 = text[..text.len() - 1].parse().ok()?;
            number.checked_mul(factor).filter(|&seconds| seconds > 0)
        };
        parse().map(Self).ok_or_else(|| SecondsError { text: text.into() })
    }
}

/// Where the pods of the cluster are: at most one range of each family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterCidrs([Option<IpNet>; 2]);

/// Cluster CIDRs could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ClusterCidrsError {
    /// Not a range, or the range of everything.
    #[error("{text:?} is no CIDR of pods such as 10.244.0.0/16")]
    NoCidr {
        /// What was given.
        text: String,
    },
    /// More than the programs look at.
    #[error("{text:?} is a second CIDR of its family; give one that holds all pods, for each family at most one")]
    Second {
        /// What was given.
        text: String,
    },
}

impl FromStr for ClusterCidrs {
    type Err = ClusterCidrsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut own = Self::default();
        for text in text.split(',').map(str::trim) {
            let range = text.parse::<IpNet>().ok().filter(|range| range.prefix_len() > 0);
            let range = range.ok_or_else(|| ClusterCidrsError::NoCidr { text: text.into() })?;
            let place = &mut own.0[family_index(range.addr().is_ipv4())];
            if place.replace(range.trunc()).is_some() {
                return Err(ClusterCidrsError::Second { text: text.into() });
            }
        }
        Ok(own)
    }
}

impl ClusterCidrs {
    /// As the programs compare them.
    #[must_use]
    pub fn to_config(&self) -> [Cidr; 2] {
        self.0.map(|range| range.map_or_else(Cidr::default, |range| cidr(&range)))
    }
}

fn cidr(range: &IpNet) -> Cidr {
    let mask = match range.netmask() {
        // The prefix of the v4-mapped form counts as well.
        IpAddr::V4(mask) => {
            let mut words = [u32::MAX; 4];
            words[3] = Address::from(mask).words_be()[3];
            Address::from_words_be(words)
        }
        IpAddr::V6(mask) => mask.into(),
    };
    Cidr { address: range.addr().into(), mask }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_52_a_cluster_cidr_of_each_family_holds_its_own() {
        let cidrs: ClusterCidrs = "10.244.3.0/16, fd00:10:244::/56".parse().unwrap();
        let holds = |ip: &str| {
            let address = Address::from(ip.parse::<IpAddr>().unwrap());
            cidrs.to_config().map(|cidr| cidr.contains(&address))
        };
        assert_eq!(holds("10.244.255.1"), [true, false]);
        assert_eq!(holds("10.245.0.1"), [false, false]);
        assert_eq!(holds("fd00:10:244:ff::1"), [false, true]);
        assert_eq!(holds("fd00:10:245::1"), [false, false]);
        let of_one: ClusterCidrs = "fd00::/8".parse().unwrap();
        assert_eq!(of_one.to_config()[0], Cidr::default());
        for (bad, cause) in [
            ("10.244.0.0", "is no CIDR"),
            ("0.0.0.0/0", "is no CIDR"),
            ("", "is no CIDR"),
            ("10.1.0.0/16,10.2.0.0/16", "\"10.2.0.0/16\" is a second CIDR of its family"),
        ] {
            let error = bad.parse::<ClusterCidrs>().unwrap_err().to_string();
            assert!(error.contains(cause), "{error}");
        }
    }
}

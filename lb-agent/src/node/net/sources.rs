// SPDX-License-Identifier: MIT OR Apache-2.0
//! The flags `--net-sources` and `--service-cidr`. Pure.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use ipnet::IpNet;
use lb_common::{address::Address, config::family_index};

/// Addresses of nobody, one of each family, that the net gives to packets for backends on this node: replies to them come back
/// to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetSources([IpAddr; 2]);

/// `--net-sources` could not be read.
#[derive(Debug, thiserror::Error)]
#[error(
    "{text:?} is not one IPv4 address and one IPv6 address, separated by a comma, such as {}",
    NetSources::default()
)]
pub struct NetSourcesError {
    text: String,
}

impl NetSources {
    /// Both of them, IPv4 first.
    #[must_use]
    pub const fn addresses(&self) -> [IpAddr; 2] {
        self.0
    }

    /// As the programs compare them: what [`family_index`] says is where.
    #[must_use]
    pub fn to_config(&self) -> [Address; 2] {
        let mut places = [Address::UNSPECIFIED; 2];
        for ip in self.0 {
            places[family_index(ip.is_ipv4())] = ip.into();
        }
        places
    }
}

impl Default for NetSources {
    fn default() -> Self {
        Self([IpAddr::V4(Ipv4Addr::new(169, 254, 96, 1)), IpAddr::V6(Ipv6Addr::new(0xfd96, 0xffff, 0, 0, 0, 0, 0, 1))])
    }
}

impl FromStr for NetSources {
    type Err = NetSourcesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || NetSourcesError { text: text.into() };
        let mut found = [None; 2];
        for part in text.split(',') {
            let ip: IpAddr = part.trim().parse().map_err(|_| error())?;
            let is_good = !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast();
            if !is_good || found[usize::from(!ip.is_ipv4())].replace(ip).is_some() {
                return Err(error());
            }
        }
        match found {
            [Some(v4), Some(v6)] => Ok(Self([v4, v6])),
            _ => Err(error()),
        }
    }
}

impl fmt::Display for NetSources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.0[0], self.0[1])
    }
}

/// A range from which ClusterIPs are allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceRange(pub IpNet);

/// A range could not be read.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is no range of ClusterIPs such as 10.96.0.0/12")]
pub struct ServiceRangeError {
    text: String,
}

impl FromStr for ServiceRange {
    type Err = ServiceRangeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let range = text.trim().parse::<IpNet>().ok().filter(|range| range.prefix_len() > 0);
        range.map(|range| Self(range.trunc())).ok_or_else(|| ServiceRangeError { text: text.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_one_of_each_family() {
        let sources: NetSources = "fd00::9, 192.0.2.9".parse().unwrap();
        assert_eq!(sources.to_string(), "192.0.2.9,fd00::9");
        assert_eq!(sources.to_config().map(|address| address.to_string()), ["192.0.2.9", "fd00::9"]);
        let default = NetSources::default();
        assert_eq!(default.to_string(), "169.254.96.1,fd96:ffff::1");
        assert_eq!(default.to_string().parse::<NetSources>().unwrap(), default);
        for bad in
            ["", "192.0.2.9", "192.0.2.9,192.0.2.10", "192.0.2.9,fd00::9,fd00::10", "0.0.0.0,fd00::9", "::1,192.0.2.9"]
        {
            let error = bad.parse::<NetSources>().unwrap_err().to_string();
            assert!(error.contains("169.254.96.1"), "{error}");
        }
    }

    #[test]
    fn ranges_of_services_are_not_everything() {
        let range = |text: &str| text.parse::<ServiceRange>().map(|range| range.0.to_string());
        assert_eq!(range("10.96.3.4/12").unwrap(), "10.96.0.0/12");
        for bad in ["10.96.0.0", "0.0.0.0/0", "::/0", "services"] {
            assert!(range(bad).unwrap_err().to_string().contains("is no range of ClusterIPs"), "{bad}");
        }
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Field values as people write them: addresses, ports, protocols and names, checked for what Shunt can program.
//!
//! A directory of manifests has no API server in front of it, so nothing may be taken for granted.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use lb_common::flow::protocol;

/// Longest name of a namespace, a Service or a port (RFC 1123 section 2.1, as Kubernetes applies it).
const MAX_LABEL_LEN: usize = 63;

/// Reads an address "sloppily" (rule 12): leading zeros are decimal, and v4-mapped IPv6 is IPv4.
pub(super) fn parse_ip(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>().ok().or_else(|| parse_padded_v4(text).map(IpAddr::V4)).map(|ip| ip.to_canonical())
}

/// Dotted decimal with leading zeros, which `std` refuses because some read them as octal.
fn parse_padded_v4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next().filter(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))?;
        let digits = part.trim_start_matches('0');
        *octet = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    }
    parts.next().is_none().then(|| octets.into())
}

/// Reads a range as sloppily as an address, with white space around it; bits behind the prefix are cleared.
pub(super) fn parse_cidr(text: &str) -> Option<IpNet> {
    let (ip, prefix_len) = text.trim().split_once('/')?;
    IpNet::new(parse_ip(ip)?, prefix_len.parse().ok()?).ok().map(|range| range.trunc())
}

/// An address that packets can be sent to, or why it isn't one.
pub(super) fn parse_unicast(text: &str) -> Result<IpAddr, String> {
    let ip = parse_ip(text).ok_or_else(|| format!("\"{text}\" is not an IP address"))?;
    let fault = match ip {
        _ if ip.is_unspecified() => "the unspecified address",
        _ if ip.is_loopback() => "a loopback address",
        _ if ip.is_multicast() => "a multicast address",
        IpAddr::V4(v4) if v4.is_broadcast() => "the broadcast address",
        IpAddr::V4(_) | IpAddr::V6(_) => return Ok(ip),
    };
    Err(format!("{text} is {fault}"))
}

/// A port number, 1 to 65535.
pub(super) fn parse_port(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|port| *port != 0)
}

/// IP protocol number of a Kubernetes protocol name; TCP where there is none, as the API defaults it.
pub(super) fn parse_protocol(name: Option<&str>) -> Option<u8> {
    match name {
        None | Some("TCP") => Some(protocol::TCP),
        Some("UDP") => Some(protocol::UDP),
        Some("SCTP") => Some(protocol::SCTP),
        Some(_) => None,
    }
}

/// Whether a name is a DNS label: the maps hold names of bounded length, and `/` and `:` separate them there.
pub(super) fn is_dns_label(name: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !name.is_empty()
        && name.len() <= MAX_LABEL_LEN
        && name.bytes().all(is_inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rule_12_addresses_are_read_sloppily() {
        assert_eq!(parse_ip("010.001.002.003"), Some([10, 1, 2, 3].into()));
        assert_eq!(parse_ip("000.0.00.0000"), Some([0, 0, 0, 0].into()));
        assert_eq!(parse_ip("::ffff:10.0.0.1"), Some([10, 0, 0, 1].into()));
        assert_eq!(parse_ip("FD00:0:0::01"), Some("fd00::1".parse().unwrap()));
        for bad in ["", "10.0.0", "10.0.0.0.1", "10.0.0.256", "10.0.0.-1", "10.0.0.+1", "10..0.1", "fe80::1%eth0"] {
            assert_eq!(parse_ip(bad), None, "{bad}");
        }
    }

    #[test]
    fn ranges_are_read_with_white_space_and_stray_bits() {
        let range = |text: &str| parse_cidr(text).map(|range| range.to_string());
        assert_eq!(range(" 010.1.2.3/8\t"), Some("10.0.0.0/8".into()));
        assert_eq!(range("FD00::1/64"), Some("fd00::/64".into()));
        for bad in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0/8", "fd00::/129", "/8"] {
            assert_eq!(range(bad), None, "{bad}");
        }
    }

    #[test]
    fn addresses_that_no_packet_can_be_sent_to_say_why() {
        assert_eq!(parse_unicast("0.0.0.0").unwrap_err(), "0.0.0.0 is the unspecified address");
        assert_eq!(parse_unicast("::").unwrap_err(), ":: is the unspecified address");
        assert_eq!(parse_unicast("127.0.0.53").unwrap_err(), "127.0.0.53 is a loopback address");
        assert_eq!(parse_unicast("ff02::1").unwrap_err(), "ff02::1 is a multicast address");
        assert_eq!(parse_unicast("255.255.255.255").unwrap_err(), "255.255.255.255 is the broadcast address");
        assert_eq!(parse_unicast("web").unwrap_err(), "\"web\" is not an IP address");
    }

    #[test]
    fn ports_are_1_to_65535() {
        assert_eq!([-1, 0, 65_536, i32::MAX].map(parse_port), [None; 4]);
        assert_eq!([1, 65_535].map(parse_port), [Some(1), Some(65_535)]);
    }

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "web-1", "0a", &"x".repeat(63)] {
            assert!(is_dns_label(good), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a/b", "a:b", "a.b", "ä", &"x".repeat(64)] {
            assert!(!is_dns_label(bad), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn rule_12_padding_changes_no_address(octets in any::<[u8; 4]>(), zeros in 0_usize..4) {
            let pad = "0".repeat(zeros);
            let text = octets.map(|octet| format!("{pad}{octet}")).join(".");
            prop_assert_eq!(parse_ip(&text), Some(octets.into()));
        }
    }
}

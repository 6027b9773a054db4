// SPDX-License-Identifier: MIT OR Apache-2.0
//! What must be right on the machine before traffic is touched: forwarding, and ports that nobody else hands out.

use std::{fs, io, path::Path};

use super::ports::{PortRange, SourcePorts};
use crate::problem::Problem;

/// Ports that the Kubernetes API server hands out as NodePorts unless it is told otherwise
/// (`--service-node-port-range`).
pub const NODE_PORTS: PortRange = PortRange { first: 30_000, last: 32_767 };

/// A reason not to start.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// Two hand out the same ports: replies would reach the wrong one.
    #[error(
        "--source-ports {source_ports} overlaps the ports {local_ports} that this machine hands out to its own \
         connections; {}list the overlap in net.ipv4.ip_local_reserved_ports, or choose other --source-ports",
        remaining.map_or_else(String::new, |PortRange { first, last }| {
            format!("run `sysctl -w net.ipv4.ip_local_port_range=\"{first} {last}\"`, or ")
        })
    )]
    LocalPorts {
        /// The flag.
        source_ports: SourcePorts,
        /// The kernel's setting.
        local_ports: PortRange,
        /// A setting that leaves our ports alone: the most of it that does.
        remaining: Option<PortRange>,
    },
    /// NodePorts would be taken for replies.
    #[error("--source-ports {source_ports} overlaps the NodePorts {NODE_PORTS}; choose ranges above or below them")]
    NodePorts {
        /// The flag.
        source_ports: SourcePorts,
    },
    /// A setting could not be read.
    #[error("can't read {path}")]
    Read {
        /// The file.
        path: String,
        /// Why not.
        source: io::Error,
    },
}

/// Whether the ports for source translation are ours alone (cilium 23604, 33723, 42870). On one of them a process may listen:
/// packets to it are of no flow of ours, which are known by both ends.
///
/// # Errors
/// Where they are not, or where the kernel's settings can't be read.
pub fn check_source_ports(source_ports: SourcePorts) -> Result<(), CheckError> {
    let read = |name: &str| {
        let path = format!("/proc/sys/net/ipv4/{name}");
        fs::read_to_string(&path).map_err(|source| CheckError::Read { path, source })
    };
    judge_source_ports(source_ports, &read("ip_local_port_range")?, &read("ip_local_reserved_ports")?)
}

fn judge_source_ports(source_ports: SourcePorts, local: &str, reserved: &str) -> Result<(), CheckError> {
    if source_ports.ranges().any(|range| range.overlaps(NODE_PORTS)) {
        return Err(CheckError::NodePorts { source_ports });
    }
    let mut bounds = local.split_whitespace().map_while(|bound| bound.parse().ok());
    let (Some(first), Some(last)) = (bounds.next(), bounds.next()) else { return Ok(()) };
    let local_ports = PortRange { first, last };
    let reserved: Vec<PortRange> = reserved.trim().split(',').filter_map(parse_reserved).collect();
    let is_free = |port: &u16| local_ports.contains(*port) && !reserved.iter().any(|range| range.contains(*port));
    if source_ports.ranges().flat_map(PortRange::as_range).any(|port| is_free(&port)) {
        let remaining = longest_without(local_ports, source_ports);
        return Err(CheckError::LocalPorts { source_ports, local_ports, remaining });
    }
    Ok(())
}

/// The longest part of a range in which no port is one for source translation.
fn longest_without(range: PortRange, source_ports: SourcePorts) -> Option<PortRange> {
    let bounds = source_ports.ranges().flat_map(|own| [own.first.checked_sub(1), own.last.checked_add(1)]);
    let bounds: Vec<u16> =
        bounds.flatten().chain([range.first, range.last]).filter(|port| range.contains(*port)).collect();
    let parts = bounds.iter().flat_map(|&first| bounds.iter().map(move |&last| PortRange { first, last }));
    let is_free = |part: &PortRange| part.first <= part.last && source_ports.ranges().all(|own| !own.overlaps(*part));
    parts.filter(is_free).max_by_key(|part| part.last - part.first)
}

fn parse_reserved(text: &str) -> Option<PortRange> {
    text.parse().ok().or_else(|| text.parse().ok().map(|port| PortRange { first: port, last: port }))
}

/// Families that the machine does not forward: a node that doesn't can't serve pods or outside clients.
#[must_use]
pub fn forwarding_problems() -> Vec<Problem> {
    let settings = [("IPv4", "net.ipv4.ip_forward"), ("IPv6", "net.ipv6.conf.all.forwarding")];
    let is_off = |setting: &str| {
        let path = Path::new("/proc/sys").join(setting.replace('.', "/"));
        // A family that the kernel does not have has no such file, and needs none.
        fs::read_to_string(path).is_ok_and(|value| value.trim() == "0")
    };
    settings
        .into_iter()
        .filter(|(_, setting)| is_off(setting))
        .map(|(family, setting)| {
            Problem::new(
                format!("sysctl {setting}"),
                format!("{family} forwarding is off: traffic between devices of this machine is not passed on"),
                format!("run `sysctl -w {setting}=1`"),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(text: &str) -> SourcePorts {
        text.parse().unwrap()
    }

    #[test]
    fn cilium_23604_source_ports_are_nobody_elses() {
        assert!(judge_source_ports(ports("61000-65535"), "32768\t60999\n", "\n").is_ok());
        let error = judge_source_ports(ports("60000-65535"), "32768\t60999\n", "\n").unwrap_err();
        assert!(error.to_string().contains("net.ipv4.ip_local_port_range=\"32768 59999\""), "{error}");
        assert!(judge_source_ports(ports("60000-65535"), "32768\t60999\n", "8080,60000-60999\n").is_ok());
        let error = judge_source_ports(ports("32000-32100"), "40000 50000", "").unwrap_err();
        assert!(error.to_string().contains("NodePorts 30000-32767"), "{error}");
        // Both ranges count, those of the default among them.
        assert!(judge_source_ports(ports("10240-29999,61000-65535"), "32768\t60999\n", "\n").is_ok());
        for (given, local, remaining) in [
            ("10240-29999,61000-65535", "1024 65535", "30000 60999"),
            ("2000-29999,61000-65535", "1024 32000", "30000 32000"),
            ("61000-65535,1024-2000", "1024 2000", ""),
        ] {
            let error = judge_source_ports(ports(given), local, "").unwrap_err().to_string();
            assert!(error.contains(&format!("--source-ports {given} overlaps")), "{error}");
            let advice = format!("net.ipv4.ip_local_port_range=\"{remaining}\"");
            assert_eq!(error.contains(&advice), !remaining.is_empty(), "{error}");
        }
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What must be right on the machine before traffic is touched: forwarding, and ports that nobody else hands out.

use std::{fmt, fs, io, ops::RangeInclusive, path::Path, str::FromStr};

use crate::problem::Problem;

/// Ports that the Kubernetes API server hands out as NodePorts unless it is told otherwise
/// (`--service-node-port-range`).
pub const NODE_PORTS: PortRange = PortRange { first: 30_000, last: 32_767 };

/// Ports, first and last included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

impl PortRange {
    /// Whether the port is in the range.
    #[must_use]
    pub fn contains(self, port: u16) -> bool {
        self.as_range().contains(&port)
    }

    fn as_range(self) -> RangeInclusive<u16> {
        self.first..=self.last
    }

    fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// Text that is no range of ports.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not a range of ports such as 61000-65535")]
pub struct PortRangeError {
    text: String,
}

impl FromStr for PortRange {
    type Err = PortRangeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (first, last) = text.split_once('-')?;
            let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            (first > 0 && first <= last).then_some(Self { first, last })
        };
        parse().ok_or_else(|| PortRangeError { text: text.into() })
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// A reason not to start.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// Two hand out the same ports: replies would reach the wrong one.
    #[error(
        "--source-ports {source_ports} overlaps the ports {local_ports} that this machine hands out to its own \
         connections; run `sysctl -w net.ipv4.ip_local_port_range=\"{} {}\"`, or list the overlap in \
         net.ipv4.ip_local_reserved_ports, or choose other --source-ports",
        remaining.first, remaining.last
    )]
    LocalPorts {
        /// The flag.
        source_ports: PortRange,
        /// The kernel's setting.
        local_ports: PortRange,
        /// A setting that leaves our ports alone.
        remaining: PortRange,
    },
    /// NodePorts would be taken for replies.
    #[error("--source-ports {source_ports} overlaps the NodePorts {NODE_PORTS}; choose a range above or below them")]
    NodePorts {
        /// The flag.
        source_ports: PortRange,
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

/// Whether the ports for source translation are ours alone (cilium 23604, 33723, 42870).
///
/// # Errors
/// Where they are not, or where the kernel's settings can't be read.
pub fn check_source_ports(source_ports: PortRange) -> Result<(), CheckError> {
    let read = |name: &str| {
        let path = format!("/proc/sys/net/ipv4/{name}");
        fs::read_to_string(&path).map_err(|source| CheckError::Read { path, source })
    };
    judge_source_ports(source_ports, &read("ip_local_port_range")?, &read("ip_local_reserved_ports")?)
}

fn judge_source_ports(source_ports: PortRange, local: &str, reserved: &str) -> Result<(), CheckError> {
    if source_ports.overlaps(NODE_PORTS) {
        return Err(CheckError::NodePorts { source_ports });
    }
    let mut bounds = local.split_whitespace().map_while(|bound| bound.parse().ok());
    let (Some(first), Some(last)) = (bounds.next(), bounds.next()) else { return Ok(()) };
    let local_ports = PortRange { first, last };
    let reserved: Vec<PortRange> = reserved.trim().split(',').filter_map(parse_reserved).collect();
    let is_free = |port: &u16| local_ports.contains(*port) && !reserved.iter().any(|range| range.contains(*port));
    if source_ports.as_range().any(|port| is_free(&port)) {
        let remaining = if source_ports.first > local_ports.first {
            PortRange { first: local_ports.first, last: source_ports.first - 1 }
        } else {
            PortRange { first: source_ports.last.saturating_add(1), last: u16::MAX }
        };
        return Err(CheckError::LocalPorts { source_ports, local_ports, remaining });
    }
    Ok(())
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

    fn range(text: &str) -> PortRange {
        text.parse().unwrap()
    }

    #[test]
    fn ranges_of_ports() {
        assert_eq!(range("61000-65535"), PortRange { first: 61_000, last: 65_535 });
        for bad in ["", "61000", "5-4", "0-9", "1-70000", "a-b"] {
            assert!(bad.parse::<PortRange>().is_err(), "{bad}");
        }
    }

    #[test]
    fn cilium_23604_source_ports_are_nobody_elses() {
        assert!(judge_source_ports(range("61000-65535"), "32768\t60999\n", "\n").is_ok());
        let error = judge_source_ports(range("60000-65535"), "32768\t60999\n", "\n").unwrap_err();
        assert!(error.to_string().contains("net.ipv4.ip_local_port_range=\"32768 59999\""), "{error}");
        assert!(judge_source_ports(range("60000-65535"), "32768\t60999\n", "8080,60000-60999\n").is_ok());
        let error = judge_source_ports(range("32000-32100"), "40000 50000", "").unwrap_err();
        assert!(error.to_string().contains("NodePorts 30000-32767"), "{error}");
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hooks of a device, and the names of their pins. Pure.

use std::fmt;

use aya_obj::generated::{
    BPF_F_BEFORE, XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE,
    bpf_attach_type::{BPF_TCX_EGRESS, BPF_TCX_INGRESS, BPF_XDP},
};
use lb_common::{config::role, maps::programs};

use crate::node::{
    net::DEVICE,
    roles::Duty,
    state::{VETH, is_tunnel},
};

/// Where a program of ours runs on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Door {
    /// TC, packets that arrive.
    TcIngress,
    /// TC, packets that leave.
    TcEgress,
    /// XDP in the driver.
    XdpDriver,
    /// XDP in the network stack, for drivers without.
    XdpGeneric,
    /// The net, packets that its program has made arrive by its device (TC).
    NetArrival,
    /// The net, packets that leave by its device, or by the loopback device (TC).
    Net,
}

impl Door {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::TcIngress, Self::TcEgress, Self::XdpDriver, Self::XdpGeneric, Self::NetArrival, Self::Net];

    /// Those at TC of a device.
    #[must_use]
    pub fn of_device(name: &str, is_loopback: bool) -> &'static [Self] {
        match name {
            _ if is_loopback => &[Self::Net],
            DEVICE => &[Self::NetArrival, Self::Net],
            _ => &[Self::TcIngress, Self::TcEgress],
        }
    }

    /// Whether it is one at TC.
    #[must_use]
    pub const fn is_tc(self) -> bool {
        !matches!(self, Self::XdpDriver | Self::XdpGeneric)
    }

    /// Start of the pin's name. The kernel does not tell how XDP was attached, so the name has to.
    const fn prefix(self) -> &'static str {
        match self {
            Self::TcIngress => "tc-ingress",
            Self::TcEgress => "tc-egress",
            Self::XdpDriver => "xdp",
            Self::XdpGeneric => "xdp-generic",
            Self::NetArrival => "net-arrival",
            Self::Net => "net",
        }
    }

    /// Name of the pin of a device's link.
    #[must_use]
    pub fn pin_name(self, ifindex: u32) -> String {
        format!("{}-{ifindex}", self.prefix())
    }

    /// Door and device of a pin.
    #[must_use]
    pub fn of_pin(name: &str) -> Option<(Self, u32)> {
        let (prefix, ifindex) = name.rsplit_once('-')?;
        let door = Self::ALL.into_iter().find(|door| door.prefix() == prefix)?;
        Some((door, ifindex.parse().ok()?))
    }

    /// The program that runs there.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Self::TcIngress => programs::TC_INGRESS,
            Self::TcEgress => programs::TC_EGRESS,
            Self::XdpDriver | Self::XdpGeneric => programs::XDP,
            Self::NetArrival => programs::NET_ARRIVAL,
            Self::Net => programs::NET,
        }
    }

    /// Attach type and flags of `BPF_LINK_CREATE`. TC: before all others, whose view of a packet is the translated one.
    #[must_use]
    pub const fn attach(self) -> (u32, u32) {
        match self {
            Self::TcIngress | Self::NetArrival => (BPF_TCX_INGRESS as u32, BPF_F_BEFORE),
            Self::TcEgress | Self::Net => (BPF_TCX_EGRESS as u32, BPF_F_BEFORE),
            Self::XdpDriver => (BPF_XDP as u32, XDP_FLAGS_DRV_MODE),
            Self::XdpGeneric => (BPF_XDP as u32, XDP_FLAGS_SKB_MODE),
        }
    }
}

impl fmt::Display for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TcIngress => "TC ingress",
            Self::TcEgress => "TC egress",
            Self::XdpDriver => "XDP in the driver",
            Self::XdpGeneric => "generic XDP",
            Self::NetArrival => "the net's ingress",
            Self::Net => "the net's egress",
        })
    }
}

/// How to use XDP on uplinks that are named, or have a default route or the node's address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum XdpMode {
    /// In the driver where it can; not on veth; TC serves otherwise
    #[default]
    Auto,
    /// In the driver, or the device is in error
    Driver,
    /// In the network stack, for drivers without XDP: slower than in the driver
    Generic,
    /// Not at all: TC serves
    Off,
}

/// What is wanted of XDP on one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpWish {
    /// This door, and without it the device is in error.
    Must(Door),
    /// This door, if it can be had.
    May(Door),
    /// None, and why.
    No(&'static str),
}

impl XdpMode {
    /// What this mode means for a device of a duty and a driver.
    ///
    /// A program in the driver is not without consequences: a bond takes no port that has one, larger MTUs are refused, and some
    /// drivers make their queues anew. So devices that serve for want of a reason against it have none.
    #[must_use]
    pub fn wish(self, duty: Duty, kind: &str) -> XdpWish {
        if duty.role & role::UPLINK == 0 {
            return XdpWish::No("not an uplink");
        }
        if is_tunnel(kind) {
            return XdpWish::No("a tunnel unwraps packets that the stack has already");
        }
        match self {
            Self::Off => XdpWish::No("--xdp off"),
            _ if !duty.is_main => {
                XdpWish::No("not named by --uplink, and with neither a default route nor the node's address")
            }
            Self::Driver => XdpWish::Must(Door::XdpDriver),
            Self::Generic => XdpWish::Must(Door::XdpGeneric),
            // Local senders leave the checksum to a device that does not exist: XDP can't know, TC does.
            Self::Auto if kind == VETH => XdpWish::No("a veth hands over packets with unfinished checksums"),
            Self::Auto => XdpWish::May(Door::XdpDriver),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_say_door_and_device() {
        for door in Door::ALL {
            assert_eq!(Door::of_pin(&door.pin_name(7)), Some((door, 7)));
        }
        assert_eq!(Door::Net.pin_name(7), "net-7");
        for other in ["xdp", "xdp-", "xdp-x", "tc-7", "filter-7"] {
            assert_eq!(Door::of_pin(other), None, "{other}");
        }
    }

    #[test]
    fn xdp_is_for_uplinks_and_auto_spares_veth() {
        let main = |role| Duty { role, is_main: true };
        let uplink = main(role::UPLINK);
        let both = main(role::UPLINK | role::POD);
        assert_eq!(XdpMode::Auto.wish(both, ""), XdpWish::May(Door::XdpDriver));
        assert!(matches!(XdpMode::Auto.wish(uplink, VETH), XdpWish::No(_)));
        assert_eq!(XdpMode::Driver.wish(uplink, VETH), XdpWish::Must(Door::XdpDriver));
        assert_eq!(XdpMode::Generic.wish(uplink, VETH), XdpWish::Must(Door::XdpGeneric));
        assert!(matches!(XdpMode::Driver.wish(main(role::POD), ""), XdpWish::No(_)));
        assert!(matches!(XdpMode::Driver.wish(uplink, "vxlan"), XdpWish::No(_)));
        assert_eq!(XdpMode::Driver.wish(uplink, "bridge"), XdpWish::Must(Door::XdpDriver));
        assert!(matches!(XdpMode::Off.wish(uplink, ""), XdpWish::No(_)));
    }

    /// A bond with XDP takes no port that has XDP, so that one which had left it for a moment could not come back.
    #[test]
    fn a_card_that_nobody_has_named_keeps_its_driver_to_itself() {
        let other = Duty { role: role::UPLINK, is_main: false };
        for mode in [XdpMode::Auto, XdpMode::Driver, XdpMode::Generic, XdpMode::Off] {
            assert!(matches!(mode.wish(other, ""), XdpWish::No(_)), "{mode:?}");
        }
    }
}

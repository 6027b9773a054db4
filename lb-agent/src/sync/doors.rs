// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the one loop asks of the data plane beyond writing maps, so that it can be tested without a kernel.

use std::{collections::BTreeSet, time::Instant};

use lb_common::{
    address::Address,
    config::{Config, Net, config_flags},
    maps::LAYOUT_VERSION,
    verdict::Reason,
};

use crate::{
    dataplane::{AttachError, Audit, Dataplane, MapError, SocketError},
    diff::{Filter, Operation, Writer},
    hash_seed::HashSeed,
    node::{roles::Duty, state::Link},
    problem::Problem,
};

/// The programs on the devices, and the part of the configuration that changes while they run.
pub trait Doors: Writer {
    /// Attaches the programs that a duty asks for; those that are attached already stay.
    ///
    /// # Errors
    /// Where the device has gone, or has to do without a door that it can't do without.
    fn attach(&mut self, ifindex: u32, link: &Link, duty: Duty) -> Result<Attached, DoorError>;

    /// Lets programs of an earlier agent give way to this one's, now that the maps hold what they should. Returns what
    /// could not be replaced, and runs on.
    fn take_over(&mut self) -> Vec<Problem>;

    /// Closes sockets whose backends have gone. Returns when to come back. Without a socket door there are none.
    fn close_orphans(&mut self, _now: Instant) -> Option<Instant> {
        None
    }

    /// Whether sockets of the node's own processes are translated.
    fn is_socket_door_open(&self) -> bool;

    /// New flows turned away so far because no source port was free. `None` where nobody counts.
    fn flows_without_port(&self) -> Option<u64> {
        None
    }

    /// Takes the programs off a device, or forgets them if it has gone.
    fn detach(&mut self, ifindex: u32);

    /// Devices with programs, those adopted from an earlier agent among them.
    fn attached(&self) -> BTreeSet<u32>;

    /// Makes cached next hops be looked up again.
    fn bump_next_hops(&mut self);

    /// Sets whether the way to a destination depends on more than that.
    fn set_policy_routing(&mut self, is_policy_routed: bool);

    /// The next hops that are cached, each by its device and Ethernet address.
    fn next_hops(&self) -> BTreeSet<(u32, [u8; 6])>;

    /// Sets the node's primary addresses, IPv4 and IPv6.
    fn set_node_addresses(&mut self, addresses: [Address; 2]);

    /// What the programs are told of the net.
    fn net(&self) -> Net {
        Net::default()
    }

    /// Tells them.
    fn set_net(&mut self, _net: Net) {}

    /// Sets the key of the flow hash. Flows that there are stay where they are.
    fn set_hash_seed(&mut self, seed: HashSeed);

    /// Looks whether what was made in the kernel outside of the maps is still as it was made; puts back what is not.
    fn audit(&mut self) -> Audit {
        Audit::default()
    }

    /// Whether a map holds what an operation writes.
    ///
    /// # Errors
    /// When the map can't be read.
    fn holds(&self, _operation: &Operation) -> Result<bool, MapError> {
        Ok(true)
    }

    /// Takes out of the filter what nothing needs any more, neither `needed` nor a flow. Returns what is left.
    fn sweep_filter(&mut self, needed: &Filter) -> Filter;
}

/// How a device's programs are attached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attached {
    /// Whether the XDP program runs in the driver, so that frames can be redirected to the device.
    pub is_native_xdp: bool,
    /// For people: the doors, and why one is missing or slow.
    pub text: String,
}

/// Programs that could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// The device has gone meanwhile: nothing to report.
    #[error("the device has gone")]
    Gone,
    /// The kernel refused.
    #[error("{cause}")]
    Refused {
        /// What it said.
        cause: String,
        /// What can be done.
        remedy: String,
    },
}

impl From<AttachError> for DoorError {
    fn from(error: AttachError) -> Self {
        match error {
            AttachError::Gone { .. } => Self::Gone,
            refused => Self::Refused { cause: refused.to_string(), remedy: refused.remedy().to_owned() },
        }
    }
}

impl Doors for Dataplane {
    fn attach(&mut self, ifindex: u32, link: &Link, duty: Duty) -> Result<Attached, DoorError> {
        let attachment = Self::attach(self, ifindex, &link.name, duty, &link.kind)?;
        Ok(Attached { is_native_xdp: attachment.is_native_xdp(), text: attachment.to_string() })
    }

    fn take_over(&mut self) -> Vec<Problem> {
        let problem = |error: AttachError| {
            let cause = format!("{error}; the program of an earlier agent runs on");
            Problem::new("programs on devices", cause, error.remedy())
        };
        let socket_problem = |error: SocketError| {
            let remedy = "the packet doors go on; see that the kernel has CONFIG_CGROUP_BPF, or use --socket-lb off";
            Problem::new("socket door", error.to_string(), remedy)
        };
        let lost =
            self.earlier_flows().filter(|(_, flows)| *flows > 0).map(|(layout, flows)| lost_flows(layout, flows));
        // First: the directory of another layout goes with the rest, and with it links that nobody has taken.
        let mut problems: Vec<_> = self.take_over_sockets().into_iter().map(socket_problem).collect();
        problems.extend(Self::take_over(self).into_iter().map(problem));
        problems.extend(lost);
        problems
    }

    fn close_orphans(&mut self, now: Instant) -> Option<Instant> {
        Self::close_orphans(self, now)
    }

    fn is_socket_door_open(&self) -> bool {
        Self::is_socket_door_open(self)
    }

    fn flows_without_port(&self) -> Option<u64> {
        self.maps().count_of(Reason::NoSourcePort).ok()
    }

    fn detach(&mut self, ifindex: u32) {
        Self::detach(self, ifindex);
    }

    fn attached(&self) -> BTreeSet<u32> {
        Self::attached(self)
    }

    fn bump_next_hops(&mut self) {
        Self::bump_next_hops(self);
    }

    fn set_policy_routing(&mut self, is_policy_routed: bool) {
        let config = self.config();
        let bit = if is_policy_routed { config_flags::POLICY_ROUTING } else { 0 };
        let flags = config.flags & !config_flags::POLICY_ROUTING | bit;
        if flags != config.flags {
            self.set_config(&Config { flags, ..config });
        }
    }

    fn next_hops(&self) -> BTreeSet<(u32, [u8; 6])> {
        Self::next_hops(self)
    }

    fn set_node_addresses(&mut self, addresses: [Address; 2]) {
        self.set_config(&Config { node_addresses: addresses, ..self.config() });
    }

    fn net(&self) -> Net {
        self.config().net
    }

    fn set_net(&mut self, net: Net) {
        self.set_config(&Config { net, ..self.config() });
    }

    fn set_hash_seed(&mut self, seed: HashSeed) {
        let config = self.config();
        if config.seed != seed.0 {
            self.set_config(&Config { seed: seed.0, ..config });
        }
    }

    fn audit(&mut self) -> Audit {
        Self::audit(self)
    }

    fn holds(&self, operation: &Operation) -> Result<bool, MapError> {
        self.maps().holds(operation)
    }

    fn sweep_filter(&mut self, needed: &Filter) -> Filter {
        self.maps().sweep_filter(needed)
    }
}

/// The programs of an earlier layout have given way, and nobody reads their flow tables any more.
fn lost_flows(layout: u32, flows: u64) -> Problem {
    let cause = format!(
        "the up to {flows} flows of the maps of layout {layout} are not carried over to layout {LAYOUT_VERSION}: each is decided \
         anew with its next packet, and meets the same backend where the Service's endpoints have not changed since it began"
    );
    let remedy = "nothing needs to be done; connections from outside whose source is translated may get another source port, and end";
    Problem::new("upgrade of the maps", cause, remedy)
}

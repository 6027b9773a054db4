// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's side of the agent: programs, maps, links and pins.
//!
//! In: [`Operation`]s, and devices with their roles. Out: what the maps hold, and counters. It must not know of
//! Kubernetes, Services or time.
//!
//! Everything is pinned and outlives the process: the next agent adopts it. What runs is replaced in place, and not before
//! the maps are complete, so that no packet meets a gap.

mod attach;
mod audit;
mod capabilities;
mod clock;
mod conntrack;
mod counters;
mod doors;
mod dump;
mod earlier;
mod ended;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
mod filters;
mod flows;
mod kernel;
mod load;
mod logs;
mod maps;
mod mounts;
mod next_hops;
mod orphans;
mod pinned;
mod pins;
mod question;
mod remove;
mod resize;
mod sock_diag;
mod sockets;
mod sys;
#[cfg(test)]
pub(crate) mod tests;
mod usage;
mod watch;
mod write;

use std::{
    collections::BTreeSet,
    io,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use aya::{Ebpf, EbpfError, programs::ProgramError};
use lb_common::{
    config::{Config, FIRST_GENERATION, PortRange, config_flags},
    filter::Concern,
    flow::protocol,
    maps::{CONFIG, FILTER, SLOTS_PER_CHUNK},
};
use tracing::{info, warn};

use self::{
    attach::Links,
    conntrack::Conntrack,
    earlier::Earlier,
    ended::Ended,
    orphans::Orphans,
    pinned::PinnedObjects,
    pins::Lock,
    resize::Resized,
    sockets::{SocketDoor, SocketFeatures},
    watch::Watch,
};
pub use self::{
    attach::{AttachError, Attachment},
    audit::{Audit, Failure, Part, Repair, RepairsText},
    clock::kernel_clock,
    counters::Counters,
    doors::{Door, XdpMode},
    dump::SocketUse,
    flows::{Census, FlowEntry, OpenFlows},
    kernel::{Feature, Lacks},
    maps::{MapError, Maps},
    pins::{DEFAULT_BPFFS, PinError, Pins},
    question::{Answer, QuestionError, ask, ask_socket, has_door},
    remove::{Item, remove_all},
    sockets::{SocketError, SocketMode, SocketOptions},
    sys::{cpu_numbers, device_name, lift_file_limit},
    usage::MapUsage,
};
pub use crate::diff::Capacities;
use crate::{
    diff::{Operation, WriteError, Writer},
    node::roles::Duty,
};

/// How to open the data plane.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory of all pins.
    pub bpffs: PathBuf,
    /// Sizes of maps.
    pub capacities: Capacities,
    /// How to use XDP.
    pub xdp: XdpMode,
    /// For whom the socket door is opened.
    pub sockets: SocketOptions,
    /// Whether to pass on the programs' debug log, if they were built with it.
    pub log: bool,
}

/// The data plane can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Privileges are missing.
    #[error("this process lacks {}; run as root, or with these capabilities", .missing.join(", "))]
    Capabilities {
        /// Their names.
        missing: Vec<&'static str>,
    },
    /// Built for looking at, not for running.
    #[error("this lb-agent was built with SHUNT_NO_EBPF=1 and has no programs; build it without")]
    NoObject,
    /// Agent and object don't fit together.
    #[error("the embedded eBPF object has no {name}; build both again: `cargo xtask build-ebpf`, then the agent")]
    MissingFromObject {
        /// The map or program.
        name: &'static str,
    },
    /// The directory of pins.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// A map.
    #[error(transparent)]
    Map(#[from] MapError),
    /// No random bytes for the key of the flow tables.
    #[error("reading /dev/urandom: {cause}")]
    Random {
        /// What the kernel said.
        cause: io::Error,
    },
    /// The programs could not tell the node's own sockets from those of pods.
    #[error("this network namespace has no cookie (SO_NETNS_COOKIE): {cause}; Linux 5.14 is needed")]
    Namespace {
        /// What the kernel said.
        cause: io::Error,
    },
    /// Making maps, or the object as a whole.
    #[error("loading the eBPF object: {}", load::object_text(cause))]
    Load {
        /// What aya or the kernel said.
        cause: EbpfError,
    },
    /// The kernel refused a program.
    #[error("loading program {name}: {}", load::verifier_text(cause))]
    Program {
        /// Its name.
        name: &'static str,
        /// What the kernel said.
        cause: ProgramError,
    },
}

/// Maps, programs and links of this agent. Dropping it ends the ownership; everything goes on as it is.
pub struct Dataplane {
    maps: Arc<Maps>,
    /// As it was written last.
    config: Config,
    pins: Pins,
    pinned: PinnedObjects,
    links: Links,
    sockets: SocketDoor,
    /// `None` where sockets are not translated, or can't be closed.
    orphans: Option<Orphans>,
    ended: Ended,
    /// Source ports that pass the filter.
    passing: [PortRange; 2],
    /// Whether programs can ask conntrack.
    conntrack: Conntrack,
    ebpf: Ebpf,
    /// See [`Pins::lock`].
    lock: Lock,
    /// Tells of pins that are removed, while it is held.
    watch: Option<Watch>,
}

impl Dataplane {
    /// Makes maps, or adopts those of an earlier agent; loads the programs; and finds its links, which run on as they are
    /// until [`Dataplane::take_over`].
    ///
    /// # Errors
    /// With what can be done about it. Nothing that ran before has stopped then.
    pub fn open(options: &Options) -> Result<Self, OpenError> {
        let features = SocketFeatures::detect().map_err(|cause| OpenError::Namespace { cause })?;
        Self::open_with(options, &features)
    }

    fn open_with(options: &Options, features: &SocketFeatures) -> Result<Self, OpenError> {
        let missing = capabilities::missing();
        if !missing.is_empty() {
            return Err(OpenError::Capabilities { missing });
        }
        let pins = Pins::new(&options.bpffs);
        pins.create()?;
        let lock = pins.lock()?;
        let globals = features.globals(options.sockets.mode);
        let of_sockets: &[_] = if options.sockets.mode == SocketMode::Off { &[] } else { &sockets::PROGRAMS };
        let wanted = load::Wanted { capacities: &options.capacities, globals: &globals, of_sockets };
        let is_unfinished = resize::restore(&pins)?;
        let load::Loaded { mut ebpf, programs, refused, table_key, resized } =
            load::load(&pins, &wanted).or_else(|error| restored(&pins, error))?;
        let is_resized = !resized.is_empty();
        let maps = Arc::new(Maps::open(&pins)?);
        let resized = Resized::fill(&pins, resized, &maps).or_else(|error| restored(&pins, error.into()))?;
        let sockets = SocketDoor::load(&ebpf, refused, pins.clone(), &options.sockets, features);
        if options.log {
            logs::start(&mut ebpf);
        }
        let orphans = if sockets.is_open() { find_orphans(&maps)? } else { None };
        let serves = pins.others().is_empty();
        let pinned = PinnedObjects::open(&pins, programs.keys().chain(sockets.pinned_programs()).copied())?;
        let earlier = Earlier::find(&pins);
        let links = Links::adopt(pins.clone(), programs, options.xdp);
        let passing = [PortRange::default(); 2];
        let mut config = Config { table_key, ..maps.config.get(0).unwrap_or_default() };
        if let (Some(earlier), [0, 0]) = (earlier, config.seed) {
            config.seed = earlier.seed().unwrap_or_default();
        }
        let conntrack = Conntrack::found(config.flags & config_flags::ASKS_CONNTRACK != 0);
        let mut own = Self {
            maps,
            config,
            pins,
            pinned,
            links,
            sockets,
            orphans,
            ended: Ended::default(),
            passing,
            conntrack,
            ebpf,
            lock,
            watch: None,
        };
        own.set_config(&config);
        if (is_resized || is_unfinished) && serves {
            own.switch(&resized);
        }
        if let Err(error) = resized.finish(&own.maps) {
            warn!("{error}; the next start of the agent makes the maps anew once more");
        }
        Ok(own)
    }

    /// The layout of an earlier agent that runs on, and how many flows it has: they are not carried over.
    #[must_use]
    pub fn earlier_flows(&self) -> Option<(u32, u64)> {
        let earlier = Earlier::find(&self.pins)?;
        Some((earlier.version(), earlier.count_flows()))
    }

    /// Lets what runs with the maps of before run with those of another size, which hold the same. (What runs with those of
    /// another layout goes on until the first sync.)
    fn switch(&mut self, resized: &Resized) {
        resized.catch_up_counters(&self.maps);
        for error in self.take_over() {
            warn!("{error}; {}", error.remedy());
        }
        if self.sockets.has_links() {
            self.take_over_sockets().iter().for_each(|error| warn!("{error}"));
        }
    }

    /// The maps, for whoever reads them beside the loop.
    #[must_use]
    pub fn shared_maps(&self) -> Arc<Maps> {
        Arc::clone(&self.maps)
    }

    /// The maps.
    #[must_use]
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// What the maps can really hold: an adopted one keeps its size where another can't be had.
    #[must_use]
    pub fn capacities(&self) -> Capacities {
        Capacities {
            frontends: self.maps.frontends.capacity(),
            backends: self.maps.backends.capacity(),
            table_slots: self.maps.tables.capacity() * SLOTS_PER_CHUNK,
            flows: self.maps.flows_v4.capacity().max(self.maps.flows_v6.capacity()),
            families: [self.maps.flows_v4.sets(), self.maps.flows_v6.sets()]
                .map(|sets| sets > Capacities::SETS_OF_NO_FAMILY),
            services: self.maps.names.capacity(),
            source_ranges: self.maps.source_ranges.capacity(),
            affinity: self.maps.affinity.capacity(),
            fragments: self.maps.fragments.capacity(),
            interfaces: self.maps.interfaces.capacity(),
            node_addresses: self.maps.node_addresses.capacity(),
            sockets: self.maps.sockets.capacity(),
        }
    }

    /// The configuration. All zero in new maps.
    #[must_use]
    pub const fn config(&self) -> Config {
        self.config
    }

    /// Writes the configuration, and lets the node's addresses and source ports pass the filter first.
    pub fn set_config(&mut self, config: &Config) {
        for address in config.node_addresses.iter().filter(|address| !address.is_unspecified()) {
            self.maps.pass(Concern::Node(*address));
        }
        if self.passing != config.source_ports {
            source_ports(&config.source_ports).for_each(|concern| self.maps.pass(concern));
            self.passing = config.source_ports;
        }
        let asks_conntrack = if self.conntrack.is_asked() { config_flags::ASKS_CONNTRACK } else { 0 };
        self.config = Config { flags: config.flags & !config_flags::ASKS_CONNTRACK | asks_conntrack, ..*config };
        let words: &[u32] = bytemuck::cast_slice(std::slice::from_ref(&self.config));
        self.maps.config.words().iter().zip(words).for_each(|(to, &from)| to.store(from, Ordering::Release));
    }

    /// Makes every cached next hop be looked up again.
    pub fn bump_next_hops(&mut self) {
        let mut config = self.config();
        config.next_hop_generation = config.next_hop_generation.wrapping_add(1).max(FIRST_GENERATION);
        self.set_config(&config);
    }

    /// The next hops that programs have cached, or noted for the agent alone (`POLICY_ROUTING`): device and Ethernet address. Each was
    /// found since the last bump but one.
    #[must_use]
    pub fn next_hops(&self) -> BTreeSet<(u32, [u8; 6])> {
        let generation = self.config.next_hop_generation;
        let generations = [generation, generation.wrapping_sub(1)];
        self.maps.next_hops.iter().flat_map(|table| table.of_generations(generations)).collect()
    }

    /// Attaches the programs that a device's duty asks for; those that are there stay.
    ///
    /// # Errors
    /// Where a door that the device can't do without is refused.
    pub fn attach(&mut self, ifindex: u32, name: &str, duty: Duty, kind: &str) -> Result<Attachment, AttachError> {
        self.links.attach(&mut self.ebpf, (ifindex, name), duty, kind)
    }

    /// Lets the links of an earlier agent run this agent's programs, and removes what is left of other layout versions. To
    /// be called when the maps hold what they should: where their layout has changed, they were empty.
    ///
    /// What is returned was refused, and runs on as it is.
    pub fn take_over(&mut self) -> Vec<AttachError> {
        let filled =
            load::fill_program_arrays(&mut self.ebpf).map_err(|cause| AttachError::Tails { cause: Box::new(cause) });
        let refused = filled.err().into_iter().chain(self.links.take_over(&mut self.ebpf)).collect();
        self.conntrack.want();
        self.ask_conntrack();
        // Loading and the first sync are over, and took much more memory than what comes.
        sys::trim_heap();
        refused
    }

    /// Lets the programs ask conntrack, as soon as the kernel has it.
    fn ask_conntrack(&mut self) {
        self.conntrack.install(&self.pins);
        if self.conntrack.is_asked() != (self.config.flags & config_flags::ASKS_CONNTRACK != 0) {
            let config = self.config;
            self.set_config(&config);
        }
    }

    /// Opens the socket door, or lets the links of an earlier agent run this agent's programs; closes it where it is not
    /// wanted. To be called like, and before, [`Dataplane::take_over`].
    pub fn take_over_sockets(&mut self) -> Vec<SocketError> {
        info!("socket door: {}", self.sockets);
        self.sockets.take_over()
    }

    /// Whether sockets are translated. An earlier agent's links count for nothing before [`Dataplane::take_over_sockets`].
    #[must_use]
    pub const fn is_socket_door_open(&self) -> bool {
        self.sockets.is_attached()
    }

    /// Closes sockets of the node's own processes whose backends have gone, and ends UDP flows whose frontends have. Returns
    /// when to come back.
    pub fn close_orphans(&mut self, now: Instant) -> Option<Instant> {
        let flows = self.ended.end(now, |due| self.maps.end_udp_flows(due));
        let sockets = self.orphans.as_mut().and_then(|orphans| orphans.close(&self.maps, now));
        flows.into_iter().chain(sockets).min()
    }

    /// Looks whether everything that this agent has made outside of the maps, and the configuration, is still as it was made;
    /// puts back what is not.
    pub fn audit(&mut self) -> Audit {
        let mut audit = Audit::default();
        self.audit_directories(&mut audit);
        if !audit.failures.is_empty() {
            // What is pinned there may be another agent's.
            return audit;
        }
        self.pinned.audit(&mut audit);
        self.links.audit(&mut self.ebpf, &mut audit);
        self.sockets.audit(&mut audit);
        if self.maps.config.get(0) != Some(self.config) {
            let config = self.config;
            self.set_config(&config);
            audit.note(Part::Map, CONFIG, Ok::<_, PinError>(()));
        }
        self.audit_filter(&mut audit);
        self.ask_conntrack();
        audit
    }

    /// What the configuration says passes the filter; the rest of it is looked at with what it is for.
    fn audit_filter(&self, audit: &mut Audit) {
        let of_node = self.config.node_addresses.into_iter().filter(|address| !address.is_unspecified());
        let concerns = of_node.map(Concern::Node).chain(source_ports(&self.config.source_ports));
        let mut lost = concerns.filter(|concern| !self.maps.passes(*concern)).peekable();
        if lost.peek().is_some() {
            lost.for_each(|concern| self.maps.pass(concern));
            audit.note(Part::Map, FILTER, Ok::<_, PinError>(()));
        }
    }

    /// The bpffs may have been unmounted, and the directories removed. Whoever owns them then is found out anew.
    fn audit_directories(&mut self, audit: &mut Audit) {
        let is_whole = self.pins.directories().all(|path| path.is_dir()) && self.lock.is_of(self.pins.root());
        if is_whole {
            return;
        }
        let made = self.pins.create().and_then(|()| {
            if !self.lock.is_of(self.pins.root()) {
                self.lock = self.pins.lock()?;
            }
            Ok(())
        });
        audit.note(Part::Directory, self.pins.root().display().to_string(), made);
        // What it watched has gone.
        if let Some(watch) = self.watch.take() {
            self.watch = watch.again(&self.pins);
        }
    }

    /// Sends a word as soon as a pin is removed, as long as this agent lives; without the kernel's notices nobody hears of it
    /// before the next look.
    pub fn tell_of_removals(&mut self, tell: impl Fn() + Send + Sync + 'static) {
        self.watch = Watch::start(&self.pins, Arc::new(tell));
    }

    /// Takes the programs off a device, or forgets it if it has gone.
    pub fn detach(&mut self, ifindex: u32) {
        self.links.detach(ifindex);
    }

    /// Devices with programs, those adopted from an earlier agent among them.
    #[must_use]
    pub fn attached(&self) -> BTreeSet<u32> {
        self.links.devices()
    }
}

impl Writer for Dataplane {
    fn write(&mut self, operation: &Operation) -> Result<(), WriteError> {
        let maps = &self.maps;
        self.ended.note(operation, |key| maps.frontends.get(key).ok().flatten());
        self.maps.write(operation)?;
        if let Some(orphans) = &mut self.orphans {
            orphans.note(operation);
        }
        Ok(())
    }
}

/// What lets replies to source ports pass the filter.
pub fn source_ports(ranges: &[PortRange; 2]) -> impl Iterator<Item = Concern> {
    let ports = ranges.iter().filter(|range| !range.is_empty()).flat_map(|range| range.first..=range.last);
    let protocols = [protocol::TCP, protocol::UDP, protocol::SCTP];
    ports.flat_map(move |port| protocols.map(|protocol| Concern::NodePort(port, protocol)))
}

/// Nothing of a start that failed is left: what runs goes on with the maps that it has.
fn restored<T>(pins: &Pins, error: OpenError) -> Result<T, OpenError> {
    if let Err(error) = resize::restore(pins) {
        warn!("{error}");
    }
    Err(error)
}

/// Watches for sockets whose backends go, where the kernel lets us close them.
fn find_orphans(maps: &Maps) -> Result<Option<Orphans>, MapError> {
    if !orphans::can_close() {
        warn!(
            "socket door: the kernel does not let sockets be closed (CONFIG_INET_DIAG_DESTROY, CONFIG_INET_UDP_DIAG): a \
             connected UDP socket of the node's own processes stays with a backend that has gone"
        );
        return Ok(None);
    }
    Ok(Some(Orphans::new(maps.frontends.entries()?.values())))
}

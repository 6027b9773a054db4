// SPDX-License-Identifier: MIT OR Apache-2.0
//! Kernel and reference model side by side: every packet goes through both, and all that can be seen must agree.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    net::IpAddr,
    sync::atomic::{AtomicUsize, Ordering},
};

use anyhow::{Context, Result, ensure};
use lb_common::{
    flow::{FlowState, table::WAYS},
    maps::capacity,
    trace::TraceRecord,
};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity},
    unistd::Pid,
};

use super::{
    clock::clock,
    kernel::{COOKIE, Kernel, Ran, now_of},
    network::{Network, with_network},
    object::Object,
};
use crate::reference::{Arrival, Counters, Datagram, Entry, Model, NextHop, Outcome, Setup, Tuple, Verdict};

const REFUSED: &str = "the kernel won't take such a frame for a test";

/// Both, in step.
pub struct Rig {
    /// The network of this thread.
    pub network: Network,
    kernel: Kernel,
    model: Model,
    /// The kernel's counters after the last packet.
    counted: Counters,
    /// The longest run so far, in jiffies: by so much it may be off what the model has for the beginning of a flow.
    slack: u32,
}

/// Room for flow entries, of each family.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    entries: u32,
}

impl Room {
    /// What an agent makes where it is told nothing else.
    pub const DEFAULT: Self = Self::of(capacity::FLOWS);

    /// So many: a power of two, and two sets or more.
    #[must_use]
    pub const fn of(entries: u32) -> Self {
        assert!(entries.is_power_of_two() && entries >= 2 * WAYS, "a power of two, and no fewer than two sets");
        Self { entries }
    }

    /// In sets.
    pub(super) const fn sets(self) -> u32 {
        self.entries / WAYS
    }
}

/// That of a test.
const ROOM: Room = Room::of(8_192);

/// Runs a test with the setup that `prepare` makes for the network.
///
/// # Errors
/// When not root, when there is no object, or those of `test`.
pub fn with_rig(
    prepare: impl FnOnce(&Network) -> Setup + Send,
    test: impl FnOnce(&mut Rig) -> Result<()> + Send,
) -> Result<()> {
    with_rig_for(ROOM, prepare, test)
}

/// The same with other room for flow entries.
///
/// # Errors
/// As [`with_rig`].
pub fn with_rig_for<T: Send>(
    room: Room,
    prepare: impl FnOnce(&Network) -> Setup + Send,
    test: impl FnOnce(&mut Rig) -> Result<T> + Send,
) -> Result<T> {
    with_network(|network| {
        stay_on_one_cpu()?;
        let setup = prepare(&network);
        let kernel = Kernel::start(room)?;
        let mut rig = Rig { network, kernel, model: Model::new(setup), counted: Counters::default(), slack: 0 };
        rig.kernel.maps.apply(&rig.model.setup)?;
        test(&mut rig)
    })
}

impl Rig {
    /// Runs a packet through both, and gives what came of it; `None` where the kernel won't test such a frame.
    ///
    /// # Errors
    /// Where they don't agree about verdict, bytes, counters or the answer to a trace.
    pub fn try_send(&mut self, arrival: &Arrival) -> Result<Option<Outcome>> {
        let ran = self.kernel.run(arrival)?;
        ran.map(|ran| self.judge(arrival, &ran)).transpose()
    }

    /// Runs a trace whose cookie is not that of the record, which must be treated like any packet of the network.
    ///
    /// # Errors
    /// As [`Rig::send`].
    pub fn send_with_wrong_cookie(&mut self, arrival: &Arrival) -> Result<Outcome> {
        self.kernel.maps.ask(COOKIE.map(|word| word + 1))?;
        let ran = self.kernel.run(&Arrival { is_trace: true, ..arrival.clone() })?;
        self.kernel.maps.ask(COOKIE)?;
        self.judge(&Arrival { is_trace: false, ..arrival.clone() }, &ran.context(REFUSED)?)
    }

    /// Lets the model do what the kernel has done, and compares.
    fn judge(&mut self, arrival: &Arrival, ran: &Ran) -> Result<Outcome> {
        let seen = self.observe(arrival, ran)?;
        let (first, last) = ran.jiffies;
        self.slack = self.slack.max(u32::try_from(last - first)?);
        let has_ticked = now_of(first).tick != now_of(last).tick;
        // The clock may have gone on between the program's look at it and ours.
        let before = (first != last).then(|| self.model.clone());
        let mut expected = self.model.step(arrival, now_of(last));
        if let Some(before) = before
            && (expected != seen || has_ticked && self.compare_flows().is_err())
        {
            for jiffies in (first..last).rev() {
                self.model = before.clone();
                expected = self.model.step(arrival, now_of(jiffies));
                if expected == seen && self.compare_flows().is_ok() {
                    break;
                }
            }
        }
        ensure!(
            expected == seen,
            "kernel and model disagree about {:?} at {:?} of device {}\n{:02x?}\nkernel: {seen}\nmodel:  {expected}",
            if arrival.is_trace { "a trace" } else { "a packet" },
            arrival.door,
            arrival.ifindex,
            arrival.frame
        );
        if first != last {
            self.adopt_births()?;
        }
        if has_ticked {
            // In which of them an error was paid for doesn't show, until one is refused later.
            self.kernel.maps.renew_reject_budget()?;
            self.model.renew_reject_budget();
        }
        Ok(seen)
    }

    /// In which jiffy a flow began the kernel knows; of two that began almost at once, the older one yields its port.
    fn adopt_births(&mut self) -> Result<()> {
        for (tuple, entry) in self.kernel.maps.flows()? {
            if let Some(known) = self.model.flows.0.get_mut(&tuple)
                && is_within(entry.born, known.born, self.slack)
            {
                known.born = entry.born;
            }
        }
        Ok(())
    }

    /// The same for a frame that the kernel takes.
    ///
    /// # Errors
    /// As [`Rig::try_send`], and when the kernel won't take it.
    pub fn send(&mut self, arrival: &Arrival) -> Result<Outcome> {
        self.try_send(arrival)?.context(REFUSED)
    }

    /// Runs a packet through the programs alone, and gives verdict and frame: from then on the model knows less than they.
    ///
    /// # Errors
    /// When the kernel won't take it.
    pub fn send_unobserved(&mut self, arrival: &Arrival) -> Result<(Verdict, Vec<u8>)> {
        let ran = self.kernel.run(arrival)?.context(REFUSED)?;
        Ok((ran.verdict, ran.frame))
    }

    /// Runs a packet through the TC door alone that is yet to be cut into segments with so many bytes of payload, which the model
    /// knows nothing of; its flow must be there.
    ///
    /// # Errors
    /// When the kernel won't take it.
    pub fn send_uncut(&mut self, arrival: &Arrival, segment_len: u32) -> Result<Outcome> {
        let ran = self.kernel.run_uncut(arrival, segment_len)?.context(REFUSED)?;
        self.observe(arrival, &ran)
    }

    fn observe(&mut self, arrival: &Arrival, ran: &Ran) -> Result<Outcome> {
        let counters = self.kernel.maps.counters()?;
        let moved = counters.since(&self.counted);
        self.counted = counters;
        let mut record = TraceRecord::default();
        if arrival.is_trace {
            record = self.kernel.maps.answer()?;
            self.kernel.maps.ask(COOKIE)?;
        }
        Ok(Outcome { verdict: ran.verdict, frame: ran.frame.clone(), moved, record })
    }

    /// Compares the flow tables, entry by entry, and those of affinities and of fragmented datagrams.
    ///
    /// # Errors
    /// Names every entry that differs.
    pub fn compare_flows(&self) -> Result<()> {
        let (mut kernel, mut model) = (self.kernel.maps.flows()?, self.model.flows.0.clone());
        for (tuple, entry) in &kernel {
            if let Some(known) = model.get_mut(tuple) {
                self.allow_for(tuple, entry, known)?;
            }
        }
        let is_current = |next_hop: &NextHop| next_hop.generation == self.model.setup.next_hop_generation;
        for entry in kernel.values_mut().chain(model.values_mut()) {
            // An old way will be looked up again, whatever it is.
            entry.next_hop = entry.next_hop.filter(is_current);
        }
        compare("flow", &kernel, &model)?;
        self.kernel.maps.check_peers()?;
        compare("fragment", &self.kernel.maps.fragments()?, &self.model.fragments.0)?;
        compare("affinity", &self.kernel.maps.affinities()?, &self.model.affinities.0)
    }

    /// Lets an entry of the model have what it can't know better than the kernel: when exactly the flow began, and that another flow
    /// has found the way to the same destination.
    fn allow_for(&self, tuple: &Tuple, entry: &Entry, known: &mut Entry) -> Result<()> {
        if is_within(entry.born, known.born, self.slack) {
            known.born = entry.born;
        }
        let setup = &self.model.setup;
        if let Some(next_hop) = entry.next_hop.filter(|next_hop| next_hop.generation == setup.next_hop_generation) {
            let way = setup.next_hop_to(entry.to.dst.ip());
            ensure!(way == Some(next_hop), "{tuple:?} is sent to {next_hop:?}, not {way:?}");
            known.next_hop = Some(next_hop);
        }
        Ok(())
    }

    /// The flows that the kernel has in a state.
    ///
    /// # Errors
    /// When they can't be read.
    pub fn flows_in(&self, states: &[FlowState]) -> Result<BTreeSet<Tuple>> {
        let flows = self.kernel.maps.flows()?.into_iter();
        Ok(flows.filter(|(_, entry)| states.contains(&entry.state)).map(|(tuple, _)| tuple).collect())
    }

    /// All flows that the kernel has.
    ///
    /// # Errors
    /// When they can't be read.
    pub fn kernel_flows(&self) -> Result<BTreeMap<Tuple, Entry>> {
        self.kernel.maps.flows()
    }

    /// What the kernel holds under a tuple.
    ///
    /// # Errors
    /// When its flows can't be read.
    pub fn kernel_flow(&self, tuple: Tuple) -> Result<Option<Entry>> {
        Ok(self.kernel.maps.flows()?.remove(&tuple))
    }

    /// Makes all flows, affinities and datagrams seem to have been used a tick from now: by a CPU that saw it begin before this
    /// one did.
    ///
    /// # Errors
    /// As [`Rig::wait`].
    pub fn overtake(&mut self) -> Result<()> {
        self.age(u32::MAX, 0)
    }

    /// What the kernel has counted so far.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn counters(&self) -> Result<Counters> {
        self.kernel.maps.counters()
    }

    /// Whether packets were counted for backends where the CPU counts on which this thread stays, and nowhere else.
    ///
    /// # Errors
    /// When the counters can't be read.
    pub fn are_counted_here(&self) -> Result<bool> {
        self.kernel.maps.are_counted_on(sched_getcpu()?.try_into()?)
    }

    /// The programs alone, for several threads at once.
    #[must_use]
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// What was counted since the last packet that the model saw.
    ///
    /// # Errors
    /// When the counters can't be read.
    pub fn unobserved(&self) -> Result<Counters> {
        Ok(self.kernel.maps.counters()?.since(&self.counted))
    }

    /// The loaded programs.
    #[must_use]
    pub fn object(&self) -> &Object {
        &self.kernel.object
    }

    /// The model, to look at.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Changes the setup of both.
    ///
    /// # Errors
    /// When a map refuses it.
    pub fn change(&mut self, change: impl FnOnce(&mut Setup)) -> Result<()> {
        change(&mut self.model.setup);
        self.kernel.maps.apply(&self.model.setup)
    }

    /// Gives every frontend of the kernel the tag of another one, as if its element were being used again.
    ///
    /// # Errors
    /// When they can't be read or written.
    pub fn mistag_frontends(&self) -> Result<()> {
        self.kernel.maps.mistag_frontends()
    }

    /// Lets time pass: all flows, affinities and datagrams grow older by so many ticks.
    ///
    /// # Errors
    /// When the kernel's flows can't be read or written.
    pub fn wait(&mut self, ticks: u32) -> Result<()> {
        self.age(ticks, ticks << clock().shift())
    }

    fn age(&mut self, ticks: u32, jiffies: u32) -> Result<()> {
        for entry in self.model.flows.0.values_mut() {
            entry.last_seen = entry.last_seen.wrapping_sub(ticks);
            entry.peer_seen = entry.peer_seen.wrapping_sub(ticks);
            entry.born = entry.born.wrapping_sub(jiffies);
        }
        for affinity in self.model.affinities.0.values_mut() {
            affinity.last_used = affinity.last_used.wrapping_sub(ticks);
        }
        for ports in self.model.fragments.0.values_mut() {
            ports.last_seen = ports.last_seen.wrapping_sub(ticks);
        }
        self.kernel.maps.age(ticks, jiffies)
    }

    /// Removes one entry from both flow tables, as if its slot had been taken; the other half stays.
    ///
    /// # Errors
    /// When there is no such entry.
    pub fn evict(&mut self, tuple: Tuple) -> Result<()> {
        self.model.flows.0.remove(&tuple).with_context(|| format!("no flow {tuple:?}"))?;
        self.kernel.maps.evict(tuple)
    }

    /// Removes one entry from both tables of affinities, likewise.
    ///
    /// # Errors
    /// When there is no such entry.
    pub fn evict_affinity(&mut self, key: (u32, IpAddr)) -> Result<()> {
        self.model.affinities.0.remove(&key).with_context(|| format!("no affinity {key:?}"))?;
        self.kernel.maps.evict_affinity(key)
    }

    /// Removes one entry from both tables of fragmented datagrams, likewise.
    ///
    /// # Errors
    /// When there is no such entry.
    pub fn evict_fragment(&mut self, datagram: Datagram) -> Result<()> {
        self.model.fragments.0.remove(&datagram).with_context(|| format!("no datagram {datagram:?}"))?;
        self.kernel.maps.evict_fragment(datagram)
    }

    /// Begins anew with another setup: no flows, no affinities, no datagrams, and this tick's budget of errors unspent.
    ///
    /// # Errors
    /// When a map refuses it.
    pub fn restart(&mut self, setup: Setup) -> Result<()> {
        self.kernel.maps.clear()?;
        self.model = Model::new(setup);
        self.kernel.maps.apply(&self.model.setup)
    }
}

/// Whether two times in jiffies are so near to each other.
const fn is_within(one: u32, other: u32, slack: u32) -> bool {
    one.wrapping_sub(other).wrapping_add(slack) <= 2 * slack
}

fn compare<K: Ord + Debug, V: PartialEq + Debug>(
    what: &str,
    kernel: &BTreeMap<K, V>,
    model: &BTreeMap<K, V>,
) -> Result<()> {
    let keys: BTreeSet<&K> = kernel.keys().chain(model.keys()).collect();
    let differences: Vec<String> = keys
        .into_iter()
        .filter(|key| kernel.get(key) != model.get(key))
        .map(|key| format!("{key:?}\nkernel: {:?}\nmodel:  {:?}", kernel.get(key), model.get(key)))
        .collect();
    ensure!(differences.is_empty(), "{what} tables differ:\n{}", differences.join("\n"));
    Ok(())
}

/// Budgets are per CPU: all packets of a thread shall find the same. Threads take turns with the CPUs that there are.
fn stay_on_one_cpu() -> Result<()> {
    static TURN: AtomicUsize = AtomicUsize::new(0);
    let allowed = sched_getaffinity(Pid::from_raw(0)).context("can't tell the CPUs")?;
    let cpus: Vec<usize> = (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap_or(false)).collect();
    let mut set = CpuSet::new();
    set.set(cpus[TURN.fetch_add(1, Ordering::Relaxed) % cpus.len()])?;
    sched_setaffinity(Pid::from_raw(0), &set).context("can't stay on a CPU")
}

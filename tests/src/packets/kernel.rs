// SPDX-License-Identifier: MIT OR Apache-2.0
//! The real programs, one packet at a time.

use std::{io, time::Duration};

use anyhow::{Context, Result, bail};
use lb_common::trace::TRACE_MAGIC;

use super::{
    bpf::{TestRun, test_run},
    clock::clock,
    maps::{self, Maps},
    network::{BARE, POD, SECOND, UPLINK},
    object::Object,
    rig::Room,
};
use crate::reference::{Arrival, Door, Now, Verdict};

/// The secret of all our traces.
pub const COOKIE: [u32; 4] = [0x7368_756e, 2, 3, 4];

/// Actions of XDP (`enum xdp_action`).
const XDP: [(u32, Verdict); 4] =
    [(1, Verdict::Drop), (2, Verdict::Pass), (3, Verdict::Transmit), (4, Verdict::Redirect)];
/// Actions of TC (`TC_ACT_UNSPEC`, `SHOT`, `REDIRECT`).
const TC: [(u32, Verdict); 3] = [(u32::MAX, Verdict::Pass), (2, Verdict::Drop), (7, Verdict::Redirect)];

/// What the kernel made of a packet.
pub struct Ran {
    /// The hook's verdict.
    pub verdict: Verdict,
    /// The frame as it left the program.
    pub frame: Vec<u8>,
    /// The clock before and after, between which the program has looked at it, in jiffies.
    pub jiffies: (u64, u64),
}

/// The loaded object and its maps.
pub struct Kernel {
    /// The programs.
    pub object: Object,
    /// The maps.
    pub maps: Maps,
}

impl Kernel {
    /// Loads the object, with this room for flow entries; in a network of [`super::network`].
    pub fn start(room: Room) -> Result<Self> {
        let mut object = Object::load(&maps::capacities(room)?, &maps::globals(room))?;
        for device in [UPLINK, SECOND, POD, BARE] {
            object.attach_xdp(device)?;
        }
        let maps = Maps::of(&object, room)?;
        maps.ask(COOKIE)?;
        Ok(Self { object, maps })
    }

    /// Runs a packet; `None` where the kernel won't take such a frame for a test.
    pub fn run(&self, arrival: &Arrival) -> Result<Option<Ran>> {
        self.run_uncut(arrival, 0)
    }

    /// Runs a packet that is yet to be cut into segments with so many bytes of payload, or none; XDP never sees one.
    pub fn run_uncut(&self, arrival: &Arrival, segment_len: u32) -> Result<Option<Ran>> {
        let mut output = Vec::new();
        let (packet, context) = match arrival.door {
            Door::Xdp => xdp_context(arrival),
            _ => (arrival.frame.clone(), tc_context(arrival, segment_len)),
        };
        let run = TestRun { packet: &packet, context: bytemuck::cast_slice(&context), ..TestRun::default() };
        // A program that looks at the clock on both sides of a tick's end has done what no one moment explains.
        self.wait_for_jiffies(4)?;
        let before = self.jiffies()?;
        let action = match test_run(self.object.program(arrival.door), &run, &mut output) {
            Ok(action) => action,
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(None),
            Err(error) => return Err(error).context("BPF_PROG_TEST_RUN"),
        };
        let jiffies = (before, self.jiffies()?);
        let actions: &[_] = if arrival.door == Door::Xdp { &XDP } else { &TC };
        let Some(&(_, verdict)) = actions.iter().find(|(value, _)| *value == action) else {
            bail!("{:?} has returned {action}", arrival.door)
        };
        let metadata = packet.len() - arrival.frame.len();
        Ok(Some(Ran { verdict, frame: output.split_off(metadata), jiffies }))
    }

    /// The programs' clock, by themselves.
    ///
    /// # Errors
    /// Those of a test run.
    pub fn jiffies(&self) -> Result<u64> {
        let mut output = Vec::new();
        let run = TestRun { packet: &[0; 64], ..TestRun::default() };
        test_run(self.object.clock(), &run, &mut output).context("the clock")?;
        let bytes = output.first_chunk().context("the clock gives eight bytes")?;
        Ok(u64::from_ne_bytes(*bytes))
    }

    /// The tick that it is.
    ///
    /// # Errors
    /// As [`Kernel::jiffies`].
    pub fn tick(&self) -> Result<u32> {
        Ok(now_of(self.jiffies()?).tick)
    }

    /// Waits until the tick has some time left, so that a few packets fall into the same one.
    ///
    /// # Errors
    /// As [`Kernel::jiffies`].
    pub fn settle(&self) -> Result<()> {
        self.wait_for_jiffies(u64::from(clock().hz()).div_ceil(5))
    }

    /// Waits for the next tick where fewer jiffies than this are left of it.
    fn wait_for_jiffies(&self, least: u64) -> Result<()> {
        let (clock, jiffies) = (clock(), self.jiffies()?);
        let left = (1_u64 << clock.shift()) - (jiffies & ((1 << clock.shift()) - 1));
        if left < least {
            std::thread::sleep(Duration::from_millis((left + 2) * 1_000 / u64::from(clock.hz())));
        }
        Ok(())
    }
}

/// The time as the model has it.
#[must_use]
pub fn now_of(jiffies: u64) -> Now {
    Now { tick: (jiffies >> clock().shift()) as u32, jiffy: jiffies as u32 }
}

/// `struct xdp_md`, and the packet with its metadata in front. A trace bears its cookie there.
fn xdp_context(arrival: &Arrival) -> (Vec<u8>, Vec<u32>) {
    let metadata: Vec<u8> = if arrival.is_trace {
        [TRACE_MAGIC].iter().chain(&COOKIE).flat_map(|word| word.to_ne_bytes()).collect()
    } else {
        Vec::new()
    };
    let (data, end) = (metadata.len(), metadata.len() + arrival.frame.len());
    let packet = [&metadata[..], &arrival.frame].concat();
    // data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    (packet, vec![data as u32, end as u32, 0, arrival.ifindex, 0, 0])
}

/// `struct __sk_buff`, in whose control block a trace bears its cookie.
fn tc_context(arrival: &Arrival, segment_len: u32) -> Vec<u32> {
    const ARRIVED_BY: usize = 9;
    const IFINDEX: usize = 10;
    const CB: usize = 12;
    const GSO_SIZE: usize = 44;
    let mut context = vec![0; GSO_SIZE + 1];
    // Where a packet arrives, the kernel has just noted that.
    context[ARRIVED_BY] = if arrival.door == Door::Ingress { arrival.ifindex } else { arrival.arrived_by };
    context[IFINDEX] = arrival.ifindex;
    context[GSO_SIZE] = segment_len;
    if arrival.is_trace {
        context[CB] = TRACE_MAGIC;
        context[CB + 1..CB + 5].copy_from_slice(&COOKIE);
    }
    context
}

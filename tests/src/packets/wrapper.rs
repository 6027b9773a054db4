// SPDX-License-Identifier: MIT OR Apache-2.0
//! The bench's wrapper programs: run a door again and again, each time on a fresh frame, the next of a script.

use std::time::Duration;

use anyhow::{Context, Result};
use aya::{
    Ebpf,
    maps::ProgramArray,
    programs::{Program, ProgramFd},
};
use lb_common::bench::{self, FRAME_LEN_V4, FRAME_LEN_V6, Frame, Script};
use nix::time::{ClockId, clock_gettime};

use super::{
    bpf::{Map, TestRun, test_run},
    build::Segment,
    object::{Object, bpf_directory, map_fd, read},
};
use crate::reference::{Door, Verdict, Version};

const PROGRAMS: [&str; 9] = {
    use bench::programs::{TC_BARE, TC_FLOOR, TC_V4, TC_V6, XDP_BARE, XDP_FILL, XDP_FLOOR, XDP_V4, XDP_V6};
    [XDP_FLOOR, XDP_FILL, XDP_BARE, XDP_V4, XDP_V6, TC_FLOOR, TC_BARE, TC_V4, TC_V6]
};

/// Programs of TC, by [`lb_common::bench::Step::program`].
const TC_DOORS: [Door; 2] = [Door::Ingress, Door::Egress];

/// What the wrappers hand their frames to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Programs that do nothing.
    Floor,
    /// One that enters flows in the bare table, at XDP.
    Fill,
    /// Programs that rewrite by the bare table.
    Bare,
    /// Ours.
    Doors,
}

/// What came of a run.
pub struct Ran {
    /// CPU time of all packets together.
    pub time: Duration,
    /// Of the last one; `None` where no program of ours says so.
    pub verdict: Option<Verdict>,
    /// The last one as it left.
    pub frame: Vec<u8>,
}

/// The loaded wrappers.
pub struct Wrapper {
    ebpf: Ebpf,
    script: Map<u32, Script>,
}

impl Wrapper {
    /// Loads the bench's object.
    ///
    /// # Errors
    /// When there is none, or the kernel refuses it.
    pub fn load() -> Result<Self> {
        let path = bpf_directory().join("bench");
        let mut ebpf = Ebpf::load(&read(&path)?).with_context(|| format!("can't load {}", path.display()))?;
        for name in PROGRAMS {
            let program = ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
            let loaded = match program {
                Program::Xdp(program) => program.load(),
                Program::SchedClassifier(program) => program.load(),
                _ => continue,
            };
            loaded.with_context(|| format!("the kernel refuses {name}"))?;
        }
        let script = ebpf.map(bench::SCRIPT).context("the object has no map SCRIPT")?;
        let script = Map::new(map_fd(script)?, 1)?;
        Ok(Self { ebpf, script })
    }

    /// Aims at programs. The scripts of the runs that follow go to them.
    ///
    /// # Errors
    /// When the kernel won't have them in one array with what it has seen before.
    pub fn aim(&mut self, object: &Object, target: Target) -> Result<()> {
        self.aim_at(object, target, bench::XDP_PROGRAMS, &[Door::Xdp])?;
        self.aim_at(object, target, bench::TC_PROGRAMS, &TC_DOORS)
    }

    fn aim_at(&mut self, object: &Object, target: Target, array: &str, doors: &[Door]) -> Result<()> {
        for (index, &door) in (0..).zip(doors) {
            let own = match (target, door) {
                (Target::Doors, _) => None,
                (Target::Fill, Door::Xdp) => Some(bench::programs::XDP_FILL),
                (Target::Bare, Door::Xdp) => Some(bench::programs::XDP_BARE),
                (Target::Bare, _) => Some(bench::programs::TC_BARE),
                (_, Door::Xdp) => Some(bench::programs::XDP_FLOOR),
                (..) => Some(bench::programs::TC_FLOOR),
            };
            let program = match own {
                Some(name) => self.program(name)?,
                None => object.program(door),
            };
            let program = program.try_clone().context("no descriptor left")?;
            let map = self.ebpf.map_mut(array).with_context(|| format!("the object has no map {array}"))?;
            ProgramArray::try_from(map)?.set(index, &program, 0).context("can't aim the wrapper")?;
        }
        Ok(())
    }

    /// Runs so many packets of a script, from its next step on, at the hook of a door.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn run(&self, door: Door, version: Version, script: &Script, packets: u32) -> Result<Ran> {
        let first = frame_bytes(&script.steps[0].frame, version);
        self.run_after(&first, door, version, script, packets)
    }

    /// Runs the next packet of a script, which may be the answer to one that has left as this frame.
    ///
    /// # Errors
    /// As [`Wrapper::run`].
    pub fn step(&self, before: &[u8], door: Door, version: Version, script: &Script) -> Result<Ran> {
        self.run_after(before, door, version, script, 1)
    }

    fn run_after(&self, packet: &[u8], door: Door, version: Version, script: &Script, repeat: u32) -> Result<Ran> {
        self.script.put(&0, script)?;
        let name = match (door, version) {
            (Door::Xdp, Version::V4) => bench::programs::XDP_V4,
            (Door::Xdp, Version::V6) => bench::programs::XDP_V6,
            (_, Version::V4) => bench::programs::TC_V4,
            (_, Version::V6) => bench::programs::TC_V6,
        };
        let context = context(door, packet.len() as u32, script.ifindex);
        let run = TestRun { packet, context: bytemuck::cast_slice(&context), repeat, ..TestRun::default() };
        let mut frame = Vec::new();
        let before = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
        let action = test_run(self.program(name)?, &run, &mut frame).context("BPF_PROG_TEST_RUN")?;
        let time = Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)? - before);
        Ok(Ran { time, verdict: verdict(door, action), frame })
    }

    fn program(&self, name: &str) -> Result<&ProgramFd> {
        Ok(self.ebpf.program(name).with_context(|| format!("no program {name}"))?.fd()?)
    }
}

/// `struct xdp_md`, or as much of `struct __sk_buff` as names the device.
fn context(door: Door, len: u32, ifindex: u32) -> Vec<u32> {
    const IFINDEX: usize = 10;
    if door == Door::Xdp {
        // data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        return vec![0, len, 0, ifindex, 0, 0];
    }
    let mut context = vec![0; IFINDEX + 1];
    context[IFINDEX] = ifindex;
    context
}

/// What `enum xdp_action`, and TC's `TC_ACT_UNSPEC`, `SHOT` and `REDIRECT` say. `XDP_ABORTED` is the bench's own failure.
const fn verdict(door: Door, action: u32) -> Option<Verdict> {
    match (door, action) {
        (Door::Xdp, 1) => Some(Verdict::Drop),
        (Door::Xdp, 2) => Some(Verdict::Pass),
        (Door::Xdp, 3) => Some(Verdict::Transmit),
        (Door::Xdp, 4) => Some(Verdict::Redirect),
        (Door::Ingress | Door::Egress, u32::MAX) => Some(Verdict::Pass),
        (Door::Ingress | Door::Egress, 2) => Some(Verdict::Drop),
        (Door::Ingress | Door::Egress, 7) => Some(Verdict::Redirect),
        _ => None,
    }
}

/// A segment's frame as a wrapper writes it, padded.
#[must_use]
pub fn template(segment: &Segment) -> Frame {
    let mut frame = [0; FRAME_LEN_V6];
    let bytes = segment.build();
    frame[..bytes.len()].copy_from_slice(&bytes);
    bytemuck::cast(frame)
}

fn frame_bytes(frame: &Frame, version: Version) -> Vec<u8> {
    let len = if version == Version::V4 { FRAME_LEN_V4 } else { FRAME_LEN_V6 };
    bytemuck::bytes_of(frame)[..len].to_vec()
}

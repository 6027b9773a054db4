// SPDX-License-Identifier: MIT OR Apache-2.0
//! The bench's wrapper program: runs the XDP door again and again, each time on a fresh frame of the next flow.

use std::time::Duration;

use anyhow::{Context, Result};
use aya::{
    Ebpf,
    maps::ProgramArray,
    programs::{ProgramFd, Xdp},
};
use bytemuck::Pod;
use lb_common::{
    address::{Family, V4, V6},
    bench::{self, FRAME_LEN_V4, FRAME_LEN_V6, Template},
    flow::{Flow, FlowKey},
    maps,
};
use nix::time::{ClockId, clock_gettime};

use super::{
    bpf::{Map, TestRun, test_run},
    build::Segment,
    network::UPLINK,
    object::{Object, bpf_directory, map_fd, read},
};
use crate::reference::{Door, Version};

const PROGRAMS: [&str; 4] =
    [bench::programs::FLOOR, bench::programs::LOOKUP, bench::programs::WRAPPER_V4, bench::programs::WRAPPER_V6];

/// What the wrapper hands its frames to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A program that does nothing.
    Floor,
    /// One that looks the flow up, and nothing else.
    Lookup,
    /// The XDP door.
    Xdp,
}

/// What came of a run.
pub struct Ran {
    /// CPU time of all packets together.
    pub time: Duration,
    /// The last one's `XDP_*`.
    pub action: u32,
    /// The last one as it left.
    pub frame: Vec<u8>,
}

/// The loaded wrapper.
pub struct Wrapper {
    ebpf: Ebpf,
    template: Map<u32, Template>,
    lookup: Map<FlowKey<V4>, Flow<V4>>,
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
            let program: &mut Xdp = ebpf.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?;
            program.load().with_context(|| format!("the kernel refuses {name}"))?;
        }
        let fd = |name| map_fd(ebpf.map(name).with_context(|| format!("the object has no map {name}"))?);
        let template = Map::new(fd(bench::TEMPLATE)?, 1)?;
        let lookup = Map::new(fd(bench::LOOKUP)?, 1)?;
        Ok(Self { ebpf, template, lookup })
    }

    /// Aims at a program. The templates of the runs that follow go to it.
    ///
    /// # Errors
    /// When the kernel won't have it in one array with what it has seen before.
    pub fn aim(&mut self, object: &Object, target: Target) -> Result<()> {
        let program = match target {
            Target::Floor => self.program(bench::programs::FLOOR)?.try_clone().context("no descriptor left")?,
            Target::Lookup => self.program(bench::programs::LOOKUP)?.try_clone().context("no descriptor left")?,
            Target::Xdp => object.program(Door::Xdp).try_clone().context("no descriptor left")?,
        };
        let map = self.ebpf.map_mut(bench::PROGRAMS).context("the object has no map PROGRAMS")?;
        ProgramArray::try_from(map)?.set(0, &program, 0).context("can't aim the wrapper")
    }

    /// Lets all flows grow up, as answers and the clients' next packets would.
    ///
    /// # Errors
    /// When they can't be read or written.
    pub fn grow_flows(&self, object: &Object) -> Result<()> {
        grow::<V4>(object, maps::YOUNG_V4, maps::FLOWS_V4)?;
        grow::<V6>(object, maps::YOUNG_V6, maps::FLOWS_V6)
    }

    /// Gives the bare look-up the flows that the programs have.
    ///
    /// # Errors
    /// When they can't be read or written.
    pub fn copy_flows(&self, object: &Object) -> Result<()> {
        let flows: Map<FlowKey<V4>, Flow<V4>> = object.map(maps::FLOWS_V4, 1)?;
        flows.pairs()?.iter().try_for_each(|(key, flow)| self.lookup.put(key, flow)).context("can't copy flows")
    }

    /// Runs so many packets of a template.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn run(&self, version: Version, template: &Template, packets: u32) -> Result<Ran> {
        self.template.put(&0, template)?;
        let (name, len) = match version {
            Version::V4 => (bench::programs::WRAPPER_V4, FRAME_LEN_V4),
            Version::V6 => (bench::programs::WRAPPER_V6, FRAME_LEN_V6),
        };
        // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = [0, len as u32, 0, UPLINK, 0, 0];
        let packet = vec![0; len];
        let run =
            TestRun { packet: &packet, context: bytemuck::cast_slice(&context), repeat: packets, ..TestRun::default() };
        let mut frame = Vec::new();
        let before = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
        let action = test_run(self.program(name)?, &run, &mut frame).context("BPF_PROG_TEST_RUN")?;
        let time = Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)? - before);
        Ok(Ran { time, action, frame })
    }

    fn program(&self, name: &str) -> Result<&ProgramFd> {
        Ok(self.ebpf.program(name).with_context(|| format!("no program {name}"))?.fd()?)
    }
}

/// A segment as a template, of which each packet is the same.
#[must_use]
pub fn template(segment: &Segment) -> Template {
    let mut frame = [0; FRAME_LEN_V6];
    let bytes = segment.build();
    frame[..bytes.len()].copy_from_slice(&bytes);
    Template { frame: bytemuck::cast(frame), counter: 0, mask: 0, stride: 1, pad: 0 }
}

/// Moves all entries from one flow table to the other.
fn grow<F: Family>(object: &Object, young: &str, grown: &str) -> Result<()>
where
    FlowKey<F>: Pod,
    Flow<F>: Pod,
{
    let young: Map<FlowKey<F>, Flow<F>> = object.map(young, 1)?;
    let grown: Map<FlowKey<F>, Flow<F>> = object.map(grown, 1)?;
    for (key, flow) in young.pairs().context("can't read young flows")? {
        grown.put(&key, &flow).and_then(|()| young.remove(&key)).context("can't move a flow")?;
    }
    Ok(())
}

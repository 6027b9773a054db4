// SPDX-License-Identifier: MIT OR Apache-2.0
//! The object that `cargo xtask build-ebpf` makes, loaded with small maps.

use std::{
    collections::BTreeSet,
    env, fmt, fs,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, ProgramArray},
    programs::{Program, ProgramFd, Xdp, xdp::XdpMode},
};
use lb_agent::dataplane::Lacks;
use lb_common::maps::programs;

use super::bpf;
use crate::reference::Door;

/// Where to find the object, for who wants another one than that of this workspace.
const OBJECT: &str = "SHUNT_EBPF_OBJECT";

/// Loaded programs and maps.
pub struct Object {
    ebpf: Ebpf,
}

/// What a program costs the kernel.
pub struct Size {
    /// The program.
    pub name: String,
    /// Instructions, after the verifier's changes.
    pub instructions: u32,
    /// Bytes of machine code.
    pub jitted: u32,
    /// Instructions that the verifier walked through on all paths; kernels before 5.16 don't say.
    pub verified: Option<u32>,
}

impl Object {
    /// Loads the object with these capacities of maps and these globals, by name; others have their defaults.
    ///
    /// # Errors
    /// When there is no object, or the kernel refuses it.
    pub fn load(capacities: &[(&'static str, u32)], globals: &[(&'static str, u64)]) -> Result<Self> {
        let mut ebpf = open(capacities, globals)?;
        for name in names() {
            load_program(&mut ebpf, name).with_context(|| format!("the kernel refuses {name}"))?;
        }
        for (map, index, name) in programs::TAILS {
            let program = ebpf.program(name).context("loaded")?.fd()?.try_clone()?;
            let array = ebpf.map_mut(map).with_context(|| format!("the object has no map {map}"))?;
            ProgramArray::try_from(array)?.set(index, &program, 0)?;
        }
        Ok(Self { ebpf })
    }

    /// The program of a door.
    pub(super) fn program(&self, door: Door) -> &ProgramFd {
        self.ebpf.program(name(door)).expect("loaded").fd().expect("loaded")
    }

    /// The program that tells the time.
    pub(super) fn clock(&self) -> &ProgramFd {
        self.ebpf.program(programs::CLOCK).expect("loaded").fd().expect("loaded")
    }

    /// Attaches the XDP program to a device, in the driver: veth registers its receive queue only then, and without
    /// one a test run can't name the device as a packet's origin.
    pub(super) fn attach_xdp(&mut self, device: u32) -> Result<()> {
        let xdp: &mut Xdp = self.ebpf.program_mut(programs::XDP).expect("loaded").try_into()?;
        xdp.attach_to_if_index(device, XdpMode::Driver).context("can't attach to a veth device")?;
        Ok(())
    }

    /// A map by name. `values` is how many it has per key: see [`bpf::Map::new`].
    pub(super) fn map<K: bytemuck::Pod, V: bytemuck::Pod>(&self, name: &str, values: usize) -> Result<bpf::Map<K, V>> {
        let map = self.ebpf.map(name).with_context(|| format!("the object has no map {name}"))?;
        bpf::Map::new(map_fd(map)?, values).with_context(|| format!("map {name}"))
    }

    /// Bytes of kernel memory that a map takes.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn memory(&self, name: &str) -> Result<u64> {
        let map = self.map::<u32, u32>(name, 1)?;
        map.memory().with_context(|| format!("map {name}"))?.context("the kernel does not say")
    }
}

/// What each program of the object costs.
///
/// # Errors
/// When there is no object, or the kernel refuses it.
pub fn sizes() -> Result<Vec<Size>> {
    let mut ebpf = open(&[], &[])?;
    let names: BTreeSet<String> = ebpf.programs().map(|(name, _)| name.to_owned()).collect();
    let size = |name: String| {
        load_program(&mut ebpf, &name).with_context(|| format!("the kernel refuses {name}"))?;
        let info = ebpf.program(&name).context("loaded")?.info()?;
        let instructions = info.size_translated().context("the kernel hides the size")? / 8;
        Ok(Size { name, instructions, jitted: info.size_jitted(), verified: info.verified_instruction_count() })
    };
    names.into_iter().map(size).collect()
}

/// Makes the object's maps. Programs are told of the kernel what the agent would tell them.
fn open(capacities: &[(&'static str, u32)], more_globals: &[(&'static str, u64)]) -> Result<Ebpf> {
    let path = env::var_os(OBJECT).map_or_else(|| bpf_directory().join("shunt"), PathBuf::from);
    let bytes = read(&path)?;
    let mut loader = EbpfLoader::new();
    for &(map, capacity) in capacities {
        loader.map_max_entries(map, capacity);
    }
    let globals = Lacks::find().globals();
    for (name, value) in globals.iter().chain(more_globals) {
        loader.override_global(name, value, true);
    }
    loader.load(&bytes).with_context(|| format!("can't load {}", path.display()))
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, instructions, jitted, verified } = self;
        let verified = verified.map_or("?".to_owned(), |verified| verified.to_string());
        write!(f, "{name:<20} {instructions:>6} instructions {jitted:>6} bytes of code {verified:>7} verified")
    }
}

/// The descriptor of a map that holds plain bytes.
pub(super) fn map_fd(map: &Map) -> Result<BorrowedFd<'_>> {
    match map {
        Map::Array(data) | Map::HashMap(data) | Map::LruHashMap(data) | Map::PerCpuArray(data) | Map::LpmTrie(data) => {
            Ok(data.fd().as_fd())
        }
        other => bail!("not a map of plain bytes: {other:?}"),
    }
}

/// All programs: those of the doors, where they go on, and the clock.
fn names() -> impl Iterator<Item = &'static str> {
    let doors = Door::ALL.into_iter().chain([Door::NetArrival]);
    doors.map(name).chain(programs::TAILS.map(|(.., name)| name)).chain([programs::CLOCK])
}

fn load_program(ebpf: &mut Ebpf, name: &str) -> Result<()> {
    match ebpf.program_mut(name).context("the object has no such program")? {
        Program::Xdp(program) => program.load()?,
        Program::SchedClassifier(program) => program.load()?,
        Program::CgroupSockAddr(program) => program.load()?,
        Program::CgroupSock(program) => program.load()?,
        other => bail!("a program of another kind: {:?}", other.prog_type()),
    }
    Ok(())
}

const fn name(door: Door) -> &'static str {
    match door {
        Door::Xdp => programs::XDP,
        Door::Ingress => programs::TC_INGRESS,
        Door::Egress => programs::TC_EGRESS,
        Door::Net => programs::NET,
        Door::NetArrival => programs::NET_ARRIVAL,
    }
}

/// Where `cargo xtask build-ebpf` puts objects.
pub(super) fn bpf_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the repository").join("target/bpf")
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("can't read {}: run `cargo xtask build-ebpf` first", path.display()))
}

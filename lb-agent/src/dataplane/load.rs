// SPDX-License-Identifier: MIT OR Apache-2.0
//! The embedded object into the kernel: maps made or adopted, programs loaded and pinned.

use std::{
    collections::BTreeMap,
    fs, io, iter,
    os::fd::OwnedFd,
    panic::resume_unwind,
    sync::{Mutex, PoisonError},
    thread,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::ProgramArray,
    programs::{Program, ProgramError},
};
use aya_obj::Object;
use lb_common::{
    config::Config,
    maps::{self, LAYOUT_VERSION, SLOTS_PER_CHUNK, globals, programs},
};
use nix::libc;
use tracing::{info, warn};

use super::{
    OpenError,
    clock::kernel_clock,
    kernel::Lacks,
    maps::{MapError, Shared, open_map},
    pins::{self, Pins},
    resize,
    sys::{self, MapInfo},
};
use crate::{diff::Capacities, random::random};

/// The object that `build.rs` has put here; empty where it was told to.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/shunt"));

/// The longest program takes a quarter of the time of all.
const MOST_THREADS: usize = 4;

/// What is loaded.
pub struct Loaded {
    /// Keeps programs alive, and attaches those that have no links of their own (clsact filters).
    pub ebpf: Ebpf,
    /// Descriptors of the pinned programs, by name.
    pub programs: BTreeMap<&'static str, OwnedFd>,
    /// Those of the socket door's programs that the kernel refused, and why.
    pub refused: BTreeMap<&'static str, ProgramError>,
    /// The key of the flow tables, for the configuration.
    pub table_key: [u64; 2],
    /// Maps that are new and empty, because those before, which are set aside, have another size.
    pub resized: Vec<&'static str>,
}

/// Whether this build has no object.
#[cfg(test)]
pub const fn is_empty() -> bool {
    OBJECT.is_empty()
}

/// What to load.
pub struct Wanted<'a> {
    /// Sizes of maps that are made.
    pub capacities: &'a Capacities,
    /// Constants of the programs beside those that this room knows.
    pub globals: &'a [(&'static str, u64)],
    /// Programs of the socket door.
    pub of_sockets: &'a [&'static str],
}

/// Loads the object; of the programs, those of the packet doors, and those of sockets that are wanted. Maps that are pinned
/// already are adopted, with what they hold; where they should have another size they are set aside, see [`resize`]. Adopted
/// program arrays lead to the earlier agent's programs until [`fill_program_arrays`] is called.
pub fn load(pins: &Pins, wanted: &Wanted<'_>) -> Result<Loaded, OpenError> {
    if OBJECT.is_empty() {
        return Err(OpenError::NoObject);
    }
    let mut sizes = map_sizes(wanted.capacities);
    let (counted, resized) = adopt(pins, &mut sizes)?;
    let table_key = table_key(pins)?;
    let is_adopted = [maps::XDP_PROGRAMS, maps::TC_PROGRAMS].iter().any(|name| pins.map(name).exists());
    let mut loader = EbpfLoader::new();
    let paths: BTreeMap<_, _> = maps::PINNED.into_iter().map(|name| (name, pins.map(name))).collect();
    for (name, path) in &paths {
        loader.map_pin_path(name, path.as_path());
    }
    for (name, size) in &sizes {
        loader.map_max_entries(name, *size);
    }
    let lacks = Lacks::find();
    lacks.iter().for_each(|lack| info!("{lack}"));
    let clock = kernel_clock().map_err(|cause| MapError::Clock { cause })?;
    let of_table = [
        (globals::HZ, u64::from(clock.hz())),
        (globals::TICK_SHIFT, u64::from(clock.shift())),
        (globals::TABLE_KEY_0, table_key[0]),
        (globals::TABLE_KEY_1, table_key[1]),
        (globals::FLOW_MASK_V4, u64::from(sizes[maps::FLOWS_V4] - 1)),
        (globals::FLOW_MASK_V6, u64::from(sizes[maps::FLOWS_V6] - 1)),
    ];
    let of_kernel = lacks.globals();
    for (name, value) in of_kernel.iter().chain(&of_table).chain(wanted.globals).chain(&counted) {
        loader.override_global(name, value, false);
    }
    let mut ebpf = loader.load(OBJECT).map_err(|cause| OpenError::Load { cause })?;
    let mut refused = load_programs(&mut ebpf, wanted.of_sockets)?;
    if let Some((name, cause)) = refused.extract_if(.., |name, _| !wanted.of_sockets.contains(name)).next() {
        return Err(OpenError::Program { name, cause });
    }
    let programs = pin_programs(&ebpf, pins)?;
    if !is_adopted {
        fill_program_arrays(&mut ebpf)?;
    }
    Ok(Loaded { ebpf, programs, refused, table_key, resized })
}

/// The key of the flow tables: that by which the entries of an earlier agent stand where they do, else a random one.
fn table_key(pins: &Pins) -> Result<[u64; 2], OpenError> {
    if pins.map(maps::CONFIG).exists() {
        let key = Shared::<Config>::open(pins, maps::CONFIG)?.get(0).unwrap_or_default().table_key;
        if key != [0; 2] {
            return Ok(key);
        }
    }
    for name in FLOW_TABLES.into_iter().filter(|name| pins.map(name).exists()) {
        warn!(
            "map {name} is made anew, and its flows are decided anew: nobody finds them without their key, which map CONFIG lacks"
        );
        unpin(pins, name)?;
    }
    random().map_err(|cause| OpenError::Random { cause })
}

/// Maps with an element on every CPU for each that another map can hold: their names, the other's, and that of the global which
/// tells programs how many those are.
const COUNTED: [(&str, &str, &str); 2] = [
    (maps::BACKEND_COUNTERS, maps::BACKENDS, globals::BACKENDS_A_CPU),
    (maps::SERVICE_COUNTERS, maps::SERVICE_NAMES, globals::SERVICES_A_CPU),
];

/// Names and values of what programs are told about counters.
type Globals = [(&'static str, u64); 2];

/// Decides for every map whether the pinned one serves. Re-using one checks nothing, so it is done before the loader does it.
/// Completes the sizes by those of counters, and returns the globals of these, and the maps that were set aside.
fn adopt(pins: &Pins, sizes: &mut BTreeMap<&'static str, u32>) -> Result<(Globals, Vec<&'static str>), OpenError> {
    // Dropped at the end: what the loader makes of the object takes much memory, and it parses it anew.
    let object = Object::parse(OBJECT).map_err(|cause| OpenError::Load { cause: EbpfError::ParseError(cause) })?;
    let shape = |name: &'static str, sizes: &BTreeMap<_, u32>| -> Result<MapInfo, OpenError> {
        let definition = object.maps.get(name).ok_or(OpenError::MissingFromObject { name })?;
        Ok(MapInfo {
            map_type: definition.map_type(),
            id: 0,
            key_size: definition.key_size(),
            value_size: definition.value_size(),
            max_entries: sizes.get(name).copied().unwrap_or(definition.max_entries()),
            flags: definition.map_flags(),
        })
    };
    let mut resized = Vec::new();
    let is_counter = |name: &str| COUNTED.iter().any(|(counters, ..)| *counters == name);
    for name in maps::PINNED.into_iter().filter(|name| !is_counter(name)) {
        let wanted = shape(name, sizes)?;
        if let Some(held) = adopt_or_replace(pins, name, &wanted)?
            && held != wanted.max_entries
        {
            match change(pins, name, held, wanted.max_entries)? {
                Change::None => drop(sizes.insert(name, held)),
                Change::Resize => resized.push(name),
                Change::Anew => unpin(pins, name)?,
            }
        }
    }
    // All of them are read before the first is set aside.
    for name in &resized {
        resize::set_aside(pins, name)?;
    }
    let cpus = sys::cpu_numbers().map_err(|cause| MapError::Read { map: maps::BACKEND_COUNTERS, cause })?;
    let mut globals = [("", 0); 2];
    for (global, (counters, counted, name)) in globals.iter_mut().zip(COUNTED) {
        let capacity = sizes[counted];
        sizes.insert(counters, capacity.saturating_mul(cpus));
        let wanted = shape(counters, sizes)?;
        if adopt_or_replace(pins, counters, &wanted)?.is_some_and(|held| held != wanted.max_entries) {
            resize::set_aside(pins, counters)?;
            resized.push(counters);
        }
        *global = (name, u64::from(capacity));
    }
    Ok((globals, resized))
}

/// What becomes of a pinned map that should have another size.
enum Change {
    /// It stays as it is.
    None,
    /// See [`resize`].
    Resize,
    /// It gives way to an empty one.
    Anew,
}

/// Decides that, and says so.
fn change(pins: &Pins, name: &'static str, held: u32, wanted: u32) -> Result<Change, OpenError> {
    if FLOW_TABLES.contains(&name) && held == Capacities::SETS_OF_NO_FAMILY {
        info!("map {name} is made anew: this node has addresses of its family now");
        return Ok(Change::Anew);
    }
    if FLOW_TABLES.contains(&name) && wanted == Capacities::SETS_OF_NO_FAMILY {
        return Ok(Change::None);
    }
    match resize::needed_size(pins, name)? {
        Some(needed) if needed <= u64::from(wanted) => {
            info!("map {name} gets {wanted} entries instead of {held}, with all that it holds");
            Ok(Change::Resize)
        }
        Some(needed) => {
            warn!(
                "map {name} keeps its {held} entries, not the {wanted} asked for: what it holds needs {needed}; it shrinks with \
                 the first start of the agent at which that fits"
            );
            Ok(Change::None)
        }
        None => {
            warn!(
                "map {name} keeps its {held} entries from before, not the {wanted} asked for; to change that, stop the agent \
                 and run `lb-agent cleanup` first"
            );
            Ok(Change::None)
        }
    }
}

/// Whether programs read a pinned map right, whatever number of elements it holds.
fn is_layout(pinned: &MapInfo, wanted: &MapInfo) -> bool {
    let layout = |info: &MapInfo| (info.map_type, info.key_size, info.value_size, info.flags);
    layout(pinned) == layout(wanted)
}

/// What the pinned map holds; `None` where there is none, or it was unpinned for programs would misread it.
fn adopt_or_replace(pins: &Pins, name: &'static str, wanted: &MapInfo) -> Result<Option<u32>, OpenError> {
    let path = pins.map(name);
    let pinned = match open_map(&path) {
        Ok((_, info)) => info,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(MapError::Open { path: path.display().to_string(), cause }.into()),
    };
    if is_layout(&pinned, wanted) {
        return Ok(Some(pinned.max_entries));
    }
    make_anew(pins, name)?;
    Ok(None)
}

fn make_anew(pins: &Pins, name: &'static str) -> Result<(), OpenError> {
    warn!(
        "map {name} of layout {LAYOUT_VERSION} has another shape: it is made anew; the programs of the earlier agent keep \
         theirs until they are replaced"
    );
    unpin(pins, name)
}

fn unpin(pins: &Pins, name: &'static str) -> Result<(), OpenError> {
    let path = pins.map(name);
    fs::remove_file(&path).map_err(|cause| pins::PinError::Pin { path, cause }.into())
}

/// The flow tables, IPv4 and IPv6.
const FLOW_TABLES: [&str; 2] = [maps::FLOWS_V4, maps::FLOWS_V6];

/// Number of elements of the maps whose size is a flag; of counters, see [`adopt`].
fn map_sizes(capacities: &Capacities) -> BTreeMap<&'static str, u32> {
    let Capacities {
        frontends,
        backends,
        table_slots,
        flows: _,
        families: _,
        services,
        source_ranges,
        affinity,
        fragments,
        interfaces,
        node_addresses,
        sockets,
    } = *capacities;
    BTreeMap::from([
        (maps::FRONTENDS, frontends),
        (maps::BACKENDS, backends),
        (maps::TABLES, table_slots / SLOTS_PER_CHUNK),
        (maps::FLOWS_V4, capacities.flow_sets(true)),
        (maps::FLOWS_V6, capacities.flow_sets(false)),
        (maps::SERVICE_NAMES, services),
        (maps::SOURCE_RANGES, source_ranges),
        (maps::AFFINITY, affinity),
        (maps::FRAGMENTS, fragments),
        (maps::INTERFACES, interfaces),
        (maps::NODE_ADDRESSES, node_addresses),
        (maps::SOCKETS, sockets),
        (maps::TALKS, sockets),
    ])
}

/// The programs that packets meet first, which are attached by their pins; and the one that is asked for the time.
const PINNED: [&str; 6] =
    [programs::XDP, programs::TC_INGRESS, programs::TC_EGRESS, programs::NET, programs::NET_ARRIVAL, programs::CLOCK];

/// Loads programs side by side: the kernel proves each by itself, and of opening the data plane that takes longest. Returns
/// what it refused.
fn load_programs(
    ebpf: &mut Ebpf,
    of_sockets: &[&'static str],
) -> Result<BTreeMap<&'static str, ProgramError>, OpenError> {
    let names = programs::TAILS.map(|(.., name)| name).into_iter().chain(PINNED).chain(of_sockets.iter().copied());
    let mut found: BTreeMap<_, _> = ebpf.programs_mut().collect();
    let found = names.map(|name| Ok((name, found.remove(name).ok_or(OpenError::MissingFromObject { name })?)));
    let waiting = Mutex::new(found.collect::<Result<Vec<_>, OpenError>>()?.into_iter());
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
    let load_some = || {
        let outcomes = iter::from_fn(next).map(|(name, program)| (name, load_program(program)));
        outcomes.filter_map(|(name, outcome)| Some((name, outcome.err()?))).collect::<Vec<_>>()
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    let refused = thread::scope(|scope| {
        // Where there may be no more threads, those that there are do it all.
        let start = || thread::Builder::new().spawn_scoped(scope, load_some);
        let others: Vec<_> = (1..threads).filter_map(|_| start().ok()).collect();
        let refused = others.into_iter().flat_map(|other| other.join().unwrap_or_else(|panic| resume_unwind(panic)));
        // This thread, too, has its share; an iterator alone would wait for the others first.
        load_some().into_iter().chain(refused).collect()
    });
    Ok(refused)
}

fn load_program(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::Xdp(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

fn pin_programs(ebpf: &Ebpf, pins: &Pins) -> Result<BTreeMap<&'static str, OwnedFd>, OpenError> {
    let pin = |name: &'static str| {
        let program = ebpf.program(name).ok_or(OpenError::MissingFromObject { name })?;
        let program = program.fd().map_err(|cause| OpenError::Program { name, cause })?;
        Ok((name, pins::replace_and_open(program, &pins.program(name))?))
    };
    PINNED.into_iter().map(pin).collect()
}

/// Lets programs go on in this agent's, also those of an earlier agent that have not been replaced yet.
pub fn fill_program_arrays(ebpf: &mut Ebpf) -> Result<(), OpenError> {
    for (map, index, name) in programs::TAILS {
        let program = ebpf.program(name).ok_or(OpenError::MissingFromObject { name })?;
        let refused = |cause| OpenError::Program { name, cause };
        let program = program.fd().and_then(|program| Ok(program.try_clone()?)).map_err(refused)?;
        let array = ebpf.map_mut(map).ok_or(OpenError::MissingFromObject { name: map })?;
        let filled = ProgramArray::try_from(array).and_then(|mut array| array.set(index, &program, 0));
        filled.map_err(|cause| OpenError::Load { cause: cause.into() })?;
    }
    Ok(())
}

/// Why the object could not be loaded, with all that led to it, and what can be done about it.
pub fn object_text(error: &EbpfError) -> String {
    let chain: Vec<_> = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source()).collect();
    let errno = chain.iter().find_map(|error| error.downcast_ref::<io::Error>()?.raw_os_error());
    let remedy = match errno {
        Some(libc::ENOMEM | libc::E2BIG) => "; lower --max-flows, --max-backends or --max-table-slots",
        Some(libc::EPERM) => "; run as root, and outside of a container that forbids bpf(2)",
        _ => "",
    };
    // Some errors repeat their cause in their own text.
    let mut text = String::new();
    for part in chain.iter().map(ToString::to_string).filter(|part| !part.is_empty()) {
        if !text.contains(&part) {
            text.push_str(if text.is_empty() { "" } else { ": " });
            text.push_str(&part);
        }
    }
    text + remedy
}

/// The verifier's last words, which say what it did not like; all of them are thousands of lines.
pub fn verifier_text(error: &ProgramError) -> String {
    const LINES: usize = 12;
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let lines: Vec<_> = log.lines().filter(|line| !line.trim().is_empty()).collect();
            let last = &lines[lines.len().saturating_sub(LINES)..];
            format!("{io_error}; the verifier says:\n{}", last.join("\n"))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_map_is_adopted_only_where_programs_read_it_right() {
        let wanted = MapInfo { map_type: 1, id: 0, key_size: 20, value_size: 24, max_entries: 100, flags: 1 };
        assert!(is_layout(&MapInfo { id: 7, max_entries: 50, ..wanted }, &wanted));
        for other in [
            MapInfo { map_type: 9, ..wanted },
            MapInfo { key_size: 16, ..wanted },
            MapInfo { value_size: 32, ..wanted },
            MapInfo { flags: 0, max_entries: 50, ..wanted },
        ] {
            assert!(!is_layout(&other, &wanted));
        }
    }

    #[test]
    fn a_map_that_does_not_fit_into_memory_names_the_flags() {
        let error = EbpfError::MapError(aya::maps::MapError::CreateError {
            name: "FLOWS_V4".into(),
            io_error: io::Error::from_raw_os_error(libc::ENOMEM),
        });
        let text = object_text(&error);
        assert!(text.contains("FLOWS_V4") && text.contains("--max-flows"), "{text}");
        assert_eq!(text.matches("memory").count(), 1, "{text}");
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! The embedded object into the kernel: maps made or adopted, programs loaded and pinned.

use std::{collections::BTreeMap, fs, io, os::fd::OwnedFd};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::ProgramArray,
    programs::{Program, ProgramError},
};
use aya_obj::Object;
use lb_common::maps::{self, LAYOUT_VERSION, SLOTS_PER_CHUNK, programs};
use nix::libc;
use tracing::{info, warn};

use super::{
    OpenError,
    kernel::Lacks,
    maps::{MapError, open_map},
    pins::{self, Pins},
    sys::{self, MapInfo},
};
use crate::diff::Capacities;

/// The object that `build.rs` has put here; empty where it was told to.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/shunt"));

/// What is loaded.
pub struct Loaded {
    /// Keeps programs alive, and attaches those that have no links of their own (clsact filters).
    pub ebpf: Ebpf,
    /// Descriptors of the programs, by name.
    pub programs: BTreeMap<&'static str, OwnedFd>,
}

/// Whether this build has no object.
#[cfg(test)]
pub const fn is_empty() -> bool {
    OBJECT.is_empty()
}

/// Loads the object, but for the programs of sockets. Maps that are pinned already are adopted, with what they hold and with
/// their capacities; adopted program arrays lead to the earlier agent's programs until [`fill_program_arrays`] is called.
pub fn load(pins: &Pins, capacities: &Capacities, more_globals: &[(&'static str, u64)]) -> Result<Loaded, OpenError> {
    if OBJECT.is_empty() {
        return Err(OpenError::NoObject);
    }
    let object = Object::parse(OBJECT).map_err(|cause| OpenError::Load { cause: EbpfError::ParseError(cause) })?;
    let sizes = map_sizes(capacities);
    for name in maps::PINNED {
        let definition = object.maps.get(name).ok_or(OpenError::MissingFromObject { name })?;
        let wanted = MapInfo {
            map_type: definition.map_type(),
            id: 0,
            key_size: definition.key_size(),
            value_size: definition.value_size(),
            max_entries: sizes.get(name).copied().unwrap_or(definition.max_entries()),
            flags: definition.map_flags(),
        };
        adopt_or_replace(pins, name, &wanted)?;
    }
    let is_adopted = [maps::XDP_PROGRAMS, maps::TC_PROGRAMS].iter().any(|name| pins.map(name).exists());
    sys::lift_memory_limit();
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
    let globals = lacks.globals();
    for (name, value) in globals.iter().chain(more_globals) {
        loader.override_global(name, value, false);
    }
    let mut ebpf = loader.load(OBJECT).map_err(|cause| OpenError::Load { cause })?;
    let programs = load_programs(&mut ebpf, pins)?;
    if !is_adopted {
        fill_program_arrays(&mut ebpf)?;
    }
    Ok(Loaded { ebpf, programs })
}

/// What a pinned map is in comparison with what is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    /// It serves.
    Same,
    /// It serves, but holds another number of elements.
    OtherCapacity,
    /// Programs would misread it.
    OtherLayout,
}

fn fit(pinned: &MapInfo, wanted: &MapInfo) -> Fit {
    let layout = |info: &MapInfo| (info.map_type, info.key_size, info.value_size, info.flags);
    match (layout(pinned) == layout(wanted), pinned.max_entries == wanted.max_entries) {
        (false, _) => Fit::OtherLayout,
        (true, false) => Fit::OtherCapacity,
        (true, true) => Fit::Same,
    }
}

/// Re-using a pinned map checks nothing, so it is done here, before the loader does it.
fn adopt_or_replace(pins: &Pins, name: &'static str, wanted: &MapInfo) -> Result<(), OpenError> {
    let path = pins.map(name);
    let pinned = match open_map(&path) {
        Ok((_, info)) => info,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(cause) => return Err(MapError::Open { path: path.display().to_string(), cause }.into()),
    };
    match fit(&pinned, wanted) {
        Fit::Same => Ok(()),
        Fit::OtherCapacity => {
            warn!(
                "map {name} keeps its {} entries from before, not the {} asked for; to change that, stop the agent and \
                 run `lb-agent cleanup` first",
                pinned.max_entries, wanted.max_entries
            );
            Ok(())
        }
        Fit::OtherLayout => {
            warn!(
                "map {name} of layout {LAYOUT_VERSION} has another shape: it is made anew; the programs of the earlier agent \
                 keep theirs until the new one is filled"
            );
            fs::remove_file(&path).map_err(|cause| pins::PinError::Pin { path, cause }.into())
        }
    }
}

/// Number of elements of the maps whose size is a flag.
fn map_sizes(capacities: &Capacities) -> BTreeMap<&'static str, u32> {
    let Capacities {
        frontends,
        backends,
        table_slots,
        flows,
        young_flows,
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
        (maps::BACKEND_COUNTERS, backends),
        (maps::TABLES, table_slots / SLOTS_PER_CHUNK),
        (maps::FLOWS_V4, flows),
        (maps::FLOWS_V6, flows),
        (maps::YOUNG_V4, young_flows),
        (maps::YOUNG_V6, young_flows),
        (maps::SERVICE_NAMES, services),
        (maps::SERVICE_COUNTERS, services),
        (maps::SOURCE_RANGES, source_ranges),
        (maps::AFFINITY, affinity),
        (maps::FRAGMENTS, fragments),
        (maps::INTERFACES, interfaces),
        (maps::NODE_ADDRESSES, node_addresses),
        (maps::SOCKETS, sockets),
        (maps::TALKS, sockets),
    ])
}

fn load_programs(ebpf: &mut Ebpf, pins: &Pins) -> Result<BTreeMap<&'static str, OwnedFd>, OpenError> {
    let mut descriptors = BTreeMap::new();
    for (.., name) in programs::TAILS {
        load_program(ebpf, name)?;
    }
    for name in [programs::XDP, programs::TC_INGRESS, programs::TC_EGRESS] {
        let program = load_program(ebpf, name)?;
        let refused = |cause| OpenError::Program { name, cause };
        let path = pins.program(name);
        pins::replace(program.fd().map_err(refused)?, &path)?;
        let descriptor = sys::open_pin(&path).map_err(|cause| pins::PinError::Pin { path, cause })?;
        descriptors.insert(name, descriptor);
    }
    Ok(descriptors)
}

fn load_program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a Program, OpenError> {
    let program = ebpf.program_mut(name).ok_or(OpenError::MissingFromObject { name })?;
    match program {
        Program::Xdp(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        _ => return Err(OpenError::MissingFromObject { name }),
    }
    .map_err(|cause| OpenError::Program { name, cause })?;
    Ok(program)
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
        assert_eq!(fit(&MapInfo { id: 7, ..wanted }, &wanted), Fit::Same);
        assert_eq!(fit(&MapInfo { max_entries: 50, ..wanted }, &wanted), Fit::OtherCapacity);
        for other in [
            MapInfo { map_type: 9, ..wanted },
            MapInfo { key_size: 16, ..wanted },
            MapInfo { value_size: 32, ..wanted },
            MapInfo { flags: 0, max_entries: 50, ..wanted },
        ] {
            assert_eq!(fit(&other, &wanted), Fit::OtherLayout);
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

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the verifier would refuse or punish, found in the object before any kernel sees it.

use anyhow::{Context, Result, bail, ensure};
use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget};

/// Byte loops that stand in for what should have been a few loads and stores.
const BYTE_LOOPS: [&str; 5] = ["memcpy", "memmove", "memset", "memcmp", "bcmp"];

/// Fails on an object with a panic path (which ends a program without an exit) or a byte loop that is called.
pub fn check(bytes: &[u8]) -> Result<()> {
    let object = object::File::parse(bytes).context("not an ELF object")?;
    ensure!(object.section_by_name(".BTF").is_some(), "no BTF: is bpf-linker's --btf lost?");
    let mut faults: Vec<String> = Vec::new();
    for symbol in object.symbols() {
        let name = symbol.name().unwrap_or_default();
        if name.contains("panicking") || name.contains("panic_fmt") {
            faults.push(format!("panic path {name}: an index, slice or arithmetic that can fail"));
        }
    }
    for section in object.sections().filter(|section| !is_debug(section.name().unwrap_or_default())) {
        for (offset, relocation) in section.relocations() {
            let RelocationTarget::Symbol(index) = relocation.target() else { continue };
            let name = object.symbol_by_index(index)?.name().unwrap_or_default();
            if BYTE_LOOPS.contains(&name) {
                faults.push(format!("{name} called in section {} at {offset:#x}", section.name()?));
            }
        }
    }
    if !faults.is_empty() {
        bail!("{}", faults.join("\n"));
    }
    Ok(())
}

/// Debug sections hold relocations too, but nothing runs there.
fn is_debug(section: &str) -> bool {
    section.starts_with(".debug") || section.starts_with(".BTF")
}

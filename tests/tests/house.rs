// SPDX-License-Identifier: MIT OR Apache-2.0
//! The order of the rooms (`ARCHITECTURE.md`): what a room imports imports nothing of that room, over however many doors.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

/// Top-level modules and those that each names.
type Imports = BTreeMap<String, BTreeSet<String>>;

#[test]
fn no_import_of_the_programs_runs_in_a_circle() -> Result<()> {
    check("lb-ebpf/src", &["bench.rs"])
}

#[test]
fn no_import_of_the_contract_runs_in_a_circle() -> Result<()> {
    check("lb-common/src", &[])
}

fn check(source: &str, others: &[&str]) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?.join(source);
    let mut imports = Imports::new();
    for path in files(&root)? {
        let name = path.strip_prefix(&root)?.to_string_lossy().into_owned();
        if others.contains(&name.as_str()) {
            continue;
        }
        let room = name.split('/').next().unwrap_or_default().trim_end_matches(".rs").to_owned();
        let named = named(&fs::read_to_string(&path)?);
        imports.entry(room).or_default().extend(named);
    }
    ensure!(imports.len() > 5, "{source} has hardly any modules: {imports:?}");
    for (room, named) in &mut imports {
        named.remove(room);
    }
    let circle = circle(imports);
    ensure!(circle.is_empty(), "modules of {source} import each other: {circle:#?}");
    Ok(())
}

fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("{}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(found)
}

/// The modules behind each `crate::` of a file, but for its tests. What a macro says of `$crate` is for where it is used.
fn named(text: &str) -> BTreeSet<String> {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let code: String =
        code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    let paths = code.match_indices("crate::").filter(|&(at, _)| !code[..at].ends_with('$'));
    paths.flat_map(|(at, prefix)| first_names(&code[at + prefix.len()..])).collect()
}

/// The first names of a path, or of all paths in braces.
fn first_names(path: &str) -> Vec<String> {
    let name =
        |text: &str| text.trim().chars().take_while(|&letter| letter.is_alphanumeric() || letter == '_').collect();
    let Some(list) = path.strip_prefix('{') else { return vec![name(path)] };
    let mut depth = 0;
    let mut names = Vec::new();
    let mut start = 0;
    for (at, letter) in list.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                names.push(name(&list[start..at]));
                start = at + 1;
                if letter == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    names.retain(|name: &String| !name.is_empty());
    names
}

/// What is left when nobody is left that imports nobody who is left.
fn circle(mut imports: Imports) -> Imports {
    loop {
        let rooms: BTreeSet<String> = imports.keys().cloned().collect();
        let before = imports.len();
        for named in imports.values_mut() {
            named.retain(|room| rooms.contains(room));
        }
        imports.retain(|_, named| !named.is_empty());
        if imports.len() == before {
            return imports;
        }
    }
}

#[test]
fn circles_are_found_over_several_rooms() {
    let imports = |lines: &[(&str, &[&str])]| -> Imports {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        lines.iter().map(|&(room, named)| (room.to_owned(), owned(named))).collect()
    };
    let sound = imports(&[("a", &[]), ("b", &["a"]), ("c", &["a", "b", "elsewhere"])]);
    assert!(circle(sound).is_empty());
    let round = imports(&[("a", &["c"]), ("b", &["a"]), ("c", &["b"]), ("d", &["a"]), ("e", &[])]);
    assert_eq!(circle(round).into_keys().collect::<Vec<_>>(), ["a", "b", "c", "d"]);
}

#[test]
fn all_names_of_an_import_are_seen() {
    let text = "use crate::{\n    a::{b, c},\n    d,\n};\nfn f() { crate::e::f(); $crate::g::h() } // crate::i\n#[cfg(test)]\nuse crate::j;";
    assert_eq!(named(text).into_iter().collect::<Vec<_>>(), ["a", "d", "e"]);
}

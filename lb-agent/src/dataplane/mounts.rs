// SPDX-License-Identifier: MIT OR Apache-2.0
//! The mount table of this process, as `/proc/self/mountinfo` has it (proc(5)). Pure, but for reading it.

use std::{ffi::OsString, fs, os::unix::ffi::OsStringExt as _, path::PathBuf};

/// A mounted file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where it is mounted.
    pub target: PathBuf,
    /// Its type: `bpf`, `cgroup2`.
    pub kind: String,
    /// What its mounter called it.
    pub source: String,
}

/// All of them, in the order in which they were mounted; none where the table can't be read.
pub fn mounts() -> Vec<Mount> {
    parse(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
}

/// Lines such as `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - bpf shunt rw`.
pub fn parse(table: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let (place, kind) = line.split_once(" - ")?;
        let mut kind = kind.split_whitespace();
        Some(Mount {
            target: PathBuf::from(OsString::from_vec(unescape(place.split_whitespace().nth(4)?))),
            kind: kind.next()?.to_owned(),
            source: String::from_utf8_lossy(&unescape(kind.next()?)).into_owned(),
        })
    };
    table.lines().filter_map(mount).collect()
}

/// Spaces, tabs, line ends and backslashes are written as three octal digits after a backslash.
fn unescape(text: &str) -> Vec<u8> {
    let octal = |digits: &[u8]| {
        let digits = std::str::from_utf8(digits.get(..3)?).ok()?;
        u8::from_str_radix(digits, 8).ok()
    };
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let [first, after @ ..] = rest {
        match octal(after).filter(|_| *first == b'\\') {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_spaces_and_backslashes_are_read_as_they_are() {
        let table = "36 35 98:0 / /a\\040b\\134c rw master:1 - bpf my\\011name rw\n\
                     no line of a mount table\n\
                     37 35 98:0 / /plain\\04 rw - cgroup2 cgroup2 rw\n";
        let mount = |target: &str, kind: &str, source: &str| Mount {
            target: target.into(),
            kind: kind.into(),
            source: source.into(),
        };
        let expected = [mount("/a b\\c", "bpf", "my\tname"), mount("/plain\\04", "cgroup2", "cgroup2")];
        assert_eq!(parse(table), expected);
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! A file system as the kernel unpacks it when it starts: a cpio archive of the format `newc` (the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`), not compressed.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::{Path, PathBuf},
};

const DIRECTORY: u32 = 0o04_0755;
const FILE: u32 = 0o10_0644;
const PROGRAM: u32 = 0o10_0755;

/// Files and directories by absolute path.
#[derive(Default)]
pub struct Archive {
    /// Mode and contents. A directory stands before what is in it, as the order of paths has it.
    entries: BTreeMap<PathBuf, (u32, Vec<u8>)>,
}

impl Archive {
    /// Adds an ordinary file.
    pub fn add(&mut self, path: &Path, contents: Vec<u8>) {
        self.entry(path, FILE, contents);
    }

    /// Adds a file that can be executed.
    pub fn add_program(&mut self, path: &Path, contents: Vec<u8>) {
        self.entry(path, PROGRAM, contents);
    }

    /// Adds an empty directory.
    pub fn add_directory(&mut self, path: &Path) {
        self.entry(path, DIRECTORY, Vec::new());
    }

    /// Whether there is something at a path.
    pub fn has(&self, path: &Path) -> bool {
        self.entries.contains_key(path)
    }

    fn entry(&mut self, path: &Path, mode: u32, contents: Vec<u8>) {
        for parent in path.ancestors().skip(1).filter(|parent| parent.parent().is_some()) {
            self.entries.entry(parent.to_owned()).or_insert((DIRECTORY, Vec::new()));
        }
        self.entries.insert(path.to_owned(), (mode, contents));
    }

    /// Writes the archive.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        for (number, (path, (mode, contents))) in self.entries.iter().enumerate() {
            let name = path.strip_prefix("/").unwrap_or(path).as_os_str().as_encoded_bytes();
            write_entry(to, number + 1, *mode, name, contents)?;
        }
        write_entry(to, 0, 0, b"TRAILER!!!", &[])
    }
}

/// Thirteen numbers of eight hexadecimal digits after the magic; header and name together, and the contents, fill
/// multiples of four bytes.
fn write_entry(to: &mut impl Write, inode: usize, mode: u32, name: &[u8], contents: &[u8]) -> io::Result<()> {
    const HEADER_LEN: usize = 110;
    let links = 1;
    write!(to, "070701{inode:08x}{mode:08x}{:08x}{:08x}{links:08x}{:08x}", 0, 0, 0)?;
    write!(to, "{:08x}{:08x}{:08x}{:08x}{:08x}", contents.len(), 0, 0, 0, 0)?;
    write!(to, "{:08x}{:08x}", name.len() + 1, 0)?;
    to.write_all(name)?;
    to.write_all(&[0; 4][..1 + padding(HEADER_LEN + name.len() + 1)])?;
    to.write_all(contents)?;
    to.write_all(&[0; 3][..padding(contents.len())])
}

/// Bytes that are lacking to a multiple of four.
const fn padding(len: usize) -> usize {
    len.wrapping_neg() % 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_fills_words_and_parents_come_first() {
        let mut archive = Archive::default();
        archive.add_program(Path::new("/bin/true"), vec![1, 2, 3, 4, 5]);
        archive.add(Path::new("/etc/a"), Vec::new());
        let mut bytes = Vec::new();
        archive.write(&mut bytes).unwrap();
        assert!(bytes.len().is_multiple_of(4));
        let position = |name: &[u8]| bytes.windows(name.len()).position(|window| window == name).unwrap();
        assert!(position(b"bin\0") < position(b"bin/true\0"));
        assert!(position(b"bin/true\0") < position(b"TRAILER!!!\0"));
        assert!(bytes.starts_with(b"07070100000001000041ed"), "{}", String::from_utf8_lossy(&bytes[..22]));
        assert_eq!(bytes[position(b"bin/true\0") - 110..][54..62], *b"00000005", "the length of its contents");
    }
}

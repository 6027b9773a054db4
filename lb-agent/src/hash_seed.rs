// SPDX-License-Identifier: MIT OR Apache-2.0
//! The key of the flow hash: the same on all nodes, so that a flow which lands on another node meets the same backend, and
//! secret, so that nobody can aim at one.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    str::FromStr,
};

use crate::random::random;

/// The key of the flow hash. Never 0.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HashSeed(pub [u64; 2]);

impl fmt::Debug for HashSeed {
    /// Secret, thus not shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashSeed(..)")
    }
}

/// A hash seed could not be read.
#[derive(Debug, thiserror::Error)]
#[error("a hash seed has exactly 32 hex digits, not all 0; `openssl rand -hex 16` makes one")]
pub struct HashSeedError;

/// A file that should hold a hash seed does not.
#[derive(Debug, thiserror::Error)]
pub enum HashSeedFileError {
    /// It can't be read.
    #[error("can't read the hash seed in {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It holds something else.
    #[error("{}: {source}", path.display())]
    NoSeed {
        /// The file.
        path: PathBuf,
        /// What would do.
        source: HashSeedError,
    },
}

impl FromStr for HashSeed {
    type Err = HashSeedError;

    fn from_str(text: &str) -> Result<Self, HashSeedError> {
        let is_hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let value = u128::from_str_radix(text, 16).ok().filter(|&value| is_hex && value != 0).ok_or(HashSeedError)?;
        Ok(Self([(value >> 64) as u64, value as u64]))
    }
}

impl HashSeed {
    /// A new one, from the kernel's random numbers.
    ///
    /// # Errors
    /// When `/dev/urandom` can't be read.
    pub fn random() -> io::Result<Self> {
        let mut seed: [u64; 2] = random()?;
        // One in 2^128: but 0 means that there is none.
        seed[1] |= u64::from(seed == [0; 2]);
        Ok(Self(seed))
    }

    /// The 32 hex digits that it is read from.
    #[must_use]
    pub fn to_hex(self) -> String {
        format!("{:016x}{:016x}", self.0[0], self.0[1])
    }

    /// What a file holds, with or without a line feed.
    ///
    /// # Errors
    /// When it can't be read, or holds something else.
    pub fn read(path: &Path) -> Result<Self, HashSeedFileError> {
        let text = fs::read_to_string(path)
            .map_err(|source| HashSeedFileError::Unreadable { path: path.to_owned(), source })?;
        text.trim().parse().map_err(|source| HashSeedFileError::NoSeed { path: path.to_owned(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_whole() {
        let seed: HashSeed = "0123456789abcdeffedcba9876543210".parse().unwrap();
        assert_eq!(seed.0, [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210]);
        assert_eq!(seed.to_hex(), "0123456789abcdeffedcba9876543210");
        assert!("+123456789abcdeffedcba9876543210".parse::<HashSeed>().is_err());
    }

    #[test]
    fn a_random_seed_is_read_back_as_it_was_written() {
        let seed = HashSeed::random().unwrap();
        assert_eq!(seed.to_hex().parse::<HashSeed>().unwrap(), seed);
    }

    #[test]
    fn a_file_holds_a_seed_or_says_what_it_lacks() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("seed");
        let text = HashSeed::read(&path).unwrap_err().to_string();
        assert!(text.contains("can't read the hash seed in /") && text.contains("No such file"), "{text}");
        fs::write(&path, "0123456789abcdeffedcba9876543210\n").unwrap();
        assert_eq!(HashSeed::read(&path).unwrap().0[0], 0x0123_4567_89ab_cdef);
        fs::write(&path, "0123").unwrap();
        let text = HashSeed::read(&path).unwrap_err().to_string();
        assert!(text.contains("seed: a hash seed has exactly 32 hex digits"), "{text}");
    }
}

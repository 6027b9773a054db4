// SPDX-License-Identifier: MIT OR Apache-2.0
//! Values of flags of `lb-agent run` that have a form of their own.

use std::{fmt, path::PathBuf, str::FromStr};

/// The flag `--source`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceSpec {
    /// The Kubernetes API.
    Kube,
    /// A directory of manifests.
    Dir(PathBuf),
}

/// `--source` could not be read.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is no source; give `kube`, or `dir:PATH` for a directory of manifests")]
pub struct SourceSpecError {
    text: String,
}

impl FromStr for SourceSpec {
    type Err = SourceSpecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            None if text == "kube" => Ok(Self::Kube),
            Some(("dir", path)) if !path.is_empty() => Ok(Self::Dir(path.into())),
            _ => Err(SourceSpecError { text: text.into() }),
        }
    }
}

/// A time span in whole seconds, written with a unit: `90s`, `15m`, `24h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seconds(pub u32);

/// A time span could not be read.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is no time span such as 90s, 15m or 24h")]
pub struct SecondsError {
    text: String,
}

impl FromStr for Seconds {
    type Err = SecondsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let unit = text.chars().next_back()?;
            let factor = match unit {
                's' => 1,
                'm' => 60,
                'h' => 3600,
                _ => return None,
            };
            let number: u32 = text[..text.len() - 1].parse().ok()?;
            number.checked_mul(factor).filter(|&seconds| seconds > 0)
        };
        parse().map(Self).ok_or_else(|| SecondsError { text: text.into() })
    }
}

/// The key of the flow hash.
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

impl FromStr for HashSeed {
    type Err = HashSeedError;

    fn from_str(text: &str) -> Result<Self, HashSeedError> {
        let is_hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let value = u128::from_str_radix(text, 16).ok().filter(|&value| is_hex && value != 0).ok_or(HashSeedError)?;
        Ok(Self([(value >> 64) as u64, value as u64]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_whole() {
        let seed: HashSeed = "0123456789abcdeffedcba9876543210".parse().unwrap();
        assert_eq!(seed.0, [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210]);
        assert!("+123456789abcdeffedcba9876543210".parse::<HashSeed>().is_err());
    }
}

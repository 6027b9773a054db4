// SPDX-License-Identifier: MIT OR Apache-2.0
//! Patterns of device names, as `--pod-interface` takes them.

use std::{convert::Infallible, fmt, str::FromStr};

/// A name in which `*` stands for any characters and `?` for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// Whether the whole of `name` fits.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let (pattern, name) = (self.0.as_bytes(), name.as_bytes());
        let (mut at, mut position) = (0, 0);
        // Where to resume when the text after the last star does not fit: the star eats one more character.
        let mut resume = None;
        while position < name.len() {
            match pattern.get(at) {
                Some(b'*') => {
                    resume = Some((at, position));
                    at += 1;
                }
                Some(&byte) if byte == b'?' || byte == name[position] => {
                    at += 1;
                    position += 1;
                }
                _ => {
                    let Some((star, eaten)) = resume else { return false };
                    resume = Some((star, eaten + 1));
                    at = star + 1;
                    position = eaten + 1;
                }
            }
        }
        pattern[at..].iter().all(|&byte| byte == b'*')
    }
}

impl FromStr for Pattern {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_and_question_marks() {
        for (pattern, name, expected) in [
            ("veth*", "veth1a2b", true),
            ("veth*", "veth", true),
            ("veth*", "eth0", false),
            ("eth0", "eth0", true),
            ("eth0", "eth01", false),
            ("eth?", "eth7", true),
            ("eth?", "eth", false),
            ("*pod*x", "my-pod-a-x", true),
            ("*pod*x", "my-pod-a-xy", false),
            ("*ab", "aab", true),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(Pattern(pattern.into()).matches(name), expected, "{pattern} against {name}");
        }
    }
}

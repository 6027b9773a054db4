// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's type information (BTF), as far as one must know it to find the number of a function
//! (`Documentation/bpf/btf.rst`). A module's goes on where the kernel's ends: types, and names.

/// Type information of the kernel, or of a module.
pub struct Types<'a> {
    types: &'a [u8],
    names: &'a [u8],
    base: Option<&'a Types<'a>>,
    /// Number of the first type.
    first: u32,
    /// One more than that of the last one.
    end: u32,
}

const MAGIC: u16 = 0xeb9f;
const FUNCTION: u32 = 12;

impl<'a> Types<'a> {
    /// Reads it; `base` is the kernel's, for a module's. `None` where it is damaged.
    pub fn parse(bytes: &'a [u8], base: Option<&'a Types<'a>>) -> Option<Self> {
        let header = |index: usize| word(bytes, 4 * index).map(|word| word as usize);
        if u16::from_ne_bytes(*bytes.first_chunk()?) != MAGIC {
            return None;
        }
        let [start, types, types_len, names, names_len] = [header(1)?, header(2)?, header(3)?, header(4)?, header(5)?];
        let section = |at: usize, len: usize| bytes.get(start + at..)?.get(..len);
        // Number 0 is that of no type.
        let first = base.map_or(1, |base| base.end);
        let mut own =
            Self { types: section(types, types_len)?, names: section(names, names_len)?, base, first, end: 0 };
        own.end = first + u32::try_from(own.walk(|_, _| {})?).ok()?;
        Some(own)
    }

    /// The number of a function.
    pub fn function(&self, name: &str) -> Option<u32> {
        let mut found = None;
        self.walk(|index, [name_at, info]| {
            if info >> 24 & 0x1f == FUNCTION && self.name(name_at).is_some_and(|known| known == name.as_bytes()) {
                found = Some(self.first + index);
            }
        })?;
        found
    }

    /// Looks at all types one after the other: index, place of the name, and what they are. How many there are; `None` where one is not
    /// there as a whole, or is of a kind that is not known.
    fn walk(&self, mut see: impl FnMut(u32, [u32; 2])) -> Option<usize> {
        let (mut at, mut count) = (0, 0);
        while at < self.types.len() {
            let info = word(self.types, at + 4)?;
            see(count as u32, [word(self.types, at)?, info]);
            at += 12 + more(info >> 24 & 0x1f, (info & 0xffff) as usize)?;
            count += 1;
        }
        (at == self.types.len()).then_some(count)
    }

    fn name(&self, at: u32) -> Option<&[u8]> {
        let before = self.base.map_or(0, |base| base.names.len());
        match (at as usize).checked_sub(before) {
            Some(at) => self.names.get(at..)?.split(|&byte| byte == 0).next(),
            None => self.base?.name(at),
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Bytes behind a type's head, by its kind (`BTF_KIND_*`) and how many parts it has.
const fn more(kind: u32, parts: usize) -> Option<usize> {
    match kind {
        // Integers, variables, tags of declarations.
        1 | 14 | 17 => Some(4),
        // Pointers and what else only names another type, floats, functions.
        2 | 7..=12 | 16 | 18 => Some(0),
        // Arrays.
        3 => Some(12),
        // Structs, unions, sections, wide enumerations.
        4 | 5 | 15 | 19 => Some(12 * parts),
        // Enumerations, prototypes.
        6 | 13 => Some(8 * parts),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Type information with a struct of two members and these functions. Names go on behind so many bytes.
    fn with_functions(names: &[&str], before: usize) -> Vec<u8> {
        let mut strings = vec![0];
        let mut types: Vec<u32> = vec![0, 4 << 24 | 2, 8, 0, 1, 0, 0, 1, 32];
        for name in names {
            types.extend([(before + strings.len()) as u32, FUNCTION << 24, 1]);
            strings.extend(name.bytes().chain([0]));
        }
        let header =
            [1 << 16 | u32::from(MAGIC), 24, 0, 4 * types.len() as u32, 4 * types.len() as u32, strings.len() as u32];
        header.iter().chain(&types).flat_map(|word| word.to_ne_bytes()).chain(strings).collect()
    }

    #[test]
    fn a_function_is_found_by_its_name() {
        let kernel = with_functions(&["first", "second"], 0);
        let kernel = Types::parse(&kernel, None).unwrap();
        assert_eq!(
            ["first", "second", "fir", "firsts"].map(|name| kernel.function(name)),
            [Some(2), Some(3), None, None]
        );
        let module = with_functions(&["third"], kernel.names.len());
        let module = Types::parse(&module, Some(&kernel)).unwrap();
        // A struct of its own comes first.
        assert_eq!(["third", "first"].map(|name| module.function(name)), [Some(5), None]);
    }

    #[test]
    fn damaged_types_are_refused() {
        let sound = with_functions(&["first"], 0);
        for len in 0..sound.len() {
            assert!(Types::parse(&sound[..len], None).is_none(), "{len}");
        }
        let mut unknown = sound.clone();
        unknown[24 + 7] = 31;
        assert!(Types::parse(&unknown, None).is_none());
    }

    #[test]
    fn this_kernels_types_are_read() {
        let Ok(bytes) = std::fs::read("/sys/kernel/btf/vmlinux") else { return };
        let kernel = Types::parse(&bytes, None).unwrap();
        assert!(kernel.function("vfs_read").is_some());
    }
}

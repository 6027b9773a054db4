// SPDX-License-Identifier: MIT OR Apache-2.0
//! `bpf(2)` where aya has no call for it, a room with `unsafe`: maps of plain bytes, read and written whole, and test runs
//! with all their knobs.

use std::{
    ffi::CString,
    fs, io,
    marker::PhantomData,
    mem::zeroed,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use aya_obj::generated::{bpf_attr, bpf_cmd};
use bytemuck::Pod;
use nix::{errno::Errno, libc};

/// Elements read with one call. A hash gives its elements a bucket at a time: room for any bucket.
const BATCH: usize = 256;

/// A map of our object, by the types that it holds.
pub struct Map<K, V> {
    fd: OwnedFd,
    /// Values of one key: 1, or one for each CPU.
    values: usize,
    types: PhantomData<(K, V)>,
}

impl<K: Pod, V: Pod> Map<K, V> {
    /// From a map's descriptor. `values` is the number of CPUs where each has a value of its own, else 1.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new(fd: BorrowedFd<'_>, values: usize) -> io::Result<Self> {
        assert!(values == 1 || size_of::<V>().is_multiple_of(8), "the kernel rounds values of a CPU up to 8 bytes");
        Ok(Self { fd: fd.try_clone_to_owned()?, values, types: PhantomData })
    }

    /// Writes an element of a map with one value per key.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn put(&self, key: &K, value: &V) -> io::Result<()> {
        self.put_row(key, std::slice::from_ref(value))
    }

    /// Zeroes an element: all values of its key.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn zero(&self, key: &K) -> io::Result<()> {
        self.put_row(key, &vec![V::zeroed(); self.values])
    }

    fn put_row(&self, key: &K, values: &[V]) -> io::Result<()> {
        assert_eq!(self.values, values.len(), "all values of a key");
        let mut attr = attributes();
        attr.__bindgen_anon_2.map_fd = self.fd.as_raw_fd() as u32;
        attr.__bindgen_anon_2.key = std::ptr::from_ref(key) as u64;
        attr.__bindgen_anon_2.__bindgen_anon_1.value = values.as_ptr() as u64;
        // SAFETY: key and values are as large as the map's, which `Map::new` was given the types of.
        unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr) }
    }

    /// An element of a map with one value per key; `None` where there is none.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = V::zeroed();
        Ok(self.get_into(key, &mut value)?.then_some(value))
    }

    /// The same for a value that is too large for the stack, and must be there.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn get_boxed(&self, key: &K) -> io::Result<Box<V>> {
        let mut value = bytemuck::allocation::zeroed_box();
        if self.get_into(key, &mut value)? { Ok(value) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn get_into(&self, key: &K, value: &mut V) -> io::Result<bool> {
        assert_eq!(self.values, 1, "one value per key");
        let mut attr = attributes();
        attr.__bindgen_anon_2.map_fd = self.fd.as_raw_fd() as u32;
        attr.__bindgen_anon_2.key = std::ptr::from_ref(key) as u64;
        attr.__bindgen_anon_2.__bindgen_anon_1.value = std::ptr::from_mut(value) as u64;
        // SAFETY: key and value are as large as the map's, which `Map::new` was given the types of.
        match unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr) } {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes an element of a hash.
    ///
    /// # Errors
    /// Those of the kernel; not found is one.
    pub fn remove(&self, key: &K) -> io::Result<()> {
        let mut attr = attributes();
        attr.__bindgen_anon_2.map_fd = self.fd.as_raw_fd() as u32;
        attr.__bindgen_anon_2.key = std::ptr::from_ref(key) as u64;
        // SAFETY: as in `put`.
        unsafe { bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr) }
    }

    /// All elements: for a map with a value per CPU, each key with a row of them.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn entries(&self) -> io::Result<Vec<(K, Vec<V>)>> {
        let mut keys = [K::zeroed(); BATCH];
        let mut values = vec![V::zeroed(); BATCH * self.values];
        // A number, or the last key.
        let mut cursor = (0_u64, K::zeroed());
        let mut entries = Vec::new();
        loop {
            let mut attr = attributes();
            attr.batch.in_batch = if entries.is_empty() { 0 } else { &raw const cursor as u64 };
            attr.batch.out_batch = &raw mut cursor as u64;
            attr.batch.keys = keys.as_mut_ptr() as u64;
            attr.batch.values = values.as_mut_ptr() as u64;
            attr.batch.count = BATCH as u32;
            attr.batch.map_fd = self.fd.as_raw_fd() as u32;
            // SAFETY: there is room for a batch of keys and values, and for the kernel's cursor.
            let result = unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) };
            // So the kernel says that these were the last.
            let is_last = match result {
                Ok(()) => false,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                Err(error) => return Err(error),
            };
            // SAFETY: the kernel has written it, and any number is valid.
            let count = unsafe { attr.batch.count } as usize;
            entries.extend(keys.into_iter().zip(values.chunks(self.values).map(<[V]>::to_vec)).take(count));
            if is_last {
                return Ok(entries);
            }
        }
    }

    /// Bytes of kernel memory that the map takes, if the kernel says so.
    ///
    /// # Errors
    /// When /proc is not mounted.
    pub fn memory(&self) -> io::Result<Option<u64>> {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", self.fd.as_raw_fd()))?;
        let bytes = info.lines().find_map(|line| line.strip_prefix("memlock:"));
        Ok(bytes.and_then(|bytes| bytes.trim().parse().ok()))
    }

    /// All elements of a map with one value per key.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn pairs(&self) -> io::Result<Vec<(K, V)>> {
        Ok(self.entries()?.into_iter().map(|(key, values)| (key, values[0])).collect())
    }
}

/// Opens a pinned link and takes it off its device or cgroup, as `bpftool link detach` does. The pin stays.
///
/// # Errors
/// Those of the kernel.
pub fn detach_link(pin: &Path) -> io::Result<()> {
    let path = CString::new(pin.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let mut attr = attributes();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    // SAFETY: the path is a live string that ends with a zero.
    let link = unsafe { bpf_fd(bpf_cmd::BPF_OBJ_GET, &mut attr) }?;
    let mut attr = attributes();
    attr.link_detach.link_fd = link.as_raw_fd() as u32;
    // SAFETY: the attributes hold no pointers.
    unsafe { bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr) }
}

/// What to run a program on.
#[derive(Default)]
pub struct TestRun<'a> {
    /// The packet, for XDP with its metadata in front.
    pub packet: &'a [u8],
    /// The context's first bytes; empty for none.
    pub context: &'a [u8],
    /// How often.
    pub repeat: u32,
    /// `BPF_F_TEST_*`.
    pub flags: u32,
}

/// Runs a program; gives its return value, and leaves in `output` the packet as it then is.
///
/// # Errors
/// Those of the kernel, which refuses frames without a whole Ethernet header and something in them.
///
/// # Panics
/// When `output` is too short for the packet.
pub fn test_run(program: impl AsFd, run: &TestRun<'_>, output: &mut Vec<u8>) -> io::Result<u32> {
    output.resize(run.packet.len() + 256, 0);
    let mut attr = attributes();
    attr.test.prog_fd = program.as_fd().as_raw_fd() as u32;
    attr.test.data_in = run.packet.as_ptr() as u64;
    attr.test.data_size_in = run.packet.len() as u32;
    attr.test.data_out = output.as_mut_ptr() as u64;
    attr.test.data_size_out = output.len() as u32;
    attr.test.ctx_in = if run.context.is_empty() { 0 } else { run.context.as_ptr() as u64 };
    attr.test.ctx_size_in = run.context.len() as u32;
    attr.test.repeat = run.repeat.max(1);
    attr.test.flags = run.flags;
    // SAFETY: all pointers are to slices of the lengths beside them.
    unsafe { bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr) }?;
    // SAFETY: the kernel has written both, and any number is valid.
    let (retval, len) = unsafe { (attr.test.retval, attr.test.data_size_out) };
    output.truncate(len as usize);
    Ok(retval)
}

fn attributes() -> bpf_attr {
    // SAFETY: bpf_attr is a union of structs of integers, for which zeroes are valid.
    unsafe { zeroed() }
}

/// A command that makes a descriptor.
///
/// # Safety
/// As of [`bpf`].
unsafe fn bpf_fd(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    // SAFETY: `attr` is valid for its size; what it points to, by the caller's promise.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command as libc::c_long, &raw mut *attr, size_of::<bpf_attr>()) };
    let fd = Errno::result(result)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// # Safety
/// All pointers in `attr` must be valid for what the command does with them.
unsafe fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<()> {
    // SAFETY: `attr` is valid for its size; what it points to, by the caller's promise.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command as libc::c_long, &raw mut *attr, size_of::<bpf_attr>()) };
    Errno::result(result)?;
    Ok(())
}

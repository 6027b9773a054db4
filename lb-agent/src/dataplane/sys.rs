// SPDX-License-Identifier: MIT OR Apache-2.0
//! The system calls that aya does not wrap: the agent's room with `unsafe`.
//!
//! `bpf(2)` takes a union whose members begin alike for each command; here every command has a struct of its own, laid
//! out as in the kernel's `include/uapi/linux/bpf.h`. The kernel takes a shorter one than its own for zero-padded.

mod machine;
mod program;

use std::{
    ffi::CString,
    io,
    mem::size_of,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    ptr::{self, NonNull},
    sync::atomic::{AtomicU32, AtomicU64},
};

use aya_obj::generated::bpf_cmd;
use bytemuck::{NoUninit, Pod, Zeroable};
use nix::libc;

pub use self::{
    machine::{
        ARPHRD_ETHER, ARPHRD_LOOPBACK, cpu_numbers, device_name, hardware_type, is_loopback, lift_file_limit,
        limit_receiving, namespace_cookie, socket_cookie, trim_heap,
    },
    program::{load_program, open_module_types},
};

/// What the kernel says of a map: the start of `struct bpf_map_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct MapInfo {
    /// `enum bpf_map_type`.
    pub map_type: u32,
    /// Unique as long as the map lives.
    pub id: u32,
    /// In bytes.
    pub key_size: u32,
    /// In bytes; of one CPU's value for per-CPU maps.
    pub value_size: u32,
    /// Capacity.
    pub max_entries: u32,
    /// Flags of its creation.
    pub flags: u32,
}

/// What the kernel says of a program: the start of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
struct ProgramInfo {
    /// `enum bpf_prog_type`.
    program_type: u32,
    /// Unique as long as the program lives.
    id: u32,
}

/// What the kernel says of an XDP or TCX link: the start of `struct bpf_link_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct LinkInfo {
    /// `enum bpf_link_type`.
    pub link_type: u32,
    /// Unique as long as the link lives.
    pub id: u32,
    /// The program that it runs.
    pub program_id: u32,
    pad: u32,
    /// The device; 0 where that is gone.
    pub ifindex: u32,
}

/// What the kernel says of a link on a cgroup: the start of `struct bpf_link_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct CgroupLinkInfo {
    /// `enum bpf_link_type`.
    pub link_type: u32,
    /// Unique as long as the link lives.
    pub id: u32,
    /// The program that it runs.
    pub program_id: u32,
    pad: u32,
    /// The cgroup, by the inode of its directory; 0 where that is gone.
    pub cgroup_id: u64,
}

#[cfg(test)]
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct CreateAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct ElementAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct ObjectAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct IdAttr {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct LinkCreateAttr {
    program_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct LinkUpdateAttr {
    link_fd: u32,
    new_program_fd: u32,
    flags: u32,
    old_program_fd: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct LinkDetachAttr {
    link_fd: u32,
}

/// Whole, because the kernel writes to its end.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct QueryAttr {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    program_ids: u64,
    count: u32,
    pad: u32,
    program_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct TestRunAttr {
    program_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn address<T: ?Sized>(value: &T) -> u64 {
    ptr::from_ref(value).cast::<u8>() as u64
}

fn address_mut<T: ?Sized>(value: &mut T) -> u64 {
    ptr::from_mut(value).cast::<u8>() as u64
}

/// # Safety
/// Every address in `attr` must be valid for what the command reads or writes there.
unsafe fn bpf<A: Pod>(command: bpf_cmd, attr: &mut A) -> io::Result<i32> {
    // SAFETY: `attr` is a readable and writable struct of the size given; the rest is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as libc::c_long, ptr::from_mut(attr), size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

fn path_string(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Makes a map, as an earlier agent would have.
#[cfg(test)]
pub fn create_map(info: &MapInfo) -> io::Result<OwnedFd> {
    let MapInfo { map_type, key_size, value_size, max_entries, flags, .. } = *info;
    let mut attr = CreateAttr { map_type, key_size, value_size, max_entries, flags };
    // SAFETY: the attributes hold no addresses.
    let fd = unsafe { bpf(bpf_cmd::BPF_MAP_CREATE, &mut attr) }?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens a pinned map, program or link.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = path_string(path)?;
    let mut attr = ObjectAttr { pathname: path.as_ptr() as u64, ..ObjectAttr::default() };
    // SAFETY: the path is a live string that ends with a zero.
    let fd = unsafe { bpf(bpf_cmd::BPF_OBJ_GET, &mut attr) }?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins a map, program or link to a path that must be free.
pub fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = path_string(path)?;
    let mut attr = ObjectAttr { pathname: path.as_ptr() as u64, bpf_fd: raw(fd), file_flags: 0 };
    // SAFETY: the path is a live string that ends with a zero.
    unsafe { bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr) }.map(drop)
}

/// Opens a program by the kernel's number of it. Needs `CAP_SYS_ADMIN`.
pub fn open_program(id: u32) -> io::Result<OwnedFd> {
    let mut attr = IdAttr { id, ..IdAttr::default() };
    // SAFETY: the attributes hold no addresses.
    let fd = unsafe { bpf(bpf_cmd::BPF_PROG_GET_FD_BY_ID, &mut attr) }?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn info<T: Pod>(fd: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = T::zeroed();
    let mut attr = InfoAttr { bpf_fd: raw(fd), info_len: size_of::<T>() as u32, info: address_mut(&mut info) };
    // SAFETY: the kernel writes at most `info_len` bytes to `info`, for which any bytes are a value.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

/// Asks about a map.
pub fn map_info(fd: BorrowedFd<'_>) -> io::Result<MapInfo> {
    info(fd)
}

/// The kernel's number of a map.
pub fn map_id(fd: BorrowedFd<'_>) -> io::Result<u32> {
    map_info(fd).map(|info| info.id)
}

/// The kernel's number of a program.
pub fn program_id(fd: BorrowedFd<'_>) -> io::Result<u32> {
    info::<ProgramInfo>(fd).map(|info| info.id)
}

/// The kernel's number of a link.
pub fn link_id(fd: BorrowedFd<'_>) -> io::Result<u32> {
    link_info(fd).map(|info| info.id)
}

/// Asks about an XDP or TCX link.
pub fn link_info(fd: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    info(fd)
}

/// Asks about a link on a cgroup.
pub fn cgroup_link_info(fd: BorrowedFd<'_>) -> io::Result<CgroupLinkInfo> {
    info(fd)
}

/// Attaches a program to a cgroup, beside whatever else is attached there.
pub fn create_cgroup_link(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<OwnedFd> {
    // The descriptor of the cgroup stands where a device's index would.
    create_link(program, raw(cgroup), attach_type, 0)
}

/// Attaches a program to a device. Unlike aya's XDP attach this never falls back to netlink.
pub fn create_link(program: BorrowedFd<'_>, ifindex: u32, attach_type: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateAttr { program_fd: raw(program), target_ifindex: ifindex, attach_type, flags };
    // SAFETY: the attributes hold no addresses.
    let fd = unsafe { bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr) }?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Replaces the program of a link, without a packet in between that meets none.
pub fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdateAttr { link_fd: raw(link), new_program_fd: raw(program), ..LinkUpdateAttr::default() };
    // SAFETY: the attributes hold no addresses.
    unsafe { bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr) }.map(drop)
}

/// Asks how many programs are attached to a device. Unlike aya's question this one opens none of them, which would take
/// `CAP_SYS_ADMIN`.
pub fn count_attached(ifindex: u32, attach_type: u32) -> io::Result<u32> {
    let mut attr = QueryAttr { target_ifindex: ifindex, attach_type, ..QueryAttr::default() };
    // SAFETY: the attributes hold no addresses, and with room for no program none is written.
    unsafe { bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr) }?;
    Ok(attr.count)
}

/// Takes a link off its device at once. Closing and unpinning would do it a little later.
pub fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkDetachAttr { link_fd: raw(link) };
    // SAFETY: the attributes hold no addresses.
    unsafe { bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr) }.map(drop)
}

/// A map's element, read and written as types. The caller has compared their sizes with the map's: see
/// [`super::maps`].
///
/// # Safety
/// `K` and `V` must have the key and value size of the map.
pub unsafe fn lookup<K: NoUninit, V: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = V::zeroed();
    // SAFETY: the sizes are the caller's promise.
    let found = unsafe { lookup_into(map, key, std::slice::from_mut(&mut value)) }?;
    Ok(found.then_some(value))
}

/// The element of a per-CPU map: a value for every possible CPU, each padded to 8 bytes.
///
/// # Safety
/// `K` must have the map's key size, and `values` room for all CPUs.
pub unsafe fn lookup_into<K: NoUninit, V: Pod>(map: BorrowedFd<'_>, key: &K, values: &mut [V]) -> io::Result<bool> {
    let mut attr =
        ElementAttr { map_fd: raw(map), key: address(key), value: address_mut(values), ..ElementAttr::default() };
    // SAFETY: the key is readable and the values writable for the sizes that the caller has promised.
    match unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr) } {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Inserts or replaces an element.
///
/// # Safety
/// `K` and `V` must have the key and value size of the map, which is no per-CPU map.
pub unsafe fn update<K: NoUninit, V: NoUninit>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    let mut attr = ElementAttr { map_fd: raw(map), key: address(key), value: address(value), ..ElementAttr::default() };
    // SAFETY: both are readable for the sizes that the caller has promised.
    unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr) }.map(drop)
}

/// Removes an element; whether it was there.
///
/// # Safety
/// `K` must have the map's key size.
pub unsafe fn delete<K: NoUninit>(map: BorrowedFd<'_>, key: &K) -> io::Result<bool> {
    let mut attr = ElementAttr { map_fd: raw(map), key: address(key), ..ElementAttr::default() };
    // SAFETY: the key is readable for the size that the caller has promised.
    match unsafe { bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr) } {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The key after one, in the map's own order; the first one without. `None` after the last.
///
/// # Safety
/// `K` must have the map's key size.
pub unsafe fn next_key<K: Pod>(map: BorrowedFd<'_>, key: Option<&K>) -> io::Result<Option<K>> {
    let mut next = K::zeroed();
    let mut attr = ElementAttr {
        map_fd: raw(map),
        key: key.map_or(0, address),
        value: address_mut(&mut next),
        ..ElementAttr::default()
    };
    // SAFETY: the key is readable, and the next one, which stands in the value's place, writable for the size that the
    // caller has promised.
    match unsafe { bpf(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut attr) } {
        Ok(_) => Ok(Some(next)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where a batch goes on in a hash map.
pub type Cursor = u64;

/// Reads the next `count` elements of a hash map into both buffers. Returns how many came, and where the next batch goes on if
/// there is more. `ENOSPC` asks for larger buffers.
///
/// # Safety
/// The buffers must have room for so many keys and values of the map.
pub unsafe fn lookup_batch(
    map: BorrowedFd<'_>,
    cursor: Option<Cursor>,
    (keys, values): (&mut [u8], &mut [u8]),
    count: usize,
) -> io::Result<(usize, Option<Cursor>)> {
    let mut next: Cursor = 0;
    let mut attr = BatchAttr {
        in_batch: cursor.as_ref().map_or(0, address),
        out_batch: address_mut(&mut next),
        keys: address_mut(keys),
        values: address_mut(values),
        count: count as u32,
        map_fd: raw(map),
        ..BatchAttr::default()
    };
    // SAFETY: both buffers have room for `count` elements, as the caller has promised; a hash map's cursor takes four bytes, and
    // ours has eight.
    match unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) } {
        Ok(_) => Ok((attr.count as usize, Some(next))),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok((attr.count as usize, None)),
        Err(error) => Err(error),
    }
}

/// Runs a program once on a packet, with a context as its type wants it (`struct __sk_buff`), or none. Returns the packet
/// afterwards.
pub fn test_run(program: BorrowedFd<'_>, packet: &[u8], context: &[u8]) -> io::Result<Vec<u8>> {
    /// More than a program may put in front.
    const HEADROOM: usize = 256;
    let mut output = vec![0; packet.len() + HEADROOM];
    let mut attr = TestRunAttr {
        program_fd: raw(program),
        data_size_in: packet.len() as u32,
        data_size_out: output.len() as u32,
        data_in: address(packet),
        data_out: address_mut(output.as_mut_slice()),
        repeat: 1,
        ctx_size_in: context.len() as u32,
        // The kernel takes an empty one for one that contradicts the packet.
        ctx_in: if context.is_empty() { 0 } else { address(context) },
        ..TestRunAttr::default()
    };
    // SAFETY: all buffers are live and of the sizes given beside them.
    unsafe { bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr) }?;
    output.truncate(attr.data_size_out as usize);
    Ok(output)
}

/// A memory-mapped array. Programs read it while it is written: so it consists of atomics.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory belongs to this value alone in this process, and is only reached as atomics.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes of an array's values.
    pub fn new(map: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice can't hurt any memory that Rust knows of.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, protection, libc::MAP_SHARED, map.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len })
    }

    /// The memory as 32-bit words.
    pub fn words(&self) -> &[AtomicU32] {
        // SAFETY: the mapping starts at a page, is `len` bytes long, lives as long as `self`, and any bits are a value.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.len / size_of::<AtomicU32>()) }
    }

    /// The memory as 64-bit words.
    pub fn long_words(&self) -> &[AtomicU64] {
        // SAFETY: as in `words`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.len / size_of::<AtomicU64>()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nothing borrowed from this mapping outlives it. A failure would leave it mapped, no more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

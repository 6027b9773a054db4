// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is asked of the machine, its devices and sockets, and of this process, besides `bpf(2)`.

use std::{
    fs, io,
    mem::size_of,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    ptr,
};

use nix::{
    libc,
    net::if_::if_indextoname,
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        socket::{setsockopt, sockopt::ReceiveTimeout},
        time::{TimeVal, TimeValLike as _},
    },
};

/// The link-layer type of Ethernet devices.
pub const ARPHRD_ETHER: u16 = 1;
/// The link-layer type of the loopback device.
pub const ARPHRD_LOOPBACK: u16 = 772;

/// Whether that is the loopback device's name.
pub fn is_loopback(name: &str) -> bool {
    hardware_type(name).is_ok_and(|hardware| hardware == ARPHRD_LOOPBACK)
}

/// The link-layer type of a device (`ARPHRD_*`), by its name in this network namespace. From the socket and not from
/// sysfs, which may belong to another network namespace.
pub fn hardware_type(name: &str) -> io::Result<u16> {
    // SAFETY: plain data, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: no addresses are involved.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: the request is an `ifreq`, as this ioctl wants it.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR as _, &mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: this ioctl fills in the hardware address.
    Ok(unsafe { request.ifr_ifru.ifru_hwaddr.sa_family })
}

/// The kernel's name for a socket, as programs see it.
pub fn socket_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    socket_option(socket, libc::SO_COOKIE)
}

/// The kernel's name for the network namespace of a socket (Linux 5.14).
pub fn namespace_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    /// `SO_NETNS_COOKIE` of the kernel's `include/uapi/asm-generic/socket.h`.
    const SO_NETNS_COOKIE: i32 = 71;
    socket_option(socket, SO_NETNS_COOKIE)
}

fn socket_option(socket: BorrowedFd<'_>, option: i32) -> io::Result<u64> {
    let mut value = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the value and its length are live, and the kernel writes no more than `len` bytes.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            ptr::from_mut(&mut value).cast(),
            ptr::from_mut(&mut len),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// Name of a device of this network namespace; `None` for an index that no device has, where nix gives an empty name.
pub fn device_name(ifindex: u32) -> Option<String> {
    if_indextoname(ifindex).ok()?.into_string().ok().filter(|name| !name.is_empty())
}

/// Gives freed memory of the heap back to the kernel, which glibc keeps otherwise. The static build's allocator can give
/// back only parts of its heap that are free as a whole, and does so by itself.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no addresses, and locks whatever it changes.
    unsafe {
        libc::malloc_trim(0)
    };
}

/// One more than the highest number that a CPU of this machine can have: programs know theirs by such a number.
pub fn cpu_numbers() -> io::Result<u32> {
    const POSSIBLE: &str = "/sys/devices/system/cpu/possible";
    let ranges =
        fs::read_to_string(POSSIBLE).map_err(|error| io::Error::new(error.kind(), format!("{POSSIBLE}: {error}")))?;
    last_of(&ranges).map(|last| last + 1).ok_or_else(|| io::Error::other(format!("{POSSIBLE} says {ranges:?}")))
}

/// The last number of ranges such as `0-3,8`, which are in order.
fn last_of(ranges: &str) -> Option<u32> {
    ranges.trim_end().rsplit(['-', ',']).next()?.parse().ok()
}

/// Lets a receive fail (`EAGAIN`) on a socket to which the kernel sends nothing for five seconds: it answers at once, or a
/// lock is stuck, and then the one loop must not hang on it.
pub fn limit_receiving(socket: &impl AsFd) -> io::Result<()> {
    /// In seconds.
    const PATIENCE: i64 = 5;
    setsockopt(socket, ReceiveTimeout, &TimeVal::seconds(PATIENCE)).map_err(io::Error::from)
}

/// Lets this process open as many files as it may. Container runtimes give 1024 at first, and each connection to a probe's
/// port, each link and each map takes one.
pub fn lift_file_limit() -> io::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, most, most)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_cpu_ends_the_last_range() {
        let ranges = ["0\n", "0-3\n", "0-3,8\n", "0-3,8-11\n", "\n"];
        assert_eq!(ranges.map(last_of), [Some(0), Some(3), Some(8), Some(11), None]);
    }
}

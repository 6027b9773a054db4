// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Access to the context of the socket door's hooks (cgroup programs), `struct bpf_sock_addr`: a room with `unsafe`.
//!
//! The verifier admits loads and stores of whole fields only, which volatile accesses keep apart.

use core::{ffi::c_void, marker::PhantomData, ptr};

use aya_ebpf::{
    EbpfContext,
    bindings::bpf_sock_addr,
    helpers::generated::{bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_set_retval},
    programs::SockContext,
};
use lb_common::{
    address::{Address, Family, V4, V6},
    flow::protocol,
};

use crate::kernel::globals;

/// A system call on a socket, and the address in it.
pub struct Socket<F> {
    context: *mut bpf_sock_addr,
    family: PhantomData<F>,
}

/// What differs between the hooks of IPv4 and IPv6. An IPv6 socket may name mapped IPv4 addresses.
pub trait SocketFamily: Family {
    /// # Safety
    /// `context` must be the hook's.
    unsafe fn load(context: *const bpf_sock_addr) -> Address;
    /// # Safety
    /// As above.
    unsafe fn store(context: *mut bpf_sock_addr, address: &Address);
    /// # Safety
    /// As above.
    unsafe fn load_source(context: *const bpf_sock_addr) -> Address;
}

impl SocketFamily for V4 {
    #[inline(always)]
    unsafe fn load(context: *const bpf_sock_addr) -> Address {
        // SAFETY: the caller's promise; this field is one of the hook's family.
        Address::from_v4_be(unsafe { ptr::read_volatile(&raw const (*context).user_ip4) })
    }

    #[inline(always)]
    unsafe fn store(context: *mut bpf_sock_addr, address: &Address) {
        // SAFETY: as above.
        unsafe { ptr::write_volatile(&raw mut (*context).user_ip4, Self::narrow(address)) };
    }

    #[inline(always)]
    unsafe fn load_source(context: *const bpf_sock_addr) -> Address {
        // SAFETY: as above; the kernel always has a socket here.
        Address::from_v4_be(unsafe { ptr::read_volatile(&raw const (*(*context).__bindgen_anon_1.sk).src_ip4) })
    }
}

impl SocketFamily for V6 {
    #[inline(always)]
    unsafe fn load(context: *const bpf_sock_addr) -> Address {
        // SAFETY: the caller's promise; these fields are of the hook's family.
        let word = |index: usize| unsafe { ptr::read_volatile(&raw const (*context).user_ip6[index]) };
        Address::from_words_be([word(0), word(1), word(2), word(3)])
    }

    #[inline(always)]
    unsafe fn store(context: *mut bpf_sock_addr, address: &Address) {
        let words = address.words_be();
        // SAFETY: as above.
        let store = |index: usize| unsafe { ptr::write_volatile(&raw mut (*context).user_ip6[index], words[index]) };
        store(0);
        store(1);
        store(2);
        store(3);
    }

    #[inline(always)]
    unsafe fn load_source(context: *const bpf_sock_addr) -> Address {
        // SAFETY: as above; the kernel always has a socket here.
        let word =
            |index: usize| unsafe { ptr::read_volatile(&raw const (*(*context).__bindgen_anon_1.sk).src_ip6[index]) };
        Address::from_words_be([word(0), word(1), word(2), word(3)])
    }
}

impl<F: SocketFamily> Socket<F> {
    #[inline(always)]
    pub const fn new(context: *mut bpf_sock_addr) -> Self {
        Self { context, family: PhantomData }
    }

    /// The hook's context, for helpers.
    #[inline(always)]
    pub const fn context(&self) -> *mut c_void {
        self.context.cast()
    }

    /// The address that the application names, or is shown.
    #[inline(always)]
    pub fn peer(&self) -> Address {
        // SAFETY: `new` was given the hook's context.
        unsafe { F::load(self.context) }
    }

    /// Its port, network byte order.
    #[inline(always)]
    pub fn peer_port_be(&self) -> u16 {
        // SAFETY: as above. The field has 32 bits, of which the first 16 in memory are the port.
        unsafe { ptr::read_volatile(&raw const (*self.context).user_port) as u16 }
    }

    /// Puts another one in its place.
    #[inline(always)]
    pub fn set_peer(&self, address: &Address, port_be: u16) {
        // SAFETY: as above.
        unsafe {
            F::store(self.context, address);
            ptr::write_volatile(&raw mut (*self.context).user_port, u32::from(port_be));
        }
    }

    /// TCP or UDP; `None` for whatever else.
    #[inline(always)]
    pub fn protocol(&self) -> Option<u8> {
        // SAFETY: as above.
        let number = unsafe { ptr::read_volatile(&raw const (*self.context).protocol) };
        (number == u32::from(protocol::TCP) || number == u32::from(protocol::UDP)).then_some(number as u8)
    }

    /// The address that the socket is bound to; unspecified where it is not.
    #[inline(always)]
    pub fn source(&self) -> Address {
        // SAFETY: as above.
        unsafe { F::load_source(self.context) }
    }

    /// Whether a UDP socket is connected now. One of TCP never is when it connects.
    #[inline(always)]
    pub fn is_connected(&self) -> bool {
        /// `TCP_ESTABLISHED`, which is UDP's state too.
        const ESTABLISHED: u32 = 1;
        // SAFETY: as above; the kernel always has a socket here.
        let state = unsafe { ptr::read_volatile(&raw const (*(*self.context).__bindgen_anon_1.sk).state) };
        state == ESTABLISHED
    }

    /// The kernel's name for the socket.
    #[inline(always)]
    pub fn cookie(&self) -> u64 {
        // SAFETY: the helper takes the hook's context.
        unsafe { bpf_get_socket_cookie(self.context()) }
    }

    /// The kernel's name for the socket's network namespace.
    #[inline(always)]
    pub fn namespace(&self) -> u64 {
        // SAFETY: the helper takes the hook's context.
        unsafe { bpf_get_netns_cookie(self.context()) }
    }

    /// Whether the socket belongs to the node's own network namespace.
    #[inline(always)]
    pub fn is_of_node(&self) -> bool {
        self.namespace() == globals::node_namespace()
    }
}

/// The kernel's name for a socket that is closed: for the hook of another kind of context.
#[inline(always)]
pub fn cookie_of(context: &SockContext) -> u64 {
    // SAFETY: the helper takes the hook's context.
    unsafe { bpf_get_socket_cookie(context.as_ptr()) }
}

/// A random number.
#[inline(always)]
pub fn random() -> u32 {
    // SAFETY: no arguments.
    unsafe { bpf_get_prandom_u32() }
}

/// Makes the system call fail with ECONNREFUSED. Only where [`globals::has_set_retval`].
#[inline(always)]
pub fn fail_with_refusal() {
    const ECONNREFUSED: i32 = 111;
    // SAFETY: the helper takes an error number. It fails for no number of this kind.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
}

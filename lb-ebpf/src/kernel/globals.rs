// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Constants that the agent sets before it loads the programs: frozen read-only data, by which the verifier prunes.

use aya_ebpf::Global;
use lb_common::{flow::table::WAYS, maps::capacity, socket::socket_mode};

/// Jiffies in a second.
#[unsafe(no_mangle)]
static HZ: Global<u64> = Global::new(250);

/// Jiffies to ticks.
#[unsafe(no_mangle)]
static TICK_SHIFT: Global<u64> = Global::new(8);

/// Key of the flow table's hash, as in the configuration.
#[unsafe(no_mangle)]
static TABLE_KEY_0: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
static TABLE_KEY_1: Global<u64> = Global::new(0);

/// Number of sets in the flow table of IPv4, less one.
#[unsafe(no_mangle)]
static FLOW_MASK_V4: Global<u64> = Global::new((capacity::FLOWS / WAYS - 1) as u64);
/// The same of IPv6.
#[unsafe(no_mangle)]
static FLOW_MASK_V6: Global<u64> = Global::new((capacity::FLOWS / WAYS - 1) as u64);

/// Flags that `bpf_l4_csum_replace` wants for IPv6 addresses beside the pseudo-header's: `BPF_F_IPV6` where the kernel
/// has it (6.16), so that packets with a checksum complete in hardware keep it right.
#[unsafe(no_mangle)]
static L4_CSUM_V6_FLAGS: Global<u64> = Global::new(0);

/// How many elements of `BACKEND_COUNTERS` each CPU has: as many as there are backends.
#[unsafe(no_mangle)]
static BACKENDS_A_CPU: Global<u64> = Global::new(capacity::BACKENDS as u64);

/// How many elements of `SERVICE_COUNTERS` each CPU has: as many as there are Service ports.
#[unsafe(no_mangle)]
static SERVICES_A_CPU: Global<u64> = Global::new(capacity::SERVICES as u64);

/// [`socket_mode`]: which sockets the socket door serves.
#[unsafe(no_mangle)]
static SOCKET_MODE: Global<u64> = Global::new(socket_mode::HOST);

/// Cookie of the node's own network namespace.
#[unsafe(no_mangle)]
static NODE_NAMESPACE: Global<u64> = Global::new(0);

/// 1 where `bpf_set_retval` lets a socket program name its error (6.1). Without it there is EPERM alone.
#[unsafe(no_mangle)]
static HAS_SET_RETVAL: Global<u64> = Global::new(0);

/// Whether sockets of all network namespaces are served, not only the node's.
#[inline(always)]
pub fn serves_all_sockets() -> bool {
    SOCKET_MODE.load() == socket_mode::ALL
}

/// See [`NODE_NAMESPACE`].
#[inline(always)]
pub fn node_namespace() -> u64 {
    NODE_NAMESPACE.load()
}

/// Whether a socket program can name its error.
#[inline(always)]
pub fn has_set_retval() -> bool {
    HAS_SET_RETVAL.load() != 0
}

/// See [`HZ`].
#[inline(always)]
pub fn hz() -> u32 {
    HZ.load() as u32
}

/// See [`TICK_SHIFT`].
#[inline(always)]
pub fn tick_shift() -> u32 {
    TICK_SHIFT.load() as u32 & 31
}

/// See [`TABLE_KEY_0`].
#[inline(always)]
pub fn table_key() -> [u64; 2] {
    [TABLE_KEY_0.load(), TABLE_KEY_1.load()]
}

/// Number of sets in a family's flow table, less one.
#[inline(always)]
pub fn flow_mask(is_v4: bool) -> u32 {
    (if is_v4 { FLOW_MASK_V4.load() } else { FLOW_MASK_V6.load() }) as u32
}

/// See [`L4_CSUM_V6_FLAGS`].
#[inline(always)]
pub fn l4_csum_v6_flags() -> u64 {
    L4_CSUM_V6_FLAGS.load()
}

/// See [`BACKENDS_A_CPU`].
#[inline(always)]
pub fn backends_a_cpu() -> u32 {
    BACKENDS_A_CPU.load() as u32
}

/// See [`SERVICES_A_CPU`].
#[inline(always)]
pub fn services_a_cpu() -> u32 {
    SERVICES_A_CPU.load() as u32
}

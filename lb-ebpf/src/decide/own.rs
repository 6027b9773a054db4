// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Answers to what this node has sent, for itself or for a pod that netfilter hides behind it (masquerade), from a port that is a
//! Service's, too (a NodePort, or a port of a load balancer at the node's address): they are no Service's, and the stack knows them. So does
//! it connections of a pod to a Service that are older than the program on the pod's device: the net's, or another load balancer's. Asked
//! for new flows alone.

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_tuple},
    helpers::generated::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp},
};
use lb_common::{
    config::config_flags,
    conntrack::{Options, Question},
    flow::protocol,
    verdict::{Reason, Stage, Stop},
};

use crate::{
    kernel::{
        global_fn, maps,
        work::{self, Scratch},
    },
    packet::{Packet, header::Header},
};

/// `BPF_F_CURRENT_NETNS`: the network namespace of the packet's device.
const CURRENT_NAMESPACE: u64 = u64::MAX;
/// States of sockets (`include/net/tcp_states.h`), UDP's as well.
const ESTABLISHED: u32 = 1;
const LISTEN: u32 = 10;

/// Whether the packet in the scratch space, which is of no flow, may begin one. A SYN-ACK opens no connection, whoever it is for; others
/// answer this node if a socket here is connected to their sender, or if conntrack says so, either of which may be older than the
/// Service. A pod's segment in mid-connection has been here before if conntrack knows it: what its door translates conntrack sees under
/// another name.
#[inline(always)]
pub fn check<P: Packet, F: Header>(packet: &P, scratch: &Scratch<F>, comes_from_pod: bool) -> Stage<()> {
    let parsed = &scratch.parsed;
    if parsed.is_answer() {
        return Err(Stop::NOT_OURS);
    }
    let is_tcp = parsed.key.protocol == protocol::TCP;
    let is_for_node = is_node::<F>(&parsed.key.dst);
    // What is known has been at the net, and there is none any more.
    let is_pods = is_tcp && comes_from_pod && !P::IS_XDP && scratch.is_known == 0;
    // Neither sockets nor conntrack tell a program of SCTP.
    let has_another = is_tcp || parsed.key.protocol == protocol::UDP;
    if is_tcp && parsed.is_opening() || !has_another || !is_for_node && !is_pods {
        return Ok(());
    }
    if is_for_node {
        let has_socket =
            if is_tcp { has_tcp_socket_global::<P, F>(packet) } else { has_udp_socket_global::<P, F>(packet) };
        if has_socket {
            return Err(Stop::NOT_OURS);
        }
    }
    // A question of `trace` is answered by this program alone. What comes to the net was there before.
    let is_net = !P::IS_XDP && scratch.is_net != 0;
    if maps::config()?.flags & config_flags::ASKS_CONNTRACK == 0 || packet.is_trace() || is_net {
        return Ok(());
    }
    ask_conntrack_global::<F>(is_pods)
}

global_fn! {
    /// [`ask_conntrack`].
    fn ask_conntrack_global<F: Header>(is_about_any: bool) -> Stage<()> = ask_conntrack => ask_conntrack_v4 | ask_conntrack_v6
}

/// Has conntrack asked about the packet in the scratch space, unless it was, and knows nothing of it: whether it answers, or
/// `is_about_any`.
#[inline(always)]
fn ask_conntrack<F: Header>(is_about_any: bool) -> Stage<()> {
    let question = maps::conntrack_question().ok_or(Stop::drop(Reason::MapMissing))?;
    let key = &work::scratch::<F>()?.parsed.key;
    let tuple = &mut question.tuple;
    let (mut differences, mut index) = (0, 0);
    while index < F::WORDS {
        differences |= tuple[index] ^ F::word(&key.src, index) | tuple[F::WORDS + index] ^ F::word(&key.dst, index);
        (tuple[index], tuple[F::WORDS + index]) = (F::word(&key.src, index), F::word(&key.dst, index));
        index += 1;
    }
    let ports = u32::from(key.sport_be) | u32::from(key.dport_be) << 16;
    differences |= tuple[2 * F::WORDS] ^ ports | u32::from(question.options.protocol ^ key.protocol);
    tuple[2 * F::WORDS] = ports;
    let is_answered = question.is_answered != 0;
    question.is_answered = 0;
    if is_answered && differences == 0 {
        return Ok(());
    }
    question.is_about_any = is_about_any.into();
    question.tuple_len = if F::IS_V4 { Question::LEN_V4 } else { Question::LEN_V6 };
    question.options = Options {
        namespace: Options::CURRENT_NAMESPACE,
        error: 0,
        protocol: key.protocol,
        direction: 0,
        reserved: [0; 2],
    };
    Err(Stop::ASK_CONNTRACK)
}

/// Whether this node may send from an address.
#[inline(always)]
fn is_node<F: Header>(address: &F::Addr) -> bool {
    maps::filter().is_some_and(|filter| filter.is_node(F::filter_bit(address)))
}

global_fn! {
    /// [`has_tcp_socket`].
    fn has_tcp_socket_global<P: Packet, F: Header>(packet: &P) -> bool
        = has_tcp_socket => has_tcp_socket_xdp_v4 | has_tcp_socket_xdp_v6 | has_tcp_socket_tc_v4 | has_tcp_socket_tc_v6
}

/// Whether there is a socket of the connection, be it half-open or in its last minute.
#[inline(always)]
fn has_tcp_socket<P: Packet, F: Header>(packet: &P) -> bool {
    let Some((tuple, len)) = tuple::<F>() else { return false };
    // SAFETY: a valid context; the tuple is memory of the scratch space, as long as is said.
    let socket = unsafe { bpf_skc_lookup_tcp(packet.context(), tuple, len, CURRENT_NAMESPACE, 0) };
    state_of(socket).is_some_and(|state| state != LISTEN)
}

global_fn! {
    /// [`has_udp_socket`].
    fn has_udp_socket_global<P: Packet, F: Header>(packet: &P) -> bool
        = has_udp_socket => has_udp_socket_xdp_v4 | has_udp_socket_xdp_v6 | has_udp_socket_tc_v4 | has_udp_socket_tc_v6
}

/// Whether there is a socket that is connected to the sender.
#[inline(always)]
fn has_udp_socket<P: Packet, F: Header>(packet: &P) -> bool {
    let Some((tuple, len)) = tuple::<F>() else { return false };
    // SAFETY: as in `has_tcp_socket`.
    let socket = unsafe { bpf_sk_lookup_udp(packet.context(), tuple, len, CURRENT_NAMESPACE, 0) };
    state_of(socket) == Some(ESTABLISHED)
}

/// Where the 5-tuple of the packet in the scratch space stands: its beginning is what the helpers want, and so long.
#[inline(always)]
fn tuple<F: Header>() -> Option<(*mut bpf_sock_tuple, u32)> {
    let key = &raw mut work::scratch::<F>().ok()?.parsed.key;
    Some((key.cast(), (2 * size_of::<F::Addr>() + 4) as u32))
}

/// The state of a socket that was looked up, which is released.
// verifier: inlined, for a program may not load from sockets of several kinds by one instruction.
#[inline(always)]
fn state_of(socket: *mut bpf_sock) -> Option<u32> {
    if socket.is_null() {
        return None;
    }
    // SAFETY: the helper's socket, which lives until it is released. A field of the UAPI.
    let state = unsafe { (&raw const (*socket).state).read_volatile() };
    // SAFETY: it is released once, and not used any more.
    unsafe { bpf_sk_release(socket.cast()) };
    Some(state)
}

// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The socket door (connect-time load balancing, socket LB): a Service's address becomes a backend's when a socket connects, or sends by
//! UDP; what the application is shown afterwards is the Service again. No packet is touched, and no flow entry made.
//!
//! ```text
//!  connect:              whose socket? -> frontend -> admit -> select -> remember -> address of the backend
//!  sendmsg:              the same, unless it has said something to this Service before: to the same backend then
//!  recvmsg, getpeername: remembered? -> address of the Service
//!  close:                a connected socket is forgotten
//! ```
//!
//! Knows `decide`. These programs run in the context of a process, and a packet's program may interrupt them at any point: nothing here
//! uses the packets' scratch space, and counters are added to in one instruction.
//!
//! **Left to the packet doors** are sockets of pods that need attention after they are connected: UDP, which follows its
//! Service packet by packet there (with session affinity all of it), and TCP that is to be reset when its backend goes. The same
//! for pods where the source address decides and is not known yet. No packet door sees the packets of the node's own processes:
//! their sockets are translated here, and closed by the agent.

pub mod context;
mod datagram;

use aya_ebpf::{bindings::bpf_sock_addr, maps::lpm_trie::Key, programs::SockContext};
use lb_common::{
    address::{Address, Family as _, V4},
    config::{config_flags, family_index},
    filter::WHOLE,
    flow::protocol,
    frontend::{Affinity, AffinityKey, Frontend, FrontendKey, NO_BACKEND, Scope, SourceRange, frontend_flags},
    hash,
    socket::{
        SocketEntry, TRACE_ANSWERED, TRACE_SOCKET, TalkEntry, TalkKey, namespace_client, socket_flags, talk_side,
    },
    trace::{TraceRecord, trace_step, trace_verdict},
    verdict::{Fate, Reason, Stage, Stop},
};

use self::{
    context::{Socket, SocketFamily, cookie_of, fail_with_refusal, random},
    datagram::{goes_on, remember_service},
};
use crate::{
    decide::{
        admit,
        select::{self, Chosen, Client},
    },
    kernel::{clock, global_fn, globals, maps, work::Admitted},
};

/// Lets the system call go on.
const ALLOW: i32 = 1;
/// Makes it fail, with EPERM unless the program says otherwise.
const REFUSE: i32 = 0;

/// What the application does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// `connect`, TCP or UDP.
    Connect,
    /// `sendto` or `sendmsg` with an address, UDP.
    Send,
}

/// Forgets a socket that is closed.
#[inline(always)]
pub fn release(context: &SockContext) -> i32 {
    maps::remove_socket(cookie_of(context));
    ALLOW
}

/// Whether an address may be a backend's.
#[inline(always)]
fn may_be_backend(address: &Address) -> bool {
    maps::filter().is_some_and(|filter| filter.has_source(hash::filter_bit(address.words_be())))
}

/// The sender of a datagram: of a connected socket its peer, else where it may be a backend at all.
#[inline(always)]
pub fn show_sender<F: SocketFamily>(socket: &Socket<F>) -> i32 {
    if !may_be_backend(&socket.peer()) {
        return ALLOW;
    }
    if socket.is_connected() {
        return show_peer(socket);
    }
    let key = TalkKey::new(socket.cookie(), socket.peer(), socket.peer_port_be(), talk_side::BACKEND);
    if let Some(talk) = maps::find_talk(&key) {
        socket.set_peer(&talk.address, talk.port_be);
    }
    ALLOW
}

/// Puts the Service in the place of the backend that the socket is connected to.
#[inline(always)]
pub fn show_peer<F: SocketFamily>(socket: &Socket<F>) -> i32 {
    if let Some(entry) = maps::find_socket(socket.cookie())
        && entry.backend_address.is(&socket.peer())
        && entry.backend_port_be == socket.peer_port_be()
    {
        socket.set_peer(&entry.address, entry.port_be);
    }
    ALLOW
}

#[inline(always)]
pub fn translate<F: SocketFamily>(socket: &Socket<F>, call: Call) -> i32 {
    let mut record = find_question(socket);
    let result = decide(socket, call, &mut record);
    match (record, result) {
        // A question is answered, and nothing is sent.
        (Some(record), result) => {
            note_end(record, result);
            REFUSE
        }
        (None, Ok(())) => ALLOW,
        (None, Err(stop)) => conclude(socket, call, stop),
    }
}

/// Whether it is `trace` that asks, with a socket whose cookie stands in the record.
#[inline(always)]
fn find_question<F: SocketFamily>(socket: &Socket<F>) -> Option<&'static mut TraceRecord> {
    let record = maps::trace_record()?;
    if record.cookie[2] != TRACE_SOCKET {
        return None;
    }
    let cookie = socket.cookie();
    (record.cookie[0] == cookie as u32 && record.cookie[1] == (cookie >> 32) as u32).then_some(record)
}

/// The one place that turns a refusal into the system call's outcome.
#[inline(always)]
fn conclude<F: SocketFamily>(socket: &Socket<F>, call: Call, stop: Stop) -> i32 {
    // The stages that a socket passes know no other refusals than these two.
    match stop.fate() {
        Fate::Drop | Fate::Reject => maps::count_reason_of_socket(stop.reason()),
        _ => {
            forget(socket, call);
            return ALLOW;
        }
    }
    if call == Call::Connect && socket.protocol() == Some(protocol::UDP) {
        if socket.is_of_node() {
            connect_to_nobody(socket);
        } else {
            // The packet doors refuse what it sends.
            forget(socket, call);
        }
        return ALLOW;
    }
    if stop.fate() == Fate::Drop {
        return REFUSE;
    }
    if globals::has_set_retval() {
        fail_with_refusal();
    } else if socket.protocol() == Some(protocol::TCP) {
        // Port 0 of the machine itself, where nobody can listen, refuses at once.
        socket.set_peer(&Address::loopback(socket.peer().is_v4()), 0);
        return ALLOW;
    }
    REFUSE
}

/// Where UDP that is served by nobody is connected to, on the node's own address: nobody listens at `tcpmux` by UDP. (Port 0,
/// where nobody can, would make `getpeername` fail.)
const NOBODYS_PORT_BE: u16 = 1_u16.to_be();

/// UDP is connected without a word being sent, and many connect just to learn by which address of their own they would send
/// (RFC 6724 as glibc does it, `ping`). So it never fails, and what is sent is refused by the node's own stack.
#[inline(always)]
fn connect_to_nobody<F: SocketFamily>(socket: &Socket<F>) {
    let (address, port_be) = (socket.peer(), socket.peer_port_be());
    let is_v4 = address.is_v4();
    let own = maps::config().map(|config| config.node_addresses[family_index(is_v4)]);
    let nobody = match own {
        Ok(own) if !own.is_unspecified() => own,
        _ => Address::loopback(is_v4),
    };
    let is_bound = source_kind_global::<F>(socket.context().cast()) & BOUND != 0;
    let entry = SocketEntry {
        address,
        backend_address: nobody,
        port_be,
        backend_port_be: NOBODYS_PORT_BE,
        protocol: protocol::UDP,
        flags: if is_bound { socket_flags::BOUND } else { 0 },
        pad: [0; 2],
        backend: NO_BACKEND,
        generation: 0,
    };
    maps::put_socket(socket.cookie(), &entry);
    socket.set_peer(&nobody, NOBODYS_PORT_BE);
}

/// A socket that goes elsewhere is no Service's any more. It may go to a backend's own address: what comes from
/// there is not to be shown as the Service's.
#[inline(always)]
fn forget<F: SocketFamily>(socket: &Socket<F>, call: Call) {
    if call == Call::Connect {
        maps::remove_socket(socket.cookie());
    } else if may_be_backend(&socket.peer()) {
        maps::remove_talk(&TalkKey::new(socket.cookie(), socket.peer(), socket.peer_port_be(), talk_side::BACKEND));
    }
}

/// Sends the socket to a backend, if it is for a Service.
#[inline(always)]
fn decide<F: SocketFamily>(socket: &Socket<F>, call: Call, record: &mut Option<&'static mut TraceRecord>) -> Stage<()> {
    let Some(protocol) = socket.protocol() else { return Err(Stop::NOT_OURS) };
    let is_of_node = socket.is_of_node();
    if !is_of_node && !globals::serves_all_sockets() {
        return Err(Stop::NOT_OURS);
    }
    let (address, port_be) = (socket.peer(), socket.peer_port_be());
    let frontend = find_frontend(FrontendKey::new(address, port_be, protocol), is_of_node)?;
    if let Some(record) = record {
        record.step = trace_step::FRONTEND;
        record.service = frontend.service;
        record.internal = 1;
    }
    if is_of_node && protocol == protocol::UDP && record.is_none() && is_nets(socket, call, &address)? {
        return Err(Stop::NOT_OURS);
    }
    let needs_attention = match protocol {
        // One that is connected may be connected to this very Service, by packets. To session affinity a pod is one client, by its
        // packets' source, whether its sockets are connected or not.
        protocol::UDP => call == Call::Connect || socket.is_connected() || frontend.affinity_timeout != 0,
        _ => frontend.flags & frontend_flags::RESET_ON_REMOVAL != 0,
    };
    if !is_of_node && needs_attention {
        return Err(Stop::NOT_OURS);
    }
    if call == Call::Send && record.is_none() && goes_on(socket, &address, port_be, frontend.service) {
        return Ok(());
    }
    let source_kind = source_kind_global::<F>(socket.context().cast());
    let admitted = match admit(socket, frontend, source_kind, is_of_node) {
        Ok(admitted) => admitted,
        Err(stop) => {
            count_refusal(frontend.service, stop, record.is_some());
            return Err(stop);
        }
    };
    let chosen = choose(socket, call, &admitted, source_kind, record.is_some())?;
    let (backend_address, backend_port_be) = (chosen.backend.address, chosen.backend.port_be);
    let own_address = &maps::config()?.node_addresses[family_index(backend_address.is_v4())];
    if source_kind & LOOPBACK != 0 && !own_address.is(&backend_address) {
        let stop = Stop::drop(Reason::LoopbackSource);
        count_refusal(frontend.service, stop, record.is_some());
        return Err(stop);
    }
    if let Some(record) = record {
        record.step = trace_step::DECIDED;
        record.backend = chosen.index;
        return Ok(());
    }
    if call == Call::Connect {
        let wants_reset = admitted.frontend.flags & frontend_flags::RESET_ON_REMOVAL != 0;
        let reset = if wants_reset && protocol == protocol::TCP { socket_flags::RESET } else { 0 };
        let bound = if source_kind & BOUND != 0 { socket_flags::BOUND } else { 0 };
        let entry = SocketEntry {
            address,
            backend_address,
            port_be,
            backend_port_be,
            protocol,
            flags: reset | bound,
            pad: [0; 2],
            backend: chosen.index,
            generation: chosen.generation(),
        };
        maps::put_socket(socket.cookie(), &entry);
    } else {
        let (backend, generation) = (chosen.index, chosen.generation());
        let talk = TalkEntry { address: backend_address, port_be: backend_port_be, pad: [0; 2], backend, generation };
        maps::put_talk(&TalkKey::new(socket.cookie(), address, port_be, talk_side::SERVICE), &talk);
        remember_service(socket.cookie(), (&address, port_be), &talk);
    }
    count_flow(frontend.service, chosen.index);
    socket.set_peer(&backend_address, backend_port_be);
    Ok(())
}

/// Whether UDP of this node to an address is left to the net, because the socket is connected: its datagrams go to whatever backend there
/// is then, and it hears of no change. The net sees what is for ClusterIPs, and for NodePorts at the node's addresses. To connected
/// sockets of IPv6 that send by IPv4 the kernel names the address with each datagram.
#[inline(always)]
fn is_nets<F: SocketFamily>(socket: &Socket<F>, call: Call, address: &Address) -> Stage<bool> {
    if !maps::config()?.net.is_there() || address.is_this_machine() {
        return Ok(false);
    }
    let is_by_packets = call == Call::Connect || socket.is_connected() && maps::find_socket(socket.cookie()).is_none();
    let cell = hash::filter_bit(address.words_be());
    let is_seen = maps::filter().is_some_and(|filter| filter.destination(cell) & WHOLE != 0 || filter.is_node(cell));
    Ok(is_by_packets && is_seen)
}

/// A Service's address, a NodePort on an address of this node, or a NodePort on localhost (rule 30): that is the node's own
/// alone, a pod has another.
#[inline(always)]
fn find_frontend(mut key: FrontendKey, is_of_node: bool) -> Stage<Frontend> {
    let is_v4 = key.address.is_v4();
    if key.address.is_this_machine() {
        if !is_of_node || maps::config()?.flags & config_flags::NO_LOCALHOST != 0 {
            return Err(Stop::NOT_OURS);
        }
        key.address = FrontendKey::any_address(is_v4);
        return maps::find_frontend(&key).ok_or(Stop::NOT_OURS);
    }
    let cell = hash::filter_bit(key.address.words_be());
    if maps::filter().is_none_or(|filter| filter.destination(cell) == 0) {
        return Err(Stop::NOT_OURS);
    }
    admit::find_frontend(&mut key, is_v4)
}

/// Whether the client may come in, and which table serves it. Whoever has a socket here is inside.
#[inline(always)]
fn admit<F: SocketFamily>(
    socket: &Socket<F>,
    frontend: Frontend,
    source_kind: u32,
    is_of_node: bool,
) -> Stage<Admitted> {
    // Before the question whether anything serves (rule 36).
    if frontend.flags & frontend_flags::SOURCE_RANGES != 0 {
        // What a connected socket has got, its packets will bear.
        let source = if source_kind & BOUND != 0 || socket.is_connected() {
            socket.source()
        } else if is_of_node {
            maps::config()?.node_addresses[family_index(socket.peer().is_v4())]
        } else {
            return Err(Stop::NOT_OURS);
        };
        let key = Key::new(SourceRange::FULL_LEN, SourceRange { service: frontend.service, address: source });
        if !maps::is_in_source_ranges(&key) {
            return Err(Stop::drop(Reason::SourceRange));
        }
    }
    let target = admit::find_target(&frontend, Scope::Internal)?;
    let list = u32::from(frontend.list(Scope::Internal));
    Ok(Admitted { frontend, target, list, comes_from_pod: 1, class: 0 })
}

/// A connection gets a backend by chance: a client's next one shall find another (rule 26), also one that tries again with
/// the same socket. The datagrams of a socket without a connection keep together.
#[inline(always)]
fn choose<F: SocketFamily>(
    socket: &Socket<F>,
    call: Call,
    admitted: &Admitted,
    source_kind: u32,
    dry: bool,
) -> Stage<Chosen> {
    let address = if source_kind & BOUND != 0 { socket.source() } else { namespace_client(socket.namespace()) };
    let hash = match call {
        Call::Connect => random(),
        Call::Send => {
            let words = [socket.cookie(), u64::from(admitted.frontend.service)];
            (hash::siphash13(&maps::config()?.seed, &words) >> 32) as u32
        }
    };
    let client = Client {
        address,
        hash: |seed: &[u64; 2]| {
            if address.is_v4() {
                hash::of_client(seed, &V4::first_words(&V4::narrow(&address)))
            } else {
                hash::of_client(seed, address.words_be())
            }
        },
        key: &mut AffinityKey { client: Address::UNSPECIFIED, service: 0 },
        affinity: &mut Affinity { backend: NO_BACKEND, generation: 0, last_used: 0 },
        dry,
    };
    select::choose(admitted, hash, client, clock::tick())
}

/// [`source_kind`]: the application has given the socket an address.
const BOUND: u32 = 1;
/// [`source_kind`]: one from which packets don't leave the machine.
const LOOPBACK: u32 = 2;

global_fn! {
    /// [`source_kind`].
    fn source_kind_global<F: SocketFamily>(context: *mut bpf_sock_addr) -> u32 = source_kind => source_kind_v4 | source_kind_v6
}

/// What is to be known of a socket's own address: bits, none where the socket has no address, or the kernel may have chosen it
/// when the socket was connected.
#[inline(always)]
fn source_kind<F: SocketFamily>(context: *mut bpf_sock_addr) -> u32 {
    let socket = Socket::<F>::new(context);
    if socket.is_connected() {
        let entry = maps::find_socket(socket.cookie());
        if entry.is_none_or(|entry| entry.flags & socket_flags::BOUND == 0) {
            return 0;
        }
    }
    let source = socket.source();
    if source.is_unspecified() || source.is(&FrontendKey::any_address(true)) {
        0
    } else if source.is_loopback() {
        BOUND | LOOPBACK
    } else {
        BOUND
    }
}

/// Counts a new flow: a connection, or a socket's first datagram to a backend.
#[inline(always)]
fn count_flow(service: u32, backend: u32) {
    if let Some(counters) = maps::service_counters(service) {
        maps::add_one(&mut counters.flows);
    }
    if let Some(counters) = maps::backend_counters(backend) {
        maps::add_one(&mut counters.flows);
    }
}

#[inline(always)]
fn count_refusal(service: u32, stop: Stop, dry: bool) {
    if dry {
        return;
    }
    let Some(counters) = maps::service_counters(service) else { return };
    match stop.fate() {
        Fate::Drop => maps::add_one(&mut counters.dropped),
        Fate::Reject => maps::add_one(&mut counters.rejected),
        _ => {}
    }
}

/// Tells `trace` how it ended.
#[inline(always)]
fn note_end(record: &mut TraceRecord, result: Stage<()>) {
    record.cookie[3] = TRACE_ANSWERED;
    let stop = match result {
        Ok(()) => {
            record.verdict = trace_verdict::TRANSLATED;
            return;
        }
        Err(stop) => stop,
    };
    record.reason = stop.reason();
    record.verdict = match stop.fate() {
        Fate::Reject => trace_verdict::REJECTED,
        Fate::Drop => trace_verdict::DROPPED,
        _ => trace_verdict::NOT_OURS,
    };
}

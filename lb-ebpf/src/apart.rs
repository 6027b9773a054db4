// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Functions that the verifier proves apart from their callers: *global* functions in its terms.
//!
//! It follows every path through an ordinary call, from every state of the caller; what branches much, like the search for
//! a source port, multiplies (on 6.18: 80,000 instructions verified in the XDP program before, 12,000 after). A global function is proven
//! once, for any arguments. The price: arguments are the context and plain numbers only (that is what 5.10 takes), so the
//! packet's parsed form travels in the scratch space; and it must have a name and no type parameters.

use aya_ebpf::bindings::{__sk_buff, bpf_sock_addr, xdp_md};
use lb_common::{
    address::{Family, V4, V6},
    crc32c,
    flow::{Direction, Flow, FlowState},
    verdict::Packed,
    walk::Walk,
};

use crate::{
    dissect, flow, forward, fragment,
    header::Header,
    install,
    packet::{Exit, Packet, SkbPacket, XdpPacket},
    parse::{Hook, Parsed},
    rare, select, service, socket,
    socket_context::{Socket, SocketFamily},
    source,
};

/// Per-family functions, proven apart.
pub trait Apart: Family {
    /// [`select::select`].
    fn select_apart(hash: u32, now: u32, dry: bool) -> Packed;
    /// [`install::install`].
    fn install_apart(start: u32, now: u32, dry: bool) -> Packed;
    /// [`install::choose_source_port`].
    fn choose_source_port_apart(start: u32, now: u32) -> u32;
    /// [`install::holder`].
    fn holder_apart(now: u32, patience: u32) -> u32;
    /// [`flow::touch`].
    fn touch_apart(now: u32) -> Packed;
    /// [`flow::advance`].
    fn advance_apart() -> Packed;
    /// [`flow::find_young`].
    fn find_young_apart(now: u32, dry: bool) -> Packed;
    /// [`flow::keep_peer`].
    fn keep_peer_apart(is_new_tick: bool) -> Packed;
    /// [`flow::grow`].
    fn grow_apart() -> Packed;
    /// [`fragment::remember`].
    fn remember_apart(now: u32) -> Packed;
}

/// The slow path, per door and family.
pub trait SlowPath<F: Header>: Extended {
    /// [`service::decide`].
    fn decide_apart(&self, now: u32) -> Packed;
    /// [`source::translate`].
    fn translate_source_apart(&self) -> Packed;
    /// [`forward::look_up`].
    fn look_up_apart(&self, protocol: u8) -> Packed;
}

/// Per-family functions of the socket door.
pub trait SocketApart: SocketFamily {
    /// [`socket::source_kind`].
    fn source_kind_apart(socket: &Socket<Self>) -> u32;
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn source_kind_v4(context: *mut bpf_sock_addr) -> u32 {
    socket::source_kind(&Socket::<V4>::new(context))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn source_kind_v6(context: *mut bpf_sock_addr) -> u32 {
    socket::source_kind(&Socket::<V6>::new(context))
}

impl SocketApart for V4 {
    #[inline(always)]
    fn source_kind_apart(socket: &Socket<Self>) -> u32 {
        source_kind_v4(socket.context().cast())
    }
}

impl SocketApart for V6 {
    #[inline(always)]
    fn source_kind_apart(socket: &Socket<Self>) -> u32 {
        source_kind_v6(socket.context().cast())
    }
}

/// [`XdpPacket::has_trace_cookie`]: the words that it compares would take stack from every function that asks.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn has_trace_cookie_xdp(context: *mut xdp_md) -> u32 {
    u32::from(XdpPacket::has_trace_cookie(context))
}

/// [`SkbPacket::has_trace_cookie`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn has_trace_cookie_tc(context: *mut __sk_buff) -> u32 {
    u32::from(SkbPacket::has_trace_cookie(context))
}

/// What only packets that are not plain need, per door and family.
pub trait Rare<F: Header>: Extended {
    /// [`dissect::dissect`].
    fn dissect_apart(&self, l3: u32, hook: Hook) -> Packed;
    /// [`rare::rewrite`].
    fn rewrite_apart(&self, exit: Exit) -> Packed;
}

/// What no family makes a difference to, per door.
pub trait Extended: Packet {
    /// [`forward::check_mtu`].
    fn check_mtu_apart(&self, protocol: u8, mtu: u16, l4: u32) -> Packed;
    /// [`dissect::walk_v6`].
    fn walk_v6_apart(&self, l3: u32, room: u32) -> Walk;
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn next_state(state: u32, is_reply: u32, protocol: u32, flags: u32) -> u32 {
    let direction = if is_reply == 0 { Direction::Original } else { Direction::Reply };
    u32::from(FlowState::from_bits(state as u8).next(direction, protocol as u8, flags as u8).to_bits())
}

/// [`FlowState::next`].
#[inline(always)]
pub fn next_state_apart<F: Family>(flow: &Flow<F>, parsed: &Parsed<F>) -> FlowState {
    let is_reply = u32::from(flow.direction() == Direction::Reply);
    let (protocol, flags) = (u32::from(parsed.key.protocol), u32::from(parsed.tcp_flags));
    FlowState::from_bits(next_state(u32::from(flow.state.to_bits()), is_reply, protocol, flags) as u8)
}

macro_rules! family_apart {
    ($family:ty, $select:ident, $install:ident, $choose_source_port:ident, $holder:ident, $touch:ident, $advance:ident, $find_young:ident, $keep_peer:ident, $grow:ident, $remember:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $select(hash: u32, now: u32, dry: u32) -> u64 {
            Packed::pack(select::select::<$family>(hash, now, dry != 0)).to_bits()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $install(start: u32, now: u32, dry: u32) -> u64 {
            Packed::pack(install::install::<$family>(start, now, dry != 0)).to_bits()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $choose_source_port(start: u32, now: u32) -> u32 {
            install::choose_source_port::<$family>(start, now)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $holder(now: u32, patience: u32) -> u32 {
            install::holder::<$family>(now, patience)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $touch(now: u32) -> u64 {
            Packed::pack(flow::touch::<$family>(now)).to_bits()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $advance() -> u64 {
            Packed::pack(flow::advance::<$family>()).to_bits()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $find_young(now: u32, dry: u32) -> u64 {
            Packed::pack(flow::find_young::<$family>(now, dry != 0)).to_bits()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $keep_peer(is_new_tick: u32) -> u64 {
            Packed::pack(flow::keep_peer::<$family>(is_new_tick != 0)).to_bits()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $grow() -> u64 {
            Packed::pack(flow::grow::<$family>()).to_bits()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $remember(now: u32) -> u64 {
            Packed::pack(fragment::remember::<$family>(now)).to_bits()
        }

        impl Apart for $family {
            #[inline(always)]
            fn select_apart(hash: u32, now: u32, dry: bool) -> Packed {
                Packed::from_bits($select(hash, now, u32::from(dry)))
            }

            #[inline(always)]
            fn install_apart(start: u32, now: u32, dry: bool) -> Packed {
                Packed::from_bits($install(start, now, u32::from(dry)))
            }

            #[inline(always)]
            fn choose_source_port_apart(start: u32, now: u32) -> u32 {
                $choose_source_port(start, now)
            }

            #[inline(always)]
            fn holder_apart(now: u32, patience: u32) -> u32 {
                $holder(now, patience)
            }

            #[inline(always)]
            fn touch_apart(now: u32) -> Packed {
                Packed::from_bits($touch(now))
            }

            #[inline(always)]
            fn remember_apart(now: u32) -> Packed {
                Packed::from_bits($remember(now))
            }

            #[inline(always)]
            fn advance_apart() -> Packed {
                Packed::from_bits($advance())
            }

            #[inline(always)]
            fn find_young_apart(now: u32, dry: bool) -> Packed {
                Packed::from_bits($find_young(now, u32::from(dry)))
            }

            #[inline(always)]
            fn keep_peer_apart(is_new_tick: bool) -> Packed {
                Packed::from_bits($keep_peer(u32::from(is_new_tick)))
            }

            #[inline(always)]
            fn grow_apart() -> Packed {
                Packed::from_bits($grow())
            }
        }
    };
}

macro_rules! slow_path_apart {
    ($packet:ty, $context:ty, $family:ty, $decide:ident, $translate_source:ident, $look_up:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $decide(context: *mut $context, now: u32) -> u64 {
            Packed::pack(service::decide::<_, $family>(&<$packet>::new(context), now)).to_bits()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $translate_source(context: *mut $context) -> u64 {
            Packed::pack(source::translate::<_, $family>(&<$packet>::new(context))).to_bits()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $look_up(context: *mut $context, protocol: u32) -> u64 {
            Packed::pack(forward::look_up::<_, $family>(&<$packet>::new(context), protocol as u8)).to_bits()
        }

        impl SlowPath<$family> for $packet {
            #[inline(always)]
            fn decide_apart(&self, now: u32) -> Packed {
                Packed::from_bits($decide(self.context().cast(), now))
            }

            #[inline(always)]
            fn translate_source_apart(&self) -> Packed {
                Packed::from_bits($translate_source(self.context().cast()))
            }

            #[inline(always)]
            fn look_up_apart(&self, protocol: u8) -> Packed {
                Packed::from_bits($look_up(self.context().cast(), u32::from(protocol)))
            }
        }
    };
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn walk_step(walk: u64, header: u64, room: u32) -> u64 {
    Walk::from_bits(walk).step(header, room).to_bits()
}

/// [`Walk::step`].
#[inline(always)]
pub fn step(walk: Walk, header: u64, room: u32) -> Walk {
    Walk::from_bits(walk_step(walk.to_bits(), header, room))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn crc32c_multiply(a: u32, b: u32) -> u32 {
    crc32c::multiply(a, b)
}

/// [`crc32c::multiply`].
#[inline(always)]
pub fn multiply(a: u32, b: u32) -> u32 {
    crc32c_multiply(a, b)
}

macro_rules! rare_apart {
    ($packet:ty, $context:ty, $family:ty, $dissect:ident, $rewrite:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $dissect(context: *mut $context, l3: u32, is_egress: u32) -> u64 {
            let hook = if is_egress == 0 { Hook::Ingress } else { Hook::Egress };
            Packed::pack(dissect::dissect::<_, $family>(&<$packet>::new(context), l3, hook)).to_bits()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $rewrite(context: *mut $context, exit: u32) -> u64 {
            Packed::pack(rare::rewrite::<_, $family>(&mut <$packet>::new(context), Exit::from_number(exit))).to_bits()
        }

        impl Rare<$family> for $packet {
            #[inline(always)]
            fn dissect_apart(&self, l3: u32, hook: Hook) -> Packed {
                Packed::from_bits($dissect(self.context().cast(), l3, u32::from(hook == Hook::Egress)))
            }

            #[inline(always)]
            fn rewrite_apart(&self, exit: Exit) -> Packed {
                Packed::from_bits($rewrite(self.context().cast(), exit as u32))
            }
        }
    };
}

macro_rules! extended_apart {
    ($packet:ty, $context:ty, $check_mtu:ident, $walk:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $check_mtu(context: *mut $context, protocol: u32, mtu: u32, l4: u32) -> u64 {
            let mut packet = <$packet>::new(context);
            Packed::pack(forward::check_mtu(&mut packet, protocol as u8, mtu as u16, l4)).to_bits()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $walk(context: *mut $context, l3: u32, room: u32) -> u64 {
            dissect::walk_v6(&<$packet>::new(context), l3, room).to_bits()
        }

        impl Extended for $packet {
            #[inline(always)]
            fn check_mtu_apart(&self, protocol: u8, mtu: u16, l4: u32) -> Packed {
                Packed::from_bits($check_mtu(self.context().cast(), u32::from(protocol), u32::from(mtu), l4))
            }

            #[inline(always)]
            fn walk_v6_apart(&self, l3: u32, room: u32) -> Walk {
                Walk::from_bits($walk(self.context().cast(), l3, room))
            }
        }
    };
}

family_apart!(
    V4,
    select_v4,
    install_v4,
    choose_source_port_v4,
    holder_v4,
    touch_v4,
    advance_v4,
    find_young_v4,
    keep_peer_v4,
    grow_v4,
    remember_v4
);
family_apart!(
    V6,
    select_v6,
    install_v6,
    choose_source_port_v6,
    holder_v6,
    touch_v6,
    advance_v6,
    find_young_v6,
    keep_peer_v6,
    grow_v6,
    remember_v6
);
slow_path_apart!(XdpPacket, xdp_md, V4, decide_xdp_v4, translate_source_xdp_v4, look_up_xdp_v4);
slow_path_apart!(XdpPacket, xdp_md, V6, decide_xdp_v6, translate_source_xdp_v6, look_up_xdp_v6);
slow_path_apart!(SkbPacket, __sk_buff, V4, decide_tc_v4, translate_source_tc_v4, look_up_tc_v4);
slow_path_apart!(SkbPacket, __sk_buff, V6, decide_tc_v6, translate_source_tc_v6, look_up_tc_v6);
rare_apart!(XdpPacket, xdp_md, V4, dissect_xdp_v4, rewrite_xdp_v4);
rare_apart!(XdpPacket, xdp_md, V6, dissect_xdp_v6, rewrite_xdp_v6);
rare_apart!(SkbPacket, __sk_buff, V4, dissect_tc_v4, rewrite_tc_v4);
rare_apart!(SkbPacket, __sk_buff, V6, dissect_tc_v6, rewrite_tc_v6);
extended_apart!(XdpPacket, xdp_md, check_mtu_xdp, walk_xdp_v6);
extended_apart!(SkbPacket, __sk_buff, check_mtu_tc, walk_tc_v6);

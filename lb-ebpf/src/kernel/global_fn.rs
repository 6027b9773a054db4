// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Global functions: those that the verifier proves once, and not once per path that leads to them.
//!
//! It follows every path through an ordinary call, from every state of the caller; what branches much, like the search for
//! a source port, multiplies (on 6.18: 80,000 instructions verified in one program before, 12,000 after). A global
//! function is proven once, for any arguments. The price: arguments are the context and plain numbers only (that is what 5.14
//! takes), so the packet's parsed form travels in the scratch space ([`work`](super::work)); and it must have a name and no
//! type parameters.
//!
//! So [`global_fn!`] makes one function for each family and each hook of a generic one, and a generic one in front of these,
//! which picks by `F::IS_V4` and `P::IS_XDP`. It stands beside the function that it is for.

use lb_common::{
    flow::{Direction, FlowState},
    verdict::{Packed, Stage},
    walk::Walk,
};

/// What a global function takes or gives: whatever fits into a plain number.
pub trait Number: Sized {
    /// The number: of no less than 32 bits, so that no kernel doubts the upper ones of a register.
    type Raw;
    fn to_raw(self) -> Self::Raw;
    /// From [`Number::to_raw`].
    fn from_raw(raw: Self::Raw) -> Self;
}

macro_rules! number {
    ($type:ty: $raw:ty, $value:ident => $to:expr, $bits:ident => $from:expr) => {
        impl $crate::kernel::global_fn::Number for $type {
            type Raw = $raw;

            #[inline(always)]
            fn to_raw(self) -> $raw {
                let $value = self;
                $to
            }

            #[inline(always)]
            fn from_raw($bits: $raw) -> Self {
                $from
            }
        }
    };
}
pub(crate) use number;

number!(u64: u64, value => value, bits => bits);
number!(u32: u32, value => value, bits => bits);
number!(u16: u32, value => value.into(), bits => bits as u16);
number!(u8: u32, value => value.into(), bits => bits as u8);
number!(bool: u32, value => value.into(), bits => bits != 0);
number!(Stage<()>: u64, value => Packed::pack(value).to_bits(), bits => Packed::from_bits(bits).unpack());
number!(Walk: u64, value => value.to_bits(), bits => Self::from_bits(bits));
number!(FlowState: u32, value => value.to_bits().into(), bits => Self::from_bits(bits as u8));
number!(Direction: u32, value => u32::from(value == Self::Reply), bits => match bits {
    0 => Self::Original,
    _ => Self::Reply,
});

impl<T> Number for *mut T {
    type Raw = Self;

    #[inline(always)]
    fn to_raw(self) -> Self {
        self
    }

    #[inline(always)]
    fn from_raw(raw: Self) -> Self {
        raw
    }
}

/// Declares a global function for a function: `global_fn!(NAME(ARGUMENTS) -> RESULT = FUNCTION => SYMBOLS)`. With a type
/// parameter `F: Bound` the symbols are those of IPv4 and IPv6; with `P: Packet`, and a packet as the first argument, those of
/// XDP and TC; with both, those of XDP with IPv4, XDP with IPv6, TC with IPv4, TC with IPv6.
macro_rules! global_fn {
    // What the verifier sees.
    (@symbol $symbol:ident($($argument:ident: $type:ty),*) -> $result:ty, $call:expr) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $symbol(
            $($argument: <$type as $crate::kernel::global_fn::Number>::Raw),*
        ) -> <$result as $crate::kernel::global_fn::Number>::Raw {
            $(let $argument = <$type as $crate::kernel::global_fn::Number>::from_raw($argument);)*
            $crate::kernel::global_fn::Number::to_raw($call)
        }
    };
    // Of a packet it sees the hook's context.
    (@xdp $symbol:ident($($argument:ident: $type:ty),*) -> $result:ty, $($body:tt)*) => {
        $crate::kernel::global_fn!(
            @symbol $symbol(context: *mut aya_ebpf::bindings::xdp_md $(, $argument: $type)*) -> $result,
            $($body)*(&mut $crate::packet::XdpPacket::new(context) $(, $argument)*)
        );
    };
    (@tc $symbol:ident($($argument:ident: $type:ty),*) -> $result:ty, $($body:tt)*) => {
        $crate::kernel::global_fn!(
            @symbol $symbol(context: *mut aya_ebpf::bindings::__sk_buff $(, $argument: $type)*) -> $result,
            $($body)*(&mut $crate::packet::SkbPacket::new(context) $(, $argument)*)
        );
    };
    // What the programs call.
    (@function ($($head:tt)*) ($($argument:ident: $type:ty),*) -> $result:ty, $call:expr) => {
        #[inline(always)]
        $($head)* -> $result {
            $(let $argument = <$type as $crate::kernel::global_fn::Number>::to_raw($argument);)*
            <$result as $crate::kernel::global_fn::Number>::from_raw($call)
        }
    };
    (
        $(#[$doc:meta])*
        $vis:vis fn $name:ident<$p:ident: Packet, $f:ident: $bound:ident>(
            $packet:ident: $access:ty $(, $argument:ident: $type:ty)*
        ) -> $result:ty = $body:ident => $xdp_v4:ident | $xdp_v6:ident | $tc_v4:ident | $tc_v6:ident
    ) => {
        $crate::kernel::global_fn!(@xdp $xdp_v4($($argument: $type),*) -> $result, $body::<_, lb_common::address::V4>);
        $crate::kernel::global_fn!(@xdp $xdp_v6($($argument: $type),*) -> $result, $body::<_, lb_common::address::V6>);
        $crate::kernel::global_fn!(@tc $tc_v4($($argument: $type),*) -> $result, $body::<_, lb_common::address::V4>);
        $crate::kernel::global_fn!(@tc $tc_v6($($argument: $type),*) -> $result, $body::<_, lb_common::address::V6>);
        $crate::kernel::global_fn!(
            @function ($(#[$doc])* $vis fn $name<$p: Packet, $f: $bound>($packet: $access $(, $argument: $type)*))
            ($($argument: $type),*) -> $result,
            match ($p::IS_XDP, $f::IS_V4) {
                (true, true) => $xdp_v4($packet.context().cast() $(, $argument)*),
                (true, false) => $xdp_v6($packet.context().cast() $(, $argument)*),
                (false, true) => $tc_v4($packet.context().cast() $(, $argument)*),
                (false, false) => $tc_v6($packet.context().cast() $(, $argument)*),
            }
        );
    };
    (
        $(#[$doc:meta])*
        $vis:vis fn $name:ident<$p:ident: Packet>($packet:ident: $access:ty $(, $argument:ident: $type:ty)*)
        -> $result:ty = $body:ident => $xdp:ident | $tc:ident
    ) => {
        $crate::kernel::global_fn!(@xdp $xdp($($argument: $type),*) -> $result, $body);
        $crate::kernel::global_fn!(@tc $tc($($argument: $type),*) -> $result, $body);
        $crate::kernel::global_fn!(
            @function ($(#[$doc])* $vis fn $name<$p: Packet>($packet: $access $(, $argument: $type)*))
            ($($argument: $type),*) -> $result,
            if $p::IS_XDP {
                $xdp($packet.context().cast() $(, $argument)*)
            } else {
                $tc($packet.context().cast() $(, $argument)*)
            }
        );
    };
    (
        $(#[$doc:meta])*
        $vis:vis fn $name:ident<$f:ident: $bound:ident>($($argument:ident: $type:ty),*)
        -> $result:ty = $body:ident => $v4:ident | $v6:ident
    ) => {
        $crate::kernel::global_fn!(
            @symbol $v4($($argument: $type),*) -> $result, $body::<lb_common::address::V4>($($argument),*)
        );
        $crate::kernel::global_fn!(
            @symbol $v6($($argument: $type),*) -> $result, $body::<lb_common::address::V6>($($argument),*)
        );
        $crate::kernel::global_fn!(
            @function ($(#[$doc])* $vis fn $name<$f: $bound>($($argument: $type),*))
            ($($argument: $type),*) -> $result,
            if $f::IS_V4 { $v4($($argument),*) } else { $v6($($argument),*) }
        );
    };
    (
        $(#[$doc:meta])*
        $vis:vis fn $name:ident($($argument:ident: $type:ty),*) -> $result:ty = $body:path => $symbol:ident
    ) => {
        $crate::kernel::global_fn!(@symbol $symbol($($argument: $type),*) -> $result, $body($($argument),*));
        $crate::kernel::global_fn!(
            @function ($(#[$doc])* $vis fn $name($($argument: $type),*)) ($($argument: $type),*) -> $result,
            $symbol($($argument),*)
        );
    };
}
pub(crate) use global_fn;

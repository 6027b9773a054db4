// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Where a flow is in its life, as conntrack would say: pending, established, closing. And which packets move it on.
//!
//! A handshake is not a connection: TCP and SCTP are *half-open* until the client acknowledges what the backend has sent, so that
//! neither a flood of SYNs nor forged ACKs make anything that lasts. FIN and RST count only where their sequence numbers can be right.

use bytemuck::{Pod, Zeroable};

use super::{Direction, protocol, tcp_flags};

/// Where a flow is in its life. A newtype and not an enum: it stands in a map value, where any byte may be read.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct FlowState(u8);

impl FlowState {
    /// TCP, SCTP: pending, as the client has not acknowledged an answer of the backend yet.
    pub const HALF_OPEN: Self = Self(0);
    /// TCP, SCTP: the client has acknowledged.
    pub const ESTABLISHED: Self = Self(1);
    /// TCP: the client has sent its FIN.
    pub const FIN_ORIGINAL: Self = Self(2);
    /// TCP: the backend has sent its FIN.
    pub const FIN_REPLY: Self = Self(3);
    /// TCP: both FINs; SCTP: over. A SYN on this tuple is a new connection.
    pub const CLOSING: Self = Self(4);
    /// UDP: pending, no reply yet.
    pub const UNREPLIED: Self = Self(5);
    /// UDP: an exchange, a question and its answer.
    pub const REPLIED: Self = Self(6);
    /// TCP: an RST, which may be one that its receiver ignores: it may be late. A SYN is a new connection, but any other segment
    /// shows that the old one goes on.
    pub const RESET: Self = Self(7);
    /// UDP: a stream, both ways and for longer than [`STREAM_SECS`].
    pub const STREAM: Self = Self(8);
    /// Number of states, and of time-outs in the configuration.
    pub const COUNT: usize = 9;

    /// As a plain number.
    #[inline(always)]
    #[must_use]
    pub const fn to_bits(self) -> u8 {
        self.0
    }

    /// From [`FlowState::to_bits`].
    #[inline(always)]
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// The state of a new flow. A segment in mid-connection begins a pending flow, too: it may be forged.
    #[inline(always)]
    #[must_use]
    pub const fn first(protocol: u8, flags: u8) -> Self {
        if protocol == protocol::UDP {
            Self::UNREPLIED
        } else if flags & tcp_flags::RST != 0 {
            Self::CLOSING
        } else {
            Self::HALF_OPEN
        }
    }

    /// The state after an event.
    ///
    /// ```text
    ///  HALF_OPEN --Confirmed--> ESTABLISHED --Fin--> FIN_ORIGINAL | FIN_REPLY --other Fin--> CLOSING
    ///  UNREPLIED --Replied--> REPLIED --Lasting--> STREAM
    ///  any TCP state but CLOSING --Reset--> RESET --GoesOn--> ESTABLISHED;  SCTP: --End--> CLOSING
    /// ```
    #[inline(always)]
    #[must_use]
    pub const fn after(self, event: Event) -> Self {
        match event {
            Event::None => self,
            Event::Confirmed => match self {
                Self::HALF_OPEN => Self::ESTABLISHED,
                other => other,
            },
            Event::GoesOn => match self {
                Self::RESET => Self::ESTABLISHED,
                other => other,
            },
            Event::FinOriginal => match self {
                Self::CLOSING | Self::FIN_REPLY => Self::CLOSING,
                _ => Self::FIN_ORIGINAL,
            },
            Event::FinReply => match self {
                Self::CLOSING | Self::FIN_ORIGINAL => Self::CLOSING,
                _ => Self::FIN_REPLY,
            },
            Event::Reset => match self {
                Self::CLOSING => Self::CLOSING,
                _ => Self::RESET,
            },
            Event::End => Self::CLOSING,
            Event::Replied => match self {
                Self::UNREPLIED => Self::REPLIED,
                other => other,
            },
            Event::Lasting => match self {
                Self::REPLIED => Self::STREAM,
                other => other,
            },
        }
    }

    /// Whether a SYN begins another connection.
    #[inline(always)]
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::CLOSING | Self::RESET)
    }

    /// Whether nobody has shown yet that there are two ends: such a flow yields its place and its port.
    #[inline(always)]
    #[must_use]
    pub const fn is_pending(self) -> bool {
        matches!(self, Self::HALF_OPEN | Self::UNREPLIED)
    }

    /// Whether the flow counts as an active connection, as `ipvsadm` has it; the others are inactive.
    #[inline(always)]
    #[must_use]
    pub const fn is_active(self) -> bool {
        matches!(self, Self::ESTABLISHED | Self::STREAM | Self::REPLIED)
    }

    /// Index into [`crate::config::Config::timeouts`]; always below [`FlowState::COUNT`].
    #[inline(always)]
    #[must_use]
    pub const fn index(self) -> usize {
        let index = self.0 as usize;
        if index < Self::COUNT { index } else { 0 }
    }

    /// The name that `get flows` shows.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::HALF_OPEN => "half-open",
            Self::ESTABLISHED => "established",
            Self::FIN_ORIGINAL => "fin-original",
            Self::FIN_REPLY => "fin-reply",
            Self::CLOSING => "closing",
            Self::UNREPLIED => "unreplied",
            Self::REPLIED => "replied",
            Self::RESET => "reset",
            Self::STREAM => "stream",
            Self(_) => "invalid",
        }
    }
}

/// Age in seconds from which on UDP both ways is a stream, as in the kernel's conntrack.
pub const STREAM_SECS: u32 = 2;

/// What a packet means to its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Event {
    /// Nothing new.
    None = 0,
    /// The client acknowledges what the backend has sent.
    Confirmed,
    /// A segment on a connection that an RST should have ended.
    GoesOn,
    /// The client's FIN.
    FinOriginal,
    /// The backend's FIN.
    FinReply,
    /// An RST of either end.
    Reset,
    /// SCTP's end, which bears the association's secret tag.
    End,
    /// UDP: the backend answers.
    Replied,
    /// UDP: both ways, for a while.
    Lasting,
}

impl Event {
    /// From its number.
    #[inline(always)]
    #[must_use]
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Confirmed,
            2 => Self::GoesOn,
            3 => Self::FinOriginal,
            4 => Self::FinReply,
            5 => Self::Reset,
            6 => Self::End,
            7 => Self::Replied,
            8 => Self::Lasting,
            _ => Self::None,
        }
    }
}

/// What is seen of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Which way it goes.
    pub direction: Direction,
    /// IP protocol number.
    pub protocol: u8,
    /// TCP's flags, or those that mean the same for SCTP ([`super::sctp_chunk::flags`]); UDP has none.
    pub flags: u8,
    /// TCP's sequence number, host byte order.
    pub sequence: u32,
    /// TCP's acknowledgement number, host byte order.
    pub acknowledgement: u32,
}

/// What the flow knows of both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its state.
    pub state: FlowState,
    /// Whether the backend has answered.
    pub is_answered: bool,
    /// Where in the stream of its own direction the flow was seen last: see [`super::Entry::sequence`].
    pub sequence: u32,
    /// The same of the other direction.
    pub peer_sequence: u32,
    /// Whether UDP both ways has lasted for [`STREAM_SECS`].
    pub is_lasting: bool,
    /// Whether the flow was picked up in mid-connection.
    pub is_picked_up: bool,
}

/// How far behind what was seen last a FIN or RST may be: what was sent again.
const BEHIND: u32 = 1 << 17;
/// How far ahead: what was not seen, because it took another way or was noted down later ([`SEQUENCE_STEP`]).
const AHEAD: u32 = 1 << 20;
/// How far ahead an acknowledgement may be of the backend's first answer: an initial window, as data may follow before the ACK.
const FIRST_WINDOW: u32 = 1 << 17;

/// Bytes after which a flow's place in its stream is noted down anew; so packets of small exchanges write nothing.
const SEQUENCE_STEP: u32 = 1 << 16;
/// The longest step that is believed. More than what is under way at once, and a forged number has a chance of 1 in 256.
const LONGEST_STEP: u32 = 1 << 24;

/// Whether a flow's place in its stream is to be noted down anew; 0 is a place that is not known.
#[inline(always)]
#[must_use]
pub const fn is_step(sequence: u32, seen_last: u32) -> bool {
    seen_last == 0 || sequence.wrapping_sub(seen_last).wrapping_sub(SEQUENCE_STEP) < LONGEST_STEP - SEQUENCE_STEP
}

/// Whether a sequence number can be right. A forged one is with a chance of 1 in 3,640. Any is where nothing was seen: 0.
#[inline(always)]
const fn is_plausible(sequence: u32, seen_last: u32) -> bool {
    seen_last == 0 || sequence.wrapping_sub(seen_last).wrapping_add(BEHIND) < BEHIND + AHEAD
}

/// What a packet means to its flow.
#[inline(always)]
#[must_use]
pub const fn event(seen: Seen, known: Known) -> Event {
    let is_original = matches!(seen.direction, Direction::Original);
    if seen.protocol == protocol::UDP {
        return match known.state {
            FlowState::UNREPLIED if !is_original => Event::Replied,
            FlowState::REPLIED if known.is_lasting => Event::Lasting,
            _ => Event::None,
        };
    }
    let is_tcp = seen.protocol == protocol::TCP;
    if seen.flags & tcp_flags::RST != 0 {
        if !is_tcp {
            return Event::End;
        }
        // A refusal of a SYN has the sequence number 0 (RFC 9293 section 3.10.7.1), and nothing to lose by it.
        let is_refusal = matches!(known.state, FlowState::HALF_OPEN) && !is_original && !known.is_answered;
        return if is_refusal || is_plausible(seen.sequence, known.sequence) { Event::Reset } else { Event::None };
    }
    if seen.flags & tcp_flags::SYN != 0 {
        return Event::None;
    }
    let is_pending = matches!(known.state, FlowState::HALF_OPEN);
    if is_pending && !(is_original && known.is_answered && is_right_answer(seen, known)) {
        return Event::None;
    }
    if seen.flags & tcp_flags::FIN != 0 {
        return match (is_plausible(seen.sequence, known.sequence), is_original) {
            (false, _) => Event::None,
            (true, true) => Event::FinOriginal,
            (true, false) => Event::FinReply,
        };
    }
    match known.state {
        FlowState::HALF_OPEN => Event::Confirmed,
        FlowState::RESET => Event::GoesOn,
        _ => Event::None,
    }
}

/// Whether a client's packet shows that it has got the backend's answer. To a forged segment in mid-connection no backend gives any
/// but an RST, which is none; a forged SYN it does answer, but the forger does not see with which number.
#[inline(always)]
const fn is_right_answer(seen: Seen, known: Known) -> bool {
    known.is_picked_up
        || seen.protocol != protocol::TCP
        || is_first_acknowledgement(seen.acknowledgement, known.peer_sequence)
}

/// Whether the client acknowledges the backend's first answer, or what came soon after it.
#[inline(always)]
const fn is_first_acknowledgement(acknowledgement: u32, answered: u32) -> bool {
    acknowledgement.wrapping_sub(answered) < FIRST_WINDOW
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::flow::sctp_chunk;

    const ISN: u32 = 0xffff_ff00;

    fn seen(direction: Direction, flags: u8, sequence: u32, acknowledgement: u32) -> Seen {
        Seen { direction, protocol: protocol::TCP, flags, sequence, acknowledgement }
    }

    fn known(state: FlowState) -> Known {
        Known {
            state,
            is_answered: true,
            sequence: 1_000,
            peer_sequence: ISN.wrapping_add(1),
            is_lasting: false,
            is_picked_up: false,
        }
    }

    #[test]
    fn only_the_right_acknowledgement_makes_a_connection() {
        use Direction::{Original, Reply};
        let half_open = known(FlowState::HALF_OPEN);
        for (packet, expected) in [
            (seen(Original, tcp_flags::ACK, 1_000, ISN.wrapping_add(1)), Event::Confirmed),
            // The first ACK was lost; the backend has spoken first.
            (seen(Original, tcp_flags::ACK, 1_000, ISN.wrapping_add(14_601)), Event::Confirmed),
            (seen(Original, tcp_flags::ACK, 1_000, ISN), Event::None),
            (seen(Original, tcp_flags::ACK, 1_000, 77), Event::Confirmed),
            (seen(Original, tcp_flags::ACK, 1_000, 0x8000_0000), Event::None),
            (seen(Original, tcp_flags::SYN, 999, 0), Event::None),
            (seen(Reply, tcp_flags::ACK, ISN, 1_000), Event::None),
        ] {
            assert_eq!(event(packet, half_open), expected, "{packet:?}");
        }
        let right = seen(Original, tcp_flags::ACK, 1_000, ISN.wrapping_add(1));
        assert_eq!(event(right, Known { is_answered: false, ..half_open }), Event::None);
        // The bare ACK was lost, and the last data follows.
        assert_eq!(event(Seen { flags: tcp_flags::ACK | tcp_flags::FIN, ..right }, half_open), Event::FinOriginal);
        let picked_up = Known { is_picked_up: true, ..half_open };
        let later = seen(Original, tcp_flags::ACK, 1_000, 0x8000_0000);
        assert_eq!(event(later, picked_up), Event::Confirmed);
        assert_eq!(event(later, Known { is_answered: false, ..picked_up }), Event::None);
    }

    #[test]
    fn a_place_in_the_stream_moves_ahead_by_steps() {
        for (sequence, seen_last, expected) in [
            (5, 0, true),
            (1_000, 1_000, false),
            (1_000 + SEQUENCE_STEP - 1, 1_000, false),
            (1_000 + SEQUENCE_STEP, 1_000, true),
            (1_000 + LONGEST_STEP - 1, 1_000, true),
            (1_000 + LONGEST_STEP, 1_000, false),
            (999, 1_000, false),
            (SEQUENCE_STEP - 10, u32::MAX - 5, false),
            (SEQUENCE_STEP, u32::MAX - 5, true),
        ] {
            assert_eq!(is_step(sequence, seen_last), expected, "{sequence} after {seen_last}");
        }
    }

    #[test]
    fn forged_fin_and_rst_end_nothing() {
        use Direction::Original;
        let open = known(FlowState::ESTABLISHED);
        for flags in [tcp_flags::FIN | tcp_flags::ACK, tcp_flags::RST] {
            let right = if flags & tcp_flags::RST != 0 { Event::Reset } else { Event::FinOriginal };
            for (sequence, expected) in [
                (1_000, right),
                (1_000_u32.wrapping_sub(BEHIND), right),
                (1_000 + AHEAD - 1, right),
                (1_000 + AHEAD, Event::None),
                (0x8000_0000, Event::None),
                (1_000_u32.wrapping_sub(BEHIND + 1), Event::None),
            ] {
                assert_eq!(event(seen(Original, flags, sequence, 0), open), expected, "{sequence}");
            }
        }
    }

    #[test]
    fn a_refused_syn_is_over_whatever_its_sequence_number() {
        let pending = Known { is_answered: false, ..known(FlowState::HALF_OPEN) };
        let refusal = seen(Direction::Reply, tcp_flags::RST | tcp_flags::ACK, 0, 1_000);
        assert_eq!(event(refusal, Known { sequence: 0x7000_0000, ..pending }), Event::Reset);
    }

    proptest! {
        /// Two CPUs may see both FINs in any order (review A16).
        #[test]
        fn events_of_both_ends_commute(bits in 0..9_u8) {
            let state = FlowState::from_bits(bits);
            let one = state.after(Event::FinOriginal).after(Event::FinReply);
            prop_assert_eq!(one, state.after(Event::FinReply).after(Event::FinOriginal));
            prop_assert_eq!(one, FlowState::CLOSING);
        }
    }

    #[test]
    fn an_event_is_its_number() {
        for number in 0..9 {
            assert_eq!(Event::from_number(number) as u32, number);
        }
    }

    #[test]
    fn an_sctp_association_has_no_halves() {
        use Direction::{Original, Reply};
        use sctp_chunk::flags;
        let mut flow = Known { is_answered: false, ..known(FlowState::HALF_OPEN) };
        // INIT, INIT-ACK, COOKIE-ECHO, COOKIE-ACK, SHUTDOWN, SHUTDOWN-ACK, SHUTDOWN-COMPLETE.
        for (direction, chunk, expected) in [
            (Original, 1, FlowState::HALF_OPEN),
            (Reply, 2, FlowState::HALF_OPEN),
            (Original, 10, FlowState::ESTABLISHED),
            (Reply, 11, FlowState::ESTABLISHED),
            (Original, 7, FlowState::ESTABLISHED),
            (Reply, 8, FlowState::ESTABLISHED),
            (Original, 14, FlowState::CLOSING),
        ] {
            let packet = Seen { protocol: protocol::SCTP, ..seen(direction, flags(chunk), 0, 0) };
            flow.state = flow.state.after(event(packet, flow));
            flow.is_answered |= direction == Reply;
            assert_eq!(flow.state, expected);
        }
    }

    #[test]
    fn udp_is_an_exchange_and_then_a_stream() {
        let packet = |direction| Seen { protocol: protocol::UDP, ..seen(direction, 0, 0, 0) };
        let mut flow = known(FlowState::UNREPLIED);
        let mut step = |direction, is_lasting| {
            flow.is_lasting = is_lasting;
            flow.state = flow.state.after(event(packet(direction), flow));
            flow.state
        };
        assert_eq!(step(Direction::Original, false), FlowState::UNREPLIED);
        // One way, however long, is no stream.
        assert_eq!(step(Direction::Original, true), FlowState::UNREPLIED);
        assert_eq!(step(Direction::Reply, false), FlowState::REPLIED);
        assert_eq!(step(Direction::Original, false), FlowState::REPLIED);
        assert_eq!(step(Direction::Original, true), FlowState::STREAM);
    }
}

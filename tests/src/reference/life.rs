// SPDX-License-Identifier: MIT OR Apache-2.0
//! How a connection lives and ends: what a packet shows of it, and what that makes of its state.

use lb_common::flow::{FlowState, protocol, tcp_flags};

/// What can be seen of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signs {
    /// TCP's flags, or those that mean the same for SCTP; 0 for UDP.
    pub flags: u8,
    /// TCP's sequence number; that of a SYN counts for one.
    pub sequence: u32,
    /// TCP's acknowledgement number.
    pub acknowledgement: u32,
}

impl Signs {
    pub(super) const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Whether it is the first packet of a connection.
    pub(super) const fn is_opening(&self) -> bool {
        self.has(tcp_flags::SYN) && !self.has(tcp_flags::ACK)
    }
}

/// What a flow knows of its ends when a packet of one of them comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// The packet is the backend's.
    pub is_reply: bool,
    /// The backend has answered before.
    pub is_answered: bool,
    /// The connection was met in its midst.
    pub is_picked_up: bool,
    /// Where the sender is in its stream.
    pub own_sequence: u32,
    /// Where the receiver is in its own.
    pub peer_sequence: u32,
    /// The flow is two seconds old, and this is its direction's first packet in a tick.
    pub is_lasting: bool,
}

/// What a packet shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// The client has got the backend's answer.
    Confirmed,
    /// There is life after an RST.
    GoesOn,
    /// One side has said all.
    Fin {
        /// The backend has.
        by_backend: bool,
    },
    /// An RST, which may be one that its receiver ignores.
    Reset,
    /// The end of an SCTP association.
    End,
    /// UDP: an answer.
    Replied,
    /// UDP: more than a question and an answer.
    Lasting,
}

/// Whether a connection is over, as far as it can be told.
pub(super) const fn is_over(state: FlowState) -> bool {
    matches!(state, FlowState::CLOSING | FlowState::RESET)
}

/// The state that a flow starts in.
#[must_use]
pub fn first_state(protocol: u8, flags: u8) -> FlowState {
    if protocol == protocol::UDP {
        FlowState::UNREPLIED
    } else if flags & tcp_flags::RST != 0 {
        FlowState::CLOSING
    } else {
        FlowState::HALF_OPEN
    }
}

impl Meaning {
    /// What it makes of a state.
    #[must_use]
    pub fn after(self, state: FlowState) -> FlowState {
        let from = |before, after| if state == before { after } else { state };
        match self {
            Self::Confirmed => from(FlowState::HALF_OPEN, FlowState::ESTABLISHED),
            Self::GoesOn => from(FlowState::RESET, FlowState::ESTABLISHED),
            Self::Replied => from(FlowState::UNREPLIED, FlowState::REPLIED),
            Self::Lasting => from(FlowState::REPLIED, FlowState::STREAM),
            Self::End => FlowState::CLOSING,
            _ if state == FlowState::CLOSING => FlowState::CLOSING,
            Self::Reset => FlowState::RESET,
            Self::Fin { by_backend: true } if state == FlowState::FIN_ORIGINAL => FlowState::CLOSING,
            Self::Fin { by_backend: false } if state == FlowState::FIN_REPLY => FlowState::CLOSING,
            Self::Fin { by_backend: true } => FlowState::FIN_REPLY,
            Self::Fin { by_backend: false } => FlowState::FIN_ORIGINAL,
        }
    }
}

/// Whether a packet is asked for its meaning at all. Most are not.
pub(super) fn may_mean_something(state: FlowState, protocol: u8, ends: &Ends, signs: &Signs) -> bool {
    if protocol == protocol::UDP {
        return state == FlowState::UNREPLIED && ends.is_reply || state == FlowState::REPLIED && ends.is_lasting;
    }
    let is_event = [tcp_flags::SYN, tcp_flags::FIN, tcp_flags::RST].iter().any(|&flag| signs.has(flag));
    is_event || state == FlowState::HALF_OPEN || state == FlowState::RESET
}

/// What a packet shows of a flow in a state, if anything.
#[must_use]
pub fn meaning(state: FlowState, protocol: u8, ends: &Ends, signs: &Signs) -> Option<Meaning> {
    if protocol == protocol::UDP {
        return match state {
            FlowState::UNREPLIED if ends.is_reply => Some(Meaning::Replied),
            FlowState::REPLIED if ends.is_lasting => Some(Meaning::Lasting),
            _ => None,
        };
    }
    // 128 KiB back, what is sent again; a mebibyte ahead, what was not seen. Of 0, nothing was seen yet.
    let is_credible = i64::from(signs.sequence.wrapping_sub(ends.own_sequence).cast_signed());
    let is_credible = ends.own_sequence == 0 || (-(128 << 10)..1 << 20).contains(&is_credible);
    let is_half_open = state == FlowState::HALF_OPEN;
    if signs.has(tcp_flags::RST) {
        // Whoever refuses a SYN has no sequence number yet.
        let is_refusal = is_half_open && ends.is_reply && !ends.is_answered;
        return match protocol {
            protocol::TCP => (is_refusal || is_credible).then_some(Meaning::Reset),
            _ => Some(Meaning::End),
        };
    }
    if signs.has(tcp_flags::SYN) {
        return None;
    }
    if is_half_open {
        let is_asked = protocol == protocol::TCP && !ends.is_picked_up;
        let acknowledges = signs.acknowledgement.wrapping_sub(ends.peer_sequence) < 128 << 10;
        let is_next_word = !ends.is_reply && ends.is_answered && (acknowledges || !is_asked);
        if !is_next_word {
            return None;
        }
    }
    if signs.has(tcp_flags::FIN) {
        return is_credible.then_some(Meaning::Fin { by_backend: ends.is_reply });
    }
    match state {
        FlowState::HALF_OPEN => Some(Meaning::Confirmed),
        FlowState::RESET => Some(Meaning::GoesOn),
        _ => None,
    }
}

/// Whether a place in a stream is noted down anew: in steps of 64 KiB, up to 16 MiB.
pub(super) const fn is_step(sequence: u32, noted: u32) -> bool {
    let ahead = sequence.wrapping_sub(noted);
    noted == 0 || ahead >= 64 << 10 && ahead < 16 << 20
}

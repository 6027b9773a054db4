// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can go wrong with one request.

use std::time::Duration;

use super::wire::Manner;

/// What a request wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// All objects, or a page of them.
    List,
    /// What changes.
    Watch,
    /// One object, by its name.
    Get,
    /// To replace one object.
    Update,
}

/// A misfortune.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This HTTP status, with an explanation.
    Status(u16),
    /// Status 200, and then 410 in the stream of a watch.
    GoneInStream,
    /// No answer: the connection is closed.
    HangUp,
    /// The beginning of an answer, and then nothing, on a connection that stays open.
    Stall,
    /// The connection breaks after so many bytes of the body.
    BreakAfter(usize),
    /// Pieces of so many bytes with so much time between them.
    Dribble(usize, Duration),
}

impl Fault {
    /// How the answer leaves, if there is one.
    pub(super) fn manner(self) -> Manner {
        match self {
            Self::BreakAfter(bytes) => Manner { breaks_after: Some(bytes), ..Manner::default() },
            Self::Dribble(bytes, pause) => Manner { pieces: Some((bytes, pause)), ..Manner::default() },
            Self::Status(_) | Self::GoneInStream | Self::HangUp | Self::Stall => Manner::default(),
        }
    }
}

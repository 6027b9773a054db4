// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why a list or a watch does not go on, and what that means for the next attempt.

use std::{error::Error, time::Duration};

use kube::runtime::watcher;

use super::LONGEST_PAUSE;

/// HTTP 400: among other things, the server does not know the field by which we select, which its message names.
pub(super) const BAD_REQUEST: u16 = 400;
/// HTTP 410: the server has forgotten the version from which we wanted to go on.
pub(super) const GONE: u16 = 410;
/// HTTP 409: somebody has changed the object since it was read.
pub(super) const CONFLICT: u16 = 409;
/// HTTP 404: the server does not know the kind.
pub(super) const NOT_FOUND: u16 = 404;
/// HTTP 403: it does not let us see it.
pub(super) const FORBIDDEN: u16 = 403;
/// HTTP 422: it does not understand what is asked for.
pub(super) const UNPROCESSABLE: u16 = 422;
/// HTTP 429: it has too much to do.
pub(super) const TOO_MANY_REQUESTS: u16 = 429;

/// The longest pause in a fresh outage after an attempt that has cost the server nothing: one that is restarted is followed
/// within three seconds after it answers again.
const LONGEST_CHEAP_PAUSE: Duration = Duration::from_secs(2);

/// Why there is no next event.
pub(super) enum Failure {
    Watcher(watcher::Error),
    /// A list that doesn't go on, for as long.
    Silence(Duration),
    /// The stream is over before its time.
    End,
}

impl Failure {
    /// Whether the next thing to ask for is a list, or should be: by another watcher, since this one would ask for it as it did the first
    /// time, or, at 410 as the answer to its request, for the same version again, which has been forgotten.
    pub(super) fn begins_anew(&self) -> bool {
        match self {
            Self::Watcher(watcher::Error::NoResourceVersion) | Self::Silence(_) | Self::End => true,
            Self::Watcher(_) => self.status() == Some(GONE),
        }
    }

    /// Whether what the server has begun came to no end.
    pub(super) fn is_endless(&self) -> bool {
        matches!(self, Self::Silence(_) | Self::End)
    }

    /// The longest pause before the next attempt.
    pub(super) fn longest_pause(&self, is_fresh: bool) -> Duration {
        // No answer, or one that is made before anything is looked up. (A server that is being started forbids all until it
        // has read the roles.)
        let is_cheap = match self.status() {
            None => !matches!(self, Self::Silence(_)),
            Some(status) => matches!(status, FORBIDDEN | NOT_FOUND | GONE),
        };
        if is_cheap && is_fresh { LONGEST_CHEAP_PAUSE } else { LONGEST_PAUSE }
    }

    /// What can be done about it. `origin` is where the credentials are from.
    pub(super) fn remedy(&self, kind: &str, origin: &str) -> String {
        match self.status() {
            Some(401) => format!("renew the credentials in {origin}"),
            Some(FORBIDDEN) => format!("allow the user of {origin} to list and watch {kind}"),
            Some(TOO_MANY_REQUESTS) => {
                "see what overloads the server (`kubectl get --raw /debug/api_priority_and_fairness/dump_priority_levels`)"
                    .to_owned()
            }
            Some(500..) => "see the server's log".to_owned(),
            _ => format!("make sure that this node reaches it, or correct {origin}"),
        }
    }

    /// The server's HTTP status, if it answered at all.
    pub(super) fn status(&self) -> Option<u16> {
        match self {
            Self::Watcher(
                watcher::Error::InitialListFailed(kube::Error::Api(status))
                | watcher::Error::WatchStartFailed(kube::Error::Api(status))
                | watcher::Error::WatchFailed(kube::Error::Api(status))
                | watcher::Error::WatchError(status),
            ) => Some(status.code),
            Self::Watcher(_) | Self::Silence(_) | Self::End => None,
        }
    }

    /// A list that is streamed begins as a watch.
    pub(super) fn describe(&self, kind: &str, is_watching: bool) -> String {
        let act = if is_watching { "watch" } else { "list" };
        match self {
            Self::Watcher(watcher::Error::InitialListFailed(error)) => format!("can't list {kind}: {}", chain(error)),
            Self::Watcher(watcher::Error::WatchStartFailed(error) | watcher::Error::WatchFailed(error)) => {
                format!("can't {act} {kind}: {}", chain(error))
            }
            Self::Watcher(watcher::Error::WatchError(status)) => format!("can't {act} {kind}: {}", status.message),
            Self::Watcher(error @ watcher::Error::NoResourceVersion) => format!("can't {act} {kind}: {error}"),
            Self::Silence(patience) => format!("can't list {kind}: no answer within {} s", patience.as_secs()),
            Self::End => format!("can't {act} {kind}: the answer ended before its time"),
        }
    }
}

/// An error and its causes: only the last of them says `Connection refused`.
pub(super) fn chain(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return format!("{} (HTTP {})", status.message, status.code);
    }
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        cause = error.source();
    }
    text
}

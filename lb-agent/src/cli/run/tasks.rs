// SPDX-License-Identifier: MIT OR Apache-2.0
//! What runs beside the one loop for as long as the agent does. None of it may end unnoticed: an agent that lacks a part is
//! ended, so that it is started again.

use std::collections::HashMap;

use anyhow::anyhow;
use tokio::task::{Id, JoinError, JoinSet};

/// Tasks by what they do.
#[derive(Default)]
pub struct Tasks {
    running: JoinSet<()>,
    names: HashMap<Id, &'static str>,
}

impl Tasks {
    /// Starts one. `name` says what it does: "the answers of /healthz".
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let handle = self.running.spawn(task);
        self.names.insert(handle.id(), name);
    }

    /// Returns when one of them has ended, with what that means.
    pub async fn end(&mut self) -> anyhow::Error {
        let Some(ended) = self.running.join_next_with_id().await else { return std::future::pending().await };
        let (id, cause) = match ended {
            Ok((id, ())) => (id, String::new()),
            Err(error) => (error.id(), format!(" ({})", panic_text(error))),
        };
        let name = self.names.get(&id).copied().unwrap_or("a part of the agent");
        anyhow!(
            "{name} ended by itself{cause}: the agent ends, to be started again; what is in the kernel goes on forwarding"
        )
    }
}

fn panic_text(error: JoinError) -> String {
    let Ok(panic) = error.try_into_panic() else { return "cancelled".to_owned() };
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    format!("panicked: {}", text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test]
    async fn the_end_of_a_helper_is_noticed_and_named() {
        let mut tasks = Tasks::default();
        tasks.spawn("the first", pending());
        tasks.spawn("the second", async { panic!("no {}", "more") });
        let text = tasks.end().await.to_string();
        assert!(text.starts_with("the second ended by itself (panicked: no more)"), "{text}");
        tasks.spawn("the third", async {});
        let text = tasks.end().await.to_string();
        assert!(text.starts_with("the third ended by itself:"), "{text}");
    }
}

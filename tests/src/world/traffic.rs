// SPDX-License-Identifier: MIT OR Apache-2.0
//! What tests do to the web Service again and again: send load to it, and move it to other pods.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Result, ensure};

use super::{Family, World, sample, wait_until};
use crate::load::{self, Load, Source, Target};

/// Of load: threads per client, and the pause of each between requests.
const THREADS: usize = 2;
const PAUSE: Duration = Duration::from_millis(1);

impl World {
    /// That requests go through, right now.
    ///
    /// # Errors
    /// When one fails.
    pub fn serves(&self) -> Result<()> {
        let targets = Family::BOTH.map(|family| Target::Http(sample::web(family)));
        let tally = load::send(self.pod("client").namespace(), &targets, 40, &|| {})?;
        ensure!(tally.failed() == 0, "{:?}", tally.errors);
        Ok(())
    }

    /// Starts load over ClusterIP and NodePort, both families.
    ///
    /// # Errors
    /// When a namespace can't be entered.
    pub fn load_web(&self) -> Result<Load> {
        let inside = Family::BOTH.map(|family| Target::Http(sample::web(family)));
        let outside = Family::BOTH.map(|family| Target::Http(sample::web_at(self.node("node-a").address(family))));
        let sources = [
            Source { namespace: self.pod("client").namespace(), targets: inside.to_vec() },
            Source { namespace: self.outside(), targets: outside.to_vec() },
        ];
        Load::start(&sources, THREADS, PAUSE)
    }

    /// Makes these pods the endpoints of the sample's Service `web`, and waits until the packets of both nodes and families
    /// follow: just these pods answer.
    ///
    /// # Errors
    /// When they don't in time.
    pub fn route_web_to(&self, pods: &[&str]) -> Result<()> {
        // Enough to meet every backend; but where nothing serves, the first refusal says so.
        const REQUESTS: usize = 16;
        let requests = if pods.is_empty() { 1 } else { REQUESTS };
        const LIMIT: Duration = Duration::from_secs(10);
        self.set_web_endpoints(pods)?;
        let wanted: BTreeSet<&str> = pods.iter().copied().collect();
        let mut ways = Vec::new();
        for family in Family::BOTH {
            ways.push((self.pod("client").namespace(), sample::web(family)));
            ways.extend(self.nodes().map(|node| (self.outside(), sample::web_at(node.address(family)))));
        }
        for (from, to) in ways {
            wait_until(&format!("{pods:?} answering at {to}"), LIMIT, || {
                let tally = load::send(from, &[Target::Http(to)], requests, &|| {})?;
                Ok(tally.backends.keys().map(String::as_str).collect::<BTreeSet<_>>() == wanted)
            })?;
        }
        Ok(())
    }
}

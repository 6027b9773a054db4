// SPDX-License-Identifier: MIT OR Apache-2.0
//! Worlds with echo servers, and the Services that tests make of them.

use std::{collections::BTreeSet, net::SocketAddr, panic::resume_unwind, thread, time::Duration};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Echo, Family, Namespace, Options, WEB_PODS, World, objects, wait_until};
use crate::load::{
    Protocol,
    talk::{self, Outcome},
};

/// How long a change may take to reach the packets.
const LIMIT: Duration = Duration::from_secs(10);
/// Enough flows to meet each of a few servers.
const ENOUGH: usize = 24;

impl World {
    /// The world of [`World::with_agents`] with an echo server in each web pod, and agents with these flags beside the
    /// usual ones.
    ///
    /// # Errors
    /// As [`World::with_agents`].
    pub fn with_echoes(options: Options, flags: &[&str]) -> Result<Self> {
        Self::with_echoes_on(options, flags, |_| Ok(()))
    }

    /// The same, where something is changed before the agents start.
    ///
    /// # Errors
    /// As [`World::with_agents`], and when `prepare` fails.
    pub fn with_echoes_on(
        options: Options,
        flags: &[&str],
        prepare: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<Self> {
        let mut world = Self::new(options)?;
        prepare(&mut world)?;
        for (pod, ..) in WEB_PODS {
            let echo = Echo::start(world.pod(pod).namespace(), pod)?;
            world.pod_mut(pod).run(echo);
        }
        world.apply_sample()?;
        world.nodes_mut().for_each(|node| node.add_flags(flags));
        world.start_agents()?;
        Ok(world)
    }

    /// Gives objects to the agents of both nodes, in place of earlier ones of the same kind and name.
    ///
    /// # Errors
    /// When they can't be written.
    pub fn put(&self, objects: impl IntoIterator<Item = Value>) -> Result<()> {
        objects.into_iter().try_for_each(|object| self.apply(&file(&object), &format!("{object:#}\n")))
    }

    /// Takes them away.
    ///
    /// # Errors
    /// When they aren't there.
    pub fn take_away(&self, objects: impl IntoIterator<Item = Value>) -> Result<()> {
        let mut objects = objects.into_iter();
        objects.try_for_each(|object| self.nodes.iter().try_for_each(|node| node.unapply(&file(&object))))
    }

    /// The slices of a Service of echo servers that run in these pods.
    #[must_use]
    pub fn slices(&self, service: &str, pods: &[&str]) -> [Value; 2] {
        let pods: Vec<_> = pods.iter().map(|pod| (*pod, json!({}))).collect();
        self.patched_slices(service, &pods)
    }

    /// The same, each pod's endpoint changed by a patch.
    #[must_use]
    pub fn patched_slices(&self, service: &str, pods: &[(&str, Value)]) -> [Value; 2] {
        let pods: Vec<_> = pods.iter().map(|(pod, patch)| (self.pod(pod), patch.clone())).collect();
        objects::slices(service, &pods)
    }
}

/// The file of an object in a directory of manifests.
fn file(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_lowercase();
    format!("{}-{}.yaml", text(&object["kind"]), text(&object["metadata"]["name"]))
}

/// TCP and UDP, over each family.
pub fn kinds() -> impl Iterator<Item = (Protocol, Family)> {
    Protocol::BOTH.into_iter().flat_map(|protocol| Family::BOTH.map(|family| (protocol, family)))
}

/// Does something for each of them, all at the same time: most of it is waiting.
///
/// # Errors
/// That of one of them.
///
/// # Panics
/// When `body` does.
pub fn for_each_kind(body: impl Fn(Protocol, Family) -> Result<()> + Sync) -> Result<()> {
    thread::scope(|scope| {
        let body = &body;
        let start = |(protocol, family)| {
            scope.spawn(move || body(protocol, family).with_context(|| format!("{protocol:?} {family:?}")))
        };
        let threads: Vec<_> = kinds().map(start).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

/// Waits until new flows are answered by just these servers.
///
/// # Errors
/// When they aren't in time.
pub fn wait_to_meet(from: &Namespace, protocol: Protocol, to: SocketAddr, servers: &[&str]) -> Result<()> {
    let wanted: BTreeSet<&str> = servers.iter().copied().collect();
    let mut seen = String::new();
    let outcome = wait_until(&format!("{servers:?} answering {protocol:?} at {to}"), LIMIT, || {
        // Before there is a Service its packets may get nowhere: no long wait for an answer to those.
        let met = talk::meet_within(talk::patience(protocol, to), from, protocol, to, ENOUGH);
        seen = format!("{met:?}");
        Ok(met.is_ok_and(|met| met.keys().map(String::as_str).collect::<BTreeSet<_>>() == wanted))
    });
    outcome.map_err(|error| error.context(seen))
}

/// Waits until this becomes of new flows.
///
/// # Errors
/// When it doesn't in time.
pub fn wait_for(from: &Namespace, protocol: Protocol, to: SocketAddr, wanted: &Outcome) -> Result<()> {
    let mut seen = String::new();
    let outcome = wait_until(&format!("{wanted:?} by {protocol:?} at {to}"), LIMIT, || {
        let outcome = talk::attempt(from, protocol, to);
        seen = format!("{outcome:?}");
        Ok(outcome.is_ok_and(|outcome| outcome == *wanted))
    });
    outcome.map_err(|error| error.context(seen))
}

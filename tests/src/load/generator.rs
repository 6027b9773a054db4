// SPDX-License-Identifier: MIT OR Apache-2.0
//! Threads that send requests from inside namespaces: a given number of them, or for as long as something else goes on.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{Tally, dns, http};
use crate::world::{Namespace, check_interrupt};

/// No answer within this is a failure: several times what TCP needs to send a lost first packet again.
const LIMIT: Duration = Duration::from_secs(5);
/// The same for a DNS query, which nobody sends again.
const DNS_LIMIT: Duration = Duration::from_secs(5);
/// Threads that share a given number of requests.
const THREADS: usize = 4;
/// After so many failures of one thread the rest would fail too, each after its time-out.
const MAX_FAILURES: u64 = 5;

/// What to ask of whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `GET /`; the answer names the backend.
    Http(SocketAddr),
    /// A query by UDP. The answer does not name the backend: this is its name.
    Dns(SocketAddr, String),
}

impl Target {
    /// One request on a flow of its own. Returns the backend's name.
    fn request(&self, number: usize) -> io::Result<String> {
        match self {
            Self::Http(address) => {
                let response = http::get(*address, "/", LIMIT)?;
                let server = response.server().map(str::to_owned);
                server.filter(|_| response.status == 200).ok_or_else(|| {
                    io::Error::other(format!("HTTP status {}, {} bytes", response.status, response.body.len()))
                })
            }
            Self::Dns(address, backend) => {
                dns::query(*address, number as u16, DNS_LIMIT)?;
                Ok(backend.clone())
            }
        }
    }

    fn record(&self, number: usize, tally: &mut Tally) {
        let start = Instant::now();
        let outcome = self.request(number);
        tally.record(outcome, start.elapsed());
    }
}

/// Sends `count` requests from inside `namespace`, to the targets in turn, or fewer where nearly all fail. Calls `done`
/// after each.
///
/// # Errors
/// When the namespace can't be entered, or on Ctrl-C. A request that fails is no error: it is counted.
///
/// # Panics
/// When `done` does.
pub fn send(namespace: &Namespace, targets: &[Target], count: usize, done: &(dyn Fn() + Sync)) -> Result<Tally> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<Tally> {
        namespace.enter_thread()?;
        let mut tally = Tally::default();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count || tally.failed() >= MAX_FAILURES {
                return Ok(tally);
            }
            check_interrupt()?;
            targets[number % targets.len()].record(number, &mut tally);
            done();
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        let mut sum = Tally::default();
        for worker in workers {
            sum.merge(&worker.join().expect("a worker does not panic")?);
        }
        Ok(sum)
    })
}

/// Where load comes from and goes to.
pub struct Source<'a> {
    /// Where the requests are sent.
    pub namespace: &'a Namespace,
    /// To whom, in turn.
    pub targets: Vec<Target>,
}

/// Load under way. Its time is cut into phases, so that "before" and "after" can be told apart.
pub struct Load {
    control: Arc<Control>,
    workers: Vec<JoinHandle<Vec<Tally>>>,
}

#[derive(Default)]
struct Control {
    stop: AtomicBool,
    phase: AtomicUsize,
    done: AtomicUsize,
}

impl Load {
    /// Starts `threads` threads per source, each of which sends a request, waits for its end, pauses, and so on.
    ///
    /// # Errors
    /// When a namespace can't be entered.
    pub fn start(sources: &[Source<'_>], threads: usize, pause: Duration) -> Result<Self> {
        let mut load = Self { control: Arc::default(), workers: Vec::new() };
        for source in sources {
            for offset in 0..threads {
                let (targets, control) = (source.targets.clone(), Arc::clone(&load.control));
                let worker = source.namespace.enter(move || {
                    // Threads inherit the namespace of the one that starts them.
                    thread::spawn(move || work(&targets, offset, pause, &control))
                });
                load.workers.push(worker.context("can't start load")?);
            }
        }
        Ok(load)
    }

    /// Requests that start from now on count for the next phase.
    pub fn next_phase(&self) {
        self.control.phase.fetch_add(1, Ordering::Relaxed);
    }

    /// How many requests have ended.
    #[must_use]
    pub fn done(&self) -> usize {
        self.control.done.load(Ordering::Relaxed)
    }

    /// Ends the load; returns a tally per phase.
    ///
    /// # Panics
    /// When a worker has panicked.
    #[must_use]
    pub fn finish(mut self) -> Vec<Tally> {
        self.control.stop.store(true, Ordering::Relaxed);
        let mut phases = vec![Tally::default(); self.control.phase.load(Ordering::Relaxed) + 1];
        for worker in self.workers.drain(..) {
            let tallies = worker.join().expect("a worker does not panic");
            phases.iter_mut().zip(&tallies).for_each(|(sum, tally)| sum.merge(tally));
        }
        phases
    }
}

impl Drop for Load {
    /// Load that nobody finishes ends by itself.
    fn drop(&mut self) {
        self.control.stop.store(true, Ordering::Relaxed);
    }
}

fn work(targets: &[Target], offset: usize, pause: Duration, control: &Control) -> Vec<Tally> {
    let mut phases = vec![Tally::default()];
    let mut number = offset;
    while !control.stop.load(Ordering::Relaxed) {
        let phase = control.phase.load(Ordering::Relaxed);
        phases.resize_with(phases.len().max(phase + 1), Tally::default);
        targets[number % targets.len()].record(number, &mut phases[phase]);
        control.done.fetch_add(1, Ordering::Relaxed);
        number += 1;
        sleep(pause);
    }
    phases
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! The clients.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicUsize, Ordering},
    thread::{self, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use shunt_tests::world::{Namespace, check_interrupt};

use crate::worker::{MOST, Order, Role, Worker, order_all};

const THREADS: usize = 4;
/// A datagram that is not answered by then is lost; a SYN is sent again meanwhile.
pub const LIMIT: Duration = Duration::from_secs(5);
/// Ports of each address.
const FIRST_PORT: usize = 10_000;
const PORTS: usize = 50_000;

/// Where clients come from: each of them from another address and port, until all have been used.
pub struct Sources {
    addresses: Vec<IpAddr>,
    next: AtomicUsize,
}

impl Sources {
    /// The first of them is that of this number.
    pub const fn new(addresses: Vec<IpAddr>, first: usize) -> Self {
        Self { addresses, next: AtomicUsize::new(first) }
    }

    /// Another one of the destination's family.
    pub fn next(&self, to: SocketAddr) -> SocketAddr {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let own: Vec<_> = self.addresses.iter().filter(|address| address.is_ipv4() == to.is_ipv4()).collect();
        let address = *own[number / PORTS % own.len()];
        SocketAddr::new(address, (FIRST_PORT + number % PORTS) as u16)
    }
}

/// Clients by family, and whom they ask.
pub type Plans = [(Sources, SocketAddr); 2];

/// How many were to be answered, and how many were.
#[derive(Clone, Copy, Default)]
pub struct Done {
    pub asked: usize,
    pub answered: usize,
}

/// Lets so many exchanges begin in a second, for a while. Gives also how long that took.
pub fn exchange(namespace: &Namespace, plans: &Plans, rate: u32, duration: Duration) -> Result<(Done, Duration)> {
    let count = (f64::from(rate) * duration.as_secs_f64()) as usize;
    let (next, answered) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let begun = Instant::now();
    let work = || -> Result<()> {
        namespace.enter_thread()?;
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return Ok(());
            }
            check_interrupt()?;
            let due = Duration::from_secs_f64(number as f64 / f64::from(rate));
            sleep(due.saturating_sub(begun.elapsed()));
            let (sources, to) = &plans[number % plans.len()];
            if ask(sources.next(*to), *to).context("can't send")? {
                answered.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    all(work)?;
    Ok((Done { asked: count, answered: answered.into_inner() }, begun.elapsed()))
}

/// One exchange, of a socket of its own; whether it was answered.
fn ask(from: SocketAddr, to: SocketAddr) -> io::Result<bool> {
    let socket = UdpSocket::bind(from)?;
    socket.set_read_timeout(Some(LIMIT))?;
    socket.connect(to)?;
    socket.send(b"?")?;
    Ok(socket.recv(&mut [0; 64]).is_ok())
}

/// Opens so many connections, and then asks by all of them, twice.
pub fn connect(from: &Namespace, count: u32, plans: &Plans, servers: &mut [Worker]) -> Result<Done> {
    let share = count.div_ceil(count.div_ceil(MOST));
    let start = |first: u32| {
        let own = share.min(count - first);
        let mut arguments = vec![format!("--connections={own}"), format!("--first={first}")];
        for (sources, to) in plans {
            arguments.push(format!("--to={to}"));
            arguments.extend(sources.addresses.iter().map(|address| format!("--from={address}")));
        }
        Worker::start(from, Role::Connect, &arguments)
    };
    let mut clients = (0..count).step_by(share as usize).map(start).collect::<Result<Vec<_>>>()?;
    let opened = clients.iter_mut().map(Worker::answer).sum::<Result<usize>>()?;
    let mut answered = opened;
    for _ in 0..2 {
        order_all(&mut clients, Order::Ask)?;
        order_all(servers, Order::Hear)?;
        order_all(servers, Order::Ask)?;
        answered = answered.min(order_all(&mut clients, Order::Hear)?);
    }
    Ok(Done { asked: count as usize, answered })
}

/// Does the work on some threads at once.
fn all<T: Send>(work: impl Fn() -> Result<T> + Sync) -> Result<Vec<T>> {
    thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS).map(|_| scope.spawn(&work)).collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Processes that hold one end of many connections each: a process may open only so many files. They do what they are told by lines
//! on their standard input, and answer each with a number.

use std::{
    env,
    io::{self, BufRead, BufReader, Read, Write, stdin, stdout},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, ChildStdin, ChildStdout, Stdio},
    sync::{Mutex, PoisonError},
    thread,
};

use anyhow::{Context, Result};
use shunt_tests::world::Namespace;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    client::{LIMIT, Sources},
    server,
};

/// Connections that a process can hold.
pub const MOST: u32 = 18_000;
const BACKLOG: i32 = 4096;

/// What a worker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// It keeps what it accepts.
    Serve,
    /// It opens connections, and keeps them.
    Connect,
}

/// What a worker is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Write a byte to all connections.
    Ask,
    /// Read a byte of all connections.
    Hear,
}

impl Order {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ask => "ask",
            Self::Hear => "hear",
        }
    }
}

/// A running worker; it ends when this is dropped.
pub struct Worker {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Worker {
    pub fn start(namespace: &Namespace, role: Role, arguments: &[String]) -> Result<Self> {
        let mut command = namespace.command(env::current_exe()?);
        command.arg("--worker").arg(if role == Role::Serve { "serve" } else { "connect" }).args(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("can't start a worker")?;
        let orders = child.stdin.take().context("it has no input")?;
        let answers = BufReader::new(child.stdout.take().context("it has no output")?);
        Ok(Self { child, orders, answers })
    }

    pub fn order(&mut self, order: Order) -> Result<()> {
        writeln!(self.orders, "{}", order.as_str()).context("a worker has ended")
    }

    /// The next number that it says.
    pub fn answer(&mut self) -> Result<usize> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        line.trim().parse().context("a worker has ended")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Tells all workers the same; the sum of their answers.
pub fn order_all(workers: &mut [Worker], order: Order) -> Result<usize> {
    workers.iter_mut().try_for_each(|worker| worker.order(order))?;
    workers.iter_mut().map(Worker::answer).sum()
}

/// The life of a worker that serves.
pub fn serve() -> Result<()> {
    let listener = server::bind(Type::STREAM, Protocol::TCP).context("can't listen")?;
    listener.listen(BACKLOG)?;
    let listener = TcpListener::from(listener);
    let streams = Mutex::new(Vec::new());
    let all = || streams.lock().unwrap_or_else(PoisonError::into_inner);
    thread::scope(|scope| {
        scope.spawn(|| {
            loop {
                if let Ok((stream, _)) = listener.accept() {
                    all().push(stream);
                }
            }
        });
        say(0)?;
        obey(|order| each(&mut all(), order))?;
        std::process::exit(0)
    })
}

/// The life of a worker that opens so many connections.
pub fn connect(sources: &Sources, to: &[SocketAddr], count: u32) -> Result<()> {
    let open = |to: SocketAddr| -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&sources.next(to).into())?;
        socket.connect_timeout(&to.into(), LIMIT)?;
        socket.set_read_timeout(Some(LIMIT))?;
        Ok(socket.into())
    };
    let mut streams: Vec<_> = (0..count as usize).filter_map(|number| open(to[number % to.len()]).ok()).collect();
    say(streams.len())?;
    obey(|order| each(&mut streams, order))
}

fn say(number: usize) -> Result<()> {
    writeln!(stdout(), "{number}")?;
    Ok(stdout().flush()?)
}

/// Does as told until there are no more orders.
fn obey(mut work: impl FnMut(Order) -> usize) -> Result<()> {
    for line in stdin().lines() {
        say(work(if line? == Order::Ask.as_str() { Order::Ask } else { Order::Hear }))?;
    }
    Ok(())
}

/// Of how many connections it has come off.
fn each(streams: &mut [TcpStream], order: Order) -> usize {
    let work = |stream: &mut TcpStream| match order {
        Order::Ask => stream.write_all(b"?").is_ok(),
        Order::Hear => stream.set_read_timeout(Some(LIMIT)).is_ok() && stream.read_exact(&mut [0]).is_ok(),
    };
    streams.iter_mut().map(|stream| usize::from(work(stream))).sum()
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! How long a pod's `connect()` takes, directly and through each kind of Service; `cargo xtask bench connect` builds and runs
//! it. Every figure stands beside the direct way's of the same round.

#![deny(unsafe_code)]

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::ExitCode,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Parser;
use comfy_table::{CellAlignment, Table, presets::UTF8_BORDERS_ONLY};
use serde::Serialize;
use shunt_tests::{
    bench::{self, Aim, Bar, Chart, Comparison, Output, Scene, Shall, Way, conclude, quantile},
    world::{Family, catch_interrupts},
};
use socket2::{Domain, Socket, Type};

/// The shares of connections whose time is shown.
const SHARES: [(&str, f64); 4] = [("p01", 0.01), ("p50", 0.5), ("p90", 0.9), ("p99", 0.99)];

#[derive(Parser)]
#[command(name = "cargo xtask bench connect", about = "How long connect() takes, by way and number of Services.")]
struct Arguments {
    #[command(flatten)]
    output: Output,
    /// How often everything is measured, in turns.
    #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Connections of a way in a round.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// Numbers of Services.
    #[arg(long, value_delimiter = ',', default_value = "100,1000,10000,30000")]
    services: Vec<u32>,
}

/// All results.
#[derive(Serialize)]
struct Report {
    rounds: u32,
    connections: u32,
    rows: Vec<Row>,
    /// Numbers of Services, and who did not take their rules within a minute.
    too_late: Vec<(u32, &'static str)>,
}

/// A way, at one number of Services. Microseconds.
#[derive(Serialize)]
struct Row {
    services: u32,
    family: &'static str,
    way: &'static str,
    /// By [`SHARES`].
    micros: Vec<Comparison>,
    /// What the ratios at p50 and p99 to the direct way shall be.
    #[serde(skip_serializing_if = "Option::is_none")]
    shall: Option<Shall>,
}

fn main() -> ExitCode {
    conclude(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<()> {
    catch_interrupts()?;
    let mut scene = Scene::new()?;
    let (mut rows, mut too_late) = (Vec::new(), Vec::new());
    for &services in &arguments.services {
        scene.set_services(services)?;
        for family in Family::BOTH {
            rows.extend(measure(&scene, services, family, arguments)?);
        }
        too_late.extend(scene.too_late().into_iter().map(|name| (services, name)));
    }
    let report = Report { rounds: arguments.rounds, connections: arguments.connections, rows, too_late };
    arguments.output.write(&report)
}

/// All ways of a family in turns, one round more than counts: the first warms up.
fn measure(scene: &Scene, services: u32, family: Family, arguments: &Arguments) -> Result<Vec<Row>> {
    let aim = Aim { family, ..Aim::WEB };
    let ways: Vec<_> = Way::ALL.into_iter().filter_map(|way| Some((way, scene.way(way, aim)?))).collect();
    let mut by_way: Vec<Vec<Vec<f64>>> = vec![vec![Vec::new(); SHARES.len()]; ways.len()];
    let mut ports: Vec<_> = (0..ways.len() as u16).map(Ports::of).collect();
    for round in 0..=arguments.rounds {
        for (((way, (from, to)), shares), ports) in ways.iter().zip(&mut by_way).zip(&mut ports) {
            let times = from.enter(|| connect(*to, ports, arguments.connections))?.context(way.name())?;
            if round > 0 {
                let quantiles = SHARES.iter().zip(shares);
                quantiles.for_each(|((_, share), values)| values.push(quantile(&times, *share)));
            }
        }
    }
    let floor = ways.iter().position(|(way, _)| *way == Way::FLOOR).context("no floor")?;
    let rows = ways.iter().zip(&by_way).map(|((way, _), own)| {
        let micros = own.iter().zip(&by_way[floor]).map(|(own, floor)| Comparison::new(own, floor)).collect();
        let family = if family == Family::V4 { "IPv4" } else { "IPv6" };
        Row { services, family, way: way.name(), micros, shall: way.connect_shall() }
    });
    Ok(rows.collect())
}

/// Client ports of one way. What the kernel and the programs remember of one way's connections is no other's business:
/// behind every way is the same server.
struct Ports {
    first: u16,
    next: u16,
}

impl Ports {
    const COUNT: u16 = 6_000;

    const fn of(way: u16) -> Self {
        Self { first: 10_000 + way * Self::COUNT, next: 0 }
    }

    fn take(&mut self) -> u16 {
        self.next = (self.next + 1) % Self::COUNT;
        self.first + self.next
    }
}

/// Microseconds of connections one after the other, sorted.
fn connect(to: SocketAddr, ports: &mut Ports, count: u32) -> Result<Vec<f64>> {
    /// Between two, so that the server has closed the one before.
    const PAUSE: Duration = Duration::from_micros(100);
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let mut times = Vec::new();
    for _ in 0..count {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        // A RST at the end: no port is left waiting.
        socket.set_linger(Some(Duration::ZERO))?;
        socket.bind(&SocketAddr::new(any, ports.take()).into())?;
        let start = Instant::now();
        socket.connect(&to.into()).with_context(|| format!("connecting to {to}"))?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
        drop(socket);
        sleep(PAUSE);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

impl bench::Report for Report {
    const TITLE: &'static str = "bench connect";

    /// One for each of the shares and numbers of Services.
    fn charts(&self) -> Vec<Chart> {
        let rows =
            SHARES.iter().enumerate().flat_map(|(index, share)| self.rows.iter().map(move |row| (index, share.0, row)));
        Chart::group(rows.map(|(index, share, row)| {
            let Comparison { median, min, max, .. } = row.micros[index];
            let bar = Bar { range: Some((min, max)), ..Bar::new(row.way, median) };
            (format!("connect(), {}, {share}, {} Services", row.family, row.services), "µs".to_owned(), bar)
        }))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(UTF8_BORDERS_ONLY);
        let first = ["Services", "", "connect(), TCP"].map(str::to_owned).into_iter();
        let headings = SHARES.iter().flat_map(|(name, _)| [format!("{name} µs"), "to direct".to_owned()]);
        table.set_header(first.chain(headings).chain(["shall".to_owned()]));
        for row in &self.rows {
            let first = [row.services.to_string(), row.family.to_owned(), row.way.to_owned()].into_iter();
            let figures = row.micros.iter().flat_map(|one| [format!("{:.1}", one.median), format!("{:.2}", one.ratio)]);
            table.add_row(first.chain(figures).chain([Shall::text(row.shall)]));
        }
        table.column_iter_mut().skip(3).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
        writeln!(
            f,
            "{table}\nMedians of {} rounds taken in turns, {} connections each; ratios are medians of the rounds' own. A pod and \
             an nginx on one node. The rules of nftables and iptables are generated in the manner of kube-proxy, the measured \
             Service's in the midst of the others.",
            self.rounds, self.connections
        )?;
        self.too_late.iter().try_for_each(|(services, name)| {
            writeln!(f, "{services} Services: {name} did not take the rules within a minute.")
        })
    }
}

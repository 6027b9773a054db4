// SPDX-License-Identifier: MIT OR Apache-2.0
//! `lb-agent run`: checks the machine, puts the agent together, and runs it until it is told to stop.
//!
//! Whatever can be found wrong is found before a map is made or a device touched, and what an earlier agent left goes on
//! forwarding then.

mod alone;
mod args;
mod config_file;
mod flags;
mod tasks;
mod values;

use std::{env, fs, path::Path};

use anyhow::{Context, bail};
use lb_common::{
    clock::Clock,
    config::{Config, FIRST_GENERATION, config_flags},
    flow::FlowState,
};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use tokio::sync::mpsc;
use tracing::{info, warn};

pub use self::{args::RunArgs, flags::Flags};
use self::{config_file::Completed, tasks::Tasks, values::SourceSpec};
use crate::{
    about::{self, About},
    cli::told_to_stop,
    dataplane::{self, Capacities, Dataplane, Options, Pins, SocketOptions},
    diff::State,
    events::{self, Recorder},
    hash_seed::HashSeed,
    health::{self, Health},
    http::{self, Connections},
    memory::{Bill, mebibytes},
    metrics::{self, Metrics},
    model::Model,
    node::{checks, neighbours, net, netlink::Follower},
    source::{self, KubeOptions, SourceError},
    sync::{self, Devices, Inputs, Loop, LoopError, Maps, Net, Notice, Reporter, Services},
};

/// Events and changes that may wait for the loop.
const QUEUE_LENGTH: usize = 1024;

/// Connections to each of the agent's two ports.
const MOST_CONNECTIONS: usize = 64;

/// Threads beside that of the loop: for sources, probes and scrapes.
const WORKERS: usize = 2;

/// Where a directory of manifests has the seed of the flow hash.
const HASH_SEED_FILE: &str = "hash-seed";

/// Runs the agent. Returns when it is told to stop; forwarding goes on.
///
/// # Errors
/// Whatever keeps it from starting, and the end of its source.
pub fn run(args: RunArgs) -> anyhow::Result<()> {
    let completed = config_file::complete(&args, env::args_os())?;
    if let Err(error) = dataplane::lift_file_limit() {
        warn!("the limit of open files stays as it is: {error}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build()?;
    let result = runtime.block_on(start(completed));
    // A source may be in the middle of reading a file: nothing that is worth waiting for.
    runtime.shutdown_background();
    result
}

/// Does the work until it is told to stop, which it may be from the first moment on: process 1 of a container gets no signal for
/// which it has no handler. Stopping leaves everything as it is at that moment, and the next agent goes on from there.
async fn start(completed: Completed) -> anyhow::Result<()> {
    let stop = told_to_stop()?;
    tokio::select! {
        ended = work(completed) => ended,
        () = stop => {
            info!("told to stop; what is in the kernel goes on forwarding");
            Ok(())
        }
    }
}

async fn work(completed: Completed) -> anyhow::Result<()> {
    let Completed { args, mut flags, file } = completed;
    let node_name = node_name(args.node_name.as_deref())?;
    flags.set("node-name", &node_name);
    let metrics = Metrics::default();
    let kube = KubeOptions::new(args.kubeconfig.clone(), node_name.clone());
    let given_seed = given_seed(&args)?;
    let hash_seed = given_seed.is_none().then(|| args.flows.hash_seed_secret.clone());
    let kube = KubeOptions { hash_seed, requests: metrics.api_requests().clone(), ..kube };
    check_machine(&args, &kube).await?;
    let selection = args.devices.selection();
    let (follower, machine) = Follower::start().await?;
    if let Some(problem) = selection.first_mistake(&machine) {
        return Err(problem.into());
    }
    probe_lock(&args.bpffs)?;
    let _alone = alone::claim()?;
    let healthz = http::bind(args.healthz_bind_address, "--healthz-bind-address").await?;
    let metricsz = http::bind(args.metrics_bind_address, "--metrics-bind-address").await?;

    if args.capacities.max_young_flows.is_some() {
        warn!("--max-young-flows is ignored: flows that have only begun stand among the others now; see --max-flows");
    }
    let capacities = args.capacities.capacities(machine.families());
    let bill = Bill::new(&capacities, dataplane::cpu_numbers()?).check(args.capacities.max_map_memory)?;
    info!("node {node_name}; the maps take up to {} MiB: {bill}", mebibytes(bill.total()));
    let options = options(&args, capacities);
    let mut tasks = Tasks::default();
    let is_kube = args.source == SourceSpec::Kube;
    let recorder = if is_kube { start_recorder(&kube, &mut tasks).await? } else { Recorder::default() };
    let (mut services, mut reporter) = (
        Services::new(Model::new(node_name.clone()).serving_external_ips(args.external_ips), args.flows.source_ports),
        Reporter::new(recorder.clone()),
    );
    let (event_sender, mut events) = mpsc::channel(QUEUE_LENGTH);
    let mut source = tokio::spawn(run_source(args.source.clone(), kube, event_sender));
    let opening = tokio::task::spawn_blocking(move || Dataplane::open(&options));
    let told = (&mut services, &mut reporter, &metrics);
    let mut dataplane = sync::take_in_while(opening, &mut events, told).await??;
    recorder.tell_start();
    let former = dataplane.config();
    dataplane.set_config(&configuration(former, &args, given_seed, dataplane.maps().ticker.clock())?);
    let (tell_net, notices) = notices(&mut dataplane);
    let counters = dataplane.shared_maps();
    let dump = dataplane.maps().dump()?;

    let devices = Devices::new(machine, selection, args.nodeport_addresses.clone(), dump.interfaces.clone());
    let state = State::adopt(dump, &dataplane.capacities());
    let health = if is_kube { Health::requiring_node() } else { Health::default() };
    if state.services().next().is_some() {
        health.set_adopted();
    }
    let maps = Maps { state, doors: dataplane };
    let (change_sender, changes) = mpsc::channel(QUEUE_LENGTH);
    let (request_sender, requests) = mpsc::channel(1);

    tasks.spawn("the following of devices", follower.run(change_sender));
    let connections = || Connections::at_most(MOST_CONNECTIONS);
    let pages = health::router(health.clone(), metrics.clone());
    tasks.spawn("the port of /healthz", http::serve(healthz, pages, connections()));
    let pages = metrics::router(&metrics, request_sender, counters).merge(about::router(About::new(flags)));
    tasks.spawn("the port of /metrics", http::serve(metricsz, pages, connections()));
    let net = Net::new(args.net.options());
    let agent = Loop::new(services, devices, maps, health, metrics).reporting(reporter).with_net(net);
    tasks.spawn("the asking for neighbours", neighbours::ask(agent.neighbours()));
    tasks.spawn("the keeping of the net", net::follow(agent.net(), tell_net));
    tokio::select! {
        ended = agent.run(Inputs { events, changes, requests, notices }) => match ended {
            // The source itself knows why.
            LoopError::SourceEnded => source.await?.and(Err(ended.into())),
            LoopError::NetlinkEnded => Err(ended.into()),
        },
        ended = tasks.end() => Err(ended),
        ended = &mut source => ended?.and(Err(LoopError::SourceEnded.into())),
        // What it says is taken in at the start: whoever starts the agent does so again, and nothing is lost meanwhile.
        () = config_change(file.as_ref()) => bail!("--config has changed: ends, to be started with what it says now"),
    }
}

/// Where it is told what becomes of things of ours in the kernel: by the directories of pins, and by whoever keeps the net.
fn notices(dataplane: &mut Dataplane) -> (impl Fn(net::Told) + Send + 'static, mpsc::Receiver<Notice>) {
    let (sender, notices) = mpsc::channel(QUEUE_LENGTH);
    let removals = sender.clone();
    // Where it is full, a notice is waiting already, and one is as good as many.
    dataplane.tell_of_removals(move || drop(removals.try_send(Notice::Removal)));
    // The net is looked at again, and told of.
    let tell_net = move |told| drop(sender.try_send(Notice::Net(told)));
    (tell_net, notices)
}

/// Returns when there is a configuration file and it has changed (rule 76).
async fn config_change(file: Option<&config_file::File>) {
    match file {
        Some(file) => file.change().await,
        None => std::future::pending().await,
    }
}

fn options(args: &RunArgs, capacities: Capacities) -> Options {
    Options {
        bpffs: args.bpffs.clone(),
        capacities,
        xdp: args.devices.xdp,
        sockets: SocketOptions { mode: args.socket_lb, cgroup: args.cgroup.clone() },
        log: args.program_log,
    }
}

/// The Node's name: as given or the host's, lower-cased and trimmed (rule 9).
fn node_name(given: Option<&str>) -> anyhow::Result<String> {
    let name = match given {
        Some(name) => name.to_owned(),
        None => {
            nix::unistd::gethostname().context("can't get the host name; give --node-name")?.to_string_lossy().into()
        }
    };
    let name = name.trim().to_lowercase();
    if name.is_empty() {
        bail!("the node has no name; give --node-name");
    }
    Ok(name)
}

async fn check_machine(args: &RunArgs, kube: &KubeOptions) -> anyhow::Result<()> {
    checks::check_source_ports(args.flows.source_ports)?;
    for problem in checks::forwarding_problems() {
        warn!("{problem}");
    }
    if let Some(cgroup) = &args.cgroup {
        check_cgroup(cgroup)?;
    }
    match &args.source {
        SourceSpec::Dir(path) => {
            fs::read_dir(path).map_err(|source| SourceError::Directory { path: path.clone(), source })?;
        }
        // The credentials alone: a server that doesn't answer is waited for.
        SourceSpec::Kube => drop(source::connect(kube).await?),
    }
    Ok(())
}

/// A second agent on the same directory shall hear of that, and not of the ports that the first one has, too.
fn probe_lock(bpffs: &Path) -> anyhow::Result<()> {
    if bpffs.is_dir() {
        Pins::new(bpffs).lock()?;
    }
    Ok(())
}

fn check_cgroup(path: &Path) -> anyhow::Result<()> {
    let remedy = "mount one (`mount -t cgroup2 none DIR`), or see `findmnt -t cgroup2` for where it is";
    let filesystem = statfs(path).with_context(|| format!("--cgroup {}: {remedy}", path.display()))?;
    if filesystem.filesystem_type() != CGROUP2_SUPER_MAGIC {
        bail!("--cgroup {} is not on a cgroup v2 file system; {remedy}", path.display());
    }
    Ok(())
}

/// The configuration as the flags want it, on top of what an earlier agent left.
fn configuration(former: Config, args: &RunArgs, seed: Option<HashSeed>, clock: Clock) -> anyhow::Result<Config> {
    let flows = &args.flows;
    let seed = match seed {
        Some(seed) => seed.0,
        None if former.seed != [0; 2] => former.seed,
        // Until the source knows the one that all nodes share.
        None => HashSeed::random().context("can't read /dev/urandom; give --hash-seed-file")?.0,
    };
    let mut timeouts = [0; FlowState::COUNT];
    for (states, timeout) in [
        (&[FlowState::HALF_OPEN] as &[_], flows.tcp_timeout_half_open),
        (&[FlowState::ESTABLISHED], flows.tcp_timeout_established),
        (&[FlowState::FIN_ORIGINAL, FlowState::FIN_REPLY], flows.tcp_timeout_close_wait),
        (&[FlowState::CLOSING, FlowState::RESET], flows.tcp_timeout_closing),
        (&[FlowState::UNREPLIED, FlowState::REPLIED], flows.udp_timeout),
        (&[FlowState::STREAM], flows.udp_stream_timeout),
    ] {
        states.iter().for_each(|state| timeouts[state.index()] = clock.ticks(timeout.0));
    }
    let rejects_per_tick = u64::from(flows.reject_rate) * clock.tick_ns() / 1_000_000_000;
    Ok(Config {
        seed,
        source_ports: flows.source_ports.to_config(),
        timeouts,
        rejects_per_tick: u32::try_from(rejects_per_tick).unwrap_or(u32::MAX),
        cluster_cidrs: flows.cluster_cidr.clone().unwrap_or_default().to_config(),
        flags: [
            (config_flags::MASQUERADE_ALL, flows.masquerade_all),
            (config_flags::NO_LOCALHOST, !args.nodeport_addresses.have_localhost()),
        ]
        .into_iter()
        .filter(|(_, is_set)| *is_set)
        // The earlier agent's programs run on with it until the machine's rules have been looked at.
        .fold(former.flags & config_flags::POLICY_ROUTING, |flags, (flag, _)| flags | flag),
        next_hop_generation: former.next_hop_generation.max(FIRST_GENERATION),
        ..former
    })
}

/// The seed of the flow hash that a flag gives, or the directory of manifests.
fn given_seed(args: &RunArgs) -> anyhow::Result<Option<HashSeed>> {
    let beside = match &args.source {
        SourceSpec::Dir(path) => Some(path.join(HASH_SEED_FILE)).filter(|path| path.exists()),
        SourceSpec::Kube => None,
    };
    let file = args.flows.hash_seed_file.clone().or(beside);
    match (args.flows.hash_seed, file) {
        (Some(seed), _) => Ok(Some(seed)),
        (None, Some(path)) => {
            let seed =
                HashSeed::read(&path).context("write it (`openssl rand -hex 16`), or name another --hash-seed-file")?;
            Ok(Some(seed))
        }
        (None, None) => Ok(None),
    }
}

/// Kubernetes Events.
async fn start_recorder(kube: &KubeOptions, tasks: &mut Tasks) -> anyhow::Result<Recorder> {
    let client = source::connect(kube).await?;
    let (recorder, notes) = Recorder::new();
    tasks.spawn("the posting of Events", events::post(client, kube.node_name.clone(), notes));
    Ok(recorder)
}

async fn run_source(source: SourceSpec, kube: KubeOptions, events: mpsc::Sender<source::Event>) -> anyhow::Result<()> {
    match source {
        SourceSpec::Dir(path) => source::run_dir(path, events).await?,
        SourceSpec::Kube => source::run_kube(kube, events).await?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use clap::Parser;
    use lb_common::{address::Address, config::Cidr};

    use super::*;

    const CLOCK: Clock = Clock::new(250);

    /// The flags of `run` alone.
    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        run: RunArgs,
    }

    fn args(flags: &str) -> RunArgs {
        let given = flags.split_whitespace();
        Flags::parse_from(["run", "--source", "kube"].into_iter().chain(given)).run
    }

    #[tokio::test]
    async fn credentials_that_cannot_be_read_are_found_before_anything_is_made() {
        let args = args("--kubeconfig /nonexistent/config");
        let kube = KubeOptions::new(args.kubeconfig.clone(), "node-1".into());
        let error = check_machine(&args, &kube).await.unwrap_err().to_string();
        assert!(error.starts_with("can't use kubeconfig /nonexistent/config: "), "{error}");
    }

    #[test]
    fn rule_9_the_nodes_name_is_lower_cased_and_trimmed() {
        assert_eq!(node_name(Some(" Node-1.Example ")).unwrap(), "node-1.example");
        assert!(node_name(Some(" ")).is_err());
        assert!(!node_name(None).unwrap().is_empty());
    }

    #[test]
    fn rule_63_every_state_of_a_flow_has_its_time_out() {
        let args = args("--tcp-timeout-close-wait 30m --reject-rate 500 --hash-seed 0000000000000001000000000000000a");
        let config = configuration(Config::default(), &args, args.flows.hash_seed, CLOCK).unwrap();
        let expected = [60, 86_400, 1800, 1800, 10, 30, 30, 10, 180].map(|seconds| CLOCK.ticks(seconds));
        assert_eq!(config.timeouts, expected);
        assert_eq!(config.rejects_per_tick, 512, "a tick is 1.024 s");
        assert_eq!(config.source_ports.map(|range| (range.first, range.last)), [(10_240, 29_999), (61_000, 65_535)]);
        assert_eq!(config.seed, [1, 10]);
        assert_eq!(config.next_hop_generation, FIRST_GENERATION);
    }

    #[test]
    fn rules_46_and_52_masquerade_all_and_cluster_cidrs_are_as_the_flags_say() {
        let given =
            configuration(Config::default(), &args("--masquerade-all --cluster-cidr 10.244.0.0/16"), None, CLOCK)
                .unwrap();
        assert_eq!(given.flags, config_flags::MASQUERADE_ALL);
        let pod = Address::from(IpAddr::from([10, 244, 1, 2]));
        assert_eq!(given.cluster_cidrs.map(|cidr| cidr.contains(&pod)), [true, false]);
        let without = configuration(given, &args(""), None, CLOCK).unwrap();
        assert_eq!((without.flags, without.cluster_cidrs), (0, [Cidr::default(); 2]));
    }

    #[test]
    fn rule_84_ranges_that_leave_localhost_out_close_it() {
        for (flag, flags) in
            [("primary", 0), ("192.0.2.0/24", config_flags::NO_LOCALHOST), ("192.0.2.0/24,localhost", 0)]
        {
            let args = args(&format!("--nodeport-addresses {flag}"));
            assert_eq!(configuration(Config::default(), &args, None, CLOCK).unwrap().flags, flags, "{flag}");
        }
    }

    #[test]
    fn an_adopted_configuration_keeps_its_seed_its_generation_and_what_the_machine_does() {
        let first = configuration(Config::default(), &args(""), None, CLOCK).unwrap();
        assert_ne!(first.seed, [0; 2]);
        let flags = config_flags::POLICY_ROUTING;
        let former = Config { next_hop_generation: 7, table_key: [3, 4], flags, ..first };
        assert_eq!(configuration(former, &args(""), None, CLOCK).unwrap(), former);
    }

    #[test]
    fn the_seed_of_the_flow_hash_comes_from_a_flag_a_file_or_the_directory_of_manifests() {
        const SEEDS: [&str; 3] = ["00000000000000000000000000000001", "0000000000000000000000000000000a", "0f"];
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        let seed = |flags: String| {
            let flags = format!("run --source dir:{} {flags}", directory.path().display());
            given_seed(&Flags::parse_from(flags.split_whitespace()).run)
        };
        assert_eq!(seed(String::new()).unwrap(), None);
        fs::write(path("hash-seed"), SEEDS[0]).unwrap();
        assert_eq!(seed(String::new()).unwrap().unwrap().0, [0, 1]);
        fs::write(path("other"), SEEDS[1]).unwrap();
        assert_eq!(seed(format!("--hash-seed-file {}", path("other"))).unwrap().unwrap().0, [0, 10]);
        assert_eq!(seed(format!("--hash-seed {}", SEEDS[1])).unwrap().unwrap().0, [0, 10]);
        fs::write(path("hash-seed"), SEEDS[2]).unwrap();
        let error = format!("{:#}", seed(String::new()).unwrap_err());
        assert!(error.contains("--hash-seed-file") && error.contains("exactly 32 hex digits"), "{error}");
    }

    #[test]
    fn a_cgroup_directory_must_be_one() {
        let error = check_cgroup(Path::new("/proc")).unwrap_err().to_string();
        assert!(error.contains("--cgroup /proc is not on a cgroup v2 file system"), "{error}");
        assert!(check_cgroup(Path::new("/nonexistent")).is_err());
    }
}

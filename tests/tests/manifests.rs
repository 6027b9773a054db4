// SPDX-License-Identifier: MIT OR Apache-2.0
//! `manifests/`, read as strictly as an API server would with `fieldValidation=Strict`, and against the agent itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process,
    time::Duration,
};

use anyhow::{Result, ensure};
use clap::Parser;
use k8s_openapi::{
    api::{
        apps::v1::DaemonSet,
        core::v1::{Container, PodSpec, Secret, ServiceAccount, Toleration},
        rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding},
    },
    apimachinery::pkg::api::resource::Quantity,
    serde::{Serialize, de::DeserializeOwned},
};
use lb_agent::{
    cli::{Cli, Command, run::RunArgs},
    diff::Capacities,
    memory::Bill,
};
use serde_json::Value;
use shunt_tests::{
    load::http,
    world::{Node, Options, World, Xdp, agent_binary, wait_until},
};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests")
}

fn read(name: &str) -> Vec<Value> {
    let path = directory().join(name);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let documents: Vec<&str> = text.split("\n---\n").collect();
    documents.into_iter().map(|document| serde_saphyr::from_str(document).unwrap()).collect()
}

/// The files that `kubectl apply -k` takes.
fn listed() -> BTreeSet<String> {
    let kustomization = &read("Kustomization")[0];
    let files = kustomization["resources"].as_array().unwrap();
    files.iter().map(|file| file.as_str().unwrap().to_owned()).collect()
}

/// The files that `kubectl apply -f` takes of a directory.
fn applied(directory: &Path) -> BTreeSet<String> {
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let is_taken = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        path.is_file() && extension.is_some_and(|extension| ["yaml", "yml", "json"].contains(&extension))
    };
    files.filter(is_taken).map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
}

fn resources() -> Vec<Value> {
    listed().iter().flat_map(|file| read(file)).collect()
}

/// The one object of a kind in the agent's manifests.
fn strictly<K: Serialize + DeserializeOwned>(kind: &str) -> K {
    strictly_among(&resources(), kind)
}

/// The one object of a kind; every field of its manifest must be one that the type knows.
fn strictly_among<K: Serialize + DeserializeOwned>(resources: &[Value], kind: &str) -> K {
    let found: Vec<&Value> = resources.iter().filter(|object| object["kind"] == kind).collect();
    let [object] = found[..] else { panic!("{} objects of kind {kind}", found.len()) };
    let typed: K = serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{kind}: {error}"));
    assert_contains(&serde_json::to_value(&typed).unwrap(), object, kind);
    typed
}

fn assert_contains(whole: &Value, part: &Value, path: &str) {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            for (name, part) in part {
                let path = format!("{path}.{name}");
                assert_contains(whole.get(name).unwrap_or_else(|| panic!("there is no field {path}")), part, &path);
            }
        }
        (Value::Array(whole), Value::Array(part)) => {
            assert_eq!(whole.len(), part.len(), "{path}");
            whole.iter().zip(part).for_each(|(whole, part)| assert_contains(whole, part, path));
        }
        (whole, part) => assert_eq!(whole, part, "{path}"),
    }
}

fn pod() -> PodSpec {
    strictly::<DaemonSet>("DaemonSet").spec.template.spec.unwrap()
}

fn agent() -> Container {
    pod().containers.remove(0)
}

fn command(container: &Container) -> Command {
    let arguments = container.args.clone().unwrap();
    let cli = Cli::try_parse_from(["lb-agent".to_owned()].into_iter().chain(arguments));
    cli.unwrap_or_else(|error| panic!("{error}")).command
}

fn run_args(container: &Container) -> RunArgs {
    let Command::Run(run) = command(container) else { panic!("another subcommand") };
    *run
}

/// `-f` takes every file whose name ends in .yaml: a `kustomization.yaml` among them would be an object of no known kind.
#[test]
fn by_file_and_by_kustomization_the_same_objects_are_applied_and_every_kind_is_known() {
    assert_eq!(listed(), applied(&directory()));
    strictly::<ServiceAccount>("ServiceAccount");
    strictly::<ClusterRole>("ClusterRole");
    strictly::<ClusterRoleBinding>("ClusterRoleBinding");
    strictly::<DaemonSet>("DaemonSet");
    strictly::<Role>("Role");
    strictly::<RoleBinding>("RoleBinding");
    strictly::<Secret>("Secret");
    assert_eq!(resources().len(), 7);
}

#[test]
fn rule_77_the_agent_may_what_kube_proxy_may() {
    let rules = strictly::<ClusterRole>("ClusterRole").rules.unwrap();
    let may = |group: &str, resource: &str| -> Vec<String> {
        let has = |texts: &Option<Vec<String>>, text: &str| texts.iter().flatten().any(|other| other == text);
        let rule = rules.iter().find(|rule| has(&rule.api_groups, group) && has(&rule.resources, resource));
        rule.map(|rule| rule.verbs.clone()).unwrap_or_default()
    };
    assert_eq!(may("", "services"), ["list", "watch"]);
    assert_eq!(may("discovery.k8s.io", "endpointslices"), ["list", "watch"]);
    assert_eq!(may("", "nodes"), ["get", "list", "watch"]);
    assert_eq!(may("networking.k8s.io", "servicecidrs"), ["list", "watch"]);
    assert_eq!(may("events.k8s.io", "events"), ["create", "patch", "update"]);
    let binding = strictly::<ClusterRoleBinding>("ClusterRoleBinding");
    let subject = &binding.subjects.unwrap()[0];
    assert_eq!((subject.name.as_str(), subject.namespace.as_deref()), ("shunt", Some("kube-system")));
    assert_eq!(pod().service_account_name.as_deref(), Some("shunt"));
}

#[test]
fn the_agent_may_read_and_fill_the_seed_of_the_flow_hash_and_no_other_secret() {
    let secret = strictly::<Secret>("Secret");
    let name = secret.metadata.name.unwrap();
    let place = format!("{}/{name}", secret.metadata.namespace.unwrap());
    assert_eq!(run_args(&agent()).flows.hash_seed_secret.to_string(), place);
    assert_eq!(
        (secret.data, secret.string_data),
        (None, None),
        "applied again, it must not take the agents' seed away"
    );
    let role = strictly::<Role>("Role");
    let rule = PolicyRule {
        api_groups: Some(vec![String::new()]),
        resources: Some(vec!["secrets".into()]),
        resource_names: Some(vec![name]),
        verbs: vec!["get".into(), "update".into()],
        ..PolicyRule::default()
    };
    assert_eq!((role.metadata.namespace.as_deref(), role.rules), (Some("kube-system"), Some(vec![rule])));
    let binding = strictly::<RoleBinding>("RoleBinding");
    let subject = &binding.subjects.unwrap()[0];
    assert_eq!((subject.name.as_str(), subject.namespace.as_deref()), ("shunt", Some("kube-system")));
    assert_eq!((binding.role_ref.kind.as_str(), binding.role_ref.name.as_str()), ("Role", "shunt"));
}

#[test]
fn every_flag_is_one_of_the_agents() {
    let container = agent();
    let run = run_args(&container);
    let mounts = container.volume_mounts.unwrap();
    let is_mounted = |path: &Path| mounts.iter().any(|mount| path.starts_with(&mount.mount_path));
    assert!(is_mounted(&run.bpffs) && is_mounted(&run.cgroup.unwrap()));
    for probe in [container.startup_probe, container.liveness_probe, container.readiness_probe] {
        let get = probe.unwrap().http_get.unwrap();
        let port = serde_json::to_value(&get.port).unwrap();
        assert_eq!(port, run.healthz_bind_address.port(), "{get:?}");
        assert!(["/healthz", "/livez"].contains(&get.path.as_deref().unwrap()), "{get:?}");
    }
    let volumes: BTreeSet<String> = pod().volumes.unwrap().into_iter().map(|volume| volume.name).collect();
    assert_eq!(volumes, mounts.into_iter().map(|mount| mount.name).collect());
}

#[test]
fn the_agent_runs_with_the_least_privileges() {
    let context = agent().security_context.unwrap();
    let capabilities = context.capabilities.unwrap();
    assert_eq!(capabilities.drop.unwrap(), ["ALL"]);
    assert_eq!(capabilities.add.unwrap(), ["BPF", "NET_ADMIN", "PERFMON"]);
    assert_eq!(context.read_only_root_filesystem, Some(true));
    assert_eq!(context.privileged, None);
    assert_eq!(context.allow_privilege_escalation, Some(false));
    let pod = pod();
    assert_eq!(pod.host_network, Some(true));
    assert_eq!(pod.priority_class_name.as_deref(), Some("system-node-critical"));
    assert_eq!(context.run_as_user, Some(0), "capabilities reach no other user");
    assert_eq!(context.seccomp_profile.unwrap().type_, "RuntimeDefault");
}

#[test]
fn the_agent_runs_on_every_node_that_its_image_is_for() {
    let pod = pod();
    assert_eq!(pod.tolerations, Some(everywhere()));
    assert_eq!(pod.node_selector, Some(nodes()));
    assert_eq!(host_paths(&pod), [("/sys/fs/bpf", "Directory"), ("/sys/fs/cgroup", "Directory")].map(owned));
}

/// Tolerates every taint.
fn everywhere() -> Vec<Toleration> {
    vec![Toleration { operator: Some("Exists".into()), ..Toleration::default() }]
}

fn nodes() -> BTreeMap<String, String> {
    [("kubernetes.io/arch", "amd64"), ("kubernetes.io/os", "linux")].map(owned).into()
}

fn owned((first, second): (&str, &str)) -> (String, String) {
    (first.to_owned(), second.to_owned())
}

/// The node's directories, with what they must be: `Directory` makes none that is missing.
fn host_paths(pod: &PodSpec) -> Vec<(String, String)> {
    let volumes = pod.volumes.iter().flatten().map(|volume| volume.host_path.clone().unwrap());
    volumes.map(|path| (path.path, path.type_.unwrap())).collect()
}

/// `768Mi` or `2Gi`, in MiB.
fn mebibytes(quantity: &Quantity) -> u32 {
    let units = [("Mi", 1), ("Gi", 1024)];
    let read = |(unit, factor)| Some(quantity.0.strip_suffix(unit)?.parse::<u32>().unwrap() * factor);
    units.into_iter().find_map(read).unwrap_or_else(|| panic!("{}", quantity.0))
}

/// The container is charged for its maps: what the agent may make must fit in, beside the agent.
#[test]
fn maps_of_the_size_that_the_agent_may_make_fit_into_its_limit() {
    const AGENT_MIB: u32 = 256;
    let container = agent();
    let resources = container.resources.clone().unwrap();
    let memory = |amounts: Option<BTreeMap<String, Quantity>>| mebibytes(&amounts.unwrap()["memory"]);
    let (requested, limit) = (memory(resources.requests), memory(resources.limits));
    let capacities = run_args(&container).capacities;
    assert!(limit >= capacities.max_map_memory + AGENT_MIB, "{limit}");
    let usual = map_mebibytes(&capacities.capacities([true; 2]), 2);
    assert!(usual <= requested.into(), "two CPUs take {usual} MiB");
    for cpus in [2, 64, 128] {
        let bill = Bill::new(&capacities.capacities([true; 2]), cpus);
        bill.check(capacities.max_map_memory).unwrap_or_else(|error| panic!("{cpus} CPUs: {error}"));
    }
}

fn map_mebibytes(capacities: &Capacities, cpus: u32) -> u64 {
    Bill::new(capacities, cpus).total().div_ceil(1 << 20)
}

#[test]
fn the_docs_say_how_much_memory_the_maps_take() {
    let text = fs::read_to_string(directory().join("../docs/switching.md")).unwrap();
    let [two, more] = [2, 102].map(|cpus| map_mebibytes(&Capacities::default(), cpus));
    let figures = format!("{two} MiB on two CPUs, {:.1} MiB more for each further one", (more - two) as f64 / 100.0);
    assert!(text.contains(&figures), "{figures}");
}

/// The way back: what is removed is what the agent made, on the same nodes, with no more privileges.
#[test]
fn the_cleanup_removes_what_the_agent_makes() {
    assert_eq!(applied(&directory().join("cleanup")), ["daemonset.yaml".to_owned()].into());
    let daemon_set: DaemonSet = strictly_among(&read("cleanup/daemonset.yaml"), "DaemonSet");
    let pod = daemon_set.spec.template.spec.unwrap();
    assert_eq!((pod.tolerations.clone(), pod.node_selector.clone()), (Some(everywhere()), Some(nodes())));
    assert_eq!((pod.host_network, pod.automount_service_account_token), (Some(true), Some(false)));
    assert_eq!(host_paths(&pod), [("/sys/fs/bpf", "Directory")].map(owned));
    let bpffs = run_args(&agent()).bpffs;
    let containers = [&pod.init_containers.clone().unwrap()[0], &pod.containers[0]];
    for (container, stays) in containers.into_iter().zip([false, true]) {
        let Command::Cleanup(cleanup) = command(container) else { panic!("another subcommand") };
        assert_eq!((cleanup.bpffs, cleanup.stay, cleanup.dry_run), (bpffs.clone(), stays, false));
        assert_eq!(container.image, agent().image);
        let context = container.security_context.clone().unwrap();
        let own = context.capabilities.unwrap();
        assert_eq!((own.drop.unwrap(), own.add.unwrap()), (vec!["ALL".into()], vec!["BPF".into(), "NET_ADMIN".into()]));
        assert_eq!((context.run_as_user, context.privileged), (Some(0), None));
    }
}

/// `setpriv` with what a container of the manifests has: these capabilities, and no way to more.
fn with_privileges(container: &Container, node: &Node, arguments: &[String]) -> Result<process::Command> {
    let added = container.security_context.clone().unwrap().capabilities.unwrap().add.unwrap();
    let set = added.iter().fold("-all".to_owned(), |set, name| format!("{set},+{}", name.to_lowercase()));
    let mut command = node.namespace().command("setpriv");
    command.args(["--no-new-privs", "--inh-caps", "-all", "--bounding-set", &set]).arg(agent_binary()?);
    command.args(arguments).env_remove("RUST_LOG").env("RUST_BACKTRACE", "0").env("NO_COLOR", "1");
    Ok(command)
}

/// What the manifests grant is enough to adopt, to serve, and to remove everything.
#[test]
fn the_privileges_of_the_manifests_are_enough() -> Result<()> {
    let mut world = World::with_agents(Options::HOST_SOCKETS)?;
    let daemon_set: DaemonSet = strictly_among(&read("cleanup/daemonset.yaml"), "DaemonSet");
    let cleanup = daemon_set.spec.template.spec.unwrap().init_containers.unwrap().remove(0);
    for node in world.nodes_mut() {
        node.agent_mut().terminate()?;
        let mut child = with_privileges(&agent(), node, &node.agent_arguments(Xdp::Off))?.spawn()?;
        let ready = node.namespace().enter(|| {
            wait_until("the agent becoming ready", Duration::from_secs(30), || {
                ensure!(child.try_wait()?.is_none(), "it has ended");
                let healthz = SocketAddr::from(([127, 0, 0, 1], 10_256));
                Ok(http::get(healthz, "/healthz", Duration::from_secs(1)).is_ok_and(|page| page.status == 200))
            })
        })?;
        child.kill()?;
        child.wait()?;
        ready?;
    }
    world.serves()?;
    for node in world.nodes_mut() {
        let arguments = ["cleanup", "--bpffs", &node.bpffs().display().to_string()].map(str::to_owned);
        let output = with_privileges(&cleanup, node, &arguments)?.output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let left = node.lb_agent("cleanup --dry-run")?;
        ensure!(left.starts_with("nothing of Shunt's"), "{left}");
    }
    Ok(())
}

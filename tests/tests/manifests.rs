// SPDX-License-Identifier: MIT OR Apache-2.0
//! `manifests/`, read as strictly as an API server would with `fieldValidation=Strict`, and against the agent itself.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use clap::Parser;
use k8s_openapi::{
    api::{
        apps::v1::DaemonSet,
        core::v1::{Container, PodSpec, ServiceAccount},
        rbac::v1::{ClusterRole, ClusterRoleBinding},
    },
    serde::{Serialize, de::DeserializeOwned},
};
use lb_agent::cli::{Cli, Command};
use serde_json::Value;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests")
}

fn read(name: &str) -> Vec<Value> {
    let text = fs::read_to_string(directory().join(name)).unwrap();
    let documents: Vec<&str> = text.split("\n---\n").collect();
    documents.into_iter().map(|document| serde_saphyr::from_str(document).unwrap()).collect()
}

/// What `kubectl apply -k` takes.
fn resources() -> Vec<Value> {
    let kustomization = &read("kustomization.yaml")[0];
    let files = kustomization["resources"].as_array().unwrap();
    files.iter().flat_map(|file| read(file.as_str().unwrap())).collect()
}

/// The one object of a kind; every field of its manifest must be one that the type knows.
fn strictly<K: Serialize + DeserializeOwned>(kind: &str) -> K {
    let resources = resources();
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
    strictly::<DaemonSet>("DaemonSet").spec.unwrap().template.spec.unwrap()
}

fn agent() -> Container {
    pod().containers.remove(0)
}

#[test]
fn every_file_is_in_the_kustomization_and_every_kind_is_known() {
    let kustomization = &read("kustomization.yaml")[0];
    let listed: BTreeSet<&str> =
        kustomization["resources"].as_array().unwrap().iter().map(|file| file.as_str().unwrap()).collect();
    let files = fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let files: BTreeSet<String> =
        files.filter(|name| name.ends_with(".yaml") && name != "kustomization.yaml").collect();
    assert_eq!(listed, files.iter().map(String::as_str).collect());
    strictly::<ServiceAccount>("ServiceAccount");
    strictly::<ClusterRole>("ClusterRole");
    strictly::<ClusterRoleBinding>("ClusterRoleBinding");
    strictly::<DaemonSet>("DaemonSet");
    assert_eq!(resources().len(), 4);
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
fn every_flag_is_one_of_the_agents() {
    let container = agent();
    let arguments = container.args.unwrap();
    let cli = Cli::try_parse_from(["lb-agent".to_owned()].into_iter().chain(arguments))
        .unwrap_or_else(|error| panic!("{error}"));
    let Command::Run(run) = cli.command else { panic!("another subcommand") };
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
}

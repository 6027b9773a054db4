// SPDX-License-Identifier: MIT OR Apache-2.0
//! Files as tools write them, and what comes of them.

use clap::Parser;

use super::*;
use crate::cli::run::values::Seconds;

/// What kubeadm 1.36 puts into the ConfigMap kube-proxy, with some values set.
const KUBEADM: &str = "
apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: ''
  burst: 0
  contentType: ''
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: 10.244.0.0/16,fd00:244::/56
configSyncPeriod: 0s
conntrack:
  maxPerCore: null
  min: null
  tcpBeLiberal: false
  tcpCloseWaitTimeout: 30m0s
  tcpEstablishedTimeout: null
  udpStreamTimeout: 0s
  udpTimeout: 45s
detectLocal:
  bridgeInterface: ''
  interfaceNamePrefix: ''
detectLocalMode: ''
enableProfiling: false
healthzBindAddress: ''
hostnameOverride: Node-7
iptables:
  localhostNodePorts: null
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 30s
ipvs:
  excludeCIDRs: null
  minSyncPeriod: 0s
  scheduler: ''
  strictARP: false
  syncPeriod: 0s
  tcpFinTimeout: 0s
  tcpTimeout: 0s
  udpTimeout: 0s
kind: KubeProxyConfiguration
logging:
  flushFrequency: 0
  options:
    json:
      infoBufferSize: '0'
  verbosity: 0
metricsBindAddress: 0.0.0.0
mode: ''
nftables:
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
nodePortAddresses: [192.0.2.0/24, 'fd00::/64']
oomScoreAdj: null
portRange: ''
showHiddenMetricsForVersion: ''
winkernel:
  enableDSR: false
  networkName: ''
";

fn findings(text: &str) -> Findings {
    read(Path::new("kube-proxy.yaml"), text).unwrap()
}

fn with_header(text: &str) -> String {
    format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{text}")
}

fn error(text: &str) -> String {
    read(Path::new("kube-proxy.yaml"), &with_header(text)).unwrap_err().to_string()
}

/// The flags that come of a file and a command line.
fn flags(text: &str, line: &str) -> RunArgs {
    let arguments = "lb-agent run --source kube".split(' ').chain(line.split_whitespace()).map(OsString::from);
    add(findings(text).settings, arguments.collect()).unwrap().expect("the subcommand run").0
}

#[test]
fn rule_76_what_kubeadm_writes_is_understood_to_the_last_field() {
    let found = findings(KUBEADM);
    assert_eq!(found.unknown, [] as [&str; 0]);
    assert_eq!(found.ignored.keys().collect::<Vec<_>>(), ["bindAddress", "iptables.syncPeriod"]);

    let args = flags(KUBEADM, "");
    assert_eq!(args.node_name.as_deref(), Some("Node-7"));
    assert_eq!(args.kubeconfig, Some("/var/lib/kube-proxy/kubeconfig.conf".into()));
    assert_eq!(args.metrics_bind_address.to_string(), "0.0.0.0:10249");
    assert_eq!(args.healthz_bind_address.to_string(), "0.0.0.0:10256");
    assert_eq!(args.flows.tcp_timeout_close_wait, Seconds(1800));
    assert_eq!(args.flows.tcp_timeout_established, Seconds(86_400));
    assert_eq!(args.flows.udp_timeout, Seconds(45));
    assert_eq!(args.flows.cluster_cidr, "10.244.0.0/16,fd00:244::/56".parse().ok());
    assert_eq!(args.nodeport_addresses, "192.0.2.0/24,fd00::/64".parse().unwrap());
}

#[test]
fn rule_76_a_flag_that_was_typed_wins() {
    let args = flags(KUBEADM, "--node-name node-8 --udp-timeout-unreplied=7s");
    assert_eq!(args.node_name.as_deref(), Some("node-8"));
    assert_eq!(args.flows.udp_timeout, Seconds(7));
    assert_eq!(args.flows.tcp_timeout_close_wait, Seconds(1800));
}

/// The same file, another meaning: kube-proxy answers at all addresses unless its mode is nftables.
#[test]
fn rule_28_a_file_that_does_not_say_where_node_ports_are_answered_is_told_of_the_difference() {
    for (text, means_all) in [
        ("mode: ''", true),
        ("mode: iptables\nnodePortAddresses: []", true),
        ("mode: nftables", false),
        ("mode: iptables\nnodePortAddresses: [192.0.2.0/24]", false),
    ] {
        assert_eq!(findings(&with_header(text)).means_all_addresses, means_all, "{text}");
    }
}

#[test]
fn masquerade_all_is_that_of_the_files_mode() {
    for (mode, is_on) in [("", true), ("iptables", true), ("ipvs", true), ("nftables", false)] {
        let text = with_header(&format!("mode: '{mode}'\niptables: {{masqueradeAll: true}}"));
        assert_eq!(flags(&text, "").flows.masquerade_all, is_on, "{mode}");
        let ignored = &findings(&text).ignored;
        assert_eq!(ignored.contains_key("iptables.masqueradeAll"), !is_on, "{mode}");
    }
    assert!(flags(&with_header("mode: nftables\nnftables: {masqueradeAll: true}"), "").flows.masquerade_all);
}

#[test]
fn rule_84_node_port_addresses_of_kubernetes_1_37_mix_words_and_ranges() {
    for (list, flag) in [
        ("[primary, localhost, 192.0.2.0/24]", "primary,localhost,192.0.2.0/24"),
        ("[all]", "all"),
        ("[localhost]", "localhost"),
    ] {
        let args = flags(&with_header(&format!("nodePortAddresses: {list}")), "");
        assert_eq!(args.nodeport_addresses, flag.parse().unwrap(), "{list}");
    }
    let text = error("nodePortAddresses: [secondary]");
    assert!(text.contains("nodePortAddresses is [\"secondary\"]; it must be a list of CIDRs"), "{text}");
}

/// CVE-2020-8554 stays closed for who comes from kube-proxy.
#[test]
fn rule_87_a_gate_that_closes_external_ips_is_honoured() {
    let gates = |gates: &str| with_header(&format!("featureGates: {{{gates}}}"));
    assert!(!flags(&gates("AllowServiceExternalIPs: false"), "").external_ips);
    assert!(flags(&gates("AllowServiceExternalIPs: true"), "").external_ips);
    assert!(flags(&gates("AllowServiceExternalIPs: false"), "--external-ips=true").external_ips, "what is typed wins");
    assert!(flags(&gates("ServiceTrafficDistribution: true"), "").external_ips);
    assert!(!flags(&gates(""), "--external-ips=false").external_ips);
}

#[test]
fn rule_87_a_gate_that_forbids_something_and_means_nothing_here_is_refused() {
    for gate in ["AllowSomethingNew: false", "DisableSomethingOld: true", "RestrictSources: true"] {
        let text = error(&format!("featureGates: {{{gate}}}"));
        assert!(text.contains("featureGates.") && text.contains("would go on doing what it forbids"), "{text}");
    }
    for gate in ["AllowSomethingNew: true", "DisableSomethingOld: false", "NFTablesProxyMode: true"] {
        let found = findings(&with_header(&format!("featureGates: {{{gate}}}")));
        assert_eq!((found.settings.len(), found.ignored.len()), (0, 1), "{gate}");
    }
}

#[test]
fn what_is_no_field_is_named() {
    let found = findings(&with_header("hostNameOverride: a\niptables: {masqueradeall: true}\nfeatureGates: {A: true}"));
    assert_eq!(found.unknown, ["hostNameOverride", "iptables.masqueradeall"]);
    assert_eq!(found.ignored.keys().collect::<Vec<_>>(), ["featureGates.A"]);
    assert_eq!(found.settings, []);
}

#[test]
fn a_bad_value_is_an_error_with_file_and_field() {
    for (text, wanted) in [
        ("healthzBindAddress: nowhere", "kube-proxy.yaml: healthzBindAddress is \"nowhere\"; it must be an address"),
        ("conntrack: {udpTimeout: 10}", "conntrack.udpTimeout is 10; it must be a time span"),
        ("nodePortAddresses: [10.0.0.0]", "nodePortAddresses is [\"10.0.0.0\"]; it must be a list of CIDRs"),
        ("nodePortAddresses: primary", "it must be a list"),
        ("clusterCIDR: 10.0.0.0/40", "it must be a CIDR"),
        ("iptables: {masqueradeAll: 'yes'}", "it must be true or false"),
        ("hostnameOverride: [a]", "it must be a text"),
    ] {
        let error = error(text);
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn another_kind_of_file_is_refused() {
    let path = Path::new("kubelet.yaml");
    let text = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration";
    let error = read(path, text).unwrap_err().to_string();
    assert!(error.starts_with("--config kubelet.yaml: apiVersion is \"kubelet.config"), "{error}");
    assert!(read(path, "a: [").unwrap_err().to_string().starts_with("--config kubelet.yaml: "));
    assert!(read(path, "").is_err());
}

#[test]
fn without_a_file_nothing_changes() {
    let line = ["lb-agent", "run", "--source", "kube"].map(OsString::from);
    let Command::Run(args) = Cli::parse_from(&line).command else { panic!("another subcommand") };
    let completed = complete(&args, line).unwrap();
    assert_eq!((completed.args.node_name, completed.file), (None, None));
}

/// As the kubelet replaces a ConfigMap's files: a link to a directory is renamed over another one.
#[tokio::test]
async fn rule_76_a_file_that_is_replaced_is_noticed_and_one_that_is_only_touched_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str| directory.path().join(name);
    let write = |version: &str, text: &str| {
        fs::create_dir(place(version)).unwrap();
        fs::write(place(version).join("config.conf"), with_header(text)).unwrap();
        std::os::unix::fs::symlink(version, place("..data_tmp")).unwrap();
        fs::rename(place("..data_tmp"), place("..data")).unwrap();
    };
    write("..1", "hostnameOverride: a");
    std::os::unix::fs::symlink("..data/config.conf", place("config.conf")).unwrap();
    let path = place("config.conf");
    let line = ["lb-agent", "run", "--source", "kube", "--config", path.to_str().unwrap()].map(OsString::from);
    let Command::Run(args) = Cli::parse_from(&line).command else { panic!("another subcommand") };
    let completed = complete(&args, line).unwrap();
    assert_eq!(completed.args.node_name.as_deref(), Some("a"));
    assert!(completed.flags.iter().any(|flag| flag == ("node-name", "a")), "{:?}", completed.flags);

    let file = completed.file.unwrap();
    write("..2", "hostnameOverride: a");
    let a_while = Duration::from_millis(300);
    assert!(time::timeout(a_while, file.change()).await.is_err(), "it says the same");
    let changed = tokio::spawn(async move { file.change().await });
    time::sleep(a_while).await;
    write("..3", "hostnameOverride: b");
    time::timeout(POLL / 2, changed).await.expect("the kernel tells").unwrap();
}

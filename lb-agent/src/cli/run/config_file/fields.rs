// SPDX-License-Identifier: MIT OR Apache-2.0
//! The fields of `KubeProxyConfiguration` (kubeproxy.config.k8s.io/v1alpha1, Kubernetes 1.37), and what they mean here.

use super::value::{self, Read};

/// A field's value as one of our flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    /// Its path in the file.
    pub(super) field: String,
    /// The flag, without dashes.
    pub(super) flag: &'static str,
    /// `None` for a flag without a value.
    pub(super) value: Option<String>,
}

/// What a field means here.
pub(super) enum Meaning {
    /// What a file is, not what it sets.
    Header,
    /// The same as this flag; how its value is read.
    Flag(&'static str, Read),
    /// The same as this flag, on or off.
    Switch(&'static str),
    /// A feature gate that Shunt does not know, and that takes something away when it has this value.
    Restriction(bool),
    /// Nothing, and why.
    Ignored(&'static str),
}

const BY_CHANGE: &str = "Shunt writes every change at once, and nothing else periodically";
const NO_CONNTRACK: &str = "Shunt has a flow table of its own (--max-flows) and sets nothing of conntrack's";
const OTHER_MODE: &str = "it belongs to another mode than the one of this file";
const NO_MARK: &str = "Shunt marks no packets";
const BY_DOOR: &str = "Shunt knows local pods by the device that they send by (--pod-interface)";
const NO_IPVS: &str = "Shunt does without IPVS";
const NO_WINDOWS: &str = "it is for Windows";
const OWN_LOG: &str = "Shunt has logging flags of its own";

/// Gates that allow something, and gates that forbid something, tell it by their names. Who relies on one that Shunt does not
/// know must hear of it.
fn gate(name: &str) -> Meaning {
    const FORBIDDING: [&str; 7] = ["Block", "Deny", "Disable", "Disallow", "Enforce", "Restrict", "Require"];
    if name.starts_with("Allow") {
        Meaning::Restriction(false)
    } else if FORBIDDING.iter().any(|word| name.starts_with(word)) {
        Meaning::Restriction(true)
    } else {
        Meaning::Ignored("Shunt has no such feature gate")
    }
}

/// `mode` is that of the file: some fields stand once for each mode. `None` for what is no field.
pub(super) fn meaning(field: &str, mode: &str) -> Option<Meaning> {
    use Meaning::{Flag, Header, Ignored};
    let is_nftables = mode == "nftables";
    Some(match field {
        "apiVersion" | "kind" => Header,

        "hostnameOverride" => Flag("node-name", value::text),
        "healthzBindAddress" => Flag("healthz-bind-address", value::healthz_address),
        "metricsBindAddress" => Flag("metrics-bind-address", value::metrics_address),
        "nodePortAddresses" => Flag("nodeport-addresses", value::node_port_addresses),
        "clusterCIDR" => Flag("cluster-cidr", value::ranges),
        "clientConnection.kubeconfig" => Flag("kubeconfig", value::text),
        "iptables.masqueradeAll" if !is_nftables => Flag("masquerade-all", value::switch),
        "nftables.masqueradeAll" if is_nftables => Flag("masquerade-all", value::switch),
        "iptables.masqueradeAll" | "nftables.masqueradeAll" => Ignored(OTHER_MODE),
        "conntrack.tcpEstablishedTimeout" => Flag("tcp-timeout-established", value::duration),
        "conntrack.tcpCloseWaitTimeout" => Flag("tcp-timeout-close-wait", value::duration),
        "conntrack.udpTimeout" => Flag("udp-timeout", value::duration),
        "conntrack.udpStreamTimeout" => Flag("udp-stream-timeout", value::duration),

        "mode" => Ignored("Shunt has one mode, eBPF"),
        "bindAddress" => Ignored("Shunt takes the node's addresses from its Node object and its devices"),
        "bindAddressHardFail" => Ignored("a port that can't be opened always ends Shunt"),
        "enableProfiling" => Ignored("Shunt has no profiling endpoint"),
        "showHiddenMetricsForVersion" => Ignored("Shunt hides no metrics"),
        "oomScoreAdj" => Ignored("it is the pod's business (priorityClassName) or the service manager's"),
        "portRange" => Ignored("kube-proxy ignores it too"),
        "detectLocalMode" | "detectLocal" | "detectLocal.bridgeInterface" | "detectLocal.interfaceNamePrefix" => {
            Ignored(BY_DOOR)
        }
        "configSyncPeriod"
        | "iptables.syncPeriod"
        | "iptables.minSyncPeriod"
        | "nftables.syncPeriod"
        | "nftables.minSyncPeriod" => Ignored(BY_CHANGE),
        "iptables.masqueradeBit" | "nftables.masqueradeBit" => Ignored(NO_MARK),
        "iptables.localhostNodePorts" => Ignored("NodePorts on localhost are the socket door's business"),
        "iptables" | "nftables" | "conntrack" | "clientConnection" => Ignored("there is nothing in it"),
        "ipvs" | "ipvs.syncPeriod" | "ipvs.minSyncPeriod" | "ipvs.scheduler" | "ipvs.excludeCIDRs"
        | "ipvs.strictARP" | "ipvs.tcpTimeout" | "ipvs.tcpFinTimeout" | "ipvs.udpTimeout" => Ignored(NO_IPVS),
        "conntrack.maxPerCore" | "conntrack.min" | "conntrack.tcpBeLiberal" => Ignored(NO_CONNTRACK),
        "clientConnection.acceptContentTypes" | "clientConnection.contentType" => Ignored("Shunt speaks JSON"),
        "clientConnection.qps" | "clientConnection.burst" => {
            Ignored("Shunt asks the API server for three lists and follows them")
        }
        "winkernel"
        | "winkernel.networkName"
        | "winkernel.sourceVip"
        | "winkernel.enableDSR"
        | "winkernel.rootHnsEndpointName"
        | "winkernel.forwardHealthCheckVip" => Ignored(NO_WINDOWS),
        "featureGates" => Ignored("Shunt has no feature gates"),
        "logging" => Ignored(OWN_LOG),
        // Their members have names of their own.
        "featureGates.AllowServiceExternalIPs" => Meaning::Switch("external-ips"),
        _ if field.starts_with("featureGates.") => gate(field.trim_start_matches("featureGates.")),
        _ if field.starts_with("logging.") => Ignored(OWN_LOG),
        _ => return None,
    })
}

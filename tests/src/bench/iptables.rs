// SPDX-License-Identifier: MIT OR Apache-2.0
//! Rules of the kind that kube-proxy's iptables mode writes, generated: the same hooks and chains, a rule for each Service that a
//! new connection passes until it is met, and one by chance for each of its endpoints. kube-proxy itself does not run here.

use std::fmt::Write as _;

use super::scene::Rule;

/// Both tables of Services of IPv4, as `iptables-restore` reads them. NodePorts are left out.
pub fn tables(rules: &[Rule]) -> String {
    let mut chains = String::new();
    let mut lines = String::new();
    for rule in rules {
        write_service(&mut chains, &mut lines, rule);
    }
    format!(
        "*filter\n:KUBE-FORWARD - [0:0]\n{FILTER}COMMIT\n\
         *nat\n:KUBE-SERVICES - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n{chains}{NAT}{lines}COMMIT\n"
    )
}

const FILTER: &str = "\
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
";

const NAT: &str = "\
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
";

/// A chain for the Service, and one for each endpoint. Writing to a string can't fail.
fn write_service(chains: &mut String, lines: &mut String, rule: &Rule) {
    let Rule { name, cluster_ip, protocol, port, endpoints, .. } = rule;
    let matches =
        format!("-d {cluster_ip}/32 -p {protocol} -m comment --comment \"bench/{name}\" -m {protocol} --dport {port}");
    let _ = writeln!(chains, ":SVC-{name} - [0:0]");
    let _ = writeln!(lines, "-A KUBE-SERVICES {matches} -j SVC-{name}");
    let _ = writeln!(lines, "-A SVC-{name} ! -s 10.244.0.0/16 {matches} -j KUBE-MARK-MASQ");
    for (number, (address, port)) in endpoints.iter().enumerate() {
        let left = endpoints.len() - number;
        let chance = if left == 1 {
            String::new()
        } else {
            format!("-m statistic --mode random --probability {:.10} ", 1.0 / left as f64)
        };
        let _ = writeln!(chains, ":SEP-{name}-{number} - [0:0]");
        let _ = writeln!(lines, "-A SVC-{name} -m comment --comment \"bench/{name}\" {chance}-j SEP-{name}-{number}");
        let _ = writeln!(lines, "-A SEP-{name}-{number} -s {address}/32 -j KUBE-MARK-MASQ");
        let _ = writeln!(
            lines,
            "-A SEP-{name}-{number} -p {protocol} -m {protocol} -j DNAT --to-destination {address}:{port}"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn every_endpoint_has_its_chance() {
        let rule = Rule {
            name: "web".to_owned(),
            cluster_ip: Ipv4Addr::new(10, 97, 0, 1).into(),
            protocol: "tcp",
            port: 80,
            node_port: None,
            endpoints: [5, 6].map(|host| (Ipv4Addr::new(10, 244, 3, host).into(), 8080)).into(),
        };
        let text = tables(&[rule]);
        for part in [
            "-A KUBE-SERVICES -d 10.97.0.1/32 -p tcp -m comment --comment \"bench/web\" -m tcp --dport 80 -j SVC-web\n",
            "--mode random --probability 0.5000000000 -j SEP-web-0\n",
            "\"bench/web\" -j SEP-web-1\n",
            "-A SEP-web-1 -p tcp -m tcp -j DNAT --to-destination 10.244.3.6:8080\n",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }
}

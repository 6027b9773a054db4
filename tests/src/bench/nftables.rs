// SPDX-License-Identifier: MIT OR Apache-2.0
//! Rules of the kind that kube-proxy's nftables mode writes, generated: the same hooks, maps and chains, and so the same path
//! for a packet. kube-proxy itself does not run here.

use std::{fmt::Write as _, net::Ipv4Addr};

use super::scene::Rule;

/// The whole table of Services of IPv4, as `nft -f` reads it.
pub fn table(rules: &[Rule], node: Ipv4Addr) -> String {
    let mut text = String::from("table ip kube-proxy {\n");
    let elements = |of: &dyn Fn(&Rule) -> Option<String>| rules.iter().filter_map(of).collect::<Vec<_>>().join(", ");
    let unique: std::collections::BTreeSet<_> = rules.iter().map(|rule| rule.cluster_ip.to_string()).collect();
    let cluster_ips = unique.into_iter().collect::<Vec<_>>().join(", ");
    let services = elements(&|rule| {
        let Rule { name, cluster_ip, protocol, port, .. } = rule;
        Some(format!("{cluster_ip} . {protocol} . {port} : goto service-{name}"))
    });
    let node_ports = elements(&|rule| {
        let Rule { name, protocol, .. } = rule;
        Some(format!("{protocol} . {} : goto external-{name}", rule.node_port?))
    });
    let _ = write!(
        text,
        " set cluster-ips {{ type ipv4_addr; elements = {{ {cluster_ips} }}; }}\n\
         \x20set nodeport-ips {{ type ipv4_addr; elements = {{ {node} }}; }}\n\
         \x20map no-endpoint-services {{ type ipv4_addr . inet_proto . inet_service : verdict; }}\n\
         \x20map no-endpoint-nodeports {{ type inet_proto . inet_service : verdict; }}\n\
         \x20map firewall-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; }}\n"
    );
    text.push_str(FIRST_CHAINS);
    for rule in rules {
        write_chains(&mut text, rule);
    }
    let _ = write!(
        text,
        " map service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; elements = {{ {services} }}; }}\n\
         \x20map service-nodeports {{ type inet_proto . inet_service : verdict; elements = {{ {node_ports} }}; }}\n"
    );
    text.push_str(LAST_CHAINS);
    text.push_str("}\n");
    text
}

/// What the chains of Services refer to.
const FIRST_CHAINS: &str = "
 chain mark-for-masquerade { mark set mark or 0x4000; }
";

/// What refers to them.
const LAST_CHAINS: &str = "
 chain firewall-check { ip daddr . meta l4proto . th dport vmap @firewall-ips; }
 chain service-endpoints-check { ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }
 chain nodeport-endpoints-check { ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports; }
 chain cluster-ips-check { ip daddr @cluster-ips reject; }
 chain services {
  ip daddr . meta l4proto . th dport vmap @service-ips
  ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
 }
 chain masquerading { mark and 0x4000 == 0 return; mark set mark xor 0x4000; masquerade fully-random; }
 chain filter-prerouting { type filter hook prerouting priority -110; ct state new jump firewall-check; }
 chain filter-input {
  type filter hook input priority -110;
  ct state new jump nodeport-endpoints-check
  ct state new jump service-endpoints-check
 }
 chain filter-forward {
  type filter hook forward priority -110;
  ct state new jump service-endpoints-check
  ct state new jump cluster-ips-check
 }
 chain filter-output {
  type filter hook output priority -110;
  ct state new jump service-endpoints-check
  ct state new jump firewall-check
 }
 chain filter-output-post-dnat { type filter hook output priority -90; ct state new jump cluster-ips-check; }
 chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }
 chain nat-output { type nat hook output priority -100; jump services; }
 chain nat-postrouting { type nat hook postrouting priority srcnat; jump masquerading; }
";

fn write_chains(text: &mut String, rule: &Rule) {
    let Rule { name, cluster_ip, protocol, port, node_port, endpoints } = rule;
    for (number, (address, port)) in endpoints.iter().enumerate() {
        let _ = writeln!(
            text,
            " chain endpoint-{name}-{number} {{ ip saddr {address} jump mark-for-masquerade; \
             meta l4proto {protocol} dnat to {address}:{port}; }}"
        );
    }
    let choices: Vec<_> =
        (0..endpoints.len()).map(|number| format!("{number} : goto endpoint-{name}-{number}")).collect();
    let _ = writeln!(
        text,
        " chain service-{name} {{ ip daddr {cluster_ip} {protocol} dport {port} ip saddr != 10.244.0.0/16 jump \
         mark-for-masquerade; numgen random mod {} vmap {{ {} }}; }}",
        endpoints.len(),
        choices.join(", ")
    );
    if node_port.is_some() {
        let _ = writeln!(text, " chain external-{name} {{ jump mark-for-masquerade; goto service-{name}; }}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_endpoint_has_a_chain_and_every_service_an_element() {
        let rule = Rule {
            name: "web".to_owned(),
            cluster_ip: Ipv4Addr::new(10, 97, 0, 1).into(),
            protocol: "tcp",
            port: 80,
            node_port: Some(30_080),
            endpoints: [5, 6].map(|host| (Ipv4Addr::new(10, 244, 2, host).into(), 8080)).into(),
        };
        let text = table(&[rule], Ipv4Addr::new(172, 20, 0, 12));
        for part in [
            "10.97.0.1 . tcp . 80 : goto service-web",
            "tcp . 30080 : goto external-web",
            "chain endpoint-web-1 { ip saddr 10.244.2.6 jump",
            "numgen random mod 2 vmap { 0 : goto endpoint-web-0, 1 : goto endpoint-web-1 }",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }
}

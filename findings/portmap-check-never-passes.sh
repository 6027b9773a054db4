#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Software: the CNI plugin portmap 1.1.1 of Debian 12 (containernetworking-plugins), over iptables 1.8.9.
# One would expect: CHECK right after a successful ADD, with the same configuration, says that all is well.
# Instead: it fails, for a pod with an IPv4 address as for one with both, on every node that has ip6tables: CHECK looks for the
#   rules of IPv4, with their IPv4 addresses, in both families' tables.
# Why it matters: a runtime that calls CHECK, as the specification lets it, tears down healthy pods with host ports; to a load
#   balancer these are endpoints that come and go for no reason. What CHECK says of a list with portmap is nothing to rely on.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

debian containernetworking-plugins=1.1.1+ds1-3+b5 iptables=1.8.9-2 libip4tc2=1.8.9-2 libip6tc2=1.8.9-2 libxtables12=1.8.9-2 \
	libnftnl11=1.2.4-2 libmnl0=1.0.4-3 libnetfilter-conntrack3=1.0.9-3 libnfnetlink0=1.0.2-2
ln -s xtables-nft-multi "$WORK/root/usr/sbin/iptables"
ln -s xtables-nft-multi "$WORK/root/usr/sbin/ip6tables"
portmap() {
	local config='{"cniVersion": "1.0.0", "name": "pods", "type": "portmap", "snat": true,
		"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
		"prevResult": {"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/pod"}], "ips": ['$3']}}'
	local code=0 said
	said=$(CNI_COMMAND=$1 CNI_CONTAINERID=$2 CNI_NETNS=/pod CNI_IFNAME=eth0 CNI_PATH="$WORK/root/usr/lib/cni" \
		"$WORK/root/usr/lib/cni/portmap" <<<"$config") || code=$?
	echo "$1 for $2: exit code $code $(grep -o 'could not check.*' <<<"$said" | sed 's/",*$//; s/rule .* in chain/a rule with 10.5.0.2 in chain/; s/CNI-DN-[0-9a-f]*/CHAIN/' || true)"
}
export -f portmap
export WORK
seen=$(
	alone bash -euo pipefail <<-'END'
		ip link set lo up
		ip link add pods type veth peer name pod
		ip link set pods up
		ip address add 10.5.0.1/24 dev pods
		v4='{"address": "10.5.0.2/24", "interface": 0}'
		v6='{"address": "fd00:5::2/64", "interface": 0}'
		for command in ADD CHECK; do portmap $command ipv4-alone "$v4"; done
		for command in ADD CHECK; do portmap $command dual-stack "$v4, $v6"; done
	END
)

expect 'ADD for ipv4-alone: exit code 0 
CHECK for ipv4-alone: exit code 1 could not check ipv6 dnat: chain CHAIN not found in iptables table nat
ADD for dual-stack: exit code 0 
CHECK for dual-stack: exit code 1 could not check ipv6 dnat: a rule with 10.5.0.2 in chain CHAIN not found in table nat' "$seen"

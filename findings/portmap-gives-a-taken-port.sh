#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Software: the CNI plugin portmap 1.1.1 of Debian 12 (containernetworking-plugins), over iptables 1.8.9.
# One would expect: a second container that asks for a host port which another one holds is refused, as bind() would.
# Instead: the plugin reports success and writes its rules behind those of the first. All connections go to the first container, for
#   as long as it lives; then, without any event, they go to the second.
# Why it matters: a runtime takes success for granted, so the pod runs, is ready, and its host port leads to another pod. A
#   load balancer that takes such ports over has to decide whose port it is, and to say so.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

debian containernetworking-plugins=1.1.1+ds1-3+b5 iptables=1.8.9-2 libip4tc2=1.8.9-2 libip6tc2=1.8.9-2 libxtables12=1.8.9-2 \
	libnftnl11=1.2.4-2 libmnl0=1.0.4-3 libnetfilter-conntrack3=1.0.9-3 libnfnetlink0=1.0.2-2
ln -s xtables-nft-multi "$WORK/root/usr/sbin/iptables"
ln -s xtables-nft-multi "$WORK/root/usr/sbin/ip6tables"
portmap() {
	local config='{"cniVersion": "1.0.0", "name": "pods", "type": "portmap", "snat": true,
		"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
		"prevResult": {"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/pod"}],
			"ips": [{"address": "'$3'/24", "interface": 0}]}}'
	local code=0
	CNI_COMMAND=$1 CNI_CONTAINERID=$2 CNI_NETNS=/pod CNI_IFNAME=eth0 CNI_PATH="$WORK/root/usr/lib/cni" \
		"$WORK/root/usr/lib/cni/portmap" <<<"$config" >/dev/null || code=$?
	echo "$1 for $2: exit code $code"
}
first_chain() { iptables -t nat -S CNI-HOSTPORT-DNAT | grep -o 'CNI-DN-.*' | head -1; }
holder() { iptables -t nat -S "$(first_chain)" | grep -o 'to-destination .*' | cut -d' ' -f2; }
export -f portmap first_chain holder
export WORK
seen=$(
	alone bash -euo pipefail <<-'END'
		ip link set lo up
		ip link add pods type veth peer name pod
		ip link set pods up
		ip address add 10.5.0.1/24 dev pods
		portmap ADD first 10.5.0.2
		portmap ADD second 10.5.0.3
		echo "8080 leads to $(holder)"
		portmap DEL first 10.5.0.2
		echo "8080 leads to $(holder)"
	END
)

expect 'ADD for first: exit code 0
ADD for second: exit code 0
8080 leads to 10.5.0.2:80
DEL for first: exit code 0
8080 leads to 10.5.0.3:80' "$seen"

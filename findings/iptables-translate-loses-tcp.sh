#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Software: iptables 1.8.9 (iptables-translate) and nftables 1.0.6, both of Debian 12.
# One would expect: the rule with which kube-proxy sends a connection to an endpoint can be translated for nft.
# Instead: `-p tcp -m tcp -j DNAT --to-destination ADDRESS:PORT` comes out without any mention of TCP. nft refuses the result
#   ("transport protocol mapping is only valid after transport protocol match"). The same rule without `-m tcp`, or over UDP without
#   `-m udp`, is translated well, and so is one that names a port.
# Why it matters: who keeps rules beside the load balancer while moving away from kube-proxy, or compares what both would do, and
#   takes the translation for the rule, has a translation of everything but the rules that matter.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

debian iptables=1.8.9-2 libip4tc2=1.8.9-2 libip6tc2=1.8.9-2 libxtables12=1.8.9-2 libnetfilter-conntrack3=1.0.9-3 libnfnetlink0=1.0.2-2 \
	nftables=1.0.6-2+deb12u2 libnftables1=1.0.6-2+deb12u2 libnftnl11=1.2.4-2 libmnl0=1.0.4-3 libjansson4=2.14-2
translate() { iptables-translate -t nat -A KUBE-SEP-A "$@" -j DNAT --to-destination 10.1.1.1:80; }
seen=$(
	translate -p tcp -m tcp
	translate -p tcp
	translate -p udp -m udp
	translate -p tcp -m tcp --dport 80
	rule=$(translate -p tcp -m tcp | sed "s/^nft '//; s/'$//")
	printf 'add table ip nat\nadd chain ip nat KUBE-SEP-A\n%s\n' "$rule" >"$WORK/rules"
	alone nft -f "$WORK/rules" 2>&1 | head -1 | cut -d: -f4- || true
)

expect "nft 'add rule ip nat KUBE-SEP-A counter dnat to 10.1.1.1:80'
nft 'add rule ip nat KUBE-SEP-A ip protocol tcp counter dnat to 10.1.1.1:80'
nft 'add rule ip nat KUBE-SEP-A counter dnat to 10.1.1.1:80'
nft 'add rule ip nat KUBE-SEP-A tcp dport 80 counter dnat to 10.1.1.1:80'
 Error: transport protocol mapping is only valid after transport protocol match" "$seen"

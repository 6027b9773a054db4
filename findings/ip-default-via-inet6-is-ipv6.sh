#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Software: iproute2 6.1.0 of Debian 12 (6.15 does the same).
# One would expect: `ip route add 10.0.0.0/8 via inet6 NEXTHOP` makes an IPv4 route over an IPv6 next hop (RFC 5549), and `default` in
#   the place of 10.0.0.0/8 makes the IPv4 default route, as `ip route` without a family does everywhere else.
# Instead: `default via inet6 NEXTHOP` makes an IPv6 default route, with exit code 0. IPv4 stays without one. `0.0.0.0/0` or
#   `ip -4` does what was meant.
# Why it matters: on nodes of fabrics without IPv4 addresses on their links, IPv4 then has no way out, and a load balancer finds no
#   route to endpoints elsewhere, although the command that made it stands in the start script and went well. A world of tests that
#   is built with this line tests nothing of IPv4 over IPv6 next hops.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

debian iproute2=6.1.0-3 libbpf1=1:1.1.2-0+deb12u1 libelf1=0.188-2.1 libmnl0=1.0.4-3 libxtables12=1.8.9-2
seen=$(
	alone bash -euo pipefail <<-'END'
		ip link add up0 type veth peer name far0
		ip link set up0 up
		show() { echo "$1: IPv4 [$(ip -4 route show default)] IPv6 [$(ip -6 route show default | cut -d' ' -f1-5)]"; }
		ip route add 10.0.0.0/8 via inet6 fe80::1 dev up0
		echo "10.0.0.0/8: $(ip -4 route show 10.0.0.0/8)"
		ip route add default via inet6 fe80::1 dev up0
		show "default"
		ip -6 route del default
		ip route add 0.0.0.0/0 via inet6 fe80::1 dev up0
		show "0.0.0.0/0"
	END
)

expect '10.0.0.0/8: 10.0.0.0/8 via inet6 fe80::1 dev up0 
default: IPv4 [] IPv6 [default via fe80::1 dev up0]
0.0.0.0/0: IPv4 [default via inet6 fe80::1 dev up0 ] IPv6 []' "$seen"

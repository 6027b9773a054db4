#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Software: Linux 6.18 (seen there), its IPv4 and IPv6 routes; ip of iproute2 6.1.0.
# One would expect: a route with a preferred source (`src`) goes with that address, whatever table it is in: so it does in the main table
#   with IPv4. Or it stays and loses the `src`: so it does with IPv6.
# Instead: in any other table an IPv4 route stays, `src` and all, and what the machine sends by it bears an address that it no longer has.
# Why it matters: agents that lead Services' addresses, or a pod's traffic, to a device by a table of their own must rewrite such routes when
#   the node's address changes. Nothing fails that they could notice, and no answer comes back.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

seen=$(
	alone bash -euo pipefail <<-'END'
		ip link set lo up
		ip link add uplink type veth peer name other
		ip link set uplink up
		ip link set other up
		ip address add 192.0.2.1/24 dev uplink
		ip address add 192.0.2.2/32 dev uplink
		ip -6 address add fd00::1/64 dev uplink nodad
		ip -6 address add fd00::2/128 dev uplink nodad
		for table in main 83; do
			ip route add 10.96.0.0/16 dev uplink src 192.0.2.2 table "$table"
			ip route add fd00:96::/64 dev uplink src fd00::2 table "$table"
		done
		ip rule add preference 96 lookup 83
		ip address del 192.0.2.2/32 dev uplink
		ip address del fd00::2/128 dev uplink
		show() {
			printf '%s: %s\n' "$1" "$(ip -o "$2" route show "$3" table "$4" | grep -o 'src .*' | cut -d ' ' -f 1,2 || echo 'no source')"
		}
		printf 'IPv4, main: %s routes\n' "$(ip -4 -o route show 10.96.0.0/16 | wc -l)"
		show 'IPv4, table 83' -4 10.96.0.0/16 83
		show 'IPv6, main' -6 fd00:96::/64 main
		show 'IPv6, table 83' -6 fd00:96::/64 83
		ip -4 -o route get 10.96.0.1 | grep -o 'src [^ ]*'
		ip -4 -o address show dev uplink | grep -c 192.0.2.2 || true
	END
)

expect 'IPv4, main: 0 routes
IPv4, table 83: src 192.0.2.2
IPv6, main: no source
IPv6, table 83: no source
src 192.0.2.2
0' "$seen"

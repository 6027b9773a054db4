#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Software: Linux 6.18 (seen there), its choice of IPv6 source addresses.
# One would expect: on a node whose uplink has a link-local address only (unnumbered, as in routed fabrics), connections start from
#   the node's own address on the loopback device. Service addresses (/128) put there too, to be announced, were added later and
#   concern nobody else; IPv4 indeed stays with the first address.
# Instead: for IPv6 the source is whichever address shares most leading bits with the destination, and the one added last if equal:
#   most destinations are spoken to from a Service's address.
# Why it matters: the answers to the node's own connections come to a Service's address. A port that is also the Service's is taken
#   for a new connection's, and what becomes of the others depends on what is done with ports that the Service does not have. Such
#   addresses should be added with `preferred_lft 0`, which keeps them from being chosen.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

seen=$(
	alone bash -euo pipefail <<-'END'
		ip link set lo up
		ip link add up0 type veth peer name far0
		ip link set up0 up
		ip link set far0 up
		ip -6 address add 2001:db8:0:1::1/128 dev lo
		ip -6 address add 2001:db8:ffff::80/128 dev lo
		ip -6 address add 2001:db8:ffff::81/128 dev lo
		ip -6 route add default via fe80::1 dev up0
		ask() { echo "$1 from $(ip -6 route get "$1" | grep -o 'src [^ ]*' | cut -d' ' -f2)"; }
		ask 2001:db8:0:1::99
		ask 2001:db8:ffff::99
		ask 2001:db9::1
		ask 2600::1
		echo "with preferred_lft 0:"
		for service in 80 81; do ip -6 address change 2001:db8:ffff::$service/128 dev lo preferred_lft 0; done
		ask 2001:db8:ffff::99
		ask 2600::1
		ip address add 192.0.2.1/32 dev lo
		ip address add 203.0.113.80/32 dev lo
		ip -4 route add default via inet6 fe80::1 dev up0
		echo "IPv4: 203.0.113.99 from $(ip route get 203.0.113.99 | grep -o 'src [^ ]*' | cut -d' ' -f2)"
	END
)

expect '2001:db8:0:1::99 from 2001:db8:0:1::1
2001:db8:ffff::99 from 2001:db8:ffff::81
2001:db9::1 from 2001:db8:ffff::81
2600::1 from 2001:db8:ffff::81
with preferred_lft 0:
2001:db8:ffff::99 from 2001:db8:0:1::1
2600::1 from 2001:db8:0:1::1
IPv4: 203.0.113.99 from 192.0.2.1' "$seen"

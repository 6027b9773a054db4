#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Software: iproute2 6.1.0 of Debian 12.
# One would expect: in the JSON of a route that encapsulates (`encap ip6 ... dst ENDPOINT`), the tunnel's addresses stand in an object
#   of their own, or under keys of their own.
# Instead: the route is one object with two keys "dst". A JSON parser keeps the last, so the route's destination is lost and the
#   tunnel's far end stands in its place.
# Why it matters: programs that look in `ip -j route` for the way to an endpoint's network find none, or take a tunnel's end for a
#   host route. Netlink has no such ambiguity; an agent should ask the kernel, not `ip`.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

debian iproute2=6.1.0-3 libbpf1=1:1.1.2-0+deb12u1 libelf1=0.188-2.1 libmnl0=1.0.4-3 libxtables12=1.8.9-2
seen=$(
	alone bash -euo pipefail <<-'END'
		ip link set lo up
		ip link add left type veth peer name right
		ip link set left up
		ip -6 route add fd04::/64 encap ip6 id 7 dst fd00::9 dev left
		ip -6 route show | grep -o '^fd04.*dst [^ ]*'
		ip -6 -j route show | python3 -c '
		import json, sys
		text = sys.stdin.read()
		print(text.count("fd04::/64"), "mention in the JSON")
		print([route["dst"] for route in json.loads(text) if route.get("encap")])
		'
	END
)

expect "fd04::/64  encap ip6 id 7 src :: dst fd00::9
1 mention in the JSON
['fd00::9']" "$seen"

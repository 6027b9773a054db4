#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Software: Linux 6.18 (seen there), with iproute2.
# One would expect: two routes over the same two uplinks, one with `nexthop via ...` and one with a group of nexthop objects, behave
#   alike when an uplink's cable is out for a moment. Both have both ways before, one way meanwhile, both ways after.
# Instead: the plain route comes back. The nexthop objects of the device are deleted at the loss of carrier; their group shrinks to
#   the other uplink and stays so when the carrier is back. Netlink says not a word of it, neither about the nexthops (a deletion by
#   hand is told) nor about the route.
# Why it matters: without a routing daemon that writes them again, all flows go by one uplink for good. A cache of next hops that is
#   refreshed on messages about routes and nexthops keeps sending to the dead one: only the link's own message gives it away.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

ways() { ip "$1" route show "$2" | grep -o 'dev [lr][^ ]*\( weight 1 linkdown\)\?' | sed 's/ weight 1//' | paste -sd,; }
export -f ways
export WORK
seen=$(
	alone bash -euo pipefail <<-'END'
		for side in left right; do
			ip link add $side type veth peer name far-$side
			ip link set $side up
			ip link set far-$side up
		done
		ip address add 10.1.0.1/24 dev left
		ip address add 10.2.0.1/24 dev right
		ip route add 10.50.0.0/16 nexthop via 10.1.0.2 nexthop via 10.2.0.2
		ip nexthop add id 1 via 10.1.0.2 dev left
		ip nexthop add id 2 via 10.2.0.2 dev right
		ip nexthop add id 9 group 1/2
		ip route add 10.60.0.0/16 nhid 9
		ip -4 monitor route nexthop >"$WORK/messages" &
		trap 'kill '$! EXIT
		sleep 0.3
		show() { echo "$1: plain $(ways -4 10.50.0.0/16); objects $(ways -4 10.60.0.0/16); group $(ip nexthop show id 9 | grep -o 'group [0-9/]*')"; }
		show before
		ip link set far-right down
		sleep 0.5
		show "carrier lost"
		ip link set far-right up
		sleep 0.5
		show "carrier back"
		echo "messages about nexthops: $(grep -c 'id [0-9]' "$WORK/messages")"
		echo "messages about 10.60.0.0/16: $(grep -c '10.60' "$WORK/messages")"
	END
)

expect 'before: plain dev left,dev right; objects dev left,dev right; group group 1/2
carrier lost: plain dev left,dev right linkdown; objects dev left; group group 1
carrier back: plain dev left,dev right; objects dev left; group group 1
messages about nexthops: 0
messages about 10.60.0.0/16: 0' "$seen"

#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Software: Linux 6.18 (seen there), with iproute2.
# One would expect: with `net.ipv4.nexthop_compat_mode` on, its default, programs that know nothing of nexthop objects are told of
#   every change of the routes that use them; that is what the mode is for.
# Instead: a group that is replaced is told so, by a message about each route. A member that is deleted, which takes it out of the
#   group and changes the same routes in the same way, is told as a change of the group only; and a route whose one nexthop is
#   deleted goes with it, without a message that it has gone.
# Why it matters: whoever caches next hops and listens to routes alone goes on sending to a next hop that the operator has taken
#   away. The nexthop group of netlink has to be listened to as well.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

export WORK
seen=$(
	alone bash -euo pipefail <<-'END'
		cat /proc/sys/net/ipv4/nexthop_compat_mode
		ip link add left type veth peer name right
		ip link set left up
		ip link set right up
		ip address add 10.1.0.1/24 dev left
		ip nexthop add id 1 via 10.1.0.2 dev left
		ip nexthop add id 2 via 10.1.0.3 dev left
		ip nexthop add id 3 via 10.1.0.4 dev left
		ip nexthop add id 9 group 1/2/3
		ip route add 10.60.0.0/16 nhid 9
		ip route add 10.61.0.0/16 nhid 3
		ip -4 monitor route nexthop >>"$WORK/messages" &
		trap 'kill '$! EXIT
		tell() {
			: >"$WORK/messages"
			sleep 0.3
			"$@"
			sleep 0.3
			echo "$*"
			sed 's/ *$//; s/^/  /' "$WORK/messages"
		}
		tell ip nexthop replace id 9 group 1/2
		tell ip nexthop del id 2
		tell ip nexthop del id 3
		echo "the routes: $(ip route show root 10.60.0.0/15)"
	END
)

expect '1
ip nexthop replace id 9 group 1/2
  id 9 group 1/2
  10.60.0.0/16 nhid 9
  	nexthop via 10.1.0.2 dev left weight 1
  	nexthop via 10.1.0.3 dev left weight 1
ip nexthop del id 2
  Deleted id 2 via 10.1.0.3 dev left scope link
  id 9 group 1
ip nexthop del id 3
  Deleted id 3 via 10.1.0.4 dev left scope link
the routes: 10.60.0.0/16 nhid 9 via 10.1.0.2 dev left ' "$seen"

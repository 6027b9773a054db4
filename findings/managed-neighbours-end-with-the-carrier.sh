#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Software: Linux 6.18 (seen there), with iproute2.
# One would expect: a neighbour marked `managed`, which the kernel promises to keep resolved, stays managed when the cable is out
#   for a moment; at the latest it is resolved again when the carrier is back.
# Instead: the loss of carrier deletes the entry, mark and all, and nothing brings it back. Entries that are `permanent` stay through
#   the loss of carrier, but not through `ip link set down`.
# Why it matters: managed neighbours are what keeps an XDP program's next hops confirmed. Whoever sets the mark once, when an
#   endpoint appears, has lost it after the first switch that restarts: it has to be set again whenever a link comes up.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

seen=$(
	alone bash -euo pipefail <<-'END'
		ip link add left type veth peer name right
		ip link set left up
		ip link set right up
		ip address add 10.1.0.1/24 dev left
		ip address add 10.1.0.2/24 dev right
		ip neighbour add 10.1.0.7 dev left managed
		ip neighbour add 10.1.0.8 dev left lladdr 02:00:00:00:00:08 nud permanent
		show() { sleep 0.5; echo "$1: $(ip neighbour show dev left | grep -oE '^10.1.0.[78].*(managed|PERMANENT)' | sort | awk '{ print $1, $NF }' | paste -sd' ')"; }
		show before
		ip link set right down
		show "carrier lost"
		ip link set right up
		show "carrier back"
		ip link set left down
		ip link set left up
		show "set down and up"
	END
)

expect 'before: 10.1.0.7 managed 10.1.0.8 PERMANENT
carrier lost: 10.1.0.8 PERMANENT
carrier back: 10.1.0.8 PERMANENT
set down and up: ' "$seen"

#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Software: Linux 6.18 (seen there), its choice of source ports.
# One would expect: a client's source ports are spread over the whole of `net.ipv4.ip_local_port_range`.
# Instead: TCP's connect() takes only even ones while half of the range is free, and bind() to port 0 only odd ones. UDP takes both.
# Why it matters: the lowest bit of a TCP client's port carries nothing. A hash or a table of source ports that leans on it uses half
#   of its room; and a source port that a load balancer picks at random in that range collides with a local connection's twice as
#   often, or never, by its parity. Tests that draw ports at random don't show what real clients do.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

cat >"$WORK/ports.py" <<'END'
import socket

def odd(make):
    sockets = [make() for _ in range(300)]
    return sum(s.getsockname()[1] % 2 for s in sockets)

listener = socket.create_server(("127.0.0.1", 20000), backlog=1000)

def bound():
    s = socket.socket()
    s.bind(("127.0.0.1", 0))
    return s

def udp():
    s = socket.socket(type=socket.SOCK_DGRAM)
    s.connect(("127.0.0.1", 20000))
    return s

print("TCP connect:", odd(lambda: socket.create_connection(("127.0.0.1", 20000))), "of 300 odd")
print("TCP bind to 0:", odd(bound), "of 300 odd")
print("UDP connect:", "both" if 90 < odd(udp) < 210 else "mostly one kind")
END
export WORK
seen=$(
	alone bash -euo pipefail <<-'END'
		ip link set lo up
		ulimit -n 2000
		python3 "$WORK/ports.py"
	END
)

expect 'TCP connect: 0 of 300 odd
TCP bind to 0: 300 of 300 odd
UDP connect: both' "$seen"

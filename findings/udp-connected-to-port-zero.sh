#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Software: Linux 6.18 (seen there), its UDP sockets.
# One would expect: connect() to port 0 is refused, as TCP's is; or the socket is connected, and getpeername() says to whom.
# Instead: connect() succeeds, the socket has a source address and sends, and getpeername() says that it is not connected.
# Why it matters: a program at the connect hook that has no server for a UDP client, and may not refuse it, can't park it at port 0:
#   whoever asks for the peer (a resolver that sorts addresses, a server that logs) would hear an error from a connected socket.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

cat >"$WORK/zero.py" <<'END'
import errno, socket

def name(call):
    try:
        return call()
    except OSError as error:
        return errno.errorcode[error.errno]

for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
    udp = socket.socket(family, socket.SOCK_DGRAM)
    print(address, "connect:", name(lambda: udp.connect((address, 0))), end=", ")
    print("from", udp.getsockname()[0], end=", ")
    print("send:", name(lambda: udp.send(b"?")), end=", ")
    print("peer:", name(udp.getpeername))
    udp.connect((address, 1))
    print(address, "peer of another port:", udp.getpeername()[1])
    tcp = socket.socket(family)
    print(address, "TCP:", name(lambda: tcp.connect((address, 0))))
END
export WORK
seen=$(
	alone bash -euo pipefail <<-'END'
		ip link set lo up
		python3 "$WORK/zero.py"
	END
)

expect '127.0.0.1 connect: None, from 127.0.0.1, send: 1, peer: ENOTCONN
127.0.0.1 peer of another port: 1
127.0.0.1 TCP: ECONNREFUSED
::1 connect: None, from ::1, send: 1, peer: ENOTCONN
::1 peer of another port: 1
::1 TCP: ECONNREFUSED' "$seen"

#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Software: Linux 6.18 (seen there), cgroup programs at BPF_CGROUP_UDP4_SENDMSG and BPF_CGROUP_UDP6_SENDMSG.
# One would expect: they are asked about datagrams of sockets without a connection, or that name an address; one that is connected was asked
#   about at connect(), and sends without them. So it is for IPv4, and for IPv6.
# Instead: a socket of IPv6 that is connected to an IPv4 address (::ffff:127.0.0.1) meets the program of IPv4 with each send(), as if it
#   named the address.
# Why it matters: a load balancer that leaves connected sockets to others at connect() translates their datagrams at the sendmsg hook all
#   the same, each by itself; and the answers, from a backend that the socket is not connected to, never reach it.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

cat >"$WORK/sendmsg.py" <<'END'
import ctypes, os, socket, struct, sys

libc = ctypes.CDLL(None, use_errno=True)
SYS_BPF, PROG_LOAD, PROG_ATTACH = 321, 5, 8
CGROUP_SOCK_ADDR, UDP4_SENDMSG, UDP6_SENDMSG = 18, 14, 15

def bpf(command, attributes):
    buffer = ctypes.create_string_buffer(attributes, max(len(attributes), 128))
    result = libc.syscall(SYS_BPF, command, buffer, len(buffer))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result

# r0 = 0; exit: refuses whatever it is asked about.
code = ctypes.create_string_buffer(struct.pack("<QQ", 0xB7, 0x95))
licence = ctypes.create_string_buffer(b"GPL")
cgroup = os.open(sys.argv[1], os.O_RDONLY)
for hook in (UDP4_SENDMSG, UDP6_SENDMSG):
    load = struct.pack("<IIQQIIQI", CGROUP_SOCK_ADDR, 2, ctypes.addressof(code), ctypes.addressof(licence), 0, 0, 0, 0)
    load += struct.pack("<I16sII", 0, b"", 0, hook)
    program = bpf(PROG_LOAD, load)
    bpf(PROG_ATTACH, struct.pack("<IIII", cgroup, program, hook, 0))

with open(sys.argv[1] + "/cgroup.procs", "w") as members:
    members.write(str(os.getpid()))

for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"), (socket.AF_INET6, "::ffff:127.0.0.1")):
    server = socket.socket(family, socket.SOCK_DGRAM)
    server.bind((address, 0))
    client = socket.socket(family, socket.SOCK_DGRAM)
    client.connect(server.getsockname()[:2])
    try:
        said = f"{client.send(b'?')} byte sent"
    except PermissionError:
        said = "refused by the program"
    print(f"connected to {address}: {said}")
END
export WORK
seen=$(
	# The mount goes with its namespace.
	alone unshare --mount -- bash -euo pipefail <<-'END'
		ip link set lo up
		mkdir "$WORK/cgroup"
		mount -t cgroup2 none "$WORK/cgroup"
		group=$WORK/cgroup/finding-$$
		mkdir "$group"
		python3 "$WORK/sendmsg.py" "$group"
		rmdir "$group"
	END
)

expect 'connected to 127.0.0.1: 1 byte sent
connected to ::1: 1 byte sent
connected to ::ffff:127.0.0.1: refused by the program' "$seen"

#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Software: HAProxy 2.6.12 of Debian 12, `hash-type consistent`.
# One would expect: a consistent hash knows servers by name or address. A server removed from the configuration moves its own clients
#   and no others.
# Instead: it knows them by their position. A server deleted from the top of the list moves nearly every client of all that follow;
#   the same server set to maintenance, or deleted from the end of the list, moves only its own.
# Why it matters: a list that a program writes from endpoints, sorted by name or address, is such a list: each rolling update of a
#   Deployment moves nearly all clients. Compared with that, an order of endpoints must not matter to a table at all.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

debian haproxy=2.6.12-1+deb12u4 liblua5.3-0=5.3.6-2 libopentracing-c-wrapper0=1.1.3-3+b1 libopentracing1=1.6.0-4
cat >"$WORK/clients.py" <<'END'
import http.client, os, socket, subprocess, time

work = os.environ["WORK"]
CLIENTS = 3000

def ask(names, command=None):
    lines = "".join(f" server {name} 127.0.0.1:8101\n" for name in names)
    with open(work + "/haproxy.cfg", "w") as conf:
        conf.write(f"""global
 stats socket {work}/control level admin
defaults
 mode http
 timeout connect 5s
 timeout client 5s
 timeout server 5s
frontend answers
 bind 127.0.0.1:8101
 http-request return status 200
frontend all
 bind 127.0.0.1:8100
 default_backend servers
backend servers
 balance url_param client
 hash-type consistent
 http-response set-header server %s
{lines}""")
    haproxy = subprocess.Popen(["haproxy", "-db", "-f", work + "/haproxy.cfg"], stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            try:
                connection = http.client.HTTPConnection("127.0.0.1", 8100)
                connection.connect()
                break
            except ConnectionRefusedError:
                time.sleep(0.1)
        if command:
            control = socket.socket(socket.AF_UNIX)
            control.connect(work + "/control")
            control.send(command.encode() + b"\n")
            control.recv(1000)
        answers = []
        for client in range(CLIENTS):
            connection.request("GET", f"/?client=10.0.{client // 250}.{client % 250}")
            response = connection.getresponse()
            response.read()
            answers.append(response.getheader("server"))
        return answers
    finally:
        haproxy.terminate()
        haproxy.wait()

names = [f"s{number}" for number in range(1, 11)]
before = ask(names)

def moved(gone, after):
    return f"{sum(a != b and a != gone for a, b in zip(before, after))} of {sum(a != gone for a in before)} others moved"

print("first one in maintenance:", moved("s1", ask(names, "set server servers/s1 state maint")))
print("last one deleted:", moved("s10", ask(names[:-1])))
print("first one deleted:", moved("s1", ask(names[1:])))
END
export WORK
seen=$(
	alone bash -euo pipefail <<-'END'
		ip link set lo up
		python3 "$WORK/clients.py"
	END
)

expect 'first one in maintenance: 0 of 2649 others moved
last one deleted: 0 of 2613 others moved
first one deleted: 2635 of 2649 others moved' "$seen"

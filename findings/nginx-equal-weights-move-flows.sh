#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Software: nginx 1.22.1 of Debian 12, `hash ... consistent` in an upstream.
# One would expect: weights are relative. Ten servers of weight 1 and ten of weight 10 are the same load balancer, so changing all of
#   them moves no client.
# Instead: weight is the number of points on the ring, so most clients get another server. (The order of the servers, which matters
#   in other load balancers, moves nobody here.)
# Why it matters: people rewrite weights from "1 each" to "100 each" before they shift a few percent, and expect that first step to
#   move nobody. A table that is made from weights divided by what they have in common keeps that promise; it is worth a test.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

debian nginx=1.22.1-9+deb12u11
cat >"$WORK/clients.py" <<'END'
import collections, http.client, os, subprocess, sys, time

work = os.environ["WORK"]
PORTS = list(range(8101, 8111))
CLIENTS = 3000
paths = "".join(f"{kind}_temp_path {work}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
servers = "".join(f"server {{ listen 127.0.0.1:{port}; location / {{ return 200 {port}; }} }}" for port in PORTS)

def ask(upstream):
    with open(work + "/nginx.conf", "w") as conf:
        conf.write(f"""daemon off; master_process off; pid {work}/pid; events {{}}
            http {{ access_log off; keepalive_requests 100000; {paths} {servers}
            upstream all {{ hash $arg_client consistent; {upstream} }}
            server {{ listen 127.0.0.1:8100; location / {{ proxy_pass http://all; }} }} }}""")
    nginx = subprocess.Popen(["nginx", "-c", work + "/nginx.conf", "-e", work + "/log"])
    try:
        for _ in range(100):
            try:
                connection = http.client.HTTPConnection("127.0.0.1", 8100)
                connection.connect()
                break
            except ConnectionRefusedError:
                time.sleep(0.1)
        answers = []
        for client in range(CLIENTS):
            connection.request("GET", f"/?client=10.0.{client // 250}.{client % 250}")
            answers.append(connection.getresponse().read())
        return answers
    finally:
        nginx.terminate()
        nginx.wait()

def upstream(ports, weight=1):
    return "".join(f"server 127.0.0.1:{port} weight={weight};" for port in ports)

before = ask(upstream(PORTS))
def moved(other):
    return sum(a != b for a, b in zip(before, ask(other)))

print("all of weight 1, other order:", moved(upstream(PORTS[::-1])), "of", CLIENTS, "moved")
for weight in (2, 10, 100):
    print(f"all of weight {weight}:", moved(upstream(PORTS, weight)), "of", CLIENTS, "moved")
END
export WORK
seen=$(
	alone bash -euo pipefail <<-'END'
		ip link set lo up
		python3 "$WORK/clients.py"
	END
)

expect 'all of weight 1, other order: 0 of 3000 moved
all of weight 2: 1353 of 3000 moved
all of weight 10: 2447 of 3000 moved
all of weight 100: 2679 of 3000 moved' "$seen"

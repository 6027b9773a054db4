#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Software: kubectl 1.37.1.
# One would expect: `kubectl create service nodeport --tcp=80 --tcp=443 --node-port=30080` refuses, or gives the node port to the
#   first port and leaves the second to the API server.
# Instead: both ports get the same node port. Both are TCP, so no API server accepts the object; but `--dry-run=client -o yaml` is
#   how manifests are begun, and it exits with 0.
# Why it matters: a load balancer that reads manifests from files has no API server before it. It meets two frontends of one
#   Service that claim the same node port and protocol, and must say so instead of letting one win.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

kubectl_1_37
seen=$(kubectl create service nodeport web --tcp=80 --tcp=443 --node-port=30080 --dry-run=client -o yaml | grep -E '^ +(- name|nodePort|port|protocol):')

expect '  - name: "80"
    nodePort: 30080
    port: 80
    protocol: TCP
  - name: "443"
    nodePort: 30080
    port: 443
    protocol: TCP' "$seen"

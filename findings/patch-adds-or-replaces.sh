#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Software: kubectl 1.37.1, its `patch` and its built-in kustomize.
# One would expect: one strategic merge patch means one thing, whichever half of the same program applies it. A patch that names
#   port 53 over TCP, for a Service that has port 53 over UDP, adds a port.
# Instead: kustomize adds it. `kubectl patch` knows ports by their number alone, takes the two for the same one, and turns the
#   UDP port into a TCP port that even keeps the node port: DNS over UDP is gone.
# Why it matters: to a load balancer it is a removed frontend and a new one under the same node port. UDP flows must end and the
#   node port must change its protocol in one step, because this is an edit that people make without knowing.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

kubectl_1_37
mkdir "$WORK/overlay"
cat >"$WORK/overlay/service.yaml" <<'END'
apiVersion: v1
kind: Service
metadata: {name: dns}
spec: {ports: [{name: dns, port: 53, protocol: UDP, nodePort: 30053}]}
END
cat >"$WORK/overlay/patch.yaml" <<'END'
apiVersion: v1
kind: Service
metadata: {name: dns}
spec: {ports: [{name: dns-tcp, port: 53, protocol: TCP}]}
END
printf 'resources: [service.yaml]\npatches: [{path: patch.yaml}]\n' >"$WORK/overlay/kustomization.yaml"
ports() { sed -n '/^  ports:/,$p'; }
seen=$(
	echo "kustomize:"
	kubectl kustomize "$WORK/overlay" | ports
	echo "kubectl patch:"
	kubectl patch --local -f "$WORK/overlay/service.yaml" --patch-file "$WORK/overlay/patch.yaml" -o yaml | ports
)

expect 'kustomize:
  ports:
  - name: dns-tcp
    port: 53
    protocol: TCP
  - name: dns
    nodePort: 30053
    port: 53
    protocol: UDP
kubectl patch:
  ports:
  - name: dns-tcp
    nodePort: 30053
    port: 53
    protocol: TCP' "$seen"

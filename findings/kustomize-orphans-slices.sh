#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Software: kustomize as built into kubectl 1.37.1.
# One would expect: `namePrefix` renames a Service and all that refers to it by name. It does so in an Ingress, and the Endpoints
#   object of the same name is renamed alike.
# Instead: an EndpointSlice's own name gets the prefix, but the label by which it belongs to its Service,
#   `kubernetes.io/service-name`, keeps the old one; and so do the backendRefs of an HTTPRoute. Nothing is reported.
# Why it matters: the renamed Service has no endpoints and the slice no Service. A load balancer refuses all connections to a
#   Service whose slice stands in the same file; a slice of no Service is worth a word to whoever applies both.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

kubectl_1_37
mkdir "$WORK/overlay"
cat >"$WORK/overlay/objects.yaml" <<'END'
apiVersion: v1
kind: Service
metadata: {name: database}
spec: {ports: [{port: 5432}]}
---
apiVersion: v1
kind: Endpoints
metadata: {name: database}
subsets: [{addresses: [{ip: 192.0.2.7}], ports: [{port: 5432}]}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: database-1
  labels: {kubernetes.io/service-name: database}
addressType: IPv4
ports: [{port: 5432}]
endpoints: [{addresses: [192.0.2.7]}]
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: entry}
spec: {defaultBackend: {service: {name: database, port: {number: 5432}}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: route}
spec: {rules: [{backendRefs: [{name: database, port: 5432}]}]}
END
printf 'resources: [objects.yaml]\nnamePrefix: stage-\n' >"$WORK/overlay/kustomization.yaml"
seen=$(kubectl kustomize "$WORK/overlay" | grep -E '^kind|name: ' | grep -E 'kind|database')

expect 'kind: Endpoints
  name: stage-database
kind: Service
  name: stage-database
kind: EndpointSlice
    kubernetes.io/service-name: database
  name: stage-database-1
kind: HTTPRoute
    - name: database
kind: Ingress
      name: stage-database' "$seen"

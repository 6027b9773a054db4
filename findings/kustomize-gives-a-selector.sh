#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Software: kustomize as built into kubectl 1.37.1.
# One would expect: `labels` with `includeSelectors: true` extends the selectors that are there. A Service without a selector (its
#   EndpointSlices are written by hand) and an ExternalName Service keep having none.
# Instead: both are given a selector that is the new label alone. No pod needs to carry it: then Kubernetes' own controller writes
#   an empty EndpointSlice beside the handwritten one; and where pods of the same overlay do carry it, because they get it from the
#   same lines, every one of them becomes an endpoint of the database behind the selectorless Service.
# Why it matters: connections to an outside database go in part to the team's own web pods. The load balancer does as it is told,
#   so it has to show which EndpointSlice an endpoint came from.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

kubectl_1_37
mkdir "$WORK/overlay"
cat >"$WORK/overlay/services.yaml" <<'END'
apiVersion: v1
kind: Service
metadata: {name: database}
spec:
  ports: [{port: 5432}]
---
apiVersion: v1
kind: Service
metadata: {name: elsewhere}
spec: {type: ExternalName, externalName: db.example.org}
END
cat >"$WORK/overlay/kustomization.yaml" <<'END'
resources: [services.yaml]
labels:
- pairs: {team: net}
  includeSelectors: true
END
seen=$(kubectl kustomize "$WORK/overlay" | grep -A1 -E '^  (selector|name):' | grep -vE '^--|^spec')

expect '  name: database
  selector:
    team: net
  name: elsewhere
  selector:
    team: net' "$seen"

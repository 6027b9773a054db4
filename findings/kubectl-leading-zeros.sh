#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Software: kubectl 1.37.1 reading YAML.
# One would expect: numbers with leading zeros are all read alike: as octal (YAML 1.1), as decimal (YAML 1.2), or refused.
# Instead: it depends on the digits. 0443 is octal, 291. 0808 is no octal number, so it is read once more, as a decimal fraction,
#   and is 808. 8e1 is 80, too.
# Why it matters: port columns that someone aligned with zeros become other ports, but only those without an 8 or a 9. A reader of
#   manifests that takes 0443 for 443 serves another port than the cluster would; refusing such numbers is the safe answer.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

kubectl_1_37
seen=$(for number in 0443 0808 0080 0070 8e1; do
	printf '%s is ' "$number"
	printf 'apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: %s}]}\n' "$number" |
		kubectl label --local -f - -o jsonpath='{.spec.ports[0].port}{"\n"}' checked=yes
done)

expect '0443 is 291
0808 is 808
0080 is 80
0070 is 56
8e1 is 80' "$seen"

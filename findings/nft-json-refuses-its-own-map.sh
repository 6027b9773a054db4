#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Software: nftables 1.0.6 of Debian 12, its JSON.
# One would expect: `nft -j -f` takes back what `nft -j list ruleset` wrote.
# Instead: a verdict map whose elements lead to chains, such as kube-proxy's `service-ips`, stands before those chains in the JSON,
#   and is refused: "No such file or directory". A map whose values are an address and a port, for DNAT, is refused even by the
#   parser: "Invalid map type". The text form of the same rules can be read back.
# Why it matters: a saved copy in JSON, made before kube-proxy's rules are cleaned up, is no way back. Instructions for the way back
#   must say text, or better, let kube-proxy write its rules anew.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

debian nftables=1.0.6-2+deb12u2 libnftables1=1.0.6-2+deb12u2 libnftnl11=1.2.4-2 libmnl0=1.0.4-3 libjansson4=2.14-2
cat >"$WORK/verdicts" <<'END'
table ip kube-proxy {
	map service-ips {
		type ipv4_addr . inet_proto . inet_service : verdict
		elements = { 10.96.0.10 . udp . 53 : goto dns }
	}
	chain dns {
		accept
	}
}
END
cat >"$WORK/endpoints" <<'END'
table ip kube-proxy {
	map endpoints {
		type ipv4_addr . inet_service : ipv4_addr . inet_service
		elements = { 10.96.0.10 . 80 : 10.1.1.1 . 8080 }
	}
}
END
back_and_forth() {
	alone bash -euo pipefail <<-END
		nft -f "$WORK/$1"
		nft list ruleset >"$WORK/text"
		nft -j list ruleset >"$WORK/json"
		nft flush ruleset
		nft -f "$WORK/text" && echo "$1: text is taken back"
		nft flush ruleset
		nft -j -f "$WORK/json" 2>&1 | head -1 || true
	END
}
seen=$(back_and_forth verdicts; back_and_forth endpoints)

expect "verdicts: text is taken back
internal:0:0-0: Error: Could not process rule: No such file or directory
endpoints: text is taken back
internal:0:0-0: Error: Invalid map type 'ipv4_addr . inet_service'." "$seen"

#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Software: conntrack 1.4.7 of Debian 12.
# One would expect: `--dport 30000-32767` means the range, as in iptables and nft, or is refused; a service's name is looked up or refused.
# Instead: it reads digits as far as they go. A range is its first port, a list is its first entry, a name is port 0, and 65589 is 53,
#   all with exit code 0 and the usual report of how many entries were deleted.
# Why it matters: who leaves kube-proxy behind and clears the old entries of all NodePorts by one range deletes those of port 30000, is
#   told that it went well, and the other flows keep being translated to where they went before.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

debian conntrack=1:1.4.7-1+b2 libnetfilter-conntrack3=1.0.9-3 libnfnetlink0=1.0.2-2 libmnl0=1.0.4-3 \
	libnetfilter-cttimeout1=1.0.1-1 libnetfilter-cthelper0=1.0.1-1 libnetfilter-queue1=1.0.5-3
seen=$(
	alone bash -euo pipefail <<-'END'
		for port in 53 30000 30001 32767; do
			conntrack -I -p udp -s 192.0.2.1 -d 192.0.2.2 --sport 4000 --dport $port -t 600 >/dev/null 2>&1
		done
		count() { echo "$*: $(conntrack "$@" 2>&1 >/dev/null | grep -o '[0-9]* flow entries.*')"; }
		count -L -p udp
		count -L -p udp --dport domain
		count -L -p udp --dport 65589
		count -L -p udp --dport 53,30000
		count -D -p udp --dport 30000-32767
		count -L -p udp
	END
)

expect '-L -p udp: 4 flow entries have been shown.
-L -p udp --dport domain: 0 flow entries have been shown.
-L -p udp --dport 65589: 1 flow entries have been shown.
-L -p udp --dport 53,30000: 1 flow entries have been shown.
-D -p udp --dport 30000-32767: 1 flow entries have been deleted.
-L -p udp: 3 flow entries have been shown.' "$seen"

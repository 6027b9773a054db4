#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Software: promtool of Prometheus 2.42.0, Debian 12.
# One would expect: `promtool check metrics` says of an exposition with the same series twice that it can't be right; it is strict
#   enough to complain of a missing help text.
# Instead: two samples of one series pass without a word, with the same value or another, and so does a family whose samples stand in
#   two places. Only a second HELP line is an error.
# Why it matters: a counter that is registered twice, or a label that two Services share, shows in no check that stops at promtool.
#   Prometheus keeps one of the two samples and drops the other. A test of the metrics page has to look for twins itself.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

debian prometheus=2.42.0+ds-5+deb12u1
try() {
	local what=$1 said code=0
	said=$(promtool check metrics 2>&1) || code=$?
	echo "$what: exit code $code${said:+, $said}"
}
head='# HELP flows_total Flows.\n# TYPE flows_total counter\n'
other='# HELP other_total Others.\n# TYPE other_total counter\nother_total 1\n'
seen=$(
	printf '%b' "${head}flows_total{service=\"a\"} 1\nflows_total{service=\"a\"} 2\n" | try "one series twice"
	printf '%b' "${head}flows_total{service=\"a\"} 1\n${other}flows_total{service=\"a\"} 1\n" | try "one family in two places"
	printf '%b' "${head}flows_total 1\n${head}flows_total 1\n" | try "HELP twice"
	printf '# TYPE flows_total counter\nflows_total 1\n' | try "no HELP"
)

expect 'one series twice: exit code 0
one family in two places: exit code 0
HELP twice: exit code 1, error while linting: text format parsing error in line 4: second HELP line for metric name "flows_total"
no HELP: exit code 3, flows_total no help text' "$seen"

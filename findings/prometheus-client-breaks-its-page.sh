#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Software: the crate prometheus-client 0.25.2, read by promtool and Prometheus 2.42.0 of Debian 12.
# One would expect: a help text may hold any character, as label values may (those are escaped), and a name registered twice is an
#   error or a panic.
# Instead: a line break in a help text is written as it is, and the rest of the text becomes a line of its own that no parser takes;
#   a name registered twice is written as two families. Encoding says Ok both times. The first makes Prometheus throw away the whole
#   page, with every other metric on it; of the second it keeps the first value, while promtool refuses the page.
# Why it matters: one long help text, broken into lines in the source, blinds the monitoring of a node. A test must parse the whole page.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

debian prometheus=2.42.0+ds-5+deb12u1
mkdir -p "$WORK/page/src"
cat >"$WORK/page/Cargo.toml" <<'END'
[package]
name = "page"
version = "0.1.0"
edition = "2024"

[dependencies]
prometheus-client = "=0.25.2"
END
cat >"$WORK/page/src/main.rs" <<'END'
use prometheus_client::{encoding::text::encode, metrics::gauge::Gauge, registry::Registry};

fn page(metrics: &[(&str, &str)]) {
    let mut registry = Registry::default();
    for (number, (name, help)) in metrics.iter().enumerate() {
        let gauge = Gauge::<i64>::default();
        gauge.set(number as i64 + 1);
        registry.register(*name, *help, gauge);
    }
    let mut text = String::new();
    encode(&mut text, &registry).expect("encoded");
    let folder = std::env::args().nth(1).expect("a folder");
    std::fs::write(format!("{folder}/{}", metrics[1].0), text).expect("written");
}

fn main() {
    page(&[("flows", "Flows"), ("backends", "Backends,\nthose that serve")]);
    page(&[("flows", "Flows"), ("flows", "Flows again")]);
}
END
mkdir "$WORK/pages"
cargo_run "$WORK/page" "$WORK/pages"
cat >"$WORK/prometheus.yml" <<'END'
global: {scrape_interval: 1s}
scrape_configs:
- {job_name: backends, metrics_path: /backends, static_configs: [{targets: ['127.0.0.1:9105']}]}
- {job_name: flows, metrics_path: /flows, static_configs: [{targets: ['127.0.0.1:9105']}]}
END
export WORK
seen=$(
	for page in backends flows; do
		echo "promtool of $page: $(promtool check metrics <"$WORK/pages/$page" 2>&1 | head -1)"
	done
	alone bash -euo pipefail <<-'END'
		ip link set lo up
		python3 -m http.server -b 127.0.0.1 -d "$WORK/pages" 9105 >/dev/null 2>&1 & server=$!
		prometheus --config.file="$WORK/prometheus.yml" --storage.tsdb.path="$WORK/data" --web.listen-address=127.0.0.1:9109 \
			2>"$WORK/log" & prometheus=$!
		trap 'kill $server $prometheus; wait' EXIT
		python3 - <<-'PYTHON'
			import json, time, urllib.request
			def ask(query):
			    answer = json.load(urllib.request.urlopen("http://127.0.0.1:9109/api/v1/query?query=" + query))
			    return sorted((x["metric"].get("job"), x["value"][1]) for x in answer["data"]["result"])
			for _ in range(60):
			    time.sleep(0.5)
			    try:
			        if len(ask("up")) == 2 and ask("flows"):
			            break
			    except OSError:
			        pass
			print("Prometheus, up:", ask("up"))
			print("Prometheus, flows:", ask("flows"))
		PYTHON
	END
)

expect "promtool of backends: error while linting: text format parsing error in line 5: expected float as value, got \"that\"
promtool of flows: error while linting: text format parsing error in line 4: second HELP line for metric name \"flows\"
Prometheus, up: [('backends', '0'), ('flows', '1')]
Prometheus, flows: [('flows', '1')]" "$seen"

#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Software: kubectl 1.37.1; the crates k8s-openapi 0.29.0 with serde-saphyr 2.1.1 and serde_json; the Python client kubernetes 37.0.2.
# One would expect: an annotation without a value (`example.org/weight:`, as templates leave it when a value is unset) is read alike
#   by all that read Kubernetes' objects.
# Instead: the API, and kubectl where it decodes Services, read it as the empty string. The Rust types and the Python client refuse the
#   whole object, because a null is no string. (For lists they are as forgiving as the API: `endpoints: null` is taken by all.)
# Why it matters: a manifest that a cluster accepts is refused when it is read from a file, and the Service is served in one mode and
#   not in the other. A reader of files has to take a null in a map of strings for the empty string, as the API does.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

kubectl_1_37
cat >"$WORK/service.yaml" <<'END'
apiVersion: v1
kind: Service
metadata:
  name: web
  annotations:
    example.org/weight:
END
python3 -m venv "$WORK/python"
"$WORK/python/bin/pip" install -q --disable-pip-version-check kubernetes==37.0.2
mkdir -p "$WORK/reader/src"
cat >"$WORK/reader/Cargo.toml" <<'END'
[package]
name = "reader"
version = "0.1.0"
edition = "2024"

[dependencies]
k8s-openapi = { version = "=0.29.0", features = ["v1_33"] }
serde-saphyr = "=2.1.1"
serde_json = "1"
END
cat >"$WORK/reader/src/main.rs" <<'END'
use k8s_openapi::api::core::v1::Service;

fn main() {
    let file = |number| std::fs::read_to_string(std::env::args().nth(number).expect("a file")).expect("readable");
    let yaml = serde_saphyr::from_str::<Service>(&file(1)).map_err(|error| error.to_string());
    let json = serde_json::from_str::<Service>(&file(2)).map_err(|error| error.to_string());
    for (name, read) in [("YAML", yaml), ("JSON", json)] {
        println!("Rust, {name}: {}", if read.is_ok() { "taken" } else { "refused" });
    }
}
END
cat >"$WORK/service.json" <<'END'
{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "annotations": {"example.org/weight": null}}}
END
seen=$(
	echo "kubectl: $(kubectl set selector --local -f "$WORK/service.yaml" app=web -o json | grep -o '"example.org/weight.*')"
	cargo_run "$WORK/reader" "$WORK/service.yaml" "$WORK/service.json"
	"$WORK/python/bin/python" - "$WORK/service.json" <<-'END'
		import sys
		import kubernetes.client
		try:
		    kubernetes.client.ApiClient().deserialize(open(sys.argv[1]).read(), "V1Service", "application/json")
		    print("Python: taken")
		except ValueError:
		    print("Python: refused")
	END
)

expect 'kubectl: "example.org/weight": ""
Rust, YAML: refused
Rust, JSON: refused
Python: refused' "$seen"

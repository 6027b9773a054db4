#!/busybox sh
# SPDX-License-Identifier: MIT OR Apache-2.0
# The first process of the machine: mounts, modules, then the tests of /tests, their output on the second serial port.
# Lines of ours begin with "vm: "; machine.rs reads them.

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/applets HOME=/root RUST_BACKTRACE=0
# Random packets: as many as take a minute here.
export SHUNT_PACKETS=1000
/busybox mkdir -p /applets /dev /proc /sys /tmp /run /root /var/log /var/lib
/busybox --install -s /applets
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup /sys/fs/cgroup
ln -s /proc/self/fd /dev/fd

stty -F /dev/ttyS1 raw
exec </dev/null >/dev/ttyS1 2>&1
echo "vm: linux $(uname -r)"
while read -r module; do
    insmod "$module" || echo "vm: note $module can't be loaded"
done </modules
ip link set lo up

# Runs a test program: run NAME PROGRAM ARGUMENTS
run() {
    echo "vm: program $1"
    shift
    "$@" 2>/tmp/stderr
    status=$?
    # What tests print past libtest's capture, in whole lines.
    sed 's/^/vm: said /' /tmp/stderr
    echo "vm: exit $status"
}
. /tests
echo "vm: done"
sync
poweroff -f

// SPDX-License-Identifier: MIT OR Apache-2.0
//! The door on the kernel of this machine, as old kernels would have it too: needs root, the built object, cgroup v2 and
//! `curl`.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use super::*;
use crate::{
    compile::ServiceKey,
    dataplane::{
        Dataplane, Options,
        tests::{Place, desired, ip},
    },
    diff::State,
};

#[test]
fn a_cgroup_is_found_in_the_mount_table() {
    let mounts = "24 1 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                  30 24 0:26 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu\n\
                  31 24 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
    let found = |table| cgroup_in(crate::dataplane::mounts::parse(table));
    assert_eq!(found(mounts), Some("/sys/fs/cgroup/unified".into()));
    assert_eq!(found("24 1 0:22 / / rw - ext4 /dev/vda rw\n"), None);
}

#[test]
fn what_a_kernel_lacks_is_named_with_what_it_costs() {
    let old = SocketFeatures { namespace: 7, has_set_retval: false };
    assert!(old.lacks().is_some_and(|lack| lack.contains("before 6.1")));
    assert_eq!(old.globals(SocketMode::Host).map(|(_, value)| value), [0, 7, 0]);
    let new = SocketFeatures { has_set_retval: true, ..old };
    assert_eq!(new.lacks(), None);
    assert_eq!(new.globals(SocketMode::All).map(|(_, value)| value), [1, 7, 1]);
}

/// Nobody waits for this: less than `curl` does.
const TOO_LONG: Duration = Duration::from_secs(2);

/// A cgroup of this test's own, below the first cgroup v2 file system.
struct OwnCgroup(PathBuf);

impl OwnCgroup {
    fn new(test: &str) -> Option<Self> {
        let path = cgroup_in(mounts())?.join(format!("shunt-test-{}-{test}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Some(Self(path))
    }

    /// Runs `curl` in it. Returns its exit status, and the address that it believes to be connected to.
    fn curl(&self, url: &str) -> (i32, String) {
        let script = "echo 0 > \"$0/cgroup.procs\" && exec curl --silent --output /dev/null --max-time 5 \
                      --write-out '%{remote_ip}' \"$1\"";
        let output = Command::new("sh").args(["-c", script]).arg(&self.0).arg(url).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for OwnCgroup {
    fn drop(&mut self) {
        // Only what this test has made.
        let _ = fs::remove_dir(&self.0);
    }
}

/// The Service of [`desired`] with a backend on loopback, or without any, behind a door for all sockets of a cgroup.
fn serve(place: &Place, cgroup: &OwnCgroup, features: &SocketFeatures, backends: bool) -> Dataplane {
    let sockets = SocketOptions { mode: SocketMode::All, cgroup: Some(cgroup.0.clone()) };
    let options = Options { sockets, ..place.options.clone() };
    let mut dataplane = Dataplane::open_with(&options, features).unwrap();
    let mut state = State::adopt(dataplane.maps().dump().unwrap(), &dataplane.capacities());
    let mut units = desired(1);
    for unit in units.values_mut().filter(|_| !backends) {
        (unit.backends, unit.cluster) = (BTreeMap::new(), BTreeMap::new());
    }
    let now = Instant::now();
    let plan = state.plan(&ServiceKey::new("default", "web"), 0, &units, now);
    state.carry_out(plan, &mut dataplane, now).unwrap();
    assert!(!dataplane.is_socket_door_open());
    assert!(dataplane.take_over_sockets().is_empty());
    assert!(dataplane.is_socket_door_open());
    dataplane
}

/// Answers the first requests of all who come.
fn answer(listener: &TcpListener) {
    for mut stream in listener.incoming().flatten() {
        let _ = stream.read(&mut [0; 1024]);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    }
}

/// On kernels of all ages: translated, shown the Service, and refused at once where nothing serves.
#[test]
fn tcp_is_translated_and_refused_with_and_without_new_features() {
    let Some(place) = Place::new("sockets") else { return };
    let Some(cgroup) = OwnCgroup::new("sockets") else {
        eprintln!("skipped: no cgroup v2 is mounted");
        return;
    };
    ip("link set lo up");
    ip("addr add 10.0.0.1/32 dev lo");
    // What no door takes gets no answer there, instead of an error at once.
    ip("route add 10.96.0.0/16 dev lo");
    let listener = TcpListener::bind((Ipv4Addr::new(10, 0, 0, 1), 8080)).unwrap();
    thread::spawn(move || answer(&listener));
    let service = "http://10.96.0.1/";
    assert_eq!(cgroup.curl(service).0, 28, "curl says that nothing came in time");
    let own = SocketFeatures::detect().unwrap();
    for features in [own, SocketFeatures { has_set_retval: false, ..own }] {
        let dataplane = serve(&place, &cgroup, &features, true);
        assert_eq!(cgroup.curl(service), (0, "10.96.0.1".to_owned()), "{features:?}");
        assert_eq!(dataplane.maps().socket_uses().unwrap(), [], "a socket that was closed is forgotten");
        drop(dataplane);
        let dataplane = serve(&place, &cgroup, &features, false);
        // A busy machine may take its time to start it.
        let is_at_once = (0..3).any(|_| {
            let start = Instant::now();
            let (status, _) = cgroup.curl(service);
            assert_eq!(status, 7, "{features:?}: curl says that the connection failed");
            start.elapsed() < TOO_LONG
        });
        assert!(is_at_once, "{features:?}");
        drop(dataplane);
        fs::remove_dir_all(&place.options.bpffs).unwrap();
    }
}

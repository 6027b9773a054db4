// SPDX-License-Identifier: MIT OR Apache-2.0
//! tcpdump on a link: what went over it, and that every checksum of it was right.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{Namespace, Node, Site, World, wait_until};

const START_LIMIT: Duration = Duration::from_secs(10);
/// Of a file without packets.
const HEADER_BYTES: u64 = 24;

/// A capture under way.
pub struct Capture {
    child: Child,
    file: PathBuf,
}

impl Capture {
    /// Starts capturing on an interface what `filter` (as tcpdump has it) lets through.
    ///
    /// # Errors
    /// When tcpdump does not start.
    pub fn start(site: &Site, namespace: &Namespace, interface: &str, filter: &str) -> Result<Self> {
        let capture = Self::spawn(site, namespace, interface, &[filter])?;
        capture.wait_listening()?;
        Ok(capture)
    }

    /// Begins to; `words` are the filter, and what of tcpdump's options comes before it.
    fn spawn(site: &Site, namespace: &Namespace, interface: &str, words: &[&str]) -> Result<Self> {
        let file = site.directory().join(format!("{}-{interface}.pcap", namespace.name()));
        let log = file.with_extension("log");
        let errors = fs::File::create(&log).with_context(|| format!("can't create {}", log.display()))?;
        let mut command = namespace.command("tcpdump");
        // Without -Z tcpdump becomes a user who can't write here.
        command.args(["-n", "-U", "--immediate-mode", "-s", "0", "-Z", "root", "-i", interface, "-w"]).arg(&file);
        let child = command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors).spawn();
        Ok(Self { child: child.context("can't start tcpdump")?, file })
    }

    fn wait_listening(&self) -> Result<()> {
        let log = self.file.with_extension("log");
        wait_until(&format!("tcpdump listening for {}", self.file.display()), START_LIMIT, || {
            Ok(fs::read_to_string(&log).is_ok_and(|log| log.contains("listening on")))
        })
    }

    /// Ends the capture and returns its packets, as `tcpdump -vv` prints them.
    ///
    /// # Errors
    /// When a checksum is wrong, or nothing was captured at all.
    pub fn finish(self) -> Result<String> {
        // It may not have had the time yet: once it is told to end it takes no more.
        wait_until(&format!("a packet in {}", self.file.display()), START_LIMIT, || {
            Ok(fs::metadata(&self.file)?.len() > HEADER_BYTES)
        })?;
        self.read()
    }

    /// The same, also of nothing.
    fn read(mut self) -> Result<String> {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        kill(Pid::from_raw(pid), Signal::SIGINT).context("can't end tcpdump")?;
        self.child.wait().context("can't wait for tcpdump")?;
        let output = Command::new("tcpdump").args(["-vv", "-nn", "-r"]).arg(&self.file).output();
        let text = String::from_utf8_lossy(&output.context("can't start tcpdump")?.stdout).into_owned();
        let bad: Vec<&str> = text.lines().filter(|line| is_bad(line)).take(5).collect();
        if !bad.is_empty() {
            bail!("wrong checksums in {}:\n{}", self.file.display(), bad.join("\n"));
        }
        Ok(text)
    }
}

/// Captures on many links.
pub struct Captures(Vec<(String, Capture)>);

impl Captures {
    /// Ends them and returns the packets of each link, as `tcpdump -vv` prints them.
    ///
    /// # Errors
    /// When a checksum is wrong, or nothing was captured anywhere.
    pub fn finish(self) -> Result<Vec<(String, String)>> {
        let read = |(place, capture): (String, Capture)| {
            let text = capture.read().with_context(|| place.clone())?;
            Ok((place, text))
        };
        let texts = self.0.into_iter().map(read).collect::<Result<Vec<_>>>()?;
        ensure!(texts.iter().any(|(_, text)| !text.is_empty()), "no packet on any link");
        Ok(texts)
    }
}

impl World {
    /// Captures on the links of all pods and of the outside client, on the nodes' uplinks, and in these places besides.
    /// Without offloads every checksum on them must be right.
    ///
    /// # Errors
    /// When tcpdump does not start.
    pub fn capture(&self, more: &[(&Namespace, &str)]) -> Result<Captures> {
        self.capture_by(more, &["ip or ip6"])
    }

    /// The same, of each link no more than the first `count` packets.
    ///
    /// # Errors
    /// When tcpdump does not start.
    pub fn capture_first(&self, count: u32) -> Result<Captures> {
        self.capture_by(&[], &["-c", &count.to_string(), "ip or ip6"])
    }

    fn capture_by(&self, more: &[(&Namespace, &str)], words: &[&str]) -> Result<Captures> {
        let pods = self.nodes().flat_map(Node::pods).map(|pod| (pod.namespace(), "eth0"));
        let hosts = [(self.outside(), "eth0"), (self.switch(), "sw-node-a"), (self.switch(), "sw-node-b")];
        let start = |(place, interface): (&Namespace, &str)| {
            Ok((format!("{interface} in {}", place.name()), Capture::spawn(self.site(), place, interface, words)?))
        };
        let captures: Vec<_> = pods.chain(hosts).chain(more.iter().copied()).map(start).collect::<Result<_>>()?;
        captures.iter().try_for_each(|(_, capture)| capture.wait_listening())?;
        Ok(Captures(captures))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // It may have ended already: that is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How tcpdump marks a wrong checksum: of IP, of TCP and ICMP, of UDP.
fn is_bad(line: &str) -> bool {
    ["bad cksum", "(incorrect", "[bad udp cksum", "wrong icmp cksum", "bad icmp6 cksum"]
        .iter()
        .any(|mark| line.contains(mark))
}

#[cfg(test)]
mod tests {
    use super::is_bad;

    #[test]
    fn knows_how_tcpdump_marks_wrong_checksums() {
        assert!(is_bad("length 52, bad cksum 0 (->26b8)!)"));
        assert!(is_bad("10.0.0.1.80 > 10.0.0.2.9: Flags [S], cksum 0x1234 (incorrect -> 0x4321), seq 1"));
        assert!(is_bad("10.0.0.1.53 > 10.0.0.2.9: [bad udp cksum 0x1234 -> 0x4321!] 1 A? a."));
        assert!(!is_bad("10.0.0.1.80 > 10.0.0.2.9: Flags [S], cksum 0x1234 (correct), seq 1"));
        assert!(!is_bad("10.0.0.1.53 > 10.0.0.2.9: [udp sum ok] 1 A? a."));
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! The process itself, as every client of Prometheus tells of it (rule 73). Read from `/proc` at each scrape.

use std::fs;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};

/// `USER_HZ`, in which proc(5) counts: 100 on every architecture that Rust has a 64-bit Linux target for.
const TICKS_PER_SEC: f64 = 100.0;

/// What the kernel says of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Process {
    cpu_secs: f64,
    start_secs: f64,
    resident_bytes: u64,
    virtual_bytes: u64,
    open_fds: u64,
    max_fds: u64,
}

impl Process {
    /// What can't be read is 0.
    fn read() -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let own = Self::parse(&text("/proc/self/stat"), &text("/proc/self/status"), &text("/proc/self/limits"));
        let boot_secs = number_after(&text("/proc/stat"), "btime");
        let open_fds = fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64);
        Self { start_secs: boot_secs as f64 + own.start_secs, open_fds, ..own }
    }

    /// The start is in seconds after the machine's.
    fn parse(stat: &str, status: &str, limits: &str) -> Self {
        // `pid (name) state ...`: the name may hold anything.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or_default();
        Self {
            // utime and stime.
            cpu_secs: (ticks(11) + ticks(12)) / TICKS_PER_SEC,
            // starttime.
            start_secs: ticks(19) / TICKS_PER_SEC,
            resident_bytes: number_after(status, "VmRSS:") * 1024,
            virtual_bytes: number_after(status, "VmSize:") * 1024,
            open_fds: 0,
            max_fds: number_after(limits, "Max open files"),
        }
    }
}

/// The first number in the line that begins so.
fn number_after(text: &str, beginning: &str) -> u64 {
    let rest = text.lines().find_map(|line| line.strip_prefix(beginning));
    rest.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

/// Shows the process as it is.
#[derive(Debug)]
pub(super) struct ProcessMetrics;

impl Collector for ProcessMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let process = Process::read();
        let help = "CPU time used, of user and system";
        encoder
            .encode_descriptor("process_cpu_seconds", help, None, MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, u64>(&process.cpu_secs, None)?;
        let help = "Start of the process, in seconds since 1970";
        encoder
            .encode_descriptor("process_start_time_seconds", help, None, MetricType::Gauge)?
            .encode_gauge(&process.start_secs)?;
        for (name, help, value) in [
            (
                "process_resident_memory_bytes",
                "Resident memory; of the maps only what is mapped here",
                process.resident_bytes,
            ),
            ("process_virtual_memory_bytes", "Virtual memory", process.virtual_bytes),
            ("process_open_fds", "Open file descriptors", process.open_fds),
            ("process_max_fds", "File descriptors that may be open", process.max_fds),
        ] {
            encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::text::encode, registry::Registry};

    use super::*;

    #[test]
    fn rule_73_what_proc_says_is_read() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 6 7 20 0 4 0 12345 1000 20 30";
        let process = Process::parse(
            stat,
            "Name:\tlb-agent\nVmSize:\t  2048 kB\nVmRSS:\t    1024 kB\n",
            "Limit  Soft  Hard\nMax open files            1024                 4096                 files\n",
        );
        let (resident_bytes, virtual_bytes) = (1 << 20, 2 << 20);
        let expected =
            Process { cpu_secs: 2.0, start_secs: 123.45, resident_bytes, virtual_bytes, open_fds: 0, max_fds: 1024 };
        assert_eq!(process, expected);
    }

    #[test]
    fn rule_73_the_process_is_shown_under_the_usual_names() {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(ProcessMetrics));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
            line.unwrap_or_else(|| panic!("{name} in\n{text}")).parse().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_open_fds") >= 3.0 && value("process_max_fds") >= value("process_open_fds"));
        let now = jiff::Timestamp::now().as_second() as f64;
        assert!((now - 3600.0..=now + 2.0).contains(&value("process_start_time_seconds")), "{text}");
        value("process_cpu_seconds_total");
    }
}

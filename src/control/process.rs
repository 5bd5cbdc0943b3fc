//! What the kernel says about this process, from `/proc/self` (proc(5)).

use std::fs;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Clock ticks in a second as `/proc` counts them: fixed by the kernel's user interface on all platforms Rust runs on.
const TICKS_PER_S: f64 = 100.0;

/// A process's figures; 0 where the kernel does not tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct Process {
    /// User and system time of all threads.
    pub(crate) cpu_seconds: f64,
    /// Memory in RAM.
    pub(crate) resident_bytes: u64,
    /// Address space.
    pub(crate) virtual_bytes: u64,
    /// Threads.
    pub(crate) threads: u64,
    /// Open descriptors.
    pub(crate) open_fds: u64,
    /// How many descriptors it may open.
    pub(crate) max_fds: u64,
    /// Unix time of its start.
    pub(crate) start_time_seconds: f64,
}

/// Reads the figures.
pub(crate) fn read() -> Process {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    Process {
        cpu_seconds: (stat_field(&stat, 14) + stat_field(&stat, 15)) / TICKS_PER_S,
        resident_bytes: status_kib(&status, "VmRSS:") * 1024,
        virtual_bytes: status_kib(&status, "VmSize:") * 1024,
        threads: stat_field(&stat, 20) as u64,
        open_fds: open_descriptors(),
        max_fds: limit(&limits, "Max open files"),
        start_time_seconds: start_time(stat_field(&stat, 22) / TICKS_PER_S),
    }
}

/// A field by its number in proc(5), from 1. The command's name, field 2, may itself hold blanks and parentheses.
fn stat_field(stat: &str, number: usize) -> f64 {
    let Some((_, rest)) = stat.rsplit_once(')') else { return 0.0 };
    rest.split_ascii_whitespace().nth(number.saturating_sub(3)).and_then(|field| field.parse().ok()).unwrap_or(0.0)
}

fn status_kib(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_ascii_whitespace().next()).and_then(|field| field.parse().ok()).unwrap_or(0)
}

/// The soft limit.
fn limit(limits: &str, name: &str) -> u64 {
    let line = limits.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_ascii_whitespace().next()).and_then(|field| field.parse().ok()).unwrap_or(0)
}

fn open_descriptors() -> u64 {
    // Since Linux 6.2 the directory's size is the number of descriptors; before it is 0, and they have to be counted.
    match fs::metadata("/proc/self/fd").map(|metadata| metadata.len()) {
        Ok(count) if count > 0 => count,
        _ => fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64),
    }
}

/// Worked out once: it is told relative to the boot, and the clock may be set meanwhile.
fn start_time(after_boot_s: f64) -> f64 {
    static START: OnceLock<f64> = OnceLock::new();
    *START.get_or_init(|| {
        let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
        let uptime_s = uptime.split_ascii_whitespace().next().and_then(|field| field.parse::<f64>().ok());
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |elapsed| elapsed.as_secs_f64());
        now_s - uptime_s.map_or(0.0, |uptime_s| uptime_s - after_boot_s)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_a_command_with_parentheses() {
        let stat = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 250 150 0 0 20 0 9 0 12345 0";
        assert_eq!(stat_field(stat, 14), 250.0);
        assert_eq!(stat_field(stat, 20), 9.0);
        assert_eq!(stat_field(stat, 22), 12345.0);
        assert_eq!(stat_field("", 14), 0.0);
        assert_eq!(status_kib("VmPeak:\t 9 kB\nVmRSS:\t  12 kB\n", "VmRSS:"), 12);
        assert_eq!(
            limit("Max open files            1024                 4096                 files\n", "Max open files"),
            1024
        );
    }

    #[test]
    fn this_process_has_figures() {
        let process = read();
        assert!(process.resident_bytes > 100_000 && process.threads >= 1 && process.open_fds >= 3);
        assert!(process.max_fds >= process.open_fds && process.start_time_seconds > 1.6e9);
    }
}

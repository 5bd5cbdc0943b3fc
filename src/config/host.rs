//! Compares the configuration with what the machine grants, before the hub starts.
//!
//! Facts are gathered in one place and judged in another, so that every judgement can be tested on any machine.

use std::fs;
use std::io;

use super::Config;
use super::advice;
use super::driver::DriverChoice;
use super::finding::Finding;
use super::folder::journal_folder;
use crate::ring::DriverKind;
use crate::ring::host::probe_ring;

/// The oldest kernel with all that the ring uses: deferred task work, multishot receive and rings of buffers.
const KERNEL_MIN: (u32, u32) = (6, 1);

/// Descriptors a node needs beside its connections: listeners, rings, doorbells, the control plane's requests.
const FILES_RESERVE: u64 = 512;

/// What the control plane's executor asks of `RLIMIT_MEMLOCK`.
const MEMLOCK_MIN: u64 = 512 << 10;

/// Everything that `serve` has to know about machine and configuration before it starts; it refuses to start while a
/// finding has [`Level::Fail`](super::finding::Level::Fail).
pub fn check_host(config: &Config) -> Vec<Finding> {
    let mut findings = judge(config, &Facts::gather(config));
    findings.extend(advice::advice(config));
    findings.extend(journal_folder(config));
    findings
}

/// What was read from the machine; none for what it does not tell.
#[derive(Debug)]
struct Facts {
    kernel: Option<String>,
    io_uring_disabled: Option<u64>,
    ring: io::Result<()>,
    open_files_hard: Option<u64>,
    memlock_soft: Option<u64>,
    somaxconn: Option<u64>,
}

impl Facts {
    fn gather(config: &Config) -> Self {
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        Self {
            kernel: read_text("/proc/sys/kernel/osrelease"),
            io_uring_disabled: read_number("/proc/sys/kernel/io_uring_disabled"),
            ring: probe_ring(config.ring.entries, config.ring.completions),
            open_files_hard: limit(&limits, "Max open files", 1),
            memlock_soft: limit(&limits, "Max locked memory", 0),
            somaxconn: read_number("/proc/sys/net/core/somaxconn"),
        }
    }
}

fn judge(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![kernel(config, facts), ring(config, facts)];
    findings.extend(open_files(config, facts));
    findings.extend(memlock(config, facts));
    findings.extend(somaxconn(config, facts));
    findings
}

fn kernel(config: &Config, facts: &Facts) -> Finding {
    let (major, minor) = KERNEL_MIN;
    let release = facts.kernel.as_deref().unwrap_or("unknown");
    match version(release) {
        // What epoll needs has been there for longer than the kernels that are still about.
        _ if config.shards.driver.driver(&facts.ring) == DriverKind::Epoll => {
            Finding::ok("kernel", format!("Linux {release}, of which only epoll is used"))
        }
        Some(version) if version >= KERNEL_MIN => Finding::ok("kernel", format!("Linux {release}")),
        Some(_) => Finding::fail(
            "kernel",
            format!("Linux {release} is older than {major}.{minor}"),
            "it lacks parts of io_uring that the hub is built on",
            format!(
                "boot a kernel from {major}.{minor} on, such as that of Debian 12, Ubuntu 24.04 or RHEL 10, or do without \
                 io_uring by shards.driver = \"epoll\""
            ),
        ),
        None => Finding::warn(
            "kernel",
            format!("the kernel's version can't be told from {release:?}"),
            format!("the hub needs Linux {major}.{minor} or newer"),
            "uname -r",
        ),
    }
}

fn ring(config: &Config, facts: &Facts) -> Finding {
    let check = "io_uring";
    if config.shards.driver == DriverChoice::Epoll {
        return Finding::skipped(check, "not asked for: shards.driver = \"epoll\"");
    }
    let Err(error) = &facts.ring else {
        return Finding::ok(check, "a ring can be set up");
    };
    let what = format!("a ring can't be set up: {error}");
    let (why, fix) = refused(error, facts.io_uring_disabled);
    match config.shards.driver.driver(&facts.ring) {
        DriverKind::Epoll => Finding::warn(
            check,
            format!("{what}; the hub runs on epoll"),
            format!("{why}. On epoll every send and every receive is a system call: more processor time per delivery"),
            fix,
        ),
        DriverKind::Uring => Finding::fail(check, what, why, fix),
    }
}

/// Why a ring can't be set up, and what to do about it.
fn refused(error: &io::Error, io_uring_disabled: Option<u64>) -> (&'static str, &'static str) {
    match (error.raw_os_error(), io_uring_disabled) {
        (Some(libc::EPERM), Some(2)) => (
            "io_uring is switched off for all processes (kernel.io_uring_disabled = 2)",
            "sysctl -w kernel.io_uring_disabled=0",
        ),
        (Some(libc::EPERM), Some(1)) => (
            "io_uring is switched off for processes outside the group kernel.io_uring_group (kernel.io_uring_disabled = 1)",
            "sysctl -w kernel.io_uring_group=$(id -g), or sysctl -w kernel.io_uring_disabled=0",
        ),
        (Some(libc::EPERM | libc::EACCES), _) => (
            "a seccomp filter forbids it, as container runtimes do by default, or a security module",
            "docker run --security-opt seccomp=tuning/seccomp.json …, or another profile that allows io_uring_setup, io_uring_enter and io_uring_register",
        ),
        (Some(libc::ENOSYS), _) => (
            "the kernel was built without io_uring, or a sandbox (gVisor, an old seccomp profile) hides it",
            "run on a kernel with CONFIG_IO_URING=y, outside of such a sandbox",
        ),
        (Some(libc::EINVAL), _) => (
            "the kernel does not know SINGLE_ISSUER and DEFER_TASKRUN, which came with Linux 6.1",
            "boot a kernel from 6.1 on",
        ),
        (Some(libc::ENOMEM), _) => (
            "no memory may be had for the ring: the limit of locked memory or the container's memory limit is too low",
            "LimitMEMLOCK=infinity in the systemd unit (ulimit -l unlimited), or smaller ring.entries and ring.completions",
        ),
        (Some(libc::EMFILE | libc::ENFILE), _) => {
            ("no file descriptor is left", "LimitNOFILE=1048576 in the systemd unit (ulimit -n)")
        }
        _ => ("the hub is built on it", "dmesg | tail, for what the kernel says about it"),
    }
}

fn open_files(config: &Config, facts: &Facts) -> Option<Finding> {
    let check = "open files";
    let hard = facts.open_files_hard?;
    let connections = config.connections_max() as u64;
    let needed = connections.saturating_add(FILES_RESERVE);
    let fix = format!("LimitNOFILE={} in the systemd unit (ulimit -Hn)", needed.next_power_of_two());
    Some(if hard >= needed {
        Finding::ok(check, format!("{} may be open, {connections} connections fit", count(hard)))
    } else if hard < 2 * FILES_RESERVE {
        let why = format!("{FILES_RESERVE} are needed before the first connection");
        Finding::fail(check, format!("{hard} may be open"), why, fix)
    } else {
        let fit = hard - FILES_RESERVE;
        let why = format!("the configuration allows {connections} connections, {fit} fit; more will be refused");
        Finding::warn(check, format!("{hard} may be open"), why, fix)
    })
}

fn memlock(config: &Config, facts: &Facts) -> Option<Finding> {
    let check = "locked memory";
    if config.shards.driver.driver(&facts.ring) == DriverKind::Epoll {
        return Some(Finding::skipped(check, "epoll needs none"));
    }
    let soft = facts.memlock_soft?;
    Some(if soft >= MEMLOCK_MIN {
        Finding::ok(check, if soft == u64::MAX { "unlimited".to_owned() } else { format!("{} KiB", soft >> 10) })
    } else {
        Finding::fail(
            check,
            format!("{} KiB may be locked", soft >> 10),
            format!("the control plane's rings need {} KiB", MEMLOCK_MIN >> 10),
            "LimitMEMLOCK=8M in the systemd unit (ulimit -l 8192)",
        )
    })
}

fn somaxconn(config: &Config, facts: &Facts) -> Option<Finding> {
    let check = "accept queue";
    let granted = facts.somaxconn?;
    let backlog = u64::from(config.listen.backlog);
    Some(if granted >= backlog {
        Finding::ok(check, format!("net.core.somaxconn = {granted}, listen.backlog = {backlog}"))
    } else {
        Finding::warn(
            check,
            format!("net.core.somaxconn = {granted} cuts listen.backlog = {backlog}"),
            "when many clients reconnect at once, some will have to try again",
            format!("sysctl -w net.core.somaxconn={backlog}"),
        )
    })
}

/// Major and minor number of a kernel release such as `6.1.0-18-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// A limit from `/proc/self/limits`; column 0 is the soft one, 1 the hard one.
fn limit(limits: &str, name: &str, column: usize) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    match line.split_whitespace().nth(column)? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

fn count(limit: u64) -> String {
    if limit == u64::MAX { "any number".to_owned() } else { limit.to_string() }
}

/// The text of a small file of the system; none when there is no such file.
pub(crate) fn read_text(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// A file of the system that holds one number.
pub(crate) fn read_number(path: &str) -> Option<u64> {
    read_text(path)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    fn healthy() -> Facts {
        Facts {
            kernel: Some("6.1.0-18-amd64".to_owned()),
            io_uring_disabled: Some(0),
            ring: Ok(()),
            open_files_hard: Some(1 << 20),
            memlock_soft: Some(8 << 20),
            somaxconn: Some(4096),
        }
    }

    fn config() -> Config {
        let mut config = Config::default();
        config.shards.count = 2;
        config
    }

    fn found(facts: &Facts, check: &str) -> Finding {
        judge(&config(), facts).into_iter().find(|finding| finding.check == check).expect("checked")
    }

    #[test]
    fn a_healthy_machine_has_nothing_to_fix() {
        let findings = judge(&config(), &healthy());
        assert_eq!(findings.len(), 5);
        for finding in findings {
            assert_eq!((finding.level, finding.fix.as_str()), (Level::Ok, ""), "{finding}");
        }
    }

    #[test]
    fn kernels_before_6_1_are_refused() {
        for (release, level) in [
            ("5.15.0-91-generic", Level::Fail),
            ("6.0.9", Level::Fail),
            ("6.1", Level::Ok),
            ("6.18.5", Level::Ok),
            ("7.0-rc1", Level::Ok),
            ("hurd", Level::Warn),
        ] {
            let facts = Facts { kernel: Some(release.to_owned()), ..healthy() };
            assert_eq!(found(&facts, "kernel").level, level, "{release}");
        }
    }

    #[test]
    fn a_refused_ring_is_explained_by_its_error_and_the_switch() {
        let cases = [
            (libc::EPERM, Some(2), "kernel.io_uring_disabled = 2"),
            (libc::EPERM, Some(1), "io_uring_group"),
            (libc::EPERM, Some(0), "seccomp"),
            (libc::EPERM, None, "seccomp"),
            (libc::ENOSYS, None, "CONFIG_IO_URING"),
            (libc::EINVAL, Some(0), "DEFER_TASKRUN"),
            (libc::ENOMEM, Some(0), "LimitMEMLOCK"),
            (libc::EMFILE, Some(0), "LimitNOFILE"),
        ];
        for (errno, io_uring_disabled, expected) in cases {
            let ring = Err(io::Error::from_raw_os_error(errno));
            let facts = Facts { ring, io_uring_disabled, ..healthy() };
            let finding = judge(&wanting(DriverChoice::Uring), &facts).remove(1);
            assert_eq!((finding.check, finding.level), ("io_uring", Level::Fail));
            assert!(finding.to_string().contains(expected), "{expected}: {finding}");
            assert!(!finding.fix.is_empty());
        }
    }

    fn wanting(driver: DriverChoice) -> Config {
        let mut config = config();
        config.shards.driver = driver;
        config
    }

    #[test]
    fn a_forbidden_ring_costs_and_stops_nothing_where_epoll_may_stand_in() {
        for errno in [libc::EPERM, libc::EACCES, libc::ENOSYS] {
            let ring = Err(io::Error::from_raw_os_error(errno));
            let old = Some("5.15.0-91-generic".to_owned());
            let facts = Facts { ring, kernel: old, memlock_soft: Some(64 << 10), ..healthy() };
            let finding = found(&facts, "io_uring");
            assert_eq!(finding.level, Level::Warn);
            assert!(finding.what.contains("epoll") && finding.why.contains("processor time"), "{finding}");
            assert!(judge(&config(), &facts).iter().all(|finding| finding.level != Level::Fail));
        }
        let ring = Err(io::Error::from_raw_os_error(libc::ENOMEM));
        assert_eq!(found(&Facts { ring, ..healthy() }, "io_uring").level, Level::Fail, "it has a remedy");
    }

    #[test]
    fn where_epoll_is_asked_for_nothing_of_io_uring_is_needed() {
        let ring = Err(io::Error::from_raw_os_error(libc::EINVAL));
        let old = Some("5.15.0-91-generic".to_owned());
        let facts = Facts { ring, kernel: old, memlock_soft: Some(64 << 10), ..healthy() };
        let findings = judge(&wanting(DriverChoice::Epoll), &facts);
        assert!(findings.iter().all(|finding| finding.level <= Level::Skip), "{findings:?}");
        assert!(judge(&config(), &facts).iter().any(|finding| finding.level == Level::Fail));
    }

    #[test]
    fn few_descriptors_cut_the_connections_and_too_few_stop_the_start() {
        let with = |hard| found(&Facts { open_files_hard: Some(hard), ..healthy() }, "open files");
        assert_eq!(with(30_512).level, Level::Ok);
        assert_eq!(with(u64::MAX).level, Level::Ok);
        let cut = with(4096);
        assert_eq!(cut.level, Level::Warn);
        assert!(cut.why.contains("3584 fit") && cut.fix.contains("LimitNOFILE=32768"), "{cut}");
        assert_eq!(with(256).level, Level::Fail);
    }

    #[test]
    fn little_locked_memory_and_a_short_accept_queue_are_found() {
        assert_eq!(found(&Facts { memlock_soft: Some(64 << 10), ..healthy() }, "locked memory").level, Level::Fail);
        assert_eq!(found(&Facts { somaxconn: Some(128), ..healthy() }, "accept queue").level, Level::Warn);
    }

    #[test]
    fn limits_are_read_from_the_kernels_table() {
        let table = "Limit                     Soft Limit           Hard Limit           Units     \n\
                     Max open files            1024                 1048576              files     \n\
                     Max locked memory         unlimited            unlimited            bytes     \n";
        assert_eq!(limit(table, "Max open files", 0), Some(1024));
        assert_eq!(limit(table, "Max open files", 1), Some(1_048_576));
        assert_eq!(limit(table, "Max locked memory", 0), Some(u64::MAX));
        assert_eq!(limit(table, "Max processes", 0), None);
    }
}

//! What a process costs, as the kernel counts it: CPU time of all its threads and resident memory, from /proc; and
//! this process's own limit of file descriptors.

use std::path::PathBuf;
use std::{fs, io};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that a run needs besides its connections: standard streams, epoll sets, /proc files.
const DESCRIPTORS_SPARE: u64 = 64;

/// A process to watch.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pid: u32,
    folder: PathBuf,
}

/// One reading of a process.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// Time on a CPU since its start, all threads.
    pub(crate) cpu_ns: u64,
    /// Resident memory.
    pub(crate) rss_bytes: u64,
}

/// Why there can't be that many connections.
#[derive(Debug, thiserror::Error)]
#[error(
    "{needed} file descriptors are needed, but RLIMIT_NOFILE allows {allowed} (hard limit {hard}): \
     raise it with `ulimit -Hn {needed}` as root, LimitNOFILE= in the unit, or --conns fewer"
)]
pub(crate) struct TooFewDescriptors {
    needed: u64,
    allowed: u64,
    hard: u64,
}

impl Process {
    /// Looks a process up by its id.
    pub(crate) fn new(pid: u32) -> io::Result<Process> {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        if !folder.is_dir() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "no such process"));
        }
        let process = Process { pid, folder };
        process.usage()?;
        Ok(process)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Reads its present figures. Threads that have ended are not in the CPU time: it is meant for servers whose
    /// threads stay.
    pub(crate) fn usage(&self) -> io::Result<Usage> {
        let mut cpu_ns = 0u64;
        for task in fs::read_dir(self.folder.join("task"))? {
            // A thread may end between listing and reading; its time is then no longer told by anyone.
            match fs::read_to_string(task?.path().join("schedstat")) {
                Ok(text) => cpu_ns += on_cpu_ns(&text).ok_or_else(|| malformed("schedstat"))?,
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) || error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        let status = fs::read_to_string(self.folder.join("status"))?;
        let rss_bytes = rss_bytes(&status).ok_or_else(|| malformed("status"))?;
        Ok(Usage { cpu_ns, rss_bytes })
    }
}

/// Raises this process's limit of descriptors as far as it may and checks that so many connections fit.
pub(crate) fn allow_connections(connections: u64) -> Result<(), TooFewDescriptors> {
    let limit = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    let allowed = if raised.is_ok() { limit.maximum } else { limit.current };
    let (allowed, hard) = (allowed.unwrap_or(u64::MAX), limit.maximum.unwrap_or(u64::MAX));
    let needed = connections + DESCRIPTORS_SPARE;
    if needed > allowed { Err(TooFewDescriptors { needed, allowed, hard }) } else { Ok(()) }
}

/// First field of `schedstat`: nanoseconds spent on a CPU.
fn on_cpu_ns(schedstat: &str) -> Option<u64> {
    schedstat.split_ascii_whitespace().next()?.parse().ok()
}

/// The `VmRSS` line of `status`, which is in KiB.
fn rss_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_ascii_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

fn malformed(file: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("/proc/PID/{file} is not as expected"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_uses_cpu() {
        let process = Process::new(std::process::id()).unwrap();
        let before = process.usage().unwrap();
        assert!(before.rss_bytes > 100 * 1024);
        // Threads of other tests end meanwhile and take their time out of the sum.
        let begin = std::time::Instant::now();
        while process.usage().unwrap().cpu_ns <= before.cpu_ns {
            assert!(begin.elapsed().as_secs() < 30);
        }
    }

    #[test]
    fn the_fields_are_read_as_the_kernel_writes_them() {
        assert_eq!(on_cpu_ns("123456 789 10\n"), Some(123456));
        assert_eq!(rss_bytes("Name:\tx\nVmRSS:\t    2048 kB\nThreads:\t1\n"), Some(2 << 20));
        assert_eq!(rss_bytes("Name:\tx\n"), None);
    }

    #[test]
    fn too_many_connections_are_refused_with_the_limit_s_name() {
        let text = allow_connections(u64::MAX / 2).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(text.is_empty() || text.contains("RLIMIT_NOFILE"), "{text}");
        assert!(Process::new(0).is_err());
    }
}

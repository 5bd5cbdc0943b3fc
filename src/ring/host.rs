//! What the kernel grants this process: asked before a driver is started.

use std::io;

use io_uring::{IoUring, Probe, cqueue, squeue};

/// Sets up a ring as a shard would, makes each of the calls that a ring needs, and lets it go again. The error is the
/// kernel's.
pub fn probe_ring(entries: u32, completions: u32) -> io::Result<()> {
    let mut builder = IoUring::<squeue::Entry, cqueue::Entry>::builder();
    builder.setup_single_issuer().setup_defer_taskrun().setup_cqsize(completions);
    let ring = builder.build(entries)?;
    ring.submitter().register_probe(&mut Probe::new())?;
    ring.submit().map(drop)
}

/// Whether a ring was refused because io_uring is forbidden or isn't there, in contrast to what can be put right by whoever
/// runs the hub: memory, descriptors, sizes.
pub fn is_forbidden(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::ENOSYS))
}

/// Whether this kernel's rings can be given a least time to wait (from Linux 6.12 on).
pub fn knows_min_wait() -> bool {
    IoUring::new(2).is_ok_and(|ring| ring.params().is_feature_min_timeout())
}

/// Raises the limit of open files as far as the process may, and gives the limit that holds then.
pub fn raise_open_files() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for one rlimit, which the call fills.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if limit.rlim_cur == limit.rlim_max {
        return Ok(limit.rlim_cur);
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is an initialised rlimit, which the call only reads.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit.rlim_cur)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_open_files_is_raised_once_and_then_stays() {
        let raised = raise_open_files().expect("allowed to raise to the hard limit");
        assert!(raised > 0);
        assert_eq!(raise_open_files().expect("again"), raised);
    }

    #[test]
    fn a_ring_of_no_entries_is_the_kernels_to_refuse() {
        // Whatever this machine grants, the call answers with a result.
        let refused = probe_ring(0, 0).expect_err("no entries");
        assert!(refused.raw_os_error().is_some());
    }
}

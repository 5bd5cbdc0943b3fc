//! The clocks that a driver reads.

use super::Now;

/// Microseconds of the clock that [`Now::monotonic_us`] is of, for those who are not on a shard.
pub fn monotonic_us() -> u64 {
    clock_us(libc::CLOCK_MONOTONIC)
}

/// Both clocks.
pub(super) fn now() -> Now {
    Now { monotonic_us: monotonic_us(), unix_ms: clock_us(libc::CLOCK_REALTIME) / 1000 }
}

/// Read by its number rather than as an `Instant`: all shards count from the same zero.
fn clock_us(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec, which is borrowed for the call.
    let result = unsafe { libc::clock_gettime(clock, &mut time) };
    debug_assert_eq!(result, 0);
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1000
}

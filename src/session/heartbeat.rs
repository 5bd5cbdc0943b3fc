//! Whether the other end still lives: a ping every interval, and something has to come within the timeout after it.

use crate::ring::Now;

/// A connection's heartbeat: when it was pinged last, or began, in microseconds of the monotonic clock, and whether the pong
/// is still to come. One word, since every connection has one.
#[derive(Debug, Clone, Copy)]
pub struct Heartbeat(u64);

/// The pong to the last ping has not come.
const OUTSTANDING: u64 = 1 << 63;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beat {
    /// Nothing until then.
    WaitUntil(u64),
    /// A ping is to be sent; ask again right after.
    Ping,
    /// The peer is gone.
    Dead,
}

impl Heartbeat {
    /// A heartbeat whose first ping is due an interval after its beginning.
    pub fn new(now_ms: u64) -> Heartbeat {
        Heartbeat(now_ms.saturating_mul(1000) & !OUTSTANDING)
    }

    fn pinged_us(self) -> u64 {
        self.0 & !OUTSTANDING
    }

    fn is_outstanding(self) -> bool {
        self.0 & OUTSTANDING != 0
    }

    /// What is due now, the last bytes having come at `heard_ms`.
    pub fn poll(&mut self, now: Now, heard_ms: u64, interval_ms: u64, timeout_ms: u64) -> Beat {
        let now_ms = now.monotonic_us / 1000;
        let pinged_ms = self.pinged_us() / 1000;
        let next_ping_ms = pinged_ms + interval_ms;
        if self.is_outstanding() && heard_ms < pinged_ms {
            let until_ms = pinged_ms + timeout_ms;
            if now_ms >= until_ms {
                return Beat::Dead;
            }
            // An answer is noticed when the next ping is due, which may be before the timeout.
            return Beat::WaitUntil(if next_ping_ms > now_ms { until_ms.min(next_ping_ms) } else { until_ms });
        }
        if now_ms >= next_ping_ms {
            *self = Heartbeat(now.monotonic_us | OUTSTANDING);
            return Beat::Ping;
        }
        Beat::WaitUntil(next_ping_ms)
    }

    /// A pong came: the round trip in microseconds where it is the first since a ping of ours, none where nobody asked for it,
    /// which RFC 6455 §5.5.3 allows.
    pub fn pong(&mut self, now: Now) -> Option<u64> {
        let round_trip_us = self.is_outstanding().then(|| now.monotonic_us.saturating_sub(self.pinged_us()));
        self.0 = self.pinged_us();
        round_trip_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Now {
        Now { monotonic_us: ms * 1000, unix_ms: 0 }
    }

    #[test]
    fn a_living_peer_is_pinged_every_interval() {
        let mut heartbeat = Heartbeat::new(0);
        assert_eq!(heartbeat.poll(at(0), 0, 30_000, 10_000), Beat::WaitUntil(30_000));
        assert_eq!(heartbeat.poll(at(30_000), 0, 30_000, 10_000), Beat::Ping);
        assert_eq!(heartbeat.poll(at(30_000), 0, 30_000, 10_000), Beat::WaitUntil(40_000));
        assert_eq!(heartbeat.poll(at(30_020), 30_010, 30_000, 10_000), Beat::WaitUntil(60_000));
        assert_eq!(heartbeat.poll(at(60_000), 30_010, 30_000, 10_000), Beat::Ping);
    }

    #[test]
    fn a_silent_peer_is_dead_after_the_timeout() {
        let mut heartbeat = Heartbeat::new(0);
        assert_eq!(heartbeat.poll(at(30_000), 100, 30_000, 10_000), Beat::Ping);
        assert_eq!(heartbeat.poll(at(39_999), 100, 30_000, 10_000), Beat::WaitUntil(40_000));
        assert_eq!(heartbeat.poll(at(40_000), 100, 30_000, 10_000), Beat::Dead);
    }

    #[test]
    fn a_timeout_longer_than_the_interval_is_kept() {
        let mut heartbeat = Heartbeat::new(0);
        assert_eq!(heartbeat.poll(at(1_000), 0, 1_000, 5_000), Beat::Ping);
        assert_eq!(heartbeat.poll(at(3_000), 0, 1_000, 5_000), Beat::WaitUntil(6_000));
        assert_eq!(heartbeat.poll(at(5_000), 4_900, 1_000, 5_000), Beat::Ping);
    }

    #[test]
    fn a_round_trip_is_measured_once_and_only_where_a_ping_is_outstanding() {
        let mut heartbeat = Heartbeat::new(0);
        assert_eq!(heartbeat.pong(at(500)), None, "nobody asked");
        assert_eq!(heartbeat.poll(at(1_000), 0, 1_000, 5_000), Beat::Ping);
        assert_eq!(heartbeat.pong(Now { monotonic_us: 1_000_250, unix_ms: 0 }), Some(250));
        assert_eq!(heartbeat.pong(at(1_001)), None, "the second answer to one ping");
        assert_eq!(heartbeat.poll(at(1_900), 1_000, 1_000, 5_000), Beat::WaitUntil(2_000), "it lives");
    }

    #[test]
    fn a_living_peer_is_pinged_every_interval_however_long_the_timeout_is() {
        let mut heartbeat = Heartbeat::new(0);
        for second in 1..5 {
            let now_ms = second * 1_000;
            assert_eq!(heartbeat.poll(at(now_ms), now_ms - 990, 1_000, 10_000), Beat::Ping);
            assert_eq!(heartbeat.poll(at(now_ms), now_ms - 990, 1_000, 10_000), Beat::WaitUntil(now_ms + 1_000));
        }
    }
}

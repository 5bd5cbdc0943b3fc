//! Whether the other end still lives: a ping every interval, and something has to come within the timeout after it.

use crate::ring::Now;

/// A connection's heartbeat; times are of the monotonic clock.
#[derive(Debug, Clone, Copy)]
pub struct Heartbeat {
    next_ping_ms: u64,
    /// Something has to come after this ping; 0 where its pong has come, or none was sent.
    pinged_us: u64,
}

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
    /// A heartbeat whose first ping is due after an interval.
    pub fn new(now_ms: u64, interval_ms: u64) -> Heartbeat {
        Heartbeat { next_ping_ms: now_ms + interval_ms, pinged_us: 0 }
    }

    /// What is due now, the last bytes having come at `heard_ms`.
    pub fn poll(&mut self, now: Now, heard_ms: u64, interval_ms: u64, timeout_ms: u64) -> Beat {
        let now_ms = now.monotonic_us / 1000;
        let pinged_ms = self.pinged_us / 1000;
        if self.pinged_us != 0 && heard_ms < pinged_ms {
            let until_ms = pinged_ms + timeout_ms;
            if now_ms >= until_ms {
                return Beat::Dead;
            }
            // An answer is noticed when the next ping is due, which may be before the timeout.
            let due_ms = if self.next_ping_ms > now_ms { until_ms.min(self.next_ping_ms) } else { until_ms };
            return Beat::WaitUntil(due_ms);
        }
        if now_ms >= self.next_ping_ms {
            self.pinged_us = now.monotonic_us.max(1);
            self.next_ping_ms = now_ms + interval_ms;
            return Beat::Ping;
        }
        Beat::WaitUntil(self.next_ping_ms)
    }

    /// A pong came: the round trip in microseconds where it is the first since a ping of ours, none where nobody asked for it,
    /// which RFC 6455 §5.5.3 allows.
    pub fn pong(&mut self, now: Now) -> Option<u64> {
        let pinged_us = std::mem::take(&mut self.pinged_us);
        (pinged_us != 0).then(|| now.monotonic_us.saturating_sub(pinged_us))
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
        let mut heartbeat = Heartbeat::new(0, 30_000);
        assert_eq!(heartbeat.poll(at(0), 0, 30_000, 10_000), Beat::WaitUntil(30_000));
        assert_eq!(heartbeat.poll(at(30_000), 0, 30_000, 10_000), Beat::Ping);
        assert_eq!(heartbeat.poll(at(30_000), 0, 30_000, 10_000), Beat::WaitUntil(40_000));
        assert_eq!(heartbeat.poll(at(30_020), 30_010, 30_000, 10_000), Beat::WaitUntil(60_000));
        assert_eq!(heartbeat.poll(at(60_000), 30_010, 30_000, 10_000), Beat::Ping);
    }

    #[test]
    fn a_silent_peer_is_dead_after_the_timeout() {
        let mut heartbeat = Heartbeat::new(0, 30_000);
        assert_eq!(heartbeat.poll(at(30_000), 100, 30_000, 10_000), Beat::Ping);
        assert_eq!(heartbeat.poll(at(39_999), 100, 30_000, 10_000), Beat::WaitUntil(40_000));
        assert_eq!(heartbeat.poll(at(40_000), 100, 30_000, 10_000), Beat::Dead);
    }

    #[test]
    fn a_timeout_longer_than_the_interval_is_kept() {
        let mut heartbeat = Heartbeat::new(0, 1_000);
        assert_eq!(heartbeat.poll(at(1_000), 0, 1_000, 5_000), Beat::Ping);
        assert_eq!(heartbeat.poll(at(3_000), 0, 1_000, 5_000), Beat::WaitUntil(6_000));
        assert_eq!(heartbeat.poll(at(5_000), 4_900, 1_000, 5_000), Beat::Ping);
    }

    #[test]
    fn a_round_trip_is_measured_once_and_only_where_a_ping_is_outstanding() {
        let mut heartbeat = Heartbeat::new(0, 1_000);
        assert_eq!(heartbeat.pong(at(500)), None, "nobody asked");
        assert_eq!(heartbeat.poll(at(1_000), 0, 1_000, 5_000), Beat::Ping);
        assert_eq!(heartbeat.pong(Now { monotonic_us: 1_000_250, unix_ms: 0 }), Some(250));
        assert_eq!(heartbeat.pong(at(1_001)), None, "the second answer to one ping");
        assert_eq!(heartbeat.poll(at(1_900), 1_000, 1_000, 5_000), Beat::WaitUntil(2_000), "it lives");
    }

    #[test]
    fn a_living_peer_is_pinged_every_interval_however_long_the_timeout_is() {
        let mut heartbeat = Heartbeat::new(0, 1_000);
        for second in 1..5 {
            let now_ms = second * 1_000;
            assert_eq!(heartbeat.poll(at(now_ms), now_ms - 990, 1_000, 10_000), Beat::Ping);
            assert_eq!(heartbeat.poll(at(now_ms), now_ms - 990, 1_000, 10_000), Beat::WaitUntil(now_ms + 1_000));
        }
    }
}

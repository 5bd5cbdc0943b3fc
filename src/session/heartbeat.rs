//! Whether the other end still lives: a ping every interval, and something has to come within the timeout after it.

/// A connection's heartbeat; times are milliseconds of the monotonic clock.
#[derive(Debug, Clone, Copy)]
pub struct Heartbeat {
    next_ping_ms: u64,
    /// Something has to come after this ping; 0 while nothing is outstanding.
    pinged_ms: u64,
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
        Heartbeat { next_ping_ms: now_ms + interval_ms, pinged_ms: 0 }
    }

    /// What is due now, the last bytes having come at `heard_ms`.
    pub fn poll(&mut self, now_ms: u64, heard_ms: u64, interval_ms: u64, timeout_ms: u64) -> Beat {
        if self.pinged_ms != 0 {
            if heard_ms >= self.pinged_ms {
                self.pinged_ms = 0;
            } else if now_ms >= self.pinged_ms + timeout_ms {
                return Beat::Dead;
            } else {
                let timeout_ms = self.pinged_ms + timeout_ms;
                // An answer is noticed when the next ping is due, which may be before the timeout.
                let due_ms = if self.next_ping_ms > now_ms { timeout_ms.min(self.next_ping_ms) } else { timeout_ms };
                return Beat::WaitUntil(due_ms);
            }
        }
        if now_ms >= self.next_ping_ms {
            self.pinged_ms = now_ms.max(1);
            self.next_ping_ms = now_ms + interval_ms;
            return Beat::Ping;
        }
        Beat::WaitUntil(self.next_ping_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_living_peer_is_pinged_every_interval() {
        let mut heartbeat = Heartbeat::new(0, 30_000);
        assert_eq!(heartbeat.poll(0, 0, 30_000, 10_000), Beat::WaitUntil(30_000));
        assert_eq!(heartbeat.poll(30_000, 0, 30_000, 10_000), Beat::Ping);
        assert_eq!(heartbeat.poll(30_000, 0, 30_000, 10_000), Beat::WaitUntil(40_000));
        assert_eq!(heartbeat.poll(30_020, 30_010, 30_000, 10_000), Beat::WaitUntil(60_000));
        assert_eq!(heartbeat.poll(60_000, 30_010, 30_000, 10_000), Beat::Ping);
    }

    #[test]
    fn a_silent_peer_is_dead_after_the_timeout() {
        let mut heartbeat = Heartbeat::new(0, 30_000);
        assert_eq!(heartbeat.poll(30_000, 100, 30_000, 10_000), Beat::Ping);
        assert_eq!(heartbeat.poll(39_999, 100, 30_000, 10_000), Beat::WaitUntil(40_000));
        assert_eq!(heartbeat.poll(40_000, 100, 30_000, 10_000), Beat::Dead);
    }

    #[test]
    fn a_timeout_longer_than_the_interval_is_kept() {
        let mut heartbeat = Heartbeat::new(0, 1_000);
        assert_eq!(heartbeat.poll(1_000, 0, 1_000, 5_000), Beat::Ping);
        assert_eq!(heartbeat.poll(3_000, 0, 1_000, 5_000), Beat::WaitUntil(6_000));
        assert_eq!(heartbeat.poll(5_000, 4_900, 1_000, 5_000), Beat::Ping);
    }

    #[test]
    fn a_living_peer_is_pinged_every_interval_however_long_the_timeout_is() {
        let mut heartbeat = Heartbeat::new(0, 1_000);
        for second in 1..5 {
            let now_ms = second * 1_000;
            assert_eq!(heartbeat.poll(now_ms, now_ms - 990, 1_000, 10_000), Beat::Ping);
            assert_eq!(heartbeat.poll(now_ms, now_ms - 990, 1_000, 10_000), Beat::WaitUntil(now_ms + 1_000));
        }
    }
}

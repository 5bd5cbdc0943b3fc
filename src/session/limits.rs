//! How much a client may send: a token bucket for messages, and the count of bad ones.

use crate::ring::Now;

/// A token bucket in 8 bytes: tokens are counted in thousandths, time in milliseconds. It holds up to 4.2 million.
#[derive(Debug, Clone, Copy, Default)]
pub struct TokenBucket {
    millitokens: u32,
    last_ms: u32,
}

impl TokenBucket {
    /// A bucket with `burst` tokens.
    pub fn full(burst: u32, now: Now) -> TokenBucket {
        TokenBucket { millitokens: millitokens(burst), last_ms: millis(now) }
    }

    /// Takes a token, or tells after how many milliseconds there will be one. `per_s` tokens come in a second, never more
    /// than `burst` are kept.
    pub fn take(&mut self, per_s: u32, burst: u32, now: Now) -> Result<(), u64> {
        self.fill(per_s, burst, now);
        if self.millitokens >= 1000 {
            self.millitokens -= 1000;
            return Ok(());
        }
        Err(u64::from((1000 - self.millitokens).div_ceil(per_s.max(1))))
    }

    /// Whole tokens that are there, as of the last call of [`TokenBucket::take`].
    pub fn tokens(&self) -> u32 {
        self.millitokens / 1000
    }

    /// Whether all of `burst` are there.
    pub fn is_full(mut self, per_s: u32, burst: u32, now: Now) -> bool {
        self.fill(per_s, burst, now);
        self.millitokens >= millitokens(burst)
    }

    fn fill(&mut self, per_s: u32, burst: u32, now: Now) {
        let now_ms = millis(now);
        // Wraps every 49 days; a bucket that was not asked for so long is full anyway, or a little emptier for once.
        let elapsed = u64::from(now_ms.wrapping_sub(self.last_ms));
        self.last_ms = now_ms;
        let filled = u64::from(self.millitokens).saturating_add(elapsed.saturating_mul(u64::from(per_s)));
        self.millitokens = u32::try_from(filled).unwrap_or(u32::MAX).min(millitokens(burst));
    }
}

fn millitokens(tokens: u32) -> u32 {
    tokens.saturating_mul(1000)
}

/// Milliseconds of the monotonic clock that wrap after seven weeks.
pub(super) fn millis(now: Now) -> u32 {
    (now.monotonic_us / 1000) as u32
}

/// Counts what goes wrong within a minute. Packed, so that two more bytes of a session are free.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C, packed(2))]
pub struct BadMessages {
    count: u16,
    since_s: u32,
}

impl BadMessages {
    /// Counts one; true when there were `max` of them within a minute.
    pub fn count(&mut self, max: u32, now: Now) -> bool {
        let now_s = (now.monotonic_us / 1_000_000) as u32;
        if now_s.wrapping_sub(self.since_s) >= 60 || self.count == 0 {
            self.count = 0;
            self.since_s = now_s;
        }
        self.count = self.count.saturating_add(1);
        max > 0 && u32::from(self.count) >= max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Now {
        Now { monotonic_us: ms * 1000, unix_ms: 0 }
    }

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let mut bucket = TokenBucket::full(3, at(0));
        for _ in 0..3 {
            assert_eq!(bucket.take(10, 3, at(0)), Ok(()));
        }
        assert_eq!(bucket.take(10, 3, at(0)), Err(100));
        assert_eq!(bucket.take(10, 3, at(60)), Err(40));
        assert_eq!(bucket.take(10, 3, at(100)), Ok(()));
        assert!(!bucket.is_full(10, 3, at(150)));
        assert!(bucket.is_full(10, 3, at(400)));
        for _ in 0..3 {
            assert_eq!(bucket.take(10, 3, at(60_000)), Ok(()));
        }
        assert!(bucket.take(10, 3, at(60_000)).is_err(), "never more than the burst is kept");
    }

    #[test]
    fn ten_bad_messages_within_a_minute_are_too_many() {
        let mut bad = BadMessages::default();
        for second in 0..9 {
            assert!(!bad.count(10, at(second * 1000)));
        }
        assert!(bad.count(10, at(9_000)));
        let mut spread = BadMessages::default();
        for minute in 0..50 {
            assert!(!spread.count(10, at(minute * 61_000)));
        }
    }
}

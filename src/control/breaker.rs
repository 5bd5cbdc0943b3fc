//! When to leave alone what fails (a disk, another service): a circuit breaker, without a clock of its own.
//!
//! ```text
//!             failures in a row              wait over
//!  closed ──────────────────────► open ──────────────────► half open
//!    ▲                             ▲                          │ │
//!    │                             └── the probe fails: twice ┘ │
//!    └──────────────── the probe works ─────────────────────────┘
//! ```

/// Failures in a row after which it is left alone: one may be somebody's backup that held a lock for a moment, or a restart.
const FAILURES_MAX: u32 = 3;
/// The first wait; each failed probe doubles it.
const WAIT_MIN_MS: u64 = 1000;
/// The longest wait: how late it may be noticed that it works again.
const WAIT_MAX_MS: u64 = 30_000;

/// What a breaker lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// Everything.
    Closed,
    /// One attempt, as a probe.
    HalfOpen,
    /// Nothing.
    Open,
}

impl BreakerState {
    /// The state's name.
    pub fn as_str(self) -> &'static str {
        match self {
            BreakerState::Closed => "closed",
            BreakerState::HalfOpen => "half_open",
            BreakerState::Open => "open",
        }
    }

    /// As a number that others can read: 0, 1 and 2.
    pub(crate) fn number(self) -> u8 {
        match self {
            BreakerState::Closed => 0,
            BreakerState::HalfOpen => 1,
            BreakerState::Open => 2,
        }
    }

    /// From its number.
    pub(crate) fn from_number(number: u8) -> BreakerState {
        match number {
            0 => BreakerState::Closed,
            1 => BreakerState::HalfOpen,
            _ => BreakerState::Open,
        }
    }
}

/// The breaker.
#[derive(Debug, Clone)]
pub(crate) struct Breaker {
    failures: u32,
    wait_ms: u64,
    open_until_ms: Option<u64>,
}

impl Breaker {
    /// A closed one.
    pub(crate) fn new() -> Breaker {
        Breaker { failures: 0, wait_ms: WAIT_MIN_MS, open_until_ms: None }
    }

    /// What it lets through now.
    pub(crate) fn state(&self, now_ms: u64) -> BreakerState {
        match self.open_until_ms {
            None => BreakerState::Closed,
            Some(until_ms) if now_ms < until_ms => BreakerState::Open,
            Some(_) => BreakerState::HalfOpen,
        }
    }

    /// An attempt worked.
    pub(crate) fn worked(&mut self) {
        *self = Breaker::new();
    }

    /// An attempt failed.
    pub(crate) fn failed(&mut self, now_ms: u64) {
        self.failures = self.failures.saturating_add(1);
        if self.open_until_ms.is_some() {
            self.wait_ms = (self.wait_ms * 2).min(WAIT_MAX_MS);
        }
        if self.open_until_ms.is_some() || self.failures >= FAILURES_MAX {
            self.open_until_ms = Some(now_ms + self.wait_ms);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_failures_in_a_row_and_closes_when_a_probe_works() {
        let mut breaker = Breaker::new();
        breaker.failed(0);
        breaker.failed(1);
        breaker.worked();
        breaker.failed(2);
        breaker.failed(3);
        assert_eq!(breaker.state(3), BreakerState::Closed, "a success in between starts the count again");
        breaker.failed(4);
        assert_eq!(breaker.state(4), BreakerState::Open);
        assert_eq!(breaker.state(1003), BreakerState::Open);
        assert_eq!(breaker.state(1004), BreakerState::HalfOpen);
        breaker.worked();
        assert_eq!(breaker.state(1004), BreakerState::Closed);
    }

    #[test]
    fn a_failed_probe_waits_twice_as_long_up_to_a_bound() {
        let mut breaker = Breaker::new();
        (0..FAILURES_MAX).for_each(|_| breaker.failed(0));
        let mut now_ms = 0;
        let mut waits = Vec::new();
        for _ in 0..8 {
            let began_ms = now_ms;
            while breaker.state(now_ms) == BreakerState::Open {
                now_ms += 500;
            }
            waits.push(now_ms - began_ms);
            breaker.failed(now_ms);
        }
        assert_eq!(waits, [1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
        breaker.worked();
        (0..FAILURES_MAX).for_each(|_| breaker.failed(now_ms));
        assert_eq!(breaker.state(now_ms + WAIT_MIN_MS), BreakerState::HalfOpen, "the wait starts over");
    }

    #[test]
    fn a_state_survives_as_a_number() {
        for state in [BreakerState::Closed, BreakerState::HalfOpen, BreakerState::Open] {
            assert_eq!(BreakerState::from_number(state.number()), state);
        }
    }
}

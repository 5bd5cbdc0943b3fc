//! When a batch is tried again, without a clock or chance of its own.

use std::time::Duration;

/// The first wait; each failure doubles it.
const WAIT_MIN_MS: u64 = 250;
/// The longest, without what the backend asks for.
const WAIT_MAX_MS: u64 = 30_000;
/// The longest that a backend may ask for.
const ASKED_MAX: Duration = Duration::from_secs(120);

/// How long to wait after so many failures of a batch (from 1 on). `chance` (from 0 to 1) spreads the waits over the upper
/// half, so that hubs that failed together don't return together; `asked` is the backend's `Retry-After`.
pub(super) fn wait(failures: u32, chance: f64, asked: Option<Duration>) -> Duration {
    let doubled = WAIT_MIN_MS.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(WAIT_MAX_MS);
    let spread = doubled as f64 * (0.5 + chance.clamp(0.0, 1.0) / 2.0);
    Duration::from_millis(spread as u64).max(asked.unwrap_or_default().min(ASKED_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound_and_are_spread_over_their_upper_half() {
        let ms = |failures, chance| wait(failures, chance, None).as_millis();
        let latest: Vec<u128> = (1..=9).map(|failures| ms(failures, 1.0)).collect();
        assert_eq!(latest, [250, 500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        assert_eq!((ms(1, 0.0), ms(3, 0.5), ms(u32::MAX, 0.0)), (125, 750, 15_000));
    }

    #[test]
    fn a_backend_may_ask_for_more_within_reason() {
        assert_eq!(wait(1, 1.0, Some(Duration::from_secs(7))), Duration::from_secs(7));
        assert_eq!(wait(9, 1.0, Some(Duration::from_secs(1))), Duration::from_secs(30));
        assert_eq!(wait(1, 1.0, Some(Duration::from_secs(86_400))), ASKED_MAX);
    }
}

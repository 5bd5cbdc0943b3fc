//! Whether a subscriber got the events of its room in order, each once.

use serde::Serialize;

/// What was wrong with the order of events, in all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Disorder {
    /// Events skipped and not seen later.
    pub(crate) missing: u64,
    /// Places where one or more were skipped.
    pub(crate) gaps: u64,
    /// Events seen again.
    pub(crate) repeated: u64,
    /// Events seen after a later one.
    pub(crate) out_of_order: u64,
    /// Skips that the hub itself told of, with a `gap` message.
    pub(crate) told: u64,
}

impl Disorder {
    /// Adds another count to this one.
    pub(crate) fn add(&mut self, other: &Disorder) {
        self.missing += other.missing;
        self.gaps += other.gaps;
        self.repeated += other.repeated;
        self.out_of_order += other.out_of_order;
        self.told += other.told;
    }

    /// How many events were not as promised: lost, doubled or late. A gap that was told of is still a loss.
    pub(crate) fn errors(&self) -> u64 {
        self.missing + self.repeated + self.out_of_order
    }
}

/// One subscriber's place in its room.
///
/// Remembers the last 64 numbers, so that an event that comes late is told from one that comes twice.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SeqTracker {
    last: Option<u64>,
    /// Bit k: `last - k` has been seen.
    seen: u64,
}

impl SeqTracker {
    /// The room's number when the subscription began: the next event has the one after it.
    pub(crate) fn begin(&mut self, seq: u64) {
        self.last = Some(seq);
        self.seen = u64::MAX;
    }

    /// The number of the last event that came.
    pub(crate) fn last(&self) -> Option<u64> {
        self.last
    }

    /// Takes the number of an event that came, and counts what is wrong with it.
    pub(crate) fn see(&mut self, seq: u64, disorder: &mut Disorder) {
        let Some(last) = self.last else {
            self.begin(seq);
            return;
        };
        if let Some(ahead) = seq.checked_sub(last).filter(|a| *a > 0) {
            if ahead > 1 {
                disorder.gaps += 1;
                disorder.missing += ahead - 1;
            }
            self.seen = u32::try_from(ahead).ok().and_then(|a| self.seen.checked_shl(a)).unwrap_or(0) | 1;
            self.last = Some(seq);
            return;
        }
        match u32::try_from(last - seq).ok().and_then(|back| 1u64.checked_shl(back)) {
            Some(bit) if self.seen & bit == 0 => {
                self.seen |= bit;
                disorder.out_of_order += 1;
                disorder.missing = disorder.missing.saturating_sub(1);
            }
            _ => disorder.repeated += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(begin: Option<u64>, seqs: &[u64]) -> Disorder {
        let (mut tracker, mut disorder) = (SeqTracker::default(), Disorder::default());
        if let Some(seq) = begin {
            tracker.begin(seq);
        }
        seqs.iter().for_each(|seq| tracker.see(*seq, &mut disorder));
        disorder
    }

    #[test]
    fn events_in_order_are_no_disorder() {
        assert_eq!(check(None, &[5, 6, 7, 8]), Disorder::default());
        assert_eq!(check(Some(4), &[5, 6, 7, 8]), Disorder::default());
    }

    #[test]
    fn the_first_event_is_missed_when_the_subscription_began_before_it() {
        assert_eq!(check(Some(4), &[6]), Disorder { missing: 1, gaps: 1, ..Disorder::default() });
    }

    #[test]
    fn a_skip_counts_one_gap_and_each_event() {
        assert_eq!(check(None, &[1, 5, 6, 8]), Disorder { missing: 4, gaps: 2, ..Disorder::default() });
        assert_eq!(check(None, &[1, 1_000_000]).missing, 999_998);
    }

    #[test]
    fn an_event_seen_twice_is_repeated_and_a_late_one_is_out_of_order() {
        assert_eq!(check(None, &[1, 2, 2, 3]), Disorder { repeated: 1, ..Disorder::default() });
        let late = check(None, &[1, 3, 2, 4, 2]);
        assert_eq!(late, Disorder { gaps: 1, out_of_order: 1, repeated: 1, ..Disorder::default() });
        assert_eq!(late.errors(), 2);
    }

    #[test]
    fn numbers_from_far_back_count_as_repeated() {
        assert_eq!(check(Some(1000), &[1001, 3]), Disorder { repeated: 1, ..Disorder::default() });
    }
}

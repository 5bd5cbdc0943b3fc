//! What a worker counted, and how the counts of all workers become one.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::failure::Failure;
use super::sequence::Disorder;

/// Longest time told apart: two minutes. What takes longer counts as this.
const LATENCY_MAX_NS: u64 = 120_000_000_000;
/// Digits kept of a time: 0.1 %.
const LATENCY_DIGITS: u8 = 3;
/// Categories of errors told apart; the rest is counted together. Codes come from the peer, so they need a bound.
const CATEGORIES_MAX: usize = 48;

/// Times in nanoseconds.
#[derive(Debug, Clone)]
pub(crate) struct Times(Histogram<u64>);

impl Default for Times {
    fn default() -> Times {
        Times(Histogram::new_with_bounds(1, LATENCY_MAX_NS, LATENCY_DIGITS).expect("constant bounds are valid"))
    }
}

impl Times {
    pub(crate) fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns.max(1));
    }

    pub(crate) fn add(&mut self, other: &Times) {
        // Both have the same bounds, so nothing can be out of range.
        assert!(self.0.add(&other.0).is_ok(), "histograms of one shape add up");
    }

    pub(crate) fn percentiles(&self) -> Option<Percentiles> {
        let us = |quantile: f64| self.0.value_at_quantile(quantile) as f64 / 1e3;
        (!self.0.is_empty()).then(|| Percentiles {
            count: self.0.len(),
            mean: self.0.mean() / 1e3,
            p50: us(0.5),
            p90: us(0.9),
            p99: us(0.99),
            p99_9: us(0.999),
            max: self.0.max() as f64 / 1e3,
        })
    }
}

/// A distribution of times, in microseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Percentiles {
    pub(crate) count: u64,
    pub(crate) mean: f64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p99_9: f64,
    pub(crate) max: f64,
}

/// How often each kind of failure happened.
#[derive(Debug, Clone, Default)]
pub(crate) struct Failures(BTreeMap<String, Seen>);

/// One kind of failure.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Seen {
    pub(crate) count: u64,
    /// The first one, in full.
    pub(crate) example: Failure,
}

impl Failures {
    pub(crate) fn count(&mut self, failure: Failure) {
        let label = failure.label();
        self.merge(label, Seen { count: 1, example: failure });
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Seen)> {
        self.0.iter().map(|(label, seen)| (label.as_str(), seen))
    }

    /// Adds another count to this one.
    pub(crate) fn add(&mut self, other: Failures) {
        other.0.into_iter().for_each(|(label, seen)| self.merge(label, seen));
    }

    fn merge(&mut self, label: String, seen: Seen) {
        let label = if self.0.len() >= CATEGORIES_MAX && !self.0.contains_key(&label) { "other".into() } else { label };
        self.0.entry(label).and_modify(|s| s.count += seen.count).or_insert(seen);
    }
}

/// The counts of one worker, or of all.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    /// Connections that were tried.
    pub(crate) tried: u64,
    /// Connections that became ready: upgraded and, where asked for, subscribed.
    pub(crate) ready: u64,
    /// Connections that were ready and ended before the run did.
    pub(crate) lost: u64,
    /// Pings of the hub that were answered.
    pub(crate) pings: u64,
    /// Events or echoes sent that count: due within the measured time.
    pub(crate) sent: u64,
    /// Deliveries that these should lead to.
    pub(crate) expected: u64,
    /// Deliveries of these.
    pub(crate) delivered: u64,
    /// From when an event was due to its delivery.
    pub(crate) latency: Times,
    /// How late this generator itself sent.
    pub(crate) lag: Times,
    /// From the start of a connect to the end of its upgrade.
    pub(crate) connect: Times,
    pub(crate) disorder: Disorder,
    pub(crate) reconnects: Reconnects,
    pub(crate) failures: Failures,
}

/// Subscribers that vanished and came back.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reconnects {
    /// Those that should have been, by the rate.
    pub(crate) due: u64,
    /// Those that vanished.
    pub(crate) begun: u64,
    /// Those that have their session again.
    pub(crate) resumed: u64,
    /// Events that the hub said it replays.
    pub(crate) replayed: u64,
    /// Those of which the hub said that not all could be recovered, or whose room has begun another epoch.
    pub(crate) unrecovered: u64,
    /// From vanishing to the answer to `resume`.
    pub(crate) away: Times,
}

impl Reconnects {
    fn add(&mut self, other: &Reconnects) {
        self.due += other.due;
        self.begun += other.begun;
        self.resumed += other.resumed;
        self.replayed += other.replayed;
        self.unrecovered += other.unrecovered;
        self.away.add(&other.away);
    }
}

impl Tally {
    /// Adds another worker's counts.
    pub(crate) fn add(&mut self, other: Tally) {
        self.tried += other.tried;
        self.ready += other.ready;
        self.lost += other.lost;
        self.pings += other.pings;
        self.sent += other.sent;
        self.expected += other.expected;
        self.delivered += other.delivered;
        self.latency.add(&other.latency);
        self.lag.add(&other.lag);
        self.connect.add(&other.connect);
        self.disorder.add(&other.disorder);
        self.reconnects.add(&other.reconnects);
        self.failures.add(other.failures);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_all_workers_together() {
        let (mut one, mut two) = (Tally::default(), Tally::default());
        (1..=500).for_each(|ms| one.latency.record(ms * 1_000_000));
        (501..=1000).for_each(|ms| two.latency.record(ms * 1_000_000));
        one.add(two);
        let p = one.latency.percentiles().unwrap();
        assert_eq!(p.count, 1000);
        assert!((p.p50 / 500_000.0 - 1.0).abs() < 0.002 && (p.p99 / 990_000.0 - 1.0).abs() < 0.002, "{p:?}");
        assert_eq!(Times::default().percentiles(), None);
    }

    #[test]
    fn kinds_of_failure_are_bounded_whatever_codes_a_peer_makes_up() {
        let mut failures = Failures::default();
        for code in 0..1000 {
            failures.count(Failure::Closed { code, reason: String::new() });
        }
        assert_eq!(failures.iter().map(|(_, seen)| seen.count).sum::<u64>(), 1000);
        assert!(failures.iter().count() <= CATEGORIES_MAX + 1);
    }
}

//! The outcome of a run: figures and verdict. `report_text` writes them for people, serde for programs.

use serde::Serialize;

use super::plan::{EchoVia, Mode, Pace, Plan};
use super::process::Usage;
use super::sequence::Disorder;
use super::tally::{Percentiles, Tally};

pub(crate) const DELIVERED: &str = "delivered %";
pub(crate) const READY: &str = "connections up";
pub(crate) const RESUMED: &str = "resumed";

/// Everything that is known after a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) version: &'static str,
    pub(crate) url: String,
    pub(crate) settings: Settings,
    /// The operator ended it early.
    pub(crate) interrupted: bool,
    pub(crate) connections: Connections,
    pub(crate) traffic: Traffic,
    /// Order of events as subscribers saw it; absent where it wasn't checked.
    pub(crate) sequence: Option<Disorder>,
    /// Subscribers that vanished and came back; absent where none should.
    pub(crate) reconnects: Option<Reconnected>,
    /// From when an event was due to its delivery, microseconds.
    pub(crate) latency_us: Option<Percentiles>,
    /// How late the generator itself sent, microseconds.
    pub(crate) generator_lag_us: Option<Percentiles>,
    pub(crate) probe: Option<Probe>,
    pub(crate) server: Option<Server>,
    pub(crate) errors: Vec<ErrorCount>,
    pub(crate) verdict: Option<Verdict>,
}

/// The settings that decide what the figures mean.
#[derive(Debug, Serialize)]
pub(crate) struct Settings {
    pub(crate) mode: Mode,
    pub(crate) connections: usize,
    pub(crate) rooms: usize,
    pub(crate) publishers: usize,
    pub(crate) rate_per_s: Option<f64>,
    pub(crate) window: Option<u32>,
    pub(crate) size_bytes: usize,
    pub(crate) measured_s: f64,
    pub(crate) warmup_s: f64,
    pub(crate) threads: usize,
    pub(crate) sources: u32,
    pub(crate) echo_via: Option<EchoVia>,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Connections {
    pub(crate) tried: u64,
    pub(crate) ready: u64,
    pub(crate) lost: u64,
    pub(crate) pings_answered: u64,
    pub(crate) setup_s: f64,
    /// From the start of a connect to the end of its upgrade, microseconds.
    pub(crate) connect_us: Option<Percentiles>,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Traffic {
    pub(crate) measured_s: f64,
    pub(crate) sent: u64,
    pub(crate) sent_per_s: f64,
    pub(crate) expected: u64,
    pub(crate) delivered: u64,
    pub(crate) delivered_per_s: f64,
    pub(crate) delivered_percent: f64,
    pub(crate) missing: u64,
}

/// Subscribers that vanished and came back to their sessions.
#[derive(Debug, Serialize)]
pub(crate) struct Reconnected {
    pub(crate) due: u64,
    pub(crate) begun: u64,
    pub(crate) resumed: u64,
    pub(crate) replayed: u64,
    pub(crate) unrecovered: u64,
    /// From vanishing to the answer to `resume`, microseconds.
    pub(crate) away_us: Option<Percentiles>,
}

/// Echo connections beside the load.
#[derive(Debug, Serialize)]
pub(crate) struct Probe {
    pub(crate) connections: u64,
    pub(crate) rate_per_s: f64,
    pub(crate) sent: u64,
    pub(crate) answered: u64,
    pub(crate) latency_us: Option<Percentiles>,
    pub(crate) generator_lag_us: Option<Percentiles>,
}

/// The server's process.
#[derive(Debug, Serialize)]
pub(crate) struct Server {
    pub(crate) pid: u32,
    pub(crate) cpu_percent: f64,
    pub(crate) cpu_us_per_delivery: Option<f64>,
    pub(crate) rss_before_bytes: u64,
    pub(crate) rss_connected_bytes: u64,
    pub(crate) rss_end_bytes: u64,
    pub(crate) memory_per_connection_bytes: Option<f64>,
}

#[derive(Debug, Serialize)]
pub(crate) struct ErrorCount {
    pub(crate) kind: String,
    pub(crate) count: u64,
    pub(crate) example: String,
    pub(crate) hint: Option<&'static str>,
}

/// Whether the run stayed within the limits asked for.
#[derive(Debug, Serialize)]
pub(crate) struct Verdict {
    pub(crate) pass: bool,
    pub(crate) checks: Vec<Check>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Check {
    pub(crate) what: &'static str,
    pub(crate) limit: f64,
    /// Absent when there is nothing to judge, which fails.
    pub(crate) actual: Option<f64>,
    pub(crate) pass: bool,
}

/// Limits for a [`Verdict`]; those that are absent aren't checked.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Limits {
    pub(crate) p99_ms_max: Option<f64>,
    pub(crate) probe_p99_ms_max: Option<f64>,
    pub(crate) errors_max: Option<u64>,
    pub(crate) delivered_percent_min: Option<f64>,
}

impl Settings {
    pub(crate) fn of(plan: &Plan) -> Settings {
        Settings {
            mode: plan.mode,
            connections: plan.connections,
            rooms: plan.rooms,
            publishers: plan.publishers,
            rate_per_s: if let Pace::Rate(rate) = plan.pace { Some(rate) } else { None },
            window: if let Pace::Window(window) = plan.pace { Some(window) } else { None },
            size_bytes: plan.size,
            measured_s: plan.measured_ns as f64 / 1e9,
            warmup_s: plan.warmup_ns as f64 / 1e9,
            threads: plan.threads,
            sources: plan.sources,
            echo_via: (plan.mode == Mode::Echo).then_some(plan.echo),
        }
    }
}

impl Connections {
    pub(crate) fn of(tally: &Tally, setup_s: f64) -> Connections {
        Connections {
            tried: tally.tried,
            ready: tally.ready,
            lost: tally.lost,
            pings_answered: tally.pings,
            setup_s,
            connect_us: tally.connect.percentiles(),
        }
    }
}

impl Traffic {
    pub(crate) fn of(tally: &Tally, measured_s: f64) -> Traffic {
        Traffic {
            measured_s,
            sent: tally.sent,
            sent_per_s: per(tally.sent, measured_s),
            expected: tally.expected,
            delivered: tally.delivered,
            delivered_per_s: per(tally.delivered, measured_s),
            delivered_percent: if tally.expected == 0 {
                0.0
            } else {
                100.0 * per(tally.delivered, tally.expected as f64)
            },
            missing: tally.expected.saturating_sub(tally.delivered),
        }
    }
}

impl Reconnected {
    pub(crate) fn of(tally: &Tally) -> Reconnected {
        let reconnects = &tally.reconnects;
        Reconnected {
            due: reconnects.due,
            begun: reconnects.begun,
            resumed: reconnects.resumed,
            replayed: reconnects.replayed,
            unrecovered: reconnects.unrecovered,
            away_us: reconnects.away.percentiles(),
        }
    }
}

impl Probe {
    pub(crate) fn of(tally: &Tally, rate_per_s: f64) -> Probe {
        Probe {
            connections: tally.ready,
            rate_per_s,
            sent: tally.sent,
            answered: tally.delivered,
            latency_us: tally.latency.percentiles(),
            generator_lag_us: tally.lag.percentiles(),
        }
    }
}

impl Server {
    /// From readings before the connects, when all were set up, at the begin and at the end of the measured time.
    pub(crate) fn of(pid: u32, readings: [Usage; 4], ready: u64, deliveries: u64, measured_s: f64) -> Server {
        let [before, connected, begin, end] = readings;
        let cpu_ns = end.cpu_ns.saturating_sub(begin.cpu_ns) as f64;
        let grown = connected.rss_bytes as f64 - before.rss_bytes as f64;
        Server {
            pid,
            cpu_percent: if measured_s > 0.0 { cpu_ns / measured_s / 1e7 } else { 0.0 },
            cpu_us_per_delivery: (deliveries > 0).then(|| cpu_ns / 1e3 / deliveries as f64),
            rss_before_bytes: before.rss_bytes,
            rss_connected_bytes: connected.rss_bytes,
            rss_end_bytes: end.rss_bytes,
            memory_per_connection_bytes: (ready > 0).then(|| grown / ready as f64),
        }
    }
}

impl ErrorCount {
    pub(crate) fn of(tally: &Tally) -> Vec<ErrorCount> {
        let count = |(kind, seen): (&str, &super::tally::Seen)| ErrorCount {
            kind: kind.trim_end().to_string(),
            count: seen.count,
            example: seen.example.to_string(),
            hint: seen.example.hint(),
        };
        tally.failures.iter().map(count).collect()
    }
}

impl Report {
    /// Judges the run.
    pub(crate) fn judge(&mut self, limits: Limits) {
        let mut checks = Vec::new();
        let mut at_most = |what, limit: Option<f64>, actual: Option<f64>| {
            if let Some(limit) = limit {
                checks.push(Check { what, limit, actual, pass: actual.is_some_and(|a| a <= limit) });
            }
        };
        let p99_ms = |p: &Option<Percentiles>| p.as_ref().map(|p| p.p99 / 1e3);
        let errors =
            self.errors.iter().map(|e| e.count).sum::<u64>() + self.sequence.as_ref().map_or(0, Disorder::errors);
        let errors = errors + self.reconnects.as_ref().map_or(0, |r| r.unrecovered);
        at_most("p99 ms", limits.p99_ms_max, p99_ms(&self.latency_us));
        at_most("probe p99 ms", limits.probe_p99_ms_max, self.probe.as_ref().and_then(|p| p99_ms(&p.latency_us)));
        at_most("errors", limits.errors_max.map(|n| n as f64), Some(errors as f64));
        let mut at_least = |what, limit: Option<f64>, actual: Option<f64>| {
            if let Some(limit) = limit {
                checks.push(Check { what, limit, actual, pass: actual.is_some_and(|a| a >= limit) });
            }
        };
        let delivered = (self.traffic.expected > 0).then_some(self.traffic.delivered_percent);
        at_least(DELIVERED, limits.delivered_percent_min, delivered);
        // A connection that was never tried is no error of any kind, but the load was not what was asked for.
        let asked = (limits.errors_max == Some(0) && self.settings.mode != Mode::Churn)
            .then_some((self.settings.connections + self.settings.publishers) as f64);
        at_least(READY, asked, Some((self.connections.ready - self.connections.lost) as f64));
        // All that should have vanished did, and has its session again.
        if let Some(reconnects) = &self.reconnects {
            let (due, resumed) = (reconnects.due.max(1) as f64, reconnects.resumed as f64);
            checks.push(Check { what: RESUMED, limit: due, actual: Some(resumed), pass: resumed >= due });
        }
        if !checks.is_empty() {
            self.verdict = Some(Verdict { pass: checks.iter().all(|c| c.pass), checks });
        }
    }
}

fn per(count: u64, of: f64) -> f64 {
    if of > 0.0 { count as f64 / of } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::failure::Failure;

    fn report(tally: &Tally) -> Report {
        Report {
            version: "1",
            url: "ws://127.0.0.1:8000/ws".into(),
            settings: Settings {
                mode: Mode::Fanout,
                connections: 100,
                rooms: 2,
                publishers: 1,
                rate_per_s: Some(50.0),
                window: None,
                size_bytes: 128,
                measured_s: 2.0,
                warmup_s: 0.0,
                threads: 1,
                sources: 1,
                echo_via: None,
            },
            interrupted: false,
            connections: Connections::of(tally, 0.5),
            traffic: Traffic::of(tally, 2.0),
            sequence: Some(tally.disorder),
            reconnects: None,
            latency_us: tally.latency.percentiles(),
            generator_lag_us: None,
            probe: None,
            server: None,
            errors: ErrorCount::of(tally),
            verdict: None,
        }
    }

    fn good() -> Tally {
        let mut tally =
            Tally { tried: 101, ready: 101, sent: 100, expected: 5000, delivered: 5000, ..Tally::default() };
        (1..=100).for_each(|ms| tally.latency.record(ms * 1_000_000));
        tally
    }

    #[test]
    fn a_run_within_its_limits_passes_and_says_so() {
        let mut report = report(&good());
        report.judge(Limits {
            p99_ms_max: Some(100.0),
            errors_max: Some(0),
            delivered_percent_min: Some(100.0),
            ..Limits::default()
        });
        let text = report.to_string();
        assert!(text.ends_with("PASS\n"), "{text}");
        assert!(text.contains("delivered     5000 of 5000 (100.000 %), 2500 per second\n"), "{text}");
        assert!(text.contains("sequence      in order, no gap, no repeat"), "{text}");
        assert!(text.contains("p99   99.03 ms") || text.contains("p99  99.0"), "{text}");
        assert_eq!(
            text.lines().map(|l| l.chars().nth(12)).filter(|c| *c != Some(' ')).count(),
            1,
            "aligned but for PASS"
        );
    }

    #[test]
    fn one_missing_delivery_or_one_error_fails_a_strict_run() {
        let strict = Limits { errors_max: Some(0), delivered_percent_min: Some(100.0), ..Limits::default() };
        let mut tally = good();
        tally.delivered -= 1;
        let mut missing = report(&tally);
        missing.judge(strict);
        assert!(missing.verdict.is_some_and(|v| !v.pass));

        let mut tally = good();
        tally.failures.count(Failure::Closed { code: 4508, reason: "too slow".into() });
        let mut closed = report(&tally);
        closed.judge(strict);
        let text = closed.to_string();
        assert!(text.contains("closed by the hub with 4508") && text.contains("too slow"), "{text}");
        assert!(text.ends_with("FAIL\n"));

        let mut tally = good();
        tally.disorder.repeated = 1;
        let mut repeated = report(&tally);
        repeated.judge(strict);
        assert!(repeated.verdict.is_some_and(|v| !v.pass));
    }

    #[test]
    fn nothing_measured_is_not_a_pass() {
        let mut report = report(&Tally { tried: 1, ready: 1, ..Tally::default() });
        report.judge(Limits { p99_ms_max: Some(1.0), delivered_percent_min: Some(100.0), ..Limits::default() });
        assert!(report.verdict.is_some_and(|v| !v.pass && v.checks.iter().all(|c| c.actual.is_none())));
    }

    #[test]
    fn the_machine_readable_report_is_one_object_with_the_same_figures() {
        let value = serde_json::to_value(report(&good())).unwrap();
        assert_eq!(value["traffic"]["delivered"], 5000);
        assert_eq!(value["settings"]["mode"], "fanout");
        assert!(value["latency_us"]["p99_9"].as_f64().unwrap() > 99_000.0);
    }
}

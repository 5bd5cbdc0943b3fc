//! What `/metrics` tells of the hooks.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use super::{ConnectStatus, EventsStatus, Hooks};

/// The label of what is counted for both kinds of calls.
const KIND: &str = "hook";

impl Collector for Hooks {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let status = self.status();
        let calls = calls(status.events.as_ref(), status.connect.as_ref());
        let help = "The circuit breaker of the hooks: 0 closed, 1 half open, 2 open";
        let mut metric = encoder.encode_descriptor("hook_breaker", help, None, MetricType::Gauge)?;
        for (kind, breaker, ..) in &calls {
            let number = ["closed", "half_open", "open"].iter().position(|name| name == breaker).unwrap_or_default();
            ConstGauge::new(number as i64).encode(metric.encode_family(&[(KIND, *kind)])?)?;
        }
        let mut counter = |name, help, unit: Option<Unit>, read: fn(&Calls) -> f64| {
            let mut metric = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
            for one in &calls {
                ConstCounter::new(read(one)).encode(metric.encode_family(&[(KIND, one.0)])?)?;
            }
            Ok(())
        };
        counter("hook_calls", "Calls of the backend's hooks", None, |one| one.2 as f64)?;
        counter("hook_failures", "Calls that failed", None, |one| one.3 as f64)?;
        counter("hook_calls_time", "The time that they took", Some(Unit::Seconds), |one| one.4 as f64 / 1e3)?;
        if let Some(events) = status.events {
            let metric = encoder.encode_descriptor("hook_queued", "Events that wait", None, MetricType::Gauge)?;
            ConstGauge::new(events.queued as i64).encode(metric)?;
            let help = "Events for the backend, by what became of them";
            let EventsStatus { told, lost, refused, debounced, .. } = events;
            let outcomes = [("told", told), ("lost", lost), ("refused", refused), ("debounced", debounced)];
            outcomes_of(&mut encoder, "hook_events", help, &outcomes)?;
        }
        if let Some(connect) = status.connect {
            let help = "Clients that wait for the backend's decision";
            let metric = encoder.encode_descriptor("hook_pending", help, None, MetricType::Gauge)?;
            ConstGauge::new(connect.pending as i64).encode(metric)?;
            let help = "Clients that the backend was asked about, by what became of them";
            let ConnectStatus { allowed, denied, failed_open, failed_closed, .. } = connect;
            let outcomes = [
                ("allowed", allowed),
                ("denied", denied),
                ("failed_open", failed_open),
                ("failed_closed", failed_closed),
            ];
            outcomes_of(&mut encoder, "hook_decisions", help, &outcomes)?;
        }
        Ok(())
    }
}

/// Kind, breaker, calls, failures, milliseconds.
type Calls = (&'static str, &'static str, u64, u64, u64);

fn calls(events: Option<&EventsStatus>, connect: Option<&ConnectStatus>) -> Vec<Calls> {
    let events = events.map(|one| ("events", one.breaker, one.calls, one.failures, one.calls_ms));
    let connect = connect.map(|one| ("connect", one.breaker, one.calls, one.failures, one.calls_ms));
    events.into_iter().chain(connect).collect()
}

fn outcomes_of(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, counts: &[(&str, u64)]) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (outcome, count) in counts {
        ConstCounter::new(*count).encode(metric.encode_family(&[("outcome", *outcome)])?)?;
    }
    Ok(())
}

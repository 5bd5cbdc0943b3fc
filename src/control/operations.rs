//! What `/metrics` tells of alerts, of the shards' signs of life and of the stored history.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use super::alerts::Board;
use super::backend::ShardPulse;
use super::store::{BreakerState, Counts, Store};

/// Reads both at each scrape.
#[derive(Debug)]
pub(crate) struct Operations {
    pub(crate) alerts: Arc<Board>,
    pub(crate) store: Option<Store>,
}

impl Collector for Operations {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let counts = self.alerts.counts();
        let help = "Whether an alert is raised";
        let mut metric = encoder.encode_descriptor("alert_active", help, None, MetricType::Gauge)?;
        for (name, active, _) in &counts {
            ConstGauge::new(i64::from(*active)).encode(metric.encode_family(&[("alert", *name)])?)?;
        }
        let help = "Times that an alert was raised";
        let mut metric = encoder.encode_descriptor("alerts_raised", help, None, MetricType::Counter)?;
        for (name, _, raised) in &counts {
            ConstCounter::new(*raised).encode(metric.encode_family(&[("alert", *name)])?)?;
        }
        let pulse = self.alerts.pulse();
        let mut shards = |name, help, unit: Option<Unit>, read: fn(&ShardPulse) -> f64| {
            let mut metric = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
            for (number, shard) in pulse.iter().enumerate() {
                let labels = [("shard", number.to_string())];
                ConstGauge::new(read(shard)).encode(metric.encode_family(&labels)?)?;
            }
            Ok(())
        };
        let help = "How long a shard took to answer, or has not answered yet";
        shards("shard_silent", help, Some(Unit::Seconds), |shard| shard.silent_ms as f64 / 1e3)?;
        let help = "Whether a shard and others do not hear each other";
        shards("shard_deaf", help, None, |shard| f64::from(u8::from(shard.deaf)))?;
        let help = "The slowest of a shard's last canaries, there and back";
        shards("canary_round_trip", help, Some(Unit::Seconds), |shard| shard.round_trip_us as f64 / 1e6)?;
        match &self.store {
            Some(store) => of_store(&mut encoder, store),
            None => Ok(()),
        }
    }
}

fn of_store(encoder: &mut DescriptorEncoder<'_>, store: &Store) -> fmt::Result {
    let breaker = match store.breaker() {
        BreakerState::Closed => 0i64,
        BreakerState::HalfOpen => 1,
        BreakerState::Open => 2,
    };
    let help = "The circuit breaker of the stored history: 0 closed, 1 half open, 2 open";
    let metric = encoder.encode_descriptor("store_breaker", help, None, MetricType::Gauge)?;
    ConstGauge::new(breaker).encode(metric)?;
    let status = store.status();
    let help = "Reports that wait to be written";
    let metric = encoder.encode_descriptor("store_queued", help, None, MetricType::Gauge)?;
    ConstGauge::new(status.queued as i64).encode(metric)?;
    let help = "Attempts to write the stored history that failed";
    let metric = encoder.encode_descriptor("store_failures", help, None, MetricType::Counter)?;
    ConstCounter::new(status.failures).encode(metric)?;
    let written = "Reports that were written, by table";
    let lost = "Reports that were lost, by table";
    for (name, help, counts) in [("store_written", written, store.written()), ("store_lost", lost, store.lost())] {
        let Counts { connections, samples, alerts } = counts;
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (table, count) in [("connections", connections), ("performance_samples", samples), ("alerts", alerts)] {
            ConstCounter::new(count).encode(metric.encode_family(&[("table", table)])?)?;
        }
    }
    Ok(())
}

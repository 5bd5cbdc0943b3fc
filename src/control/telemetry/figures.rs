//! What `/metrics` tells of the telemetry.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::Telemetry;

impl Collector for Telemetry {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let status = self.status();
        let breaker = ["closed", "half_open", "open"].iter().position(|name| *name == status.breaker);
        let help = "The circuit breaker of the telemetry: 0 closed, 1 half open, 2 open";
        let metric = encoder.encode_descriptor("telemetry_breaker", help, None, MetricType::Gauge)?;
        ConstGauge::new(breaker.unwrap_or_default() as i64).encode(metric)?;
        let help = "Spans for the collector, by what became of them";
        let mut metric = encoder.encode_descriptor("telemetry_spans", help, None, MetricType::Counter)?;
        for (outcome, count) in [("told", status.told), ("lost", status.lost)] {
            ConstCounter::new(count).encode(metric.encode_family(&[("outcome", outcome)])?)?;
        }
        for (name, help, count) in [
            ("telemetry_calls", "Calls to the collector", status.calls),
            ("telemetry_failures", "Calls to the collector that failed", status.failures),
        ] {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(count).encode(metric)?;
        }
        Ok(())
    }
}

//! Metrics as OTLP has them, made of the text that `/metrics` serves: so both tell the same, and nothing is kept twice.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics,
    ScopeMetrics, Sum, metric, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message as _;

use super::spans::{attribute, scope};

/// The body of a call to `/v1/metrics`, of an exposition in OpenMetrics' format.
pub(super) fn body(text: &str, resource: Resource, began_ns: u64, now_ns: u64) -> Vec<u8> {
    let metrics = metrics(text, began_ns, now_ns);
    let scope_metrics = vec![ScopeMetrics { scope: Some(scope()), metrics, schema_url: String::new() }];
    let resource_metrics = vec![ResourceMetrics { resource: Some(resource), scope_metrics, schema_url: String::new() }];
    ExportMetricsServiceRequest { resource_metrics }.encode_to_vec()
}

/// A family as far as it has been read.
#[derive(Default)]
struct Family<'t> {
    name: &'t str,
    kind: &'t str,
    help: &'t str,
    unit: &'t str,
    points: Vec<NumberDataPoint>,
    /// By labels.
    histograms: BTreeMap<Vec<(&'t str, String)>, HistogramDataPoint>,
    /// What was counted up to the last limit of a histogram.
    below: u64,
}

fn metrics(text: &str, began_ns: u64, now_ns: u64) -> Vec<Metric> {
    let mut metrics = Vec::new();
    let mut family = Family::default();
    for line in text.lines() {
        if let Some((word, rest)) = line.strip_prefix("# ").and_then(|rest| rest.split_once(' ')) {
            let (name, said) = rest.split_once(' ').unwrap_or((rest, ""));
            if name != family.name {
                metrics.extend(std::mem::replace(&mut family, Family { name, ..Family::default() }).metric());
            }
            match word {
                "TYPE" => family.kind = said,
                "HELP" => family.help = said,
                "UNIT" => family.unit = said,
                _ => {}
            }
        } else if let Some(sample) = Sample::parse(line) {
            family.add(sample, began_ns, now_ns);
        }
    }
    metrics.extend(family.metric());
    metrics
}

struct Sample<'t> {
    name: &'t str,
    labels: Vec<(&'t str, String)>,
    value: f64,
}

impl<'t> Sample<'t> {
    /// Reads `name{label="value",…} number`.
    fn parse(line: &'t str) -> Option<Sample<'t>> {
        if line.starts_with('#') {
            return None;
        }
        let (series, value) = line.rsplit_once(' ')?;
        let value = value.parse().ok()?;
        let Some((name, mut rest)) = series.split_once('{') else {
            return Some(Sample { name: series, labels: Vec::new(), value });
        };
        let mut labels = Vec::new();
        while let Some((label, quoted)) = rest.split_once("=\"") {
            let (text, after) = unquote(quoted)?;
            labels.push((label.trim_start_matches(','), text));
            rest = after;
        }
        Some(Sample { name, labels, value })
    }
}

/// The text up to the closing quote, and what follows it.
fn unquote(quoted: &str) -> Option<(String, &str)> {
    let mut text = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, letter)) = chars.next() {
        match letter {
            '"' => return Some((text, quoted.get(at + 1..)?)),
            '\\' => match chars.next()?.1 {
                'n' => text.push('\n'),
                escaped => text.push(escaped),
            },
            letter => text.push(letter),
        }
    }
    None
}

fn attributes(labels: &[(&str, String)]) -> Vec<KeyValue> {
    labels.iter().map(|(label, value)| attribute(label, value.clone().into())).collect()
}

impl<'t> Family<'t> {
    fn add(&mut self, sample: Sample<'t>, began_ns: u64, now_ns: u64) {
        if self.kind == "histogram" {
            return self.add_to_histogram(sample, began_ns, now_ns);
        }
        let value = sample.value;
        let whole = value.fract() == 0.0 && value.abs() < 9e15;
        let value = if whole {
            number_data_point::Value::AsInt(value as i64)
        } else {
            number_data_point::Value::AsDouble(value)
        };
        self.points.push(NumberDataPoint {
            attributes: attributes(&sample.labels),
            start_time_unix_nano: if self.kind == "counter" { began_ns } else { 0 },
            time_unix_nano: now_ns,
            value: Some(value),
            ..NumberDataPoint::default()
        });
    }

    fn add_to_histogram(&mut self, mut sample: Sample<'t>, began_ns: u64, now_ns: u64) {
        let limit = sample.labels.iter().position(|(label, _)| *label == "le").map(|at| sample.labels.remove(at).1);
        let point = self.histograms.entry(sample.labels).or_insert_with_key(|labels| HistogramDataPoint {
            attributes: attributes(labels),
            start_time_unix_nano: began_ns,
            time_unix_nano: now_ns,
            ..HistogramDataPoint::default()
        });
        match (limit, sample.name) {
            (Some(limit), _) => {
                if point.bucket_counts.is_empty() {
                    self.below = 0;
                }
                let upto = sample.value as u64;
                point.bucket_counts.push(upto.saturating_sub(self.below));
                self.below = upto;
                // The last bucket has no limit.
                point.explicit_bounds.extend(limit.parse::<f64>().ok().filter(|limit| limit.is_finite()));
            }
            (None, name) if name.ends_with("_sum") => point.sum = Some(sample.value),
            (None, _) => point.count = sample.value as u64,
        }
    }

    fn metric(self) -> Option<Metric> {
        let Family { name, kind, help, unit, points, histograms, .. } = self;
        let temporality = AggregationTemporality::Cumulative as i32;
        let data = match kind {
            "counter" => {
                metric::Data::Sum(Sum { data_points: points, aggregation_temporality: temporality, is_monotonic: true })
            }
            "histogram" => {
                let data_points = histograms.into_values().collect();
                metric::Data::Histogram(Histogram { data_points, aggregation_temporality: temporality })
            }
            "gauge" | "info" | "unknown" => metric::Data::Gauge(Gauge { data_points: points }),
            _ => return None,
        };
        // <https://ucum.org>, as OpenTelemetry has it.
        let unit = match unit {
            "seconds" => "s",
            "bytes" => "By",
            other => other,
        };
        Some(Metric {
            name: name.to_owned(),
            description: help.to_owned(),
            unit: unit.to_owned(),
            data: Some(data),
            ..Metric::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r##"# HELP hub_events Things, "quoted".
# TYPE hub_events counter
hub_events_total{shard="0",kind="a\"b\\c"} 12
hub_events_total{shard="1",kind="x"} 3
# HELP hub_memory_bytes Memory.
# TYPE hub_memory_bytes gauge
# UNIT hub_memory_bytes bytes
hub_memory_bytes 1.5
# HELP hub_turn_seconds Turns.
# TYPE hub_turn_seconds histogram
# UNIT hub_turn_seconds seconds
hub_turn_seconds_sum{shard="0"} 4.5
hub_turn_seconds_count{shard="0"} 9
hub_turn_seconds_bucket{le="0.001",shard="0"} 2
hub_turn_seconds_bucket{le="0.01",shard="0"} 7
hub_turn_seconds_bucket{le="+Inf",shard="0"} 9
hub_turn_seconds_sum{shard="1"} 0
hub_turn_seconds_count{shard="1"} 1
hub_turn_seconds_bucket{le="0.001",shard="1"} 1
hub_turn_seconds_bucket{le="0.01",shard="1"} 1
hub_turn_seconds_bucket{le="+Inf",shard="1"} 1
# EOF
"##;

    #[test]
    fn every_family_of_an_exposition_becomes_a_metric() {
        let metrics = metrics(TEXT, 1, 2);
        let names: Vec<(&str, &str)> = metrics.iter().map(|one| (one.name.as_str(), one.unit.as_str())).collect();
        assert_eq!(names, [("hub_events", ""), ("hub_memory_bytes", "By"), ("hub_turn_seconds", "s")]);
        let Some(metric::Data::Sum(sum)) = &metrics[0].data else { panic!("a counter is a sum") };
        assert!(sum.is_monotonic && sum.data_points.len() == 2 && sum.data_points[0].start_time_unix_nano == 1);
        assert_eq!(sum.data_points[0].value, Some(number_data_point::Value::AsInt(12)));
        let kind = sum.data_points[0].attributes[1].clone();
        assert_eq!(kind, attribute("kind", "a\"b\\c".into()));
        let Some(metric::Data::Gauge(gauge)) = &metrics[1].data else { panic!("a gauge") };
        assert_eq!(gauge.data_points[0].value, Some(number_data_point::Value::AsDouble(1.5)));
        let Some(metric::Data::Histogram(histogram)) = &metrics[2].data else { panic!("a histogram") };
        let first = &histogram.data_points[0];
        assert_eq!(
            (first.count, first.sum, &first.explicit_bounds[..], &first.bucket_counts[..]),
            (9, Some(4.5), &[0.001, 0.01][..], &[2, 5, 2][..])
        );
        assert_eq!(histogram.data_points[1].bucket_counts, [1, 0, 0]);
    }

    #[test]
    fn what_is_no_exposition_becomes_nothing() {
        for text in ["", "# EOF", "nonsense", "a{b=\"c 1", "# TYPE", "a 1\nb 2"] {
            assert!(metrics(text, 0, 0).is_empty(), "{text}");
        }
    }
}

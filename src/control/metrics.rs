//! `/metrics`: the shards' figures, the control plane's own and the process's, for Prometheus.
//!
//! Nothing is kept twice: a collector reads the shards' counters when somebody asks.

use std::fmt;
use std::fmt::Write as _;

use hyper::header::{self, HeaderMap};
use hyper::{Method, StatusCode};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::backend::Backend;
use super::figures::{DESCRIPTIONS, Kind, ShardFigures, ShardTimes};
use super::histogram::Counts;
use super::journal::JournalSnapshot;
use super::process;
use crate::broker::BrokerSnapshot;
use crate::ring::DriverKind;

/// <https://prometheus.io/docs/specs/om/open_metrics_spec/>
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The text format that came before it and that every scraper and `curl` understands.
const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";

type Labels = Vec<(&'static str, String)>;

/// Requests answered by the control plane, by route, method and class of status.
#[derive(Debug, Clone, Default)]
pub(crate) struct HttpRequests(Family<Labels, Counter>);

impl HttpRequests {
    /// Routes are patterns and methods are named ones only, so that the number of label sets is bounded.
    pub(crate) fn count(&self, route: &str, method: &Method, status: StatusCode) {
        let method = match method.as_str() {
            known @ ("GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE" | "OPTIONS") => known,
            _ => "other",
        };
        let class = format!("{}xx", status.as_u16() / 100);
        let labels = vec![("route", route.to_owned()), ("method", method.to_owned()), ("status", class)];
        self.0.get_or_create(&labels).inc();
    }
}

/// The control plane's own figures, besides the requests.
#[derive(Debug, Clone, Default)]
pub(crate) struct ControlFigures {
    pub(crate) accept_failures: Counter,
    pub(crate) internal_refused: Counter,
}

/// Everything that is told.
pub(crate) struct Metrics {
    ringhub: Registry,
    process: Registry,
}

impl Metrics {
    pub(crate) fn new<B: Backend>(
        backend: B,
        requests: HttpRequests,
        own: ControlFigures,
        driver: DriverKind,
        open: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Metrics {
        let mut ringhub = Registry::with_prefix("ringhub");
        ringhub.register("http_requests", "Requests answered by the control plane", requests.0);
        let help = "Connections the internal listener could not accept";
        ringhub.register("internal_accept_failures", help, own.accept_failures);
        let help = "Connections the internal listener refused because too many were open";
        ringhub.register("internal_refused", help, own.internal_refused);
        ringhub.register_collector(Box::new(OpenHttp(Box::new(open))));
        ringhub.register_collector(Box::new(Shards(backend)));
        let driver = Info::new([("driver", driver.word())]);
        ringhub.register("driver", "What the shards ask the kernel by: uring or epoll; always 1", driver);
        let mut process = Registry::default();
        process.register_collector(Box::new(ProcessFigures));
        Metrics { ringhub, process }
    }

    /// Tells what another collector knows, too.
    pub(crate) fn add(&mut self, collector: impl Collector) {
        self.ringhub.register_collector(Box::new(collector));
    }

    /// The text in OpenMetrics' format, without its end.
    pub(crate) fn open_metrics(&self) -> Result<String, fmt::Error> {
        let mut text = String::with_capacity(16 * 1024);
        encode_registry(&mut text, &self.ringhub)?;
        encode_registry(&mut text, &self.process)?;
        Ok(text)
    }

    /// The content type that `Accept` asks for, and the text.
    pub(crate) fn render(&self, headers: &HeaderMap) -> Result<(&'static str, String), fmt::Error> {
        let mut text = self.open_metrics()?;
        if wants_open_metrics(headers) {
            encode_eof(&mut text)?;
            Ok((OPEN_METRICS, text))
        } else {
            Ok((PLAIN, plain(&text)?))
        }
    }
}

fn wants_open_metrics(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|range| {
            let mut parts = range.split(';').map(str::trim);
            parts.next().is_some_and(|essence| essence.eq_ignore_ascii_case("application/openmetrics-text"))
                && !parts.any(|parameter| matches!(parameter, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
        })
}

/// OpenMetrics describes a counter without the `_total` its samples have; the older format describes samples by their full
/// name and knows no units.
fn plain(open: &str) -> Result<String, fmt::Error> {
    let mut text = String::with_capacity(open.len());
    // HELP comes before TYPE, so that it has to wait for it.
    let mut help: Option<(&str, &str)> = None;
    for line in open.lines() {
        if let Some((name, rest)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            help = Some((name, rest));
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                _ => ("", kind),
            };
            if let Some((_, rest)) = help.take().filter(|(of, _)| *of == name) {
                writeln!(text, "# HELP {name}{suffix} {rest}")?;
            }
            writeln!(text, "# TYPE {name}{suffix} {kind}")?;
        } else if !line.starts_with("# UNIT ") && line != "# EOF" {
            text.push_str(line);
            text.push('\n');
        }
    }
    Ok(text)
}

/// Reads the shards' figures at each scrape.
struct Shards<B>(B);

impl<B> fmt::Debug for Shards<B> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Shards")
    }
}

impl<B: Backend> Collector for Shards<B> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let shards: Vec<(String, ShardFigures)> = self
            .0
            .figures()
            .shards
            .into_iter()
            .enumerate()
            .map(|(number, shard)| (number.to_string(), shard))
            .collect();
        for description in DESCRIPTIONS {
            let unit = description.bytes.then_some(Unit::Bytes);
            let kind = match description.kind {
                Kind::Gauge => MetricType::Gauge,
                Kind::Counter => MetricType::Counter,
            };
            let mut metric = encoder.encode_descriptor(description.name, description.help, unit.as_ref(), kind)?;
            for (number, figures) in &shards {
                let labels = [("shard", number.as_str())];
                let sample = metric.encode_family(&labels)?;
                number_of(description.kind, (description.read)(figures), sample)?;
            }
        }
        labelled(
            &mut encoder,
            &shards,
            "connections_refused",
            "Connections refused before their upgrade",
            "reason",
            |f| &f.refused,
        )?;
        labelled(&mut encoder, &shards, "errors", "Errors told to clients", "code", |f| &f.errors)?;
        labelled(&mut encoder, &shards, "closes", "Connections closed, by close code", "code", |f| &f.closes)?;
        let (journal, broker, nodes) = (self.0.journal(), self.0.broker(), self.0.nodes());
        let of_broker = broker.iter().flat_map(BrokerSnapshot::list);
        let of_nodes = nodes.iter().flat_map(|nodes| nodes.figures().list());
        for (name, help, only_grows, value) in
            journal.iter().flat_map(JournalSnapshot::list).chain(of_broker).chain(of_nodes)
        {
            let kind = if only_grows { Kind::Counter } else { Kind::Gauge };
            let of_kind = if only_grows { MetricType::Counter } else { MetricType::Gauge };
            let sample = encoder.encode_descriptor(name, help, None, of_kind)?;
            number_of(kind, value, sample)?;
        }
        kinds(&mut encoder, &shards)?;
        times(&mut encoder, &self.0.times())?;
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        let help = "The running program; always 1";
        let mut metric = encoder.encode_descriptor("build", help, None, MetricType::Info)?;
        metric.encode_info(&version)
    }
}

fn labelled(
    encoder: &mut DescriptorEncoder<'_>,
    shards: &[(String, ShardFigures)],
    name: &str,
    help: &str,
    label: &str,
    values: fn(&ShardFigures) -> &std::collections::BTreeMap<&'static str, u64>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (number, figures) in shards {
        for (value, count) in values(figures) {
            let labels = [("shard", number.as_str()), (label, value)];
            let sample = metric.encode_family(&labels)?;
            number_of(Kind::Counter, *count, sample)?;
        }
    }
    Ok(())
}

fn kinds(encoder: &mut DescriptorEncoder<'_>, shards: &[(String, ShardFigures)]) -> fmt::Result {
    let help = "Events that rooms took in, by the kind of the room";
    let mut metric = encoder.encode_descriptor("kind_publishes", help, None, MetricType::Counter)?;
    for (number, figures) in shards {
        for (kind, count) in &figures.publishes_by_kind {
            let labels = [("shard", number.as_str()), ("kind", kind)];
            number_of(Kind::Counter, *count, metric.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

/// The limits of the histograms' buckets: every power of two from 64 µs to 16.8 s. At these, and no round ones, the shards'
/// finer buckets end as well, so that the counts are exact.
const LIMITS: std::ops::RangeInclusive<u32> = 6..=24;

fn times(encoder: &mut DescriptorEncoder<'_>, shards: &[ShardTimes]) -> fmt::Result {
    let numbers: Vec<String> = (0..shards.len()).map(|number| number.to_string()).collect();
    let seconds = Some(&Unit::Seconds);
    for (name, help, read) in TIMES {
        let mut metric = encoder.encode_descriptor(name, help, seconds, MetricType::Histogram)?;
        for (number, times) in numbers.iter().zip(shards) {
            let counts = read(times);
            let mut below = 0;
            let mut buckets: Vec<(f64, u64)> = Vec::new();
            for limit in LIMITS {
                let limit_us = 1u64 << limit;
                let upto = counts.below(limit_us);
                buckets.push((limit_us as f64 / 1e6, upto - below));
                below = upto;
            }
            buckets.push((f64::INFINITY, counts.count() - below));
            let labels = [("shard", number.as_str())];
            let mut sample = metric.encode_family(&labels)?;
            let sum = counts.sum_us as f64 / 1e6;
            sample.encode_histogram::<NoLabelSet>(sum, counts.count(), &buckets, None)?;
        }
    }
    Ok(())
}

type Read = fn(&ShardTimes) -> &Counts;

const TIMES: [(&str, &str, Read); 3] = [
    (
        "publish_latency",
        "From receiving a publish to the completion of a subscriber's send; estimated from followed deliveries",
        |times| &times.latency,
    ),
    ("round_trip", "From a ping of the hub to the client's pong", |times| &times.round_trip),
    ("turn", "Turns of the shard's loop, waiting left out", |times| &times.turn_time),
];

fn number_of(kind: Kind, value: u64, mut sample: prometheus_client::encoding::MetricEncoder<'_>) -> fmt::Result {
    match kind {
        Kind::Gauge => sample.encode_gauge(&i64::try_from(value).unwrap_or(i64::MAX)),
        Kind::Counter => sample.encode_counter::<NoLabelSet, u64, u64>(&value, None),
    }
}

/// The open HTTP connections that shards handed over.
struct OpenHttp(Box<dyn Fn() -> u64 + Send + Sync>);

impl fmt::Debug for OpenHttp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("OpenHttp")
    }
}

impl Collector for OpenHttp {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let gauge = ConstGauge::new(i64::try_from((self.0)()).unwrap_or(i64::MAX));
        let help = "HTTP connections that shards handed over and that are open";
        gauge.encode(encoder.encode_descriptor("http_connections", help, None, MetricType::Gauge)?)
    }
}

/// The process's figures under the names that every Prometheus client library uses.
#[derive(Debug)]
struct ProcessFigures;

impl Collector for ProcessFigures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let process = process::read();
        let help = "Processor time of all threads";
        ConstCounter::new(process.cpu_seconds).encode(encoder.encode_descriptor(
            "process_cpu",
            help,
            Some(&Unit::Seconds),
            MetricType::Counter,
        )?)?;
        for (name, help, unit, value) in [
            ("process_resident_memory", "Memory in RAM", Some(Unit::Bytes), process.resident_bytes as f64),
            ("process_virtual_memory", "Address space", Some(Unit::Bytes), process.virtual_bytes as f64),
            ("process_open_fds", "Open descriptors", None, process.open_fds as f64),
            ("process_max_fds", "How many descriptors may be open", None, process.max_fds as f64),
            ("process_threads", "Threads", None, process.threads as f64),
            ("process_start_time", "Unix time of the start", Some(Unit::Seconds), process.start_time_seconds),
        ] {
            let metric = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
            ConstGauge::new(value).encode(metric)?;
        }
        Ok(())
    }
}

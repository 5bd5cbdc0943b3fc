//! What the store keeps beside connections: performance samples and the changes of alerts. One definition per figure.

use serde::Serialize;
use utoipa::ToSchema;

/// How a figure of several samples becomes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aggregate {
    /// The mean, each sample counting the same.
    Mean,
    /// The largest.
    Max,
    /// All together.
    Sum,
}

macro_rules! performance {
    ($($field:ident: $aggregate:ident $help:literal;)*) => {
        /// What the hub did in a span of time; figures that were not known are none.
        #[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
        pub struct Sample {
            /// When the span began, as unix time.
            #[serde(skip)]
            pub at_ms: u64,
            /// Samples that are in it.
            pub samples: u64,
            $(#[doc = $help] pub $field: Option<f64>,)*
        }

        /// The columns of the tables, in the order of [`Sample::values`].
        pub(super) const COLUMNS: &[(&str, Aggregate)] = &[$((stringify!($field), Aggregate::$aggregate),)*];

        impl Sample {
            /// The figures, in the order of the columns.
            pub(super) fn values(&self) -> [Option<f64>; COLUMNS.len()] {
                [$(self.$field,)*]
            }

            /// From the figures, in the order of the columns.
            pub(super) fn from_values(at_ms: u64, samples: u64, values: [Option<f64>; COLUMNS.len()]) -> Sample {
                let [$($field,)*] = values;
                Sample { at_ms, samples, $($field,)* }
            }
        }
    };
}

performance! {
    span_s: Sum "Seconds that the samples cover";
    connections: Mean "Connections that were open";
    connections_max: Max "The most of them at a time";
    rooms: Mean "Rooms";
    subscriptions: Mean "Memberships of connections in rooms";
    connections_opened: Sum "Connections that were let in";
    connections_refused: Sum "Connections refused before their upgrade";
    messages_received: Sum "Messages received from clients";
    publishes: Sum "Events that rooms took in";
    deliveries: Sum "Events put into the outboxes of clients";
    bytes_received: Sum "Bytes received from clients";
    bytes_sent: Sum "Bytes sent to clients";
    errors: Sum "Errors told to clients";
    slow_readers: Sum "Times that a connection fell behind in a room";
    gaps: Sum "Gaps told to connections";
    outbox_bytes: Max "Bytes waiting in outboxes";
    log_bytes: Max "Bytes kept in logs";
    resident_bytes: Max "The process's memory in RAM";
    cpu_s: Sum "Processor time of all threads, in seconds";
    latency_p50_ms: Max "Median latency, in milliseconds; of several samples the worst";
    latency_p99_ms: Max "99th percentile of the latency, in milliseconds; of several samples the worst";
}

/// That an alert was raised or cleared.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct AlertRecord {
    /// When, RFC 3339 in UTC.
    pub at: String,
    /// When, as unix time in milliseconds.
    #[serde(skip)]
    pub at_ms: u64,
    /// Which alert.
    pub alert: String,
    /// `raised` or `cleared`.
    pub state: String,
    /// `warning` or `critical`.
    pub severity: String,
    /// One sentence for a person.
    pub message: String,
    /// The value that was looked at, at that moment.
    pub value: f64,
    /// What it was compared with.
    pub threshold: f64,
}

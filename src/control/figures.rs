//! What a shard counts, and how others read it.
//!
//! Each shard owns one [`Figures`] and is its only writer, so that counting is a load and a store without a lock prefix;
//! anyone may read. The control plane turns a [`Snapshot`] of all of them into `/metrics` and the health pages.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, TryLockError};

use serde::Serialize;

use super::histogram::{Counts, Histogram};
use crate::wire::codes::ErrorCode;

/// The codes under which errors are counted: the protocol's error codes (section 5).
pub const ERROR_CODES: [&str; ErrorCode::ALL.len() + 1] = {
    let mut codes = ["other"; ErrorCode::ALL.len() + 1];
    let mut at = 0;
    while at < ErrorCode::ALL.len() {
        codes[at] = ErrorCode::ALL[at].as_str();
        at += 1;
    }
    codes
};

/// The close codes that are counted apart: the protocol's (section 5) and RFC 6455's; `abnormal` is a connection that
/// ended without a close frame.
pub const CLOSE_CODES: [&str; 18] = [
    "1000", "1001", "1002", "1003", "1005", "1007", "1008", "1009", "1011", "4401", "4403", "4408", "4409", "4429",
    "4500", "4508", "abnormal", "other",
];

/// Why a connection was refused before its upgrade: the codes of the refusals, with `capacity` and `draining` apart from
/// `unavailable`, `http_busy` for requests that the control plane had no place for, and `hook_…` for clients whom the
/// backend refused, about whom it said nothing, or who were too many to ask about.
pub const REFUSALS: [&str; 22] = [
    "bad_request",
    "bad_upgrade",
    "bad_method",
    "bad_room",
    "room_limit",
    "bad_version",
    "unauthorized",
    "forbidden",
    "not_found",
    "conflict",
    "too_large",
    "rate_limited",
    "timeout",
    "capacity",
    "draining",
    "http_busy",
    "hook_busy",
    "hook_denied",
    "hook_failed",
    "unavailable",
    "internal",
    "other",
];

/// A number that one thread writes and others read.
#[derive(Debug, Default)]
pub struct Figure(AtomicU64);

impl Figure {
    /// Adds `n`. Only the owner may call this.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Takes `n` away, for gauges. Only the owner may call this.
    #[inline]
    pub fn sub(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).saturating_sub(n), Ordering::Relaxed);
    }

    /// Sets the value. Only the owner may call this.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The value, for anyone.
    #[inline]
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Figures apart by a label of a fixed set, whose last member takes what has no name of its own.
#[derive(Debug)]
pub struct Labelled<const N: usize> {
    labels: &'static [&'static str; N],
    figures: [Figure; N],
}

impl<const N: usize> Labelled<N> {
    fn new(labels: &'static [&'static str; N]) -> Labelled<N> {
        Labelled { labels, figures: std::array::from_fn(|_| Figure::default()) }
    }

    /// Adds one under `label`. Only the owner may call this.
    pub fn add(&self, label: &str) {
        let index = self.labels.iter().position(|known| *known == label).unwrap_or(N - 1);
        if let Some(figure) = self.figures.get(index) {
            figure.add(1);
        }
    }

    /// Adds one under a close code. Only the owner may call this.
    pub fn add_code(&self, code: u16) {
        let mut digits = itoa::Buffer::new();
        self.add(digits.format(code));
    }

    fn values(&self) -> BTreeMap<&'static str, u64> {
        self.labels.iter().copied().zip(self.figures.iter().map(Figure::value)).collect()
    }
}

/// Events by the kind of their room. The kinds are those of the configuration, so that there are few.
#[derive(Debug, Default)]
pub struct KindFigures(Mutex<BTreeMap<Box<str>, u64>>);

impl KindFigures {
    /// Adds what came since the last call, unless somebody is reading: the owner does not wait, and calls again with it.
    /// Only the owner may call this.
    pub fn try_add<'k>(&self, more: impl FnOnce() -> Vec<(&'k str, u64)>) {
        let mut kinds = match self.0.try_lock() {
            Ok(kinds) => kinds,
            // A thread that ended while it read left them as they were.
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        for (kind, count) in more() {
            match kinds.get_mut(kind) {
                Some(sum) => *sum = sum.saturating_add(count),
                None => {
                    kinds.insert(kind.into(), count);
                }
            }
        }
    }

    fn values(&self) -> BTreeMap<Box<str>, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// How a figure behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Goes up and down.
    Gauge,
    /// Only grows.
    Counter,
}

/// One plain figure of a shard, as the metrics page describes it.
#[derive(Debug, Clone, Copy)]
pub struct Description {
    /// The metric's name without prefix, unit and `_total`.
    pub name: &'static str,
    /// Its unit, for bytes.
    pub bytes: bool,
    /// Whether it is a gauge or a counter.
    pub kind: Kind,
    /// One sentence.
    pub help: &'static str,
    /// Reads it.
    pub read: fn(&ShardFigures) -> u64,
}

macro_rules! figures {
    ($($field:ident: $kind:ident $name:literal $bytes:literal $help:literal;)*) => {
        /// What one shard counts while it runs. On cache lines of its own.
        #[derive(Debug)]
        #[repr(align(128))]
        pub struct Figures {
            $(#[doc = $help] pub $field: Figure,)*
            /// Connections refused before their upgrade, by [`REFUSALS`].
            pub refused: Labelled<{ REFUSALS.len() }>,
            /// Errors told to clients, by [`ERROR_CODES`].
            pub errors: Labelled<{ ERROR_CODES.len() }>,
            /// Connections closed, by [`CLOSE_CODES`].
            pub closes: Labelled<{ CLOSE_CODES.len() }>,
            /// Events taken in, by the kind of their room; a second old at most.
            pub kinds: KindFigures,
            /// From receiving a publish to the completion of a subscriber's send.
            pub latency: Histogram,
            /// From the hub's ping to the client's pong.
            pub round_trip: Histogram,
            /// What a turn of the shard's loop took, waiting left out.
            pub turn_time: Histogram,
        }

        impl Default for Figures {
            fn default() -> Figures {
                Figures {
                    $($field: Figure::default(),)*
                    refused: Labelled::new(&REFUSALS),
                    errors: Labelled::new(&ERROR_CODES),
                    closes: Labelled::new(&CLOSE_CODES),
                    kinds: KindFigures::default(),
                    latency: Histogram::default(),
                    round_trip: Histogram::default(),
                    turn_time: Histogram::default(),
                }
            }
        }

        impl Figures {
            /// All values at this moment, near enough: each is exact, together they may be some events apart.
            pub fn read(&self) -> ShardFigures {
                ShardFigures {
                    $($field: self.$field.value(),)*
                    refused: self.refused.values(),
                    errors: self.errors.values(),
                    closes: self.closes.values(),
                    publishes_by_kind: self.kinds.values(),
                }
            }

            /// The times at this moment, likewise.
            pub fn times(&self) -> ShardTimes {
                ShardTimes {
                    latency: self.latency.read(),
                    round_trip: self.round_trip.read(),
                    turn_time: self.turn_time.read(),
                }
            }
        }

        /// What one shard had counted at some moment.
        #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
        pub struct ShardFigures {
            $(#[doc = $help] pub $field: u64,)*
            /// Connections refused before their upgrade, by reason.
            pub refused: BTreeMap<&'static str, u64>,
            /// Errors told to clients, by code.
            pub errors: BTreeMap<&'static str, u64>,
            /// Connections closed, by code.
            pub closes: BTreeMap<&'static str, u64>,
            /// Events taken in, by the kind of their room.
            pub publishes_by_kind: BTreeMap<Box<str>, u64>,
        }

        impl ShardFigures {
            /// Adds another shard's figures to these.
            pub fn merge(&mut self, other: &ShardFigures) {
                $(self.$field = self.$field.saturating_add(other.$field);)*
                merge(&mut self.refused, &other.refused);
                merge(&mut self.errors, &other.errors);
                merge(&mut self.closes, &other.closes);
                merge(&mut self.publishes_by_kind, &other.publishes_by_kind);
            }
        }

        /// Every plain figure with its name and meaning.
        pub const DESCRIPTIONS: &[Description] = &[
            $(Description {
                name: $name,
                bytes: $bytes,
                kind: Kind::$kind,
                help: $help,
                read: |figures| figures.$field,
            },)*
        ];
    };
}

figures! {
    connections: Gauge "connections" false "Connections that are open";
    connections_opened: Counter "connections_opened" false "Connections that were accepted and upgraded";
    handshakes: Gauge "handshakes" false "Connections that have not finished their handshake";
    streams: Gauge "streams" false "Connections that are open and are streams of server-sent events";
    socketio: Gauge "socketio_connections" false "Connections that are open and speak Socket.IO";
    batch: Gauge "batch_connections" false "Connections that are open and take several events in one frame";
    msgpack: Gauge "msgpack_connections" false "Connections that are open and speak MessagePack";
    polled: Gauge "polled_sessions" false "Sessions of Engine.IO that are polled, those in no namespace included";
    rooms: Gauge "rooms" false "Rooms whose home is this shard";
    subscriptions: Gauge "subscriptions" false "Memberships of this shard's connections in rooms";
    messages_received: Counter "messages_received" false "Messages received from clients";
    bytes_received: Counter "received" true "Bytes received from clients";
    bytes_sent: Counter "sent" true "Bytes sent to clients";
    publishes: Counter "publishes" false "Events that rooms at home on this shard took in";
    duplicates: Counter "duplicates" false "Publishes answered from their idempotency key";
    deliveries: Counter "deliveries" false "Events put into the outboxes of clients";
    outbox_bytes: Gauge "outbox" true "Bytes of events that wait in outboxes or are on their way, besides the logs";
    sending: Gauge "sends_under_way" false "Connections with bytes that the kernel has not taken yet";
    log_bytes: Gauge "log" true "Bytes kept in the logs of rooms whose home is this shard";
    journal_pending: Gauge "journal_pending" true "Bytes of events of durable rooms that wait for the journal";
    journal_refused: Counter "journal_refused" false "Publishes to durable rooms that were refused for the journal's sake";
    logs_evicted: Counter "logs_evicted" false "Logs that gave way because all of a shard's were beyond their bound";
    locks: Gauge "locks" false "Field locks that are held in rooms whose home is this shard";
    locks_acquired: Counter "locks_acquired" false "Field locks granted";
    locks_refused: Counter "locks_refused" false "Field locks asked for while another session held them";
    locks_expired: Counter "locks_expired" false "Field locks that ended because they were not renewed";
    presence_forgotten: Counter "presence_forgotten" false "Sessions forgotten in a room before their resume window was over, because too many were away";
    connection_bytes: Gauge "connection_memory" true "Estimated memory of the connections, outboxes left out";
    room_bytes: Gauge "room_memory" true "Estimated memory of the rooms and memberships, logs left out";
    recorder_bytes: Gauge "recorder_memory" true "Memory of the flight recorder";
    rate_limited: Counter "rate_limited" false "Messages refused because their client sent too many";
    latency_followed: Counter "latency_followed" false "Deliveries that were followed to measure the latency";
    latency_lost: Counter "latency_lost" false "Followed deliveries whose end was not seen: closed, or too many at a time";
    replayed: Counter "replayed" false "Events replayed to subscribers that asked for them";
    slow_readers: Counter "slow_readers" false "Times that a connection fell behind in a room";
    gaps: Counter "gaps" false "Gaps told to connections that could not have all events";
    slow_closes: Counter "slow_closes" false "Connections closed because they read too slowly";
    turns: Counter "turns" false "Turns of the shard's loop";
    enters: Counter "enters" false "System calls into the ring";
    completions: Counter "completions" false "Completions taken from the ring";
    buffers_exhausted: Counter "buffers_exhausted" false "Receives that found no free buffer";
    submissions_full: Counter "submissions_full" false "Times that the ring had to be entered in the middle of a turn";
    accept_failures: Counter "accept_failures" false "Connections that could not be accepted";
    mesh_sent: Counter "mesh_sent" false "Messages sent to other shards";
    mesh_received: Counter "mesh_received" false "Messages received from other shards";
    mesh_backlog: Gauge "mesh_backlog" false "Messages that other shards could not take yet";
    mesh_waiting: Gauge "mesh_waiting" false "Batches of messages from other shards that wait for this one";
    requests_waiting: Gauge "requests_waiting" false "Requests of the control plane that wait for this shard";
    deflate_connections: Gauge "compressed_connections" false "Connections that are open and have agreed to compression";
    deflated_messages: Counter "compressed_messages" false "Messages compressed, each counted once whoever gets it";
    deflate_bytes_before: Counter "compression_input" true "Bytes of messages before they were compressed";
    deflate_bytes_after: Counter "compression_output" true "Bytes of messages after they were compressed";
    deflate_bytes_saved: Counter "compression_saved" true "Bytes that were not sent because messages were compressed, over all who got them";
    deflate_skipped: Counter "compression_skipped" false "Messages sent as they are because the turn's budget for compression was used up";
    inflated_messages: Counter "decompressed_messages" false "Compressed messages of clients";
    inflate_bytes_before: Counter "decompression_input" true "Bytes of clients' messages before they were decompressed";
    inflate_bytes_after: Counter "decompression_output" true "Bytes of clients' messages after they were decompressed";
    inflate_refused: Counter "decompression_refused" false "Compressed messages of clients that were corrupt or too large";
    window_bytes: Gauge "compression_windows" true "Memory set aside for what is kept of compressed messages of clients";
    handed_over: Counter "handed_over" false "Connections handed over to the control plane";
    adopted: Counter "adopted" false "Connections that came back from the control plane";
}

fn merge<K: Clone + Ord>(into: &mut BTreeMap<K, u64>, from: &BTreeMap<K, u64>) {
    for (label, value) in from {
        let sum = into.entry(label.clone()).or_default();
        *sum = sum.saturating_add(*value);
    }
}

/// The times that one shard had measured at some moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShardTimes {
    /// From receiving a publish to the completion of a subscriber's send, each followed delivery counted for all that it
    /// stands for.
    pub latency: Counts,
    /// From the hub's ping to the client's pong.
    pub round_trip: Counts,
    /// Turns of the shard's loop, waiting left out.
    pub turn_time: Counts,
}

/// What all shards had counted at some moment; the position is the shard's number.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// One entry for each shard.
    pub shards: Vec<ShardFigures>,
}

impl Snapshot {
    /// All shards' figures added up.
    pub fn total(&self) -> ShardFigures {
        let mut total = ShardFigures::default();
        for shard in &self.shards {
            total.merge(shard);
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_can_be_read_and_added_up() {
        let figures = Figures::default();
        figures.connections.add(3);
        figures.connections.sub(1);
        figures.bytes_sent.add(100);
        figures.errors.add("bad_json");
        figures.errors.add("never heard of");
        figures.closes.add_code(4408);
        figures.closes.add_code(3999);
        let read = figures.read();
        assert_eq!(read.connections, 2);
        assert_eq!(read.errors["bad_json"], 1);
        assert_eq!(read.errors["other"], 1);
        assert_eq!(read.closes["4408"], 1);
        assert_eq!(read.closes["other"], 1);

        figures.kinds.try_add(|| vec![("project", 2), ("other", 0)]);
        figures.kinds.try_add(|| vec![("project", 1)]);
        figures.latency.add(90);
        assert_eq!(figures.times().latency.count(), 1);

        let read = figures.read();
        let total = Snapshot { shards: vec![read.clone(), read] }.total();
        assert_eq!((total.publishes_by_kind["project"], total.publishes_by_kind["other"]), (6, 0));
        assert_eq!((total.connections, total.bytes_sent, total.closes["4408"]), (4, 200, 2));
    }

    #[test]
    fn every_name_is_used_once() {
        // OpenMetrics takes a gauge and a counter of one name for the same family.
        let mut names: Vec<_> = DESCRIPTIONS.iter().map(|description| (description.name, description.bytes)).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn a_gauge_does_not_wrap_below_zero() {
        let figure = Figure::default();
        figure.sub(1);
        assert_eq!(figure.value(), 0);
        figure.set(9);
        assert_eq!(figure.value(), 9);
    }
}

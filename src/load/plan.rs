//! What a run does: the settings of `ringhub bench` after they have been checked.

use super::stamp::Stamp;
use super::target::Target;

/// The work of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Publish into rooms, measure delivery to their subscribers
    Fanout,
    /// Send and get back
    Echo,
    /// Connect, subscribe and stay
    Idle,
    /// Connect, greet, subscribe, close, again and again
    Churn,
    /// As fanout, while subscribers vanish and come back to their sessions: is anything lost?
    Reconnect,
}

/// How an echo is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EchoVia {
    /// The endpoint `/echo`, which sends back what it gets (`ringhub serve --echo`)
    Path,
    /// The command `ping` of the native protocol
    Ping,
}

/// When things are sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Pace {
    /// Open loop: so many per second in all, whatever comes back.
    Rate(f64),
    /// Closed loop: so many in flight per publisher or echo client.
    Window(u32),
}

/// Checked settings of one run.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) mode: Mode,
    /// Subscribers, echo clients, idle connections, or connections at a time (churn).
    pub(crate) connections: usize,
    pub(crate) rooms: usize,
    /// Connections that publish, besides the subscribers.
    pub(crate) publishers: usize,
    pub(crate) pace: Pace,
    /// Rooms get unequal shares of the rate.
    pub(crate) skewed: bool,
    /// Bytes of a body.
    pub(crate) size: usize,
    pub(crate) event_type: String,
    pub(crate) measured_ns: u64,
    pub(crate) warmup_ns: u64,
    /// New connections per second, all threads together.
    pub(crate) connect_rate: f64,
    pub(crate) setup_timeout_ns: u64,
    pub(crate) threads: usize,
    pub(crate) sources: u32,
    /// The hub sends a greeting first.
    pub(crate) greeting: bool,
    pub(crate) subscribe: bool,
    pub(crate) check_seq: bool,
    /// Subscribers that vanish and come back, per second, all threads together.
    pub(crate) reconnect_rate: f64,
    /// How long each of them stays away.
    pub(crate) away_ns: u64,
    pub(crate) echo: EchoVia,
    pub(crate) target: Target,
    pub(crate) stamp: Stamp,
}

impl Plan {
    /// All connections of the run: the subscribers first, then the publishers.
    pub(crate) fn connections_all(&self) -> usize {
        self.connections + self.publishers
    }

    /// Whether events are published into rooms.
    pub(crate) fn publishes(&self) -> bool {
        matches!(self.mode, Mode::Fanout | Mode::Reconnect)
    }

    /// The name of a room.
    pub(crate) fn room(&self, index: usize) -> String {
        format!("project:bench-{index}")
    }

    /// The loopback source address that a connection uses.
    pub(crate) fn source(&self, connection: usize) -> Option<u32> {
        (self.sources > 1).then(|| u32::try_from(connection % self.sources as usize).unwrap_or(0))
    }

    /// Pairs of publisher and room: every publisher has at least one room, every room at least one publisher.
    pub(crate) fn lanes(&self) -> usize {
        if self.publishers == 0 || self.rooms == 0 { 0 } else { self.publishers.max(self.rooms) }
    }

    /// Publishers of one room.
    pub(crate) fn lanes_of_room(&self, room: usize) -> usize {
        (0..self.lanes()).filter(|lane| lane % self.rooms == room).count()
    }
}

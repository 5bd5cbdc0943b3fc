//! What the configuration says of each kind of room, as the hub needs it.

use std::sync::Arc;

use super::log::LogBounds;
use super::outbox::{Lane, OutboxBounds};
use crate::config::{Config, DurableAck, Policy};

/// The rules of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KindRules {
    /// The kind.
    pub name: Box<str>,
    /// How much of a room's log is kept.
    pub log: LogBounds,
    /// What happens to members who read too slowly.
    pub policy: Policy,
    /// The way of its rooms' events through an outbox.
    pub lane: Lane,
    /// Whether members are told who comes and goes.
    pub tells_presence: bool,
    /// Whether it is told beyond the hub that a room has its first member, or none any more.
    pub tells_occupancy: bool,
    /// Whether its events go through the journal, and when they are acknowledged then.
    pub durable: Option<DurableAck>,
}

/// The rules of all kinds.
#[derive(Debug, Clone)]
pub struct Rules {
    kinds: Arc<[KindRules]>,
    has_urgent: bool,
}

impl Rules {
    /// The rules of a configuration.
    pub fn new(config: &Config) -> Rules {
        let rules = config.kinds.iter().map(|kind| {
            // What waits for a session or user that is away has its own bound.
            let direct = kind.name == "session" || kind.name == "user";
            let events_max = match (kind.history_events_max, direct) {
                (None, true) => config.session.queue_max,
                _ => config.history_events_max(kind),
            };
            KindRules {
                name: kind.name.as_str().into(),
                log: LogBounds {
                    events_max: events_max as usize,
                    bytes_max: config.history.bytes_max,
                    age_ms: config.history.age_s * 1000,
                },
                policy: kind.policy,
                lane: if kind.urgent { Lane::Urgent } else { Lane::Ordinary },
                tells_presence: kind.presence_events,
                tells_occupancy: config.tells_occupancy(&kind.name),
                durable: (kind.durable && config.journal.path.is_some()).then_some(kind.durable_ack),
            }
        });
        Rules { kinds: rules.collect(), has_urgent: config.kinds.iter().any(|kind| kind.urgent) }
    }

    /// The place of a room's kind.
    pub fn place(&self, room: &str) -> u16 {
        let kind = room.split_once(':').map_or(room, |(kind, _)| kind);
        self.kinds.iter().position(|rules| *rules.name == *kind).unwrap_or(usize::from(u16::MAX)) as u16
    }

    /// How many kinds there are.
    pub fn len(&self) -> usize {
        self.kinds.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    /// The name of the kind at a place.
    pub fn kind(&self, place: usize) -> Option<&str> {
        self.kinds.get(place).map(|rules| &*rules.name)
    }

    /// How much is kept of the log of a room with its kind at that place; nothing where the kind is gone.
    pub fn log(&self, place: u16) -> LogBounds {
        let nothing = LogBounds { events_max: 0, bytes_max: 0, age_ms: 0 };
        self.kinds.get(usize::from(place)).map_or(nothing, |rules| rules.log)
    }

    /// Whether the events of a room of that kind go through the journal.
    pub fn durable(&self, place: u16) -> Option<DurableAck> {
        self.kinds.get(usize::from(place)).and_then(|rules| rules.durable)
    }

    /// What happens to members who read too slowly.
    pub fn policy(&self, place: u16) -> Policy {
        self.kinds.get(usize::from(place)).map_or(Policy::CatchUp, |rules| rules.policy)
    }

    /// Whether some kind is urgent.
    pub fn has_urgent(&self) -> bool {
        self.has_urgent
    }

    /// The way of a room's events through an outbox.
    pub fn lane(&self, room: &str) -> Lane {
        if !self.has_urgent {
            return Lane::Ordinary;
        }
        self.kinds.get(usize::from(self.place(room))).map_or(Lane::Ordinary, |rules| rules.lane)
    }

    /// How much of `bytes_max` the lanes of an outbox may take.
    pub fn outbox(&self, bytes_max: usize) -> OutboxBounds {
        OutboxBounds::new(bytes_max, self.has_urgent)
    }

    /// Whether it is told beyond the hub that a room is occupied or vacated.
    pub fn tells_occupancy(&self, place: u16) -> bool {
        self.kinds.get(usize::from(place)).is_some_and(|rules| rules.tells_occupancy)
    }

    /// Whether members are told who comes and goes.
    pub fn tells_presence(&self, place: u16) -> bool {
        self.kinds.get(usize::from(place)).is_some_and(|rules| rules.tells_presence)
    }

    /// Whether the members of some kind of room are.
    pub fn any_tells_presence(&self) -> bool {
        self.kinds.iter().any(|rules| rules.tells_presence)
    }
}

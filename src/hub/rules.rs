//! What the configuration says of each kind of room, as the hub needs it.

use std::sync::Arc;

use super::log::LogBounds;
use crate::config::{Config, Policy};

/// The rules of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KindRules {
    /// The kind.
    pub name: Box<str>,
    /// How much of a room's log is kept.
    pub log: LogBounds,
    /// What happens to members who read too slowly.
    pub policy: Policy,
}

/// The rules of all kinds.
#[derive(Debug, Clone)]
pub struct Rules(Arc<[KindRules]>);

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
            }
        });
        Rules(rules.collect())
    }

    /// The place of a room's kind.
    pub fn place(&self, room: &str) -> u16 {
        let kind = room.split_once(':').map_or(room, |(kind, _)| kind);
        self.0.iter().position(|rules| *rules.name == *kind).unwrap_or(usize::from(u16::MAX)) as u16
    }

    /// How many kinds there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The name of the kind at a place.
    pub fn kind(&self, place: usize) -> Option<&str> {
        self.0.get(place).map(|rules| &*rules.name)
    }

    /// How much is kept of the log of a room with its kind at that place; nothing where the kind is gone.
    pub fn log(&self, place: u16) -> LogBounds {
        let nothing = LogBounds { events_max: 0, bytes_max: 0, age_ms: 0 };
        self.0.get(usize::from(place)).map_or(nothing, |rules| rules.log)
    }

    /// What happens to members who read too slowly.
    pub fn policy(&self, place: u16) -> Policy {
        self.0.get(usize::from(place)).map_or(Policy::CatchUp, |rules| rules.policy)
    }
}

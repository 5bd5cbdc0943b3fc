//! What the broker counts.

use serde::Serialize;

use crate::control::figures::Figure;
use crate::control::histogram::{Counts, Histogram};

macro_rules! broker_figures {
    ($($field:ident: $kind:ident $name:literal $help:literal;)*) => {
        /// The broker's counters; its thread is their only writer.
        #[derive(Debug, Default)]
        pub struct BrokerFigures {
            $(#[doc = $help] pub $field: Figure,)*
            /// From sending a call of a room's events to its answer.
            pub round_trip: Histogram,
        }

        impl BrokerFigures {
            /// All values at this moment.
            pub fn read(&self) -> BrokerSnapshot {
                BrokerSnapshot { $($field: self.$field.value(),)* round_trip: self.round_trip.read() }
            }
        }

        /// What the broker had counted at some moment.
        #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
        pub struct BrokerSnapshot {
            $(#[doc = $help] pub $field: u64,)*
            /// From sending a call of a room's events to its answer.
            #[serde(skip)]
            pub round_trip: Counts,
        }

        impl BrokerSnapshot {
            /// Every figure: its name (with `_total` for those that only grow), its meaning, whether it only grows, its value.
            pub fn list(&self) -> impl Iterator<Item = (&'static str, &'static str, bool, u64)> {
                [$(($name, $help, stringify!($kind) == "Counter", self.$field),)*].into_iter()
            }
        }
    };
}

broker_figures! {
    servers: Gauge "broker_servers" "Servers of the broker";
    servers_up: Gauge "broker_servers_up" "Servers of the broker that can be reached; a cluster is one, and is while one of its primaries is";
    primaries_failing: Gauge "broker_primaries_failing" "Primaries of a cluster that can not be reached";
    rooms: Gauge "broker_rooms" "Rooms that this node follows";
    rooms_behind: Gauge "broker_rooms_behind" "Rooms of which something has to be read before later events are passed on";
    pending_bytes: Gauge "broker_pending_bytes" "Bytes of events that wait for an answer of the broker";
    backlog_bytes: Gauge "broker_backlog_bytes" "Bytes of the broker's events that wait for shards";
    submissions: Counter "broker_submissions" "Batches of events of a room that were given to the broker";
    refused: Counter "broker_refused_submissions" "Batches that the broker did not take";
    in_doubt: Counter "broker_submissions_in_doubt" "Batches whose answer did not come in time";
    calls: Counter "broker_calls" "Calls that published events, each of all that waited for a room";
    resent: Counter "broker_calls_resent" "Calls that were sent again over another connection";
    events_out: Counter "broker_events_out" "Events published through the broker";
    events_in: Counter "broker_events_in" "Events that the broker brought, those of this node included";
    reads: Counter "broker_reads" "Times that a room's log was read";
    holes: Counter "broker_holes" "Times that something of a room was missing and was read";
    renewed: Counter "broker_epochs_renewed" "Rooms that got another epoch because their log had lost its end";
    overruns: Counter "broker_overruns" "Messages that were dropped because too much waited, and were read again later";
    unreadable: Counter "broker_unreadable" "Messages and events that could not be read";
    reconnects: Counter "broker_reconnects" "Times that a connection was made again";
    deaf: Counter "broker_deaf" "Times that a connection did not hear its own messages";
}

impl BrokerSnapshot {
    /// Whether all servers can be reached.
    pub fn is_up(&self) -> bool {
        self.servers_up == self.servers
    }
}

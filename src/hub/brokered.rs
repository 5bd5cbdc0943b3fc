//! What the homes of rooms and the broker tell each other where several nodes share their rooms.
//!
//! ```text
//! home ──ToBroker──► broker of this node ──► Redis ──► brokers of all nodes that follow the room ──FromBroker──► homes
//! ```
//!
//! The broker numbers a room's events, keeps them, and carries them to every node that follows the room. A home gets them
//! **in order, each once and without holes**: whatever was missed on the way, the broker reads from what is kept before it
//! passes on anything later.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::batch::Address;
use super::name::RoomName;
use crate::wire::native::Refused;

/// From a room's home to the broker. What a home says of a room arrives in its order.
#[derive(Debug)]
pub enum ToBroker {
    /// Events to be numbered; answered once by [`FromBroker::Submitted`].
    Submit(Box<Submission>),
    /// The room's events are wanted from here on. Answered by [`FromBroker::Followed`]; again where it is said again, which a
    /// home does that has lost its place. What was told before this was heard may still come before the answer, so that an
    /// answer that continues may begin with events that the home has by then: it passes them over.
    Follow {
        /// The room.
        room: RoomName,
        /// The last event that the home has; none where it has nothing yet.
        from: Option<Place>,
        /// Epoch and number of an event that a client says to have been given, which is beyond what the home has. Where the
        /// log does not reach to it, it has lost its end and gets another epoch, if data may have been lost lately: anybody
        /// may say so.
        claim: Option<(u64, u64)>,
    },
    /// The room's events are not wanted any more. What is on its way may still come.
    Leave {
        /// The room.
        room: RoomName,
    },
    /// The room's events up to now are to be forgotten; its numbers go on. Answered by [`FromBroker::Cleared`].
    Clear {
        /// The room.
        room: RoomName,
        /// Comes back with the answer.
        number: u64,
    },
    /// Something is wanted of a field's lock; answered by [`FromBroker::Locked`].
    Lock(Box<LockCall>),
}

/// From the broker to a room's home.
#[derive(Debug)]
pub enum FromBroker {
    /// What became of a submission.
    Submitted {
        /// The room.
        room: RoomName,
        /// The submission's number.
        number: u64,
        /// The numbers of its events, or why none of them was taken. After [`IN_DOUBT`] they may still turn up.
        outcome: Result<Numbers, Refused>,
    },
    /// A room is followed from here on, or its place was lost and is found again: after a broken link the broker tells this
    /// unasked.
    Followed {
        /// The room.
        room: RoomName,
        /// Its state, or why it is not followed: the home may ask again.
        outcome: Result<Box<Followed>, Refused>,
    },
    /// A room's events: those that come right after the last one that was told.
    Events(Box<Carried>),
    /// What became of a [`ToBroker::Clear`]: how many events went.
    Cleared {
        /// The number that came with it.
        number: u64,
        /// How many, or why not.
        outcome: Result<u64, Refused>,
    },
    /// A room's log was emptied, here or elsewhere: events before this one are not kept any more.
    Emptied {
        /// The room.
        room: RoomName,
        /// The log's epoch.
        epoch: u64,
        /// The number of the first event that is not meant.
        log_from: u64,
    },
    /// What became of a [`ToBroker::Lock`].
    Locked {
        /// The number that came with it.
        number: u64,
        /// The outcome, or why it is not known.
        outcome: Result<Locked, Refused>,
    },
}

/// Something that is wanted of a field's lock, which all nodes share.
#[derive(Debug)]
pub struct LockCall {
    /// The room.
    pub room: RoomName,
    /// The field.
    pub field: Arc<str>,
    /// Comes back with the answer.
    pub number: u64,
    /// The run of the node through which it is held, or is to be from here on.
    pub node: u64,
    /// What is wanted.
    pub action: SharedLock,
}

/// What may be wanted of a lock that all nodes share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SharedLock {
    /// To have it, for so long from when the broker is asked.
    Acquire {
        /// For how long.
        ttl_ms: u64,
        /// The session. It is given another number where it has the lock already.
        session: Arc<str>,
        /// What others are told of who has it.
        holder: LockOwner,
        /// The turn of the session's connection that asks. A lock that the session has through another node is not given to
        /// an earlier one than had it there: that one was left behind, and the answer would find nobody.
        turn: u64,
    },
    /// To have it for longer.
    Renew {
        /// The number that it is held with.
        token: u64,
        /// For how long from now on.
        ttl_ms: u64,
        /// The turn of the session's connection that asks, as in `Acquire`.
        turn: u64,
    },
    /// To know through which node it is held.
    Look {
        /// The number that it was held with, through that node.
        token: u64,
    },
    /// That nobody has it.
    Free {
        /// The number that it is held with, through that node: a session may have taken it along to another one. Whatever
        /// it is, and wherever, where there is none.
        token: Option<u64>,
    },
}

/// Who has a lock, as other nodes know it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockOwner {
    /// The connection that took it.
    pub client_id: Box<str>,
    /// The session, whose it is.
    pub session_id: Box<str>,
    /// Whom that acts for.
    pub user_id: Box<str>,
}

/// What became of a call about a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Locked {
    /// It is the session's.
    Granted {
        /// The number that it has it with: larger than any before for that field.
        token: u64,
    },
    /// Another session has it.
    Held {
        /// For how long, unless it is renewed.
        left_ms: u64,
        /// Who.
        owner: LockOwner,
    },
    /// It is held for longer.
    Renewed {
        /// Who has it.
        owner: LockOwner,
    },
    /// It was held, and is free now.
    Freed {
        /// The number that it was held with.
        token: u64,
        /// Who had it.
        owner: LockOwner,
    },
    /// It is held with that number, through another node.
    Elsewhere,
    /// It is not held, or not with that number.
    NotHeld,
}

/// The code of a submission of which it is not known whether it was taken is `unavailable`, with this text.
pub const IN_DOUBT: &str = "the broker did not answer in time; the event may still be published";

/// An event on its way between nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokeredEvent {
    /// Its id, given by the node that it was published at.
    pub id: [u8; 36],
    /// When it was published, in milliseconds since 1970, by that node's clock.
    pub unix_ms: u64,
    /// Its type.
    pub kind: Box<str>,
    /// Its data: valid JSON.
    pub data: Bytes,
    /// The key that it is published under at most once within five minutes.
    pub key: Option<EventKey>,
    /// The connection that must not get it (`echo: false`).
    pub exclude: Option<Origin>,
}

/// What an event is published under at most once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventKey {
    /// Its publisher gave it.
    Given(Box<str>),
    /// The hub's own, for what several nodes may have to say of the same. It is none that a publisher can give.
    OfHub(Box<str>),
}

/// A connection anywhere in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// A run of a node: drawn when it starts, so that what an earlier run left behind means nobody.
    pub node: u64,
    /// Which of its connections.
    pub address: Address,
}

/// Events that one turn brought for a room, in order.
#[derive(Debug)]
pub struct Submission {
    /// The room.
    pub room: RoomName,
    /// The home's shard's number of it; grows, and none is given twice in a run.
    pub number: u64,
    /// The events.
    pub events: Vec<BrokeredEvent>,
    /// The epoch that the room's log has, should this be its first event.
    pub new_epoch: u64,
    /// How much of the log is kept.
    pub keep: Keep,
}

/// How much of a room's log is kept at the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Events; 0 keeps none.
    pub events_max: u64,
    /// Milliseconds.
    pub age_ms: u64,
}

/// The numbers that the events of a submission got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbers {
    /// The log's epoch.
    pub epoch: u64,
    /// Of each event, in their order.
    pub events: Vec<Numbered>,
    /// Nodes that were following the room when it was published, this one included.
    pub nodes: u32,
}

/// The number of one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numbered {
    /// The number.
    pub seq: u64,
    /// The id of the event that was published under the same key before, where this one was not.
    pub duplicate_of: Option<[u8; 36]>,
}

/// An event in a room's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The log's epoch.
    pub epoch: u64,
    /// The event's number.
    pub seq: u64,
    /// The event's id: a log that lost its end goes on with the same numbers, and other events. Zeroes where `seq` is 0.
    pub id: [u8; 36],
}

/// The state of a room when it is followed from here on.
#[derive(Debug)]
pub struct Followed {
    /// The log's epoch; that of [`ToBroker::Follow`]'s place or a new one for a room that nobody knows.
    pub epoch: u64,
    /// The last number given.
    pub seq: u64,
    /// True where `events` come right after the place that the home had when it asked, or was told last, nothing missing. Where false, the home takes them in
    /// place of all it had: they are all that is kept of the log, and members have missed something.
    pub continues: bool,
    /// The number of the first of `events`; `seq + 1` where there are none. The last has the number `seq`.
    pub first_seq: u64,
    /// The events.
    pub events: Vec<BrokeredEvent>,
}

/// Events of a room with consecutive numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carried {
    /// The room.
    pub room: RoomName,
    /// The log's epoch, which is that of the last [`Followed`].
    pub epoch: u64,
    /// The number of the first event.
    pub first_seq: u64,
    /// The events.
    pub events: Vec<BrokeredEvent>,
}

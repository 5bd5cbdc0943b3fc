//! What the control plane asks of the hub it stands in front of.
//!
//! The hub's handle implements [`Backend`]; the tests put a small one of their own behind it. Every call returns at once:
//! what needs a shard's answer is a [`Pending`], because a shard never waits for the control plane and the control plane
//! serves other requests meanwhile.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::engine::{EngineAnswer, EngineOpened};
use super::figures::{ShardTimes, Snapshot};
use super::inbox::{Adopted, ConnectionOrigin};
use super::journal::JournalSnapshot;
use crate::broker::BrokerSnapshot;
use crate::broker::nodes;
use crate::config::Config;
use crate::hub::explain::Explanation;
use crate::hub::lock_pages::LockPage;
use crate::hub::moved::Moved;
use crate::hub::presence::RoomPresence;
use crate::hub::reply::{HubError, Pending};
use crate::hub::trace::ConnectionTrace;
use crate::hub::view::{ConnectionFilter, ConnectionView, Listing, RoomFilter, RoomView, SessionView, Window};
use crate::node::{Sent, Target, Withdrew};
use crate::wire::native::Since;

/// The hub as the control plane sees it.
pub trait Backend: Clone + Send + Sync + 'static {
    /// Who a token speaks for.
    type Identity: Send + Sync + 'static;

    /// Publishes one event after checking what `identity` may do. The answer comes when the room's home gave the event its
    /// `seq`, or refused it. Calls in a row keep their order within a room. A home that sleeps looks at it after the next
    /// [`Backend::ring`].
    fn publish(&self, identity: &Arc<Self::Identity>, event: PublishRequest) -> Pending<Published>;

    /// Wakes the shards for which publishes wait.
    fn ring(&self);

    /// Sends one event to a client, to sessions or to a user's connections, after checking what `identity` may do.
    fn send(&self, identity: &Arc<Self::Identity>, to: &Target, kind: &str, data: Bytes) -> Pending<Sent>;

    /// Sends one event to a client that is connected to this node.
    fn send_here(&self, client_id: &str, kind: &str, data: Bytes) -> Pending<Sent>;

    /// Gives a session of a user to another node. `token` proves that a client had it, in hexadecimal; without one
    /// it is given to who begins it anew by its name.
    fn yield_session(&self, session_id: &str, user_id: &str, token: Option<&str>) -> Pending<Moved>;

    /// How many connections of this node are in a room, and for how many absent sessions of it events wait there.
    fn audience(&self, room: &str) -> Pending<(u32, u32)>;

    /// The nodes of the cluster; none where there is one node.
    fn nodes(&self) -> Option<nodes::Handle> {
        None
    }

    /// The next message of a session's client, whenever it comes. One that arrived and was not used has to be put back.
    fn receive(&self, session_id: &str) -> Pending<Bytes>;

    /// Puts a message back that [`Backend::receive`] gave.
    fn put_back(&self, session_id: &str, message: Bytes);

    /// Whether `identity` may do everything.
    fn is_admin(&self, identity: &Self::Identity) -> bool;

    /// Checks that `identity` may read a room.
    fn may_read(&self, identity: &Self::Identity, room: &str) -> Result<(), HubError>;

    /// The connections that fit a filter.
    fn connections(&self, filter: ConnectionFilter, window: Window) -> Pending<Listing<ConnectionView>>;

    /// The connection with a client id.
    fn connection(&self, client_id: &str) -> Pending<ConnectionView>;

    /// What happened to a client's connections lately, newest first, with the newest `limit` records of each.
    fn trace(&self, client_id: &str, limit: usize) -> Pending<Vec<ConnectionTrace>>;

    /// What became of an event for a client.
    fn explain(&self, client_id: &str, event_id: &str) -> Pending<Explanation>;

    /// Merges an object into a connection's metadata and gives the whole.
    fn set_metadata(&self, client_id: &str, set: Map<String, Value>) -> Pending<Value>;

    /// Closes connections; says how many there were.
    fn disconnect(&self, who: &Target, code: u16, reason: &str) -> Pending<u32>;

    /// Has connections show a valid token again within that time; says how many there are.
    fn reauthenticate(&self, who: &Target, grace: Duration) -> Pending<u32>;

    /// Takes permissions away from connections and sessions.
    fn withdraw(&self, who: &Target, permissions: &[&str], disconnect: bool, reason: &str) -> Pending<Withdrew>;

    /// Who is in a room.
    fn presence(&self, room: &str) -> Pending<RoomPresence>;

    /// The locks that are held, of all rooms or of one.
    fn locks(&self, room: Option<&str>, window: Window) -> Pending<LockPage>;

    /// Frees a field's lock, whoever holds it; says whether somebody did.
    fn force_unlock(&self, room: &str, field: &str) -> Pending<bool>;

    /// A session.
    fn session(&self, session_id: &str) -> Pending<SessionView>;

    /// The rooms that fit a filter.
    fn rooms(&self, filter: RoomFilter, window: Window) -> Pending<Listing<RoomView>>;

    /// A room.
    fn room(&self, room: &str) -> Pending<RoomView>;

    /// A part of a room's log, as JSON.
    fn history(&self, room: &str, since: Option<Since>, limit: usize, reverse: bool) -> Pending<Vec<u8>>;

    /// Empties a room's log; says how many events went.
    fn clear_history(&self, room: &str) -> Pending<u64>;

    /// Checks a bearer token. The error's code is `unauthorized`, and its message never contains the token.
    fn verify(&self, token: &str) -> Result<Arc<Self::Identity>, HubError>;

    /// Who a request without a token is; none when a token is needed, which is so unless authentication is switched off.
    fn anonymous(&self) -> Option<Arc<Self::Identity>> {
        None
    }

    /// The hub itself, for what it publishes on its own account.
    fn itself(&self) -> Arc<Self::Identity>;

    /// What every shard has counted so far, read without asking the shards.
    fn figures(&self) -> Snapshot;

    /// What the journal has counted so far; none where there is no journal.
    fn journal(&self) -> Option<JournalSnapshot> {
        None
    }

    /// What the broker has counted so far; none where there is one node.
    fn broker(&self) -> Option<BrokerSnapshot> {
        None
    }

    /// The times that every shard has measured so far, read without asking the shards.
    fn times(&self) -> Vec<ShardTimes>;

    /// Asks every shard for a sign of life; resolves within a bounded time even when one of them hangs.
    fn ready(&self) -> Pending<Readiness>;

    /// How every shard is. For one caller: it is told the longest wait since it asked the last time.
    fn pulse(&self) -> Vec<ShardPulse>;

    /// The configuration in force.
    fn config(&self) -> Config;

    /// Whether a room has members.
    fn is_occupied(&self, room: &str) -> Pending<bool>;

    /// Publishes what the hub itself has to say. Nobody is told whether it worked: who says it goes on in any case.
    fn announce(&self, room: &str, kind: &str, data: Bytes);

    /// Opens a session of Engine.IO that is to be polled. `head` is the request's, `origin` where it came from.
    fn engine_open(&self, head: Vec<u8>, origin: ConnectionOrigin) -> Pending<EngineOpened>;

    /// What waits for a session of Engine.IO, or comes. The session has to be one of that path.
    fn engine_poll(&self, path: &str, sid: &str) -> Pending<EngineAnswer>;

    /// Gives a session of Engine.IO packets of its client.
    fn engine_push(&self, path: &str, sid: &str, body: Vec<u8>) -> Pending<EngineAnswer>;

    /// Gives a connection with an upgrade request back to a shard. `received` starts with the request's first byte;
    /// nothing of it has been answered.
    fn adopt(&self, connection: Adopted);

    /// True from the moment the hub began to drain.
    fn draining(&self) -> bool;
}

/// An event to publish, as `POST /api/v1/publish` takes it.
#[derive(Debug, Deserialize, ToSchema)]
pub struct PublishRequest {
    /// The room's name.
    pub room: String,
    /// The event's type.
    #[serde(rename = "type")]
    pub kind: String,
    /// The event's data: valid JSON, kept as the bytes that came. `{}` when it was left out, as over a WebSocket.
    #[serde(default = "empty")]
    #[schema(value_type = serde_json::Value)]
    pub data: Box<RawValue>,
    /// Idempotency key: the same key in the same room within five minutes is published once.
    #[serde(default)]
    pub key: Option<String>,
}

/// What an event has where its data was left out.
pub(crate) fn empty() -> Box<RawValue> {
    // It is JSON.
    RawValue::from_string("{}".to_owned()).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

/// The answer to a publish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Published {
    /// The room's name.
    pub room: String,
    /// The event's id.
    pub id: String,
    /// The event's number in the room's log.
    pub seq: u64,
    /// The log's epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<String>,
    /// True when the same key had been published before; `id` and `seq` are those of the first.
    pub duplicate: bool,
    /// How many connections it goes to. Where there are several nodes: how many of this one, and one for each other node
    /// that has members in the room, since how many that has is not known here.
    pub delivered: u32,
}

/// Which shards answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// How many shards there are.
    pub shards: usize,
    /// How many of them answered in time.
    pub answering: usize,
    /// How many of those don't hear the others, or aren't heard by them.
    pub deaf: usize,
}

/// How a shard is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ShardPulse {
    /// Its thread has ended.
    pub ended: bool,
    /// For how long it has not answered, or how long an answer took since this was asked the last time.
    pub silent_ms: u64,
    /// It answers, but it and other shards don't hear each other.
    pub deaf: bool,
    /// How long its last canaries were under way to other shards and back, at most.
    pub round_trip_us: u64,
}

impl Readiness {
    /// True when every shard answered and hears the others.
    pub fn complete(&self) -> bool {
        self.answering == self.shards && self.deaf == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_kept_as_it_came_and_may_be_left_out() {
        let event: PublishRequest =
            serde_json::from_str(r#"{"room":"global","type":"a","data":{"x": 1.50 },"key":"k"}"#).unwrap();
        assert_eq!(event.data.get(), r#"{"x": 1.50 }"#);
        assert_eq!(event.key.as_deref(), Some("k"));
        let event: PublishRequest = serde_json::from_str(r#"{"room":"global","type":"a"}"#).unwrap();
        assert_eq!(event.data.get(), "{}");
    }
}

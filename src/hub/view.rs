//! What operators are shown of connections, rooms and sessions, and by what they choose.

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// A connection, as operators see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ConnectionView {
    /// Its id.
    pub client_id: String,
    /// The session it holds.
    pub session_id: String,
    /// Whom it acts for.
    pub user_id: String,
    /// That user's name, where the token has one.
    pub name: Option<String>,
    /// The token's roles.
    pub roles: Vec<String>,
    /// What it speaks: `native`, or another form of that (`native-batch`, `msgpack`, `msgpack-batch`); `socketio`, or
    /// `socketio-polling` where its session is polled; `sse` for a stream of server-sent events.
    #[schema(value_type = String)]
    pub protocol: Cow<'static, str>,
    /// The rooms it is in.
    pub rooms: Vec<String>,
    /// What it said about itself.
    #[schema(value_type = Object)]
    pub metadata: Map<String, Value>,
    /// When it was let in, RFC 3339 in UTC.
    pub connected_at: String,
    /// When bytes came from it last, or a stream last took some, RFC 3339 in UTC.
    pub last_activity: String,
    /// When its token ends, or when another one has to have come that was asked for; none for a token without end.
    pub expires_at: Option<String>,
    /// Bytes that wait to be sent to it, or are being sent.
    pub queue_bytes: usize,
    /// Rooms whose events it can't take at the moment.
    pub slow_rooms: usize,
    /// Bytes that came from it.
    pub received_bytes: u64,
    /// Bytes that were sent to it.
    pub sent_bytes: u64,
    /// The network address that it is counted under, where addresses are counted.
    pub address: Option<String>,
    /// The shard that holds it.
    pub shard: u16,
}

/// A room, as operators see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RoomView {
    /// Its name.
    pub room: String,
    /// The part before the colon.
    pub kind: String,
    /// Connections in it.
    pub members: u32,
    /// The number of its last event.
    pub seq: u64,
    /// The epoch of its log.
    pub epoch: String,
    /// Events that its log keeps.
    pub history_events: usize,
    /// Bytes that they take.
    pub history_bytes: usize,
    /// The number of the first of them.
    pub first_seq: Option<u64>,
    /// The shard that is its home.
    pub shard: u16,
}

/// A session, as operators see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SessionView {
    /// Its id.
    pub session_id: String,
    /// Whose it is.
    pub user_id: String,
    /// Whether a connection holds it.
    pub connected: bool,
    /// The id of that connection.
    pub client_id: Option<String>,
    /// Events that wait for it to come back.
    pub queued: u64,
    /// Its client's messages that wait for the backend.
    pub inbox: usize,
    /// What its client said about itself.
    #[schema(value_type = Object)]
    pub metadata: Map<String, Value>,
}

/// Which connections one wants to see; all that is said has to hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionFilter {
    /// Those of a user.
    pub user_id: Option<Box<str>>,
    /// That of a session.
    pub session_id: Option<Box<str>>,
    /// Those in a room.
    pub room: Option<Box<str>>,
    /// Those whose client, session or user id has this in it.
    pub search: Option<Box<str>>,
}

/// Which rooms one wants to see; all that is said has to hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoomFilter {
    /// Those of a kind.
    pub kind: Option<Box<str>>,
    /// Those whose name has this in it.
    pub search: Option<Box<str>>,
    /// Those with members.
    pub occupied: bool,
}

/// A part of a list that is ordered by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// What comes behind this name.
    pub after: Option<Box<str>>,
    /// At most so many.
    pub limit: usize,
}

/// The part of a list that one shard or the whole node has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Listing<T> {
    /// In the order of their names.
    pub items: Vec<T>,
    /// How many there are in all.
    pub total: usize,
}

impl<T> Default for Listing<T> {
    fn default() -> Listing<T> {
        Listing { items: Vec::new(), total: 0 }
    }
}

impl Window {
    /// Whether a name is within it, as far as its beginning goes.
    pub fn begins_before(&self, name: &str) -> bool {
        self.after.as_deref().is_none_or(|after| name > after)
    }
}

/// The `limit` smallest of what comes by, by name, and how many came by in all.
#[derive(Debug)]
pub struct Smallest<T> {
    kept: std::collections::BTreeMap<Arc<str>, T>,
    window: Window,
    total: usize,
}

impl<T> Smallest<T> {
    /// Nothing came by yet.
    pub fn new(window: Window) -> Smallest<T> {
        Smallest { kept: std::collections::BTreeMap::new(), window, total: 0 }
    }

    /// One that fits the filter comes by.
    pub fn offer(&mut self, name: &str, item: impl FnOnce() -> T) {
        self.total += 1;
        let is_full = self.kept.len() >= self.window.limit;
        let is_beyond = is_full && self.kept.last_key_value().is_none_or(|(last, _)| name >= &**last);
        if is_beyond || !self.window.begins_before(name) {
            return;
        }
        self.kept.insert(name.into(), item());
        if self.kept.len() > self.window.limit {
            self.kept.pop_last();
        }
    }

    /// What was kept.
    pub fn finish(self) -> Listing<T> {
        Listing { items: self.kept.into_values().collect(), total: self.total }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_names_behind_a_name_are_kept_in_order() {
        let window = Window { after: Some("b".into()), limit: 3 };
        let mut smallest = Smallest::new(window);
        for name in ["f", "a", "e", "b", "d", "g", "c"] {
            smallest.offer(name, || name);
        }
        let listing = smallest.finish();
        assert_eq!((listing.items, listing.total), (vec!["c", "d", "e"], 7));
        let mut none = Smallest::new(Window { after: None, limit: 0 });
        none.offer("a", || ());
        assert_eq!(none.finish().total, 1);
    }
}

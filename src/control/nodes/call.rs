//! What one node asks another, and how it is answered there. The caller has checked who asks, and what they may.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::super::backend::Backend;
use super::super::figures::ShardFigures;
use super::super::locks::locks_of;
use super::super::process::{self, Process};
use crate::broker::BrokerSnapshot;
use crate::hub::presence::RoomPresence;
use crate::hub::reply::HubError;
use crate::hub::view::{ConnectionFilter, Listing, RoomFilter, Window};
use crate::node::{Sent, Target};
use crate::wire::codes::ErrorCode;

/// Bytes of a list in one answer, about: a page that would be longer is cut, and goes on behind its last item.
const LIST_BYTES_MAX: usize = 1 << 20;

/// A question to a node, about that node alone.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub(crate) enum NodeCall {
    Connections {
        filter: ConnectionFilter,
        window: Window,
    },
    Connection {
        client_id: Box<str>,
    },
    Trace {
        client_id: Box<str>,
        limit: usize,
    },
    Explain {
        client_id: Box<str>,
        event_id: Box<str>,
    },
    SetMetadata {
        client_id: Box<str>,
        set: Map<String, Value>,
    },
    Disconnect {
        who: Target,
        code: u16,
        reason: Box<str>,
    },
    Reauthenticate {
        who: Target,
        grace_s: u64,
    },
    Withdraw {
        who: Target,
        permissions: Vec<Box<str>>,
        disconnect: bool,
        reason: Box<str>,
    },
    Presence {
        room: Box<str>,
    },
    Locks {
        room: Option<Box<str>>,
        window: Window,
    },
    ForceUnlock {
        room: Box<str>,
        field: Box<str>,
    },
    Session {
        session_id: Box<str>,
    },
    Rooms {
        filter: RoomFilter,
        window: Window,
    },
    Room {
        room: Box<str>,
    },
    Stats,
    Receive {
        session_id: Box<str>,
    },
    /// In base64, since it need not be text.
    PutBack {
        session_id: Box<str>,
        message: String,
    },
    /// `data` is the text of JSON, so that it stays the bytes that came.
    SendToClient {
        client_id: Box<str>,
        kind: Box<str>,
        data: String,
    },
    /// That the node gives a session away, to be had here; `token` in hexadecimal.
    YieldSession {
        session_id: Box<str>,
        user_id: Box<str>,
        token: Option<String>,
    },
    Audience {
        room: Box<str>,
    },
}

/// A part of a list, in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Part<T> {
    pub(crate) items: Vec<T>,
    pub(crate) total: usize,
    /// The name up to which this is all there is; none at the end of the list.
    pub(crate) upto: Option<Box<str>>,
}

impl<T> Part<T> {
    /// A listing of at most `limit` items.
    pub(crate) fn new(listing: Listing<T>, limit: usize, name: impl Fn(&T) -> &str) -> Part<T> {
        let Listing { items, total } = listing;
        let upto = items.last().filter(|_| items.len() >= limit).map(|last| name(last).into());
        Part { items, total, upto }
    }
}

impl<T: Serialize> Part<T> {
    /// Cuts it where it would be too long for one answer.
    fn cut(mut self, name: impl Fn(&T) -> &str) -> Part<T> {
        // One is always told, or nobody would come past it.
        let count = fitting(&self.items).max(1);
        if count < self.items.len() {
            self.items.truncate(count);
            self.upto = self.items.last().map(|last| name(last).into());
        }
        self
    }
}

/// How many items fit into one answer.
fn fitting<T: Serialize>(items: &[T]) -> usize {
    let mut bytes = 0;
    let fits = items.iter().take_while(|item| {
        bytes += serde_json::to_vec(item).map_or(0, |text| text.len());
        bytes <= LIST_BYTES_MAX
    });
    fits.count()
}

/// Who is in a room through one node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct PresentPart {
    pub(crate) count: usize,
    pub(crate) seq: u64,
    pub(crate) members: Vec<PresentMember>,
}

impl PresentPart {
    /// Leaves members out where the answer would be too long; they are counted all the same.
    fn cut(mut self) -> PresentPart {
        self.members.truncate(fitting(&self.members));
        self
    }
}

/// A session that is in a room.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PresentMember {
    pub(crate) client_id: String,
    pub(crate) user_id: String,
    pub(crate) session_id: String,
    pub(crate) metadata: Map<String, Value>,
    pub(crate) joined_ms: u64,
}

impl From<RoomPresence> for PresentPart {
    fn from(presence: RoomPresence) -> PresentPart {
        let RoomPresence { count, members, seq } = presence;
        let members = members.into_iter().map(|member| PresentMember {
            client_id: member.client_id.to_string(),
            user_id: member.user_id.into(),
            session_id: member.session_id.to_string(),
            metadata: member.metadata,
            joined_ms: member.joined_ms,
        });
        PresentPart { count, seq, members: members.collect() }
    }
}

/// What a node has counted.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct NodeFigures {
    pub(crate) status: String,
    /// How many shards it has.
    pub(crate) shards: usize,
    pub(crate) process: Process,
    /// All its shards together.
    #[schema(value_type = Object)]
    pub(crate) total: Value,
    #[schema(value_type = Option<Object>)]
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) broker: Option<Value>,
}

impl NodeFigures {
    pub(crate) fn of<B: Backend>(backend: &B) -> NodeFigures {
        let figures = backend.figures();
        let total: ShardFigures = figures.total();
        let broker: Option<BrokerSnapshot> = backend.broker();
        NodeFigures {
            status: if backend.draining() { "draining" } else { "ok" }.to_owned(),
            shards: figures.shards.len(),
            process: process::read(),
            total: serde_json::to_value(total).unwrap_or_default(),
            broker: broker.and_then(|broker| serde_json::to_value(broker).ok()),
        }
    }
}

/// The message that a session's client sent for the backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Handed {
    pub(crate) session_id: Box<str>,
    /// In base64.
    pub(crate) handed: String,
}

impl Handed {
    pub(crate) fn new(session_id: &str, message: &[u8]) -> Handed {
        Handed { session_id: session_id.into(), handed: STANDARD.encode(message) }
    }

    pub(crate) fn message(&self) -> Option<Bytes> {
        STANDARD.decode(&self.handed).ok().map(Bytes::from)
    }
}

/// Answers a question of another node.
pub(crate) async fn serve<B: Backend>(backend: B, call: NodeCall) -> Result<Vec<u8>, HubError> {
    match call {
        NodeCall::Connections { filter, window } => {
            let limit = window.limit;
            let listing = backend.connections(filter, window).await?;
            written(&Part::new(listing, limit, |view| &view.client_id).cut(|view| &view.client_id))
        }
        NodeCall::Connection { client_id } => written(&backend.connection(&client_id).await?),
        NodeCall::Trace { client_id, limit } => written(&backend.trace(&client_id, limit).await?),
        NodeCall::Explain { client_id, event_id } => written(&backend.explain(&client_id, &event_id).await?),
        NodeCall::SetMetadata { client_id, set } => written(&backend.set_metadata(&client_id, set).await?),
        NodeCall::Disconnect { who, code, reason } => written(&backend.disconnect(&who, code, &reason).await?),
        NodeCall::Reauthenticate { who, grace_s } => {
            written(&backend.reauthenticate(&who, Duration::from_secs(grace_s)).await?)
        }
        NodeCall::Withdraw { who, permissions, disconnect, reason } => {
            let permissions: Vec<&str> = permissions.iter().map(|one| &**one).collect();
            let withdrew = backend.withdraw(&who, &permissions, disconnect, &reason);
            written(&withdrew.await?)
        }
        NodeCall::Presence { room } => written(&PresentPart::from(backend.presence(&room).await?).cut()),
        NodeCall::Locks { room, window } => {
            let page = backend.locks(room.as_deref(), window).await?;
            written(&locks_of(page))
        }
        NodeCall::ForceUnlock { room, field } => written(&backend.force_unlock(&room, &field).await?),
        NodeCall::Session { session_id } => written(&backend.session(&session_id).await?),
        NodeCall::Rooms { filter, window } => {
            let limit = window.limit;
            let listing = backend.rooms(filter, window).await?;
            written(&Part::new(listing, limit, |view| &view.room).cut(|view| &view.room))
        }
        NodeCall::Room { room } => written(&backend.room(&room).await?),
        NodeCall::Stats => written(&NodeFigures::of(&backend)),
        NodeCall::Receive { session_id } => {
            let mut waiting = Waiting { pending: backend.receive(&session_id), backend, session_id };
            let message = (&mut waiting.pending).await?;
            written(&Handed::new(&waiting.session_id, &message))
        }
        NodeCall::PutBack { session_id, message } => {
            if let Ok(message) = STANDARD.decode(message) {
                backend.put_back(&session_id, message.into());
            }
            written(&())
        }
        NodeCall::SendToClient { client_id, kind, data } => {
            written(&backend.send_here(&client_id, &kind, data.into()).await?)
        }
        NodeCall::YieldSession { session_id, user_id, token } => {
            let moved = backend.yield_session(&session_id, &user_id, token.as_deref()).await?;
            moved.write().ok_or_else(|| HubError::new(ErrorCode::Internal, "the session can't be written"))
        }
        NodeCall::Audience { room } => {
            let (delivered, queued) = backend.audience(&room).await?;
            written(&Sent { delivered: u64::from(delivered), queued: u64::from(queued) })
        }
    }
}

/// Waits for a message. One that comes when the caller does not wait any longer is put back.
pub(crate) struct Waiting<B: Backend> {
    pub(crate) pending: crate::hub::reply::Pending<Bytes>,
    pub(crate) backend: B,
    pub(crate) session_id: Box<str>,
}

impl<B: Backend> Drop for Waiting<B> {
    fn drop(&mut self) {
        if let Some(Ok(message)) = self.pending.close() {
            self.backend.put_back(&self.session_id, message);
        }
    }
}

fn written(answer: &impl Serialize) -> Result<Vec<u8>, HubError> {
    serde_json::to_vec(answer).map_err(|error| HubError::new(ErrorCode::Internal, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_read_as_they_are_written() {
        for call in [
            NodeCall::Stats,
            NodeCall::Disconnect { who: Target::User("ann".into()), code: 4500, reason: "".into() },
            NodeCall::Connections { filter: ConnectionFilter::default(), window: Window { after: None, limit: 7 } },
            NodeCall::Room { room: "project:1".into() },
            NodeCall::SendToClient { client_id: "c".into(), kind: "note".into(), data: r#"{"n":1.50}"#.to_owned() },
        ] {
            let text = serde_json::to_string(&call).expect("JSON");
            let read: NodeCall = serde_json::from_str(&text).expect("read");
            assert_eq!(serde_json::to_string(&read).expect("JSON"), text);
        }
    }

    #[test]
    fn a_message_is_carried_as_it_is() {
        for message in [&b"{\"a\":1}"[..], b"\xff\x00", b""] {
            assert_eq!(Handed::new("s", message).message().as_deref(), Some(message));
        }
    }

    #[test]
    fn of_more_members_than_fit_the_others_are_counted() {
        let member = |number: usize| PresentMember {
            client_id: number.to_string(),
            user_id: "ann".to_owned(),
            session_id: number.to_string(),
            metadata: Map::from_iter([("note".to_owned(), "x".repeat(LIST_BYTES_MAX / 8).into())]),
            joined_ms: 0,
        };
        let part = PresentPart { count: 10, seq: 0, members: (0..10).map(member).collect() }.cut();
        assert_eq!((part.count, part.members.len()), (10, 7));
    }

    #[test]
    fn a_part_that_is_too_long_is_cut_and_says_where_it_goes_on() {
        let long = |name: &str| (name.to_owned(), "x".repeat(LIST_BYTES_MAX * 2 / 3));
        let listing = Listing { items: vec![long("a"), long("b"), long("c")], total: 9 };
        let whole = Part::new(listing, 5, |item| &item.0);
        assert_eq!(whole.upto, None);
        let part = whole.cut(|item| &item.0);
        assert_eq!((part.items.len(), part.upto.as_deref(), part.total), (1, Some("a"), 9));
        let huge = Listing { items: vec![("a".to_owned(), "x".repeat(2 * LIST_BYTES_MAX))], total: 1 };
        let part = Part::new(huge, 1, |item| &item.0).cut(|item| &item.0);
        assert_eq!((part.items.len(), part.upto.as_deref()), (1, Some("a")));
    }
}

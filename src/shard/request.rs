//! What the hub's handle and the control plane ask of a shard.

use std::net::IpAddr;

use bytes::Bytes;

use super::Settings;
use crate::auth::Identity;
use crate::control::hooks::Verdict;
use crate::control::{Adopted, ConnectionOrigin, EngineAnswer, EngineOpened};
use crate::hub::batch::Address;
use crate::hub::canary::Signs;
use crate::hub::explain::{EventFound, EventSought, Explanation};
use crate::hub::lock_pages::LockPage;
use crate::hub::locks::LockInfo;
use crate::hub::message::{ClientRequest, Message, Publish, Resume, Withdraw, Withdrew};
use crate::hub::moved::YieldAsked;
use crate::hub::name::RoomName;
use crate::hub::presence::RoomPresence;
use crate::hub::reply::Responder;
use crate::hub::shared_locks::NotedLock;
use crate::hub::trace::{ConnectionTrace, TraceAsked};
use crate::hub::view::{ConnectionFilter, ConnectionView, Listing, RoomFilter, RoomView, SessionView, Window};
use crate::ring::ConnKey;
use crate::session::ClientId;
use crate::session::SessionId;
use crate::wire::native::{Refused, Since};
use std::sync::Arc;
use std::time::Instant;

/// A request to a shard.
#[derive(Debug)]
pub enum Request {
    /// An event for a room whose home this shard is.
    Publish(Box<Publish>),
    /// An event for the session of a client whose id is homed here.
    SendToClient {
        /// The client's id.
        client_id: Box<str>,
        /// The event.
        direct: Box<crate::hub::message::Direct>,
    },
    /// Something to be asked of the connection that holds a client id homed here.
    Client {
        /// The id.
        client_id: Box<str>,
        /// What is asked.
        request: ClientRequest,
    },
    /// Something to be asked of the connection that holds a session homed here.
    Session {
        /// The session's room.
        room: RoomName,
        /// What is asked.
        request: ClientRequest,
    },
    /// Closes this shard's connections of a user.
    DisconnectUser {
        /// The user.
        user_id: Box<str>,
        /// The close code.
        code: u16,
        /// The close frame's reason.
        reason: Box<str>,
        /// Is told how many there were.
        responder: Responder<u32>,
    },
    /// That this shard's connections of a user show a valid token, or be closed.
    ReauthenticateUser {
        /// The user.
        user_id: Box<str>,
        /// Within so many seconds.
        grace_s: u32,
        /// Is told how many there are.
        responder: Responder<u32>,
    },
    /// That permissions be taken away from a session homed here, and from its connection.
    WithdrawFromSession {
        /// The session's room.
        room: RoomName,
        /// Which, and how.
        withdraw: Withdraw,
        /// Is told what became of it.
        responder: Responder<Withdrew>,
    },
    /// That permissions be taken away from this shard's connections of a user, and from the user's sessions homed here.
    WithdrawFromUser {
        /// The user.
        user_id: Box<str>,
        /// Which, and how.
        withdraw: Withdraw,
        /// Is told what became of it.
        responder: Responder<Withdrew>,
    },
    /// That a session homed here be given to another node.
    YieldSession(YieldAsked),
    /// What other nodes said to a connection that wants to take a session up.
    SessionSought {
        /// What it wants.
        resume: Box<Resume>,
        /// The session, as a node gave it away, or why it is not had.
        found: Result<Option<Bytes>, Refused>,
    },
    /// What other nodes said to a connection that is to begin a session by its name.
    NameSought {
        /// The connection.
        conn: ConnKey,
        /// The session.
        session_id: SessionId,
        /// Whose it is.
        identity: Arc<Identity>,
        /// The session, as a node gave it away, or why it is not had.
        found: Result<Option<Bytes>, Refused>,
    },
    /// What another thread found out for one of this shard's connections.
    ForMember(Box<Message>),
    /// Whether a client id homed here is held.
    HasClient {
        /// The id.
        client_id: Box<str>,
        /// Is told.
        responder: Responder<bool>,
    },
    /// Whether a room homed here has members.
    IsOccupied {
        /// The room.
        room: RoomName,
        /// Is told.
        responder: Responder<bool>,
    },
    /// How many members a room homed here has, and for how many absent sessions its events wait.
    Audience {
        /// The room.
        room: RoomName,
        /// Is told.
        responder: Responder<(u32, u32)>,
    },
    /// The locks that are held in a room homed here.
    Locks {
        /// The room.
        room: RoomName,
        /// Is told.
        responder: Responder<Vec<LockInfo>>,
    },
    /// A part of the locks that are held in rooms homed here, or in one of them.
    LockPage {
        /// The room.
        room: Option<RoomName>,
        /// Which part.
        window: Window,
        /// Is told.
        responder: Responder<LockPage>,
    },
    /// Frees a lock of a room homed here, whoever holds it.
    Unlock {
        /// The room.
        room: RoomName,
        /// The field.
        field: Box<str>,
        /// Is told whether it was held.
        responder: Responder<bool>,
    },
    /// Who is in a room homed here.
    Presence {
        /// The room.
        room: RoomName,
        /// Is told.
        responder: Responder<RoomPresence>,
    },
    /// The next message in the inbox of a session homed here.
    Collect {
        /// The session's room.
        room: RoomName,
        /// Is told.
        responder: Responder<Bytes>,
    },
    /// This shard's connections.
    Connections {
        /// Which of them.
        filter: Arc<ConnectionFilter>,
        /// Which part of the list.
        window: Window,
        /// Is told.
        responder: Responder<Listing<ConnectionView>>,
    },
    /// The rooms at home here.
    Rooms {
        /// Which of them.
        filter: Arc<RoomFilter>,
        /// Which part of the list.
        window: Window,
        /// Is told.
        responder: Responder<Listing<RoomView>>,
    },
    /// One room at home here.
    Room {
        /// Which.
        room: RoomName,
        /// Is told.
        responder: Responder<RoomView>,
    },
    /// A session at home here.
    SessionView {
        /// The session's room.
        room: RoomName,
        /// Is told.
        responder: Responder<SessionView>,
    },
    /// A part of the log of a room at home here, as JSON.
    History {
        /// Which.
        room: RoomName,
        /// From where on (or, in reverse, before what).
        since: Option<Since>,
        /// At most so many events.
        limit: usize,
        /// Newest first.
        reverse: bool,
        /// Is told.
        responder: Responder<Vec<u8>>,
    },
    /// That the log of a room at home here be emptied.
    ClearHistory {
        /// Which.
        room: RoomName,
        /// Is told how many events went.
        responder: Responder<u64>,
    },
    /// A message that was taken out of the inbox of a session homed here, and could not be used.
    PutBack {
        /// The session's room.
        room: RoomName,
        /// The message.
        message: Bytes,
    },
    /// A sign of life.
    Ping {
        /// The question's number.
        number: u64,
        /// When it was asked.
        asked: Instant,
        /// Whether canaries are to be sent to all shards.
        canaries: bool,
        /// Where the answers go.
        signs: Arc<Signs>,
    },
    /// Where the connection is that holds a client id homed here.
    Whereabouts {
        /// The id.
        client_id: Box<str>,
        /// Is told.
        responder: Responder<Option<Address>>,
    },
    /// An event that may have got its number here.
    FindEvent {
        /// Its id.
        event_id: Box<str>,
        /// Is told.
        responder: Responder<EventSought>,
    },
    /// What is recorded of a client's connections on this shard.
    Trace {
        /// Whose.
        asked: Arc<TraceAsked>,
        /// The connection it has here now.
        live: Option<ConnKey>,
        /// Is told.
        responder: Responder<Vec<ConnectionTrace>>,
    },
    /// What became of an event for a client's connections on this shard.
    Explain(Box<ExplainAsked>),
    /// Whether one of this shard's clients may connect, as the backend says.
    Verdict {
        /// The connection.
        conn: ConnKey,
        /// What it says.
        verdict: Verdict,
    },
    /// A connection that comes from the control plane, or from another shard.
    Adopt(Box<Adopted>),
    /// A session of Engine.IO that is to be polled.
    EngineOpen {
        /// The head of the request that opens it.
        head: Vec<u8>,
        /// Where that came from.
        origin: ConnectionOrigin,
        /// Is told the session.
        responder: Responder<EngineOpened>,
    },
    /// A poll of a session of Engine.IO.
    EnginePoll {
        /// Which session.
        sid: Box<str>,
        /// Is given what waits, or comes.
        responder: Responder<EngineAnswer>,
    },
    /// Packets for a session of Engine.IO.
    EnginePush {
        /// Which session.
        sid: Box<str>,
        /// The request's body.
        body: Vec<u8>,
        /// Is told whether they were taken.
        responder: Responder<EngineAnswer>,
    },
    /// A node has died that held a lock in a room at home here.
    FreeOfDead {
        /// The room.
        room: RoomName,
        /// The lock.
        noted: Box<NotedLock>,
        /// Is told when the broker has answered.
        responder: Responder<()>,
    },
    /// The journal or the broker has something to tell: it stands in their links.
    Look,
    /// New settings.
    Reload(Arc<Settings>),
    /// No new connections, and an end to those that are there.
    Drain {
        /// Milliseconds over which connections are closed.
        over_ms: u64,
        /// Milliseconds over which clients are asked to come back.
        spread_ms: u64,
    },
    /// An end at once.
    Stop,
}

/// What of a request only the driver can do.
#[derive(Debug)]
pub enum ForDriver {
    /// To take a socket over.
    Adopt(Box<Adopted>),
    /// To say what is with the kernel.
    Explain(Box<ExplainAsked>),
}

/// What became of an event for a client.
#[derive(Debug)]
pub struct ExplainAsked {
    /// The client's id.
    pub client_id: ClientId,
    /// The connection it has on this shard now.
    pub live: Option<ConnKey>,
    /// The event.
    pub event: Arc<EventFound>,
    /// Is told, for each of the client's connections that the shard knows of.
    pub responder: Responder<Vec<Explanation>>,
}

/// The address that counts a connection against its limits.
pub fn counted_address(origin: &crate::control::ConnectionOrigin) -> Option<IpAddr> {
    origin.client.or_else(|| origin.peer.map(|peer| peer.ip()))
}

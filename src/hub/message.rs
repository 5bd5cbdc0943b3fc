//! What shards tell each other. One queue per ordered pair of shards carries these in order, a batch per turn.
//!
//! Larger than most files, since it is a list: one enum and what its variants carry.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;

use super::batch::{Address, Batch};
use super::canary::Canary;
use super::locks::{Freed, HeldLock, LockArrived, LockAsked, LockTold};
use super::moved::Moved;
use super::name::{RoomName, ShardId};
use super::presence::{MembersListed, PresenceAsked, PresenceChange, Turn};
use super::reply::{HubError, Responder};
use super::selection::Selection;
use super::view::ConnectionView;
use crate::auth::{Identity, Withdrawn};
use crate::session::ClientId;
use crate::wire::codes::ErrorCode;
use crate::wire::native::{Reference, Refused, Since};

/// A message from shard to shard (or from a shard to itself).
#[derive(Debug)]
pub enum Message {
    /// To a room's home: a connection wants to be a member.
    Join(Box<Join>),
    /// To a room's home: a client asked to leave. The home only answers, which puts the answer behind the joins and events
    /// that are on their way to that shard; the membership ends there, and [`Message::Leave`] tells the home.
    Leaving {
        /// The room.
        room: RoomName,
        /// Whose membership.
        address: Address,
        /// Where the answer goes.
        ticket: Ticket,
    },
    /// To a room's home: a membership that the home granted has ended. Sent exactly once for each, by the shard that took the
    /// member out of its list or could not put it there.
    Leave {
        /// The room.
        room: RoomName,
        /// Whose membership.
        address: Address,
    },
    /// To a room's home: a stream of events leaves, and may come back with the cursor it had. Goes before its `Leave`.
    Linger {
        /// The room.
        room: RoomName,
    },
    /// To a room's home: an event for the room.
    Publish(Box<Publish>),
    /// To a room's home: a slow reader wants to go on.
    CatchUp(Box<CatchUp>),
    /// To a room's home: a client wants to see a part of its log.
    History(Box<HistoryAsked>),
    /// To a room's home: a client wants something of a field's lock.
    Lock(Box<LockAsked>),
    /// To a room's home: a lock's session is gone, or may not have it any more. Nobody is answered.
    FreeLock {
        /// The room.
        room: RoomName,
        /// The field.
        field: Arc<str>,
        /// The number that it was granted with.
        token: u64,
        /// Why.
        reason: Freed,
    },
    /// To a room's home: a lock's session goes to another node, and takes it along.
    LockLeaves {
        /// The lock, as the session knows it.
        lock: HeldLock,
        /// The session's room, whose home is told by a `LockLeft`.
        session: RoomName,
        /// The turn of the last connection that it had.
        turn: Turn,
    },
    /// To a session's home: a lock has left its room's home; none where the session did not hold it any more.
    LockLeft {
        /// The session's room.
        session: RoomName,
        /// The lock.
        lock: Option<Box<LockArrived>>,
    },
    /// To a room's home: a session has come from another node, and has a lock.
    LockArrives(Box<LockArrived>),
    /// To a session's home: a message for the backend.
    Deposit(Box<Deposit>),
    /// To a room's home: something became of a session there. Goes before the `Leave` that may belong to it.
    Presence(Box<PresenceChange>),
    /// To a room's home: somebody wants to know who is there.
    PresenceAsked(Box<PresenceAsked>),
    /// To a room's home: a shard's members.
    MembersListed(Box<MembersListed>),
    /// To a client id's home: reserve it.
    ClaimClient {
        /// The id.
        client_id: ClientId,
        /// For whom.
        address: Address,
    },
    /// To a client id's home: it is free again.
    ReleaseClient {
        /// The id.
        client_id: ClientId,
        /// Who had it.
        address: Address,
    },
    /// To a user's home: one more connection of that user.
    ClaimUser {
        /// The user.
        user_id: Arc<str>,
        /// For whom.
        address: Address,
    },
    /// To a user's home: one connection less.
    ReleaseUser {
        /// The user.
        user_id: Arc<str>,
    },
    /// To any shard, and back: a sign of life.
    Canary(Box<Canary>),
    /// To a session's home: the connection that held it is gone.
    ReleaseSession {
        /// The session's room.
        room: RoomName,
        /// Who held it.
        address: Address,
        /// What is kept for the time that it can be resumed; none where it can't.
        kept: Option<Box<Kept>>,
    },
    /// To a session's home: permissions were withdrawn from the connection that holds it.
    Withdrawn {
        /// The session's room.
        room: RoomName,
        /// That connection.
        address: Address,
        /// Which.
        withdrawn: Withdrawn,
    },
    /// To a session's home: another connection wants to take it up.
    Resume(Box<Resume>),
    /// To a session's home: another node gave it away.
    InstallSession {
        /// The session's room.
        room: RoomName,
        /// Whose it is.
        identity: Arc<Identity>,
        /// What it is.
        moved: Box<Moved>,
    },
    /// To a session's home: what the connection that held it had. None where that one is gone already, or holds another
    /// session, and has told the home before this.
    HandDown {
        /// The session's room.
        room: RoomName,
        /// Who takes the session up.
        successor: Address,
        /// What it said.
        asked: Box<ResumeAsked>,
        /// What there is to be passed on.
        kept: Option<Box<Kept>>,
    },
    /// To a session's home: a connection that resumes it has it now, or can't take it. The next one may have it.
    TookUp {
        /// The session's room.
        room: RoomName,
        /// Who.
        address: Address,
        /// What there was for one that is gone already, or has too much under way.
        given_back: Option<Box<Kept>>,
    },
    /// To a network address's home: one more connection from there.
    ClaimPeer {
        /// The network address.
        peer: IpAddr,
        /// For whom.
        address: Address,
    },
    /// To a network address's home: one connection less.
    ReleasePeer {
        /// The network address.
        peer: IpAddr,
    },
    /// To a client id's home: an event for the session of that client.
    SendToClient {
        /// The id.
        client_id: Box<str>,
        /// The event; its room is not known yet.
        direct: Box<Direct>,
    },

    /// To a member's shard: what became of its `Join`.
    Joined(Box<Joined>),
    /// To a slow reader's shard: what it missed.
    CaughtUp(Box<CaughtUp>),
    /// To a member's shard: the room's home wants to know its members.
    ListMembers {
        /// The room.
        room: RoomName,
        /// Its home.
        home: ShardId,
    },
    /// To a client's shard: the part of a log that it wanted to see, or who is in a room.
    HistoryTold(Box<HistoryTold>),
    /// To a client's shard: what became of a lock.
    LockTold(Box<LockTold>),
    /// To a member's shard: its membership ended, as it asked.
    Left {
        /// Whose.
        address: Address,
        /// The room.
        room: RoomName,
        /// Where the answer goes.
        ticket: Ticket,
    },
    /// To shards with members: events.
    Deliver(Arc<Batch>),
    /// To shards with members: the room's log is another one from here on, or lacks what would have come next. All members
    /// read on from it at their home, which tells them what is missing.
    Renewed {
        /// The room.
        room: RoomName,
        /// The epoch of its log.
        epoch: u64,
        /// The last event that those have who had all; [`BEFORE_ALL`](super::relayed::BEFORE_ALL) where the log is another.
        after_seq: u64,
    },
    /// To the shard of who published: what became of it.
    Published {
        /// Who.
        address: Address,
        /// What the answer is for.
        ticket: Ticket,
        /// The room it went to.
        room: RoomName,
        /// The outcome.
        outcome: Result<Published, Refused>,
    },
    /// To a connection's shard: a claim was granted or not.
    Claimed {
        /// For whom.
        address: Address,
        /// Which claim.
        what: ClaimKind,
        /// The refusal, if it was refused.
        refused: Option<ClaimRefused>,
    },
    /// To the shard of a client that an event is for: pass it on to the client's session.
    ForwardToSession {
        /// Which connection.
        address: Address,
        /// The event.
        direct: Box<Direct>,
    },
    /// To a connection's shard: something that the hub's handle asks of it.
    Forward {
        /// Which connection.
        address: Address,
        /// What is asked.
        request: ClientRequest,
    },
    /// To a connection's shard: permissions were withdrawn from its session.
    WithdrawnTold {
        /// Which connection.
        address: Address,
        /// Which permissions.
        withdrawn: Withdrawn,
    },
    /// To a connection's shard: another connection took its session over.
    TakenOver {
        /// The old connection.
        address: Address,
        /// The session's room: the old connection may have gone over to another session meanwhile.
        room: RoomName,
        /// The new one, where it resumes what the old one had.
        successor: Option<(Address, Box<ResumeAsked>)>,
    },
    /// To the shard of a connection that resumes a session: what became of it.
    Resumed(Box<Resumed>),
}

impl Message {
    /// The room whose home has to know the room's state to handle this; none where that plays no part.
    pub fn home_room(&self) -> Option<&RoomName> {
        match self {
            Message::Join(join) => Some(&join.room),
            Message::CatchUp(ask) => Some(&ask.room),
            Message::History(ask) => Some(&ask.room),
            Message::Lock(asked) => Some(&asked.room),
            Message::LockArrives(arrived) => Some(&arrived.lock.room),
            Message::Deposit(deposit) => Some(&deposit.room),
            Message::Presence(change) => Some(&change.room),
            Message::PresenceAsked(asked) => Some(&asked.room),
            Message::MembersListed(listed) => Some(&listed.room),
            Message::Resume(resume) => Some(&resume.room),
            Message::Leaving { room, .. }
            | Message::Leave { room, .. }
            | Message::Linger { room }
            | Message::FreeLock { room, .. }
            | Message::LockLeaves { lock: HeldLock { room, .. }, .. }
            | Message::ReleaseSession { room, .. }
            | Message::Withdrawn { room, .. }
            | Message::HandDown { room, .. }
            | Message::TookUp { room, .. } => Some(room),
            _ => None,
        }
    }
}

/// A membership that is asked for.
#[derive(Debug)]
pub struct Join {
    /// The room.
    pub room: RoomName,
    /// Who.
    pub address: Address,
    /// What has to hold besides permission.
    pub claim: JoinClaim,
    /// What is wanted of the room; travels along and comes back.
    pub selection: Option<Arc<Selection>>,
    /// From where on.
    pub since: Option<Since>,
    /// What the answer is for.
    pub ticket: Ticket,
}

/// What a room's home has to check at a join.
#[derive(Debug)]
pub enum JoinClaim {
    /// Nothing.
    None,
    /// Nothing; but the newcomer has been given the room's events up to here, and will go on from there.
    Given {
        /// The log's epoch.
        epoch: u64,
        /// The event's number.
        seq: u64,
    },
    /// That a session is new or this user's; an older connection of it is taken over.
    Session {
        /// Who.
        identity: Arc<Identity>,
        /// The token to resume it by, should it be new.
        token: ResumeToken,
    },
}

/// What proves that a client had a session before.
pub type ResumeToken = [u8; 16];

/// What a session had when its connection went.
#[derive(Debug, Default)]
pub struct Kept {
    /// The rooms it was in, or about to be in.
    pub rooms: Vec<KeptRoom>,
    /// Its metadata.
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// The locks it holds.
    pub locks: Vec<HeldLock>,
    /// The namespaces of Socket.IO whose rooms are among them, a bit each; 0 where it had none.
    pub namespaces: u32,
}

/// A room that a session was in.
#[derive(Debug)]
pub struct KeptRoom {
    /// The room.
    pub room: RoomName,
    /// What it wanted of it.
    pub selection: Option<Arc<Selection>>,
    /// From where on it has to be given the room's events, where its next connection has no cursor.
    pub from: Since,
    /// The last event it said to have handled.
    pub acked: Option<u64>,
    /// The namespaces of Socket.IO that had subscribed to it, a bit each; 0 where all of its client gets the room's events.
    pub namespaces: u32,
    /// Whether it wanted its events as changes.
    pub delta: bool,
}

impl Kept {
    /// Adds what an earlier connection of the session had and nobody took up. Locks are not looked at. A session is in at
    /// most `rooms_max` rooms, as a connection is, or it would grow with every connection that leaves it without resuming
    /// it; what the later one was in goes first.
    pub fn add_earlier(&mut self, earlier: Kept, rooms_max: usize) {
        self.namespaces = of_either(self.namespaces, earlier.namespaces);
        for before in earlier.rooms {
            let has_place = self.rooms.len() < rooms_max;
            let mut kept = self.rooms.iter_mut().find(|kept| kept.room == before.room);
            if let Some(kept) = &mut kept {
                kept.namespaces = of_either(kept.namespaces, before.namespaces);
            }
            match kept {
                // What the later one did not say to have handled is owed since the earlier one went.
                Some(kept) if kept.acked.is_none() => {
                    kept.from = before.from;
                    kept.acked = before.acked;
                }
                Some(_) => {}
                None if has_place => self.rooms.push(before),
                None => {}
            }
        }
        if self.metadata.is_empty() {
            self.metadata = earlier.metadata;
        }
    }
}

/// Namespaces of the one or the other, where 0 stands for all that there are.
fn of_either(one: u32, other: u32) -> u32 {
    if one == 0 || other == 0 { 0 } else { one | other }
}

/// A session that a connection wants to take up.
#[derive(Debug)]
pub struct Resume {
    /// The session's room.
    pub room: RoomName,
    /// The connection.
    pub address: Address,
    /// Whom it acts for.
    pub identity: Arc<Identity>,
    /// The token from the session's greeting.
    pub token: ResumeToken,
    /// Whether other nodes were asked for it.
    pub was_sought: bool,
    /// What the answer has to be told with.
    pub asked: ResumeAsked,
}

/// What a client said when it resumed; travels along and comes back.
#[derive(Debug, Default)]
pub struct ResumeAsked {
    /// The command's id.
    pub reference: Option<Reference>,
    /// The session's id.
    pub session_id: Box<str>,
    /// The last events that the client has, by room.
    pub cursors: Vec<(Box<str>, Since)>,
    /// Its turn at the session, once the home has given it.
    pub turn: Turn,
    /// What was withdrawn from the session before, once the home has told it.
    pub withdrawn: Option<Withdrawn>,
}

/// What became of a resume.
#[derive(Debug)]
pub struct Resumed {
    /// The connection.
    pub address: Address,
    /// What it said.
    pub asked: ResumeAsked,
    /// What the session had, or why not.
    pub outcome: Result<Kept, Refused>,
}

/// What became of a join.
#[derive(Debug)]
pub struct Joined {
    /// The room.
    pub room: RoomName,
    /// Who.
    pub address: Address,
    /// What is wanted of the room.
    pub selection: Option<Arc<Selection>>,
    /// What the answer is for.
    pub ticket: Ticket,
    /// The room's state, or why not.
    pub outcome: Result<RoomState, JoinRefused>,
    /// Events that come before the live ones, selected already; none where the client did not say from where on.
    pub replay: Option<Vec<Arc<Batch>>>,
    /// The token to resume the session by, where the room is a session's.
    pub resume_token: Option<ResumeToken>,
    /// The turn of the connection that holds the session, where the room is one's.
    pub turn: Turn,
    /// What was withdrawn from that session.
    pub withdrawn: Option<Withdrawn>,
}

/// A slow reader that has read all it had.
#[derive(Debug)]
pub struct CatchUp {
    /// The room.
    pub room: RoomName,
    /// The reader.
    pub address: Address,
    /// Its shard's number of this question.
    pub number: u64,
    /// The last event of the room that it has.
    pub after_seq: u64,
    /// What it wants of the room.
    pub selection: Option<Arc<Selection>>,
    /// How much it can take at a time.
    pub bytes_max: usize,
}

/// What a slow reader missed, or the next part of it.
#[derive(Debug)]
pub struct CaughtUp {
    /// The room.
    pub room: RoomName,
    /// The reader.
    pub address: Address,
    /// The number of the question.
    pub number: u64,
    /// Events and gaps, in order.
    pub pieces: Vec<Piece>,
    /// The last event that was looked at.
    pub to_seq: u64,
    /// Whether live events follow from here on.
    pub complete: bool,
}

/// A part of what a slow reader missed.
#[derive(Debug)]
pub enum Piece {
    /// Events.
    Events(Arc<Batch>),
    /// Events that it won't get.
    Gap {
        /// The first of them.
        from_seq: u64,
        /// The last of them.
        to_seq: u64,
        /// Why.
        reason: &'static str,
        /// The log's epoch, where that is another one than before.
        epoch: Option<u64>,
    },
}

impl Piece {
    /// The last event that it is about.
    pub fn last_seq(&self) -> u64 {
        match self {
            Piece::Events(batch) => batch.events.last().map_or(0, |event| event.seq),
            Piece::Gap { to_seq, .. } => *to_seq,
        }
    }
}

/// A part of a log that a client wants to see.
#[derive(Debug)]
pub struct HistoryAsked {
    /// The room.
    pub room: RoomName,
    /// The client.
    pub address: Address,
    /// What the answer is for.
    pub ticket: Ticket,
    /// From where on (or, in reverse, before what).
    pub since: Option<Since>,
    /// At most so many events.
    pub limit: usize,
    /// Newest first.
    pub reverse: bool,
}

/// The part of a log that a client wanted to see, or who is in a room.
#[derive(Debug)]
pub struct HistoryTold {
    /// The client.
    pub address: Address,
    /// What the answer is for.
    pub ticket: Ticket,
    /// The answer's type.
    pub kind: &'static str,
    /// The answer's data, as JSON.
    pub body: Bytes,
}

/// Why a join was refused by the home.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoinRefused {
    /// The session is another user's.
    SessionOfOther,
    /// Too many connections want the session at once.
    SessionBusy,
    /// This shard has as many rooms as it may.
    Rooms,
    /// The room's state is with the broker, which can't be reached.
    Broker,
}

/// A room's state when someone joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoomState {
    /// The last number given: live events are those after it.
    pub seq: u64,
    /// The log's epoch.
    pub epoch: u64,
    /// Whether all that `since` asked for was there.
    pub recovered: bool,
    /// How many events are replayed.
    pub replayed: u64,
    /// How many were missed; none where that can't be known.
    pub missed: Option<u64>,
}

/// What an answer is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ticket {
    /// A step of the connection's admission.
    Admission,
    /// A command of its own.
    Single(Option<Reference>),
    /// A `send` to one addressee.
    Direct(Option<Reference>),
    /// A `message` for the backend.
    Deposit(Option<Reference>),
    /// One of several parts of a command; the session knows which by the number.
    Part(u32),
}

impl Ticket {
    /// Whether anybody waits to hear of success: a command without an id hears of failures only.
    pub fn is_awaited(&self) -> bool {
        !matches!(self, Ticket::Single(None) | Ticket::Direct(None) | Ticket::Deposit(None))
    }
}

/// An event on its way to its room's home.
#[derive(Debug)]
pub struct Publish {
    /// The room.
    pub room: RoomName,
    /// The event's type.
    pub kind: Box<str>,
    /// The event's data: valid JSON.
    pub data: Bytes,
    /// Idempotency key.
    pub key: Option<Box<str>>,
    /// Who must not get it.
    pub exclude: Option<Address>,
    /// When it was received, in microseconds of the monotonic clock.
    pub received_us: u64,
    /// Who is told of the outcome.
    pub reply: ReplyTo,
}

/// A direct message whose session isn't known yet.
#[derive(Debug)]
pub struct Direct {
    /// The event's type.
    pub kind: Box<str>,
    /// The event's data: valid JSON.
    pub data: Bytes,
    /// Whether it is not looked for at other nodes.
    pub only_here: bool,
    /// Who is told of the outcome.
    pub reply: ReplyTo,
}

/// A message for the backend.
#[derive(Debug)]
pub struct Deposit {
    /// The session's room.
    pub room: RoomName,
    /// The message's data: valid JSON.
    pub data: Bytes,
    /// Whether the backend is told of it by a hook as well.
    pub is_told: bool,
    /// Who is told of the outcome.
    pub reply: ReplyTo,
}

/// Who is told what became of an event.
pub enum ReplyTo {
    /// A client, through its shard.
    Client {
        /// Who.
        address: Address,
        /// What the answer is for.
        ticket: Ticket,
    },
    /// A caller of the hub's handle.
    Handle(Box<dyn FnOnce(Result<Published, Refused>) + Send>),
    /// Nobody.
    Nobody,
}

impl std::fmt::Debug for ReplyTo {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ReplyTo::Client { address, ticket } => write!(formatter, "Client({address:?}, {ticket:?})"),
            ReplyTo::Handle(_) => formatter.write_str("Handle"),
            ReplyTo::Nobody => formatter.write_str("Nobody"),
        }
    }
}

/// An event that got its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// The event's id.
    pub id: [u8; 36],
    /// Its number in the room.
    pub seq: u64,
    /// The log's epoch.
    pub epoch: u64,
    /// Whether it had been published before under the same key.
    pub duplicate: bool,
    /// How many connections it goes to.
    pub delivered: u32,
    /// How many absent sessions it waits for.
    pub queued: u32,
    /// How many other nodes it goes to, each of which counts as one connection in `delivered`.
    pub nodes: u32,
}

impl Published {
    /// The id as text.
    pub fn id(&self) -> &str {
        std::str::from_utf8(&self.id).unwrap_or_default()
    }
}

/// What became of a direct message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct Sent {
    /// Connections it went to.
    pub delivered: u64,
    /// Absent sessions for which it waits.
    pub queued: u64,
}

/// What the hub's handle asks of one connection.
#[derive(Debug)]
pub enum ClientRequest {
    /// Its metadata, after merging an object into it.
    Metadata {
        /// The object to merge; none only reads.
        set: Option<serde_json::Map<String, serde_json::Value>>,
        /// Who is told the whole.
        responder: Responder<serde_json::Value>,
    },
    /// What operators are shown of it.
    View {
        /// Who is told.
        responder: Responder<ConnectionView>,
    },
    /// That it be closed.
    Disconnect {
        /// The close code.
        code: u16,
        /// The close frame's reason.
        reason: Box<str>,
        /// Who is told that it was closed.
        responder: Responder<u32>,
    },
    /// That it show a valid token, or be closed.
    Reauthenticate {
        /// Within so many seconds.
        grace_s: u32,
        /// Who is told that it was asked.
        responder: Responder<u32>,
    },
    /// That permissions be taken away from it.
    Withdraw {
        /// Which, and how.
        withdraw: Withdraw,
        /// Who is told what became of it.
        responder: Responder<Withdrew>,
    },
}

/// Permissions that are to be taken away.
#[derive(Debug, Clone)]
pub struct Withdraw {
    /// Which; `*` stands for one whole part.
    pub permissions: Arc<[Box<str>]>,
    /// Whether connections are closed whatever is left to them.
    pub disconnect: bool,
    /// The close frame's reason, where one is closed.
    pub reason: Box<str>,
}

/// From whom permissions were taken away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct Withdrew {
    /// Connections.
    pub connections: u32,
    /// Those of them that were closed.
    pub closed: u32,
    /// Absent sessions, which go without when they come back.
    pub sessions: u32,
}

impl ClientRequest {
    /// Answers that there is no such connection.
    pub fn refuse(self) {
        let error = HubError::from(NO_CONNECTION);
        match self {
            ClientRequest::Metadata { responder, .. } => responder.resolve(Err(error)),
            ClientRequest::View { responder } => responder.resolve(Err(error)),
            ClientRequest::Disconnect { responder, .. } | ClientRequest::Reauthenticate { responder, .. } => {
                responder.resolve(Err(error));
            }
            ClientRequest::Withdraw { responder, .. } => responder.resolve(Err(error)),
        }
    }
}

/// Which claim was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimKind {
    /// The client id.
    Client,
    /// The network address.
    Peer,
    /// The user's number of connections.
    User,
    /// The client id, over all nodes.
    Cluster,
}

/// Why a claim was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimRefused {
    /// Another connection has the client id.
    Taken,
    /// The other nodes can't be asked.
    Unreachable,
    /// The user has too many connections.
    UserConnections,
    /// Too many connections from there.
    PeerConnections,
    /// Too many new connections per second from there; to be tried again after so long.
    PeerRate {
        /// Milliseconds.
        retry_after_ms: u64,
    },
}

/// The refusal of what is asked of a connection that is not there.
pub const NO_CONNECTION: Refused = Refused::new(ErrorCode::NotFound, "there is no such connection");

/// The refusal of an event that can't be taken on right now.
pub const OVERLOADED: Refused = Refused::new(ErrorCode::Unavailable, "the hub can't keep up right now; try again");

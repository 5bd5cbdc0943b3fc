//! A shard's connections.

use std::net::IpAddr;
use std::sync::Arc;

use smallvec::SmallVec;

use super::form::DeltaRooms;
use super::latency::Followed;
use super::locks::ClientLocks;
use super::polling::Probing;
use super::socketio::{RoomSpaces, SocketIo};
use super::stream::{Opening, Stream};
use super::timers::Alarm;
use crate::auth::Identity;
use crate::control::ConnectionOrigin;
use crate::control::hooks::{Grant, RequestTold};
use crate::control::telemetry::Span;
use crate::hub::message::ResumeToken;
use crate::hub::name::{RoomName, ShardId};
use crate::hub::outbox::Outbox;
use crate::hub::presence::Turn;
use crate::hub::rooms::RoomId;
use crate::hub::selection::Selection;
use crate::ring::{ConnKey, Socket};
use crate::session::ClientId;
use crate::session::handshake::Admit;
use crate::session::heartbeat::Heartbeat;
use crate::session::socketio::{Space, Spaces, Visit};
use crate::session::{Session, SessionId};
use crate::wire::native::{Reference, Since};
use crate::wire::refusal::Refusal;
use crate::wire::ws::Decoder;

/// One socket and what it is to its shard.
#[derive(Debug)]
pub struct Connection {
    /// The socket.
    pub socket: Socket,
    /// What waits to be sent.
    pub outbox: Outbox,
    /// The receiving half of the WebSocket.
    pub decoder: Decoder,
    /// How far it is.
    pub phase: Phase,
    /// What it has beside that where it speaks Socket.IO.
    pub socketio: Option<Box<SocketIo>>,
    /// When bytes came last, in milliseconds of the monotonic clock.
    pub heard_ms: u64,
    /// Whether it could not take something in the present slice of a fan-out: then it takes nothing more of it, since what
    /// it missed is read from the log from there on.
    pub is_behind: bool,
    /// Deliveries to it whose latency is measured.
    pub(super) followed: Followed,
    /// When it is to be looked at.
    pub due_ms: u64,
    /// When the calendar has it looked at, which may be earlier.
    pub alarm: Alarm,
    /// Whether the driver may still report received bytes.
    pub receiving: bool,
    /// Messages that came.
    pub messages_received: u32,
    /// Bytes that came.
    pub received_bytes: u64,
    /// Bytes that were given to the driver.
    pub sent_bytes: u64,
}

/// How far a connection is.
#[derive(Debug)]
pub enum Phase {
    /// The request's head is on its way.
    Head(Box<HeadBuffer>),
    /// The directories are being asked.
    Admission(Box<Admission>),
    /// A WebSocket with the native protocol, or a stream of server-sent events.
    Open(Box<Client>),
    /// A WebSocket that sends back what comes, or a client whose namespaces are all an embedding program's.
    Echo(Box<EchoClient>),
    /// A session of Engine.IO that is in no namespace.
    Lobby,
    /// A WebSocket that is to become the transport of a session that polls.
    Probe(Probing),
    /// On its way to the control plane.
    HandOver(Box<HeadBuffer>),
    /// What is in the outbox is sent, then the connection ends.
    Closing(Closing),
}

/// How far a connection is that ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closing {
    /// Our close frame is sent or on its way. The peer's is waited for before our end is shut: what stands between takes a
    /// shut end for an abrupt one and may cut off the peer before it has read our frame.
    AwaitsClose,
    /// Nothing is expected; our end is shut as soon as the outbox is empty.
    Flushing,
    /// Nothing will be sent any more; the peer's end is waited for.
    Shut,
}

/// A request's head as far as it is there.
#[derive(Debug, Default)]
pub struct HeadBuffer {
    /// What came.
    pub bytes: Vec<u8>,
    /// From where.
    pub origin: ConnectionOrigin,
    /// The shard that it goes to, where that is not the control plane.
    pub to_shard: Option<ShardId>,
    /// Whether a PROXY header is still to come before the request.
    pub proxy_header: bool,
}

/// A connection that waits for the directories' answers.
#[derive(Debug)]
pub struct Admission {
    /// Whether other nodes were asked for its session.
    pub was_sought: bool,
    /// What is asked for.
    pub admit: Admit,
    /// The id it is to have.
    pub client_id: ClientId,
    /// The session it is to have.
    pub session_id: SessionId,
    /// The client's address, if it counts against that address's limits.
    pub peer: Option<IpAddr>,
    /// Answers that are still to come.
    pub waiting: u8,
    /// What its session can be resumed by.
    pub resume_token: ResumeToken,
    /// Its turn at its session.
    pub turn: Turn,
    /// What was granted so far.
    pub granted: Claims,
    /// The rooms that were joined so far.
    pub rooms: RoomList,
    /// What the backend is told where it is asked; none where it is not, or has been.
    pub told: Option<Box<RequestTold>>,
    /// While the backend is being asked. Gone with the connection, which tells that nobody waits any more.
    pub asked: Option<Arc<()>>,
    /// What the backend has granted.
    pub grant: Option<Box<Grant>>,
    /// Its span, where it is traced.
    pub span: Option<Box<Span>>,
    /// The first refusal.
    pub refused: Option<Refusal>,
    /// The stream that it is to be, once its rooms are being joined.
    pub opening: Option<Box<Opening>>,
    /// What the client sent ahead of our answer.
    pub early: Vec<u8>,
    /// Rooms whose events were too many to wait for our answer.
    pub behind: Vec<Lag>,
}

/// The rooms of a connection: four, which is one more than everybody is in, take no memory of their own.
pub type RoomList = SmallVec<[RoomId; 4]>;

/// What a connection holds in the directories, and has to give back.
#[derive(Debug, Clone, Copy, Default)]
pub struct Claims {
    /// One of its address's connections.
    pub peer: bool,
    /// Its client id.
    pub client: bool,
    /// The same, over all nodes.
    pub cluster: bool,
    /// One of its user's connections.
    pub user: bool,
    /// Its session.
    pub session: bool,
}

/// A client of the native protocol.
#[derive(Debug)]
pub struct Client {
    /// Its state.
    pub session: Session,
    /// The rooms it is in.
    pub rooms: RoomList,
    /// Whether it still lives.
    pub heartbeat: Heartbeat,
    /// The address that counts it.
    pub peer: Option<IpAddr>,
    /// What it holds.
    pub claims: Claims,
    /// What proves that it had its session.
    pub resume_token: ResumeToken,
    /// Its turn at its session.
    pub turn: Turn,
    /// The last events that it says to have handled, by room.
    pub acks: Option<Box<Acks>>,
    /// When it was let in, in milliseconds of the monotonic clock.
    pub opened_ms: u64,
    /// Whether another connection has taken up what it had.
    pub is_succeeded: bool,
    /// Commands under way; most of the time there are none.
    pub under_way: Option<Box<UnderWay>>,
}

/// The last event of each room that a client says to have handled.
#[derive(Debug, Default)]
pub struct Acks(pub Vec<(RoomId, u64)>);

/// A client of `/echo`.
#[derive(Debug)]
pub struct EchoClient {
    /// Whether it still lives.
    pub heartbeat: Heartbeat,
    /// The address that counts it.
    pub peer: Option<IpAddr>,
    /// What it holds.
    pub claims: Claims,
    /// For whom it counts.
    pub identity: Arc<Identity>,
}

/// Commands that wait for other shards.
#[derive(Debug, Default)]
pub struct UnderWay {
    /// Joins and leaves in the order they were sent to their homes.
    pub memberships: Vec<Membership>,
    /// Commands with several parts.
    pub gathers: Vec<Gather>,
    /// Rooms whose events it can't take at the moment.
    pub lags: Vec<Lag>,
    /// How far it is in its rooms, where it is a stream: that stays under way until it ends.
    pub stream: Option<Stream>,
    /// Which of its namespaces have subscribed to which room, where it is in several of Socket.IO; likewise.
    pub spaces: Option<RoomSpaces>,
    /// The rooms of which it wants events as changes; likewise.
    pub deltas: DeltaRooms,
    /// The locks that its session holds; likewise, until the last of them ends.
    pub locks: Option<Box<ClientLocks>>,
}

/// A join or a leave that is under way.
#[derive(Debug)]
pub struct Membership {
    /// The room.
    pub room: RoomName,
    /// What is wanted of it; none for a leave.
    pub join: Option<Wish>,
    /// The namespace that asked for it; none where clients have no namespaces, or the hub does it by itself.
    pub by: Option<(Space, Visit)>,
}

/// What a connection wants of a room that it joins.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// Which of its events.
    pub selection: Option<Arc<Selection>>,
    /// From where on.
    pub since: Option<Since>,
    /// The last event that its session said to have handled.
    pub acked: Option<u64>,
    /// The namespaces of Socket.IO that its session had subscribed with; none where all of a client gets the room's events,
    /// or they will be known by who asked.
    pub namespaces: Option<Spaces>,
    /// Whether it wants events as changes.
    pub delta: bool,
}

impl Membership {
    /// Whether it is a join.
    pub fn joins(&self) -> bool {
        self.join.is_some()
    }
}

/// A room whose events a slow reader reads on from the log.
#[derive(Debug)]
pub struct Lag {
    /// The room.
    pub room: RoomId,
    /// The last of its events that the reader has, or has in its outbox.
    pub after_seq: u64,
    /// What is being waited for.
    pub waits: LagWaits,
}

/// What a lag waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LagWaits {
    /// The outbox to be empty.
    Outbox,
    /// The room's home, to answer the question with that number.
    Home(u64),
    /// The answer to a command with several parts, which has to come first.
    Answer(u32),
    /// The same, where nothing else has to come before the live events.
    AnswerOnly(u32),
}

impl UnderWay {
    fn is_idle(&self) -> bool {
        let lasting = self.stream.is_some() || self.spaces.is_some() || !self.deltas.is_empty() || self.locks.is_some();
        self.memberships.is_empty() && self.gathers.is_empty() && self.lags.is_empty() && !lasting
    }
}

/// A command with several parts, whose answer is sent when all are there.
#[derive(Debug)]
pub struct Gather {
    /// The number that its parts carry.
    pub part: u32,
    /// The command's id.
    pub reference: Option<Reference>,
    /// Parts that are still to come.
    pub waiting: u32,
    /// What the answer will be.
    pub kind: GatherKind,
}

/// The commands that have several parts.
#[derive(Debug)]
pub enum GatherKind {
    /// `subscribe` with `rooms`; the results so far, as JSON.
    Subscribe(Vec<u8>),
    /// `unsubscribe` with `rooms`; likewise.
    Unsubscribe(Vec<u8>),
    /// `resume`; likewise.
    Resume(Vec<u8>),
    /// `send` to several sessions.
    Send {
        /// Connections reached.
        delivered: u64,
        /// Absent sessions for which it waits.
        queued: u64,
    },
}

/// Commands with several parts that may be under way per connection.
pub const GATHERS_MAX: usize = 16;

impl Client {
    /// The commands under way, to be changed.
    pub fn under_way(&mut self) -> &mut UnderWay {
        self.under_way.get_or_insert_default()
    }

    /// All events of a room up to one are handled. Cumulative: an older one that comes late takes nothing back.
    pub fn acked(&mut self, room: RoomId, seq: u64) {
        let acks = &mut self.acks.get_or_insert_default().0;
        match acks.iter_mut().find(|(one, _)| *one == room) {
            Some((_, last)) => *last = seq.max(*last),
            None => acks.push((room, seq)),
        }
    }

    /// Nothing of a room's log is handled.
    pub fn forget_ack(&mut self, room: RoomId) {
        if let Some(acks) = self.acks.as_mut() {
            acks.0.retain(|(one, _)| *one != room);
        }
    }

    /// Whether it lags in some room.
    pub fn has_lag(&self) -> bool {
        self.under_way.as_ref().is_some_and(|all| !all.lags.is_empty())
    }

    /// Forgets what a room was to it, because it is no member any more.
    pub fn forget_room(&mut self, room: RoomId) {
        self.rooms.retain(|one| *one != room);
        self.forget_ack(room);
        if let Some(stream) = self.stream_mut() {
            stream.forget_room(room);
        }
        if let Some(spaces) = self.under_way.as_mut().and_then(|all| all.spaces.as_mut()) {
            spaces.forget(room);
        }
        self.forget_deltas(room);
        self.forget_lag(room);
    }

    /// Whether it lags in a room.
    pub fn lags_in(&self, room: RoomId) -> bool {
        self.owed_after(room).is_some()
    }

    /// The last event before those that it is still to be given of a room it lags in; none where it lags not.
    pub fn owed_after(&self, room: RoomId) -> Option<u64> {
        self.under_way.as_ref()?.lags.iter().find(|lag| lag.room == room).map(|lag| lag.after_seq)
    }

    /// Forgets that it lags in a room, because it is no member any more; says which of its events was the last it got.
    pub fn forget_lag(&mut self, room: RoomId) -> Option<u64> {
        let lags = &mut self.under_way.as_mut()?.lags;
        let place = lags.iter().position(|lag| lag.room == room)?;
        let lag = lags.remove(place);
        self.tidy();
        Some(lag.after_seq)
    }

    /// Lets go of the memory when nothing is under way any more.
    pub fn tidy(&mut self) {
        if self.under_way.as_ref().is_some_and(|all| all.is_idle()) {
            self.under_way = None;
        }
    }
}

/// The table of connections.
#[derive(Debug, Default)]
pub struct Connections {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    connection: Option<Connection>,
}

/// What the id of a session takes, with its counters and the allocator's share; that of a client is in its state, or, where it
/// is longer than those that a hub gives, about as much again.
const IDS_BYTES: usize = 48;

/// Generations are 24 bits wide in the driver's tokens.
const GENERATION_MASK: u32 = 0xff_ffff;

impl Connections {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// About how much memory they take, in bytes: the table, and the clients behind it. Outboxes are not in it, nor what
    /// several of them share.
    pub fn memory_bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Slot>() + self.len() * (size_of::<Client>() + IDS_BYTES)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a connection.
    pub fn insert(&mut self, connection: Connection) -> ConnKey {
        if let Some(slot) = self.free.pop()
            && let Some(place) = self.slots.get_mut(slot as usize)
        {
            place.connection = Some(connection);
            return ConnKey { slot, generation: place.generation };
        }
        self.slots.push(Slot { generation: 0, connection: Some(connection) });
        ConnKey { slot: (self.slots.len() - 1) as u32, generation: 0 }
    }

    /// A connection, if that key still names one.
    pub fn get(&self, key: ConnKey) -> Option<&Connection> {
        let slot = self.slots.get(key.slot as usize)?;
        if slot.generation == key.generation { slot.connection.as_ref() } else { None }
    }

    /// A connection, to be changed.
    #[inline]
    pub fn get_mut(&mut self, key: ConnKey) -> Option<&mut Connection> {
        let slot = self.slots.get_mut(key.slot as usize)?;
        if slot.generation == key.generation { slot.connection.as_mut() } else { None }
    }

    /// Takes a connection out; its key names nothing from here on.
    pub fn remove(&mut self, key: ConnKey) -> Option<Connection> {
        let slot = self.slots.get_mut(key.slot as usize)?;
        if slot.generation != key.generation {
            return None;
        }
        let connection = slot.connection.take()?;
        slot.generation = (slot.generation + 1) & GENERATION_MASK;
        self.free.push(key.slot);
        Some(connection)
    }

    /// The keys of all connections.
    pub fn keys(&self) -> Vec<ConnKey> {
        let used = self.slots.iter().enumerate().filter(|(_, slot)| slot.connection.is_some());
        used.map(|(slot, place)| ConnKey { slot: slot as u32, generation: place.generation }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection() -> Connection {
        Connection {
            socket: Socket::NONE,
            outbox: Outbox::default(),
            decoder: Decoder::new(),
            phase: Phase::Closing(Closing::Flushing),
            socketio: None,
            heard_ms: 0,
            is_behind: false,
            followed: Followed::default(),
            due_ms: 0,
            alarm: Alarm::default(),
            receiving: false,
            messages_received: 0,
            received_bytes: 0,
            sent_bytes: 0,
        }
    }

    #[test]
    fn an_old_key_does_not_name_the_slots_next_owner() {
        let mut connections = Connections::default();
        let first = connections.insert(connection());
        assert!(connections.remove(first).is_some());
        assert!(connections.remove(first).is_none());
        let second = connections.insert(connection());
        assert_eq!(second.slot, first.slot);
        assert!(connections.get(first).is_none());
        assert!(connections.get_mut(second).is_some());
        assert_eq!(connections.keys(), [second]);
    }

    #[test]
    fn an_idle_connection_is_small() {
        assert!(size_of::<Slot>() <= 104, "{}", size_of::<Slot>());
        assert!(size_of::<Client>() <= 184, "{}", size_of::<Client>());
    }
}

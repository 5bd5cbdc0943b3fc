//! Everything of a shard but its driver: what came in is handled here, and what is to be done with sockets comes out as
//! [`Action`]s and dirty outboxes.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::Settings;
use super::connection::{Closing, Connection, Connections, HeadBuffer, Phase};
use super::deflating::{DeflateRules, Deflating};
use super::latency::{Followed, Latency};
use super::mesh::Mesh;
use super::report::Ending;
use super::time::Drain;
use super::timers::{Alarm, Timers};
use crate::broker::link as broker;
use crate::broker::nodes::Handle;
use crate::control::figures::Figures;
use crate::control::hooks::ShardHooks;
use crate::control::journal::Link;
use crate::control::store::Ledger;
use crate::control::{ConnectionOrigin, Inbox};
use crate::hub::batch::{Address, FrameMemory};
use crate::hub::core::{Core, CoreLimits};
use crate::hub::message::Message;
use crate::hub::name::{NameHasher, ShardId};
use crate::hub::outbox::Protocol;
use crate::hub::recorder::What;
use crate::hub::rooms::RoomId;
use crate::hub::rules::Rules;
use crate::hub::stored::StoredRoom;
use crate::ring::{ConnKey, Now, Socket};
use crate::session::ClientId;
use crate::wire::deflate::{Inflater, Window};
use crate::wire::json::Scratch;

/// Where unguessable bytes come from: the system's generator for real, a seed in the simulation.
pub struct Entropy(pub Fill);

type Fill = Box<dyn FnMut(&mut [u8]) + Send>;

impl fmt::Debug for Entropy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Entropy")
    }
}

/// What a shard is started with.
#[derive(Debug)]
pub struct Start {
    /// Which shard this is.
    pub me: ShardId,
    /// The queues between the threads.
    pub mesh: Arc<Mesh>,
    /// What to go by.
    pub settings: Arc<Settings>,
    /// Where it counts.
    pub figures: Arc<Figures>,
    /// Where requests go that are no upgrade; none where there is no control plane.
    pub inbox: Option<Inbox>,
    /// Where connections are reported; none where no history is kept of them.
    pub ledger: Option<Arc<Ledger>>,
    /// Where the backend is told and asked.
    pub hooks: ShardHooks,
    /// Hashes names; the same on all shards.
    pub hasher: NameHasher,
    /// Seeds the ids; different on every shard.
    pub seed: [u64; 2],
    /// Unguessable bytes.
    pub entropy: Entropy,
    /// The way to the journal, and the rooms at home here that it has already; none where there is no journal.
    pub journal: Option<(Link, Vec<StoredRoom>)>,
    /// The way to the broker, and what stands there for this run of the node; none where there is no broker.
    pub broker: Option<(broker::Link, u64)>,
    /// The other nodes; none where there is no broker.
    pub nodes: Option<Handle>,
}

/// What is to be done with a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Receive from it.
    Receive(ConnKey, Socket),
    /// Receive no more, because it goes to the control plane.
    CancelReceive(ConnKey, Socket),
    /// Say that no more will be sent.
    Shutdown(Socket),
    /// Close it; its connection is gone already.
    Close(ConnKey, Socket),
    /// Give it to the control plane, or to another shard.
    HandOver(ConnKey),
    /// Give one connection's socket to another, which goes on with it.
    Move { from: ConnKey, to: ConnKey },
    /// Close the listeners.
    StopListening,
}

pub(super) struct State {
    pub me: ShardId,
    pub mesh: Arc<Mesh>,
    pub settings: Arc<Settings>,
    pub figures: Arc<Figures>,
    pub inbox: Option<Inbox>,
    pub journal: Option<Link>,
    pub broker: Option<broker::Link>,
    pub nodes: Option<Handle>,
    pub ledger: Option<Arc<Ledger>>,
    pub hooks: ShardHooks,
    pub core: Core,
    pub connections: Connections,
    pub timers: Timers,
    pub scratch: Option<Box<Scratch>>,
    /// The working memory in which messages of MessagePack become JSON.
    pub(super) unpacked: Vec<u8>,
    /// Where payloads of answers are put together.
    pub payload: Vec<u8>,
    /// What is compressed of what is sent.
    pub deflating: Deflating,
    /// Decompresses what comes; made when something compressed comes first.
    pub inflater: Option<Box<Inflater>>,
    /// What is kept of what clients have sent whose messages are compressed and may refer to those before. Here and not with each
    /// connection, since few have one.
    pub windows: hashbrown::HashMap<ConnKey, Window>,
    /// Events encoded otherwise than as native frames, as far as they are still alive.
    pub variant_memory: FrameMemory,
    /// Sessions of Engine.IO that are polled, or were so once, by id.
    pub engines: hashbrown::HashMap<Box<str>, ConnKey>,
    pub dirty: Vec<ConnKey>,
    /// Connections that could not take a batch, the room it was of, and the last event before it.
    pub slow: Vec<(ConnKey, RoomId, u64)>,
    pub actions: Vec<Action>,
    draining_local: bool,
    /// Connections that hold a place and are not open yet.
    pub admissions: usize,
    pub entropy: Entropy,
    pub now: Now,
    pub drain: Option<Drain>,
    pub stopping: bool,
    /// When old events were looked for last.
    pub swept_ms: u64,
    /// Whether another shard could not take all that is for it.
    pub has_backlog: bool,
    /// Connections that went while directories were being asked for them; what is granted late is given back.
    pub orphans: Vec<Orphan>,
    /// The number of the last question to a home about what a slow reader missed.
    pub catch_ups: u64,
    /// The number that the last command with several parts has.
    pub last_part: u32,
    pub latency: Latency,
    /// Connections with a chunk at the driver.
    pub sending: usize,
}

/// What a connection had asked for when it went.
#[derive(Debug)]
pub(super) struct Orphan {
    pub conn: ConnKey,
    pub peer: Option<IpAddr>,
    pub client_id: ClientId,
    pub user_id: Arc<str>,
    /// Answers that are still to come.
    pub waiting: u8,
}

impl State {
    pub fn new(start: Start, now: Now) -> State {
        let Start { me, mesh, settings, figures, inbox, ledger, hooks, hasher, seed, entropy, .. } = start;
        let Start { journal, broker, nodes, .. } = start;
        let rules = Rules::new(&settings.config);
        let mut core = Core::new(me, mesh.shards(), hasher, seed, CoreLimits::new(&settings.config), rules);
        let journal = journal.map(|(link, rooms)| {
            core.begin_journaling(link.progress(me), rooms, now);
            link
        });
        let broker = broker.map(|(link, node)| {
            core.begin_relaying(node);
            link
        });
        let deflating = Deflating::new(DeflateRules::new(&settings.config));
        State {
            me,
            mesh,
            figures,
            inbox,
            journal,
            broker,
            nodes,
            ledger,
            hooks,
            core,
            connections: Connections::default(),
            timers: Timers::default(),
            scratch: Some(Box::new(Scratch::new(settings.config.limits.depth_max))),
            unpacked: Vec::new(),
            settings,
            payload: Vec::new(),
            deflating,
            inflater: None,
            windows: hashbrown::HashMap::new(),
            variant_memory: FrameMemory::default(),
            engines: hashbrown::HashMap::new(),
            dirty: Vec::new(),
            slow: Vec::new(),
            actions: Vec::new(),
            draining_local: false,
            admissions: 0,
            entropy,
            now,
            drain: None,
            stopping: false,
            swept_ms: 0,
            has_backlog: false,
            orphans: Vec::new(),
            catch_ups: 0,
            last_part: 0,
            latency: Latency::default(),
            sending: 0,
        }
    }

    pub fn now_ms(&self) -> u64 {
        self.now.monotonic_us / 1000
    }

    pub fn address(&self, conn: ConnKey) -> Address {
        Address { shard: self.me, conn }
    }

    /// Handles messages of this shard to itself, so that a client's commands to rooms at home here are done in order.
    ///
    /// A message may let a connection in whose first commands came along, which ends here again: the outer call goes on.
    pub fn drain_local(&mut self) {
        if std::mem::replace(&mut self.draining_local, true) {
            return;
        }
        while let Some(message) = self.core.next_local() {
            self.message(message);
        }
        self.draining_local = false;
    }

    /// Handles one message from any shard.
    pub fn message(&mut self, message: Message) {
        let now = self.now;
        if let Some(message) = self.core.handle(message, now) {
            self.member_message(message);
        }
    }

    // ---- sockets ----

    /// A new socket, from a listener or from the control plane with the bytes it has read.
    pub fn opened(&mut self, socket: Socket, origin: ConnectionOrigin, received: &mut [u8]) {
        let config = &self.settings.config;
        let trusted = config.listen.trusted_proxies.trusts(origin.peer.map(|peer| peer.ip()));
        let head = HeadBuffer {
            bytes: Vec::new(),
            origin,
            to_shard: None,
            proxy_header: config.listen.proxy_protocol && trusted && received.is_empty(),
        };
        let due_ms = self.now_ms() + config.limits.handshake_s * 1000;
        let connection = self.connection(socket, Phase::Head(Box::new(head)));
        let conn = self.connections.insert(Connection { due_ms, ..connection });
        self.actions.push(Action::Receive(conn, socket));
        if let Some(connection) = self.connections.get_mut(conn) {
            self.timers.schedule(conn, &mut connection.alarm, due_ms);
        }
        if !received.is_empty() {
            self.received(conn, received);
        }
    }

    /// A connection as it begins.
    pub(super) fn connection(&self, socket: Socket, phase: Phase) -> Connection {
        Connection {
            socket,
            outbox: Default::default(),
            decoder: Default::default(),
            phase,
            socketio: None,
            heard_ms: self.now_ms(),
            is_behind: false,
            followed: Followed::default(),
            due_ms: u64::MAX,
            alarm: Alarm::default(),
            receiving: !socket.is_none(),
            messages_received: 0,
            received_bytes: 0,
            sent_bytes: 0,
        }
    }

    /// Whether the table takes one more socket: upgraded connections have their own limit, this one bounds handshakes.
    pub fn has_room(&self) -> bool {
        let connections_max = self.settings.config.limits.connections_per_shard_max;
        self.connections.len() < connections_max + HANDSHAKES_MAX && self.drain.is_none()
    }

    /// Bytes came.
    pub fn received(&mut self, conn: ConnKey, bytes: &mut [u8]) {
        let now_ms = self.now_ms();
        let Some(connection) = self.connections.get_mut(conn) else { return };
        connection.heard_ms = now_ms;
        connection.received_bytes += bytes.len() as u64;
        self.figures.bytes_received.add(bytes.len() as u64);
        match &mut connection.phase {
            Phase::Open(_) if connection.outbox.protocol() == Protocol::Stream => self.ignore(conn),
            Phase::Open(_) | Phase::Echo(_) | Phase::Lobby | Phase::Probe(_) => self.frames(conn, bytes),
            Phase::Admission(_) if connection.socketio.is_some() => self.frames(conn, bytes),
            Phase::Head(_) => self.head(conn, bytes),
            Phase::Admission(admission) => {
                admission.early.extend_from_slice(bytes);
                if admission.early.len() > EARLY_BYTES_MAX {
                    self.abandon(conn);
                }
            }
            Phase::HandOver(head) => {
                head.bytes.extend_from_slice(bytes);
                if head.bytes.len() > HAND_OVER_BYTES_MAX {
                    self.abandon(conn);
                }
            }
            Phase::Closing(Closing::AwaitsClose) => self.frames(conn, bytes),
            // What the peer still had on its way when we closed.
            Phase::Closing(_) => {}
        }
    }

    /// Nothing more will come.
    pub fn receive_ended(&mut self, conn: ConnKey, cancelled: bool) {
        let Some(connection) = self.connections.get_mut(conn) else { return };
        connection.receiving = false;
        match connection.phase {
            Phase::HandOver(_) => self.actions.push(Action::HandOver(conn)),
            Phase::Probe(_) => self.probe_receive_ended(conn, cancelled),
            // Cancelled receives belong to hand-overs only.
            _ if cancelled => {}
            Phase::Open(_) if connection.outbox.protocol() == Protocol::Stream => self.stream_ended(conn),
            Phase::Open(_) | Phase::Echo(_) => {
                self.figures.closes.add("abnormal");
                self.abandon(conn);
            }
            // It may have half-closed, and still wants to read our last words.
            Phase::Closing(Closing::AwaitsClose) => self.flush_and_shut(conn),
            Phase::Closing(Closing::Flushing) => {}
            _ => self.abandon(conn),
        }
    }

    /// A chunk was sent, or the socket failed.
    pub fn sent(&mut self, conn: ConnKey, error: i32) {
        let Some(connection) = self.connections.get_mut(conn) else { return };
        if error != 0 {
            match connection.phase {
                Phase::Probe(_) => return self.probe_lost(conn),
                Phase::Open(_) | Phase::Echo(_) => self.figures.closes.add("abnormal"),
                _ => {}
            }
            self.abandon(conn);
            return;
        }
        self.sending = self.sending.saturating_sub(1);
        connection.outbox.sent();
        if connection.outbox.protocol() == Protocol::Stream {
            // It says nothing: that it takes something is all the life that can be seen of it.
            connection.heard_ms = self.now.monotonic_us / 1000;
        }
        if !connection.followed.is_none() {
            self.latency.sent(&mut connection.followed, self.now.monotonic_us, &self.figures.latency);
        }
        if connection.outbox.is_empty() && connection.outbox.note_stalled(false) {
            self.core.recorder.traffic(conn, What::Drained);
        }
        let has_drained = connection.outbox.events_bytes() == 0;
        // The client is looked at only where it has to be: it lies elsewhere in memory.
        if connection.outbox.may_lag()
            && (has_drained || self.core.rules().has_urgent())
            && let Phase::Open(client) = &connection.phase
        {
            let has_lag = client.has_lag();
            connection.outbox.note_lag(has_lag);
            if has_lag {
                if has_drained {
                    self.ask_to_catch_up(conn);
                } else {
                    self.ask_for_urgent(conn);
                }
                self.drain_local();
            }
        }
        let Some(connection) = self.connections.get_mut(conn) else { return };
        if !connection.outbox.is_empty() {
            if connection.outbox.mark_dirty() {
                self.dirty.push(conn);
            }
            return;
        }
        match connection.phase {
            Phase::Closing(Closing::Flushing) => self.shut(conn),
            Phase::Probe(_) => self.move_when_idle(conn),
            _ => {}
        }
    }

    /// Nothing more is expected of a connection that ends: it is shut as soon as its outbox is empty.
    pub fn flush_and_shut(&mut self, conn: ConnKey) {
        let Some(connection) = self.connections.get_mut(conn) else { return };
        connection.phase = Phase::Closing(Closing::Flushing);
        connection.decoder = Default::default();
        if connection.outbox.is_empty() {
            self.shut(conn);
        }
    }

    pub(super) fn shut(&mut self, conn: ConnKey) {
        let due_ms = self.now_ms() + self.settings.config.limits.close_wait_s * 1000;
        let Some(connection) = self.connections.get_mut(conn) else { return };
        if !connection.receiving {
            self.abandon(conn);
            return;
        }
        connection.phase = Phase::Closing(Closing::Shut);
        // The peer's end is waited for, so that what it still sends does not reset the connection before it has read
        // our last bytes (RFC 6455 §7.1.1).
        self.actions.push(Action::Shutdown(connection.socket));
        connection.due_ms = due_ms;
        self.timers.schedule(conn, &mut connection.alarm, due_ms);
    }

    /// Gives a connection up at once: its memberships and claims are given back, its socket is closed.
    pub fn abandon(&mut self, conn: ConnKey) {
        self.release(conn, Ending::LOST);
        if let Some(Phase::Probe(probing)) = self.connections.get(conn).map(|connection| &connection.phase) {
            self.probe_ended(*probing);
        }
        if let Some(mut connection) = self.connections.remove(conn) {
            self.forget_polled(&mut connection);
            self.forget_deflate(conn, &connection);
            self.sending = self.sending.saturating_sub(usize::from(connection.outbox.is_sending()));
            self.latency.forget(&mut connection.followed);
            self.core.recorder.traffic(conn, What::Closed);
            if !connection.socket.is_none() {
                self.actions.push(Action::Close(conn, connection.socket));
            }
        }
    }
}

/// Sockets a shard holds beside its upgraded connections.
const HANDSHAKES_MAX: usize = 1024;
/// What a request's body may bring until its receive is cancelled, which takes a turn: as much as the ring's buffers hold,
/// and what was received while those were looked at.
const HAND_OVER_BYTES_MAX: usize = 16 << 20;
/// What a client may send ahead of our answer.
const EARLY_BYTES_MAX: usize = 256 * 1024;

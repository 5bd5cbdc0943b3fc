//! A shard's core: the rooms it is home to, the members it has, and the fan-out between them.
//!
//! Pure: messages and the time come in, messages for other shards and deliveries for this shard's connections go out.
//! What is done with an event stands in `publish` and `fan_out`, what is kept of it in `history`. Larger than most files
//! because every message that a home gets is taken here.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::batch::{Address, FrameMemory};
use super::directory::{Directory, PeerLimits};
use super::durable::{Durable, Journaling};
use super::fan_out::Job;
use super::ids::Ids;
use super::linger::Lingering;
use super::locks::LockDesk;
use super::message::{
    ClaimKind, ClientRequest, Deposit, Direct, Join, JoinClaim, JoinRefused, Joined, Message, OVERLOADED, Publish,
    Published, ReplyTo,
};
use super::moved::Yielding;
use super::name::{NameHasher, RoomName, ShardId, home_of};
use super::outbox::Lane;
use super::presence::{Presenting, Who};
use super::recorder::{Recorder, RecorderLimits};
use super::relaying::Relaying;
use super::reply::Responder;
use super::resume::{Begins, Handover};
use super::rooms::{Home, Room, RoomId, Rooms};
use super::rules::Rules;
use super::session_home::SessionHome;
use crate::config::Config;
use crate::ring::Now;
use crate::wire::codes::ErrorCode;
use crate::wire::json::Scratch;
use crate::wire::native::Refused;

/// What of the configuration the core goes by.
#[derive(Debug, Clone, Copy)]
pub struct CoreLimits {
    /// Rooms in one shard's table.
    pub rooms_max: usize,
    /// Field locks per room.
    pub locks_per_room_max: usize,
    /// Rooms of one session.
    pub rooms_per_session_max: usize,
    /// Field locks per session.
    pub locks_per_session_max: usize,
    /// Different selections per room and shard.
    pub selections_max: usize,
    /// Messages that may wait for one other shard before publishes to it are refused.
    pub backlog_max: usize,
    /// Messages in one session's inbox.
    pub inbox_max: usize,
    /// How long the inbox of a session without a connection is kept.
    pub session_away_ms: u64,
    /// Nesting of published data, for filters.
    pub depth_max: usize,
    /// Bytes of all logs.
    pub log_bytes_max: usize,
    /// Bytes of events that may wait for the journal.
    pub journal_pending_bytes_max: usize,
    /// Bytes of events that may wait for the broker.
    pub broker_pending_bytes_max: usize,
    /// Connections of one user; 0 is no limit.
    pub connections_per_user_max: u32,
    /// Per network address.
    pub peer: PeerLimits,
    /// What the flight recorder keeps.
    pub recorder: RecorderLimits,
}

impl CoreLimits {
    /// The limits of a configuration.
    pub fn new(config: &Config) -> CoreLimits {
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        CoreLimits {
            rooms_max: config.limits.rooms_per_shard_max,
            locks_per_room_max: config.limits.locks_per_room_max,
            rooms_per_session_max: config.limits.rooms_max,
            locks_per_session_max: config.limits.locks_per_session_max,
            selections_max: config.limits.filters_per_room_max,
            backlog_max: config.mesh.backlog_max as usize,
            inbox_max: config.session.queue_max as usize,
            session_away_ms: config.session.resume_window_s * 1000,
            depth_max: config.limits.depth_max,
            log_bytes_max: config.history.shard_bytes_max,
            journal_pending_bytes_max: config.journal.pending_bytes_max,
            broker_pending_bytes_max: config.broker.pending_bytes_max,
            connections_per_user_max: count(config.limits.connections_per_user_max),
            peer: PeerLimits {
                connections_max: count(config.limits.connections_per_address_max),
                connects_per_s: config.limits.connects_per_s,
            },
            recorder: RecorderLimits {
                records: config.recorder.records,
                payload_bytes: config.recorder.payload_bytes,
                keep_ms: config.recorder.keep_minutes * 60_000,
            },
        }
    }
}

/// Counters of the core; only ever grow.
#[derive(Debug, Clone, Copy, Default)]
pub struct CoreFigures {
    /// Events that got a number here.
    pub publishes: u64,
    /// Events handed to connections of this shard.
    pub deliveries: u64,
    /// Messages sent to other shards.
    pub mesh_sent: u64,
    /// Publishes answered from their key.
    pub duplicates: u64,
    /// Logs that had to give way because all together were beyond their bound.
    pub logs_evicted: u64,
    /// Times that a session was forgotten in a room before its time, because too many were away.
    pub presence_forgotten: u64,
}

/// Events that got a number, by their room's kind. Its place is that of the kind's rules; the last is for rooms whose kind
/// is not configured any more.
#[derive(Debug, Default)]
pub(super) struct KindPublishes(Vec<u64>);

impl KindPublishes {
    fn new(rules: &Rules) -> KindPublishes {
        KindPublishes(vec![0; rules.len() + 1])
    }

    #[inline]
    pub(super) fn add(&mut self, rules: u16) {
        let place = usize::from(rules).min(self.0.len().saturating_sub(1));
        if let Some(count) = self.0.get_mut(place) {
            *count += 1;
        }
    }
}

/// Stands for kinds that are not configured any more.
const OTHER_KIND: &str = "other";
/// Calls of `receive` that may wait for one session.
const WAITING_MAX: usize = 16;

/// A shard's core.
pub struct Core {
    pub(super) me: ShardId,
    pub(super) shards: u16,
    pub(super) hasher: NameHasher,
    pub(super) limits: CoreLimits,
    pub(super) rules: Rules,
    pub(super) rooms: Rooms,
    pub(super) log_bytes: usize,
    /// Where the search for logs that can go stands, and the sweep for old events.
    pub(super) hand: u32,
    pub(super) swept: u32,
    /// When the last message was handled.
    pub(super) now: Now,
    pub(super) locks: LockDesk,
    pub(super) directory: Directory,
    /// Rooms with an open batch.
    pub(super) unsealed: Vec<RoomId>,
    pub(super) jobs: VecDeque<Job>,
    /// What waits for the journal; none where there is no journal.
    pub(super) journaling: Option<Box<Journaling>>,
    /// What waits for the broker; none where the homes number events themselves.
    pub(super) relaying: Option<Box<Relaying>>,
    /// Sessions that left something in their inboxes, and until when it is kept.
    pub(super) away: VecDeque<(u64, RoomName)>,
    pub(super) lingering: Lingering,
    /// Sessions that are on their way from one connection to another.
    pub(super) handovers: HashMap<RoomName, Handover, FixedState>,
    /// Sessions that go to other nodes as soon as their locks have left.
    pub(super) yielding: HashMap<RoomName, Yielding, FixedState>,
    /// Who has come into rooms or gone, with what members are told of it, where other nodes are asked first.
    pub(super) presence_out: Vec<(RoomName, Arc<str>, Bytes, Presenting)>,
    /// Until when something is known of sessions that left rooms.
    pub(super) presence_away: VecDeque<(u64, RoomName, Arc<Who>)>,
    pub(super) ids: Ids,
    pub(super) scratch: Scratch,
    pub(super) memory: FrameMemory,
    pub(super) local: VecDeque<Message>,
    pub(super) outgoing: Vec<Vec<Message>>,
    pub(super) figures: CoreFigures,
    pub(super) kind_publishes: KindPublishes,
    /// Rooms that have their first member (true) or none any more since this was taken last, where that is told.
    pub(super) occupancy: Vec<(RoomName, bool)>,
    /// When the publish that is being handled was received, in microseconds of the monotonic clock; 0 is now.
    pub(super) received_us: u64,
    /// What happened lately.
    pub recorder: Recorder,
}

impl Core {
    /// The core of shard `me` of `shards`; all shards of a node share the seed of `hasher`.
    pub fn new(me: ShardId, shards: u16, hasher: NameHasher, seed: [u64; 2], limits: CoreLimits, rules: Rules) -> Core {
        let kind_publishes = KindPublishes::new(&rules);
        Core {
            me,
            shards,
            hasher,
            limits,
            rules,
            rooms: Rooms::default(),
            log_bytes: 0,
            hand: 0,
            swept: 0,
            now: Now::default(),
            locks: LockDesk::default(),
            directory: Directory::new(seed[0]),
            unsealed: Vec::new(),
            jobs: VecDeque::new(),
            journaling: None,
            relaying: None,
            away: VecDeque::new(),
            lingering: Lingering::default(),
            handovers: HashMap::with_hasher(FixedState::with_seed(seed[0])),
            yielding: HashMap::with_hasher(FixedState::with_seed(seed[0])),
            presence_out: Vec::new(),
            presence_away: VecDeque::new(),
            ids: Ids::new(seed),
            scratch: Scratch::new(limits.depth_max),
            memory: FrameMemory::default(),
            local: VecDeque::new(),
            outgoing: (0..shards).map(|_| Vec::new()).collect(),
            figures: CoreFigures::default(),
            kind_publishes,
            occupancy: Vec::new(),
            received_us: 0,
            recorder: Recorder::new(limits.recorder),
        }
    }

    /// This shard.
    pub fn me(&self) -> ShardId {
        self.me
    }

    /// The source of this shard's ids.
    pub fn ids(&mut self) -> &mut Ids {
        &mut self.ids
    }

    /// What stands for a session where shards tell each other of many.
    pub fn session_hash(&self, session_id: &str) -> u64 {
        self.hasher.hash(session_id)
    }

    /// How names are hashed on this node.
    pub fn hasher(&self) -> NameHasher {
        self.hasher.clone()
    }

    /// The memory of frames made here that are still alive.
    pub fn memory(&self) -> &FrameMemory {
        &self.memory
    }

    /// Counters so far.
    pub fn figures(&self) -> CoreFigures {
        self.figures
    }

    /// The rooms of this shard.
    pub fn rooms(&self) -> &Rooms {
        &self.rooms
    }

    /// The directories of this shard.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The rooms homed here that have their first member (true) or none any more (false) since the last call, in order; of
    /// the kinds of which that is told.
    pub fn take_occupancy(&mut self) -> Vec<(RoomName, bool)> {
        std::mem::take(&mut self.occupancy)
    }

    /// Who has come into rooms homed here or gone since the last call, where other nodes have to be asked before
    /// members are told: the room, the session, and what they are told.
    pub fn take_presence(&mut self) -> Vec<(RoomName, Arc<str>, Bytes, Presenting)> {
        std::mem::take(&mut self.presence_out)
    }

    /// The events that got a number here since the last call, by their room's kind.
    pub fn take_kind_publishes(&mut self) -> impl Iterator<Item = (&str, u64)> {
        let rules = &self.rules;
        let counts = self.kind_publishes.0.iter_mut().enumerate();
        counts.map(|(place, count)| (rules.kind(place).unwrap_or(OTHER_KIND), std::mem::take(count)))
    }

    /// Goes by new limits from here on. What [`Core::take_kind_publishes`] was not asked for before is lost.
    pub fn set_limits(&mut self, limits: CoreLimits, rules: Rules) {
        self.limits = limits;
        self.recorder.set_limits(limits.recorder);
        self.kind_publishes = KindPublishes::new(&rules);
        self.rules = rules;
        // Kinds may have changed places.
        for (name, home) in self.rooms.homes_mut() {
            home.rules = self.rules.place(name.as_str());
        }
    }

    /// What the configuration says of each kind of room.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The way of a room's events through an outbox.
    pub fn lane(&self, id: RoomId) -> Lane {
        if !self.rules.has_urgent() {
            return Lane::Ordinary;
        }
        self.rooms.get(id).map_or(Lane::Ordinary, |room| self.rules.lane(room.name.as_str()))
    }

    /// The time that it goes by.
    pub fn now(&self) -> Now {
        self.now
    }

    /// How many shards there are.
    pub fn shards(&self) -> u16 {
        self.shards
    }

    /// The time from here on.
    pub fn set_now(&mut self, now: Now) {
        self.now = now;
    }

    // ---- messages out ----

    /// Sends a message to a shard, which may be this one.
    pub fn send(&mut self, to: ShardId, message: Message) {
        if to == self.me {
            self.local.push_back(message);
        } else if let Some(queue) = self.outgoing.get_mut(usize::from(to.0)) {
            self.figures.mesh_sent += 1;
            queue.push(message);
        }
    }

    /// Sends a message to a room's home.
    pub fn send_home(&mut self, room: &RoomName, message: Message) {
        self.send(room.home(self.shards), message);
    }

    /// Sends a message to the home of a directory key.
    pub fn send_to_key<K: std::hash::Hash + ?Sized>(&mut self, key: &K, message: Message) {
        let home = home_of(self.hasher.hash(key), self.shards);
        self.send(home, message);
    }

    /// Whether too much waits for a shard to take on more publishes for it.
    pub fn is_congested(&self, to: ShardId) -> bool {
        self.outgoing.get(usize::from(to.0)).is_some_and(|queue| queue.len() >= self.limits.backlog_max)
    }

    /// The same for a room's home.
    pub fn is_congested_home(&self, room: &RoomName) -> bool {
        self.is_congested(room.home(self.shards))
    }

    /// The next message from this shard to itself.
    pub fn next_local(&mut self) -> Option<Message> {
        self.local.pop_front()
    }

    /// What waits for another shard; the caller takes out what the mesh has room for.
    pub fn outgoing(&mut self, to: ShardId) -> Option<&mut Vec<Message>> {
        self.outgoing.get_mut(usize::from(to.0))
    }

    /// Routes an event to its room's home, or refuses it where the way there is congested.
    pub fn route_publish(&mut self, publish: Publish) {
        let home = publish.room.home(self.shards);
        if self.is_congested(home) {
            let Publish { room, reply, .. } = publish;
            self.answer(reply, room, Err(OVERLOADED));
            return;
        }
        self.send(home, Message::Publish(Box::new(publish)));
    }

    // ---- the home side ----

    /// Handles a message that is for a home; gives back what is for a member's shard.
    pub fn handle(&mut self, message: Message, now: Now) -> Option<Message> {
        self.now = now;
        let message = self.await_state(message)?;
        match message {
            Message::CatchUp(ask) => self.catch_up(*ask),
            Message::History(ask) => self.history(*ask),
            Message::Lock(asked) => self.lock(*asked),
            Message::FreeLock { room, field, token, reason } => {
                self.free_lock(&room, &field, Some(token), reason);
            }
            Message::LockLeaves { lock, session, turn } => self.lock_leaves(&lock, session, turn),
            Message::LockLeft { session, lock } => self.lock_left(&session, lock),
            Message::LockArrives(arrived) => self.lock_arrives(*arrived),
            Message::Join(join) => self.join(*join),
            Message::Leaving { room, address, ticket } => {
                self.send(address.shard, Message::Left { address, room, ticket });
            }
            Message::Leave { room, address } => self.leave(&room, address),
            Message::Linger { room } => self.linger(&room),
            Message::Publish(publish) => self.publish(*publish, now),
            Message::Deposit(deposit) => self.deposit(*deposit),
            Message::ClaimClient { client_id, address } => {
                let refused = self.directory.claim_client(client_id, address).err();
                self.send(address.shard, Message::Claimed { address, what: ClaimKind::Client, refused });
            }
            Message::ReleaseClient { client_id, address } => self.directory.release_client(&client_id, address),
            Message::ClaimUser { user_id, address } => {
                let refused = self.directory.claim_user(user_id, self.limits.connections_per_user_max).err();
                self.send(address.shard, Message::Claimed { address, what: ClaimKind::User, refused });
            }
            Message::ReleaseUser { user_id } => self.directory.release_user(&user_id),
            Message::ReleaseSession { room, address, kept } => self.release_session(room, address, kept),
            Message::Resume(resume) => {
                // A session that is not here may be at another node.
                return self.resume(*resume).map(|resume| Message::Resume(Box::new(resume)));
            }
            Message::InstallSession { room, identity, moved } => self.install_session(room, &identity, *moved),
            Message::HandDown { room, successor, asked, kept } => self.hand_down(&room, successor, *asked, kept),
            Message::TookUp { room, address, given_back } => self.took_up(&room, address, given_back),
            Message::Withdrawn { room, address, withdrawn } => self.note_withdrawn(&room, address, withdrawn),
            Message::ClaimPeer { peer, address } => {
                let refused = self.directory.claim_peer(peer, self.limits.peer, now).err();
                self.send(address.shard, Message::Claimed { address, what: ClaimKind::Peer, refused });
            }
            Message::Canary(canary) => self.canary(*canary),
            Message::ReleasePeer { peer } => self.directory.release_peer(peer, self.limits.peer),
            Message::SendToClient { client_id, direct } => match self.directory.client(&client_id) {
                Some(address) => self.send(address.shard, Message::ForwardToSession { address, direct }),
                // It may be at another node.
                None if self.is_relaying() && !direct.only_here => {
                    return Some(Message::SendToClient { client_id, direct });
                }
                None => self.refuse_direct(*direct),
            },
            other => return self.presence_message(other),
        }
        None
    }

    /// Refuses a direct message whose addressee isn't there.
    pub fn refuse_direct(&mut self, direct: Direct) {
        let room = self.hasher.room("");
        self.answer(direct.reply, room, Err(Refused::new(ErrorCode::NotFound, "there is no such client")));
    }

    pub(super) fn answer(&mut self, reply: ReplyTo, room: RoomName, outcome: Result<Published, Refused>) {
        match reply {
            ReplyTo::Client { address, ticket } => {
                // A client that gave no id hears of failures only.
                if outcome.is_err() || ticket.is_awaited() {
                    self.send(address.shard, Message::Published { address, ticket, room, outcome });
                }
            }
            ReplyTo::Handle(tell) => tell(outcome),
            ReplyTo::Nobody => {}
        }
    }

    pub(super) fn ensure_home(&mut self, room: &RoomName) -> Option<RoomId> {
        if self.rooms.find(room).is_none() && self.rooms.len() >= self.limits.rooms_max {
            return None;
        }
        self.tell_left();
        let id = self.rooms.ensure(room);
        let (ids, rules, journaling) = (&mut self.ids, &self.rules, &self.journaling);
        let relaying = &mut self.relaying;
        if let Some(room) = self.rooms.get_mut(id) {
            let Room { name, home, .. } = room;
            home.get_or_insert_with(|| {
                let place = rules.place(name.as_str());
                let mut home = Box::new(Home::new(ids.epoch(), place));
                let ack = journaling.as_ref().and_then(|_| rules.durable(place));
                if let Some(ack) = ack {
                    home.contents().durable = Some(Box::new(Durable::new(ack)));
                }
                Core::relayed_home(relaying, name, &mut home);
                home
            });
        }
        Some(id)
    }

    pub(super) fn home_mut(&mut self, id: RoomId) -> Option<&mut Home> {
        self.rooms.get_mut(id)?.home.as_deref_mut()
    }

    pub(super) fn join(&mut self, join: Join) {
        let Some(join) = self.await_handover(join) else { return };
        let Join { room, address, claim, selection, since, ticket } = join;
        let mut replay = None;
        let outcome = self.admit(&room, address, claim).and_then(|id| {
            let replayed = self.replay(id, since.as_ref(), selection.as_deref(), address);
            let (state, batches) = replayed.ok_or(JoinRefused::Rooms)?;
            replay = batches;
            Ok(state)
        });
        let session = self.rooms.find(&room).and_then(|id| self.home_mut(id)).and_then(|home| home.session.as_ref());
        let turn = session.map_or_else(Default::default, |session| session.turn);
        let resume_token = session.map(|session| session.token);
        let withdrawn = session.and_then(|session| session.identity.permissions.withdrawn()).cloned();
        let joined = Joined { room, address, selection, ticket, outcome, replay, resume_token, turn, withdrawn };
        self.send(address.shard, Message::Joined(Box::new(joined)));
    }

    fn admit(&mut self, room: &RoomName, address: Address, claim: JoinClaim) -> Result<RoomId, JoinRefused> {
        let id = self.ensure_home(room).ok_or(JoinRefused::Rooms)?;
        let (mut taken_over, unix_ms, shards) = (None, self.now.unix_ms, self.shards);
        let Some(home) = self.home_mut(id) else { return Err(JoinRefused::Rooms) };
        match claim {
            JoinClaim::None | JoinClaim::Given { .. } => {}
            JoinClaim::Session { identity, token } => {
                let session = home.session.get_or_insert_with(|| Box::new(SessionHome::new(identity.clone(), token)));
                if session.identity.user_id != identity.user_id {
                    return Err(JoinRefused::SessionOfOther);
                }
                taken_over = session.take_up(address, unix_ms);
            }
        }
        let (rules, was_vacant) = (home.rules, home.members_total() == 0);
        home.members.add(address.shard, shards);
        if was_vacant && self.rules.tells_occupancy(rules) {
            self.occupancy.push((room.clone(), true));
        }
        if let Some(old) = taken_over {
            self.begin_handover(room.clone(), old, Begins::Name);
            self.send(old.shard, Message::TakenOver { address: old, room: room.clone(), successor: None });
        }
        // What has its number already goes out before the newcomer is a member.
        self.seal(id);
        Ok(id)
    }

    fn leave(&mut self, room: &RoomName, address: Address) {
        let Some(id) = self.rooms.find(room) else { return };
        let mut vacated = None;
        if let Some(home) = self.home_mut(id) {
            let was_counted = home.members.remove(address.shard);
            debug_assert!(was_counted, "a membership of {room:?} ended that was not counted");
            vacated = (home.members_total() == 0).then_some(home.rules);
        }
        if vacated.is_some_and(|rules| self.rules.tells_occupancy(rules)) {
            self.occupancy.push((room.clone(), false));
        }
        self.rooms.forget_if_idle(id);
    }

    fn deposit(&mut self, deposit: Deposit) {
        let Deposit { room, data, is_told, reply } = deposit;
        let inbox_max = self.limits.inbox_max;
        let session = self.rooms.find(&room).and_then(|id| self.home_mut(id)).and_then(|home| home.session.as_mut());
        let outcome = match session {
            // What the backend is told another way is accepted, whether or not it reads the inbox as well.
            Some(session) => (session.deposit(data, inbox_max) || is_told)
                .then_some(Published {
                    id: [0; 36],
                    seq: 0,
                    epoch: 0,
                    duplicate: false,
                    delivered: 1,
                    queued: 0,
                    nodes: 0,
                })
                .ok_or(Refused::new(
                    ErrorCode::Unavailable,
                    "the session's inbox is full; the backend does not read it",
                )),
            None => Err(Refused::new(ErrorCode::NotFound, "there is no such session")),
        };
        self.answer(reply, room, outcome);
    }

    /// Answers with the next message in a session's inbox, when there is one.
    pub fn collect(&mut self, room: &RoomName, responder: Responder<Bytes>) {
        let session = self.rooms.find(room).and_then(|id| self.home_mut(id)).and_then(|home| home.session.as_mut());
        match session {
            Some(session) => {
                // The refusal of one caller too many is told by the dropped responder: unavailable.
                session.collect(responder, WAITING_MAX);
                // It may have waited for nothing else.
                if let Some(id) = self.rooms.find(room) {
                    self.rooms.forget_if_idle(id);
                }
            }
            None => responder.resolve(Err(Refused::new(ErrorCode::NotFound, "there is no such session").into())),
        }
    }

    /// Puts a message back that was taken out of a session's inbox and could not be used.
    pub fn put_back(&mut self, room: &RoomName, message: Bytes) {
        let session = self.rooms.find(room).and_then(|id| self.home_mut(id)).and_then(|home| home.session.as_mut());
        // A session that is gone has nobody's answers to wait for.
        if let Some(session) = session {
            session.put_back(message);
        }
    }

    /// Passes a request on to the connection with a client id that is homed here.
    pub fn forward_to_client(&mut self, client_id: &str, request: ClientRequest) {
        match self.directory.client(client_id) {
            Some(address) => self.send(address.shard, Message::Forward { address, request }),
            None => request.refuse(),
        }
    }

    /// Passes a request on to the connection that holds a session homed here.
    pub fn forward_to_session(&mut self, room: &RoomName, request: ClientRequest) {
        let session = self.rooms.find(room).and_then(|id| self.home_mut(id)).and_then(|home| home.session.as_ref());
        match session.and_then(|session| session.live) {
            Some(address) => self.send(address.shard, Message::Forward { address, request }),
            None => request.refuse(),
        }
    }

    /// The connection that holds a client id that is homed here.
    pub fn address_of(&self, client_id: &str) -> Option<Address> {
        self.directory.client(client_id)
    }

    /// Whether a connection holds a client id that is homed here.
    pub fn has_client(&self, client_id: &str) -> bool {
        self.directory.client(client_id).is_some()
    }

    /// Whether some connection is a member of a room homed here.
    pub fn is_occupied(&self, room: &RoomName) -> bool {
        let room = self.rooms.find(room).and_then(|id| self.rooms.get(id));
        room.and_then(|room| room.home.as_ref()).is_some_and(|home| home.members_total() > 0)
    }

    /// How many members a room homed here has, and for how many absent sessions what is published there waits.
    pub fn audience(&self, room: &RoomName) -> (u32, u32) {
        let room = self.rooms.find(room).and_then(|id| self.rooms.get(id));
        room.and_then(|room| room.home.as_deref()).map_or((0, 0), Home::audience)
    }

    /// The rooms homed here that have members.
    pub fn occupied(&self) -> impl Iterator<Item = &RoomName> {
        let rooms =
            self.rooms.iter().filter(|(_, room)| room.home.as_ref().is_some_and(|home| home.members_total() > 0));
        rooms.map(|(_, room)| &room.name)
    }
}

/// An epoch as clients see it.
pub fn epoch_text(epoch: u64) -> String {
    format!("{epoch:016x}")
}

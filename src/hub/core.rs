//! A shard's core: the rooms it is home to, the members it has, and the fan-out between them.
//!
//! Pure: messages and the time come in, messages for other shards and deliveries for this shard's connections go out.
//! Larger than most files because the life of an event within a shard (publish, seal, deliver, fan out) is told in one
//! place.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::batch::{Address, Batch, FrameMemory};
use super::directory::{Directory, PeerLimits};
use super::durable::{Durable, Journaling};
use super::ids::Ids;
use super::keys::Keys;
use super::linger::Lingering;
use super::locks::LockDesk;
use super::members::{HOLE, ListId};
use super::message::{
    ClaimKind, ClientRequest, Deposit, Direct, Join, JoinClaim, JoinRefused, Joined, Message, OVERLOADED, Publish,
    Published, ReplyTo,
};
use super::name::{NameHasher, RoomName, ShardId, home_of};
use super::outbox::Lane;
use super::presence::Who;
use super::reply::Responder;
use super::resume::Handover;
use super::rooms::{Home, Room, RoomId, Rooms};
use super::rules::Rules;
use super::selection::Selection;
use super::session_home::SessionHome;
use crate::config::{Config, Policy};
use crate::ring::{ConnKey, Now};
use crate::wire::codes::ErrorCode;
use crate::wire::envelope::Event;
use crate::wire::json::Scratch;
use crate::wire::native::Refused;

/// What of the configuration the core goes by.
#[derive(Debug, Clone, Copy)]
pub struct CoreLimits {
    /// Rooms in one shard's table.
    pub rooms_max: usize,
    /// Field locks per room.
    pub locks_per_room_max: usize,
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
    /// Connections of one user; 0 is no limit.
    pub connections_per_user_max: u32,
    /// Per network address.
    pub peer: PeerLimits,
}

impl CoreLimits {
    /// The limits of a configuration.
    pub fn new(config: &Config) -> CoreLimits {
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        CoreLimits {
            rooms_max: config.limits.rooms_per_shard_max,
            locks_per_room_max: config.limits.locks_per_room_max,
            locks_per_session_max: config.limits.locks_per_session_max,
            selections_max: config.limits.filters_per_room_max,
            backlog_max: config.mesh.backlog_max as usize,
            inbox_max: config.session.queue_max as usize,
            session_away_ms: config.session.resume_window_s * 1000,
            depth_max: config.limits.depth_max,
            log_bytes_max: config.history.shard_bytes_max,
            journal_pending_bytes_max: config.journal.pending_bytes_max,
            connections_per_user_max: count(config.limits.connections_per_user_max),
            peer: PeerLimits {
                connections_max: count(config.limits.connections_per_address_max),
                connects_per_s: config.limits.connects_per_s,
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

/// The largest batch that is kept open while an earlier one of the same room is still being fanned out.
const OPEN_BATCH_BYTES_MAX: usize = 256 * 1024;
/// A batch is not made larger than this, whatever a turn brings: its offsets have 32 bits.
pub(super) const BATCH_BYTES_MAX: usize = 64 << 20;
/// Stands for kinds that are not configured any more.
const OTHER_KIND: &str = "other";
/// Calls of `receive` that may wait for one session.
const WAITING_MAX: usize = 16;

/// A shard's core.
pub struct Core {
    me: ShardId,
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
    directory: Directory,
    /// Rooms with an open batch.
    pub(super) unsealed: Vec<RoomId>,
    jobs: VecDeque<Job>,
    /// What waits for the journal; none where there is no journal.
    pub(super) journaling: Option<Box<Journaling>>,
    /// Sessions that left something in their inboxes, and until when it is kept.
    pub(super) away: VecDeque<(u64, RoomName)>,
    pub(super) lingering: Lingering,
    /// Sessions that are on their way from one connection to another.
    pub(super) handovers: HashMap<RoomName, Handover, FixedState>,
    /// Until when something is known of sessions that left rooms.
    pub(super) presence_away: VecDeque<(u64, RoomName, Arc<Who>)>,
    pub(super) ids: Ids,
    pub(super) scratch: Scratch,
    pub(super) memory: FrameMemory,
    local: VecDeque<Message>,
    outgoing: Vec<Vec<Message>>,
    pub(super) figures: CoreFigures,
    pub(super) kind_publishes: KindPublishes,
    /// When the publish that is being handled was received, in microseconds of the monotonic clock; 0 is now.
    received_us: u64,
}

/// A batch on its way to a list of members.
struct Job {
    room: RoomId,
    list: ListId,
    batch: Arc<Batch>,
    at: usize,
    end: usize,
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
            away: VecDeque::new(),
            lingering: Lingering::default(),
            handovers: HashMap::with_hasher(FixedState::with_seed(seed[0])),
            presence_away: VecDeque::new(),
            ids: Ids::new(seed),
            scratch: Scratch::new(limits.depth_max),
            memory: FrameMemory::default(),
            local: VecDeque::new(),
            outgoing: (0..shards).map(|_| Vec::new()).collect(),
            figures: CoreFigures::default(),
            kind_publishes,
            received_us: 0,
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

    /// The events that got a number here since the last call, by their room's kind.
    pub fn take_kind_publishes(&mut self) -> impl Iterator<Item = (&str, u64)> {
        let rules = &self.rules;
        let counts = self.kind_publishes.0.iter_mut().enumerate();
        counts.map(|(place, count)| (rules.kind(place).unwrap_or(OTHER_KIND), std::mem::take(count)))
    }

    /// Goes by new limits from here on. What [`Core::take_kind_publishes`] was not asked for before is lost.
    pub fn set_limits(&mut self, limits: CoreLimits, rules: Rules) {
        self.limits = limits;
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
        match message {
            Message::CatchUp(ask) => self.catch_up(*ask),
            Message::History(ask) => self.history(*ask),
            Message::Lock(asked) => self.lock(*asked),
            Message::FreeLock { room, field, token, reason } => {
                self.free_lock(&room, &field, Some(token), reason);
            }
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
            Message::Resume(resume) => self.resume(*resume),
            Message::HandDown { room, successor, asked, kept } => self.hand_down(&room, successor, *asked, kept),
            Message::TookUp { room, address } => self.handover_settled(&room, address),
            Message::ClaimPeer { peer, address } => {
                let refused = self.directory.claim_peer(peer, self.limits.peer, now).err();
                self.send(address.shard, Message::Claimed { address, what: ClaimKind::Peer, refused });
            }
            Message::Canary(canary) => self.canary(*canary),
            Message::ReleasePeer { peer } => self.directory.release_peer(peer, self.limits.peer),
            Message::SendToClient { client_id, direct } => match self.directory.client(&client_id) {
                Some(address) => self.send(address.shard, Message::ForwardToSession { address, direct }),
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
        let id = self.rooms.ensure(room);
        let (ids, shards, rules, journaling) = (&mut self.ids, self.shards, &self.rules, &self.journaling);
        if let Some(room) = self.rooms.get_mut(id) {
            let Room { name, home, .. } = room;
            home.get_or_insert_with(|| {
                let place = rules.place(name.as_str());
                let mut home = Box::new(Home::new(ids.epoch(), shards, place));
                let ack = journaling.as_ref().and_then(|_| rules.durable(place));
                if let Some(ack) = ack {
                    home.rare().durable = Some(Box::new(Durable::new(ack)));
                }
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
        let joined = Joined { room, address, selection, ticket, outcome, replay, resume_token, turn };
        self.send(address.shard, Message::Joined(Box::new(joined)));
    }

    fn admit(&mut self, room: &RoomName, address: Address, claim: JoinClaim) -> Result<RoomId, JoinRefused> {
        let id = self.ensure_home(room).ok_or(JoinRefused::Rooms)?;
        let (mut taken_over, unix_ms) = (None, self.now.unix_ms);
        let Some(home) = self.home_mut(id) else { return Err(JoinRefused::Rooms) };
        match claim {
            JoinClaim::None => {}
            JoinClaim::Session { identity, token } => {
                let session = home.session.get_or_insert_with(|| Box::new(SessionHome::new(identity.clone(), token)));
                if session.identity.user_id != identity.user_id {
                    return Err(JoinRefused::SessionOfOther);
                }
                taken_over = session.take_up(address, unix_ms);
            }
        }
        if let Some(count) = home.members.get_mut(usize::from(address.shard.0)) {
            *count += 1;
        }
        if let Some(old) = taken_over {
            self.begin_handover(room.clone(), old);
            self.send(old.shard, Message::TakenOver { address: old, room: room.clone(), successor: None });
        }
        // What has its number already goes out before the newcomer is a member.
        self.seal(id);
        Ok(id)
    }

    fn leave(&mut self, room: &RoomName, address: Address) {
        let Some(id) = self.rooms.find(room) else { return };
        if let Some(count) = self.home_mut(id).and_then(|home| home.members.get_mut(usize::from(address.shard.0))) {
            debug_assert!(*count > 0, "a membership of {room:?} ended that was not counted");
            *count = count.saturating_sub(1);
        }
        self.rooms.forget_if_idle(id);
    }

    fn publish(&mut self, publish: Publish, now: Now) {
        self.now = now;
        self.received_us = publish.received_us;
        let id = self.ensure_home(&publish.room);
        if let Some(id) = id
            && self.home_mut(id).is_some_and(|home| home.is_durable())
        {
            // Answered when the journal has it, or at once where it is refused.
            drop(self.publish_durable(id, publish));
            return;
        }
        let Publish { room, kind, data, key, exclude, reply, .. } = publish;
        let outcome = match id {
            Some(id) => self.publish_at(id, &room, &kind, &data, key.as_deref(), exclude),
            None => Err(OVERLOADED),
        };
        self.answer(reply, room, outcome);
    }

    /// Gives an event of a room homed here its number and puts it behind the turn's others. Nobody is told what becomes of
    /// it in the journal, where the room is durable.
    pub fn publish_here(
        &mut self,
        room: &RoomName,
        kind: &str,
        data: &[u8],
        key: Option<&str>,
        exclude: Option<Address>,
        now: Now,
    ) -> Result<Published, Refused> {
        self.now = now;
        let id = self.ensure_home(room).ok_or(OVERLOADED)?;
        if self.home_mut(id).is_some_and(|home| home.is_durable()) {
            let (room, data) = (room.clone(), Bytes::copy_from_slice(data));
            let (kind, key, reply) = (kind.into(), key.map(Into::into), ReplyTo::Nobody);
            let received_us = now.monotonic_us;
            return self.publish_durable(id, Publish { room, kind, data, key, exclude, received_us, reply });
        }
        self.publish_at(id, room, kind, data, key, exclude)
    }

    fn publish_at(
        &mut self,
        id: RoomId,
        room: &RoomName,
        kind: &str,
        data: &[u8],
        key: Option<&str>,
        exclude: Option<Address>,
    ) -> Result<Published, Refused> {
        let now = self.now;
        let received_us = match std::mem::take(&mut self.received_us) {
            0 => now.monotonic_us,
            received_us => received_us,
        };
        if let Some(key) = key
            && let Some(keys) = self.home_mut(id).and_then(|home| home.keys.as_mut())
            && let Some(published) = keys.find(key, now.unix_ms)
        {
            self.figures.duplicates += 1;
            return Ok(Published { duplicate: true, ..published });
        }
        if self.home_mut(id).is_some_and(|home| home.open_bytes() >= BATCH_BYTES_MAX) {
            self.seal(id);
        }
        let stamp = self.ids.stamp(now.unix_ms);
        let home = self.home_mut(id).ok_or(OVERLOADED)?;
        home.seq += 1;
        let (seq, epoch) = (home.seq, home.epoch);
        let (delivered, queued) = home.audience();
        let published = Published { id: stamp.id, seq, epoch, duplicate: false, delivered, queued };
        if let Some(key) = key {
            let seed = home.epoch;
            home.keys.get_or_insert_with(|| Box::new(Keys::new(seed))).remember(key, published, now.unix_ms);
        }
        let rules = home.rules;
        if delivered > 0 || self.rules.log(rules).events_max > 0 {
            let key = key.map_or(0, |key| self.hasher.hash(key) | 1);
            let home = self.home_mut(id).ok_or(OVERLOADED)?;
            let first = home.open.is_none();
            let event = Event { room: room.as_str(), kind, seq, data };
            let open = home.open.get_or_insert_default();
            open.push(&stamp, &event, exclude, key);
            if first {
                open.received_us = received_us;
                self.unsealed.push(id);
            }
        } else {
            self.rooms.forget_if_idle(id);
        }
        self.figures.publishes += 1;
        self.kind_publishes.add(rules);
        Ok(published)
    }

    fn deposit(&mut self, deposit: Deposit) {
        let Deposit { room, data, reply } = deposit;
        let inbox_max = self.limits.inbox_max;
        let session = self.rooms.find(&room).and_then(|id| self.home_mut(id)).and_then(|home| home.session.as_mut());
        let outcome = match session {
            Some(session) => session
                .deposit(data, inbox_max)
                .then_some(Published { id: [0; 36], seq: 0, epoch: 0, duplicate: false, delivered: 1, queued: 0 })
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

    /// Whether a connection holds a client id that is homed here.
    pub fn has_client(&self, client_id: &str) -> bool {
        self.directory.client(client_id).is_some()
    }

    /// Whether some connection is a member of a room homed here.
    pub fn is_occupied(&self, room: &RoomName) -> bool {
        let room = self.rooms.find(room).and_then(|id| self.rooms.get(id));
        room.and_then(|room| room.home.as_ref()).is_some_and(|home| home.members_total() > 0)
    }

    /// The rooms homed here that have members.
    pub fn occupied(&self) -> impl Iterator<Item = &RoomName> {
        let rooms =
            self.rooms.iter().filter(|(_, room)| room.home.as_ref().is_some_and(|home| home.members_total() > 0));
        rooms.map(|(_, room)| &room.name)
    }

    // ---- from open batches to deliveries ----

    /// Seals what was published since; to be called once per turn. A room that is still being fanned out keeps gathering,
    /// so that a fan-out slower than its publishers makes larger batches instead of a longer queue.
    pub fn seal_all(&mut self) {
        let mut kept = 0;
        for at in 0..self.unsealed.len() {
            let Some(&id) = self.unsealed.get(at) else { break };
            let gathering = self.rooms.get(id).is_some_and(|room| {
                room.jobs > 0 && room.home.as_ref().is_some_and(|home| home.open_bytes() < OPEN_BATCH_BYTES_MAX)
            });
            if gathering {
                if let Some(place) = self.unsealed.get_mut(kept) {
                    *place = id;
                }
                kept += 1;
            } else {
                self.dispatch(id);
            }
        }
        self.unsealed.truncate(kept);
    }

    /// Seals one room's batch at once, because its members are about to change.
    pub(super) fn seal(&mut self, id: RoomId) {
        if self.home_mut(id).is_some_and(|home| home.open.is_some()) {
            self.unsealed.retain(|one| *one != id);
            self.dispatch(id);
        }
    }

    fn dispatch(&mut self, id: RoomId) {
        let Some(room) = self.rooms.get_mut(id) else { return };
        let Some(home) = room.home.as_deref_mut() else { return };
        let unix_ms = self.now.unix_ms;
        let Some(open) = home.open.take() else { return };
        let batch = Arc::new(open.seal(room.name.clone(), &self.memory, unix_ms));
        if home.is_durable() {
            return self.hand_to_journal(id, batch);
        }
        self.send_out(id, batch);
    }

    /// Puts a batch into its room's log and on its way to the members.
    pub(super) fn send_out(&mut self, id: RoomId, batch: Arc<Batch>) {
        let Some(room) = self.rooms.get_mut(id) else { return };
        let Some(home) = room.home.as_deref_mut() else { return };
        let mut here = false;
        for (shard, count) in home.members.iter().enumerate() {
            let shard = ShardId(shard as u16);
            if *count == 0 {
                continue;
            }
            if shard == self.me {
                here = true;
            } else if let Some(queue) = self.outgoing.get_mut(usize::from(shard.0)) {
                self.figures.mesh_sent += 1;
                queue.push(Message::Deliver(batch.clone()));
            }
        }
        self.keep(id, &batch);
        if !here {
            self.rooms.forget_if_idle(id);
        } else if self.local.is_empty() {
            self.begin_fan_out(id, batch);
        } else {
            // Some who are members for this home may still have to hear of it, and are not in the list yet.
            self.local.push_back(Message::Deliver(batch));
        }
    }

    // ---- the member side ----

    /// Begins to fan a batch out to this shard's members.
    pub fn deliver(&mut self, batch: Arc<Batch>) {
        if let Some(id) = self.rooms.find(&batch.room) {
            self.begin_fan_out(id, batch);
        }
    }

    fn begin_fan_out(&mut self, id: RoomId, batch: Arc<Batch>) {
        let Some(room) = self.rooms.get_mut(id) else { return };
        for (list, selection, end) in room.members.groups() {
            if let Some(selected) = batch.select(selection, &mut self.scratch, &self.memory) {
                self.jobs.push_back(Job { room: id, list, batch: selected, at: 0, end });
                room.jobs += 1;
            }
        }
        let end = room.members.list(0).len();
        if end > 0 {
            self.jobs.push_back(Job { room: id, list: 0, batch, at: 0, end });
            room.jobs += 1;
        }
    }

    /// How many deliveries the events of this turn will make, on all shards.
    pub fn deliveries_open(&self) -> usize {
        let homes = self.unsealed.iter().filter_map(|id| self.rooms.get(*id)?.home.as_deref());
        homes.map(|home| home.members_total() as usize).sum()
    }

    /// How many deliveries the fan-outs under way have in all, those already made included: the end of a large one is as
    /// large as its beginning.
    pub fn deliveries_under_way(&self) -> usize {
        self.jobs.iter().map(|job| job.end).sum()
    }

    /// Whether deliveries wait.
    pub fn has_deliveries(&self) -> bool {
        !self.jobs.is_empty()
    }

    /// Hands out the next deliveries, at most `budget`: to this connection, these bytes, in this lane.
    pub fn fan_out(&mut self, budget: usize, mut deliver: impl FnMut(ConnKey, &Bytes, Lane, RoomId, &Batch)) {
        let mut left = budget;
        while left > 0 {
            let Some(job) = self.jobs.front_mut() else { return };
            let Some(room) = self.rooms.get_mut(job.room) else {
                self.jobs.pop_front();
                continue;
            };
            let to = job.end.min(job.at + left);
            let lane = self.rules.lane(room.name.as_str());
            let members = room.members.list(job.list).get(job.at..to).unwrap_or_default();
            for conn in members {
                if *conn == HOLE {
                    continue;
                }
                if job.batch.has_exclusions() {
                    let frames = job.batch.frames_for(Address { shard: self.me, conn: *conn }, &self.memory);
                    if !frames.is_empty() {
                        deliver(*conn, &frames, lane, job.room, &job.batch);
                    }
                } else {
                    deliver(*conn, &job.batch.bytes, lane, job.room, &job.batch);
                }
            }
            self.figures.deliveries += (members.len() * job.batch.events.len()) as u64;
            left -= to - job.at;
            job.at = to;
            if job.at < job.end {
                return;
            }
            let id = job.room;
            self.jobs.pop_front();
            room.jobs -= 1;
            if room.jobs == 0 {
                room.members.close_holes();
                self.rooms.forget_if_idle(id);
            }
        }
    }

    /// Hands one member what the fan-outs under way still have for it, because it is about to lose its place in the list.
    pub fn fan_out_rest(&mut self, id: RoomId, conn: ConnKey, mut deliver: impl FnMut(&Bytes, &Batch)) {
        let Some(room) = self.rooms.get(id).filter(|room| room.jobs > 0) else { return };
        let Some((list, _, place)) = room.members.find(conn) else { return };
        for job in self.jobs.iter().filter(|job| job.room == id && job.list == list) {
            if !(job.at..job.end).contains(&place) {
                continue;
            }
            let frames = job.batch.frames_for(Address { shard: self.me, conn }, &self.memory);
            if !frames.is_empty() {
                deliver(&frames, &job.batch);
            }
            self.figures.deliveries += job.batch.events.len() as u64;
        }
    }

    /// Whether a connection is a member with that very selection, and has been given all that came so far.
    pub fn is_settled_with(&self, id: RoomId, conn: ConnKey, selection: Option<&Arc<Selection>>) -> bool {
        let found = self.rooms.get(id).filter(|room| room.jobs == 0).and_then(|room| room.members.find(conn));
        found.is_some_and(|(_, present, _)| present == selection)
    }

    /// Closes the holes of a list that has hardly anything else, under the fan-outs that go through it.
    fn compact(&mut self, id: RoomId) {
        let Some((list, moved)) = self.rooms.get_mut(id).and_then(|room| room.members.compact_sparse()) else { return };
        for job in self.jobs.iter_mut().filter(|job| job.room == id && job.list == list) {
            // Places a job has noted are within the list, whose end is the last entry.
            let end = moved.last().copied().unwrap_or(0);
            job.at = moved.get(job.at).copied().unwrap_or(end);
            job.end = moved.get(job.end).copied().unwrap_or(end);
        }
    }

    /// Makes a connection of this shard a member, after its join was granted. Where it is one already, its selection is
    /// replaced and the home is told that it counts once. False where the room has too many different selections here.
    pub fn add_member(&mut self, room: &RoomName, conn: ConnKey, selection: Option<Arc<Selection>>) -> Option<RoomId> {
        let id = self.rooms.ensure(room);
        let selections_max = self.limits.selections_max;
        let place = self.rooms.get_mut(id)?;
        if place.members.add(conn, selection, selections_max) {
            return Some(id);
        }
        self.rooms.forget_if_idle(id);
        None
    }

    /// What happens to a member of a room who reads too slowly.
    pub fn policy_of(&self, id: RoomId) -> Policy {
        let rules = self.rooms.get(id).map(|room| self.rules.place(room.name.as_str()));
        rules.map_or(Policy::CatchUp, |rules| self.rules.policy(rules))
    }

    /// Takes a slow reader out of the fan-out; it stays a member.
    pub fn park(&mut self, id: RoomId, conn: ConnKey) {
        if let Some(room) = self.rooms.get_mut(id) {
            let keep_places = room.jobs > 0;
            room.members.park(conn, keep_places);
            if keep_places {
                self.compact(id);
            }
        }
    }

    /// Puts a reader that has caught up back into the fan-out.
    pub fn unpark(&mut self, id: RoomId, conn: ConnKey) {
        let selections_max = self.limits.selections_max;
        if let Some(room) = self.rooms.get_mut(id) {
            room.members.unpark(conn, selections_max);
        }
    }

    /// What a slow reader wants of the room it is parked in; none where it is not.
    pub fn parked(&self, id: RoomId, conn: ConnKey) -> Option<Option<Arc<Selection>>> {
        self.rooms.get(id)?.members.parked(conn)
    }

    /// What a member wants of a room.
    pub fn selection_of(&self, id: RoomId, conn: ConnKey) -> Option<Arc<Selection>> {
        self.rooms.get(id)?.members.selection_of(conn)
    }

    /// Takes a connection out of a room on this shard; the home is not told by this.
    pub fn remove_member(&mut self, id: RoomId, conn: ConnKey) -> bool {
        let Some(room) = self.rooms.get_mut(id) else { return false };
        let keep_places = room.jobs > 0;
        let removed = room.members.remove(conn, keep_places);
        if keep_places {
            self.compact(id);
        }
        self.rooms.forget_if_idle(id);
        removed
    }
}

/// An epoch as clients see it.
pub fn epoch_text(epoch: u64) -> String {
    format!("{epoch:016x}")
}

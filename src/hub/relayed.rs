//! Rooms that several nodes share. Their events are numbered by a broker; the home of each node keeps what it is told of
//! them, so that replays, history and catching up are what they are without a broker.
//!
//! ```text
//! publish ─► submission of the turn ─► broker ─► answer to the publisher
//!                                        │
//! home ◄── events with their numbers ◄───┘        on every node that follows the room
//!   └─► log, members
//! ```
//!
//! A home that is new asks for the room's state first. Until it has that, whatever is asked of it waits, in order.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;

use bytes::Bytes;
use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::batch::Address;
use super::brokered::{BrokeredEvent, Carried, Followed, FromBroker, Keep, Numbers, Origin, Place, Submission, ToBroker};
use super::core::Core;
use super::locks::LockAsked;
use super::message::{HistoryAsked, Join, JoinRefused, Joined, Message, OVERLOADED, Publish, Published, ReplyTo};
use super::name::RoomName;
use super::presence::Turn;
use super::publish::BATCH_BYTES_MAX;
use super::reply::Responder;
use super::rooms::{Home, RoomId};
use super::shared_locks::{LockWait, Unfreed};
use crate::wire::codes::ErrorCode;
use crate::wire::envelope::{Event, Stamp, rfc3339};
use crate::wire::native::{Refused, Since};

/// The answer to who wants into a room whose state can't be had.
const UNREACHABLE: Refused =
    Refused::new(ErrorCode::Unavailable, "the broker can't be reached right now; the room's state is not known");
/// Logs that may be waiting to be emptied.
const CLEARS_MAX: usize = 1024;
/// Events of the hub itself that wait for a broker that can't be reached.
const UNSAID_MAX: usize = 65_536;
/// What is asked of one room while its state is not known.
const WAITING_MAX: usize = 65_536;
/// Counted for each publisher that waits for the broker, besides its event.
const WAITING_BYTES: usize = 256;
/// Events of a submission: what a script of the broker takes in one call.
const SUBMISSION_EVENTS_MAX: usize = 500;
/// Bytes of a submission at which another one is begun.
const SUBMISSION_BYTES_MAX: usize = 4 << 20;
/// Stands for a place in an earlier life of a log: all of this one comes after it.
pub const BEFORE_ALL: u64 = u64::MAX;

/// What the home of a room knows besides where its events are numbered by a broker.
#[derive(Debug)]
pub struct Relayed {
    state: State,
    /// The id of its last event.
    last_id: [u8; 36],
    /// Whether the log had to give way, and the broker may have more of it.
    is_thin: bool,
    /// What waits for the state, in order.
    waiting: Vec<Deferred>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It was asked for and is not known yet, or not any more.
    Asked,
    /// What the broker tells comes right after what is here.
    Known,
    /// The broker can't say it; it will, unasked, when it can.
    Unreachable,
}

/// What was asked of a room whose state is not known yet.
#[derive(Debug)]
enum Deferred {
    Message(Message),
    History(HistoryCall),
}

/// A part of a room's log that a caller of the hub's handle wants to see.
#[derive(Debug)]
pub struct HistoryCall {
    /// The room.
    pub room: RoomName,
    /// From where on (or, in reverse, before what).
    pub since: Option<Since>,
    /// At most so many events.
    pub limit: usize,
    /// Newest first.
    pub reverse: bool,
    /// Who is told, as JSON.
    pub responder: Responder<Vec<u8>>,
}

/// What a shard has to do with the broker.
#[derive(Debug)]
pub(super) struct Relaying {
    /// This run of this node.
    node: u64,
    /// The number of the last submission, or of whatever else is to be answered.
    pub(super) number: u64,
    /// What was published this turn, by room.
    open: Vec<Open>,
    places: HashMap<RoomName, usize, FixedState>,
    /// Who waits for the answer to a submission, by its number.
    pending: HashMap<u64, Pending, FixedState>,
    /// Bytes of the events that wait for an answer.
    pending_bytes: usize,
    clears: HashMap<u64, Responder<u64>, FixedState>,
    /// Calls about locks that are not answered yet, by their number.
    pub(super) locks: HashMap<u64, LockWait, FixedState>,
    /// What is asked of locks of which the broker is being asked something.
    pub(super) asking: HashMap<(RoomName, Arc<str>), VecDeque<LockAsked>, FixedState>,
    /// What the hub itself has to say and the broker did not take.
    unsaid: Vec<Publish>,
    /// Locks that have ended here, of which the broker could not be told.
    pub(super) unfreed: Vec<Unfreed>,
    /// What is still to be handed over.
    pub(super) out: Vec<ToBroker>,
    figures: RelayFigures,
}

/// Counters; only ever grow, but for `pending_bytes`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RelayFigures {
    /// Events that the broker refused, or that were refused because too many waited for it.
    pub refused: u64,
    /// Events of rooms that came from the broker.
    pub carried: u64,
    /// Times that a home had lost its place and asked for it again.
    pub lost_places: u64,
    /// Times that a room's log was found to have begun anew.
    pub renewed: u64,
    /// Events of the hub itself (presence, locks) that were lost because too many waited for the broker.
    pub unsaid_lost: u64,
    /// Bytes of events that wait for the broker.
    pub pending_bytes: u64,
}

#[derive(Debug)]
struct Open {
    room: RoomName,
    events: Vec<BrokeredEvent>,
    waiting: Vec<Waiting>,
    bytes: usize,
}

/// A submission that is not answered yet.
#[derive(Debug)]
struct Pending {
    waiting: Vec<Waiting>,
    bytes: usize,
}

/// A publisher that waits for the broker.
#[derive(Debug)]
struct Waiting {
    reply: ReplyTo,
    id: [u8; 36],
    kind: Box<str>,
    received_us: u64,
    exclude: Option<Address>,
    /// Data and key of an event that the hub itself has to say. Nobody else would say it again, so it is kept until it is taken.
    own: Option<(Bytes, Option<Box<str>>)>,
}

impl Relayed {
    fn asked() -> Relayed {
        Relayed { state: State::Asked, last_id: [0; 36], is_thin: false, waiting: Vec::new() }
    }

    /// Its log had to give way.
    pub(super) fn note_thin(&mut self) {
        self.is_thin = true;
    }

    /// Whether nobody waits for it. What it has of the log is kept by the broker.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }
}

impl Core {
    /// From here on the events of all rooms are numbered by a broker, which knows this run of this node by a number.
    pub fn begin_relaying(&mut self, node: u64) {
        let seed = self.ids.epoch();
        self.relaying = Some(Box::new(Relaying {
            node,
            number: 0,
            open: Vec::new(),
            places: HashMap::with_hasher(FixedState::with_seed(seed)),
            pending: HashMap::with_hasher(FixedState::with_seed(seed)),
            pending_bytes: 0,
            clears: HashMap::with_hasher(FixedState::with_seed(seed)),
            locks: HashMap::with_hasher(FixedState::with_seed(seed)),
            asking: HashMap::with_hasher(FixedState::with_seed(seed)),
            unsaid: Vec::new(),
            unfreed: Vec::new(),
            out: Vec::new(),
            figures: RelayFigures::default(),
        }));
    }

    /// Whether several nodes share the rooms.
    pub fn is_relaying(&self) -> bool {
        self.relaying.is_some()
    }

    /// What waits to be handed to the broker; the caller takes out what the way there has room for.
    pub fn broker_out(&mut self) -> Option<&mut Vec<ToBroker>> {
        self.submit_all();
        self.tell_left();
        Some(&mut self.relaying.as_deref_mut()?.out)
    }

    /// Tells of rooms that were forgotten; before anything is told of their next life.
    pub(super) fn tell_left(&mut self) {
        self.log_bytes = self.log_bytes.saturating_sub(mem::take(&mut self.rooms.left_bytes));
        if let Some(relaying) = self.relaying.as_deref_mut() {
            relaying.out.extend(self.rooms.left.drain(..).map(|room| ToBroker::Leave { room }));
        }
    }

    /// Counters so far.
    pub fn relay_figures(&self) -> RelayFigures {
        let figures = |relaying: &Relaying| RelayFigures {
            pending_bytes: relaying.pending_bytes as u64,
            ..relaying.figures
        };
        self.relaying.as_deref().map(figures).unwrap_or_default()
    }

    /// What a new home has to know of the broker; it asks for the room's state.
    pub(super) fn relayed_home(relaying: &mut Option<Box<Relaying>>, room: &RoomName, home: &mut Home) {
        if let Some(relaying) = relaying {
            relaying.out.push(ToBroker::Follow { room: room.clone(), from: None });
            home.rare().relayed = Some(Box::new(Relayed::asked()));
        }
    }

    // ---- publishing ----

    /// Puts an event behind the others of the turn; it is answered when the broker has numbered it.
    pub(super) fn publish_relayed(&mut self, publish: Publish) {
        self.relay(publish, None);
    }

    /// The same for what the hub itself has to say of a room: while the broker can't be reached, it is said again, and by its
    /// key no more than once.
    pub(super) fn say_relayed(&mut self, room: RoomName, kind: &str, data: Bytes) {
        let key = self.ids.stamp(self.now.unix_ms).id;
        let key = String::from_utf8_lossy(&key).into_owned().into_boxed_str();
        let (own, received_us, reply) = (data.clone(), self.now.monotonic_us, ReplyTo::Nobody);
        let publish = Publish { room, kind: kind.into(), data, key: Some(key), exclude: None, received_us, reply };
        self.relay(publish, Some(own));
    }

    /// Says once more what the broker did not take; to be called once a second.
    pub(super) fn say_again(&mut self) {
        let unsaid = self.relaying.as_deref_mut().map(|relaying| mem::take(&mut relaying.unsaid)).unwrap_or_default();
        for publish in unsaid {
            let own = publish.data.clone();
            self.relay(publish, Some(own));
        }
    }

    fn relay(&mut self, publish: Publish, own: Option<Bytes>) {
        let Publish { room, kind, data, key, exclude, received_us, reply } = publish;
        let bytes_max = self.limits.broker_pending_bytes_max;
        let id = self.ids.stamp(self.now.unix_ms).id;
        let unix_ms = self.now.unix_ms;
        let Some(relaying) = self.relaying.as_deref_mut() else { return };
        let bytes = data.len() + kind.len() + WAITING_BYTES;
        // One event of any size is always taken.
        if relaying.pending_bytes > 0 && relaying.pending_bytes + bytes > bytes_max {
            relaying.figures.refused += 1;
            return self.answer(reply, room, Err(OVERLOADED));
        }
        relaying.pending_bytes += bytes;
        let origin = exclude.map(|address| Origin { node: relaying.node, address });
        let own = own.map(|data| (data, key.clone()));
        let event = BrokeredEvent { id, unix_ms, kind: kind.clone(), data, key, exclude: origin };
        let waiting = Waiting { reply, id, kind, received_us, exclude, own };
        let place = match relaying.places.get(&room) {
            Some(place) => *place,
            None => {
                let place = relaying.open.len();
                relaying.places.insert(room.clone(), place);
                relaying.open.push(Open { room: room.clone(), events: Vec::new(), waiting: Vec::new(), bytes: 0 });
                place
            }
        };
        let Some(open) = relaying.open.get_mut(place) else { return };
        open.events.push(event);
        open.waiting.push(waiting);
        open.bytes += bytes;
        if open.events.len() >= SUBMISSION_EVENTS_MAX || open.bytes >= SUBMISSION_BYTES_MAX {
            let open = mem::replace(open, Open { room, events: Vec::new(), waiting: Vec::new(), bytes: 0 });
            self.submit(open);
        }
    }

    /// Hands over what was published this turn.
    fn submit_all(&mut self) {
        let Some(relaying) = self.relaying.as_deref_mut() else { return };
        if relaying.open.is_empty() {
            return;
        }
        relaying.places.clear();
        for open in mem::take(&mut relaying.open) {
            self.submit(open);
        }
    }

    fn submit(&mut self, open: Open) {
        let Open { room, events, waiting, bytes } = open;
        if events.is_empty() {
            return;
        }
        let bounds = self.rules.log(self.rules.place(room.as_str()));
        let keep = Keep { events_max: bounds.events_max as u64, age_ms: bounds.age_ms };
        let new_epoch = self.ids.epoch();
        let Some(relaying) = self.relaying.as_deref_mut() else { return };
        relaying.number += 1;
        let number = relaying.number;
        relaying.pending.insert(number, Pending { waiting, bytes });
        let submission = Submission { room, number, events, new_epoch, keep };
        relaying.out.push(ToBroker::Submit(Box::new(submission)));
    }

    // ---- from the broker ----

    /// Takes in what the broker tells of a room that is at home here.
    pub fn brokered(&mut self, told: FromBroker) {
        match told {
            FromBroker::Submitted { room, number, outcome } => self.submitted(&room, number, outcome),
            FromBroker::Followed { room, outcome } => self.followed(&room, outcome),
            FromBroker::Events(carried) => self.carried(*carried),
            FromBroker::Cleared { number, outcome } => {
                let responder = self.relaying.as_deref_mut().and_then(|relaying| relaying.clears.remove(&number));
                if let Some(responder) = responder {
                    responder.resolve(outcome.map_err(Into::into));
                }
            }
            FromBroker::Locked { number, outcome } => self.locked(number, outcome),
            FromBroker::Emptied { room, epoch, log_from } => self.emptied(&room, epoch, log_from),
        }
    }

    fn submitted(&mut self, room: &RoomName, number: u64, outcome: Result<Numbers, Refused>) {
        let Some(relaying) = self.relaying.as_deref_mut() else { return };
        let Some(Pending { waiting, bytes }) = relaying.pending.remove(&number) else { return };
        relaying.pending_bytes = relaying.pending_bytes.saturating_sub(bytes);
        let numbers = match outcome {
            Ok(numbers) if numbers.events.len() == waiting.len() => numbers,
            outcome => {
                let refused = outcome.err().unwrap_or(UNREACHABLE);
                relaying.figures.refused += waiting.len() as u64;
                for Waiting { reply, kind, received_us, own, .. } in waiting {
                    match own {
                        Some((data, key)) => self.keep_unsaid(room.clone(), kind, data, key, received_us),
                        None => self.answer(reply, room.clone(), Err(refused.clone())),
                    }
                }
                return;
            }
        };
        let place = self.rules.place(room.as_str());
        let home = self.rooms.find(room).and_then(|id| self.rooms.get(id)).and_then(|room| room.home.as_deref());
        let (here, queued) = home.map_or((0, 0), Home::audience);
        // Of the others it is known that they follow the room, not how many of their connections do.
        let elsewhere = numbers.nodes.saturating_sub(u32::from(home.is_some()));
        let is_followed = home.is_some();
        for (waiting, numbered) in waiting.into_iter().zip(numbers.events) {
            let Waiting { reply, id, kind, received_us, exclude, .. } = waiting;
            let (duplicate, seq) = (numbered.duplicate_of.is_some(), numbered.seq);
            if duplicate {
                self.figures.duplicates += 1;
            } else {
                self.figures.publishes += 1;
                self.kind_publishes.add(place);
                if !is_followed {
                    // Where it is, that is noted when the event comes.
                    self.recorder.published(&id, &kind, room.hash(), seq, received_us, exclude);
                }
            }
            let id = numbered.duplicate_of.unwrap_or(id);
            let delivered = here.saturating_add(elsewhere);
            let (epoch, nodes) = (numbers.epoch, elsewhere);
            let published = Published { id, seq, epoch, duplicate, delivered, queued, nodes };
            self.answer(reply, room.clone(), Ok(published));
        }
    }

    fn keep_unsaid(&mut self, room: RoomName, kind: Box<str>, data: Bytes, key: Option<Box<str>>, received_us: u64) {
        let Some(relaying) = self.relaying.as_deref_mut() else { return };
        if relaying.unsaid.len() < UNSAID_MAX {
            let (exclude, reply) = (None, ReplyTo::Nobody);
            relaying.unsaid.push(Publish { room, kind, data, key, exclude, received_us, reply });
        } else {
            relaying.figures.unsaid_lost += 1;
        }
    }

    fn carried(&mut self, carried: Carried) {
        let Carried { room, epoch, first_seq, events } = carried;
        let Some(id) = self.rooms.find(&room) else { return };
        let Some(home) = self.home_mut(id) else { return };
        let (seq, at) = (home.seq, home.epoch);
        let Some(relayed) = home.relayed_mut() else { return };
        if relayed.state != State::Known {
            // The answer has it, or is followed by it.
            return;
        }
        if at != epoch || first_seq != seq + 1 {
            return self.lost_place(id);
        }
        if let Some(relaying) = self.relaying.as_deref_mut() {
            relaying.figures.carried += events.len() as u64;
        }
        for event in events {
            self.note_freed(id, &event);
            self.append(id, event);
        }
    }

    /// What came does not follow on what there is, though the broker sees to that: the state is asked for again.
    fn lost_place(&mut self, id: RoomId) {
        let Some(room) = self.rooms.get_mut(id) else { return };
        let Some(home) = room.home.as_deref_mut() else { return };
        let (epoch, seq) = (home.epoch, home.seq);
        let Some(relayed) = home.relayed_mut() else { return };
        relayed.state = State::Asked;
        let from = Some(Place { epoch, seq, id: relayed.last_id });
        let room = room.name.clone();
        if let Some(relaying) = self.relaying.as_deref_mut() {
            relaying.figures.lost_places += 1;
            relaying.out.push(ToBroker::Follow { room, from });
        }
    }

    /// Puts an event that has its number behind the others of the turn.
    fn append(&mut self, id: RoomId, event: BrokeredEvent) {
        let now_us = self.now.monotonic_us;
        if self.home_mut(id).is_some_and(|home| home.open_bytes() >= BATCH_BYTES_MAX) {
            self.seal(id);
        }
        let node = self.relaying.as_deref().map_or(0, |relaying| relaying.node);
        let BrokeredEvent { id: event_id, unix_ms, kind, data, key, exclude } = event;
        let exclude = exclude.filter(|origin| origin.node == node).map(|origin| origin.address);
        let key = key.map_or(0, |key| self.hasher.hash(&*key) | 1);
        let stamp = Stamp { id: event_id, timestamp: rfc3339(unix_ms) };
        let Some(room) = self.rooms.get_mut(id) else { return };
        let Some(home) = room.home.as_deref_mut() else { return };
        home.seq += 1;
        if let Some(relayed) = home.relayed_mut() {
            relayed.last_id = event_id;
        }
        let (seq, is_first) = (home.seq, home.open.is_none());
        let is_wanted = home.members_total() > 0 || self.rules.log(home.rules).events_max > 0;
        self.recorder.published(&event_id, &kind, room.name.hash(), seq, now_us, exclude);
        if !is_wanted {
            return;
        }
        let event = Event { room: room.name.as_str(), kind: &kind, seq, data: &data };
        let open = home.open.get_or_insert_default();
        open.push(&stamp, &event, exclude, key);
        if is_first {
            open.received_us = now_us;
            self.unsealed.push(id);
        }
    }

    // ---- the state of a room ----

    fn followed(&mut self, room: &RoomName, outcome: Result<Box<Followed>, Refused>) {
        let Some(id) = self.rooms.find(room) else { return };
        match outcome {
            Ok(followed) if followed.continues => self.goes_on(id, *followed),
            Ok(followed) => self.begins_anew(id, *followed),
            Err(_) => return self.not_followed(id),
        }
        if let Some(relayed) = self.home_mut(id).and_then(Home::relayed_mut) {
            relayed.state = State::Known;
            let waiting = mem::take(&mut relayed.waiting);
            self.no_longer_waiting(waiting);
        }
        self.rooms.forget_if_idle(id);
    }

    fn no_longer_waiting(&mut self, waiting: Vec<Deferred>) {
        let now = self.now;
        for deferred in waiting {
            match deferred {
                // Homes alone are waited for.
                Deferred::Message(message) => drop(self.handle(message, now)),
                Deferred::History(call) => self.history_call(call),
            }
        }
    }

    /// Keeps what is asked of a room until its state is known; gives back what need not wait.
    pub(super) fn await_state(&mut self, message: Message) -> Option<Message> {
        if self.relaying.is_none() {
            return Some(message);
        }
        let Some(room) = message.home_room() else { return Some(message) };
        // These can't be done without the state: the home is made for them.
        let id = match &message {
            Message::Join(_) | Message::History(_) => self.ensure_home(room),
            _ => self.rooms.find(room),
        };
        let Some(id) = id else { return Some(message) };
        let is_about_log = match &message {
            Message::Join(join) => join.since.is_some(),
            message => matches!(message, Message::History(_) | Message::CatchUp(_)),
        };
        if is_about_log {
            self.fill_up(id);
        }
        let Some(relayed) = self.home_mut(id).and_then(Home::relayed_mut) else { return Some(message) };
        match relayed.state {
            State::Known => Some(message),
            // A room of which so many want something at once can't answer them all either.
            State::Asked if relayed.waiting.len() < WAITING_MAX => {
                relayed.waiting.push(Deferred::Message(message));
                None
            }
            State::Asked | State::Unreachable => self.without_state(message),
        }
    }

    /// Has a log that had to give way read again.
    fn fill_up(&mut self, id: RoomId) {
        let Some(room) = self.rooms.get_mut(id) else { return };
        let Some(relayed) = room.home.as_deref_mut().and_then(Home::relayed_mut) else { return };
        if relayed.state == State::Known && mem::take(&mut relayed.is_thin) {
            relayed.state = State::Asked;
            let room = room.name.clone();
            if let Some(relaying) = self.relaying.as_deref_mut() {
                relaying.out.push(ToBroker::Follow { room, from: None });
            }
        }
    }

    /// Answers with a part of a room's log.
    pub fn history_call(&mut self, call: HistoryCall) {
        if self.relaying.is_some() {
            let Some(id) = self.ensure_home(&call.room) else { return call.responder.resolve(Err(OVERLOADED.into())) };
            self.fill_up(id);
            let relayed = self.home_mut(id).and_then(Home::relayed_mut);
            if let Some(relayed) = relayed.filter(|relayed| relayed.state != State::Known) {
                if relayed.state == State::Unreachable || relayed.waiting.len() >= WAITING_MAX {
                    return call.responder.resolve(Err(UNREACHABLE.into()));
                }
                relayed.waiting.push(Deferred::History(call));
                return;
            }
        }
        let HistoryCall { room, since, limit, reverse, responder } = call;
        responder.resolve(Ok(self.history_text(&room, since.as_ref(), limit, reverse)));
        if let Some(id) = self.rooms.find(&room) {
            self.rooms.forget_if_idle(id);
        }
    }

    /// Has the broker forget a room's log, which has every node forget it.
    pub(super) fn clear_relayed(&mut self, room: &RoomName, responder: Responder<u64>) {
        let Some(relaying) = self.relaying.as_deref_mut() else { return };
        if relaying.clears.len() >= CLEARS_MAX {
            return responder.resolve(Err(OVERLOADED.into()));
        }
        relaying.number += 1;
        let number = relaying.number;
        relaying.clears.insert(number, responder);
        relaying.out.push(ToBroker::Clear { room: room.clone(), number });
    }

    fn emptied(&mut self, room: &RoomName, epoch: u64, log_from: u64) {
        let Some(id) = self.rooms.find(room) else { return };
        self.seal(id);
        let Some(home) = self.home_mut(id).filter(|home| home.epoch == epoch) else { return };
        let before = home.log.bytes();
        home.log.let_go_before(log_from);
        let after = home.log.bytes();
        self.log_bytes = (self.log_bytes + after).saturating_sub(before);
        self.rooms.forget_if_idle(id);
    }

    /// Nothing is missing behind what there was.
    fn goes_on(&mut self, id: RoomId, followed: Followed) {
        let Followed { epoch, first_seq, events, .. } = followed;
        let Some(home) = self.home_mut(id) else { return };
        if home.seq == 0 && home.log.is_empty() {
            home.epoch = epoch;
        }
        let known = home.seq;
        for (seq, event) in (first_seq..).zip(events) {
            if seq > known {
                self.append(id, event);
            }
        }
    }

    /// The log is another than the one that was known, or has lost what would have come next. Members are told what they
    /// missed, as far as that can be known, and read on from there.
    fn begins_anew(&mut self, id: RoomId, followed: Followed) {
        // What had come before goes out first.
        self.seal(id);
        let Followed { epoch, seq, first_seq, events, .. } = followed;
        let Some(home) = self.home_mut(id) else { return };
        let had_members = home.members_total() > 0;
        let is_same = home.epoch == epoch && home.seq <= seq;
        let after_seq = if is_same { home.seq } else { BEFORE_ALL };
        let is_missing = after_seq != seq;
        let before = home.log.bytes();
        home.log.clear();
        home.epoch = epoch;
        home.seq = first_seq.saturating_sub(1);
        self.log_bytes = self.log_bytes.saturating_sub(before);
        if had_members && is_missing && let Some(relaying) = self.relaying.as_deref_mut() {
            relaying.figures.renewed += 1;
        }
        self.restock(id, events);
        let Some(room) = self.rooms.get_mut(id) else { return };
        let Some(home) = room.home.as_deref_mut() else { return };
        home.seq = seq;
        if !is_missing {
            return;
        }
        let shards: Vec<_> = home.shards_with_members().collect();
        let room = room.name.clone();
        for shard in shards {
            self.send(shard, Message::Renewed { room: room.clone(), after_seq });
        }
    }

    /// Puts events that are not live any more into a log.
    fn restock(&mut self, id: RoomId, events: Vec<BrokeredEvent>) {
        for event in events {
            let unix_ms = event.unix_ms;
            self.append(id, event);
            let is_full = self.home_mut(id).is_some_and(|home| home.open_bytes() >= RESTOCK_BYTES);
            if is_full {
                self.stock(id, unix_ms);
            }
        }
        let unix_ms = self.now.unix_ms;
        self.stock(id, unix_ms);
    }

    fn stock(&mut self, id: RoomId, unix_ms: u64) {
        let Some(room) = self.rooms.get_mut(id) else { return };
        let Some(open) = room.home.as_deref_mut().and_then(|home| home.open.take()) else { return };
        self.unsealed.retain(|one| *one != id);
        let batch = Arc::new(open.seal(room.name.clone(), &self.memory, unix_ms));
        self.keep(id, &batch);
    }

    /// The broker can't say what there is of a room. Who waits for that is refused; who is a member already stays one.
    fn not_followed(&mut self, id: RoomId) {
        let Some(relayed) = self.home_mut(id).and_then(Home::relayed_mut) else { return };
        relayed.state = State::Unreachable;
        let waiting = mem::take(&mut relayed.waiting);
        self.no_longer_waiting(waiting);
        self.rooms.forget_if_idle(id);
    }

    /// Refuses what can't be done without the room's state; gives back what can.
    fn without_state(&mut self, message: Message) -> Option<Message> {
        match message {
            Message::Join(join) => {
                let Join { room, address, selection, ticket, .. } = *join;
                let outcome = Err(JoinRefused::Broker);
                let (replay, resume_token, turn, withdrawn) = (None, None, Turn::default(), None);
                let joined = Joined { room, address, selection, ticket, outcome, replay, resume_token, turn, withdrawn };
                self.send(address.shard, Message::Joined(Box::new(joined)));
            }
            Message::History(ask) => {
                let HistoryAsked { room, address, ticket, .. } = *ask;
                let outcome = Err(UNREACHABLE);
                self.send(address.shard, Message::Published { address, ticket, room, outcome });
            }
            other => return Some(other),
        }
        None
    }
}

/// Bytes of a batch of events that are read into a log.
const RESTOCK_BYTES: usize = 64 * 1024;

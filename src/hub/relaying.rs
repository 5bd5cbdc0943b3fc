//! What a shard has to do with the broker where several nodes share their rooms: events on their way to it, who waits for
//! their numbers, and what of the rest waits for an answer.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;

use bytes::Bytes;
use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::batch::Address;
use super::brokered::{BrokeredEvent, EventKey, FromBroker, IN_DOUBT, Keep, Numbers, Origin, Submission, ToBroker};
use super::core::Core;
use super::locks::LockAsked;
use super::message::{OVERLOADED, Publish, Published, ReplyTo};
use super::moved_locks::{Left, Moved};
use super::name::RoomName;
use super::relayed::Relayed;
use super::reply::Responder;
use super::rooms::Home;
use super::shared_locks::{LockWait, NotedLock, Unfreed};
use crate::wire::codes::ErrorCode;
use crate::wire::native::Refused;

/// Events of the hub itself that wait for a broker that can't be reached.
const UNSAID_MAX: usize = 65_536;
/// Counted for each publisher that waits for the broker, besides its event.
const WAITING_BYTES: usize = 256;
/// Events of a submission: what a script of the broker takes in one call.
const SUBMISSION_EVENTS_MAX: usize = 500;
/// Bytes of a submission at which another one is begun.
const SUBMISSION_BYTES_MAX: usize = 4 << 20;

/// What a shard has to do with the broker.
#[derive(Debug)]
pub(super) struct Relaying {
    /// This run of this node.
    pub(super) node: u64,
    /// The number of the last submission, or of whatever else is to be answered.
    pub(super) number: u64,
    /// What was published this turn, by room.
    open: Vec<Open>,
    places: HashMap<RoomName, usize, FixedState>,
    /// Who waits for the answer to a submission, by its number.
    pending: HashMap<u64, Pending, FixedState>,
    /// Bytes of the events that wait for an answer.
    pending_bytes: usize,
    pub(super) clears: HashMap<u64, Responder<u64>, FixedState>,
    /// Calls about locks that are not answered yet, by their number.
    pub(super) locks: HashMap<u64, LockWait, FixedState>,
    /// What is asked of locks of which the broker is being asked something.
    pub(super) asking: HashMap<(RoomName, Arc<str>), VecDeque<LockAsked>, FixedState>,
    /// Locks that this node holds, or not any more, since that was taken last.
    pub(super) noted_locks: Vec<(RoomName, NotedLock, bool)>,
    /// What the hub itself has to say and the broker did not take.
    unsaid: Vec<Unsaid>,
    /// Locks that have ended here, of which the broker could not be told.
    pub(super) unfreed: Vec<Unfreed>,
    /// Locks that came with their sessions from other nodes, of which the broker could not be told.
    pub(super) unmoved: Vec<Moved>,
    /// Locks that have left with their sessions: they may not be asked for again by what those left behind, and it is seen
    /// to that one which never arrives is told to have ended.
    pub(super) left: HashMap<(RoomName, Arc<str>), Left, FixedState>,
    /// Whether what waited for a room's state is being done.
    pub(super) is_settling: bool,
    /// What is still to be handed over.
    pub(super) out: Vec<ToBroker>,
    pub(super) figures: RelayFigures,
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
    own: Option<(Bytes, Box<str>)>,
}

/// An event that the hub itself has to say and the broker did not take.
#[derive(Debug)]
struct Unsaid {
    room: RoomName,
    kind: Box<str>,
    data: Bytes,
    key: Box<str>,
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
            noted_locks: Vec::new(),
            unsaid: Vec::new(),
            unfreed: Vec::new(),
            unmoved: Vec::new(),
            left: HashMap::with_hasher(FixedState::with_seed(seed)),
            is_settling: false,
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
        let figures =
            |relaying: &Relaying| RelayFigures { pending_bytes: relaying.pending_bytes as u64, ..relaying.figures };
        self.relaying.as_deref().map(figures).unwrap_or_default()
    }

    /// Whether somebody waits for the broker's answer, which comes or is given up within `broker.redis.timeout_ms`. What the
    /// hub itself has to say is said for as long as it takes, and keeps nobody waiting.
    pub fn awaits_broker(&self) -> bool {
        let is_awaited = |waiting: &Waiting| waiting.own.is_none() && !matches!(waiting.reply, ReplyTo::Nobody);
        self.relaying.as_deref().is_some_and(|relaying| {
            let open = relaying.open.iter().flat_map(|open| &open.waiting);
            let pending = relaying.pending.values().flat_map(|pending| &pending.waiting);
            !relaying.clears.is_empty() || open.chain(pending).any(is_awaited)
        })
    }

    /// Whether the broker has yet to hear something that this node will not say again should it end: what the hub itself tells
    /// rooms, locks that have ended or come, and what became of those that have left.
    pub fn owes_broker(&self) -> bool {
        self.relaying.as_deref().is_some_and(|relaying| {
            let open = relaying.open.iter().flat_map(|open| &open.waiting);
            let pending = relaying.pending.values().flat_map(|pending| &pending.waiting);
            let is_said = relaying.unsaid.is_empty() && !open.chain(pending).any(|waiting| waiting.own.is_some());
            let is_told = relaying.locks.is_empty() && relaying.unfreed.is_empty() && relaying.unmoved.is_empty();
            !is_said || !is_told || relaying.left.values().any(Left::is_unsettled)
        })
    }

    /// What a new home has to know of the broker; it asks for the room's state.
    pub(super) fn relayed_home(relaying: &mut Option<Box<Relaying>>, room: &RoomName, home: &mut Home) {
        if let Some(relaying) = relaying {
            relaying.out.push(ToBroker::Follow { room: room.clone(), from: None, claim: None });
            home.contents().relayed = Some(Box::new(Relayed::asked()));
        }
    }

    // ---- publishing ----

    /// Puts an event behind the others of the turn; it is answered when the broker has numbered it.
    pub(super) fn publish_relayed(&mut self, publish: Publish) {
        self.relay(publish, None);
    }

    /// The same for what the hub itself has to say of a room: while the broker can't be reached, it is said again, and by its
    /// key no more than once; by one that is drawn where there is none.
    pub(super) fn say_relayed(&mut self, room: RoomName, kind: &str, data: Bytes, key: Option<Box<str>>) {
        let key = key.unwrap_or_else(|| {
            let drawn = self.ids.stamp(self.now.unix_ms).id;
            String::from_utf8_lossy(&drawn).into_owned().into_boxed_str()
        });
        self.say(Unsaid { room, kind: kind.into(), data, key });
    }

    fn say(&mut self, unsaid: Unsaid) {
        let Unsaid { room, kind, data, key } = unsaid;
        let (received_us, reply) = (self.now.monotonic_us, ReplyTo::Nobody);
        self.relay(Publish { room, kind, data, key: None, exclude: None, received_us, reply }, Some(key));
    }

    /// Says once more what the broker did not take; to be called once a second.
    pub(super) fn say_again(&mut self) {
        let unsaid = self.relaying.as_deref_mut().map(|relaying| mem::take(&mut relaying.unsaid)).unwrap_or_default();
        unsaid.into_iter().for_each(|unsaid| self.say(unsaid));
    }

    fn relay(&mut self, publish: Publish, own_key: Option<Box<str>>) {
        let Publish { room, kind, data, key, exclude, received_us, reply } = publish;
        let bytes_max = self.limits.broker_pending_bytes_max;
        let id = self.ids.stamp(self.now.unix_ms).id;
        let unix_ms = self.now.unix_ms;
        let Some(relaying) = self.relaying.as_deref_mut() else { return };
        let bytes = data.len() + kind.len() + WAITING_BYTES;
        // One event of any size is always taken.
        if relaying.pending_bytes > 0 && relaying.pending_bytes + bytes > bytes_max {
            relaying.figures.refused += 1;
            return match own_key {
                Some(key) => self.keep_unsaid(Unsaid { room, kind, data, key }),
                None => self.answer(reply, room, Err(OVERLOADED)),
            };
        }
        relaying.pending_bytes += bytes;
        let origin = exclude.map(|address| Origin { node: relaying.node, address });
        let own = own_key.clone().map(|key| (data.clone(), key));
        let key = own_key.map(EventKey::OfHub).or(key.map(EventKey::Given));
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
                // Numbers for other events than these: they are published, and it is not known as what.
                let refused = outcome.err().unwrap_or(Refused::new(ErrorCode::Unavailable, IN_DOUBT));
                relaying.figures.refused += waiting.len() as u64;
                for Waiting { reply, kind, own, .. } in waiting {
                    match own {
                        Some((data, key)) => self.keep_unsaid(Unsaid { room: room.clone(), kind, data, key }),
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
        self.note_answered(room, &numbers);
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

    /// What a publisher is told to be in the log has to be there when it looks.
    fn note_answered(&mut self, room: &RoomName, numbers: &Numbers) {
        let Some(last) = numbers.events.iter().map(|numbered| numbered.seq).max() else { return };
        let home = self.rooms.find(room).and_then(|id| self.home_mut(id));
        if let Some(relayed) = home.filter(|home| home.epoch == numbers.epoch).and_then(Home::relayed_mut) {
            relayed.note_answered(last);
        }
    }

    fn keep_unsaid(&mut self, unsaid: Unsaid) {
        let Some(relaying) = self.relaying.as_deref_mut() else { return };
        if relaying.unsaid.len() < UNSAID_MAX {
            relaying.unsaid.push(unsaid);
        } else {
            relaying.figures.unsaid_lost += 1;
        }
    }
}

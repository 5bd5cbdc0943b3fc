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

use std::mem;
use std::sync::Arc;

use super::brokered::{BrokeredEvent, Carried, EventKey, Followed, Place, ToBroker};
use super::core::{Core, epoch_text};
use super::message::{HistoryAsked, Join, JoinClaim, JoinRefused, Joined, Message, OVERLOADED};
use super::name::RoomName;
use super::presence::Turn;
use super::publish::BATCH_BYTES_MAX;
use super::reply::Responder;
use super::rooms::{Home, RoomId};
use crate::wire::codes::ErrorCode;
use crate::wire::envelope::{Event, Stamp, rfc3339};
use crate::wire::native::{Refused, Since};

/// The answer to who wants into a room whose state can't be had.
pub(super) const UNREACHABLE: Refused =
    Refused::new(ErrorCode::Unavailable, "the broker can't be reached right now; the room's state is not known");
/// Logs that may be waiting to be emptied.
const CLEARS_MAX: usize = 1024;
/// What is asked of one room while its state is not known.
const WAITING_MAX: usize = 65_536;
/// Bytes of a batch of events that are read into a log.
const RESTOCK_BYTES: usize = 64 * 1024;
/// How far apart the events of such a batch were published, in milliseconds.
const RESTOCK_MS: u64 = 1000;
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
    /// The largest number that a client said to have been given, of which the broker was told.
    claimed: u64,
    /// The last number that a publisher of this node was told; what comes from the broker may be behind that.
    answered: u64,
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

impl Relayed {
    pub(super) fn asked() -> Relayed {
        Relayed { state: State::Asked, last_id: [0; 36], is_thin: false, claimed: 0, answered: 0, waiting: Vec::new() }
    }

    /// A publisher of this node is told that its event has this number.
    pub(super) fn note_answered(&mut self, seq: u64) {
        self.answered = self.answered.max(seq);
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
    /// Events that follow on what this home has.
    pub(super) fn carried(&mut self, carried: Carried) {
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
            relaying.out.push(ToBroker::Follow { room, from, claim: None });
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
        let key = match key {
            Some(EventKey::Given(key)) => self.hasher.hash(&*key) | 1,
            Some(EventKey::OfHub(_)) | None => 0,
        };
        let stamp = Stamp { id: event_id, timestamp: rfc3339(unix_ms) };
        let Some(room) = self.rooms.get_mut(id) else { return };
        let Some(home) = room.home.as_deref_mut() else { return };
        home.seq += 1;
        if let Some(relayed) = home.relayed_mut() {
            relayed.last_id = event_id;
        }
        let (seq, is_first) = (home.seq, !home.has_open());
        let is_wanted = home.members_total() > 0 || self.rules.log(home.rules).events_max > 0;
        self.recorder.published(&event_id, &kind, room.name.hash(), seq, now_us, exclude);
        if !is_wanted {
            return;
        }
        let event = Event { room: room.name.as_str(), kind: &kind, seq, data: &data };
        let open = home.contents().open.get_or_insert_default();
        open.push(&stamp, &event, exclude, key);
        if is_first {
            open.received_us = now_us;
            self.unsealed.push(id);
        }
    }

    /// The room's state, or that it can't be had.
    pub(super) fn followed(&mut self, room: &RoomName, outcome: Result<Box<Followed>, Refused>) {
        let Some(id) = self.rooms.find(room) else { return };
        let known = self.home_mut(id).map_or(0, |home| home.seq);
        match outcome {
            // A number must never be given to another event, whatever the broker says.
            Ok(followed) if followed.continues && followed.first_seq > known + 1 => return self.lost_place(id),
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
        self.set_settling(true);
        for deferred in waiting {
            match deferred {
                Deferred::Message(message) => {
                    // What a home gives back is for its shard, which finds it behind what it has to do already.
                    let given_back = self.handle(message, now);
                    self.local.extend(given_back);
                }
                Deferred::History(call) => self.history_call(call),
            }
        }
        self.set_settling(false);
    }

    /// What waited for a room's state goes by it, whether or not it fits what clients say.
    fn set_settling(&mut self, is_settling: bool) {
        if let Some(relaying) = self.relaying.as_deref_mut() {
            relaying.is_settling = is_settling;
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
        if let Message::Join(join) = &message {
            match (&join.since, &join.claim) {
                (Some(Since::Seq { seq, epoch: Some(epoch) }), _) => self.doubt(id, *seq, epoch),
                (_, JoinClaim::Given { epoch, seq }) => self.doubt(id, *seq, &epoch_text(*epoch)),
                _ => {}
            }
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

    /// A client's place does not fit what this home knows of the log: another node may have been ahead of this one, or the log
    /// may have lost its end, and with it numbers that come next were given before. The room's state is read once more before
    /// the client is answered.
    fn doubt(&mut self, id: RoomId, seq: u64, epoch: &str) {
        let is_settling = self.relaying.as_deref().is_some_and(|relaying| relaying.is_settling);
        let Some(room) = self.rooms.get_mut(id) else { return };
        let Some(home) = room.home.as_deref_mut() else { return };
        let (at, last_seq) = (home.epoch, home.seq);
        let is_same = *epoch_text(at) == *epoch;
        if is_same && seq <= last_seq {
            return;
        }
        let Some(relayed) = home.relayed_mut().filter(|relayed| relayed.state == State::Known) else { return };
        // What waited for the state is not asked again, unless the broker could not be told of it before.
        if is_settling && (!is_same || relayed.claimed >= seq) {
            return;
        }
        if is_same {
            relayed.claimed = relayed.claimed.max(seq);
        }
        relayed.state = State::Asked;
        let from = Some(Place { epoch: at, seq: last_seq, id: relayed.last_id });
        let claim = is_same.then_some((at, seq));
        let room = room.name.clone();
        if let Some(relaying) = self.relaying.as_deref_mut() {
            relaying.out.push(ToBroker::Follow { room, from, claim });
        }
    }

    /// Has a log read again that had to give way, or that lacks what a publisher of this node was told to be in it.
    fn fill_up(&mut self, id: RoomId) {
        let is_settling = self.relaying.as_deref().is_some_and(|relaying| relaying.is_settling);
        let Some(room) = self.rooms.get_mut(id) else { return };
        let Some(home) = room.home.as_deref_mut() else { return };
        let (epoch, seq) = (home.epoch, home.seq);
        let Some(relayed) = home.relayed_mut().filter(|relayed| relayed.state == State::Known) else { return };
        let is_thin = mem::take(&mut relayed.is_thin);
        let is_behind = relayed.answered > seq && !is_settling;
        if !is_thin && !is_behind {
            return;
        }
        relayed.state = State::Asked;
        let from = (!is_thin).then_some(Place { epoch, seq, id: relayed.last_id });
        // Read without a place, a log that has lost its end would look as if it had never been longer.
        let claim = is_thin.then_some((epoch, seq));
        let room = room.name.clone();
        if let Some(relaying) = self.relaying.as_deref_mut() {
            relaying.out.push(ToBroker::Follow { room, from, claim });
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

    /// The log was emptied, here or at another node.
    pub(super) fn emptied(&mut self, room: &RoomName, epoch: u64, log_from: u64) {
        let Some(id) = self.rooms.find(room) else { return };
        self.seal(id);
        let Some(home) = self.home_mut(id).filter(|home| home.epoch == epoch) else { return };
        let before = home.log().bytes();
        home.shorten_log(|log| log.let_go_before(log_from));
        let after = home.log().bytes();
        self.log_bytes = (self.log_bytes + after).saturating_sub(before);
        self.rooms.forget_if_idle(id);
    }

    /// Nothing is missing behind what there was.
    fn goes_on(&mut self, id: RoomId, followed: Followed) {
        let Followed { epoch, first_seq, events, .. } = followed;
        let Some(home) = self.home_mut(id) else { return };
        if home.seq == 0 && home.log().is_empty() {
            home.epoch = epoch;
        }
        let known = home.seq;
        for (seq, event) in (first_seq..).zip(events) {
            if seq > known {
                self.note_freed(id, &event);
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
        let before = home.log().bytes();
        home.clear_log();
        if home.epoch != epoch
            && let Some(relayed) = home.relayed_mut()
        {
            (relayed.answered, relayed.claimed) = (0, 0);
        }
        home.epoch = epoch;
        home.seq = first_seq.saturating_sub(1);
        self.log_bytes = self.log_bytes.saturating_sub(before);
        if had_members
            && is_missing
            && let Some(relaying) = self.relaying.as_deref_mut()
        {
            relaying.figures.renewed += 1;
        }
        self.restock(id, events);
        let Some(room) = self.rooms.get_mut(id) else { return };
        let Some(home) = room.home.as_deref_mut() else { return };
        home.seq = seq;
        if !is_missing {
            return;
        }
        let shards: Vec<_> = home.members.shards().collect();
        let room = room.name.clone();
        for shard in shards {
            self.send(shard, Message::Renewed { room: room.clone(), epoch, after_seq });
        }
    }

    /// Puts events that are not live any more into a log: in batches of what was published at about the same time, by which
    /// a log tells old events from new ones. Events of a clock that is late count as those before them.
    fn restock(&mut self, id: RoomId, events: Vec<BrokeredEvent>) {
        let now_ms = self.now.unix_ms;
        let (mut first_ms, mut last_ms) = (0, 0);
        for event in events {
            let unix_ms = event.unix_ms.min(now_ms).max(last_ms);
            let is_full = self.home_mut(id).is_some_and(|home| home.open_bytes() >= RESTOCK_BYTES);
            if is_full || unix_ms > first_ms + RESTOCK_MS {
                self.stock(id, last_ms);
                first_ms = unix_ms;
            }
            last_ms = unix_ms;
            self.note_freed(id, &event);
            self.append(id, event);
        }
        self.stock(id, last_ms);
    }

    fn stock(&mut self, id: RoomId, unix_ms: u64) {
        let Some(room) = self.rooms.get_mut(id) else { return };
        let Some(open) = room.home.as_deref_mut().and_then(|home| home.take_open()) else { return };
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
                let joined =
                    Joined { room, address, selection, ticket, outcome, replay, resume_token, turn, withdrawn };
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

#[cfg(test)]
mod tests {
    use super::super::batch::Address;
    use super::super::core::CoreLimits;
    use super::super::message::{JoinClaim, Resume, ResumeAsked, Ticket};
    use super::super::name::{NameHasher, ShardId};
    use super::super::reply::pending;
    use super::super::rules::Rules;
    use super::*;
    use crate::auth::Identity;
    use crate::config::Config;
    use crate::ring::{ConnKey, Now};

    const ME: Address = Address { shard: ShardId(0), conn: ConnKey { slot: 1, generation: 1 } };
    const NOW: Now = Now { monotonic_us: 1_000_000, unix_ms: 1_700_000_000_000 };

    fn core() -> Core {
        let config = Config::default();
        let (limits, rules) = (CoreLimits::new(&config), Rules::new(&config));
        let mut core = Core::new(ShardId(0), 1, NameHasher::new(1), [1, 2], limits, rules);
        core.set_now(NOW);
        core.begin_relaying(7);
        core
    }

    fn event(unix_ms: u64) -> BrokeredEvent {
        let (kind, data) = ("a".into(), bytes::Bytes::from_static(b"1"));
        BrokeredEvent { id: [b'i'; 36], unix_ms, kind, data, key: None, exclude: None }
    }

    fn followed(core: &mut Core, room: &RoomName, events: Vec<BrokeredEvent>) {
        let seq = events.len() as u64;
        let state = Followed { epoch: 9, seq, continues: false, first_seq: 1, events };
        core.followed(room, Ok(Box::new(state)));
    }

    #[test]
    fn what_a_home_has_for_its_shard_is_not_lost_where_it_had_to_wait() {
        let mut core = core();
        let room = core.hasher().room("session:s");
        // Somebody looks into the session's room, so that its state is asked for.
        let (responder, told) = pending();
        core.history_call(HistoryCall { room: room.clone(), since: None, limit: 10, reverse: false, responder });
        let identity = Arc::new(Identity::anonymous("alice".to_owned()));
        let asked = ResumeAsked::default();
        let resume = Resume { room: room.clone(), address: ME, identity, token: [0; 16], was_sought: false, asked };
        assert!(core.handle(Message::Resume(Box::new(resume)), NOW).is_none(), "it waits");
        followed(&mut core, &room, Vec::new());
        assert!(told.wait().is_ok());
        // The session is not here; the shard has to look for it at other nodes.
        let next = core.next_local();
        assert!(matches!(&next, Some(Message::Resume(_))), "{next:?}");
        let given_back = next.and_then(|message| core.handle(message, NOW));
        assert!(matches!(given_back, Some(Message::Resume(_))), "{given_back:?}");
    }

    #[test]
    fn a_log_that_was_read_tells_old_events_from_new_ones() {
        let mut core = core();
        let room = core.hasher().room("project:1");
        let since = Some(Since::Seconds(60));
        let (claim, selection, ticket) = (JoinClaim::None, None, Ticket::Single(None));
        let join = Join { room: room.clone(), address: ME, claim, selection, since, ticket };
        assert!(core.handle(Message::Join(Box::new(join)), NOW).is_none());
        let ages_s = [3000, 600, 61, 59, 10, 0];
        // By the clocks of two nodes, the second of which is late.
        let mut events: Vec<_> = ages_s.iter().map(|age_s| event(NOW.unix_ms - age_s * 1000)).collect();
        events.insert(5, event(NOW.unix_ms - 90_000));
        followed(&mut core, &room, events);
        let Some(Message::Joined(joined)) = core.next_local() else { panic!("it is answered") };
        let batches = joined.replay.expect("a replay");
        let seqs: Vec<u64> = batches.iter().flat_map(|batch| batch.events.iter().map(|event| event.seq)).collect();
        assert_eq!(seqs, [4, 5, 6, 7], "of the last minute, and what came behind those");
    }
}

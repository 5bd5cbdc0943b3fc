//! Durable rooms at their home: events get their number and are encoded as ever, but a sealed batch is neither in the log
//! nor on its way to anybody, and its publishers are not answered, before the journal has it.
//!
//! ```text
//! publish ─► open batch ─► seal ─► pending ─► journal ─► acknowledged: log, members, answers
//!              given            ▲                │
//!                               └── failed: answered `unavailable`, the numbers are given anew
//! ```
//!
//! Whatever a room says of itself (its `seq`, its history, replays) is about acknowledged events: [`Home::seq`] is the last
//! of those, [`Durable::given`] the last number given. A failure of the journal takes back all that was pending, on every
//! shard, so that no number is missing.
//!
//! [`Home::seq`]: super::rooms::Home::seq

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::fast::FixedState;

use super::batch::Batch;
use super::clear::Clearing;
use super::core::Core;
use super::keys::KEY_AGE_MS;
use super::message::{OVERLOADED, Publish, Published, ReplyTo};
use super::publish::BATCH_BYTES_MAX;
use super::rooms::{Home, RoomId};
use super::stored::{Entry, Progress, Sealed, StoredRoom};
use crate::config::DurableAck;
use crate::ring::Now;
use crate::wire::codes::ErrorCode;
use crate::wire::envelope::Event;
use crate::wire::native::Refused;

/// The answer while the journal can't be written, and for what was on its way when it failed.
const JOURNAL_FAILED: Refused =
    Refused::new(ErrorCode::Unavailable, "the journal can't be written right now; the event was not published");
/// The answer where the logs of durable rooms have all the memory that they may have.
const LOGS_FULL: Refused = Refused::new(
    ErrorCode::Unavailable,
    "the logs of durable rooms are full; try again when older events have expired",
);

/// Counted for each publisher that waits for an event of another one's (the same key): nearly nothing, but not nothing.
const WAITING_BYTES: usize = 256;

/// What the home of a durable room knows besides.
#[derive(Debug)]
pub struct Durable {
    /// The last number given; those after the room's `seq` wait for the journal.
    pub given: u64,
    /// Batches that wait for the journal, and times that the log is being emptied.
    pub(super) pending: u32,
    /// When its events are acknowledged.
    ack: DurableAck,
    /// Whose events are in the open batch.
    waiting: Vec<Waiting>,
    /// A room that was read from the journal stays that long though nobody is there, so that its members find it again;
    /// in milliseconds of the monotonic clock, 0 once it is over.
    held_until_ms: u64,
}

/// A publisher that waits for the journal.
#[derive(Debug)]
struct Waiting {
    reply: ReplyTo,
    published: Published,
    key: Option<Box<str>>,
}

/// What a shard has to do with the journal.
#[derive(Debug, Default)]
pub struct Journaling {
    /// The number of the last batch handed over.
    pub(super) number: u64,
    pub(super) failures: u64,
    pub(super) is_up: bool,
    /// Batches that wait until they are written, and until they are synced.
    written: VecDeque<Pending>,
    synced: VecDeque<Pending>,
    /// Logs that are emptied when the journal has that; each has a caller who waits for it.
    pub(super) clears: VecDeque<Clearing>,
    /// Bytes of these, and of the open batches of durable rooms.
    pending_bytes: usize,
    /// Bytes of the logs of durable rooms.
    log_bytes: usize,
    /// What is still to be handed over.
    pub(super) out: Vec<Entry>,
    refused: u64,
}

#[derive(Debug)]
struct Pending {
    number: u64,
    room: RoomId,
    batch: Arc<Batch>,
    waiting: Vec<Waiting>,
}

impl Durable {
    /// A durable room that has had no event.
    pub fn new(ack: DurableAck) -> Durable {
        Durable { given: 0, pending: 0, ack, waiting: Vec::new(), held_until_ms: 0 }
    }

    /// Whether nothing of it is under way.
    pub fn is_idle(&self) -> bool {
        self.pending == 0 && self.waiting.is_empty() && self.held_until_ms == 0
    }
}

impl Core {
    /// From here on durable rooms go through the journal; `rooms` are those that it has already.
    pub fn begin_journaling(&mut self, progress: Progress, rooms: Vec<StoredRoom>, now: Now) {
        self.now = now;
        let (failures, is_up) = (progress.failures, progress.is_up);
        self.journaling = Some(Box::new(Journaling { failures, is_up, ..Journaling::default() }));
        for room in rooms {
            self.restore(room);
        }
    }

    fn restore(&mut self, stored: StoredRoom) {
        let StoredRoom { room, epoch, seq, batches } = stored;
        let name = self.hasher.room(&room);
        let place = self.rules.place(&room);
        let Some(ack) = self.rules.durable(place) else { return };
        let mut home = Box::new(Home::new(epoch, place));
        home.seq = seq;
        let held_until_ms = self.now.monotonic_us / 1000 + self.limits.session_away_ms;
        home.contents().durable = Some(Box::new(Durable { given: seq, held_until_ms, ..Durable::new(ack) }));
        let bounds = self.rules.log(place);
        for stored in batches {
            for (at, key) in &stored.keys {
                let until_ms = stored.unix_ms.saturating_add(KEY_AGE_MS);
                if let Some(published) = stored.published(*at, epoch).filter(|_| until_ms > self.now.unix_ms) {
                    home.keys_from(epoch).remember(key, published, stored.unix_ms);
                }
            }
            if let Some(batch) = stored.restore(name.clone(), &self.memory) {
                home.contents().log.push(Arc::new(batch), bounds);
            }
        }
        home.shorten_log(|log| log.trim(bounds, self.now.unix_ms));
        let bytes = home.log().bytes();
        self.log_bytes += bytes;
        self.durable_log_changed(0, bytes);
        let id = self.rooms.ensure(&name);
        if let Some(room) = self.rooms.get_mut(id) {
            room.home = Some(home);
        }
    }

    /// What waits to be handed to the journal; the caller takes out what the way there has room for.
    pub fn journal_out(&mut self) -> Option<&mut Vec<Entry>> {
        let journaling = self.journaling.as_deref_mut()?;
        let vanished = self.rooms.vanished.drain(..);
        journaling.out.extend(vanished.map(|(room, epoch)| Entry::Forgotten { room, epoch }));
        Some(&mut journaling.out)
    }

    /// Bytes of events that wait for the journal.
    pub fn journal_pending_bytes(&self) -> usize {
        self.journaling.as_ref().map_or(0, |journaling| journaling.pending_bytes)
    }

    /// Publishes to durable rooms that were refused.
    pub fn journal_refused(&self) -> u64 {
        self.journaling.as_ref().map_or(0, |journaling| journaling.refused)
    }

    // ---- publishing ----

    /// Gives an event of a durable room its number; it is answered when the journal has it. What it gives back is what is
    /// known before that, or why it was not taken.
    pub(super) fn publish_durable(&mut self, id: RoomId, publish: Publish) -> Result<Published, Refused> {
        let now_ms = self.now.unix_ms;
        let Publish { room, kind, data, key, exclude, received_us, reply } = publish;
        if let Some(key) = &key
            && let Some(keys) = self.home_mut(id).and_then(Home::keys_mut)
            && let Some(published) = keys.find(key, now_ms)
        {
            self.figures.duplicates += 1;
            let published = Published { duplicate: true, ..published };
            self.wait_like_the_first(id, Waiting { reply, published, key: None });
            return Ok(published);
        }
        if let Err(refused) = self.may_take(data.len()) {
            if let Some(journaling) = self.journaling.as_deref_mut() {
                journaling.refused += 1;
            }
            self.answer(reply, room, Err(refused.clone()));
            self.rooms.forget_if_idle(id);
            return Err(refused);
        }
        if self.home_mut(id).is_some_and(|home| home.open_bytes() >= BATCH_BYTES_MAX) {
            self.seal(id);
        }
        let stamp = self.ids.stamp(now_ms);
        let home = self.rooms.get_mut(id).and_then(|room| room.home.as_deref_mut()).ok_or(OVERLOADED)?;
        let (epoch, before) = (home.epoch, home.open_bytes());
        let durable = home.durable_mut().ok_or(OVERLOADED)?;
        durable.given += 1;
        let seq = durable.given;
        let published = Published { id: stamp.id, seq, epoch, duplicate: false, delivered: 0, queued: 0, nodes: 0 };
        // The log outlives this run, and so must be what tells its keys apart.
        let hash = key.as_ref().map_or(0, |key| FixedState::with_seed(epoch).hash_one(key) | 1);
        if let Some(key) = &key {
            home.keys_from(epoch).remember(key, published, now_ms);
        }
        let durable = home.durable_mut().ok_or(OVERLOADED)?;
        durable.waiting.push(Waiting { reply, published, key });
        let first = !home.has_open();
        let rules = home.rules;
        let event = Event { room: room.as_str(), kind: &kind, seq, data: &data };
        let open = home.contents().open.get_or_insert_default();
        if first {
            open.received_us = received_us;
            self.unsealed.push(id);
        }
        open.push(&stamp, &event, exclude, hash);
        self.recorder.published(&stamp.id, &kind, room.hash(), seq, received_us, exclude);
        let bytes = open.bytes() - before;
        if let Some(journaling) = self.journaling.as_deref_mut() {
            journaling.pending_bytes += bytes;
        }
        self.figures.publishes += 1;
        self.kind_publishes.add(rules);
        Ok(published)
    }

    fn may_take(&self, bytes: usize) -> Result<(), Refused> {
        let Some(journaling) = self.journaling.as_deref().filter(|journaling| journaling.is_up) else {
            return Err(JOURNAL_FAILED);
        };
        if journaling.log_bytes + journaling.pending_bytes > self.durable_log_bytes_max() {
            return Err(LOGS_FULL);
        }
        // One event of any size is always taken.
        let bytes = if journaling.pending_bytes == 0 { 0 } else { journaling.pending_bytes + bytes };
        if bytes > self.limits.journal_pending_bytes_max { Err(OVERLOADED) } else { Ok(()) }
    }

    /// An event that was published before under the same key: acknowledged when that one is.
    fn wait_like_the_first(&mut self, id: RoomId, waiting: Waiting) {
        let seq = waiting.published.seq;
        let Some(room) = self.rooms.get_mut(id) else { return };
        let Some(home) = room.home.as_deref_mut() else { return };
        let acknowledged = home.seq;
        let Some(durable) = home.durable_mut() else { return };
        if seq <= acknowledged {
            let name = room.name.clone();
            return self.answer(waiting.reply, name, Ok(waiting.published));
        }
        let Some(journaling) = self.journaling.as_deref_mut() else { return };
        journaling.pending_bytes += WAITING_BYTES;
        let pending = journaling.written.iter_mut().chain(&mut journaling.synced);
        let sent = |pending: &&mut Pending| {
            let seqs = pending.batch.events.first().zip(pending.batch.events.last());
            pending.room == id && seqs.is_some_and(|(first, last)| (first.seq..=last.seq).contains(&seq))
        };
        match pending.rev().find(sent) {
            Some(pending) => pending.waiting.push(waiting),
            None => durable.waiting.push(waiting),
        }
    }

    // ---- to the journal and back ----

    /// Sends a sealed batch on its way.
    pub(super) fn hand_to_journal(&mut self, id: RoomId, batch: Arc<Batch>) {
        let Some(home) = self.rooms.get_mut(id).and_then(|room| room.home.as_deref_mut()) else { return };
        let (epoch, log_from) = (home.epoch, home.log().first_seq().unwrap_or(home.seq + 1));
        let place = home.rules;
        let Some(durable) = home.durable_mut() else { return };
        let Some(journaling) = self.journaling.as_deref_mut() else { return };
        let waiting = std::mem::take(&mut durable.waiting);
        if !journaling.is_up {
            // It failed between the event and the end of the turn.
            self.refuse_waiting(&batch, waiting);
            return self.roll_back(id);
        }
        if durable.pending == 0 {
            // Within a room acknowledgements keep their order, whatever a reload says.
            durable.ack = self.rules.durable(place).unwrap_or(durable.ack);
        }
        durable.pending += 1;
        journaling.number += 1;
        let (number, failures) = (journaling.number, journaling.failures);
        let first_seq = batch.events.first().map_or(1, |event| event.seq);
        let key = |waiting: &Waiting| Some(((waiting.published.seq - first_seq) as u32, waiting.key.clone()?));
        let keys = waiting.iter().filter_map(key).collect();
        let when_written = durable.ack == DurableAck::Written;
        let sealed = Sealed { number, failures, when_written, epoch, log_from, batch: batch.clone(), keys };
        journaling.out.push(Entry::Events(Box::new(sealed)));
        let queue = if when_written { &mut journaling.written } else { &mut journaling.synced };
        queue.push_back(Pending { number, room: id, batch, waiting });
    }

    /// Takes in how far the journal is: what it has goes out, what it lost is taken back.
    pub fn journaled(&mut self, progress: Progress) {
        while let Some(pending) = self.next_acknowledged(&progress) {
            self.acknowledged(pending);
        }
        while let Some(clearing) = self.next_cleared(&progress) {
            self.cleared(clearing);
        }
        let Some(journaling) = self.journaling.as_deref_mut() else { return };
        journaling.is_up = progress.is_up;
        if progress.failures > journaling.failures {
            journaling.failures = progress.failures;
            self.take_back_all();
        }
    }

    fn next_acknowledged(&mut self, progress: &Progress) -> Option<Pending> {
        let journaling = self.journaling.as_deref_mut()?;
        let written = journaling.written.pop_front_if(|pending| pending.number <= progress.written);
        written.or_else(|| journaling.synced.pop_front_if(|pending| pending.number <= progress.synced))
    }

    fn acknowledged(&mut self, pending: Pending) {
        let Pending { room: id, batch, waiting, .. } = pending;
        self.no_longer_pending(&batch, &waiting);
        let Some(home) = self.home_mut(id) else { return };
        home.seq = batch.events.last().map_or(home.seq, |event| event.seq);
        if let Some(durable) = home.durable_mut() {
            durable.pending = durable.pending.saturating_sub(1);
        }
        let (delivered, queued) = home.audience();
        self.send_out(id, batch.clone());
        for Waiting { reply, published, .. } in waiting {
            self.answer(reply, batch.room.clone(), Ok(Published { delivered, queued, ..published }));
        }
    }

    /// The journal failed: nothing that was on its way was published.
    fn take_back_all(&mut self) {
        let Some(journaling) = self.journaling.as_deref_mut() else { return };
        let written = std::mem::take(&mut journaling.written);
        let synced = std::mem::take(&mut journaling.synced);
        let clears = std::mem::take(&mut journaling.clears);
        journaling.out.retain(|entry| !matches!(entry, Entry::Events(_) | Entry::Cleared(_)));
        let mut rooms = Vec::with_capacity(written.len() + synced.len());
        for Pending { room, batch, waiting, .. } in written.into_iter().chain(synced) {
            rooms.push(room);
            self.refuse_waiting(&batch, waiting);
        }
        self.refuse_clears(clears);
        for id in rooms {
            self.roll_back(id);
        }
    }

    /// Has a room go on from its last acknowledged event. What it has in its open batch followed on what was lost.
    fn roll_back(&mut self, id: RoomId) {
        let Some(room) = self.rooms.get_mut(id) else { return };
        let Some(home) = room.home.as_deref_mut() else { return };
        let acknowledged = home.seq;
        let Some(durable) = home.durable_mut().filter(|durable| durable.given > acknowledged) else { return };
        durable.given = acknowledged;
        durable.pending = 0;
        let waiting = std::mem::take(&mut durable.waiting);
        home.forget_keys(|keys| keys.forget_after(acknowledged));
        if let Some(open) = home.take_open() {
            let lost = Arc::new(open.seal(room.name.clone(), &self.memory, self.now.unix_ms));
            self.unsealed.retain(|one| *one != id);
            self.refuse_waiting(&lost, waiting);
        }
        self.rooms.forget_if_idle(id);
    }

    fn refuse_waiting(&mut self, batch: &Batch, waiting: Vec<Waiting>) {
        self.no_longer_pending(batch, &waiting);
        if let Some(journaling) = self.journaling.as_deref_mut() {
            journaling.refused += waiting.len() as u64;
        }
        for Waiting { reply, .. } in waiting {
            self.answer(reply, batch.room.clone(), Err(JOURNAL_FAILED));
        }
    }

    fn no_longer_pending(&mut self, batch: &Batch, waiting: &[Waiting]) {
        let duplicates = waiting.iter().filter(|waiting| waiting.published.duplicate).count();
        if let Some(journaling) = self.journaling.as_deref_mut() {
            let bytes = batch.bytes.len() + duplicates * WAITING_BYTES;
            journaling.pending_bytes = journaling.pending_bytes.saturating_sub(bytes);
        }
    }

    // ---- the memory of logs ----

    /// Durable rooms' logs are not given up for others: a publisher was told that they are kept. They may have half of the
    /// memory for logs, and past it their publishes are refused.
    fn durable_log_bytes_max(&self) -> usize {
        self.limits.log_bytes_max / 2
    }

    /// Whether logs that are not durable have to give way.
    pub(super) fn logs_are_too_large(&self) -> bool {
        let durable = self.journaling.as_ref().map_or(0, |journaling| journaling.log_bytes);
        let others = self.log_bytes.saturating_sub(durable);
        others + durable.min(self.durable_log_bytes_max()) > self.limits.log_bytes_max
    }

    /// Notes how large a durable room's log was and is.
    pub(super) fn durable_log_changed(&mut self, before: usize, after: usize) {
        if let Some(journaling) = self.journaling.as_deref_mut() {
            journaling.log_bytes = (journaling.log_bytes + after).saturating_sub(before);
        }
    }

    /// What was swept from a durable room's log needs to be in the journal no longer.
    pub(super) fn sweep_durable(&mut self, id: RoomId, freed: usize) {
        let now_ms = self.now.monotonic_us / 1000;
        let Some(room) = self.rooms.get_mut(id) else { return };
        let Some(home) = room.home.as_deref_mut() else { return };
        let Some(durable) = home.durable_mut() else { return };
        if durable.held_until_ms <= now_ms {
            durable.held_until_ms = 0;
        }
        let (epoch, log_from) = (home.epoch, home.log().first_seq().unwrap_or(home.seq + 1));
        let room = room.name.clone();
        if freed > 0 {
            self.durable_log_changed(freed, 0);
            if let Some(journaling) = self.journaling.as_deref_mut() {
                journaling.out.push(Entry::Trimmed { room, epoch, log_from });
            }
        }
    }

    /// Whether something waits for the journal.
    pub fn awaits_journal(&self) -> bool {
        let clears = self.journaling.as_ref().is_some_and(|journaling| !journaling.clears.is_empty());
        clears || self.journal_pending_bytes() > 0
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc};

    use super::super::batch::Address;
    use super::super::core::CoreLimits;
    use super::super::message::{HistoryAsked, Join, JoinClaim, Message, Ticket};
    use super::super::name::{NameHasher, ShardId};
    use super::super::reply::{Pending, pending};
    use super::super::rules::Rules;
    use super::*;
    use crate::config::Config;
    use crate::ring::ConnKey;

    const UP: Progress = Progress { written: 0, synced: 0, failures: 0, is_up: true };
    const ME: Address = Address { shard: ShardId(0), conn: ConnKey { slot: 1, generation: 1 } };

    fn at(ms: u64) -> Now {
        Now { monotonic_us: ms * 1000, unix_ms: 1_700_000_000_000 + ms }
    }

    fn config() -> Config {
        let mut config = Config::default();
        config.journal.path = Some("/j".into());
        for kind in config.kinds.iter_mut().filter(|kind| kind.name == "project") {
            kind.durable = true;
        }
        config
    }

    fn core(config: &Config, rooms: Vec<StoredRoom>) -> Core {
        let limits = CoreLimits::new(config);
        let mut core = Core::new(ShardId(0), 1, NameHasher::new(1), [1, 2], limits, Rules::new(config));
        core.begin_journaling(UP, rooms, at(0));
        core
    }

    type Answers = mpsc::Receiver<Result<Published, Refused>>;

    fn publish(core: &mut Core, room: &str, key: Option<&str>, bytes: usize) -> Answers {
        let (sender, answers) = mpsc::channel();
        let sender = Mutex::new(sender);
        let tell = move |outcome| drop(sender.lock().expect("one thread").send(outcome));
        let publish = Publish {
            room: core.hasher().room(room),
            kind: "k".into(),
            data: format!("\"{}\"", "x".repeat(bytes)).into(),
            key: key.map(Into::into),
            exclude: None,
            received_us: 0,
            reply: ReplyTo::Handle(Box::new(tell)),
        };
        assert!(core.handle(Message::Publish(Box::new(publish)), at(1)).is_none());
        answers
    }

    /// The numbers of the batches that were handed over since, by the numbers of their events.
    fn handed_over(core: &mut Core) -> Vec<(u64, Vec<u64>)> {
        core.seal_all();
        let batch = |entry| match entry {
            Entry::Events(sealed) => Some((sealed.number, sealed.batch.events.iter().map(|event| event.seq).collect())),
            Entry::Trimmed { .. } | Entry::Cleared(_) | Entry::Forgotten { .. } => None,
        };
        core.journal_out().expect("a journal").drain(..).filter_map(batch).collect()
    }

    fn answer(answers: &Answers) -> Option<Result<(u64, bool), ErrorCode>> {
        let answer = answers.try_recv().ok()?;
        Some(answer.map(|published| (published.seq, published.duplicate)).map_err(|refused| refused.code))
    }

    fn told_of(core: &mut Core, room: &str) -> String {
        let room = core.hasher().room(room);
        let ask =
            HistoryAsked { room, address: ME, ticket: Ticket::Single(None), since: None, limit: 100, reverse: false };
        core.handle(Message::History(Box::new(ask)), at(1));
        std::iter::from_fn(|| core.next_local())
            .find_map(|message| match message {
                Message::HistoryTold(told) => Some(String::from_utf8(told.body.to_vec()).expect("text")),
                _ => None,
            })
            .expect("told")
    }

    fn joined_at(core: &mut Core, room: &str) -> u64 {
        let room = core.hasher().room(room);
        let (claim, ticket) = (JoinClaim::None, Ticket::Single(None));
        let join = Join { room, address: ME, claim, selection: None, since: None, ticket };
        core.handle(Message::Join(Box::new(join)), at(1));
        match core.next_local() {
            Some(Message::Joined(joined)) => joined.outcome.expect("joined").seq,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn nobody_hears_of_an_event_before_the_journal_has_it() {
        let mut core = core(&config(), Vec::new());
        let (first, second) = (publish(&mut core, "project:1", None, 1), publish(&mut core, "project:1", None, 1));
        assert_eq!(handed_over(&mut core), [(1, vec![1, 2])]);
        assert_eq!(joined_at(&mut core, "project:1"), 0);
        let room = core.hasher().room("project:1");
        assert!(core.add_member(&room, ME.conn, None).is_some());
        assert!(told_of(&mut core, "project:1").contains("\"events\":[],\"seq\":0"));
        core.journaled(Progress { written: 1, ..UP });
        assert_eq!(answer(&first), None, "written is not synced");
        core.journaled(Progress { written: 1, synced: 1, ..UP });
        assert_eq!((answer(&first), answer(&second)), (Some(Ok((1, false))), Some(Ok((2, false)))));
        assert!(core.has_deliveries());
        assert!(told_of(&mut core, "project:1").contains("\"seq\":2"));
        assert!(!core.awaits_journal());
    }

    #[test]
    fn a_failure_takes_back_what_was_under_way_and_no_number_is_missing() {
        let mut core = core(&config(), Vec::new());
        let first = publish(&mut core, "project:1", Some("a"), 1);
        handed_over(&mut core);
        core.journaled(Progress { synced: 1, ..UP });
        assert_eq!(answer(&first), Some(Ok((1, false))));
        let under_way = publish(&mut core, "project:1", Some("b"), 1);
        assert_eq!(handed_over(&mut core), [(2, vec![2])]);
        let open = publish(&mut core, "project:1", Some("c"), 1);
        let again = publish(&mut core, "project:1", Some("b"), 1);
        let down = Progress { synced: 1, failures: 1, is_up: false, ..UP };
        core.journaled(down);
        let refused = Some(Err(ErrorCode::Unavailable));
        assert_eq!((answer(&under_way), answer(&open), answer(&again)), (refused, refused, refused));
        assert!(!core.awaits_journal());
        assert_eq!(answer(&publish(&mut core, "project:1", None, 1)), refused, "while it is down");
        assert_eq!(answer(&publish(&mut core, "quote:1", None, 1)), Some(Ok((1, false))), "others go on");
        assert_eq!(handed_over(&mut core), []);
        core.journaled(Progress { is_up: true, ..down });
        let next = publish(&mut core, "project:1", Some("b"), 1);
        assert_eq!(handed_over(&mut core), [(3, vec![2])]);
        core.journaled(Progress { synced: 3, is_up: true, ..down });
        assert_eq!(answer(&next), Some(Ok((2, false))), "its key was forgotten with it");
        assert_eq!(core.journal_refused(), 4);
    }

    fn clear(core: &mut Core, room: &str) -> Pending<u64> {
        let (responder, pending) = pending();
        let room = core.hasher().room(room);
        core.clear_history(&room, responder);
        pending
    }

    #[test]
    fn a_log_is_empty_when_the_journal_has_that_and_what_came_meanwhile_stays() {
        let mut core = core(&config(), Vec::new());
        assert_eq!(clear(&mut core, "project:1").wait(), Ok(0), "there is no such room");
        let room = core.hasher().room("project:1");
        joined_at(&mut core, "project:1");
        assert!(core.add_member(&room, ME.conn, None).is_some());
        drop(publish(&mut core, "project:1", Some("a"), 1));
        assert_eq!(handed_over(&mut core), [(1, vec![1])]);
        core.journaled(Progress { synced: 1, ..UP });
        drop(publish(&mut core, "project:1", Some("b"), 1));
        // The open batch goes to the journal before it.
        let mut cleared = clear(&mut core, "project:1");
        assert_eq!(handed_over(&mut core), [(2, vec![2])]);
        core.journaled(Progress { synced: 2, ..UP });
        assert!(core.awaits_journal());
        assert_eq!((cleared.close(), told_of(&mut core, "project:1").matches("\"seq\"").count()), (None, 3));
        core.journaled(Progress { synced: 3, ..UP });
        let told = told_of(&mut core, "project:1");
        assert!(told.matches("\"seq\"").count() == 2 && told.contains("\"seq\":2"), "{told}");
        assert!(!core.awaits_journal());
        assert_eq!(answer(&publish(&mut core, "project:1", Some("b"), 1)), Some(Ok((2, true))));
        let cleared = clear(&mut core, "project:1");
        core.journaled(Progress { synced: 4, ..UP });
        assert_eq!(cleared.wait(), Ok(1));
    }

    #[test]
    fn a_log_is_not_emptied_while_the_journal_can_not_say_so() {
        let mut core = core(&config(), Vec::new());
        drop(publish(&mut core, "project:1", None, 1));
        handed_over(&mut core);
        core.journaled(Progress { synced: 1, ..UP });
        let under_way = clear(&mut core, "project:1");
        let down = Progress { synced: 1, failures: 1, is_up: false, ..UP };
        core.journaled(down);
        let unavailable = Err(ErrorCode::Unavailable);
        assert_eq!(under_way.wait().map_err(|error| error.code), unavailable);
        assert_eq!(clear(&mut core, "project:1").wait().map_err(|error| error.code), unavailable);
        assert!(told_of(&mut core, "project:1").contains("\"seq\":1,") && !core.awaits_journal());
        core.journaled(Progress { is_up: true, ..down });
        let cleared = clear(&mut core, "project:1");
        core.journaled(Progress { synced: 3, is_up: true, ..down });
        assert_eq!(cleared.wait(), Ok(1));
        let gone = |entry: &Entry| matches!(entry, Entry::Forgotten { .. });
        assert!(core.rooms.is_empty() && core.journal_out().expect("a journal").iter().any(gone));
    }

    #[test]
    fn a_key_that_is_under_way_is_answered_with_the_first() {
        let mut core = core(&config(), Vec::new());
        let first = publish(&mut core, "project:1", Some("a"), 1);
        let in_open = publish(&mut core, "project:1", Some("a"), 1);
        handed_over(&mut core);
        let behind = publish(&mut core, "project:1", Some("a"), 1);
        assert_eq!(handed_over(&mut core), []);
        assert_eq!((answer(&in_open), answer(&behind)), (None, None));
        core.journaled(Progress { synced: 1, ..UP });
        let duplicate = Some(Ok((1, true)));
        assert_eq!((answer(&first), answer(&in_open)), (Some(Ok((1, false))), duplicate));
        assert_eq!(answer(&behind), duplicate);
        assert_eq!(answer(&publish(&mut core, "project:1", Some("a"), 1)), duplicate);
        assert!(!core.awaits_journal());
    }

    #[test]
    fn what_waits_and_what_is_kept_is_bounded() {
        let mut config = config();
        config.journal.pending_bytes_max = 2000;
        config.history.shard_bytes_max = 40_000;
        let mut core = core(&config, Vec::new());
        let large = publish(&mut core, "project:1", None, 5000);
        let refused = Some(Err(ErrorCode::Unavailable));
        assert_eq!(answer(&publish(&mut core, "project:2", None, 1)), refused, "behind one of any size");
        handed_over(&mut core);
        core.journaled(Progress { synced: 1, ..UP });
        assert_eq!(answer(&large), Some(Ok((1, false))));
        let mut number = 1;
        let full = loop {
            let answers = publish(&mut core, "project:3", None, 5000);
            handed_over(&mut core);
            number += 1;
            core.journaled(Progress { synced: number, ..UP });
            if let Some(Err(code)) = answer(&answers) {
                break code;
            }
        };
        assert_eq!((full, number), (ErrorCode::Unavailable, 5), "half of the memory for logs");
        for count in 0..50 {
            assert!(matches!(answer(&publish(&mut core, &format!("quote:{count}"), None, 5000)), Some(Ok(_))));
            core.seal_all();
        }
        assert!(core.figures().logs_evicted > 40 && core.log_bytes() <= 40_000);
        assert!(told_of(&mut core, "project:3").contains("\"seq\":3"), "nothing of it gave way");
    }

    #[test]
    fn a_room_that_was_read_is_held_for_its_members_and_forgotten_without_them() {
        let room = StoredRoom { room: "project:1".into(), epoch: 7, seq: 9, batches: Vec::new() };
        let mut core = core(&config(), vec![room]);
        core.sweep(at(1000));
        assert!(told_of(&mut core, "project:1").contains("\"seq\":9,\"epoch\":\"0000000000000007\""));
        let next = publish(&mut core, "project:1", None, 1);
        assert_eq!(handed_over(&mut core), [(1, vec![10])]);
        core.journaled(Progress { synced: 1, ..UP });
        assert_eq!(answer(&next), Some(Ok((10, false))));
        // Its event grows old, and nobody is there.
        core.sweep(at(3_700_000));
        let out: Vec<Entry> = core.journal_out().expect("a journal").drain(..).collect();
        assert!(
            matches!(&out[..], [Entry::Trimmed { log_from: 11, .. }, Entry::Forgotten { epoch: 7, .. }]),
            "{out:?}"
        );
        assert!(core.rooms().is_empty());
    }
}

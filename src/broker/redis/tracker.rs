//! Where a followed room is: which events its home has been told, and what has to be read before it is told more.
//!
//! ```text
//!             begin                     all read
//!  Behind ─────────────► Reading ───────────────────► Live        Live: what comes right after the last is passed on
//!    ▲                      │                           │
//!    └──────────────────────┴───────────────────────────┘
//!             lost, hole, another id or epoch than expected
//! ```
//!
//! What came before a read is begun is in the log by then and need not be kept. What comes while it is read waits, within
//! bounds; beyond them it is dropped and read again. Whether what comes
//! fits is told by its number **and** by the id of the event before it: after a failover, a log that lost its end goes on
//! with the same numbers and other events. Then its epoch is changed, by whoever notices, so that nobody takes new events for
//! old ones.
//!
//! Pure: what to read comes in as values, what to tell goes out as values.

use std::cmp::Ordering;
use std::collections::VecDeque;

use super::encoding::{EventId, Message, NO_ID};
use crate::hub::brokered::{BrokeredEvent, Followed, Place};

/// Bytes of messages of a room that wait while it is read. A read takes milliseconds; what is beyond is read again.
const BUFFER_BYTES_MAX: usize = 256 << 10;

/// The state of a followed room.
#[derive(Debug)]
pub struct Tracker {
    /// The last event that the home was told, or has.
    place: Option<Place>,
    state: State,
    /// The home is told where it is when the next read is complete, whether it missed something or not.
    must_tell: bool,
    /// Tells the reads of this room apart, so that one that was given up means nothing any more.
    ticket: u64,
    /// The first number that was not cleared, as the home was told.
    log_from: u64,
    /// Epoch and number of an event that a client was given, beyond what the home has.
    claim: Option<(u64, u64)>,
}

#[derive(Debug)]
enum State {
    /// A read is needed and not begun.
    Behind,
    /// A read is on its way.
    Reading(Box<Reading>),
    /// The home has all.
    Live,
}

#[derive(Debug)]
struct Reading {
    /// Where the read has come to; none where it begins with all that is kept.
    cursor: Option<Place>,
    /// Nothing was missed so far.
    continues: bool,
    events: Vec<BrokeredEvent>,
    /// Came meanwhile, with the bytes that each has.
    buffer: VecDeque<Message>,
    buffer_bytes: usize,
    /// Some that came meanwhile were dropped.
    is_overrun: bool,
}

/// What is read next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Comes back with the page.
    pub ticket: u64,
    /// The number of the first event that is wanted.
    pub from_seq: u64,
    /// The epoch that a room gets that nobody knows; drawn where there is none.
    pub epoch: Option<u64>,
}

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The log's epoch.
    pub epoch: u64,
    /// The number of the last event.
    pub seq: u64,
    /// Its id.
    pub id: EventId,
    /// The first number that was not cleared.
    pub log_from: u64,
    /// Entries of the log in their order, with the number of their last event; the epoch in them is that of when they were
    /// written. None for one that can't be read.
    pub entries: Vec<(u64, Option<Message>)>,
}

/// What comes of something.
#[derive(Debug)]
pub enum Step {
    /// Nothing is to be done.
    None,
    /// This is to be read next; the read is not begun.
    Read,
    /// The epoch is to be changed, if it still is this one; then it is read again, see [`Tracker::renewed`].
    Renew(u64),
}

/// What the home is told.
#[derive(Debug)]
pub enum Told {
    /// Where it is.
    Followed(Box<Followed>),
    /// Events right after the last.
    Events {
        /// The epoch.
        epoch: u64,
        /// The number of the first.
        first_seq: u64,
        /// They.
        events: Vec<BrokeredEvent>,
    },
    /// Events before this number are not kept any more.
    Emptied {
        /// The epoch.
        epoch: u64,
        /// The number.
        log_from: u64,
    },
}

impl Tracker {
    /// A room whose home has what is up to `place`.
    pub fn new(place: Option<Place>) -> Tracker {
        Tracker { place, state: State::Behind, must_tell: true, ticket: 0, log_from: 1, claim: None }
    }

    /// The home has lost its place, or has another one.
    pub fn follow(&mut self, place: Option<Place>) {
        self.place = place;
        self.log_from = 1;
        self.lost();
    }

    /// A client was given an event beyond what the home has: a log in that epoch which does not reach to it has lost its end.
    pub fn claim(&mut self, epoch: u64, seq: u64) {
        self.claim = Some((epoch, seq));
    }

    /// The last event that the home was told, or has.
    pub fn place(&self) -> Option<&Place> {
        self.place.as_ref()
    }

    /// Nothing comes any more, and something may have been missed. The home is told when it is followed again.
    pub fn lost(&mut self) {
        self.must_tell = true;
        self.state = State::Behind;
    }

    /// A read came to nothing; it will be tried again.
    pub fn give_up(&mut self) {
        self.state = State::Behind;
    }

    /// Something that came was dropped. What was missed will be read.
    pub fn fall_behind(&mut self) {
        match &mut self.state {
            State::Reading(reading) => reading.overrun(),
            state => *state = State::Behind,
        }
    }

    /// Whether a read is needed and not begun.
    pub fn is_behind(&self) -> bool {
        matches!(self.state, State::Behind)
    }

    /// A read is begun: what comes from now on waits for it.
    pub fn begin(&mut self) -> Wanted {
        self.state = State::Reading(Box::new(Reading::new(self.place)));
        self.next_read()
    }

    /// The next read of one that is under way.
    pub fn next_read(&mut self) -> Wanted {
        self.ticket += 1;
        let cursor = match &self.state {
            State::Reading(reading) => reading.cursor,
            _ => self.place,
        };
        Wanted {
            ticket: self.ticket,
            from_seq: cursor.map_or(1, |place| place.seq + 1),
            epoch: self.place.filter(|place| place.seq == 0).map(|place| place.epoch),
        }
    }

    /// A message came.
    pub fn message(&mut self, message: Message, bytes: usize, told: &mut Vec<Told>) {
        match &mut self.state {
            State::Behind => {}
            State::Reading(reading) => reading.wait(message, bytes),
            State::Live => {
                // A server repeats nothing: one that gives known numbers again has forgotten what it gave them to.
                let is_repeat = !message.events.is_empty()
                    && self.place.is_some_and(|place| place.epoch == message.epoch && message.last_seq() < place.seq);
                if is_repeat || !self.take(message, told) {
                    self.state = State::Behind;
                }
            }
        }
    }

    /// A page was read. Where a [`Step::Read`] comes of it, [`Tracker::next_read`] tells what.
    pub fn page(&mut self, ticket: u64, page: Page, told: &mut Vec<Told>) -> Step {
        let State::Reading(reading) = &mut self.state else { return Step::None };
        if ticket != self.ticket {
            return Step::None;
        }
        match reading.add(&page) {
            Added::All => {
                let lacks = |(epoch, seq): &(u64, u64)| *epoch == page.epoch && *seq > page.seq;
                if self.claim.take().as_ref().is_some_and(lacks) {
                    return Step::Renew(page.epoch);
                }
            }
            Added::More | Added::Anew => return Step::Read,
            Added::Fork => return Step::Renew(page.epoch),
        }
        if let State::Reading(reading) = std::mem::replace(&mut self.state, State::Live) {
            self.complete(&page, *reading, told);
        }
        Step::None
    }

    /// The epoch was changed, here or elsewhere: the read begins again. [`Tracker::next_read`] tells what.
    pub fn renewed(&mut self) -> bool {
        match &mut self.state {
            State::Reading(reading) => {
                reading.anew();
                true
            }
            _ => false,
        }
    }

    fn complete(&mut self, page: &Page, reading: Reading, told: &mut Vec<Told>) {
        let Reading { continues, events, buffer, is_overrun, .. } = reading;
        let (epoch, seq) = (page.epoch, page.seq);
        let first_seq = seq + 1 - events.len() as u64;
        self.place = Some(Place { epoch, seq, id: if seq == 0 { NO_ID } else { page.id } });
        if self.must_tell || !continues {
            told.push(Told::Followed(Box::new(Followed { epoch, seq, continues, first_seq, events })));
        } else if !events.is_empty() {
            told.push(Told::Events { epoch, first_seq, events });
        }
        self.must_tell = false;
        if continues {
            self.empty(epoch, page.log_from, told);
        } else {
            // The home has nothing from before.
            self.log_from = page.log_from;
        }
        let fits = buffer.into_iter().all(|message| self.take(message, told));
        if is_overrun || !fits {
            self.state = State::Behind;
        }
    }

    /// Passes on what comes right after the last; false where something is to be read first.
    fn take(&mut self, mut message: Message, told: &mut Vec<Told>) -> bool {
        let Some(place) = self.place.filter(|place| place.epoch == message.epoch) else { return false };
        let last_seq = message.last_seq();
        if message.first_seq > place.seq + 1 {
            return false;
        }
        if message.events.is_empty() {
            self.empty(message.epoch, message.first_seq, told);
            return true;
        }
        // The event at the place has to be the one that is known. What comes again from before it is not compared.
        let known = (place.seq + 1 - message.first_seq) as usize;
        if message.id_before(known).is_some_and(|id| !place.is_at(id)) {
            return false;
        }
        if last_seq > place.seq {
            self.place = Some(Place { epoch: message.epoch, seq: last_seq, id: message.last_id() });
            message.events.drain(..known);
            told.push(Told::Events { epoch: message.epoch, first_seq: place.seq + 1, events: message.events });
        }
        true
    }

    fn empty(&mut self, epoch: u64, log_from: u64, told: &mut Vec<Told>) {
        if log_from > self.log_from {
            self.log_from = log_from;
            told.push(Told::Emptied { epoch, log_from });
        }
    }
}

/// What became of a page.
enum Added {
    /// All is read.
    All,
    /// More is to be read.
    More,
    /// All that is kept is to be read, from the beginning.
    Anew,
    /// The log has other events at numbers that are known.
    Fork,
}

impl Reading {
    fn new(cursor: Option<Place>) -> Reading {
        Reading {
            cursor,
            continues: cursor.is_some(),
            events: Vec::new(),
            buffer: VecDeque::new(),
            buffer_bytes: 0,
            is_overrun: false,
        }
    }

    fn wait(&mut self, message: Message, bytes: usize) {
        self.buffer_bytes += bytes;
        if self.buffer_bytes > BUFFER_BYTES_MAX {
            self.overrun();
        } else if !self.is_overrun {
            self.buffer.push_back(message);
        }
    }

    fn overrun(&mut self) {
        self.is_overrun = true;
        self.buffer.clear();
    }

    /// Begins with all that is kept.
    fn anew(&mut self) {
        self.cursor = None;
        self.continues = false;
        self.events.clear();
    }

    fn add(&mut self, page: &Page) -> Added {
        let Some(place) = self.cursor else {
            self.cursor = Some(Place { epoch: page.epoch, seq: 0, id: NO_ID });
            return self.append(page, true);
        };
        if place.epoch != page.epoch {
            self.anew();
            // One that begins with the first event has all that is kept.
            return if place.seq == 0 { self.add(page) } else { Added::Anew };
        }
        match page.seq.cmp(&place.seq) {
            Ordering::Less => Added::Fork,
            Ordering::Equal if !place.is_at(page.id) => Added::Fork,
            Ordering::Equal => Added::All,
            Ordering::Greater => self.append(page, false),
        }
    }

    /// Takes the entries of a page that come after the cursor. `is_first`: what is missing before the first of them was
    /// never there for this read.
    fn append(&mut self, page: &Page, mut is_first: bool) -> Added {
        for (last_seq, message) in &page.entries {
            let Some(place) = self.cursor else { return Added::Anew };
            if *last_seq <= place.seq {
                continue;
            }
            let message = message.as_ref().filter(|message| {
                !message.events.is_empty() && message.last_seq() == *last_seq && *last_seq <= page.seq
            });
            let Some(message) = message else {
                // It can't be read: as if it were not kept, and nothing before it.
                self.skip_to(Place { epoch: page.epoch, seq: (*last_seq).min(page.seq), id: NO_ID });
                continue;
            };
            if message.first_seq > place.seq + 1 || is_first {
                if message.first_seq > place.seq + 1 {
                    self.skip_to(place);
                }
                self.events.extend_from_slice(&message.events);
            } else {
                let known = (place.seq + 1 - message.first_seq) as usize;
                if !message.id_before(known).is_some_and(|id| place.is_at(id)) {
                    return Added::Fork;
                }
                self.events.extend_from_slice(message.events.get(known..).unwrap_or_default());
            }
            is_first = false;
            self.cursor = Some(Place { epoch: page.epoch, seq: *last_seq, id: message.last_id() });
        }
        if self.cursor.is_some_and(|place| place.seq >= page.seq) {
            return Added::All;
        }
        if !page.entries.is_empty() {
            return Added::More;
        }
        // What would come next is not kept.
        self.skip_to(Place { epoch: page.epoch, seq: page.seq, id: page.id });
        Added::All
    }

    /// What is before a place, and was read or would have been, is missing.
    fn skip_to(&mut self, place: Place) {
        self.continues = false;
        self.events.clear();
        self.cursor = Some(place);
    }
}

impl Place {
    /// Whether an event is the one at this place. Where the one at it could not be read, any may be.
    fn is_at(&self, id: EventId) -> bool {
        self.seq == 0 || self.id == NO_ID || self.id == id
    }
}

impl Message {
    /// The id of the event before the one at an index.
    fn id_before(&self, index: usize) -> Option<EventId> {
        match index.checked_sub(1) {
            None => Some(self.previous),
            Some(before) => self.events.get(before).map(|event| event.id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::encoding::tests::event;
    use super::*;

    fn message(epoch: u64, first_seq: u64, previous: u64, tags: &[u64]) -> Message {
        let previous = if previous == 0 { NO_ID } else { event(previous).id };
        Message { epoch, first_seq, previous, events: tags.iter().map(|tag| event(*tag)).collect() }
    }

    fn place(epoch: u64, seq: u64, tag: u64) -> Place {
        Place { epoch, seq, id: if tag == 0 { NO_ID } else { event(tag).id } }
    }

    fn page(epoch: u64, seq: u64, tag: u64, entries: Vec<Message>) -> Page {
        let id = if tag == 0 { NO_ID } else { event(tag).id };
        let entries = entries.into_iter().map(|entry| (entry.last_seq(), Some(entry))).collect();
        Page { epoch, seq, id, log_from: 1, entries }
    }

    /// What was told, short: F for followed with `=` where it continues, E for events, X for emptied.
    fn short(told: &[Told]) -> String {
        let tags = |events: &[BrokeredEvent]| {
            let tags = events
                .iter()
                .map(|event| std::str::from_utf8(&event.id).expect("digits").trim_start_matches('0').to_owned());
            tags.collect::<Vec<_>>().join(",")
        };
        let one = |told: &Told| match told {
            Told::Followed(followed) => {
                let Followed { epoch, seq, continues, first_seq, events } = &**followed;
                let sign = if *continues { "=" } else { "!" };
                format!("F{sign}{epoch}/{seq} {first_seq}:{}", tags(events))
            }
            Told::Events { epoch, first_seq, events } => format!("E{epoch} {first_seq}:{}", tags(events)),
            Told::Emptied { epoch, log_from } => format!("X{epoch} {log_from}"),
        };
        told.iter().map(one).collect::<Vec<_>>().join("; ")
    }

    /// A tracker that is live after event 3 of epoch 7.
    fn live() -> Tracker {
        let mut tracker = Tracker::new(Some(place(7, 3, 3)));
        let wanted = tracker.begin();
        assert_eq!((wanted.from_seq, wanted.epoch), (4, None));
        let mut told = Vec::new();
        assert!(matches!(tracker.page(wanted.ticket, page(7, 3, 3, vec![]), &mut told), Step::None));
        assert_eq!(short(&told), "F=7/3 4:");
        tracker
    }

    fn read(tracker: &mut Tracker, page: Page) -> String {
        assert!(tracker.is_behind());
        let wanted = tracker.begin();
        let mut told = Vec::new();
        assert!(matches!(tracker.page(wanted.ticket, page, &mut told), Step::None));
        short(&told)
    }

    fn heard(tracker: &mut Tracker, message: Message) -> String {
        let mut told = Vec::new();
        tracker.message(message, 100, &mut told);
        short(&told)
    }

    #[test]
    fn what_comes_right_after_the_last_is_passed_on_and_what_was_is_not_passed_on_again() {
        let mut tracker = live();
        assert_eq!(heard(&mut tracker, message(7, 4, 3, &[4, 5])), "E7 4:4,5");
        assert_eq!(heard(&mut tracker, message(7, 4, 3, &[4, 5])), "");
        assert_eq!(heard(&mut tracker, message(7, 5, 4, &[5, 6])), "E7 6:6");
        assert!(!tracker.is_behind());
        assert_eq!(heard(&mut tracker, message(7, 3, 2, &[3])), "");
        assert!(tracker.is_behind(), "numbers that are given again are looked at");
    }

    #[test]
    fn a_hole_is_filled_before_anything_later_is_passed_on() {
        let mut tracker = live();
        assert_eq!(heard(&mut tracker, message(7, 5, 4, &[5])), "");
        assert!(tracker.is_behind());
        let wanted = tracker.begin();
        assert_eq!(heard(&mut tracker, message(7, 6, 5, &[6])), "", "it waits for what is read");
        let mut told = Vec::new();
        let entries = vec![message(7, 4, 3, &[4]), message(7, 5, 4, &[5])];
        assert!(matches!(tracker.page(wanted.ticket, page(7, 5, 5, entries), &mut told), Step::None));
        assert_eq!(short(&told), "E7 4:4,5; E7 6:6");
        assert!(!tracker.is_behind());
    }

    #[test]
    fn a_log_that_begins_after_the_place_does_not_continue_it() {
        let mut tracker = live();
        tracker.fall_behind();
        let entries = vec![message(7, 6, 5, &[6]), message(7, 7, 6, &[7])];
        assert_eq!(read(&mut tracker, page(7, 7, 7, entries)), "F!7/7 6:6,7");
        tracker.fall_behind();
        assert_eq!(read(&mut tracker, page(7, 9, 9, vec![])), "F!7/9 10:", "nothing is kept");
    }

    #[test]
    fn the_place_may_be_within_an_entry() {
        let mut tracker = live();
        tracker.lost();
        let entries = vec![message(7, 2, 1, &[2, 3, 4]), message(7, 5, 4, &[5])];
        assert_eq!(read(&mut tracker, page(7, 5, 5, entries)), "F=7/5 4:4,5");
    }

    #[test]
    fn a_log_that_lost_its_end_gets_another_epoch() {
        for (seq, tag, entries) in [
            (2, 2, vec![]),
            (3, 33, vec![]),
            (4, 34, vec![message(7, 4, 33, &[34])]),
            (4, 34, vec![message(7, 2, 1, &[2, 33, 34])]),
        ] {
            let mut tracker = live();
            tracker.lost();
            let wanted = tracker.begin();
            let mut told = Vec::new();
            let step = tracker.page(wanted.ticket, page(7, seq, tag, entries), &mut told);
            assert!(matches!(step, Step::Renew(7)), "{seq} {tag}: {step:?}");
            assert!(tracker.renewed());
            let wanted = tracker.next_read();
            assert_eq!(wanted.from_seq, 1);
            let all = vec![message(7, 1, 0, &[1, 2, 33])];
            assert!(matches!(tracker.page(wanted.ticket, page(8, 3, 33, all), &mut told), Step::None));
            assert_eq!(short(&told), "F!8/3 1:1,2,33");
        }
    }

    #[test]
    fn an_event_that_was_replaced_is_noticed_by_the_next_one() {
        let mut tracker = live();
        assert_eq!(heard(&mut tracker, message(7, 4, 33, &[34])), "");
        assert!(tracker.is_behind());
        let mut tracker = live();
        assert_eq!(heard(&mut tracker, message(7, 3, 2, &[33])), "");
        assert!(tracker.is_behind());
    }

    #[test]
    fn another_epoch_is_read_from_its_beginning() {
        let mut tracker = live();
        assert_eq!(heard(&mut tracker, message(9, 1, 0, &[1])), "");
        let wanted = tracker.begin();
        let mut told = Vec::new();
        let step = tracker.page(wanted.ticket, page(9, 1, 1, vec![]), &mut told);
        assert!(matches!(step, Step::Read), "this page begins behind the old place");
        let wanted = tracker.next_read();
        assert_eq!(wanted.from_seq, 1);
        tracker.page(wanted.ticket, page(9, 1, 1, vec![message(9, 1, 0, &[1])]), &mut told);
        assert_eq!(short(&told), "F!9/1 1:1");
    }

    #[test]
    fn a_home_that_has_nothing_gets_all_that_is_kept() {
        let mut tracker = Tracker::new(None);
        let entries = vec![message(5, 4, 3, &[4, 5])];
        assert_eq!(read(&mut tracker, page(5, 5, 5, entries)), "F!5/5 4:4,5");
        let mut tracker = Tracker::new(None);
        assert_eq!(read(&mut tracker, page(5, 0, 0, vec![])), "F!5/0 1:");
        assert_eq!(heard(&mut tracker, message(5, 1, 0, &[1])), "E5 1:1");
    }

    #[test]
    fn the_epoch_of_a_home_without_events_is_that_of_a_room_that_nobody_knows() {
        let mut tracker = Tracker::new(Some(place(6, 0, 0)));
        let wanted = tracker.begin();
        assert_eq!((wanted.from_seq, wanted.epoch), (1, Some(6)));
        let mut told = Vec::new();
        tracker.page(wanted.ticket, page(6, 0, 0, vec![]), &mut told);
        assert_eq!(short(&told), "F=6/0 1:");
        tracker.lost();
        let first = vec![message(8, 1, 0, &[1])];
        assert_eq!(read(&mut tracker, page(8, 1, 1, first)), "F!8/1 1:1", "somebody was faster");
    }

    #[test]
    fn a_long_log_is_read_in_pages() {
        let mut tracker = live();
        tracker.lost();
        let wanted = tracker.begin();
        let mut told = Vec::new();
        let step = tracker.page(wanted.ticket, page(7, 6, 6, vec![message(7, 4, 3, &[4])]), &mut told);
        assert!(matches!(step, Step::Read));
        assert_eq!(heard(&mut tracker, message(7, 7, 6, &[7])), "");
        let wanted = tracker.next_read();
        assert_eq!(wanted.from_seq, 5);
        assert!(matches!(tracker.page(wanted.ticket - 1, page(7, 6, 6, vec![]), &mut told), Step::None), "an old page");
        let rest = vec![message(7, 5, 4, &[5, 6])];
        assert!(matches!(tracker.page(wanted.ticket, page(7, 6, 6, rest), &mut told), Step::None));
        assert_eq!(short(&told), "F=7/6 4:4,5,6; E7 7:7");
    }

    #[test]
    fn a_cleared_log_is_told_after_its_events_and_once() {
        let mut tracker = live();
        assert_eq!(heard(&mut tracker, message(7, 4, 3, &[])), "X7 4");
        assert_eq!(heard(&mut tracker, message(7, 4, 3, &[])), "");
        assert_eq!(heard(&mut tracker, message(7, 6, 5, &[])), "", "events before it are missing");
        assert!(tracker.is_behind());
        assert_eq!(read(&mut tracker, Page { log_from: 6, ..page(7, 5, 5, vec![]) }), "F!7/5 6:");
        assert_eq!(heard(&mut tracker, message(7, 6, 5, &[])), "");

        // It was cleared while the link was broken.
        let mut tracker = live();
        tracker.lost();
        assert_eq!(read(&mut tracker, Page { log_from: 4, ..page(7, 3, 3, vec![]) }), "F=7/3 4:; X7 4");
    }

    #[test]
    fn an_entry_that_can_not_be_read_is_as_one_that_is_not_kept() {
        let mut tracker = live();
        tracker.lost();
        let mut damaged = page(7, 6, 6, vec![message(7, 4, 3, &[4]), message(7, 5, 4, &[5]), message(7, 6, 5, &[6])]);
        damaged.entries[1].1 = None;
        assert_eq!(read(&mut tracker, damaged), "F!7/6 6:6");
        let mut damaged = page(7, 8, 8, vec![message(7, 7, 6, &[7]), message(7, 8, 7, &[8])]);
        damaged.entries[1].1 = None;
        tracker.lost();
        assert_eq!(read(&mut tracker, damaged), "F!7/8 9:");
        assert_eq!(heard(&mut tracker, message(7, 9, 8, &[9])), "E7 9:9");
    }

    #[test]
    fn what_waits_while_a_room_is_read_is_bounded_and_read_again() {
        let mut tracker = live();
        tracker.lost();
        let wanted = tracker.begin();
        let mut told = Vec::new();
        tracker.message(message(7, 4, 3, &[4]), BUFFER_BYTES_MAX, &mut told);
        tracker.message(message(7, 5, 4, &[5]), 1, &mut told);
        tracker.page(wanted.ticket, page(7, 3, 3, vec![]), &mut told);
        assert_eq!(short(&told), "F=7/3 4:");
        assert!(tracker.is_behind());
    }

    /// A server's side of one room, as the scripts do it.
    #[derive(Clone, Default)]
    struct Log {
        epoch: u64,
        events: Vec<BrokeredEvent>,
        entries: Vec<Message>,
        log_from: u64,
        keep: u64,
    }

    impl Log {
        fn seq(&self) -> u64 {
            self.events.len() as u64
        }

        fn last_id(&self) -> EventId {
            self.events.last().map_or(NO_ID, |event| event.id)
        }

        fn publish(&mut self, count: u64, tag: &mut u64) -> Message {
            let previous = self.last_id();
            let first_seq = self.seq() + 1;
            let events: Vec<_> = (0..count)
                .map(|_| {
                    *tag += 1;
                    event(*tag)
                })
                .collect();
            self.events.extend_from_slice(&events);
            let message = Message { epoch: self.epoch, first_seq, previous, events };
            self.entries.push(message.clone());
            let kept_from = (self.seq() + 1).saturating_sub(self.keep);
            self.entries.retain(|entry| entry.last_seq() >= kept_from);
            message
        }

        fn clear(&mut self) -> Message {
            self.entries.clear();
            self.log_from = self.seq() + 1;
            Message { epoch: self.epoch, first_seq: self.log_from, previous: self.last_id(), events: Vec::new() }
        }

        fn read(&self, from_seq: u64, entries_max: usize) -> Page {
            let entries = self.entries.iter().filter(|entry| entry.last_seq() >= from_seq).take(entries_max);
            let entries = entries.map(|entry| (entry.last_seq(), Some(entry.clone()))).collect();
            Page { epoch: self.epoch, seq: self.seq(), id: self.last_id(), log_from: self.log_from.max(1), entries }
        }
    }

    /// What a server sends.
    enum Pushed {
        Message(Message),
        Page(u64, Page),
    }

    /// The home's side: what it has, and from when on.
    #[derive(Default)]
    struct Home {
        place: Option<Place>,
        events: VecDeque<BrokeredEvent>,
        gaps: usize,
    }

    impl Home {
        fn told(&mut self, told: Told) {
            match told {
                Told::Followed(followed) => {
                    let Followed { epoch, seq, continues, first_seq, events } = *followed;
                    assert_eq!(first_seq + events.len() as u64, seq + 1, "the last event is the last number");
                    if continues {
                        let place = self.place.expect("only a place is continued");
                        assert_eq!((epoch, first_seq), (place.epoch, place.seq + 1));
                    } else {
                        self.gaps += 1;
                        self.events.clear();
                    }
                    self.add(epoch, seq, events);
                }
                Told::Events { epoch, first_seq, events } => {
                    let place = self.place.expect("it was told where it is before");
                    assert_eq!((epoch, first_seq), (place.epoch, place.seq + 1));
                    self.add(epoch, first_seq + events.len() as u64 - 1, events);
                }
                Told::Emptied { epoch, log_from } => {
                    let place = self.place.expect("it was told where it is before");
                    assert_eq!(epoch, place.epoch);
                    assert!(log_from <= place.seq + 1);
                    let first = place.seq + 1 - self.events.len() as u64;
                    for _ in first..log_from {
                        self.events.pop_front();
                    }
                }
            }
        }

        fn add(&mut self, epoch: u64, seq: u64, events: Vec<BrokeredEvent>) {
            let id = events.last().map(|event| event.id).or(self.place.filter(|place| place.seq == seq).map(|p| p.id));
            self.events.extend(events);
            self.place = Some(Place { epoch, seq, id: id.unwrap_or(NO_ID) });
        }
    }

    #[test]
    fn whatever_happens_to_log_and_link_the_home_has_what_the_log_has() {
        for seed in 0..2000 {
            let mut random = fastrand::Rng::with_seed(seed);
            run(&mut random, seed);
        }
    }

    /// One run: a server that publishes, clears, loses its end and all, a link that breaks and drops, reads in pieces; then
    /// peace, and home and log are compared.
    fn run(random: &mut fastrand::Rng, seed: u64) {
        let mut tag = 0;
        let mut epochs = 1;
        let mut log = Log { epoch: 1, keep: random.u64(1..20), ..Log::default() };
        let mut backup = log.clone();
        let mut was_restored = false;
        let mut tracker = Tracker::new(None);
        let mut home = Home::default();
        // On their way: messages (some get lost) and pages in the order in which the server sent them. A page may
        // be looked at later than messages that came after it.
        let mut messages: VecDeque<Pushed> = VecDeque::new();
        let mut wanted: Option<Wanted> = None;
        let mut taken: Option<(u64, Page)> = None;
        let mut renew: Option<u64> = None;
        let steps = 200;
        for step in 0..steps + 600 {
            let is_peace = step >= steps;
            let choice = if is_peace { random.u32(50..100) } else { random.u32(0..100) };
            match choice {
                0..25 => messages.push_back(Pushed::Message(log.publish(random.u64(1..4), &mut tag))),
                25..27 => messages.push_back(Pushed::Message(log.clear())),
                27..30 => backup = log.clone(),
                30..32 => {
                    // A failover to a replica that was behind: the link may live on where the server only takes the data.
                    log = backup.clone();
                    was_restored = true;
                    if random.bool() {
                        messages.clear();
                        tracker.lost();
                        (wanted, taken, renew) = (None, None, None);
                    }
                }
                32 => {
                    epochs += 1;
                    log = Log { epoch: 1000 + epochs, keep: log.keep, ..Log::default() };
                }
                33..36 => {
                    messages.clear();
                    tracker.lost();
                    (wanted, taken, renew) = (None, None, None);
                }
                36..40 => tracker.fall_behind(),
                40..42 => {
                    if messages.front().is_some_and(|first| matches!(first, Pushed::Message(_))) {
                        messages.pop_front();
                    }
                }
                42..44 => {
                    tracker.follow(home.place);
                    (wanted, taken, renew) = (None, None, None);
                }
                44..70 => match messages.pop_front() {
                    None => {}
                    Some(Pushed::Page(ticket, page)) => taken = Some((ticket, page)),
                    Some(Pushed::Message(message)) => {
                        let mut told = Vec::new();
                        tracker.message(message, random.usize(..40_000), &mut told);
                        told.into_iter().for_each(|told| home.told(told));
                    }
                },
                70..80 => {
                    if let Some(Wanted { ticket, from_seq, .. }) = wanted.take() {
                        messages.push_back(Pushed::Page(ticket, log.read(from_seq, random.usize(1..4))));
                    }
                }
                80..90 => {
                    let mut told = Vec::new();
                    if let Some((ticket, page)) = taken.take() {
                        match tracker.page(ticket, page, &mut told) {
                            Step::None => {}
                            Step::Read => wanted = Some(tracker.next_read()),
                            Step::Renew(old) => renew = Some(old),
                        }
                    }
                    told.into_iter().for_each(|told| home.told(told));
                }
                90..95 => {
                    if let Some(old) = renew.take() {
                        if log.epoch == old {
                            epochs += 1;
                            log.epoch = 1000 + epochs;
                            let notice = Message {
                                epoch: log.epoch,
                                first_seq: log.log_from.max(1),
                                previous: NO_ID,
                                events: Vec::new(),
                            };
                            messages.push_back(Pushed::Message(notice));
                        }
                        if tracker.renewed() {
                            wanted = Some(tracker.next_read());
                        }
                    }
                }
                _ => {
                    if tracker.is_behind() {
                        wanted = Some(tracker.begin());
                        taken = None;
                    }
                }
            }
            if step == steps || step == steps + 300 {
                // A canary or a message would tell sooner or later; what was dropped in silence ends with this.
                tracker.fall_behind();
            }
        }
        let place = home.place.expect("it was told where it is");
        assert_eq!((place.epoch, place.seq), (log.epoch, log.seq()), "seed {seed}");
        let kept = log.entries.iter().flat_map(|entry| &entry.events).filter(|event| {
            let seq = log.events.iter().position(|one| one.id == event.id).expect("it is of this log") as u64 + 1;
            seq >= log.log_from
        });
        let kept: Vec<_> = kept.cloned().collect();
        let had: Vec<_> = home.events.iter().cloned().collect();
        // What a failover brings back that was trimmed or cleared is brought to no home that had gone on without it.
        let has_all = had.ends_with(&kept) || (was_restored && kept.ends_with(&had));
        assert!(has_all, "seed {seed}: the home has all that is kept");
        assert!(log.events.ends_with(&had), "seed {seed}: the home has nothing that the log never had");
        assert!(home.gaps >= 1, "the first time it is told all");
    }
}

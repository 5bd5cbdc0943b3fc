//! Makes rooms again from the records of a journal, in the order in which they were written.
//!
//! What is said twice counts as it was said last: events of a number that is there already take the place of those and of
//! all behind them, since a number is given anew only when the one before came to nothing. Moved events are the exception:
//! they stood in an older file and fill in where nothing is.

use std::collections::BTreeMap;

use super::book::Book;
use super::record::{Record, What};
use crate::hub::log::LogBounds;
use crate::hub::stored::{StoredBatch, StoredRoom};

/// Rooms being made again.
#[derive(Debug, Default)]
pub struct Rebuild {
    rooms: BTreeMap<Box<str>, Room>,
    /// Number and bytes of the files read so far, in order.
    files: Vec<(u64, u64)>,
}

#[derive(Debug)]
struct Room {
    epoch: u64,
    seq: u64,
    /// The file with what told `seq`.
    newest_in: u64,
    /// Its log was emptied of what is before this.
    log_from: u64,
    batches: BTreeMap<u64, Placed>,
}

#[derive(Debug)]
struct Placed {
    file: u64,
    record_bytes: u64,
    batch: StoredBatch,
}

/// What a journal had.
#[derive(Debug, Default)]
pub struct Rebuilt {
    /// The rooms.
    pub rooms: Vec<StoredRoom>,
    /// Which file is needed for what.
    pub book: Book,
    /// Rooms whose kinds are not durable any more; they were left out.
    pub left_out: usize,
    /// Rooms whose log begins later than it could, because events within it could not be read.
    pub shortened: Vec<Box<str>>,
}

impl Rebuild {
    /// The records from here on are of another file, with a larger number than those before.
    pub fn file(&mut self, number: u64) {
        self.files.push((number, 0));
    }

    /// The file has so many bytes that count.
    pub fn file_bytes(&mut self, bytes: u64) {
        if let Some(file) = self.files.last_mut() {
            file.1 = bytes;
        }
    }

    /// Takes in a record of so many bytes.
    pub fn record(&mut self, record: Record, record_bytes: usize, bounds: impl Fn(&str) -> Option<LogBounds>) {
        let Record { room: name, epoch, what } = record;
        let file = self.files.last().map_or(0, |file| file.0);
        let same = |room: &&mut Room| room.epoch == epoch;
        match what {
            What::Events(batch) => {
                let events_max = bounds(&name).map_or(0, |bounds| bounds.events_max);
                let room = self.room(name, epoch, file);
                // Batches end where an acknowledged one ended, so that none reaches beyond the first number.
                drop(room.batches.split_off(&batch.first_seq));
                room.seq = batch.last_seq();
                room.newest_in = file;
                let record_bytes = record_bytes as u64;
                room.batches.insert(batch.first_seq, Placed { file, record_bytes, batch });
                room.keep_at_most(events_max);
            }
            What::Moved(batch) => {
                let room = self.room(name, epoch, file);
                if batch.last_seq() > room.seq {
                    room.seq = batch.last_seq();
                    room.newest_in = file;
                }
                // Moved before it was known that the log had been emptied.
                if batch.last_seq() < room.log_from {
                    return;
                }
                let record_bytes = record_bytes as u64;
                room.batches.entry(batch.first_seq).or_insert(Placed { file, record_bytes, batch });
            }
            What::State { seq } => {
                let room = self.room(name, epoch, file);
                if seq >= room.seq {
                    room.seq = seq;
                    room.newest_in = file;
                }
            }
            What::Cut { from_seq } if from_seq > 1 => {
                let room = self.room(name, epoch, file);
                drop(room.batches.split_off(&from_seq));
                room.seq = from_seq - 1;
                room.newest_in = file;
            }
            What::Cleared { log_from } => {
                if let Some(room) = self.rooms.get_mut(&name).filter(same) {
                    room.log_from = room.log_from.max(log_from);
                    room.batches.retain(|_, placed| placed.batch.last_seq() >= log_from);
                }
            }
            What::Cut { .. } | What::Forgotten => {
                if self.rooms.get_mut(&name).filter(same).is_some() {
                    self.rooms.remove(&name);
                }
            }
        }
    }

    /// A room's epoch changes only when its log was lost or given up.
    fn room(&mut self, name: Box<str>, epoch: u64, file: u64) -> &mut Room {
        let fresh = || Room { epoch, seq: 0, newest_in: file, log_from: 0, batches: BTreeMap::new() };
        let room = self.rooms.entry(name).or_insert_with(fresh);
        if room.epoch != epoch {
            *room = fresh();
        }
        room
    }

    /// The rooms, as far as their kinds' bounds allow; none for kinds that are not durable.
    pub fn finish(self, now_ms: u64, bounds: impl Fn(&str) -> Option<LogBounds>) -> Rebuilt {
        let Rebuild { mut rooms, files } = self;
        let mut rebuilt = Rebuilt::default();
        let before = rooms.len();
        rooms.retain(|name, room| room.seq > 0 && bounds(name).is_some());
        rebuilt.left_out = before - rooms.len();
        for (name, room) in &mut rooms {
            let Some(bounds) = bounds(name) else { continue };
            if room.close_holes(bounds, now_ms) {
                rebuilt.shortened.push(name.clone());
            }
            room.trim(bounds, now_ms);
        }
        let mut placed: BTreeMap<u64, Vec<(&str, u64, u64, u64)>> = BTreeMap::new();
        let mut newest: BTreeMap<u64, Vec<(&str, u64, u64)>> = BTreeMap::new();
        for (name, room) in &rooms {
            for one in room.batches.values() {
                let events = (&**name, room.epoch, one.batch.last_seq(), one.record_bytes);
                placed.entry(one.file).or_default().push(events);
            }
            newest.entry(room.newest_in).or_default().push((name, room.epoch, room.seq));
        }
        for (number, bytes) in files {
            rebuilt.book.begin(number, bytes);
            for (name, epoch, last_seq, record_bytes) in placed.remove(&number).unwrap_or_default() {
                rebuilt.book.place(name, epoch, last_seq, record_bytes);
            }
            for (name, epoch, seq) in newest.remove(&number).unwrap_or_default() {
                rebuilt.book.state(name, epoch, seq);
            }
        }
        for (name, room) in &rooms {
            // What was emptied is not to be moved out of files where it still stands.
            rebuilt.book.trimmed(name, room.epoch, room.log_from);
        }
        rebuilt.rooms.extend(rooms.into_iter().map(|(room, Room { epoch, seq, batches, .. })| {
            let batches = batches.into_values().map(|placed| placed.batch).collect();
            StoredRoom { room, epoch, seq, batches }
        }));
        rebuilt
    }
}

impl Room {
    fn events(&self) -> usize {
        self.batches.values().map(|placed| placed.batch.events.len()).sum()
    }

    fn bytes(&self) -> usize {
        self.batches.values().map(|placed| placed.batch.bytes.len()).sum()
    }

    /// Lets go of what is beyond the bounds already, so that reading takes the memory of what is kept. Twice as much may
    /// be there, so that not every record has all counted.
    fn keep_at_most(&mut self, events_max: usize) {
        if self.batches.len() <= events_max.saturating_mul(2).max(64) {
            return;
        }
        let mut events = self.events();
        while let Some(first) = self.batches.first_entry() {
            events -= first.get().batch.events.len();
            if events < events_max {
                return;
            }
            first.remove();
        }
    }

    /// A log has no holes: what stands before one is let go of. True where the log would have kept that.
    fn close_holes(&mut self, bounds: LogBounds, now_ms: u64) -> bool {
        let mut next = self.seq + 1;
        let mut from = next;
        for (first, placed) in self.batches.iter().rev() {
            if placed.batch.last_seq() + 1 != next {
                break;
            }
            (next, from) = (*first, *first);
        }
        let kept = self.batches.split_off(&from);
        let before_hole = std::mem::replace(&mut self.batches, kept);
        let newest = before_hole.values().next_back().map(|placed| placed.batch.unix_ms);
        let is_young = newest.is_some_and(|unix_ms| unix_ms.saturating_add(bounds.age_ms) >= now_ms);
        is_young && self.events() < bounds.events_max && self.bytes() < bounds.bytes_max
    }

    fn trim(&mut self, bounds: LogBounds, now_ms: u64) {
        let (mut events, mut bytes) = (self.events(), self.bytes());
        // The hub cuts within the oldest batch where it has to; here only what is not needed at all goes.
        while let Some(first) = self.batches.first_entry() {
            let batch = &first.get().batch;
            let (fewer, less) = (events - batch.events.len(), bytes - batch.bytes.len());
            let too_old = batch.unix_ms.saturating_add(bounds.age_ms) < now_ms;
            if !too_old && fewer < bounds.events_max && less < bounds.bytes_max {
                return;
            }
            (events, bytes) = (fewer, less);
            first.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::stored::StoredEvent;

    const BOUNDS: LogBounds = LogBounds { events_max: 10, bytes_max: 1 << 20, age_ms: 60_000 };

    fn batch(seqs: std::ops::RangeInclusive<u64>, unix_ms: u64) -> StoredBatch {
        let event = StoredEvent { frame_bytes: 100, data_at: 60, kind_at: 11, kind_bytes: 1, key: 0 };
        let events = vec![event; seqs.clone().count()];
        let bytes = vec![0; 100 * events.len()];
        StoredBatch { first_seq: *seqs.start(), unix_ms, events, keys: Vec::new(), bytes }
    }

    fn rebuilt(files: &[&[(u64, What)]]) -> Rebuilt {
        let mut rebuild = Rebuild::default();
        for (number, records) in (1..).zip(files) {
            rebuild.file(number);
            for (epoch, what) in *records {
                let record = Record { room: "a:a".into(), epoch: *epoch, what: what.clone() };
                rebuild.record(record, 100, |_| Some(BOUNDS));
            }
        }
        rebuild.finish(1000, |_| Some(BOUNDS))
    }

    /// Epoch, last number, and the numbers of the events that are there.
    fn room(files: &[&[(u64, What)]]) -> Option<(u64, u64, Vec<u64>)> {
        let room = rebuilt(files).rooms.into_iter().next()?;
        let seqs = room.batches.iter().flat_map(|batch| batch.first_seq..=batch.last_seq());
        Some((room.epoch, room.seq, seqs.collect()))
    }

    fn events(seqs: std::ops::RangeInclusive<u64>) -> (u64, What) {
        (1, What::Events(batch(seqs, 1000)))
    }

    fn moved(seqs: std::ops::RangeInclusive<u64>) -> (u64, What) {
        (1, What::Moved(batch(seqs, 1000)))
    }

    #[test]
    fn events_follow_on_each_other_across_files() {
        assert_eq!(room(&[&[events(1..=3), events(4..=4)], &[events(5..=6)]]), Some((1, 6, (1..=6).collect())));
    }

    #[test]
    fn events_of_a_number_given_anew_take_the_place_of_what_came_to_nothing() {
        let lost = [events(1..=2), events(3..=5), events(6..=9)];
        assert_eq!(room(&[&lost, &[events(3..=4)]]), Some((1, 4, vec![1, 2, 3, 4])));
    }

    #[test]
    fn a_cut_takes_back_what_was_not_acknowledged() {
        let cut = (1, What::Cut { from_seq: 3 });
        assert_eq!(room(&[&[events(1..=2), events(3..=5)], std::slice::from_ref(&cut)]), Some((1, 2, vec![1, 2])));
        assert_eq!(room(&[&[events(1..=2), events(3..=5)], &[cut, events(3..=3)]]), Some((1, 3, vec![1, 2, 3])));
        assert_eq!(room(&[&[events(1..=2)], &[(1, What::Cut { from_seq: 1 })]]), None);
        let of_another_life = (2, What::Cut { from_seq: 1 });
        assert_eq!(room(&[&[events(1..=2)], &[of_another_life]]), Some((1, 2, vec![1, 2])));
    }

    #[test]
    fn a_log_that_was_emptied_stays_so_and_goes_on_with_its_numbers() {
        let cleared = (1, What::Cleared { log_from: 4 });
        assert_eq!(room(&[&[events(1..=3), cleared.clone()]]), Some((1, 3, vec![])));
        assert_eq!(room(&[&[events(1..=3)], &[cleared.clone(), events(4..=5)]]), Some((1, 5, vec![4, 5])));
        // Sent to the journal before it, and acknowledged after it.
        assert_eq!(room(&[&[events(1..=3), events(4..=5), cleared.clone()]]), Some((1, 5, vec![4, 5])));
        // Moved by one who did not know of it.
        let files: &[&[_]] = &[&[events(1..=3)], &[cleared.clone(), events(4..=5)], &[moved(1..=3)]];
        assert_eq!(room(files), Some((1, 5, vec![4, 5])));
        let of_another_life = (2, What::Cleared { log_from: 4 });
        assert_eq!(room(&[&[events(1..=3), of_another_life]]), Some((1, 3, vec![1, 2, 3])));
        let rebuilt = rebuilt(&[&[events(1..=3), events(4..=5), cleared], &[events(6..=6)]]);
        assert!(!rebuilt.book.is_needed(1, "a:a", 1, 3) && rebuilt.book.is_needed(1, "a:a", 1, 5));
        assert_eq!(rebuilt.shortened, Vec::<Box<str>>::new());
    }

    #[test]
    fn moved_events_come_before_those_that_are_there() {
        assert_eq!(room(&[&[events(4..=6)], &[moved(1..=3)]]), Some((1, 6, (1..=6).collect())));
    }

    #[test]
    fn what_stands_before_a_hole_is_let_go_of_and_named() {
        let rebuilt = rebuilt(&[&[events(1..=2), events(5..=6)]]);
        assert_eq!(rebuilt.shortened, [Box::<str>::from("a:a")]);
        assert_eq!(rebuilt.rooms[0].batches.len(), 1);
        // The last events can't be read, but their number is known: it is not given again.
        assert_eq!(room(&[&[events(1..=2), (1, What::State { seq: 9 })]]), Some((1, 9, vec![])));
    }

    #[test]
    fn a_new_epoch_is_a_new_life_and_a_forgotten_room_is_gone() {
        let second = (2, What::Events(batch(1..=1, 1000)));
        assert_eq!(room(&[&[events(1..=5), second.clone()]]), Some((2, 1, vec![1])));
        assert_eq!(room(&[&[events(1..=5), (1, What::Forgotten)]]), None);
        assert_eq!(room(&[&[events(1..=5), second, (1, What::Forgotten)]]), Some((2, 1, vec![1])));
    }

    #[test]
    fn bounds_hold_while_reading_and_a_number_outlives_its_event() {
        let many: Vec<_> = (1..=500).map(|seq| events(seq..=seq)).collect();
        assert_eq!(room(&[&many]), Some((1, 500, (491..=500).collect())));
        let old = (1, What::Events(batch(1..=5, 0)));
        let mut rebuild = Rebuild::default();
        rebuild.file(1);
        rebuild.record(Record { room: "a:a".into(), epoch: 1, what: old.1 }, 100, |_| Some(BOUNDS));
        let rebuilt = rebuild.finish(60_001, |_| Some(BOUNDS));
        assert_eq!((rebuilt.rooms[0].seq, rebuilt.rooms[0].batches.len()), (5, 0));
    }

    #[test]
    fn rooms_of_kinds_that_are_not_durable_are_left_out_and_need_no_file() {
        let mut rebuild = Rebuild::default();
        rebuild.file(1);
        let record = Record { room: "b:a".into(), epoch: 1, what: What::Events(batch(1..=5, 1000)) };
        rebuild.record(record, 100, |_| None);
        rebuild.file(2);
        let rebuilt = rebuild.finish(1000, |_| None);
        assert_eq!((rebuilt.rooms.len(), rebuilt.left_out), (0, 1));
        assert!(rebuilt.book.oldest_can_go());
    }

    #[test]
    fn the_book_knows_where_events_stand_after_a_start() {
        let rebuilt =
            rebuilt(&[&[events(1..=2), events(3..=4)], &[events(3..=3)], &[(1, What::State { seq: 3 })], &[]]);
        assert!(rebuilt.book.is_needed(1, "a:a", 1, 2) && !rebuilt.book.is_needed(1, "a:a", 1, 4));
        assert!(rebuilt.book.is_needed(2, "a:a", 1, 3));
        assert_eq!(rebuilt.book.newest_in(3), [("a:a".into(), 1, 3)]);
    }
}

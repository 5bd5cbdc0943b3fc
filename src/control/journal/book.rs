//! Which file of the journal is still needed, and for what.
//!
//! A file is needed while some room's log has events in it, or while it has the newest record of a room, which says what
//! its last number is. Files go in their order, oldest first, so that a record which takes back others never goes before
//! them.

use std::collections::{HashMap, VecDeque};

/// The accounts of a journal.
#[derive(Debug, Default)]
pub struct Book {
    /// Oldest first; the last is the one that is written.
    files: VecDeque<File>,
    rooms: HashMap<Box<str>, Notes>,
    live_bytes: u64,
}

#[derive(Debug)]
struct File {
    number: u64,
    bytes: u64,
    /// Rooms with events in it that are kept, and rooms whose newest record is in it.
    needed_by: usize,
}

#[derive(Debug)]
struct Notes {
    epoch: u64,
    seq: u64,
    /// The first event that its log keeps.
    log_from: u64,
    /// The file with its newest record.
    newest_in: u64,
    /// Files with events of its log. Few: a busy room's are young, a quiet one has few events.
    places: Vec<Place>,
}

#[derive(Debug)]
struct Place {
    file: u64,
    last_seq: u64,
    bytes: u64,
}

/// Events of a room that are in the file being written.
#[derive(Debug, Clone, Copy)]
pub struct Written<'a> {
    /// The room.
    pub room: &'a str,
    /// The log's epoch.
    pub epoch: u64,
    /// The number of the last of them.
    pub last_seq: u64,
    /// Bytes of their record.
    pub bytes: u64,
    /// The first event that the room's log keeps.
    pub log_from: u64,
}

impl Book {
    /// Begins a file with that number.
    pub fn begin(&mut self, number: u64, bytes: u64) {
        self.files.push_back(File { number, bytes, needed_by: 0 });
    }

    /// The number that the next file gets.
    pub fn next_number(&self) -> u64 {
        self.files.back().map_or(1, |file| file.number + 1)
    }

    /// The bytes of the file that is written.
    pub fn bytes_of_newest(&self) -> u64 {
        self.files.back().map_or(0, |file| file.bytes)
    }

    /// The file that is written has so many bytes now.
    pub fn set_bytes_of_newest(&mut self, bytes: u64) {
        if let Some(file) = self.files.back_mut() {
            file.bytes = bytes;
        }
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// Bytes of records that are needed.
    pub fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    /// How many files there are.
    pub fn files(&self) -> usize {
        self.files.len()
    }

    /// The oldest file, unless it is the one that is written.
    pub fn oldest(&self) -> Option<u64> {
        if self.files.len() > 1 { self.files.front().map(|file| file.number) } else { None }
    }

    /// Whether nobody needs the oldest file.
    pub fn oldest_can_go(&self) -> bool {
        self.files.len() > 1 && self.files.front().is_some_and(|file| file.needed_by == 0)
    }

    /// The oldest file is gone.
    pub fn removed_oldest(&mut self) {
        self.files.pop_front();
    }

    /// Events were written to the newest file.
    pub fn written(&mut self, written: Written<'_>) {
        let Written { room, epoch, last_seq, bytes, log_from } = written;
        if self.rooms.get(room).is_some_and(|notes| notes.epoch != epoch) {
            self.forgotten(room, None);
        }
        self.place(room, epoch, last_seq, bytes);
        self.newest(room, last_seq);
        self.trimmed(room, epoch, log_from);
    }

    /// Notes where events are, of any age: the newest file.
    pub fn place(&mut self, room: &str, epoch: u64, last_seq: u64, bytes: u64) {
        let Some(number) = self.files.back().map(|file| file.number) else { return };
        if !self.rooms.contains_key(room) {
            let notes = Notes { epoch, seq: 0, log_from: 0, newest_in: number, places: Vec::new() };
            self.rooms.insert(room.into(), notes);
            self.need(number, 1);
        }
        let Some(notes) = self.rooms.get_mut(room) else { return };
        self.live_bytes += bytes;
        match notes.places.iter_mut().find(|place| place.file == number) {
            Some(place) => {
                place.last_seq = place.last_seq.max(last_seq);
                place.bytes += bytes;
            }
            None => {
                notes.places.push(Place { file: number, last_seq, bytes });
                self.need(number, 1);
            }
        }
    }

    /// The newest file has what tells a room's last number.
    pub fn newest(&mut self, room: &str, seq: u64) {
        let Some(number) = self.files.back().map(|file| file.number) else { return };
        let Some(notes) = self.rooms.get_mut(room) else { return };
        notes.seq = seq;
        let former = std::mem::replace(&mut notes.newest_in, number);
        if former != number {
            self.need(number, 1);
            self.need(former, -1);
        }
    }

    /// Notes a room of which there is nothing but its last number, in the newest file.
    pub fn state(&mut self, room: &str, epoch: u64, seq: u64) {
        let Some(number) = self.files.back().map(|file| file.number) else { return };
        if !self.rooms.contains_key(room) {
            let notes = Notes { epoch, seq, log_from: 0, newest_in: number, places: Vec::new() };
            self.rooms.insert(room.into(), notes);
            self.need(number, 1);
        }
        self.newest(room, seq);
    }

    /// A room's log begins at that event now.
    pub fn trimmed(&mut self, room: &str, epoch: u64, log_from: u64) {
        let Some(notes) = self.rooms.get_mut(room).filter(|notes| notes.epoch == epoch) else { return };
        notes.log_from = log_from;
        if notes.places.iter().all(|place| place.last_seq >= log_from) {
            return;
        }
        let gone: Vec<Place> = notes.places.extract_if(.., |place| place.last_seq < log_from).collect();
        self.let_go(&gone);
    }

    /// A room was given up; none stands for any epoch.
    pub fn forgotten(&mut self, room: &str, epoch: Option<u64>) {
        if self.rooms.get(room).is_none_or(|notes| epoch.is_some_and(|epoch| epoch != notes.epoch)) {
            return;
        }
        if let Some(notes) = self.rooms.remove(room) {
            self.let_go(&notes.places);
            self.need(notes.newest_in, -1);
        }
    }

    fn let_go(&mut self, places: &[Place]) {
        for place in places {
            self.live_bytes = self.live_bytes.saturating_sub(place.bytes);
            self.need(place.file, -1);
        }
    }

    fn need(&mut self, number: u64, by: isize) {
        // Files are in the order of their numbers.
        let place = self.files.partition_point(|file| file.number < number);
        if let Some(file) = self.files.get_mut(place).filter(|file| file.number == number) {
            file.needed_by = file.needed_by.saturating_add_signed(by);
        }
    }

    // ---- moving what is needed out of the oldest file ----

    /// Whether the log of a room has events that stand in that file, with these numbers.
    pub fn is_needed(&self, file: u64, room: &str, epoch: u64, last_seq: u64) -> bool {
        let notes = self.rooms.get(room).filter(|notes| notes.epoch == epoch && last_seq >= notes.log_from);
        // What came behind the last that was acknowledged there does not count.
        notes.is_some_and(|notes| notes.places.iter().any(|place| place.file == file && last_seq <= place.last_seq))
    }

    /// The rooms whose newest record is in that file: name, epoch, last number.
    pub fn newest_in(&self, file: u64) -> Vec<(Box<str>, u64, u64)> {
        let rooms = self.rooms.iter().filter(|(_, notes)| notes.newest_in == file);
        rooms.map(|(room, notes)| (room.clone(), notes.epoch, notes.seq)).collect()
    }

    /// What was needed of that file stands elsewhere now.
    pub fn moved_out_of(&mut self, file: u64) {
        let mut gone = Vec::new();
        for notes in self.rooms.values_mut() {
            gone.extend(notes.places.extract_if(.., |place| place.file == file));
        }
        self.let_go(&gone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(book: &mut Book, room: &str, last_seq: u64, log_from: u64) {
        book.written(Written { room, epoch: 1, last_seq, bytes: 100, log_from });
    }

    #[test]
    fn a_file_goes_when_no_log_needs_it() {
        let mut book = Book::default();
        book.begin(1, 16);
        written(&mut book, "a:a", 5, 1);
        written(&mut book, "a:b", 2, 1);
        assert!(!book.oldest_can_go(), "it is the one that is written");
        book.begin(2, 16);
        written(&mut book, "a:a", 9, 6);
        assert!(!book.oldest_can_go(), "a:b is in it");
        assert_eq!(book.live_bytes(), 200);
        book.trimmed("a:b", 1, 3);
        assert!(!book.oldest_can_go(), "it tells the last number of a:b");
        book.forgotten("a:b", Some(7));
        assert!(!book.oldest_can_go(), "another life of a:b");
        book.forgotten("a:b", Some(1));
        assert!(book.oldest_can_go());
        book.removed_oldest();
        assert_eq!((book.oldest(), book.files(), book.live_bytes()), (None, 1, 100));
    }

    #[test]
    fn what_is_needed_of_the_oldest_file_can_be_moved() {
        let mut book = Book::default();
        book.begin(1, 16);
        written(&mut book, "a:a", 5, 1);
        written(&mut book, "a:b", 2, 3);
        book.begin(2, 16);
        written(&mut book, "a:a", 9, 2);
        assert!(book.is_needed(1, "a:a", 1, 5));
        assert!(!book.is_needed(1, "a:a", 1, 6), "what was not acknowledged there");
        assert!(!book.is_needed(1, "a:a", 2, 5) && !book.is_needed(1, "a:b", 1, 2));
        assert_eq!(book.newest_in(1), [("a:b".into(), 1, 2)]);
        book.moved_out_of(1);
        book.place("a:a", 1, 5, 80);
        book.newest("a:b", 2);
        assert!(book.oldest_can_go());
        assert_eq!(book.live_bytes(), 180);
    }

    #[test]
    fn a_new_life_of_a_room_needs_nothing_of_the_old_one() {
        let mut book = Book::default();
        book.begin(1, 16);
        written(&mut book, "a:a", 5, 1);
        book.begin(2, 16);
        book.written(Written { room: "a:a", epoch: 2, last_seq: 1, bytes: 10, log_from: 1 });
        assert!(book.oldest_can_go());
        assert_eq!(book.live_bytes(), 10);
    }
}

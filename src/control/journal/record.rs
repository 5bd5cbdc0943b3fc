//! A record of the journal, byte by byte. All numbers are little-endian.
//!
//! ```text
//! "RHJ1" | bytes of the payload: u32 | crc32: u32 | kind: u8 | payload
//!
//! payload   epoch: u64 | bytes of the name: u16 | the room's name | …
//!   1 events, 2 moved events      first seq: u64 | unix_ms: u64 | events: u32 | keys: u32 | bytes of the frames: u32
//!       each event                frame bytes: u32 | data at: u32 | type at: u32 | type bytes: u32 | key's hash: u64
//!       each key                  place of its event: u32 | bytes: u16 | key
//!       frames
//!   3 state                       seq: u64
//!   4 cut                         from seq: u64
//!   5 forgotten                   nothing
//!   6 cleared                     log from: u64
//! ```
//!
//! The checksum covers length, kind and payload. A file begins with [`FILE_HEAD`].

use crate::hub::batch::Batch;
use crate::hub::stored::{StoredBatch, StoredEvent};

/// What every file begins with.
pub const FILE_HEAD: &[u8; 16] = b"ringhub journal\n";

const MAGIC: &[u8; 4] = b"RHJ1";
const HEAD_BYTES: usize = 13;

const EVENTS: u8 = 1;
const MOVED: u8 = 2;
const STATE: u8 = 3;
const CUT: u8 = 4;
const FORGOTTEN: u8 = 5;
const CLEARED: u8 = 6;

/// What a record says of a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The room.
    pub room: Box<str>,
    /// The epoch of the log that it is about.
    pub epoch: u64,
    /// What it says.
    pub what: What,
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Events. They take the place of any of the same numbers or later ones before them: those were never acknowledged.
    Events(StoredBatch),
    /// Events that stood in an older file; they come before those of later numbers.
    Moved(StoredBatch),
    /// The last number given.
    State {
        /// The number.
        seq: u64,
    },
    /// What there is of the room from that number on was never acknowledged.
    Cut {
        /// The number.
        from_seq: u64,
    },
    /// The room was given up.
    Forgotten,
    /// The room's log was emptied of what is before that number.
    Cleared {
        /// The number.
        log_from: u64,
    },
}

/// Why there is no record at some place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The bytes end within it.
    #[error("a record that ends too early")]
    Short,
    /// It does not begin as a record does.
    #[error("no record")]
    NoRecord,
    /// Its checksum is of other bytes.
    #[error("a record with a wrong checksum")]
    Checksum,
    /// Its checksum is right, and what it says makes no sense.
    #[error("a record that makes no sense")]
    Nonsense,
}

// ---- writing ----

/// Appends the events of a batch.
pub fn write_batch(out: &mut Vec<u8>, epoch: u64, batch: &Batch, keys: &[(u32, Box<str>)]) {
    let first_seq = batch.events.first().map_or(0, |event| event.seq);
    let events = batch.events.iter().map(StoredEvent::of);
    let parts = Parts { first_seq, unix_ms: batch.unix_ms, keys, bytes: &batch.bytes };
    record(out, EVENTS, epoch, batch.room.as_str(), |out| write_events(out, &parts, events));
}

/// Appends events that are moved to a newer file.
pub fn write_moved(out: &mut Vec<u8>, room: &str, epoch: u64, batch: &StoredBatch) {
    let StoredBatch { first_seq, unix_ms, events, keys, bytes } = batch;
    let parts = Parts { first_seq: *first_seq, unix_ms: *unix_ms, keys, bytes };
    record(out, MOVED, epoch, room, |out| write_events(out, &parts, events.iter().copied()));
}

/// Appends the last number given in a room.
pub fn write_state(out: &mut Vec<u8>, room: &str, epoch: u64, seq: u64) {
    record(out, STATE, epoch, room, |out| out.extend_from_slice(&seq.to_le_bytes()));
}

/// Appends that what there is of a room from that number on does not count.
pub fn write_cut(out: &mut Vec<u8>, room: &str, epoch: u64, from_seq: u64) {
    record(out, CUT, epoch, room, |out| out.extend_from_slice(&from_seq.to_le_bytes()));
}

/// Appends that a room was given up.
pub fn write_forgotten(out: &mut Vec<u8>, room: &str, epoch: u64) {
    record(out, FORGOTTEN, epoch, room, |_| {});
}

/// Appends that a room's log was emptied of what is before that number.
pub fn write_cleared(out: &mut Vec<u8>, room: &str, epoch: u64, log_from: u64) {
    record(out, CLEARED, epoch, room, |out| out.extend_from_slice(&log_from.to_le_bytes()));
}

struct Parts<'a> {
    first_seq: u64,
    unix_ms: u64,
    keys: &'a [(u32, Box<str>)],
    bytes: &'a [u8],
}

// Names have 1024 bytes at most, keys as well, and batches are sealed long before 4 GiB: the lengths fit.
fn write_events(out: &mut Vec<u8>, parts: &Parts<'_>, events: impl ExactSizeIterator<Item = StoredEvent>) {
    out.extend_from_slice(&parts.first_seq.to_le_bytes());
    out.extend_from_slice(&parts.unix_ms.to_le_bytes());
    for count in [events.len(), parts.keys.len(), parts.bytes.len()] {
        out.extend_from_slice(&(count as u32).to_le_bytes());
    }
    for StoredEvent { frame_bytes, data_at, kind_at, kind_bytes, key } in events {
        for number in [frame_bytes, data_at, kind_at, kind_bytes] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&key.to_le_bytes());
    }
    for (place, key) in parts.keys {
        out.extend_from_slice(&place.to_le_bytes());
        out.extend_from_slice(&(key.len() as u16).to_le_bytes());
        out.extend_from_slice(key.as_bytes());
    }
    out.extend_from_slice(parts.bytes);
}

fn record(out: &mut Vec<u8>, kind: u8, epoch: u64, room: &str, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&[0; 8]);
    out.push(kind);
    out.extend_from_slice(&epoch.to_le_bytes());
    out.extend_from_slice(&(room.len() as u16).to_le_bytes());
    out.extend_from_slice(room.as_bytes());
    write(out);
    let Some(record) = out.get_mut(start..) else { return };
    let length = (record.len().saturating_sub(HEAD_BYTES) as u32).to_le_bytes();
    let crc = checksum(length, record.get(12..).unwrap_or_default()).to_le_bytes();
    for (place, byte) in record.iter_mut().skip(4).zip(length.into_iter().chain(crc)) {
        *place = byte;
    }
}

fn checksum(length: [u8; 4], kind_and_payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&length);
    hasher.update(kind_and_payload);
    hasher.finalize()
}

// ---- reading ----

/// Reads the record that `bytes` begin with, and how long it is.
pub fn read(bytes: &[u8]) -> Result<(Record, usize), Damage> {
    let given = bytes.len().min(MAGIC.len());
    if bytes.get(..given) != MAGIC.get(..given) {
        return Err(Damage::NoRecord);
    }
    let mut head = Reader(bytes);
    head.array::<4>().ok_or(Damage::Short)?;
    let length = head.array::<4>().ok_or(Damage::Short)?;
    let crc = u32::from_le_bytes(head.array().ok_or(Damage::Short)?);
    let record_bytes = HEAD_BYTES.saturating_add(u32::from_le_bytes(length) as usize);
    let checked = bytes.get(12..record_bytes).ok_or(Damage::Short)?;
    if checksum(length, checked) != crc {
        return Err(Damage::Checksum);
    }
    let record = parse(Reader(checked)).ok_or(Damage::Nonsense)?;
    Ok((record, record_bytes))
}

/// Where the next record with a right checksum begins, from `at` on.
pub fn next_record(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = bytes.get(at..)?;
    memchr::memmem::find_iter(rest, MAGIC)
        .map(|found| at + found)
        .find(|found| bytes.get(*found..).is_some_and(|bytes| read(bytes).is_ok()))
}

fn parse(mut reader: Reader<'_>) -> Option<Record> {
    let [kind] = reader.array()?;
    let epoch = reader.u64()?;
    let room_bytes = u16::from_le_bytes(reader.array()?);
    let room = std::str::from_utf8(reader.take(room_bytes.into())?).ok()?.into();
    let what = match kind {
        EVENTS => What::Events(reader.batch()?),
        MOVED => What::Moved(reader.batch()?),
        STATE => What::State { seq: reader.u64()? },
        CUT => What::Cut { from_seq: reader.u64()? },
        FORGOTTEN => What::Forgotten,
        CLEARED => What::Cleared { log_from: reader.u64()? },
        _ => return None,
    };
    reader.0.is_empty().then_some(Record { room, epoch, what })
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn batch(&mut self) -> Option<StoredBatch> {
        let (first_seq, unix_ms) = (self.u64()?, self.u64()?);
        let (events_count, keys_count, frames_bytes) = (self.u32()?, self.u32()?, self.u32()?);
        // No memory is asked for by a count that the record is too short for.
        let mut events = Vec::new();
        for _ in 0..events_count {
            let [frame_bytes, data_at, kind_at, kind_bytes] = [self.u32()?, self.u32()?, self.u32()?, self.u32()?];
            events.push(StoredEvent { frame_bytes, data_at, kind_at, kind_bytes, key: self.u64()? });
        }
        let mut keys = Vec::new();
        for _ in 0..keys_count {
            let place = self.u32()?;
            let key_bytes = u16::from_le_bytes(self.array()?);
            keys.push((place, std::str::from_utf8(self.take(key_bytes.into())?).ok()?.into()));
        }
        let bytes = self.take(frames_bytes as usize)?.to_vec();
        let batch = StoredBatch { first_seq, unix_ms, events, keys, bytes };
        batch.is_sound().then_some(batch)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::hub::batch::{FrameMemory, OpenBatch};
    use crate::hub::name::NameHasher;
    use crate::wire::envelope::{Event, Stamp, rfc3339};

    fn batch() -> Arc<Batch> {
        let stamp = Stamp { id: *b"01890a5d-ac96-774b-bcce-b302099a8057", timestamp: rfc3339(5) };
        let mut open = OpenBatch::default();
        for (seq, data) in [(41, &b"{\"n\":1}"[..]), (42, b"null"), (43, b"[1,2]")] {
            open.push(&stamp, &Event { room: "quote:7", kind: "quote.updated", seq, data }, None, seq * 3);
        }
        Arc::new(open.seal(NameHasher::new(0).room("quote:7"), &FrameMemory::default(), 1_700_000_000_000))
    }

    fn keys() -> Vec<(u32, Box<str>)> {
        vec![(0, "first".into()), (2, "third".into())]
    }

    fn records() -> Vec<u8> {
        let mut out = Vec::new();
        write_batch(&mut out, 9, &batch(), &keys());
        write_state(&mut out, "quote:7", 9, 43);
        write_cut(&mut out, "quote:7", 9, 44);
        write_forgotten(&mut out, "quote:8", 10);
        write_cleared(&mut out, "quote:7", 9, 45);
        out
    }

    fn read_all(bytes: &[u8]) -> (Vec<Record>, Option<Damage>) {
        let (mut at, mut records) = (0, Vec::new());
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            match read(rest) {
                Ok((record, record_bytes)) => {
                    at += record_bytes;
                    records.push(record);
                }
                Err(damage) => return (records, Some(damage)),
            }
        }
        (records, None)
    }

    #[test]
    fn a_record_has_these_bytes() {
        let mut out = Vec::new();
        write_state(&mut out, "a:b", 0x0102_0304_0506_0708, 7);
        let hex: String = out.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "52484a311500000074e987080308070605040302010300613a620700000000000000");
    }

    #[test]
    fn what_was_written_is_read_again() {
        let (records, damage) = read_all(&records());
        assert_eq!(damage, None);
        assert_eq!(records.len(), 5);
        assert!(matches!(records[4].what, What::Cleared { log_from: 45 }));
        assert!(matches!(records[1].what, What::State { seq: 43 }));
        assert!(matches!(records[2].what, What::Cut { from_seq: 44 }));
        assert_eq!(records[3], Record { room: "quote:8".into(), epoch: 10, what: What::Forgotten });
        let What::Events(stored) = &records[0].what else { panic!("{records:?}") };
        assert_eq!((stored.first_seq, stored.last_seq(), &stored.keys), (41, 43, &keys()));
        let third = stored.published(2, 9).expect("the third");
        assert_eq!((third.id(), third.seq), ("01890a5d-ac96-774b-bcce-b302099a8057", 43));
        let mut moved = Vec::new();
        write_moved(&mut moved, "quote:7", 9, stored);
        assert_eq!(read(&moved).expect("read").0.what, What::Moved(stored.clone()));

        let (original, memory) = (batch(), FrameMemory::default());
        let again = stored.clone().restore(original.room.clone(), &memory).expect("sound");
        assert_eq!((&again.bytes, again.unix_ms), (&original.bytes, original.unix_ms));
        let parts = |batch: &Batch| {
            let of = |event| (batch.kind(event).to_owned(), batch.data(event).to_vec(), batch.payload(event).to_vec());
            batch.events.iter().map(|event| (event.seq, event.key, of(event))).collect::<Vec<_>>()
        };
        assert_eq!(parts(&again), parts(&original));
    }

    #[test]
    fn a_record_that_was_cut_off_anywhere_is_noticed() {
        let bytes = records();
        let (whole, _) = read_all(&bytes);
        for end in 0..bytes.len() {
            let (read, damage) = read_all(&bytes[..end]);
            assert!(whole.starts_with(&read) && read.len() < whole.len(), "at {end}");
            let ends: Vec<usize> = (1..5).map(|count| end_of(&bytes, count)).chain([0]).collect();
            assert_eq!(damage.is_none(), ends.contains(&end), "at {end}: {damage:?}");
        }
    }

    fn end_of(bytes: &[u8], count: usize) -> usize {
        (0..count).fold(0, |at, _| at + read(&bytes[at..]).expect("a record").1)
    }

    #[test]
    fn every_flipped_byte_is_noticed() {
        let mut bytes = Vec::new();
        write_batch(&mut bytes, 9, &batch(), &keys());
        for at in 0..bytes.len() {
            for flip in [1, 0x80, 0xff] {
                let mut flipped = bytes.clone();
                flipped[at] ^= flip;
                assert!(read(&flipped).is_err(), "byte {at} ^ {flip}");
            }
        }
    }

    #[test]
    fn a_right_checksum_is_no_reason_to_believe_offsets() {
        let (records, _) = read_all(&records());
        let What::Events(sound) = records[0].what.clone() else { panic!("{records:?}") };
        let spoil: [fn(&mut StoredBatch); 7] = [
            |batch| batch.events[1].data_at = u32::MAX,
            |batch| batch.events[0].kind_at = 0,
            |batch| batch.events[0].kind_bytes = u32::MAX,
            |batch| batch.events[2].frame_bytes -= 1,
            |batch| batch.first_seq = u64::MAX,
            |batch| batch.keys[0].0 = 3,
            |batch| batch.events.clear(),
        ];
        for spoil in spoil {
            let mut batch = sound.clone();
            spoil(&mut batch);
            let mut bytes = Vec::new();
            write_moved(&mut bytes, "a:b", 1, &batch);
            assert_eq!(read(&bytes), Err(Damage::Nonsense));
            assert!(batch.restore(NameHasher::new(0).room("a:b"), &FrameMemory::default()).is_none());
        }
    }

    #[test]
    fn the_next_record_is_found_behind_a_damaged_one() {
        let mut bytes = records();
        let second = end_of(&bytes, 1);
        bytes[20] ^= 1;
        assert_eq!(read(&bytes), Err(Damage::Checksum));
        assert_eq!(next_record(&bytes, 1), Some(second));
        assert_eq!(next_record(&bytes[..second], 1), None);
    }
}

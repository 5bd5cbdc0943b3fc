//! A turn's events of one room, encoded once: what travels to the shards and goes to the subscribers as it is.
//!
//! ```text
//! bytes    | frame of event 41 | frame of event 42 | frame of event 43 |
//! events     start..end, data    start..end, data    start..end, data     seq, type, who is left out
//! ```

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use super::delta::Deltas;
use super::name::{RoomName, ShardId};
use super::selection::Selection;
use crate::ring::ConnKey;
use crate::wire::envelope::{self, Event, Stamp};
use crate::wire::json::Scratch;

/// A connection anywhere on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Address {
    /// Whose connection.
    pub shard: ShardId,
    /// Which.
    pub conn: ConnKey,
}

/// One event within a batch.
#[derive(Debug, Clone)]
pub struct EventMeta {
    /// Its number in the room.
    pub seq: u64,
    /// The connection that must not get it (`echo: false`).
    pub exclude: Option<Address>,
    /// A hash of the key it was published under; 0 for none.
    pub key: u64,
    pub(super) start: u32,
    pub(super) end: u32,
    pub(super) data_at: u32,
    pub(super) kind: Range<u32>,
}

/// Events of one room that are not sealed yet.
#[derive(Debug, Default)]
pub struct OpenBatch {
    bytes: Vec<u8>,
    events: Vec<EventMeta>,
    /// When the first of them was received, in microseconds of the monotonic clock.
    pub received_us: u64,
}

/// Sealed events of one room.
#[derive(Debug)]
pub struct Batch {
    /// The room.
    pub room: RoomName,
    /// All frames, one behind the other.
    pub bytes: Bytes,
    /// Where they are.
    pub events: Vec<EventMeta>,
    /// When they were sealed, in milliseconds since 1970.
    pub unix_ms: u64,
    /// When the first of them was received, in microseconds of the monotonic clock; the same on all shards.
    pub received_us: u64,
    pub(super) has_exclusions: bool,
    /// The same events as changes, on a shard with members that want them so.
    pub(super) deltas: Option<Arc<Deltas>>,
}

/// Counts the memory of frames that are alive, whoever holds them.
#[derive(Debug, Clone, Default)]
pub struct FrameMemory(Arc<AtomicUsize>);

struct Counted {
    bytes: Vec<u8>,
    memory: FrameMemory,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.memory.0.fetch_sub(self.bytes.capacity(), Ordering::Relaxed);
    }
}

impl FrameMemory {
    /// Bytes alive.
    pub fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Makes shareable bytes that are counted until the last holder lets go of them.
    pub fn share(&self, bytes: Vec<u8>) -> Bytes {
        self.0.fetch_add(bytes.capacity(), Ordering::Relaxed);
        Bytes::from_owner(Counted { bytes, memory: self.clone() })
    }
}

impl EventMeta {
    /// The same event where its frame stands `shift` bytes further to the front.
    fn moved(&self, shift: u32) -> EventMeta {
        EventMeta {
            seq: self.seq,
            exclude: self.exclude,
            key: self.key,
            start: self.start - shift,
            end: self.end - shift,
            data_at: self.data_at - shift,
            kind: self.kind.start - shift..self.kind.end - shift,
        }
    }
}

impl OpenBatch {
    /// Encodes an event behind those that are there.
    pub fn push(&mut self, stamp: &Stamp, event: &Event<'_>, exclude: Option<Address>, key: u64) {
        let start = self.bytes.len();
        let spliced = envelope::write_event(&mut self.bytes, stamp, event);
        let data_at = start + spliced.data_at;
        // Offsets fit: a batch is sealed long before 4 GiB, and one message is at most 64 MiB by configuration.
        let end = start + spliced.frame_bytes;
        let kind_at = end - envelope::payload_bytes(event) + envelope::KIND_AT;
        self.events.push(EventMeta {
            seq: event.seq,
            exclude,
            key,
            start: start as u32,
            end: end as u32,
            data_at: data_at as u32,
            kind: kind_at as u32..(kind_at + event.kind.len()) as u32,
        });
    }

    /// Encoded bytes so far.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Ends it; the batch can be shared from here on.
    pub fn seal(self, room: RoomName, memory: &FrameMemory, unix_ms: u64) -> Batch {
        let OpenBatch { mut bytes, events, received_us } = self;
        // A log keeps it for long, and its bound is in bytes of frames: what is alive must not be much more.
        if bytes.capacity() - bytes.len() > bytes.len() / 4 {
            bytes.shrink_to_fit();
        }
        let has_exclusions = events.iter().any(|event| event.exclude.is_some());
        Batch { room, bytes: memory.share(bytes), events, unix_ms, received_us, has_exclusions, deltas: None }
    }
}

impl Batch {
    /// Whether some connection must not get some event of it.
    pub fn has_exclusions(&self) -> bool {
        self.has_exclusions
    }

    /// Its events as changes, where some member on this shard wants them so.
    pub fn deltas(&self) -> Option<&Deltas> {
        self.deltas.as_deref()
    }

    /// The type of one of its events.
    pub fn kind(&self, event: &EventMeta) -> &str {
        let bytes = self.bytes.get(event.kind.start as usize..event.kind.end as usize).unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
    }

    /// The data of one of its events, as it was published.
    pub fn data(&self, event: &EventMeta) -> &[u8] {
        // The payload ends with the brace that closes the envelope.
        self.bytes.get(event.data_at as usize..(event.end as usize).saturating_sub(1)).unwrap_or_default()
    }

    /// The length of one event's frame.
    pub fn frame_bytes(&self, event: &EventMeta) -> usize {
        (event.end - event.start) as usize
    }

    /// Some of its events, sharing its bytes; none where the range is empty.
    pub fn part(whole: &Arc<Batch>, range: Range<usize>) -> Option<Arc<Batch>> {
        let events = whole.events.get(range)?;
        let (first, last) = (events.first()?, events.last()?);
        if events.len() == whole.events.len() {
            return Some(whole.clone());
        }
        let shift = first.start;
        let bytes = whole.bytes.slice(first.start as usize..last.end as usize);
        let events: Vec<EventMeta> = events.iter().map(|event| event.moved(shift)).collect();
        let has_exclusions = events.iter().any(|event| event.exclude.is_some());
        let (room, unix_ms, received_us) = (whole.room.clone(), whole.unix_ms, whole.received_us);
        Some(Arc::new(Batch { room, bytes, events, unix_ms, received_us, has_exclusions, deltas: None }))
    }

    /// One event's frame, sharing the batch's memory.
    pub fn frame(&self, event: &EventMeta) -> Bytes {
        self.bytes.slice(event.start as usize..event.end as usize)
    }

    /// The frames that a connection gets: all of them shared, or a copy without those that are not for it. One chunk, so
    /// that it is queued whole or not at all.
    pub fn frames_for(&self, address: Address, memory: &FrameMemory) -> Bytes {
        if !self.has_exclusions || self.events.iter().all(|event| event.exclude != Some(address)) {
            return self.bytes.clone();
        }
        let mut frames = Vec::new();
        for event in self.events.iter().filter(|event| event.exclude != Some(address)) {
            frames.extend_from_slice(self.bytes.get(event.start as usize..event.end as usize).unwrap_or_default());
        }
        if frames.is_empty() { Bytes::new() } else { memory.share(frames) }
    }

    /// The JSON text of one of its events, as it stands in the frame.
    pub fn payload(&self, event: &EventMeta) -> &[u8] {
        let start = (event.kind.start as usize).saturating_sub(envelope::KIND_AT);
        self.bytes.get(start..event.end as usize).unwrap_or_default()
    }

    /// What of this batch a selection wants: none of it, all of it (sharing the bytes), or the chosen frames copied.
    pub fn select(
        self: &Arc<Batch>,
        selection: &Selection,
        scratch: &mut Scratch,
        memory: &FrameMemory,
    ) -> Option<Arc<Batch>> {
        let mut text = Vec::new();
        let chosen: Vec<&EventMeta> = self
            .events
            .iter()
            .filter(|event| {
                if !selection.wants_type(self.kind(event)) {
                    return false;
                }
                if !selection.reads_data() {
                    return true;
                }
                text.clear();
                text.extend_from_slice(self.data(event));
                scratch.parse(&mut text).is_ok_and(|document| selection.wants_data(document.root()))
            })
            .collect();
        if chosen.is_empty() {
            return None;
        }
        if chosen.len() == self.events.len() {
            return Some(self.clone());
        }
        // In one piece: grown, it would be copied again and again, and hold up to twice the memory.
        let mut bytes = Vec::with_capacity(chosen.iter().map(|event| (event.end - event.start) as usize).sum());
        let mut events = Vec::with_capacity(chosen.len());
        for event in chosen {
            let shift = event.start - bytes.len() as u32;
            bytes.extend_from_slice(self.bytes.get(event.start as usize..event.end as usize).unwrap_or_default());
            events.push(event.moved(shift));
        }
        let has_exclusions = events.iter().any(|event| event.exclude.is_some());
        let (room, unix_ms, received_us) = (self.room.clone(), self.unix_ms, self.received_us);
        let bytes = memory.share(bytes);
        Some(Arc::new(Batch { room, bytes, events, unix_ms, received_us, has_exclusions, deltas: None }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::name::NameHasher;
    use super::*;
    use crate::wire::native::Wanted;

    fn address(slot: u32) -> Address {
        Address { shard: ShardId(0), conn: ConnKey { slot, generation: 1 } }
    }

    fn batch(events: &[(&str, &str, Option<u32>)], memory: &FrameMemory) -> Arc<Batch> {
        let stamp = Stamp { id: [b'i'; 36], timestamp: envelope::rfc3339(0) };
        let mut open = OpenBatch::default();
        for (number, (kind, data, exclude)) in events.iter().enumerate() {
            let event = Event { room: "a:b", kind, seq: number as u64 + 1, data: data.as_bytes() };
            open.push(&stamp, &event, exclude.map(address), 0);
        }
        Arc::new(open.seal(NameHasher::new(0).room("a:b"), memory, 0))
    }

    #[test]
    fn type_and_data_are_found_again_in_the_frames() {
        let memory = FrameMemory::default();
        let long = format!("{{\"x\":\"{}\"}}", "y".repeat(70_000));
        let batch = batch(&[("one", "{\"a\":1}", None), ("two.three", &long, None), ("f", "null", None)], &memory);
        let found: Vec<_> = batch.events.iter().map(|event| (batch.kind(event), batch.data(event))).collect();
        let text = batch.payload(&batch.events[1]);
        assert!(text.starts_with(b"{\"type\":\"two.three\"") && text.ends_with(b"\"}}"));
        assert_eq!(found, [("one", &b"{\"a\":1}"[..]), ("two.three", long.as_bytes()), ("f", b"null")]);
        assert!(memory.bytes() > 70_000);
        drop(batch);
        assert_eq!(memory.bytes(), 0, "memory is counted until the last holder is gone");
    }

    #[test]
    fn a_batch_keeps_hardly_more_memory_than_its_frames_take() {
        let memory = FrameMemory::default();
        let events: Vec<_> = (0..100).map(|_| ("a", "{\"a\":1}", None)).collect();
        let batch = batch(&events, &memory);
        assert!(memory.bytes() <= batch.bytes.len() / 4 * 5, "{} for {}", memory.bytes(), batch.bytes.len());
    }

    #[test]
    fn a_connection_is_left_out_of_its_own_events_only() {
        let memory = FrameMemory::default();
        let batch = batch(&[("a", "1", Some(5)), ("b", "2", None), ("c", "3", Some(5)), ("d", "4", Some(6))], &memory);
        let join = |slot| batch.frames_for(address(slot), &memory).to_vec();
        let frames =
            |wanted: &[usize]| wanted.iter().flat_map(|&n| batch.frame(&batch.events[n]).to_vec()).collect::<Vec<u8>>();
        assert_eq!(join(5), frames(&[1, 3]));
        assert_eq!(join(6), frames(&[0, 1, 2]));
        assert_eq!(join(7), frames(&[0, 1, 2, 3]));
    }

    #[test]
    fn a_selection_copies_only_when_some_events_are_not_wanted() {
        let memory = FrameMemory::default();
        let mut scratch = Scratch::new(64);
        let batch = batch(&[("a", "{\"x\":1}", None), ("b", "{\"x\":2}", Some(1)), ("a", "{\"x\":3}", None)], &memory);
        let selection = |types: &[&str], filters: Option<&str>| {
            let wanted = Wanted {
                types: types.iter().map(|&one| one.into()).collect(),
                filters: filters.map(|text| text.as_bytes().into()),
            };
            Selection::compile(&wanted, 32).expect("compiles").expect("selects")
        };
        let all = batch.select(&selection(&["a", "b"], None), &mut scratch, &memory).expect("all");
        assert!(Arc::ptr_eq(&all, &batch));
        assert!(batch.select(&selection(&["c"], None), &mut scratch, &memory).is_none());
        let some = batch.select(&selection(&[], Some("{\"x\":{\"min\":2}}")), &mut scratch, &memory).expect("some");
        let seqs: Vec<_> = some.events.iter().map(|event| (event.seq, some.kind(event), some.data(event))).collect();
        assert_eq!(seqs, [(2, "b", &b"{\"x\":2}"[..]), (3, "a", b"{\"x\":3}")]);
        assert!(some.has_exclusions());
    }
}

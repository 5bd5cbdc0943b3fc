//! Events as the journal keeps them: what of a batch has to be written to make it again in another run of the hub.
//!
//! Frames are kept as they were sent, so that a log that was read again costs no encoding either. Who was not to get an
//! event (`echo: false`) is a connection of this run and means nothing in the next.

use std::sync::Arc;

use super::batch::{Batch, EventMeta, FrameMemory};
use super::message::Published;
use super::name::RoomName;
use crate::wire::envelope;

/// What goes to the journal. A shard's entries arrive in their order.
#[derive(Debug)]
pub enum Entry {
    /// Events to be written, and acknowledged then.
    Events(Box<Sealed>),
    /// A room's log begins at another event now, because those before it are too old.
    Trimmed {
        /// The room.
        room: RoomName,
        /// The log's epoch.
        epoch: u64,
        /// The number of the first event that is kept; the number after the last where none is.
        log_from: u64,
    },
    /// A room's log was emptied, which has to outlive this run as its events would have.
    Cleared(Cleared),
    /// A room has neither members nor history any more.
    Forgotten {
        /// The room.
        room: RoomName,
        /// The epoch of the log that it had.
        epoch: u64,
    },
}

/// An emptied log on its way to the journal. Acknowledged when the disk has it, by the same numbers as batches.
#[derive(Debug, Clone)]
pub struct Cleared {
    /// The shard's number of it.
    pub number: u64,
    /// How many failures of the journal the shard knew of.
    pub failures: u64,
    /// The room.
    pub room: RoomName,
    /// The log's epoch.
    pub epoch: u64,
    /// The number of the first event that is not meant.
    pub log_from: u64,
}

/// A batch on its way to the journal.
#[derive(Debug)]
pub struct Sealed {
    /// The shard's number of it; grows by one, and none is given twice.
    pub number: u64,
    /// How many failures of the journal the shard knew of. What was sent before one is not written after it, since the
    /// numbers of its events were given anew.
    pub failures: u64,
    /// Whether it is acknowledged when it is written already.
    pub when_written: bool,
    /// The log's epoch.
    pub epoch: u64,
    /// The number of the first event that the room's log still has.
    pub log_from: u64,
    /// The events.
    pub batch: Arc<Batch>,
    /// Idempotency keys: of which event (its place in the batch), and the key.
    pub keys: Vec<(u32, Box<str>)>,
}

/// How far the journal is with a shard's batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// The last batch that the kernel has.
    pub written: u64,
    /// The last batch that the disk has.
    pub synced: u64,
    /// Times that it failed. All that was on its way then, and is not acknowledged above, is lost.
    pub failures: u64,
    /// Whether it takes batches.
    pub is_up: bool,
}

/// Where one event's parts stand in its frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredEvent {
    /// Length of its frame.
    pub frame_bytes: u32,
    /// Of its data within the frame.
    pub data_at: u32,
    /// Of its type within the frame.
    pub kind_at: u32,
    /// Length of its type.
    pub kind_bytes: u32,
    /// A hash of the key it was published under; 0 for none.
    pub key: u64,
}

/// A batch that was read from the journal. Its events' numbers have no holes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredBatch {
    /// The number of its first event.
    pub first_seq: u64,
    /// When it was sealed, in milliseconds since 1970.
    pub unix_ms: u64,
    /// Its events.
    pub events: Vec<StoredEvent>,
    /// Idempotency keys: of which event (its place in the batch), and the key.
    pub keys: Vec<(u32, Box<str>)>,
    /// All frames, one behind the other.
    pub bytes: Vec<u8>,
}

/// A room that was read from the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRoom {
    /// Its name.
    pub room: Box<str>,
    /// The log's epoch.
    pub epoch: u64,
    /// The last number given.
    pub seq: u64,
    /// What of its log there is, in order and without holes up to `seq`.
    pub batches: Vec<StoredBatch>,
}

impl StoredEvent {
    /// An event's parts, as the batch has them.
    pub fn of(meta: &EventMeta) -> StoredEvent {
        StoredEvent {
            frame_bytes: meta.end - meta.start,
            data_at: meta.data_at - meta.start,
            kind_at: meta.kind.start - meta.start,
            kind_bytes: meta.kind.end - meta.kind.start,
            key: meta.key,
        }
    }

    /// Whether the parts lie within the frame, in their order.
    fn is_sound(&self) -> bool {
        let id_at = u64::from(self.kind_at) + u64::from(self.kind_bytes) + envelope::ID_BEHIND_KIND as u64;
        self.kind_at as usize >= envelope::KIND_AT
            && id_at + 36 <= u64::from(self.data_at)
            && self.data_at < self.frame_bytes
    }
}

impl StoredBatch {
    /// The number of its last event.
    pub fn last_seq(&self) -> u64 {
        self.first_seq + (self.events.len() as u64).saturating_sub(1)
    }

    /// Whether it has events, their numbers can be counted, and all that is said of them lies within the frames.
    pub fn is_sound(&self) -> bool {
        let bytes: u64 = self.events.iter().map(|event| u64::from(event.frame_bytes)).sum();
        let count = self.events.len() as u64;
        (1..u64::from(u32::MAX)).contains(&count)
            && self.first_seq > 0
            && self.first_seq.checked_add(count).is_some()
            && bytes == self.bytes.len() as u64
            && bytes <= u64::from(u32::MAX)
            && self.events.iter().all(StoredEvent::is_sound)
            && self.keys.iter().all(|(place, _)| u64::from(*place) < count)
    }

    /// What was answered to the publisher of one of its events.
    pub fn published(&self, place: u32, epoch: u64) -> Option<Published> {
        let event = self.events.get(place as usize)?;
        let before: usize = self.events.iter().take(place as usize).map(|event| event.frame_bytes as usize).sum();
        let id_at = before + (event.kind_at + event.kind_bytes) as usize + envelope::ID_BEHIND_KIND;
        let id = *self.bytes.get(id_at..)?.first_chunk()?;
        let seq = self.first_seq + u64::from(place);
        Some(Published { id, seq, epoch, duplicate: false, delivered: 0, queued: 0, nodes: 0 })
    }

    /// The batch again; none where it is not sound.
    pub fn restore(self, room: RoomName, memory: &FrameMemory) -> Option<Batch> {
        if !self.is_sound() {
            return None;
        }
        let StoredBatch { first_seq, unix_ms, events, bytes, .. } = self;
        let mut start = 0;
        let metas = events.iter().zip(first_seq..).map(|(event, seq)| {
            let kind_at = start + event.kind_at;
            let meta = EventMeta {
                seq,
                exclude: None,
                key: event.key,
                start,
                end: start + event.frame_bytes,
                data_at: start + event.data_at,
                kind: kind_at..kind_at + event.kind_bytes,
            };
            start = meta.end;
            meta
        });
        let events = metas.collect();
        let bytes = memory.share(bytes);
        Some(Batch { room, bytes, events, unix_ms, received_us: 0, has_exclusions: false, deltas: None })
    }
}

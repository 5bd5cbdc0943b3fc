//! The lanes of an outbox in which something waits, and how chunks are taken out of them.

use std::cell::RefCell;

use bytes::Bytes;

use super::batch::FrameMemory;
use super::chunks::Chunks;

/// Chunks smaller than this are joined into one, so that they cost one send.
pub(super) const JOIN_BYTES_MAX: usize = 64 * 1024;

/// Empty lanes that a thread keeps for those that are next, 80 KiB: as many as a turn of a fan-out fills by default.
const SPARE_MAX: usize = 1024;

thread_local! {
    // Boxed as they are in an outbox, so that nothing is moved.
    #[allow(clippy::vec_box)]
    static SPARE: RefCell<Vec<Box<Lanes>>> = const { RefCell::new(Vec::new()) };
}

/// What waits for one connection.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    pub(super) answers: Vec<u8>,
    /// There only while something is in it.
    pub(super) urgent: Option<Box<Chunks>>,
    pub(super) events: Chunks,
    /// Of both lanes of events.
    pub(super) events_bytes: usize,
}

impl Lanes {
    /// Empty ones. By the allocator it would take more instructions than all else that a shard does for a delivery.
    #[inline]
    pub(super) fn spare() -> Box<Lanes> {
        SPARE.with_borrow_mut(Vec::pop).unwrap_or_default()
    }

    /// Keeps empty ones for others.
    #[inline]
    pub(super) fn give_back(self: Box<Lanes>) {
        debug_assert!(self.is_empty() && self.events_bytes == 0);
        if self.answers.capacity() == 0 {
            SPARE.with_borrow_mut(|spare| {
                if spare.len() < SPARE_MAX {
                    spare.push(self);
                }
            });
        }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty() && self.answers.is_empty() && self.urgent.is_none()
    }

    /// Of events, in the order in which they go.
    pub(super) fn chunks(&self) -> impl Iterator<Item = &Bytes> {
        self.urgent.iter().flat_map(|urgent| urgent.iter()).chain(self.events.iter())
    }

    #[inline]
    pub(super) fn next_chunk(&mut self, memory: &FrameMemory) -> Option<Bytes> {
        if !self.answers.is_empty() {
            return Some(self.answers_chunk(memory));
        }
        let first = self.pop_event()?;
        let joins = self.front_event_bytes().is_some_and(|next| first.len() + next <= JOIN_BYTES_MAX);
        // One chunk alone goes as it is, shared.
        if joins { Some(memory.share(self.join(&first))) } else { Some(first) }
    }

    #[inline(never)]
    fn answers_chunk(&mut self, memory: &FrameMemory) -> Bytes {
        let answers = std::mem::take(&mut self.answers);
        let joins = self.bytes_to_join(answers.len()) > 0;
        memory.share(if joins { self.join(&answers) } else { answers })
    }

    /// Bytes and the events at the front, as many as are joined, in one piece: grown, it would be copied again and again, and
    /// hold up to twice the memory. By itself, since mostly there is nothing to be joined.
    #[inline(never)]
    fn join(&mut self, first: &[u8]) -> Vec<u8> {
        let mut joined = Vec::with_capacity(first.len() + self.bytes_to_join(first.len()));
        joined.extend_from_slice(first);
        while self.front_event_bytes().is_some_and(|next| joined.len() + next <= JOIN_BYTES_MAX) {
            let Some(chunk) = self.pop_event() else { break };
            joined.extend_from_slice(&chunk);
        }
        joined
    }

    /// Bytes of the events at the front that are to be joined with so many.
    fn bytes_to_join(&self, bytes: usize) -> usize {
        let mut all = bytes;
        for chunk in self.chunks() {
            if all + chunk.len() > JOIN_BYTES_MAX {
                break;
            }
            all += chunk.len();
        }
        all - bytes
    }

    fn front_event_bytes(&self) -> Option<usize> {
        match &self.urgent {
            None => self.events.front_bytes(),
            Some(urgent) => urgent.front_bytes(),
        }
    }

    // Called by what runs for each delivery, and by `join`, for which it would be made a call.
    #[inline(always)]
    fn pop_event(&mut self) -> Option<Bytes> {
        let chunk = match &mut self.urgent {
            None => self.events.pop()?,
            Some(urgent) => {
                let chunk = urgent.pop()?;
                if urgent.is_empty() {
                    self.urgent = None;
                }
                chunk
            }
        };
        self.events_bytes -= chunk.len();
        Some(chunk)
    }
}

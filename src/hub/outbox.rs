//! What waits to be sent to one connection.
//!
//! Two lanes: `answers` (answers, pongs, pings, the close frame; goes first, small, its own bound) and `events`, chunks
//! shared with every other subscriber. One chunk at a time is with the kernel; it counts until it is sent.

use std::collections::VecDeque;

use bytes::Bytes;

use super::batch::FrameMemory;

/// The bound of the answers' lane: a client that asks on and on and doesn't read is too slow as well.
pub const ANSWERS_BYTES_MAX: usize = 256 * 1024;
/// Chunks smaller than this are joined into one, so that they cost one send.
const JOIN_BYTES_MAX: usize = 64 * 1024;

/// A connection's outbox.
#[derive(Debug, Default)]
pub struct Outbox {
    answers: Vec<u8>,
    events: Events,
    events_bytes: usize,
    /// With the kernel, and how much of it counts as events.
    sending_bytes: u32,
    /// A chunk is with the kernel, or nothing may be sent yet.
    sending: bool,
    dirty: bool,
}

#[derive(Debug, Default)]
enum Events {
    #[default]
    None,
    /// The usual case costs no allocation.
    One(Bytes),
    Many(VecDeque<Bytes>),
}

/// The outbox is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

impl Outbox {
    /// Bytes that wait or are being sent.
    pub fn bytes(&self) -> usize {
        self.events_bytes + self.answers.len() + self.sending_bytes as usize
    }

    /// Bytes of events that wait.
    pub fn events_bytes(&self) -> usize {
        self.events_bytes
    }

    /// Whether nothing waits and nothing is being sent.
    pub fn is_empty(&self) -> bool {
        !self.sending && self.answers.is_empty() && self.events_bytes == 0
    }

    /// Whether a chunk is with the kernel.
    pub fn is_sending(&self) -> bool {
        self.sending
    }

    /// Queues events. The bound is checked before, and holds strictly but for one chunk into an empty outbox, so that a
    /// message as large as the whole bound can be had at all.
    pub fn push_events(&mut self, chunk: &Bytes, bytes_max: usize) -> Result<(), Full> {
        let queued = self.events_bytes + self.sending_bytes as usize;
        if queued > 0 && queued + chunk.len() > bytes_max {
            return Err(Full);
        }
        self.events_bytes += chunk.len();
        match &mut self.events {
            Events::None => self.events = Events::One(chunk.clone()),
            Events::Many(queue) => queue.push_back(chunk.clone()),
            Events::One(_) => {
                if let Events::One(first) = std::mem::take(&mut self.events) {
                    self.events = Events::Many(VecDeque::from([first, chunk.clone()]));
                }
            }
        }
        Ok(())
    }

    /// The lane of answers, to be appended to; ask [`Outbox::answers_full`] after.
    pub fn answers(&mut self) -> &mut Vec<u8> {
        &mut self.answers
    }

    /// Whether the lane of answers is beyond its bound.
    pub fn answers_full(&self) -> bool {
        self.answers.len() > ANSWERS_BYTES_MAX
    }

    /// Forgets the events that wait, so that nothing but answers goes before a close frame.
    pub fn drop_events(&mut self) {
        self.events = Events::None;
        self.events_bytes = 0;
    }

    /// Forgets all that waits.
    pub fn clear(&mut self) {
        self.answers = Vec::new();
        self.drop_events();
    }

    /// Marks the outbox as to be flushed this turn; true the first time.
    pub fn mark_dirty(&mut self) -> bool {
        !std::mem::replace(&mut self.dirty, true)
    }

    /// Takes the next chunk to be sent, if none is with the kernel; it is with the kernel from here on.
    pub fn take_chunk(&mut self, memory: &FrameMemory) -> Option<Bytes> {
        self.dirty = false;
        if self.sending {
            return None;
        }
        let chunk = self.next_chunk(memory)?;
        self.sending = true;
        self.sending_bytes = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
        Some(chunk)
    }

    /// Nothing may be sent until [`Outbox::release`]: events may come before the answer to the upgrade.
    pub fn hold(&mut self) {
        self.sending = true;
    }

    /// What waits may be sent.
    pub fn release(&mut self) {
        self.sent();
    }

    /// The chunk with the kernel was sent.
    pub fn sent(&mut self) {
        self.sending = false;
        self.sending_bytes = 0;
    }

    fn next_chunk(&mut self, memory: &FrameMemory) -> Option<Bytes> {
        if self.answers.is_empty() {
            // One chunk alone goes as it is, shared.
            match std::mem::take(&mut self.events) {
                Events::None => return None,
                Events::One(chunk) => {
                    self.events_bytes = 0;
                    return Some(chunk);
                }
                Events::Many(queue) => {
                    let joins = match (queue.front(), queue.get(1)) {
                        (Some(first), Some(second)) => first.len() + second.len() <= JOIN_BYTES_MAX,
                        _ => false,
                    };
                    self.events = Events::Many(queue);
                    if !joins {
                        return self.pop_event();
                    }
                }
            }
        }
        let mut joined = std::mem::take(&mut self.answers);
        while let Some(next) = self.front_event_bytes() {
            if joined.len() + next > JOIN_BYTES_MAX {
                break;
            }
            let Some(chunk) = self.pop_event() else { break };
            joined.extend_from_slice(&chunk);
        }
        Some(memory.share(joined))
    }

    fn front_event_bytes(&self) -> Option<usize> {
        match &self.events {
            Events::None => None,
            Events::One(chunk) => Some(chunk.len()),
            Events::Many(queue) => queue.front().map(Bytes::len),
        }
    }

    fn pop_event(&mut self) -> Option<Bytes> {
        let chunk = match std::mem::take(&mut self.events) {
            Events::None => return None,
            Events::One(chunk) => chunk,
            Events::Many(mut queue) => {
                let chunk = queue.pop_front()?;
                match queue.len() {
                    0 => {}
                    1 => self.events = queue.pop_front().map_or(Events::None, Events::One),
                    _ => self.events = Events::Many(queue),
                }
                chunk
            }
        };
        self.events_bytes -= chunk.len();
        Some(chunk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(outbox: &mut Outbox) -> Vec<Vec<u8>> {
        let memory = FrameMemory::default();
        std::iter::from_fn(|| {
            let chunk = outbox.take_chunk(&memory)?;
            assert_eq!(outbox.take_chunk(&memory), None, "one chunk at a time");
            outbox.sent();
            Some(chunk.to_vec())
        })
        .collect()
    }

    #[test]
    fn answers_go_before_events_and_small_chunks_are_joined() {
        let mut outbox = Outbox::default();
        for text in ["a", "b", "c"] {
            assert_eq!(outbox.push_events(&Bytes::from_static(text.as_bytes()), 100), Ok(()));
        }
        outbox.answers().extend_from_slice(b"answer ");
        assert_eq!(outbox.bytes(), 10);
        assert_eq!(drain(&mut outbox), [b"answer abc".to_vec()]);
        assert!(outbox.is_empty());
    }

    #[test]
    fn events_of_a_held_outbox_wait_for_the_answer_that_goes_first() {
        let mut outbox = Outbox::default();
        outbox.hold();
        assert_eq!(outbox.push_events(&Bytes::from_static(b"event"), 100), Ok(()));
        assert!(outbox.mark_dirty());
        assert_eq!(outbox.take_chunk(&FrameMemory::default()), None);
        outbox.answers().extend_from_slice(b"upgrade ");
        outbox.release();
        assert!(outbox.mark_dirty(), "it is looked at again");
        assert_eq!(drain(&mut outbox), [b"upgrade event".to_vec()]);
    }

    #[test]
    fn large_chunks_are_not_copied() {
        let mut outbox = Outbox::default();
        let memory = FrameMemory::default();
        let large = Bytes::from(vec![1u8; JOIN_BYTES_MAX]);
        assert_eq!(outbox.push_events(&large, usize::MAX), Ok(()));
        assert_eq!(outbox.push_events(&large, usize::MAX), Ok(()));
        let chunk = outbox.take_chunk(&memory).expect("a chunk");
        assert_eq!(chunk.as_ptr(), large.as_ptr());
        outbox.sent();
        assert_eq!(drain(&mut outbox).len(), 1);
        assert_eq!(outbox.bytes(), 0);
    }

    #[test]
    fn the_bound_holds_and_counts_what_is_being_sent() {
        let memory = FrameMemory::default();
        let mut outbox = Outbox::default();
        let chunk = Bytes::from_static(&[0; 60]);
        assert_eq!(
            outbox.push_events(&Bytes::from_static(&[0; 200]), 100),
            Ok(()),
            "into an empty outbox anything fits"
        );
        assert_eq!(outbox.push_events(&chunk, 100), Err(Full));
        assert_eq!(outbox.take_chunk(&memory).map(|chunk| chunk.len()), Some(200));
        assert_eq!(outbox.push_events(&chunk, 100), Err(Full));
        outbox.sent();
        assert_eq!(outbox.push_events(&chunk, 100), Ok(()));
        assert_eq!(outbox.push_events(&chunk, 100), Err(Full));
        assert_eq!(outbox.bytes(), 60);
    }
}

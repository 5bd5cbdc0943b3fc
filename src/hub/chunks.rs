//! What waits in a lane of an outbox.

use std::collections::VecDeque;

use bytes::Bytes;

/// Chunks of whole frames.
#[derive(Debug, Default)]
pub(super) enum Chunks {
    #[default]
    None,
    /// The usual case costs no allocation.
    One(Bytes),
    Many(VecDeque<Bytes>),
}

impl Chunks {
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Chunks::None)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Bytes> {
        let (one, many) = match self {
            Chunks::None => (None, None),
            Chunks::One(chunk) => (Some(chunk), None),
            Chunks::Many(queue) => (None, Some(queue)),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    #[inline(always)]
    pub(super) fn push(&mut self, chunk: &Bytes) {
        match self {
            Chunks::None => *self = Chunks::One(chunk.clone()),
            Chunks::Many(queue) => queue.push_back(chunk.clone()),
            Chunks::One(_) => {
                if let Chunks::One(first) = std::mem::take(self) {
                    *self = Chunks::Many(VecDeque::from([first, chunk.clone()]));
                }
            }
        }
    }

    #[inline(always)]
    pub(super) fn pop(&mut self) -> Option<Bytes> {
        match std::mem::take(self) {
            Chunks::None => None,
            Chunks::One(chunk) => Some(chunk),
            Chunks::Many(mut queue) => {
                let chunk = queue.pop_front();
                match queue.len() {
                    0 => {}
                    1 => *self = queue.pop_front().map_or(Chunks::None, Chunks::One),
                    _ => *self = Chunks::Many(queue),
                }
                chunk
            }
        }
    }

    #[inline]
    pub(super) fn front_bytes(&self) -> Option<usize> {
        match self {
            Chunks::None => None,
            Chunks::One(chunk) => Some(chunk.len()),
            Chunks::Many(queue) => queue.front().map(Bytes::len),
        }
    }
}

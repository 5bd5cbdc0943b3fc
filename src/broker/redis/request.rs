//! What is sent for a room: submissions, put together for one call of the script.

use super::encoding::{self, EventId};
use crate::hub::brokered::{BrokeredEvent, EventKey, Keep, Submission};

/// What is sent for a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Events are published.
    Publish(Publish),
    /// The log is emptied.
    Clear,
}

/// Events to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// The number of its last submission.
    pub number: u64,
    /// The epoch of a room that nobody knows.
    pub new_epoch: u64,
    /// How much is kept.
    pub keep: Keep,
    /// The events.
    pub chunks: Vec<Chunk>,
}

/// Events that are published or not together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// How many.
    pub events: usize,
    /// The key of one that has one.
    pub key: Option<EventKey>,
    /// The id of the last.
    pub last_id: EventId,
    /// As they are in Redis.
    pub bytes: Vec<u8>,
}

impl Publish {
    /// One that begins with this submission, which is not added yet.
    pub fn new(first: &Submission) -> Publish {
        Publish { number: first.number, new_epoch: first.new_epoch, keep: first.keep, chunks: Vec::new() }
    }

    /// Puts a submission behind the others.
    pub fn add(&mut self, submission: &Submission) {
        self.number = submission.number;
        self.keep = submission.keep;
        for event in &submission.events {
            match self.chunks.last_mut().filter(|chunk| chunk.key.is_none() && event.key.is_none()) {
                Some(chunk) => chunk.add(event),
                None => {
                    let mut chunk = Chunk { events: 0, key: event.key.clone(), last_id: event.id, bytes: Vec::new() };
                    chunk.add(event);
                    self.chunks.push(chunk);
                }
            }
        }
    }

    /// How many events are in it.
    pub fn events(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.events).sum()
    }
}

impl Chunk {
    fn add(&mut self, event: &BrokeredEvent) {
        self.events += 1;
        self.last_id = event.id;
        encoding::write_event(&mut self.bytes, event);
    }
}

//! Signs of life: each shard is asked for one, and every few seconds sends a canary to every shard, itself included, which
//! sends it back. So it is known of each shard that it turns, and of each pair that they hear each other.
//!
//! ```text
//!  watch ──Ping──► shard 0 ──Canary──► shard 1          Signs of shard 0: the last ping it answered,
//!                     ▲                   │             and for each shard the last canary that came back
//!                     └──────Canary───────┘
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::core::Core;
use super::message::Message;
use super::name::ShardId;

/// The signs that one shard has given. The shard writes them, the watch reads them.
#[derive(Debug)]
pub struct Signs {
    answered: AtomicU64,
    waited_us: AtomicU64,
    returned: Vec<Returned>,
}

#[derive(Debug, Default)]
struct Returned {
    number: AtomicU64,
    took_us: AtomicU64,
}

impl Signs {
    /// Those of a shard among so many.
    pub fn new(shards: u16) -> Signs {
        let returned = (0..shards).map(|_| Returned::default()).collect();
        Signs { answered: AtomicU64::new(0), waited_us: AtomicU64::new(0), returned }
    }

    /// The shard answers a ping that waited so long for it.
    pub fn answer(&self, number: u64, waited_us: u64) {
        self.answered.store(number, Ordering::Relaxed);
        self.waited_us.fetch_max(waited_us, Ordering::Relaxed);
    }

    /// The last ping that was answered.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// The longest that a ping waited since this was called the last time, in microseconds: no turn took longer.
    pub fn take_waited_us(&self) -> u64 {
        self.waited_us.swap(0, Ordering::Relaxed)
    }

    /// The number of the last canary that came back from a shard.
    pub fn returned(&self, from: usize) -> u64 {
        self.returned.get(from).map_or(0, |one| one.number.load(Ordering::Relaxed))
    }

    /// How long the slowest of the last canaries was under way, there and back, in microseconds.
    pub fn round_trip_us(&self) -> u64 {
        self.returned.iter().map(|one| one.took_us.load(Ordering::Relaxed)).max().unwrap_or(0)
    }

    fn note_returned(&self, from: ShardId, number: u64, took_us: u64) {
        if let Some(one) = self.returned.get(usize::from(from.0)) {
            one.took_us.store(took_us, Ordering::Relaxed);
            one.number.store(number, Ordering::Relaxed);
        }
    }
}

/// A message that goes to a shard and back.
#[derive(Debug)]
pub struct Canary {
    from: ShardId,
    to: ShardId,
    number: u64,
    sent_us: u64,
    was_there: bool,
    signs: Arc<Signs>,
}

impl Core {
    /// Sends a canary to every shard.
    pub fn send_canaries(&mut self, number: u64, signs: &Arc<Signs>) {
        let (from, sent_us) = (self.me(), self.now().monotonic_us);
        for to in (0..self.shards()).map(ShardId) {
            // One that can't get through the crowd would say no more than one that isn't sent.
            if !self.is_congested(to) {
                let canary = Canary { from, to, number, sent_us, was_there: false, signs: signs.clone() };
                self.send(to, Message::Canary(Box::new(canary)));
            }
        }
    }

    /// A canary came by.
    pub(super) fn canary(&mut self, canary: Canary) {
        if canary.was_there {
            let took_us = self.now().monotonic_us.saturating_sub(canary.sent_us);
            canary.signs.note_returned(canary.to, canary.number, took_us);
        } else {
            self.send(canary.from, Message::Canary(Box::new(Canary { was_there: true, ..canary })));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_wait_is_told_once() {
        let signs = Signs::new(2);
        signs.answer(1, 50);
        signs.answer(2, 20);
        assert_eq!((signs.answered(), signs.take_waited_us()), (2, 50));
        assert_eq!(signs.take_waited_us(), 0);
        signs.note_returned(ShardId(1), 4, 70);
        signs.note_returned(ShardId(0), 4, 60);
        assert_eq!((signs.returned(0), signs.returned(1), signs.returned(9)), (4, 4, 0));
        assert_eq!(signs.round_trip_us(), 70);
    }
}

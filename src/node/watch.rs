//! Whether the shards live: each is asked for a sign of life twice a second, sends canaries round every few seconds, and a
//! thread that ended is noticed.
//!
//! A shard can fail in three ways that are told apart: its thread *ended*; it does not turn, or a turn takes too long, so
//! that it owes answers (*silent*); it turns, but it and others don't hear each other (*deaf*).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crate::control::ShardPulse;
use crate::hub::canary::Signs;
use crate::hub::name::ShardId;
use crate::shard::mesh::Mesh;
use crate::shard::request::Request;

/// How often shards are asked.
pub(super) const INTERVAL_MS: u64 = 500;
/// A shard that owes so many answers does not take traffic.
const OWED_MAX: u64 = 3;
/// Canaries go with every so many questions: every two seconds.
const CANARY_EVERY: u64 = 4;
/// Three canaries in a row that did not come back, the last one having had its time.
const CANARY_OWED_MAX: u64 = 3 * CANARY_EVERY;

/// What is known of the shards.
#[derive(Debug, Clone)]
pub(super) struct Watch {
    shards: Arc<[Shard]>,
    asked: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Shard {
    signs: Arc<Signs>,
    ended: AtomicBool,
}

impl Watch {
    pub(super) fn new(shards: u16) -> Watch {
        let shard = |_| Shard { signs: Arc::new(Signs::new(shards)), ended: AtomicBool::new(false) };
        Watch { shards: (0..shards).map(shard).collect(), asked: Arc::default() }
    }

    /// Asks every shard for a sign of life.
    pub(super) fn ask(&self, mesh: &Mesh) {
        let number = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        for (place, shard) in self.shards.iter().enumerate() {
            let (asked, signs) = (Instant::now(), shard.signs.clone());
            let request = Request::Ping { number, asked, canaries: number.is_multiple_of(CANARY_EVERY), signs };
            // A full queue means that the shard doesn't answer, which is what would be learned anyway.
            drop(mesh.request(ShardId(place as u16), request));
        }
    }

    /// How many shards gave a sign of life lately.
    pub(super) fn answering(&self) -> usize {
        self.shards.iter().filter(|shard| self.answers(shard)).count()
    }

    /// Answers that a shard owes.
    fn owed(&self, shard: &Shard) -> u64 {
        self.asked.load(Ordering::Relaxed).saturating_sub(shard.signs.answered())
    }

    fn answers(&self, shard: &Shard) -> bool {
        self.owed(shard) < OWED_MAX && !shard.ended.load(Ordering::Relaxed)
    }

    /// The shards that answer, but don't hear others or aren't heard by them.
    pub(super) fn deaf(&self) -> Vec<u16> {
        let asked = self.asked.load(Ordering::Relaxed);
        let answering: Vec<bool> = self.shards.iter().map(|shard| self.answers(shard)).collect();
        let returned = |from: usize, to: usize| {
            let last = self.shards.get(from).map_or(0, |shard| shard.signs.returned(to));
            // Counted from the last time that canaries were sent, so that it is not late before the next is.
            asked.saturating_sub(asked % CANARY_EVERY).saturating_sub(last) < CANARY_OWED_MAX
        };
        deaf(&answering, returned)
    }

    /// How each shard is.
    pub(super) fn pulse(&self) -> Vec<ShardPulse> {
        let deaf = self.deaf();
        let one = |(place, shard): (u16, &Shard)| ShardPulse {
            ended: shard.ended.load(Ordering::Relaxed),
            // The question that was asked last may be on its way.
            silent_ms: (self.owed(shard).saturating_sub(1) * INTERVAL_MS).max(shard.signs.take_waited_us() / 1000),
            deaf: deaf.contains(&place),
            round_trip_us: shard.signs.round_trip_us(),
        };
        (0..).zip(self.shards.iter()).map(one).collect()
    }

    /// How many shards there are.
    pub(super) fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Notes that a shard's thread has ended.
    pub(super) fn note_ended(&self, shard: u16) {
        if let Some(shard) = self.shards.get(usize::from(shard)) {
            shard.ended.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a shard's thread has ended.
    pub(super) fn has_ended(&self, shard: u16) -> bool {
        self.shards.get(usize::from(shard)).is_none_or(|shard| shard.ended.load(Ordering::Relaxed))
    }

    /// How many shards' threads have ended.
    pub(super) fn ended(&self) -> usize {
        self.shards.iter().filter(|shard| shard.ended.load(Ordering::Relaxed)).count()
    }

    /// Whether all have.
    pub(super) fn shards_ended(&self) -> bool {
        self.shards.iter().all(|shard| shard.ended.load(Ordering::Relaxed))
    }
}

/// Which of the shards that answer are to blame for canaries that did not come back: those of which more than half of the
/// ways to other shards are cut, and where there is none such, both ends of each way that is.
fn deaf(answering: &[bool], returned: impl Fn(usize, usize) -> bool) -> Vec<u16> {
    let shards = || answering.iter().enumerate().filter(|(_, answers)| **answers).map(|(place, _)| place);
    // A canary goes both ways, so that one that is lost says nothing about which.
    let is_cut = |one: usize, other: usize| !returned(one, other) || !returned(other, one);
    let others = shards().count().saturating_sub(1);
    let cut = |one: usize| shards().filter(|other| *other != one && is_cut(one, *other)).count();
    let is_deaf = |one: &usize| !returned(*one, *one) || cut(*one) * 2 > others;
    let mut deaf: Vec<usize> = shards().filter(is_deaf).collect();
    if deaf.is_empty() {
        deaf = shards().filter(|one| cut(*one) > 0).collect();
    }
    deaf.into_iter().map(|place| place as u16).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shard_that_nobody_hears_is_blamed_and_not_those_who_call_it() {
        let all = [true; 4];
        assert_eq!(deaf(&all, |_, _| true), [0u16; 0]);
        assert_eq!(deaf(&all, |from, to| from != 2 && to != 2), [2]);
        assert_eq!(deaf(&all, |from, _| from != 2), [2], "its own come back to nobody");
        assert_eq!(deaf(&[true], |_, _| false), [0], "one that does not even hear itself");
        assert_eq!(deaf(&[true; 2], |from, to| from == to), [0, 1], "of two it can't be told");
        assert_eq!(deaf(&all, |from, to| (from, to) != (1, 3)), [1, 3], "one way is cut");
    }

    #[test]
    fn a_shard_that_does_not_answer_makes_no_other_one_deaf() {
        assert_eq!(deaf(&[true, false, true], |from, to| from != 1 && to != 1), [0u16; 0]);
    }
}

//! Whether the shards live: each is asked for a sign of life twice a second, and a thread that ended is noticed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::hub::name::ShardId;
use crate::shard::mesh::Mesh;
use crate::shard::request::Request;

/// How often shards are asked.
pub(super) const INTERVAL_MS: u64 = 500;
/// A shard that owes so many answers does not take traffic.
const OWED_MAX: u64 = 3;

/// What is known of the shards.
#[derive(Debug, Clone)]
pub(super) struct Watch {
    shards: Arc<[Shard]>,
    asked: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Shard {
    answered: Arc<AtomicU64>,
    ended: AtomicBool,
}

impl Watch {
    pub(super) fn new(shards: u16) -> Watch {
        Watch { shards: (0..shards).map(|_| Shard::default()).collect(), asked: Arc::default() }
    }

    /// Asks every shard for a sign of life.
    pub(super) fn ask(&self, mesh: &Mesh) {
        let number = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        for (place, shard) in self.shards.iter().enumerate() {
            let request = Request::Ping { number, answered: shard.answered.clone() };
            // A full queue means that the shard doesn't answer, which is what would be learned anyway.
            drop(mesh.request(ShardId(place as u16), request));
        }
    }

    /// How many shards gave a sign of life lately.
    pub(super) fn answering(&self) -> usize {
        let asked = self.asked.load(Ordering::Relaxed);
        let answers = |shard: &&Shard| {
            let owed = asked.saturating_sub(shard.answered.load(Ordering::Relaxed));
            owed < OWED_MAX && !shard.ended.load(Ordering::Relaxed)
        };
        self.shards.iter().filter(answers).count()
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

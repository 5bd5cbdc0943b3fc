//! The way between shards and journal: a bounded queue of each shard to it, and a few numbers back.
//!
//! The way back can't be full: how far the journal is takes the place of how far it was.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;

use super::super::door::Door;
use crate::hub::name::ShardId;
use crate::hub::stored::{Entry, Progress};

/// Turns of a shard whose entries may wait for the journal; a shard keeps what is beyond, within
/// `journal.pending_bytes_max`.
const TURNS_MAX: usize = 256;

/// The shards' end.
#[derive(Clone)]
pub struct Link(Arc<Shared>);

/// The journal's end.
#[derive(Debug)]
pub struct Intake {
    pub(crate) shared: Arc<Shared>,
    pub(crate) inside: OwnedFd,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) door: Arc<Door>,
    lanes: Vec<CachePadded<Lane>>,
}

#[derive(Debug)]
struct Lane {
    entries: ArrayQueue<Vec<Entry>>,
    written: AtomicU64,
    synced: AtomicU64,
    failures: AtomicU64,
    is_up: AtomicBool,
}

impl fmt::Debug for Link {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Link")
    }
}

/// A way for so many shards.
pub fn link(shards: u16) -> std::io::Result<(Link, Intake)> {
    let (door, inside) = Door::new()?;
    let lane = |_| {
        CachePadded::new(Lane {
            entries: ArrayQueue::new(TURNS_MAX),
            written: AtomicU64::new(0),
            synced: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            is_up: AtomicBool::new(true),
        })
    };
    let shared = Arc::new(Shared { door, lanes: (0..shards).map(lane).collect() });
    Ok((Link(shared.clone()), Intake { shared, inside }))
}

impl Link {
    /// Hands over what a turn of a shard has for the journal; gives it back where too much waits already.
    pub fn push(&self, from: ShardId, entries: Vec<Entry>) -> Result<(), Vec<Entry>> {
        let Some(lane) = self.0.lanes.get(usize::from(from.0)) else { return Err(entries) };
        lane.entries.push(entries)?;
        self.0.door.ring();
        Ok(())
    }

    /// How far the journal is with what a shard gave it.
    pub fn progress(&self, shard: ShardId) -> Progress {
        let Some(lane) = self.0.lanes.get(usize::from(shard.0)) else { return Progress::default() };
        // The failures first: what was acknowledged before one is seen with it then, and so is that it is down.
        let failures = lane.failures.load(Ordering::SeqCst);
        let is_up = lane.is_up.load(Ordering::SeqCst);
        let (written, synced) = (lane.written.load(Ordering::SeqCst), lane.synced.load(Ordering::SeqCst));
        Progress { written, synced, failures, is_up }
    }
}

impl Shared {
    pub(crate) fn shards(&self) -> u16 {
        self.lanes.len() as u16
    }

    /// What a shard has handed over next.
    pub(crate) fn pop(&self, from: u16) -> Option<Vec<Entry>> {
        self.lanes.get(usize::from(from))?.entries.pop()
    }

    /// Whether a shard has handed something over.
    pub(crate) fn has_entries(&self) -> bool {
        self.lanes.iter().any(|lane| !lane.entries.is_empty())
    }

    /// Notes the last batch of a shard that the kernel has.
    pub(crate) fn set_written(&self, shard: u16, number: u64) {
        if let Some(lane) = self.lanes.get(usize::from(shard)) {
            lane.written.store(number, Ordering::SeqCst);
        }
    }

    /// Notes the last batch of a shard that the disk has.
    pub(crate) fn set_synced(&self, shard: u16, number: u64) {
        if let Some(lane) = self.lanes.get(usize::from(shard)) {
            lane.synced.store(number, Ordering::SeqCst);
        }
    }

    /// Tells all shards that what is on its way is lost.
    pub(crate) fn set_failed(&self, failures: u64) {
        for lane in &self.lanes {
            lane.is_up.store(false, Ordering::SeqCst);
            lane.failures.store(failures, Ordering::SeqCst);
        }
    }

    /// Tells all shards that batches are taken.
    pub(crate) fn set_up(&self) {
        for lane in &self.lanes {
            lane.is_up.store(true, Ordering::SeqCst);
        }
    }
}

//! The way between shards and broker: a bounded queue of each shard to it, and one back.
//!
//! Neither end waits. Who finds a queue full gets back what it gave and keeps it, within its own bound; the other end tells
//! when there is room again: the shard is woken, the broker's [`Intake::entries`] ends.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;
use tokio::sync::Notify;

use crate::hub::brokered::{FromBroker, ToBroker};
use crate::hub::name::ShardId;

/// Batches that may wait from one shard for the broker, and from the broker for one shard. A turn of either makes one, so
/// that this is some hundreds of turns; what is beyond is kept within `broker.pending_bytes_max`.
const BATCHES_MAX: usize = 256;

/// The shards' end.
#[derive(Clone)]
pub struct Link(Arc<Shared>);

/// The broker's end. Nothing in it needs a runtime but [`Intake::entries`], which runs on any.
pub struct Intake {
    shared: Arc<Shared>,
    wake: Box<dyn Fn(u16) + Send>,
}

/// What ends the broker.
#[derive(Clone)]
pub(crate) struct Stop(Arc<Shared>);

struct Shared {
    lanes: Vec<CachePadded<Lane>>,
    entries: Notify,
    stop: AtomicBool,
}

struct Lane {
    to_broker: ArrayQueue<Vec<ToBroker>>,
    to_shard: ArrayQueue<Vec<FromBroker>>,
    /// The shard found its queue full and wants to be woken when it is not.
    shard_waits: AtomicBool,
    /// The same of the broker.
    broker_waits: AtomicBool,
}

impl fmt::Debug for Link {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Link")
    }
}

impl fmt::Debug for Intake {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Intake")
    }
}

impl fmt::Debug for Stop {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Stop")
    }
}

/// A way for so many shards. Nobody is woken before [`Intake::set_wake`].
pub fn link(shards: u16) -> (Link, Intake) {
    let lane = |_| {
        CachePadded::new(Lane {
            to_broker: ArrayQueue::new(BATCHES_MAX),
            to_shard: ArrayQueue::new(BATCHES_MAX),
            shard_waits: AtomicBool::new(false),
            broker_waits: AtomicBool::new(false),
        })
    };
    let shared =
        Shared { lanes: (0..shards).map(lane).collect(), entries: Notify::new(), stop: AtomicBool::new(false) };
    let shared = Arc::new(shared);
    (Link(shared.clone()), Intake { shared, wake: Box::new(|_| ()) })
}

impl Link {
    /// Hands over what a turn of a shard has for the broker; gives it back where too much waits already. The shard is woken
    /// when there is room again.
    pub fn push(&self, from: ShardId, messages: Vec<ToBroker>) -> Result<(), Vec<ToBroker>> {
        let Some(lane) = self.0.lanes.get(usize::from(from.0)) else { return Err(messages) };
        let pushed = push(&lane.to_broker, messages, &lane.shard_waits);
        if pushed.is_ok() {
            self.0.entries.notify_one();
        }
        pushed
    }

    /// Whether the broker has told a shard something.
    pub fn has_told(&self, shard: ShardId) -> bool {
        self.0.lanes.get(usize::from(shard.0)).is_some_and(|lane| !lane.to_shard.is_empty())
    }

    /// What the broker has told a shard next.
    pub fn take(&self, shard: ShardId) -> Option<Vec<FromBroker>> {
        let lane = self.0.lanes.get(usize::from(shard.0))?;
        let messages = lane.to_shard.pop()?;
        if lane.broker_waits.swap(false, Ordering::SeqCst) {
            self.0.entries.notify_one();
        }
        Some(messages)
    }
}

impl Intake {
    /// Has `wake` called for a shard when it was told something, or may hand over again.
    pub fn set_wake(&mut self, wake: Box<dyn Fn(u16) + Send>) {
        self.wake = wake;
    }

    /// How many shards there are.
    pub fn shards(&self) -> u16 {
        self.shared.lanes.len() as u16
    }

    /// What a shard has handed over next.
    pub fn pop(&self, from: ShardId) -> Option<Vec<ToBroker>> {
        let lane = self.shared.lanes.get(usize::from(from.0))?;
        let messages = lane.to_broker.pop()?;
        if lane.shard_waits.swap(false, Ordering::SeqCst) {
            (self.wake)(from.0);
        }
        Some(messages)
    }

    /// Whether a shard has handed something over.
    pub fn has_entries(&self) -> bool {
        self.shared.lanes.iter().any(|lane| !lane.to_broker.is_empty())
    }

    /// Ends when a shard has handed something over, when a shard that was full has room again, or when the broker is to
    /// end. It may end for nothing.
    pub async fn entries(&self) {
        self.shared.entries.notified().await;
    }

    /// Tells a shard something and wakes it; gives it back where too much waits already.
    pub fn tell(&self, shard: ShardId, messages: Vec<FromBroker>) -> Result<(), Vec<FromBroker>> {
        let Some(lane) = self.shared.lanes.get(usize::from(shard.0)) else { return Err(messages) };
        push(&lane.to_shard, messages, &lane.broker_waits)?;
        (self.wake)(shard.0);
        Ok(())
    }

    /// Whether the broker was asked to end.
    pub(crate) fn stop_requested(&self) -> bool {
        self.shared.stop.load(Ordering::SeqCst)
    }

    /// What ends the broker.
    pub(crate) fn stop(&self) -> Stop {
        Stop(self.shared.clone())
    }
}

impl Stop {
    /// Asks the broker to end.
    pub(crate) fn request(&self) {
        self.0.stop.store(true, Ordering::SeqCst);
        self.0.entries.notify_one();
    }
}

/// Pushes, or notes that there is one who waits. The flag is set before the last attempt: who makes room afterwards sees it.
fn push<T>(queue: &ArrayQueue<T>, value: T, waits: &AtomicBool) -> Result<(), T> {
    let value = match queue.push(value) {
        Ok(()) => return Ok(()),
        Err(value) => value,
    };
    waits.store(true, Ordering::SeqCst);
    queue.push(value)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use futures_executor::block_on;

    use super::*;
    use crate::hub::name::NameHasher;

    fn leave(room: &str) -> ToBroker {
        ToBroker::Leave { room: NameHasher::new(1).room(room) }
    }

    fn cleared(number: u64) -> FromBroker {
        FromBroker::Cleared { number, outcome: Ok(0) }
    }

    #[test]
    fn what_a_shard_hands_over_comes_out_in_its_order_and_ends_the_wait() {
        let (link, intake) = link(2);
        assert!(!intake.has_entries());
        link.push(ShardId(1), vec![leave("doc:1")]).expect("room for one");
        link.push(ShardId(1), vec![leave("doc:2")]).expect("room for two");
        block_on(intake.entries());
        assert!(intake.has_entries());
        assert!(intake.pop(ShardId(0)).is_none());
        for room in ["doc:1", "doc:2"] {
            let batch = intake.pop(ShardId(1)).expect("a batch");
            assert!(matches!(&batch[..], [ToBroker::Leave { room: left }] if left.as_str() == room));
        }
        assert!(intake.pop(ShardId(1)).is_none());
    }

    #[test]
    fn a_full_queue_gives_back_what_it_is_given_and_wakes_the_shard_when_there_is_room() {
        let (link, mut intake) = link(1);
        let woken = Arc::new(AtomicUsize::new(0));
        let count = woken.clone();
        intake.set_wake(Box::new(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
        }));
        for _ in 0..BATCHES_MAX {
            link.push(ShardId(0), vec![leave("doc:1")]).expect("not full");
        }
        let back = link.push(ShardId(0), vec![leave("doc:2")]).expect_err("full");
        assert_eq!(back.len(), 1);
        assert_eq!(woken.load(Ordering::SeqCst), 0);
        assert!(intake.pop(ShardId(0)).is_some());
        assert_eq!(woken.load(Ordering::SeqCst), 1);
        link.push(ShardId(0), back).expect("room again");
        assert!(intake.pop(ShardId(0)).is_some());
        assert_eq!(woken.load(Ordering::SeqCst), 1, "nobody waits any more");
    }

    #[test]
    fn a_shard_that_was_full_ends_the_brokers_wait_by_taking() {
        let (link, mut intake) = link(1);
        let woken = Arc::new(AtomicUsize::new(0));
        let count = woken.clone();
        intake.set_wake(Box::new(move |shard| {
            assert_eq!(shard, 0);
            count.fetch_add(1, Ordering::SeqCst);
        }));
        for number in 0..BATCHES_MAX as u64 {
            intake.tell(ShardId(0), vec![cleared(number)]).expect("not full");
        }
        assert_eq!(woken.load(Ordering::SeqCst), BATCHES_MAX);
        let back = intake.tell(ShardId(0), vec![cleared(9999)]).expect_err("full");
        let first = link.take(ShardId(0)).expect("what was told first");
        assert!(matches!(first[..], [FromBroker::Cleared { number: 0, .. }]));
        block_on(intake.entries());
        intake.tell(ShardId(0), back).expect("room again");
    }

    #[test]
    fn a_shard_that_does_not_exist_gets_nothing_and_gives_nothing() {
        let (link, intake) = link(1);
        assert!(link.push(ShardId(1), vec![leave("doc:1")]).is_err());
        assert!(intake.tell(ShardId(1), vec![cleared(1)]).is_err());
        assert!(link.take(ShardId(1)).is_none());
        assert!(intake.pop(ShardId(1)).is_none());
    }

    #[test]
    fn a_request_to_end_is_seen_and_ends_the_wait() {
        let (_link, intake) = link(1);
        assert!(!intake.stop_requested());
        intake.stop().request();
        block_on(intake.entries());
        assert!(intake.stop_requested());
    }
}

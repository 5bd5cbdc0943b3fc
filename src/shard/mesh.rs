//! The queues between threads: one per ordered pair of shards, one from the hub's handle to each shard, and the bells.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;

use super::request::Request;
use crate::hub::message::Message;
use crate::hub::name::ShardId;
use crate::ring::Doorbell;

/// Batches that may wait between two shards. A batch is one turn's messages; a shard that is this many turns behind makes
/// the sender keep its messages, up to `mesh.backlog_max`, and refuse publishes beyond.
const BATCHES_MAX: usize = 256;
/// Calls of the hub's handle that may wait for a shard.
pub const REQUESTS_MAX: usize = 16 * 1024;

/// What all threads of a node share.
#[derive(Debug)]
pub struct Mesh {
    ports: Vec<Port>,
    /// Connections of the whole node, against `limits.connections_max`.
    pub connections: CachePadded<AtomicUsize>,
    /// Set once a drain began.
    pub draining: AtomicBool,
}

#[derive(Debug)]
struct Port {
    doorbell: Arc<Doorbell>,
    /// By sender.
    batches: Vec<CachePadded<ArrayQueue<Vec<Message>>>>,
    requests: ArrayQueue<Request>,
    /// Set when its shard has ended.
    closed: AtomicBool,
}

impl Port {
    fn drop_all(&self) {
        while let Some(request) = self.requests.pop() {
            drop(request);
        }
        for batches in &self.batches {
            while let Some(batch) = batches.pop() {
                drop(batch);
            }
        }
    }
}

impl Mesh {
    /// A mesh of as many shards as there are bells.
    pub fn new(doorbells: Vec<Arc<Doorbell>>) -> Mesh {
        let shards = doorbells.len();
        let ports = doorbells
            .into_iter()
            .map(|doorbell| Port {
                doorbell,
                batches: (0..shards).map(|_| CachePadded::new(ArrayQueue::new(BATCHES_MAX))).collect(),
                requests: ArrayQueue::new(REQUESTS_MAX),
                closed: AtomicBool::new(false),
            })
            .collect();
        Mesh { ports, connections: CachePadded::new(AtomicUsize::new(0)), draining: AtomicBool::new(false) }
    }

    /// Number of shards.
    pub fn shards(&self) -> u16 {
        self.ports.len() as u16
    }

    /// Hands a turn's messages to a shard and rings once; gives them back where that shard is too far behind. Those to a
    /// shard that has ended are dropped, which answers whoever waits for an answer.
    pub fn push(&self, from: ShardId, to: ShardId, messages: Vec<Message>) -> Result<(), Vec<Message>> {
        let Some(port) = self.ports.get(usize::from(to.0)) else { return Err(messages) };
        let Some(queue) = port.batches.get(usize::from(from.0)) else { return Err(messages) };
        if port.closed.load(Ordering::SeqCst) {
            // Only at the node's end, or after a failure that brings it about.
            return Ok(());
        }
        queue.push(messages)?;
        port.doorbell.ring();
        Ok(())
    }

    /// The next batch from a shard to this one.
    pub fn pop(&self, from: ShardId, me: ShardId) -> Option<Vec<Message>> {
        self.ports.get(usize::from(me.0))?.batches.get(usize::from(from.0))?.pop()
    }

    /// Asks something of a shard; gives it back where too much waits already, or where the shard has ended.
    pub fn request(&self, to: ShardId, request: Request) -> Result<(), Request> {
        self.request_quietly(to, request)?;
        if let Some(port) = self.ports.get(usize::from(to.0)) {
            port.doorbell.ring();
        }
        Ok(())
    }

    /// As [`Mesh::request`], but a shard that sleeps sleeps on until [`Mesh::ring_waiting`].
    pub fn request_quietly(&self, to: ShardId, request: Request) -> Result<(), Request> {
        let Some(port) = self.ports.get(usize::from(to.0)) else { return Err(request) };
        if port.closed.load(Ordering::SeqCst) {
            return Err(request);
        }
        port.requests.push(request)?;
        if port.closed.load(Ordering::SeqCst) {
            // It ended between the two lines; whoever asked learns it from the responder that is dropped.
            port.drop_all();
        }
        Ok(())
    }

    /// Wakes the shards for which requests wait.
    pub fn ring_waiting(&self) {
        for port in self.ports.iter().filter(|port| !port.requests.is_empty()) {
            port.doorbell.ring();
        }
    }

    /// The shard has ended: what waits for it is answered by being dropped, and nothing more is taken.
    pub fn close(&self, shard: ShardId) {
        if let Some(port) = self.ports.get(usize::from(shard.0)) {
            port.closed.store(true, Ordering::SeqCst);
            port.drop_all();
        }
    }

    /// The next request to this shard.
    pub fn next_request(&self, me: ShardId) -> Option<Request> {
        self.ports.get(usize::from(me.0))?.requests.pop()
    }

    /// Whether anything waits for this shard.
    pub fn has_work(&self, me: ShardId) -> bool {
        self.ports
            .get(usize::from(me.0))
            .is_some_and(|port| !port.requests.is_empty() || port.batches.iter().any(|queue| !queue.is_empty()))
    }

    /// Batches from other shards, and requests of the hub's handle, that wait for a shard.
    pub fn waiting(&self, shard: ShardId) -> (u64, u64) {
        let Some(port) = self.ports.get(usize::from(shard.0)) else { return (0, 0) };
        let batches = port.batches.iter().map(|queue| queue.len()).sum::<usize>();
        (batches as u64, port.requests.len() as u64)
    }

    /// Counts one more connection of the node, unless there are as many as there may be (0: no limit).
    pub fn claim_connection(&self, connections_max: usize) -> bool {
        let before = self.connections.fetch_add(1, Ordering::Relaxed);
        if connections_max > 0 && before >= connections_max {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        true
    }

    /// Counts one connection less.
    pub fn release_connection(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

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
            })
            .collect();
        Mesh { ports, connections: CachePadded::new(AtomicUsize::new(0)), draining: AtomicBool::new(false) }
    }

    /// Number of shards.
    pub fn shards(&self) -> u16 {
        self.ports.len() as u16
    }

    /// Hands a turn's messages to a shard and rings once; gives them back where that shard is too far behind.
    pub fn push(&self, from: ShardId, to: ShardId, messages: Vec<Message>) -> Result<(), Vec<Message>> {
        let Some(port) = self.ports.get(usize::from(to.0)) else { return Err(messages) };
        let Some(queue) = port.batches.get(usize::from(from.0)) else { return Err(messages) };
        queue.push(messages)?;
        port.doorbell.ring();
        Ok(())
    }

    /// The next batch from a shard to this one.
    pub fn pop(&self, from: ShardId, me: ShardId) -> Option<Vec<Message>> {
        self.ports.get(usize::from(me.0))?.batches.get(usize::from(from.0))?.pop()
    }

    /// Asks something of a shard; gives it back where too much waits already.
    pub fn request(&self, to: ShardId, request: Request) -> Result<(), Request> {
        let Some(port) = self.ports.get(usize::from(to.0)) else { return Err(request) };
        port.requests.push(request)?;
        port.doorbell.ring();
        Ok(())
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

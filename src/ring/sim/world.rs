//! The state behind the simulation: one link per client, and the dice.

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use rustc_hash::FxHashMap;

use super::super::{Completion, ConnKey, Now, Peer, ReceiveEnd, Socket};
use super::Faults;

/// Where a link's server end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In the backlog.
    Waiting,
    /// A shard's.
    Open,
    Detached,
    Closed,
    Refused,
}

/// Where a shard's receive stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Receive {
    Idle,
    Armed,
    Cancelling,
}

/// A connection between a client and the server.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) shard: usize,
    listener: u16,
    pub(super) peer: Peer,
    pub(super) place: Place,
    /// From the client, on its way.
    pub(super) upward: VecDeque<u8>,
    /// Arrived at the client, unread.
    pub(super) downward: Vec<u8>,
    /// What the client's window takes.
    pub(super) budget: usize,
    /// The client sends no more.
    pub(super) finished: bool,
    /// The client has closed.
    gone: bool,
    pub(super) reset: bool,
    pub(super) server_finished: bool,
    conn: Option<ConnKey>,
    pub(super) receive: Receive,
    pub(super) sending: Option<Bytes>,
    /// What was being sent to the client when that failed, as far as it had not arrived.
    pub(super) lost: Vec<u8>,
}

#[derive(Debug, Default)]
struct Shard {
    /// None before the first `listen`: everything is accepted. Empty after `stop_listening`.
    listeners: Option<Vec<u16>>,
    backlog: VecDeque<usize>,
    connections: Vec<usize>,
    slots: FxHashMap<u32, usize>,
}

/// Everything there is.
#[derive(Debug)]
pub(super) struct World {
    pub(super) rng: fastrand::Rng,
    pub(super) faults: Faults,
    pub(super) now: Now,
    links: Vec<Link>,
    shards: Vec<Shard>,
    /// Descriptors that stand for detached sockets.
    pub(super) detached: Vec<(RawFd, Socket)>,
}

impl World {
    pub(super) fn new(seed: u64, faults: Faults) -> World {
        let now = Now { monotonic_us: 1_000_000, unix_ms: 1_700_000_000_000 };
        let rng = fastrand::Rng::with_seed(seed);
        World { rng, faults, now, links: Vec::new(), shards: Vec::new(), detached: Vec::new() }
    }

    pub(super) fn add_shard(&mut self) -> usize {
        self.shards.push(Shard::default());
        self.shards.len() - 1
    }

    pub(super) fn chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.rng.f64() < probability
    }

    pub(super) fn advance(&mut self, time: Duration) {
        let before_ms = self.now.monotonic_us / 1000;
        self.now.monotonic_us += time.as_micros() as u64;
        self.now.unix_ms += self.now.monotonic_us / 1000 - before_ms;
    }

    pub(super) fn links(&self) -> usize {
        self.links.len()
    }

    pub(super) fn link(&mut self, index: usize) -> &mut Link {
        &mut self.links[index]
    }

    pub(super) fn is_idle(&self) -> bool {
        self.shards
            .iter()
            .all(|shard| shard.backlog.is_empty() && !shard.connections.iter().any(|&index| self.busy(index)))
    }

    pub(super) fn sockets_open(&self) -> usize {
        self.shards.iter().map(|shard| shard.connections.len()).sum()
    }
}

/// The client's side.
impl World {
    pub(super) fn connect(&mut self, shard: usize, listener: u16, peer: Peer) -> usize {
        let index = self.links.len();
        let part = &mut self.shards[shard];
        let heard = part.listeners.as_ref().is_none_or(|listeners| listeners.contains(&listener));
        if heard {
            part.backlog.push_back(index);
        }
        self.links.push(Link {
            shard,
            listener,
            peer,
            place: if heard { Place::Waiting } else { Place::Refused },
            upward: VecDeque::new(),
            downward: Vec::new(),
            budget: usize::MAX,
            finished: false,
            gone: false,
            reset: false,
            server_finished: false,
            conn: None,
            receive: Receive::Idle,
            sending: None,
            lost: Vec::new(),
        });
        index
    }

    pub(super) fn client_writes(&mut self, index: usize, bytes: &[u8]) {
        let link = &mut self.links[index];
        if !link.finished && !link.reset && !matches!(link.place, Place::Closed | Place::Refused) {
            link.upward.extend(bytes);
        }
    }

    pub(super) fn client_closes(&mut self, index: usize) {
        let link = &mut self.links[index];
        link.finished = true;
        link.gone = true;
    }

    pub(super) fn reset(&mut self, index: usize) {
        let link = &mut self.links[index];
        link.reset = true;
        link.finished = true;
        link.upward.clear();
    }
}

/// The shard's side.
impl World {
    pub(super) fn listen(&mut self, shard: usize, listener: u16) {
        self.shards[shard].listeners.get_or_insert_default().push(listener);
    }

    pub(super) fn stop_listening(&mut self, shard: usize) {
        self.shards[shard].listeners = Some(Vec::new());
        for index in std::mem::take(&mut self.shards[shard].backlog) {
            self.links[index].place = Place::Refused;
        }
    }

    pub(super) fn has_waiting(&self, shard: usize) -> bool {
        !self.shards[shard].backlog.is_empty()
    }

    pub(super) fn accept(&mut self, shard: usize) -> Option<Completion> {
        let index = self.shards[shard].backlog.pop_front()?;
        self.shards[shard].connections.push(index);
        self.links[index].place = Place::Open;
        Some(Completion::Accepted { listener: self.links[index].listener, socket: Socket(index as RawFd) })
    }

    pub(super) fn connections(&self, shard: usize) -> &[usize] {
        &self.shards[shard].connections
    }

    /// A socket that belongs to the shard.
    pub(super) fn owned(&mut self, shard: usize, socket: Socket) -> &mut Link {
        let link = usize::try_from(socket.0).ok().and_then(|index| self.links.get_mut(index));
        match link {
            Some(link) if link.place == Place::Open && link.shard == shard => link,
            other => panic!("{socket:?} is not this shard's: {:?}", other.map(|link| link.place)),
        }
    }

    /// As [`World::owned`], and sees to it that each slot has one connection at a time.
    pub(super) fn open(&mut self, shard: usize, conn: ConnKey, socket: Socket) -> &mut Link {
        let index = socket.0 as usize;
        if self.owned(shard, socket).conn.is_none() {
            let former = self.shards[shard].slots.insert(conn.slot, index);
            assert!(former.is_none(), "slot {} has an owner already", conn.slot);
            self.links[index].conn = Some(conn);
        }
        let link = &mut self.links[index];
        assert_eq!(link.conn, Some(conn), "{socket:?} goes by another name");
        link
    }

    /// What of a connection's chunk has yet to be taken.
    pub(super) fn sending(&self, shard: usize, conn: ConnKey) -> Option<Bytes> {
        let link = self.links.get(*self.shards.get(shard)?.slots.get(&conn.slot)?)?;
        link.sending.clone().filter(|_| link.conn == Some(conn))
    }

    /// The shard has no more to do with the socket.
    pub(super) fn leave(&mut self, shard: usize, socket: Socket, place: Place) {
        let index = socket.0 as usize;
        let part = &mut self.shards[shard];
        part.connections.retain(|&other| other != index);
        let link = &mut self.links[index];
        if let Some(conn) = link.conn.take() {
            part.slots.remove(&conn.slot);
        }
        link.place = place;
        link.receive = Receive::Idle;
        link.lose_chunk();
        if place == Place::Closed {
            link.server_finished = true;
            link.upward.clear();
        }
    }

    pub(super) fn adopt(&mut self, shard: usize, socket: Socket) {
        let index = socket.0 as usize;
        self.shards[shard].connections.push(index);
        self.links[index].shard = shard;
        self.links[index].place = Place::Open;
    }

    pub(super) fn close_all(&mut self, shard: usize) {
        for index in std::mem::take(&mut self.shards[shard].connections) {
            self.leave(shard, Socket(index as RawFd), Place::Closed);
        }
    }

    /// Something can happen to it.
    pub(super) fn busy(&self, index: usize) -> bool {
        let link = &self.links[index];
        let receives = match link.receive {
            Receive::Idle => false,
            Receive::Armed => !link.upward.is_empty() || link.finished || link.reset,
            Receive::Cancelling => true,
        };
        receives || (link.sending.is_some() && (link.budget > 0 || link.reset || link.gone))
    }

    /// Whose receive could go on, and whether it ends instead. None when there is nothing to say.
    pub(super) fn receive_end(&mut self, index: usize) -> Option<(ConnKey, Option<ReceiveEnd>)> {
        let coin = self.rng.bool();
        let link = &mut self.links[index];
        let conn = link.conn?;
        let end = match link.receive {
            Receive::Idle => return None,
            _ if link.reset => ReceiveEnd::Error(libc::ECONNRESET),
            Receive::Cancelling if link.upward.is_empty() || coin => ReceiveEnd::Cancelled,
            _ if !link.upward.is_empty() => return Some((conn, None)),
            _ if link.finished => ReceiveEnd::Eof,
            _ => return None,
        };
        link.receive = Receive::Idle;
        Some((conn, Some(end)))
    }

    /// Moves bytes that have arrived, at least one, into a buffer.
    pub(super) fn deliver(&mut self, index: usize, bytes_max: usize, buffer: &mut Vec<u8>) {
        let most = self.links[index].upward.len().min(bytes_max);
        let bytes = if self.chance(self.faults.partial_receives) { self.rng.usize(1..=most) } else { most };
        buffer.extend(self.links[index].upward.drain(..bytes));
    }

    /// Lets the client take from what is being sent to it.
    pub(super) fn sent(&mut self, index: usize) -> Option<Completion> {
        let partial = self.chance(self.faults.partial_sends);
        let link = &mut self.links[index];
        let conn = link.conn?;
        let chunk = link.sending.as_mut()?;
        let mut error = 0;
        if link.reset {
            error = if link.receive == Receive::Idle { libc::EPIPE } else { libc::ECONNRESET };
        } else if link.server_finished {
            error = libc::EPIPE;
        } else if link.gone {
            // The peer's system answers the first segment to a closed socket with a reset.
            link.reset = true;
        } else {
            let most = chunk.len().min(link.budget);
            let bytes = if partial { self.rng.usize(0..=most) } else { most };
            link.downward.extend_from_slice(&chunk[..bytes]);
            link.budget -= if link.budget == usize::MAX { 0 } else { bytes };
            chunk.advance(bytes);
            if chunk.has_remaining() {
                return None;
            }
        }
        link.lose_chunk();
        Some(Completion::Sent { conn, error })
    }
}

impl Link {
    /// What of its chunk has not arrived will not arrive any more.
    fn lose_chunk(&mut self) {
        if let Some(chunk) = self.sending.take() {
            self.lost.extend_from_slice(&chunk);
        }
    }
}

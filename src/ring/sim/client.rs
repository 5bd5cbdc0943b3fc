//! What a test holds in its hands: the world, and the clients in it.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::time::Duration;

use super::world::{Place, World};
use super::{Faults, Peer, SimDriver};

/// A world of clients and shards. Cheap to clone; all clones are the same world.
#[derive(Clone)]
pub struct SimWorld {
    world: Rc<RefCell<World>>,
}

impl SimWorld {
    /// Everything that happens follows from `seed`, `faults` and the order of the calls.
    pub fn new(seed: u64, faults: Faults) -> SimWorld {
        SimWorld { world: Rc::new(RefCell::new(World::new(seed, faults))) }
    }

    /// Adds a shard, numbered from 0, with 16 buffers of 4096 bytes.
    pub fn driver(&self) -> SimDriver {
        self.driver_with(16, 4096)
    }

    /// Adds a shard with receive buffers of this number and size.
    pub fn driver_with(&self, buffers: u16, buffer_bytes: usize) -> SimDriver {
        SimDriver::new(self.world.clone(), buffers, buffer_bytes)
    }

    /// A client at an address of its own connects to the first listener of a shard.
    pub fn connect(&self, shard: usize) -> SimClient {
        let number = self.world.borrow().links();
        let address = IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 | (number as u32 & 0x00ff_ffff)));
        self.connect_as(shard, 0, Peer::Ip(address, 40_000))
    }

    /// A client with this address connects to a listener of a shard. A shard that has not called `listen` accepts on
    /// every listener, so that simple tests need none; one that stopped listening refuses.
    pub fn connect_as(&self, shard: usize, listener: u16, peer: Peer) -> SimClient {
        let index = self.world.borrow_mut().connect(shard, listener, peer);
        SimClient { world: self.world.clone(), index }
    }

    /// Lets time pass.
    pub fn advance(&self, time: Duration) {
        self.world.borrow_mut().advance(time);
    }

    /// Changes how rough the world is from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.world.borrow_mut().faults = faults;
    }

    /// Nothing will happen in any further turn unless someone acts: no client waits to be accepted, nothing that was sent
    /// or asked for can still arrive.
    pub fn is_idle(&self) -> bool {
        self.world.borrow().is_idle()
    }

    /// Sockets that some shard has accepted and not closed.
    pub fn sockets_open(&self) -> usize {
        self.world.borrow().sockets_open()
    }
}

/// A virtual client.
#[derive(Clone)]
pub struct SimClient {
    world: Rc<RefCell<World>>,
    index: usize,
}

impl SimClient {
    /// Sends bytes; they arrive when the world likes. Lost when the connection is over.
    pub fn write(&self, bytes: &[u8]) {
        self.world.borrow_mut().client_writes(self.index, bytes);
    }

    /// All that arrived since the last call.
    pub fn read(&self) -> Vec<u8> {
        std::mem::take(&mut self.world.borrow_mut().link(self.index).downward)
    }

    /// How many more bytes the client's window takes: 0 is a reader that has stopped. Unlimited at first.
    pub fn set_read_budget(&self, bytes: usize) {
        self.world.borrow_mut().link(self.index).budget = bytes;
    }

    /// Half-closes: sends no more, still reads.
    pub fn finish(&self) {
        self.world.borrow_mut().link(self.index).finished = true;
    }

    /// Closes: what was written still arrives, what is sent to it is lost.
    pub fn close(&self) {
        self.world.borrow_mut().client_closes(self.index);
    }

    /// Vanishes with a reset: what was written and has not arrived is lost.
    pub fn reset(&self) {
        self.world.borrow_mut().reset(self.index);
    }

    /// A shard has accepted it (and may have closed it since).
    pub fn is_accepted(&self) -> bool {
        !matches!(self.world.borrow_mut().link(self.index).place, Place::Waiting | Place::Refused)
    }

    /// No listener took it.
    pub fn is_refused(&self) -> bool {
        self.world.borrow_mut().link(self.index).place == Place::Refused
    }

    /// The other side will send no more: it closed, half-closed, or the connection broke.
    pub fn is_closed(&self) -> bool {
        let mut world = self.world.borrow_mut();
        let link = world.link(self.index);
        link.server_finished || link.reset || matches!(link.place, Place::Closed | Place::Refused)
    }

    /// Its socket was given up by its shard with `detach`.
    pub fn is_detached(&self) -> bool {
        self.world.borrow_mut().link(self.index).place == Place::Detached
    }

    /// Bytes that a shard has handed over for the client, and that have not arrived or never will.
    pub fn undelivered(&self) -> Vec<u8> {
        let mut world = self.world.borrow_mut();
        let link = world.link(self.index);
        let mut bytes = link.lost.clone();
        bytes.extend_from_slice(link.sending.as_deref().unwrap_or_default());
        bytes
    }

    /// Bytes written that no shard has received.
    pub fn unreceived(&self) -> usize {
        self.world.borrow_mut().link(self.index).upward.len()
    }
}

//! The seeded driver for tests: a world of virtual clients in which everything that may happen is drawn from one seed.
//!
//! Within one connection the order of bytes and completions is kept, as the kernel keeps it; between connections nothing is
//! promised. All shards of a test run in one thread, take turns, and never wait: time passes only by [`SimWorld::advance`].
//! What the [`Driver`] contract forbids its caller (two sends at once, a buffer released twice, a socket used after its
//! close) panics here.
//!
//! ```
//! use ringhub::ring::sim::{Faults, SimWorld};
//! use ringhub::ring::{Completion, ConnKey, Driver};
//!
//! let world = SimWorld::new(7, Faults::none());
//! let mut driver = world.driver();
//! let client = world.connect(0);
//! client.write(b"hello");
//!
//! let conn = ConnKey { slot: 0, generation: 0 };
//! let mut completions = Vec::new();
//! driver.turn(None, &mut completions)?;
//! let Completion::Accepted { socket, .. } = completions[0] else { panic!("{completions:?}") };
//! driver.receive(conn, socket);
//! completions.clear();
//! driver.turn(None, &mut completions)?;
//! let Completion::Received { buffer, bytes, .. } = completions[0] else { panic!("{completions:?}") };
//! assert_eq!(driver.buffer(buffer, bytes), b"hello");
//! driver.release(buffer);
//! driver.close(conn, socket);
//! assert!(client.is_closed());
//! # Ok::<(), std::io::Error>(())
//! ```

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{BufferId, Completion, ConnKey, Doorbell, Driver, DriverFigures, Now, Peer, Socket};

mod client;
mod world;

pub use client::{SimClient, SimWorld};
use world::{Place, Receive, World};

/// How rough the world is: probabilities between 0 and 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Faults {
    /// Per delivery: only a random part of what could arrive does.
    pub partial_receives: f64,
    /// Per send and turn: only a random part is taken, the rest later.
    pub partial_sends: f64,
    /// Per connection and turn: nothing happens though it could, so that others overtake.
    pub stalls: f64,
    /// Per connection and turn: the connection breaks.
    pub resets: f64,
    /// Per delivery: no buffer is free just then.
    pub starvation: f64,
    /// Per accept: it fails, and is tried again in the next turn.
    pub accept_failures: f64,
    /// Per turn: the doorbell rings for no reason.
    pub false_alarms: f64,
}

impl Faults {
    /// A smooth world: all that can happen in a turn does, in a random order.
    pub fn none() -> Faults {
        Faults {
            partial_receives: 0.0,
            partial_sends: 0.0,
            stalls: 0.0,
            resets: 0.0,
            starvation: 0.0,
            accept_failures: 0.0,
            false_alarms: 0.0,
        }
    }

    /// A rough one in which no connection breaks: every byte must arrive in the end.
    pub fn rough() -> Faults {
        Faults {
            partial_receives: 0.5,
            partial_sends: 0.5,
            stalls: 0.3,
            resets: 0.0,
            starvation: 0.1,
            accept_failures: 0.1,
            false_alarms: 0.1,
        }
    }

    /// As [`Faults::rough`], and now and then a connection breaks.
    pub fn hostile() -> Faults {
        Faults { resets: 0.01, ..Faults::rough() }
    }
}

/// One shard's driver in a [`SimWorld`].
pub struct SimDriver {
    world: Rc<RefCell<World>>,
    shard: usize,
    buffer_bytes: usize,
    buffers: Vec<Vec<u8>>,
    free: Vec<u16>,
    /// The connections of the shard, in the order of a turn; kept for its memory.
    order: Vec<usize>,
    doorbell: Arc<Doorbell>,
    figures: DriverFigures,
}

impl SimDriver {
    fn new(world: Rc<RefCell<World>>, buffers: u16, buffer_bytes: usize) -> SimDriver {
        assert!(buffers > 0 && buffer_bytes > 0);
        let shard = world.borrow_mut().add_shard();
        SimDriver {
            world,
            shard,
            buffer_bytes,
            buffers: vec![Vec::new(); usize::from(buffers)],
            free: (0..buffers).rev().collect(),
            order: Vec::new(),
            doorbell: Arc::new(Doorbell::silent()),
            figures: DriverFigures::default(),
        }
    }

    /// Buffers that the shard has not released. Zero between turns, if it does its work.
    pub fn lent(&self) -> usize {
        self.buffers.len() - self.free.len()
    }

    /// The next completion of a connection's receive, if there is one now.
    fn received(&mut self, world: &mut World, index: usize) -> Option<Completion> {
        let (conn, end) = match world.receive_end(index)? {
            (conn, Some(end)) => (conn, end),
            (conn, None) => {
                let starved = world.chance(world.faults.starvation);
                let Some(id) = self.free.pop_if(|_| !starved) else {
                    self.figures.buffer_exhausted += 1;
                    return None;
                };
                let buffer = &mut self.buffers[usize::from(id)];
                buffer.clear();
                world.deliver(index, self.buffer_bytes, buffer);
                return Some(Completion::Received { conn, buffer: BufferId(id), bytes: buffer.len() as u32 });
            }
        };
        Some(Completion::ReceiveEnded { conn, end })
    }
}

impl Driver for SimDriver {
    /// The descriptor is closed at once: clients come from [`SimWorld::connect`].
    fn listen(&mut self, listener: u16, _socket: OwnedFd) {
        self.world.borrow_mut().listen(self.shard, listener);
    }

    fn stop_listening(&mut self) {
        self.world.borrow_mut().stop_listening(self.shard);
    }

    fn receive(&mut self, conn: ConnKey, socket: Socket) {
        let mut world = self.world.borrow_mut();
        let link = world.open(self.shard, conn, socket);
        assert_eq!(link.receive, Receive::Idle, "two receives at once: {conn:?}");
        link.receive = Receive::Armed;
    }

    fn cancel_receive(&mut self, conn: ConnKey, socket: Socket) {
        let mut world = self.world.borrow_mut();
        let link = world.open(self.shard, conn, socket);
        if link.receive == Receive::Armed {
            link.receive = Receive::Cancelling;
        }
    }

    fn send(&mut self, conn: ConnKey, socket: Socket, chunk: Bytes) {
        assert!(!chunk.is_empty(), "an empty chunk: {conn:?}");
        let mut world = self.world.borrow_mut();
        let link = world.open(self.shard, conn, socket);
        assert!(link.sending.is_none(), "two sends at once: {conn:?}");
        link.sending = Some(chunk);
    }

    fn shutdown(&mut self, socket: Socket) {
        let mut world = self.world.borrow_mut();
        let link = world.owned(self.shard, socket);
        assert!(link.sending.is_none(), "shut down while a send is under way");
        link.server_finished = true;
    }

    fn close(&mut self, conn: ConnKey, socket: Socket) {
        let mut world = self.world.borrow_mut();
        world.open(self.shard, conn, socket);
        world.leave(self.shard, socket, Place::Closed);
    }

    fn detach(&mut self, conn: ConnKey, socket: Socket) -> OwnedFd {
        let mut world = self.world.borrow_mut();
        let link = world.open(self.shard, conn, socket);
        assert!(link.receive == Receive::Idle && link.sending.is_none(), "detached while under way: {conn:?}");
        world.leave(self.shard, socket, Place::Detached);
        let stand_in = match File::open("/dev/null") {
            Ok(file) => OwnedFd::from(file),
            Err(error) => panic!("a detached socket needs a descriptor to stand for it: {error}"),
        };
        world.detached.retain(|(descriptor, _)| *descriptor != stand_in.as_raw_fd());
        world.detached.push((stand_in.as_raw_fd(), socket));
        stand_in
    }

    /// Takes descriptors only that some driver of this world detached.
    fn attach(&mut self, socket: OwnedFd) -> Socket {
        let mut world = self.world.borrow_mut();
        let known = world.detached.iter().position(|(descriptor, _)| *descriptor == socket.as_raw_fd());
        let Some(known) = known else { panic!("a descriptor is attached that this world doesn't know") };
        let (_, socket) = world.detached.swap_remove(known);
        world.adopt(self.shard, socket);
        socket
    }

    /// Never waits, and leaves the time as it is.
    fn turn(&mut self, _wait: Option<Duration>, completions: &mut Vec<Completion>) -> io::Result<()> {
        let shared = self.world.clone();
        let world = &mut *shared.borrow_mut();
        let before = completions.len();
        self.figures.enters += 1;
        if world.chance(world.faults.false_alarms) {
            completions.push(Completion::Doorbell);
        }
        while world.has_waiting(self.shard) {
            if world.chance(world.faults.accept_failures) {
                self.figures.accept_failures += 1;
                break;
            }
            completions.extend(world.accept(self.shard));
        }
        let mut order = std::mem::take(&mut self.order);
        order.clear();
        order.extend_from_slice(world.connections(self.shard));
        // Several short rounds, so that completions of one connection come between those of others.
        for _ in 0..world.rng.usize(1..=3) {
            world.rng.shuffle(&mut order);
            for &index in &order {
                if !world.busy(index) || world.chance(world.faults.stalls) {
                    continue;
                }
                if world.chance(world.faults.resets) {
                    world.reset(index);
                }
                if world.rng.bool() {
                    completions.extend(self.received(world, index));
                    completions.extend(world.sent(index));
                } else {
                    completions.extend(world.sent(index));
                    completions.extend(self.received(world, index));
                }
            }
        }
        self.order = order;
        self.figures.completions += (completions.len() - before) as u64;
        Ok(())
    }

    fn buffer(&mut self, buffer: BufferId, bytes: u32) -> &mut [u8] {
        assert!(!self.free.contains(&buffer.0), "a buffer is read that was released");
        &mut self.buffers[usize::from(buffer.0)][..bytes as usize]
    }

    fn release(&mut self, buffer: BufferId) {
        assert!(!self.free.contains(&buffer.0), "a buffer is released twice");
        assert!(usize::from(buffer.0) < self.buffers.len());
        self.free.push(buffer.0);
    }

    fn sending(&mut self, conn: ConnKey) -> Option<Bytes> {
        self.world.borrow().sending(self.shard, conn)
    }

    fn peer(&self, socket: Socket) -> Peer {
        self.world.borrow_mut().owned(self.shard, socket).peer
    }

    fn now(&self) -> Now {
        self.world.borrow().now
    }

    fn doorbell(&self) -> Arc<Doorbell> {
        self.doorbell.clone()
    }

    fn figures(&self) -> DriverFigures {
        self.figures
    }
}

impl Drop for SimDriver {
    /// What is left is closed, as with the real driver.
    fn drop(&mut self) {
        // A panic in the middle of a turn holds the world.
        if let Ok(mut world) = self.world.try_borrow_mut() {
            world.stop_listening(self.shard);
            world.close_all(self.shard);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ReceiveEnd;
    use super::*;

    const CONN: ConnKey = ConnKey { slot: 0, generation: 0 };

    fn accepted(driver: &mut SimDriver) -> Socket {
        let mut completions = Vec::new();
        while completions.is_empty() {
            driver.turn(None, &mut completions).unwrap();
        }
        let Completion::Accepted { socket, .. } = completions[0] else { panic!("{completions:?}") };
        socket
    }

    fn turn(driver: &mut SimDriver) -> Vec<Completion> {
        let mut completions = Vec::new();
        driver.turn(None, &mut completions).unwrap();
        completions
    }

    #[test]
    fn a_slow_reader_takes_what_its_budget_allows() {
        let world = SimWorld::new(1, Faults::none());
        let mut driver = world.driver();
        let client = world.connect(0);
        client.set_read_budget(3);
        let socket = accepted(&mut driver);
        driver.send(CONN, socket, Bytes::from_static(b"abcdef"));
        assert_eq!(turn(&mut driver), []);
        assert_eq!((client.read(), client.undelivered()), (b"abc".to_vec(), b"def".to_vec()));
        assert!(world.is_idle());
        client.set_read_budget(3);
        assert_eq!(turn(&mut driver), [Completion::Sent { conn: CONN, error: 0 }]);
        assert_eq!((client.read(), client.undelivered()), (b"def".to_vec(), Vec::new()));
    }

    #[test]
    fn a_reset_ends_the_receive_and_the_send() {
        let world = SimWorld::new(1, Faults::none());
        let mut driver = world.driver();
        let client = world.connect(0);
        let socket = accepted(&mut driver);
        client.set_read_budget(0);
        driver.receive(CONN, socket);
        driver.send(CONN, socket, Bytes::from_static(b"abc"));
        client.reset();
        let completions = turn(&mut driver);
        assert_eq!(completions.len(), 2);
        assert!(
            completions
                .iter()
                .any(|completion| matches!(completion, Completion::Sent { error: libc::ECONNRESET | libc::EPIPE, .. }))
        );
        let end = ReceiveEnd::Error(libc::ECONNRESET);
        assert!(completions.contains(&Completion::ReceiveEnded { conn: CONN, end }));
        assert_eq!(client.undelivered(), b"abc");
    }

    #[test]
    fn a_detached_connection_goes_on_in_another_shard() {
        let world = SimWorld::new(1, Faults::none());
        let (mut first, mut second) = (world.driver(), world.driver());
        let client = world.connect(0);
        let socket = accepted(&mut first);
        client.write(b"across");
        first.shutdown(socket);
        let descriptor = first.detach(CONN, socket);
        assert!(client.is_detached());
        let socket = second.attach(descriptor);
        second.receive(CONN, socket);
        let completions = turn(&mut second);
        let Completion::Received { buffer, bytes, .. } = completions[0] else { panic!("{completions:?}") };
        assert_eq!(second.buffer(buffer, bytes), b"across");
        second.release(buffer);
        assert_eq!(second.lent(), 0);
    }

    #[test]
    fn time_passes_only_when_told() {
        let world = SimWorld::new(1, Faults::none());
        let mut driver = world.driver();
        let before = driver.now();
        turn(&mut driver);
        assert_eq!(driver.now(), before);
        world.advance(Duration::from_millis(1500));
        assert_eq!(driver.now().monotonic_us - before.monotonic_us, 1_500_000);
        assert_eq!(driver.now().unix_ms - before.unix_ms, 1500);
    }

    #[test]
    #[should_panic(expected = "two sends at once")]
    fn a_second_send_at_once_panics() {
        let world = SimWorld::new(1, Faults::none());
        let mut driver = world.driver();
        world.connect(0);
        let socket = accepted(&mut driver);
        driver.send(CONN, socket, Bytes::from_static(b"a"));
        driver.send(CONN, socket, Bytes::from_static(b"b"));
    }

    #[test]
    #[should_panic(expected = "not this shard's")]
    fn a_socket_used_after_its_close_panics() {
        let world = SimWorld::new(1, Faults::none());
        let mut driver = world.driver();
        world.connect(0);
        let socket = accepted(&mut driver);
        driver.close(CONN, socket);
        driver.receive(CONN, socket);
    }
}

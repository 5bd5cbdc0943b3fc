//! The driver: the only layer that talks to the kernel about sockets.
//!
//! A shard asks for work (`receive`, `send`, `close`) and gets [`Completion`]s from [`Driver::turn`], which is the one
//! place that waits. `uring` is the driver that the hub is built for, `epoll` the one for hosts that forbid io_uring, `sim`
//! the seeded one for tests.
//!
//! Rules that every driver keeps:
//! - one send and one multishot receive at most are under way per connection;
//! - memory given to `send` stays alive in the driver until its completion, whatever becomes of the connection;
//! - a completion names the connection's slot *and* generation, so that a late one can't touch the slot's next owner;
//! - after [`Driver::close`] no completion of that connection follows.

use std::io;
use std::net::IpAddr;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

mod buffers;
pub mod clock;
mod doorbell;
pub mod epoll;
mod flights;
pub mod host;
pub mod listeners;
mod options;
mod queues;
pub mod sim;
mod slots;
mod socket;
mod token;
pub mod uring;

pub use doorbell::Doorbell;

/// The drivers that talk to a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DriverKind {
    /// io_uring: [`uring`].
    #[default]
    Uring,
    /// Readiness and a system call per send and receive: [`epoll`].
    Epoll,
}

impl DriverKind {
    /// Its name in options, metrics and pages.
    pub const fn word(self) -> &'static str {
        match self {
            DriverKind::Uring => "uring",
            DriverKind::Epoll => "epoll",
        }
    }
}

/// A connection's place in its shard: the slot it sits in and which owner of that slot it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnKey {
    /// Index into the shard's table of connections; at most 2^32 - 2.
    pub slot: u32,
    /// Grows by one with every owner of the slot; only the low 24 bits are used.
    pub generation: u32,
}

/// A socket as the driver knows it: a descriptor for `uring` and `epoll`, an index for `sim`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Socket(pub RawFd);

impl Socket {
    /// Stands for the socket of a connection that has none of its own.
    pub const NONE: Socket = Socket(-1);

    /// Whether it is none.
    pub const fn is_none(self) -> bool {
        self.0 < 0
    }
}

/// A buffer lent by the driver with [`Completion::Received`]; goes back with [`Driver::release`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BufferId(pub u16);

/// The time of a turn, read once per turn and handed down to the pure layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// Microseconds of a clock that never goes back.
    pub monotonic_us: u64,
    /// Milliseconds since 1970 UTC.
    pub unix_ms: u64,
}

/// Why a multishot receive ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReceiveEnd {
    /// The peer will send no more.
    Eof,
    /// Asked for with [`Driver::cancel_receive`].
    Cancelled,
    /// The socket failed (errno).
    Error(i32),
}

/// What happened. Small on purpose: a turn may bring thousands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completion {
    /// A listener accepted a socket; the shard owns it now and has to close it.
    Accepted {
        /// Which listener, as numbered by [`Driver::listen`].
        listener: u16,
        /// The new socket.
        socket: Socket,
    },
    /// Bytes arrived; they are in the buffer until it is released.
    Received {
        /// For whom.
        conn: ConnKey,
        /// Where.
        buffer: BufferId,
        /// How many, never 0.
        bytes: u32,
    },
    /// No more `Received` for this connection unless `receive` is called again.
    ReceiveEnded {
        /// Whose.
        conn: ConnKey,
        /// Why.
        end: ReceiveEnd,
    },
    /// The chunk given to [`Driver::send`] was taken by the kernel whole (the driver continues short sends itself),
    /// or the socket failed.
    Sent {
        /// Whose.
        conn: ConnKey,
        /// 0, or the errno.
        error: i32,
    },
    /// Someone rang this shard's [`Doorbell`].
    Doorbell,
}

/// The far end of an accepted socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Peer {
    /// Over TCP.
    Ip(IpAddr, u16),
    /// Over a unix socket.
    Unix,
}

/// Counters that a driver keeps; read by the shard once per second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DriverFigures {
    /// Calls that entered the kernel.
    pub enters: u64,
    /// Completions taken.
    pub completions: u64,
    /// Receives that found no free buffer (they are started again by the driver once buffers came back).
    pub buffer_exhausted: u64,
    /// Accepts that failed (EMFILE, ECONNABORTED, …); accepting goes on by itself.
    pub accept_failures: u64,
    /// Times the submission queue was full and had to be flushed in the middle of a turn.
    pub submission_full: u64,
    /// Microseconds that it waited for something to happen, with nothing to submit.
    pub idle_us: u64,
}

/// What a shard needs from the operating system.
pub trait Driver {
    /// Starts to accept on a bound, listening socket; re-arms by itself after failures. `listener` comes back in
    /// [`Completion::Accepted`]. The driver owns the descriptor and closes it in [`Driver::stop_listening`] and on drop.
    fn listen(&mut self, listener: u16, socket: OwnedFd);

    /// Stops accepting and closes all listeners at once (drain). Sockets accepted already may still be reported.
    fn stop_listening(&mut self);

    /// Starts a multishot receive. Starvation of buffers is handled inside: it is started again when buffers come back.
    fn receive(&mut self, conn: ConnKey, socket: Socket);

    /// Ends the multishot receive; `ReceiveEnded` follows (with what arrived before it still delivered first).
    fn cancel_receive(&mut self, conn: ConnKey, socket: Socket);

    /// Sends a chunk whole. At most one per connection is under way; `chunk` is not empty.
    fn send(&mut self, conn: ConnKey, socket: Socket, chunk: Bytes);

    /// Half-closes: no more will be sent. To be called when no send is under way.
    fn shutdown(&mut self, socket: Socket);

    /// Ends everything under way for this connection and closes the socket. May be called at any time, once; sends still
    /// under way are cancelled, their memory is freed when the kernel has let go of it.
    fn close(&mut self, conn: ConnKey, socket: Socket);

    /// Gives up the socket without closing it, to hand it to someone else. Only when nothing is under way for it.
    fn detach(&mut self, conn: ConnKey, socket: Socket) -> OwnedFd;

    /// Takes over a connected socket that came from elsewhere (the opposite of [`Driver::detach`]).
    fn attach(&mut self, socket: OwnedFd) -> Socket;

    /// Submits all that was asked for, waits until something happened or `wait` is over (`None`: as long as it takes;
    /// zero: not at all), and appends what happened, in order.
    fn turn(&mut self, wait: Option<Duration>, completions: &mut Vec<Completion>) -> io::Result<()>;

    /// The bytes of a received buffer, to be decoded in place.
    fn buffer(&mut self, buffer: BufferId, bytes: u32) -> &mut [u8];

    /// Hands a received buffer back.
    fn release(&mut self, buffer: BufferId);

    /// Who is at the other end.
    fn peer(&self, socket: Socket) -> Peer;

    /// What the kernel has yet to take of the chunk under way; for those who look into a running shard.
    fn sending(&mut self, conn: ConnKey) -> Option<Bytes>;

    /// The time.
    fn now(&self) -> Now;

    /// The bell by which other threads wake this driver out of [`Driver::turn`].
    fn doorbell(&self) -> Arc<Doorbell>;

    /// Counters so far.
    fn figures(&self) -> DriverFigures;
}

//! The driver for hosts where io_uring is forbidden: readiness from epoll, and one system call per send and receive.
//!
//! - A send is tried at once, at the turn's begin. Only what the kernel does not take is waited for with EPOLLOUT.
//! - Sockets are watched edge-triggered: one `epoll_ctl` when a connection begins, and none at its end. What became
//!   readable is remembered in the table of connections, and read in the order in which it did, so much per socket and turn.
//! - A receive that fills less than its buffer has emptied the socket (epoll(7), "Questions and answers", 9), which saves
//!   the one that would be told EAGAIN. Not so once the peer has ended.
//! - Sockets are as they come, blocking or not: every call says MSG_DONTWAIT.
//! - An error of one socket is that connection's completion. [`Driver::turn`] fails only when the epoll set is broken.

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::os::fd::{BorrowedFd, FromRawFd as _, IntoRawFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::clock::{self, monotonic_us};
use super::listeners::{Listener, Spare};
use super::slots::Owner;
use super::socket::{self, half_close};
use super::token::{Operation, Token};
use super::{BufferId, Completion, ConnKey, Doorbell, Driver, DriverFigures, Now, Peer, ReceiveEnd, Socket};

mod accepting;
mod poller;
mod pool;
mod table;

use poller::{Event, EventFlags, Poller};
use pool::Pool;
use table::{Connection, Receive, Table, Watched};

/// Sizes of the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpollOptions {
    /// Number of receive buffers: a power of two up to 32 768.
    pub buffers: u16,
    /// Size of a receive buffer. Longer messages arrive in several.
    pub buffer_bytes: u32,
}

impl Default for EpollOptions {
    fn default() -> EpollOptions {
        EpollOptions { buffers: 1024, buffer_bytes: 4096 }
    }
}

/// Buffers that one socket may fill in a turn; then it is the others' turn.
const RECEIVES_PER_TURN: usize = 4;
/// How late the kernel may wake a shard, in nanoseconds, to wake others with it. By default that is longer (50 µs) than the
/// shortest waits of a shard.
const TIMER_SLACK_NS: libc::c_ulong = 1000;

const RECEIVING: EventFlags = EventFlags::IN.union(EventFlags::RDHUP).union(EventFlags::ET);
const ENDED: EventFlags = EventFlags::RDHUP.union(EventFlags::HUP).union(EventFlags::ERR);

/// A shard's epoll set. Belongs to the thread that made it.
pub struct Epoll {
    poller: Poller,
    pool: Pool,
    table: Table,
    listeners: Vec<Listener>,
    spare: Spare,
    /// Sends that were not tried yet.
    sends: Vec<ConnKey>,
    /// Connections whose sockets are read next, in this order. Each is in here once at most.
    due: VecDeque<ConnKey>,
    /// Completions that came about without the kernel.
    ready: Vec<Completion>,
    doorbell: Arc<Doorbell>,
    figures: DriverFigures,
}

impl Epoll {
    /// To be called on the thread that will use it. The error keeps the kernel's errno: EINVAL for bad sizes.
    pub fn new(options: EpollOptions) -> io::Result<Epoll> {
        let doorbell = Arc::new(Doorbell::eventfd()?);
        let poller = Poller::new()?;
        if let Some(descriptor) = doorbell.descriptor() {
            // Edge-triggered, every ring of the bell is told whether or not its counter was read; so it is never read.
            let token = Token::of_index(Operation::Doorbell, 0);
            poller.add(descriptor, token, EventFlags::IN | EventFlags::ET)?;
        }
        // Where a filter forbids it, short waits are longer and nothing else is different.
        // SAFETY: this operation takes one number and no pointers.
        unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, TIMER_SLACK_NS) };
        Ok(Epoll {
            poller,
            pool: Pool::new(options.buffers, options.buffer_bytes)?,
            table: Table::default(),
            listeners: Vec::new(),
            spare: Spare::new(),
            sends: Vec::new(),
            due: VecDeque::new(),
            ready: Vec::new(),
            doorbell,
            figures: DriverFigures::default(),
        })
    }

    // ---- sending ----

    fn try_sends(&mut self, completions: &mut Vec<Completion>) {
        let mut sends = std::mem::take(&mut self.sends);
        for conn in sends.drain(..) {
            self.try_send(conn, completions);
        }
        self.sends = sends;
    }

    #[inline]
    fn try_send(&mut self, conn: ConnKey, completions: &mut Vec<Completion>) {
        let Some(owner) = self.table.current(conn) else { return };
        let socket = owner.socket;
        let Some(chunk) = owner.sending.as_mut() else { return };
        let error = loop {
            self.figures.enters += 1;
            match rustix::net::send(borrow(&socket), chunk, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(taken) if taken == chunk.len() => break 0,
                // A socket that takes nothing and has no error either takes no more.
                Ok(0) => break libc::EPIPE,
                // So much there was room for (epoll(7), as above).
                Ok(taken) => {
                    chunk.advance(taken);
                    match block(&self.poller, conn, owner) {
                        Ok(()) => return,
                        Err(error) => break errno(&error),
                    }
                }
                Err(Errno::AGAIN) => match block(&self.poller, conn, owner) {
                    Ok(()) => return,
                    Err(error) => break errno(&error),
                },
                Err(Errno::INTR) => {}
                Err(error) => break error.raw_os_error(),
            }
        };
        owner.sending = None;
        owner.is_blocked = false;
        completions.push(Completion::Sent { conn, error });
    }

    // ---- receiving ----

    /// Reads those that are due now. Who has more then is due again, behind the others; where there are no buffers left, the
    /// rest is first in the next turn.
    fn read_due(&mut self, completions: &mut Vec<Completion>) {
        for _ in 0..self.due.len() {
            if self.pool.is_empty() {
                return self.note_starved(completions);
            }
            let Some(conn) = self.due.pop_front() else { return };
            if self.read(conn, completions) {
                self.due.push_back(conn);
            }
        }
    }

    /// Those that are due find no buffer. Who wanted an end has it without what is left in the socket.
    fn note_starved(&mut self, completions: &mut Vec<Completion>) {
        for conn in &self.due {
            let Some(owner) = self.table.current(*conn) else { continue };
            match owner.receive {
                Receive::Armed if !owner.is_starved => {
                    owner.is_starved = true;
                    self.figures.buffer_exhausted += 1;
                }
                Receive::Cancelling => {
                    owner.receive = Receive::Idle;
                    completions.push(Completion::ReceiveEnded { conn: *conn, end: ReceiveEnd::Cancelled });
                }
                Receive::Armed | Receive::Idle => {}
            }
        }
    }

    /// True if there is more, or might be.
    #[inline]
    fn read(&mut self, conn: ConnKey, completions: &mut Vec<Completion>) -> bool {
        let Some(owner) = self.table.current(conn) else { return false };
        owner.is_due = false;
        if owner.receive == Receive::Idle {
            return false;
        }
        owner.is_starved = false;
        let mut end = None;
        for _ in 0..RECEIVES_PER_TURN {
            let Some(buffer) = self.pool.next() else { break };
            self.figures.enters += 1;
            match rustix::net::recv(borrow(&owner.socket), buffer, RecvFlags::DONTWAIT) {
                Ok((0, _)) => end = Some(ReceiveEnd::Eof),
                Ok((bytes, _)) => {
                    owner.is_readable = owner.has_ended || bytes == self.pool.buffer_bytes();
                    if let Some(buffer) = self.pool.lend(bytes) {
                        completions.push(Completion::Received { conn, buffer, bytes: bytes as u32 });
                    }
                }
                Err(Errno::AGAIN) => owner.is_readable = false,
                Err(Errno::INTR) => {}
                Err(error) => end = Some(ReceiveEnd::Error(error.raw_os_error())),
            }
            if end.is_some() || !owner.is_readable {
                break;
            }
        }
        // What is left stays in the socket for whoever gets it next.
        if end.is_none() && owner.receive == Receive::Cancelling {
            end = Some(ReceiveEnd::Cancelled);
        }
        if let Some(end) = end {
            owner.receive = Receive::Idle;
            completions.push(Completion::ReceiveEnded { conn, end });
            return false;
        }
        owner.is_due = owner.is_readable;
        owner.is_due
    }

    // ---- events ----

    fn poll(&mut self, wait: Option<Duration>, completions: &mut Vec<Completion>) -> io::Result<()> {
        self.figures.enters += 1;
        let waits = wait != Some(Duration::ZERO);
        let began_us = if waits { monotonic_us() } else { 0 };
        self.poller.wait(wait)?;
        if waits {
            self.figures.idle_us += monotonic_us().saturating_sub(began_us);
        }
        let mut index = 0;
        while let Some(event) = self.poller.event(index) {
            index += 1;
            self.note(event, completions);
        }
        Ok(())
    }

    #[inline]
    fn note(&mut self, event: Event, completions: &mut Vec<Completion>) {
        // The record is packed: copies, not references.
        let (flags, token) = ({ event.flags }, Token({ event.data }.u64()));
        match token.operation() {
            Some(Operation::Receive) => self.note_socket(token.conn(), flags, completions),
            Some(Operation::Accept) => self.accept(token.index(), completions),
            Some(Operation::Doorbell) => completions.push(Completion::Doorbell),
            _ => debug_assert!(false, "an event of nothing that was watched"),
        }
    }

    #[inline]
    fn note_socket(&mut self, conn: ConnKey, flags: EventFlags, completions: &mut Vec<Completion>) {
        let Some(owner) = self.table.current(conn) else { return };
        let has_ended = flags.intersects(ENDED);
        if has_ended || flags.contains(EventFlags::IN) {
            owner.is_readable = true;
            owner.has_ended |= has_ended;
            if owner.receive != Receive::Idle && !std::mem::replace(&mut owner.is_due, true) {
                self.due.push_back(conn);
            }
        }
        if owner.is_blocked && (has_ended || flags.contains(EventFlags::OUT)) {
            owner.is_blocked = false;
            self.try_send(conn, completions);
        } else if owner.watched == Watched::Both && flags.contains(EventFlags::OUT) {
            // It was of use as long as sends were blocked. A unix socket tells it with everything that its peer reads.
            if self.poller.modify(owner.socket.0, receive_token(conn), RECEIVING).is_ok() {
                owner.watched = Watched::Receiving;
            }
        }
    }
}

impl Driver for Epoll {
    fn listen(&mut self, listener: u16, socket: OwnedFd) {
        self.listeners.push(Listener::new(listener, socket));
        self.watch_listener(self.listeners.len() - 1);
    }

    fn stop_listening(&mut self) {
        for listener in &mut self.listeners {
            let is_watched = listener.paused_until_us.is_none();
            let Some(descriptor) = listener.stop() else { continue };
            // Shards that share a listener have duplicates of it, which would keep it in the set.
            if is_watched {
                self.poller.remove(descriptor);
            }
            close(Socket(descriptor));
        }
    }

    #[inline]
    fn receive(&mut self, conn: ConnKey, socket: Socket) {
        let owner = self.table.open(conn, socket);
        debug_assert_eq!(owner.receive, Receive::Idle, "two receives at once");
        if owner.watched == Watched::No {
            // What is there already is told by the next wait.
            if let Err(error) = self.poller.add(socket.0, receive_token(conn), RECEIVING) {
                let end = ReceiveEnd::Error(errno(&error));
                self.ready.push(Completion::ReceiveEnded { conn, end });
                return;
            }
            owner.watched = Watched::Receiving;
        }
        owner.receive = Receive::Armed;
        if owner.is_readable && !std::mem::replace(&mut owner.is_due, true) {
            self.due.push_back(conn);
        }
    }

    fn cancel_receive(&mut self, conn: ConnKey, _socket: Socket) {
        let Some(owner) = self.table.current(conn) else { return };
        if owner.receive != Receive::Armed {
            return;
        }
        if std::mem::take(&mut owner.is_starved) || self.pool.is_empty() {
            owner.receive = Receive::Idle;
            self.ready.push(Completion::ReceiveEnded { conn, end: ReceiveEnd::Cancelled });
            return;
        }
        owner.receive = Receive::Cancelling;
        if !std::mem::replace(&mut owner.is_due, true) {
            self.due.push_back(conn);
        }
    }

    #[inline]
    fn send(&mut self, conn: ConnKey, socket: Socket, chunk: Bytes) {
        debug_assert!(!chunk.is_empty());
        let owner = self.table.open(conn, socket);
        debug_assert!(owner.sending.is_none(), "two sends at once");
        owner.sending = Some(chunk);
        self.sends.push(conn);
    }

    fn shutdown(&mut self, socket: Socket) {
        half_close(socket, Shutdown::Write);
    }

    fn close(&mut self, conn: ConnKey, socket: Socket) {
        // The kernel has copied what it took, and takes the socket out of the set itself.
        drop(self.table.close(conn));
        close(socket);
    }

    fn detach(&mut self, conn: ConnKey, socket: Socket) -> OwnedFd {
        if let Some(owner) = self.table.close(conn) {
            let under_way = owner.receive != Receive::Idle || owner.sending.is_some();
            debug_assert!(!under_way, "a socket was detached while something was under way");
            if owner.watched != Watched::No {
                self.poller.remove(socket.0);
            }
        }
        // SAFETY: the shard owned the descriptor through this `Socket` and gives it up with this call.
        unsafe { OwnedFd::from_raw_fd(socket.0) }
    }

    fn attach(&mut self, socket: OwnedFd) -> Socket {
        Socket(socket.into_raw_fd())
    }

    fn turn(&mut self, wait: Option<Duration>, completions: &mut Vec<Completion>) -> io::Result<()> {
        let before = completions.len();
        for completion in std::mem::take(&mut self.ready) {
            // The connection may have been closed since.
            if let Completion::ReceiveEnded { conn, .. } = completion
                && self.table.current(conn).is_some()
            {
                completions.push(completion);
            }
        }
        self.try_sends(completions);
        let wait = self.resume(wait);
        let has_work = completions.len() > before || (!self.due.is_empty() && !self.pool.is_empty());
        self.poll(if has_work { Some(Duration::ZERO) } else { wait }, completions)?;
        self.read_due(completions);
        self.figures.completions += (completions.len() - before) as u64;
        Ok(())
    }

    #[inline]
    fn buffer(&mut self, buffer: BufferId, bytes: u32) -> &mut [u8] {
        self.pool.bytes(buffer, bytes)
    }

    #[inline]
    fn release(&mut self, buffer: BufferId) {
        self.pool.release(buffer);
    }

    fn sending(&mut self, conn: ConnKey) -> Option<Bytes> {
        self.table.current(conn)?.sending.clone()
    }

    fn peer(&self, socket: Socket) -> Peer {
        socket::peer(socket)
    }

    fn now(&self) -> Now {
        clock::now()
    }

    fn doorbell(&self) -> Arc<Doorbell> {
        self.doorbell.clone()
    }

    fn figures(&self) -> DriverFigures {
        self.figures
    }
}

impl Drop for Epoll {
    /// Closes all sockets that are left.
    fn drop(&mut self) {
        self.stop_listening();
        for (conn, socket) in self.table.all() {
            self.close(conn, socket);
        }
    }
}

/// Waits until there is room to send again.
fn block(poller: &Poller, conn: ConnKey, owner: &mut Owner<Connection>) -> io::Result<()> {
    let (descriptor, token, both) = (owner.socket.0, receive_token(conn), RECEIVING | EventFlags::OUT);
    match owner.watched {
        Watched::No => poller.add(descriptor, token, both)?,
        Watched::Receiving => poller.modify(descriptor, token, both)?,
        Watched::Both => {}
    }
    owner.watched = Watched::Both;
    owner.is_blocked = true;
    Ok(())
}

fn receive_token(conn: ConnKey) -> Token {
    Token::of_connection(Operation::Receive, conn)
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

/// The descriptor is gone in any case (close(2), "Dealing with error returns").
fn close(socket: Socket) {
    // SAFETY: the shard owned the descriptor through this `Socket` and gives it up with this call.
    drop(unsafe { OwnedFd::from_raw_fd(socket.0) });
}

fn borrow(socket: &Socket) -> BorrowedFd<'_> {
    // SAFETY: the shard owns the socket, and it is not closed while its slot names it.
    unsafe { BorrowedFd::borrow_raw(socket.0) }
}

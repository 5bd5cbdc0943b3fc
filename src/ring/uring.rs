//! The driver on io_uring (Linux 6.1 or newer).
//!
//! - One enter per turn submits everything and waits; a second one only when the submission queue runs full.
//! - Sockets are plain descriptors. Accepting and receiving are multishot; received bytes lie in a ring of buffers.
//! - [`Driver::close`] shuts a socket down if the kernel still has something of it, which makes that end by itself, and
//!   queues the close behind whatever was queued before. The slot is free at once: completions that come later carry the
//!   old generation and end in this file.
//! - An error of one socket is that connection's completion. [`Driver::turn`] fails only when the ring itself is broken.

use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::net::Shutdown;
use std::os::fd::{FromRawFd as _, IntoRawFd as _, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use io_uring::{cqueue, opcode, squeue, types};

use super::buffers::{self, Buffers};
use super::clock::{self, monotonic_us};
use super::flights::{Flights, Receive};
use super::listeners::{Listener, PAUSE_US, Remedy, Spare};
pub use super::options::UringOptions;
use super::queues::{Queues, Waiting};
use super::socket::{self, half_close};
use super::token::{Operation, Token};
use super::{BufferId, Completion, ConnKey, Doorbell, Driver, DriverFigures, Now, Peer, ReceiveEnd, Socket};

/// How long a driver that is dropped waits for the kernel to let go of its memory.
const DROP_PATIENCE: Duration = Duration::from_secs(1);

/// A shard's ring. Belongs to the thread that made it.
pub struct Uring {
    queues: Queues,
    /// Manually, since they outlive the driver if the kernel doesn't let go of them.
    buffers: ManuallyDrop<Buffers>,
    flights: ManuallyDrop<Flights>,
    listeners: Vec<Listener>,
    spare: Spare,
    /// Receives that found no free buffer, oldest first. At most one per connection.
    starved: VecDeque<ConnKey>,
    /// Completions that came about without the kernel.
    ready: Vec<Completion>,
    doorbell: Arc<Doorbell>,
    /// Sends and receives that the kernel has.
    sends: usize,
    receives: usize,
    figures: DriverFigures,
}

impl Uring {
    /// To be called on the thread that will use it. The error keeps the kernel's errno: EPERM (io_uring switched off, or
    /// forbidden by a container's seccomp filter), ENOSYS (no io_uring), EINVAL (kernel too old, or bad sizes), ENOMEM.
    pub fn new(options: UringOptions) -> io::Result<Uring> {
        let waiting = Waiting { busy_poll_us: options.busy_poll_us, min_wait_us: options.min_wait_us };
        let queues = Queues::new(options.entries, options.completions, waiting)?;
        let buffers = Buffers::new(&queues.submitter(), options.buffers, options.buffer_bytes)?;
        let mut uring = Uring {
            queues,
            buffers: ManuallyDrop::new(buffers),
            flights: ManuallyDrop::new(Flights::default()),
            listeners: Vec::new(),
            spare: Spare::new(),
            starved: VecDeque::new(),
            ready: Vec::new(),
            doorbell: Arc::new(Doorbell::eventfd()?),
            sends: 0,
            receives: 0,
            figures: DriverFigures::default(),
        };
        uring.arm_doorbell();
        Ok(uring)
    }

    #[inline]
    fn push(&mut self, entry: squeue::Entry, token: Token) {
        // SAFETY: of all entries made in this file only sends point to memory, and `arm_send` says why that stays.
        unsafe { self.queues.push(&entry.user_data(token.0)) }
    }

    /// `chunk` is the front of what the connection's flight keeps alive.
    #[inline]
    fn arm_send(&mut self, conn: ConnKey, socket: Socket, chunk: *const u8, bytes: usize) {
        // The memory belongs to a `Bytes` in `flights`, which is moved among the orphans when the connection is closed, and
        // dropped when the send's completion was taken.
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let entry =
            opcode::Send::new(types::Fd(socket.0), chunk, bytes).flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL).build();
        self.push(entry, Token::of_connection(Operation::Send, conn));
        self.sends += 1;
    }

    #[inline]
    fn arm_receive(&mut self, conn: ConnKey, socket: Socket) {
        let entry = opcode::RecvMulti::new(types::Fd(socket.0), buffers::GROUP).build();
        self.push(entry, Token::of_connection(Operation::Receive, conn));
        self.receives += 1;
    }

    fn arm_accept(&mut self, index: usize) {
        let Some(descriptor) = self.listeners.get(index).and_then(Listener::descriptor) else { return };
        let entry = opcode::AcceptMulti::new(types::Fd(descriptor)).flags(libc::SOCK_CLOEXEC).build();
        self.push(entry, Token::of_index(Operation::Accept, index as u32));
    }

    fn arm_cancel(&mut self, conn: ConnKey) {
        let receive = Token::of_connection(Operation::Receive, conn);
        let entry = opcode::AsyncCancel::new(receive.0).build().flags(squeue::Flags::SKIP_SUCCESS);
        self.push(entry, Token::of_connection(Operation::Cancel, conn));
    }

    fn arm_close(&mut self, descriptor: RawFd) {
        let entry = opcode::Close::new(types::Fd(descriptor)).build().flags(squeue::Flags::SKIP_SUCCESS);
        self.push(entry, Token::of_index(Operation::Close, 0));
    }

    /// A multishot poll tells of every ring of the bell, whether or not its counter was read; so it is never read in
    /// between, which saves a system call each.
    fn arm_doorbell(&mut self) {
        let Some(descriptor) = self.doorbell.descriptor() else { return };
        let entry = opcode::PollAdd::new(types::Fd(descriptor), libc::POLLIN as u32).multi(true).build();
        self.push(entry, Token::of_index(Operation::Doorbell, 0));
    }

    /// Starts again what rested, and shortens the wait to the next such moment.
    fn resume(&mut self, mut wait: Option<Duration>) -> Option<Duration> {
        if !self.ready.is_empty() {
            wait = Some(Duration::ZERO);
        }
        if !self.starved.is_empty() && self.feed() {
            wait = Some(Duration::ZERO);
        }
        if self.listeners.iter().any(|listener| listener.paused_until_us.is_some()) {
            let now_us = monotonic_us();
            for index in 0..self.listeners.len() {
                let Some(until_us) = self.listeners[index].paused_until_us else { continue };
                if until_us <= now_us {
                    self.listeners[index].paused_until_us = None;
                    self.arm_accept(index);
                } else {
                    let rest = Duration::from_micros(until_us - now_us);
                    wait = Some(wait.map_or(rest, |wait| wait.min(rest)));
                }
            }
        }
        wait
    }

    /// Starts as many starved receives as there are buffers. True if some of both are left: a receive takes a buffer when
    /// it has something to receive, which shows in this turn, so that the next one can start more.
    fn feed(&mut self) -> bool {
        for _ in 0..self.buffers.free() {
            let Some(conn) = self.starved.pop_front() else { return false };
            let Some(flight) = self.flights.current(conn) else { continue };
            if flight.receive == Receive::Starved {
                flight.receive = Receive::Armed;
                let socket = flight.socket;
                self.arm_receive(conn, socket);
            }
        }
        !self.starved.is_empty() && self.buffers.free() > 0
    }

    #[inline]
    fn complete(&mut self, entry: &cqueue::Entry, completions: &mut Vec<Completion>) {
        let token = Token(entry.user_data());
        match token.operation() {
            Some(Operation::Send) => self.sent(token, entry.result(), completions),
            Some(Operation::Receive) => self.received(token, entry.result(), entry.flags(), completions),
            Some(Operation::Accept) => self.accepted(token.index(), entry.result(), entry.flags(), completions),
            Some(Operation::Doorbell) => {
                completions.push(Completion::Doorbell);
                if !cqueue::more(entry.flags()) {
                    self.doorbell.drain();
                    self.arm_doorbell();
                }
            }
            Some(Operation::Cancel) => self.cancel_failed(token.conn()),
            // A close reports failures only; the descriptor is gone in any case (close(2), "Dealing with error returns").
            Some(Operation::Close) => debug_assert_ne!(entry.result(), -libc::EBADF, "a descriptor was closed twice"),
            None => debug_assert!(false, "a completion of nothing that was asked for"),
        }
    }

    #[inline]
    fn sent(&mut self, token: Token, result: i32, completions: &mut Vec<Completion>) {
        self.sends -= 1;
        let conn = token.conn();
        let Some((socket, chunk)) = self.flights.sending(conn) else {
            self.flights.drop_orphan(token);
            return;
        };
        let taken = usize::try_from(result).unwrap_or(0);
        if taken < chunk.len() && (taken > 0 || result == -libc::EINTR) {
            chunk.advance(taken);
            let (rest, bytes) = (chunk.as_ptr(), chunk.len());
            self.arm_send(conn, socket, rest, bytes);
            return;
        }
        self.flights.sent(conn);
        // Nothing taken and no error either can only be a socket that takes no more.
        let error = if result > 0 { 0 } else { (-result).max(if result == 0 { libc::EPIPE } else { 0 }) };
        completions.push(Completion::Sent { conn, error });
    }

    #[inline]
    fn received(&mut self, token: Token, result: i32, flags: u32, completions: &mut Vec<Completion>) {
        let conn = token.conn();
        let more = cqueue::more(flags);
        if !more {
            self.receives -= 1;
        }
        let buffer = cqueue::buffer_select(flags);
        let Some(flight) = self.flights.current(conn) else {
            if let Some(buffer) = buffer {
                self.buffers.give_back(buffer);
            }
            return;
        };
        if let Some(buffer) = buffer {
            if result > 0 {
                self.buffers.lend(buffer, result as u32);
                completions.push(Completion::Received { conn, buffer: BufferId(buffer), bytes: result as u32 });
            } else {
                self.buffers.give_back(buffer);
            }
        }
        if more {
            return;
        }
        let (socket, cancelling) = (flight.socket, flight.receive == Receive::Cancelling);
        let end = match -result {
            0 => ReceiveEnd::Eof,
            libc::ECANCELED => ReceiveEnd::Cancelled,
            libc::ENOBUFS if !cancelling => {
                flight.receive = Receive::Starved;
                self.starved.push_back(conn);
                self.figures.buffer_exhausted += 1;
                return;
            }
            errno if errno > 0 && errno != libc::EINTR && errno != libc::ENOBUFS => ReceiveEnd::Error(errno),
            _ if cancelling => ReceiveEnd::Cancelled,
            // The kernel ends a multishot receive at times for reasons of its own, such as a full completion queue.
            _ => {
                self.arm_receive(conn, socket);
                return;
            }
        };
        flight.receive = Receive::Idle;
        completions.push(Completion::ReceiveEnded { conn, end });
    }

    fn accepted(&mut self, index: usize, result: i32, flags: u32, completions: &mut Vec<Completion>) {
        let Some(listener) = self.listeners.get_mut(index) else { return };
        if result >= 0 {
            completions.push(Completion::Accepted { listener: listener.number, socket: Socket(result) });
        } else if listener.descriptor().is_some() {
            self.figures.accept_failures += 1;
            let remedy = Remedy::of(-result);
            if remedy == Remedy::Shed {
                self.figures.accept_failures += u64::from(listener.shed(&mut self.spare));
            }
            if remedy != Remedy::Again {
                listener.paused_until_us = Some(monotonic_us() + PAUSE_US);
                return;
            }
        }
        if !cqueue::more(flags) {
            self.arm_accept(index);
        }
    }

    /// The receive was not found. Either it has ended, or it was between two rounds just then: ask again.
    fn cancel_failed(&mut self, conn: ConnKey) {
        if self.flights.current(conn).is_some_and(|flight| flight.receive == Receive::Cancelling) {
            self.arm_cancel(conn);
        }
    }

    /// Enters once and takes what is there.
    fn step(&mut self, wait: Option<Duration>, completions: &mut Vec<Completion>) -> io::Result<()> {
        self.queues.enter(wait)?;
        while let Some(entry) = self.queues.pop() {
            self.figures.completions += 1;
            self.complete(&entry, completions);
        }
        Ok(())
    }
}

impl Driver for Uring {
    fn listen(&mut self, listener: u16, socket: OwnedFd) {
        self.listeners.push(Listener::new(listener, socket));
        self.arm_accept(self.listeners.len() - 1);
    }

    fn stop_listening(&mut self) {
        for index in 0..self.listeners.len() {
            if let Some(descriptor) = self.listeners[index].stop() {
                self.arm_close(descriptor);
            }
        }
    }

    #[inline]
    fn receive(&mut self, conn: ConnKey, socket: Socket) {
        let flight = self.flights.open(conn, socket);
        debug_assert_eq!(flight.receive, Receive::Idle, "two receives at once");
        flight.receive = Receive::Armed;
        self.arm_receive(conn, socket);
    }

    fn cancel_receive(&mut self, conn: ConnKey, _socket: Socket) {
        let Some(flight) = self.flights.current(conn) else { return };
        match flight.receive {
            Receive::Armed => {
                flight.receive = Receive::Cancelling;
                self.arm_cancel(conn);
            }
            Receive::Starved => {
                flight.receive = Receive::Idle;
                self.starved.retain(|starved| *starved != conn);
                self.ready.push(Completion::ReceiveEnded { conn, end: ReceiveEnd::Cancelled });
            }
            Receive::Idle | Receive::Cancelling => {}
        }
    }

    #[inline]
    fn send(&mut self, conn: ConnKey, socket: Socket, chunk: Bytes) {
        debug_assert!(!chunk.is_empty());
        let (start, bytes) = (chunk.as_ptr(), chunk.len());
        self.flights.send(conn, socket, chunk);
        self.arm_send(conn, socket, start, bytes);
    }

    fn shutdown(&mut self, socket: Socket) {
        half_close(socket, Shutdown::Write);
    }

    fn close(&mut self, conn: ConnKey, socket: Socket) {
        if self.flights.close(conn) {
            half_close(socket, Shutdown::Both);
        }
        self.arm_close(socket.0);
    }

    fn detach(&mut self, conn: ConnKey, socket: Socket) -> OwnedFd {
        let under_way = self.flights.close(conn);
        debug_assert!(!under_way, "a socket was detached while something was under way");
        // SAFETY: the shard owned the descriptor through this `Socket` and gives it up with this call.
        unsafe { OwnedFd::from_raw_fd(socket.0) }
    }

    fn attach(&mut self, socket: OwnedFd) -> Socket {
        Socket(socket.into_raw_fd())
    }

    fn turn(&mut self, wait: Option<Duration>, completions: &mut Vec<Completion>) -> io::Result<()> {
        let wait = self.resume(wait);
        for completion in std::mem::take(&mut self.ready) {
            // The connection may have been closed since.
            if let Completion::ReceiveEnded { conn, .. } = completion
                && self.flights.current(conn).is_some()
            {
                completions.push(completion);
            }
        }
        self.step(wait, completions)
    }

    #[inline]
    fn buffer(&mut self, buffer: BufferId, bytes: u32) -> &mut [u8] {
        self.buffers.bytes(buffer, bytes)
    }

    #[inline]
    fn release(&mut self, buffer: BufferId) {
        self.buffers.release(buffer);
    }

    fn sending(&mut self, conn: ConnKey) -> Option<Bytes> {
        self.flights.sending(conn).map(|(_, chunk)| chunk.clone())
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
        let Queues { enters, submission_full, idle_us, .. } = self.queues;
        DriverFigures { enters, submission_full, idle_us, ..self.figures }
    }
}

impl Drop for Uring {
    /// Closes all sockets that are left, and frees what the kernel works on only once it has let go.
    fn drop(&mut self) {
        self.stop_listening();
        for (conn, socket) in self.flights.all() {
            self.close(conn, socket);
        }
        let until = Instant::now() + DROP_PATIENCE;
        let mut unheard = Vec::new();
        loop {
            let idle = self.sends == 0 && self.receives == 0;
            let wait = if idle { Duration::ZERO } else { Duration::from_millis(10) };
            let stepped = self.step(Some(wait), &mut unheard);
            for completion in unheard.drain(..) {
                if let Completion::Accepted { socket, .. } = completion {
                    self.arm_close(socket.0);
                }
            }
            if self.sends == 0 && self.receives == 0 {
                // SAFETY: neither field is used again, and the kernel has nothing under way that points into them.
                unsafe {
                    ManuallyDrop::drop(&mut self.buffers);
                    ManuallyDrop::drop(&mut self.flights);
                }
                return;
            }
            if stepped.is_err() || Instant::now() > until {
                return;
            }
        }
    }
}

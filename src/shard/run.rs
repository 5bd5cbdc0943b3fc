//! The loop of a shard.
//!
//! One turn, in the order of what waits on what:
//!
//! 1. *Completions*: what the kernel did since. Receives are decoded in place, their buffers go back at once.
//! 2. *Mesh*: what other shards and the handle sent. Joins and publishes of this turn's receives are among it where this
//!    shard is home, so that they are part of the same batch. What the journal has by now goes on its way here too.
//! 3. *Time*: heartbeats, deadlines, tokens.
//! 4. *Seal*: each room's events of the turn become one batch and one delivery per shard.
//! 5. *Fan out*: a crowd is served in slices of `shards.turn_deliveries_max`, and others get their turn in between.
//! 6. *Flush*: one send per dirty connection.
//! 7. *Mesh out*: one batch and one ring of the bell per shard, and what durable rooms have for the journal.
//!
//! Then the driver enters the kernel once: it submits all that and, if nothing is left to do, waits.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::connection::Phase;
use super::request::{ForDriver, Request};
use super::state::{Action, Start, State};
use super::variants::{self, Variants};
use crate::control::{Adopted, ConnectionOrigin};
use crate::hub::name::{RoomName, ShardId};
use crate::hub::outbox::Lane;
use crate::hub::recorder::What;
use crate::hub::shared_locks::NotedLock;
use crate::ring::{Completion, ConnKey, Driver, Peer, ReceiveEnd};
use crate::wire::refusal::Refusal;

/// Messages of one other shard, and requests of the handle, that are taken in one turn; the rest waits for the next.
const BATCHES_PER_TURN: usize = 64;
const REQUESTS_PER_TURN: usize = 1024;
/// How long a shard waits at most when it has nothing to do, so that its figures stay fresh.
const IDLE_WAIT: Duration = Duration::from_millis(1000);

/// How often a draining shard looks whether the others are empty.
const DRAIN_WAIT: Duration = Duration::from_millis(50);

/// A shard with its driver.
pub struct Shard<D: Driver> {
    driver: D,
    state: State,
    completions: Vec<Completion>,
    /// When this turn began, and how long the driver had waited by then.
    began_us: u64,
    idle_us: u64,
}

/// What a shard holds for clients beside their connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeftOver {
    /// Ids of sessions of Engine.IO.
    pub engines: usize,
    /// Claims of connections that have gone.
    pub orphans: usize,
    /// Client ids.
    pub clients: usize,
    /// Users.
    pub users: usize,
    /// Addresses.
    pub peers: usize,
}

impl<D: Driver> Shard<D> {
    /// A shard; it listens once [`Shard::listen`] was called and works when [`Shard::turn`] is.
    pub fn new(driver: D, start: Start) -> Shard<D> {
        let state = State::new(start, driver.now());
        let (began_us, idle_us) = (state.now.monotonic_us, driver.figures().idle_us);
        Shard { driver, state, completions: Vec::with_capacity(1024), began_us, idle_us }
    }

    /// Accepts connections from a listening socket.
    pub fn listen(&mut self, listener: u16, socket: OwnedFd) {
        self.driver.listen(listener, socket);
    }

    /// What is left of clients; for tests, which look for leaks with it.
    pub fn left_over(&self) -> LeftOver {
        let State { engines, orphans, core, .. } = &self.state;
        let (clients, users, peers) = core.directory().len();
        LeftOver { engines: engines.len(), orphans: orphans.len(), clients, users, peers }
    }

    /// The locks that it holds for sessions (true), or not any more, since the last call; for tests, where no other nodes are
    /// told of them.
    pub fn noted_locks(&mut self) -> Vec<(RoomName, NotedLock, bool)> {
        self.state.core.take_noted_locks()
    }

    /// Turns until a drain or stop is over.
    pub fn run(&mut self) -> io::Result<()> {
        while self.turn()? {}
        Ok(())
    }

    /// One turn. False where the shard has ended.
    pub fn turn(&mut self) -> io::Result<bool> {
        let wait = self.wait();
        self.completions.clear();
        self.driver.turn(wait, &mut self.completions)?;
        self.driver.doorbell().wake();
        self.state.now = self.driver.now();
        self.state.core.recorder.turn(self.state.now.monotonic_us);
        self.state.deflating.begin_turn();
        self.measure();

        self.take_completions();
        self.gather()?;
        self.state.drain_local();
        self.take_messages();
        self.state.look_at_journal();
        self.state.look_at_broker();
        self.state.tick();
        self.act();
        self.state.core.seal_all();
        self.fan_out();
        self.flush();
        self.act();
        self.send_messages();
        self.state.send_to_journal();
        self.state.send_to_broker();
        self.state.report_rooms();
        self.count();
        Ok(!self.state.is_done())
    }

    /// How long the driver may wait. The bell is told first that this shard is about to sleep, then the queues are looked
    /// into once more, so that no push goes unnoticed.
    fn wait(&mut self) -> Option<Duration> {
        let state = &self.state;
        if state.core.has_deliveries() || !state.dirty.is_empty() {
            return Some(Duration::ZERO);
        }
        self.driver.doorbell().sleep();
        let has_news = state.broker.as_ref().is_some_and(|broker| broker.has_told(state.me));
        if has_news || state.mesh.has_work(state.me) {
            return Some(Duration::ZERO);
        }
        let now_ms = state.now_ms();
        let due_ms = [state.timers.next_ms(), state.core.due_ms()].into_iter().flatten().min();
        let until_due = due_ms.map(|due_ms| Duration::from_millis(due_ms.saturating_sub(now_ms)));
        // What another shard could not take is tried again soon.
        let retry = state.has_backlog.then_some(Duration::from_millis(1));
        // Nobody rings when another shard's last connection is gone, which ends this one.
        let drained = state.drain.is_some().then_some(DRAIN_WAIT);
        [until_due, retry, drained, Some(IDLE_WAIT)].into_iter().flatten().min()
    }

    /// Events on their way to a crowd wait for those right behind them, since one send with both costs each member half as
    /// much as two. The wait is short beside the time that the sends will take.
    fn gather(&mut self) -> io::Result<()> {
        for _ in 0..GATHERS_PER_TURN {
            if self.state.core.has_deliveries() || self.state.core.deliveries_open() < CROWD {
                return Ok(());
            }
            self.completions.clear();
            self.driver.turn(Some(GATHER_WAIT), &mut self.completions)?;
            if self.completions.is_empty() {
                return Ok(());
            }
            self.state.now = self.driver.now();
            self.take_completions();
        }
        Ok(())
    }

    /// A turn is measured from one look at the clock to the next, less the time that the driver waited: what its sends cost
    /// is spent when the next one enters the kernel.
    fn measure(&mut self) {
        let (now_us, idle_us) = (self.state.now.monotonic_us, self.driver.figures().idle_us);
        let turn_us = now_us.saturating_sub(self.began_us).saturating_sub(idle_us.saturating_sub(self.idle_us));
        self.state.figures.turn_time.add(turn_us);
        (self.began_us, self.idle_us) = (now_us, idle_us);
    }

    fn take_completions(&mut self) {
        let completions = std::mem::take(&mut self.completions);
        for completion in &completions {
            match *completion {
                Completion::Received { conn, buffer, bytes } => {
                    self.state.received(conn, self.driver.buffer(buffer, bytes));
                    self.driver.release(buffer);
                }
                Completion::Sent { conn, error } => self.state.sent(conn, error),
                Completion::Accepted { socket, .. } => {
                    let origin = origin(self.driver.peer(socket));
                    if self.state.has_room() {
                        self.state.opened(socket, origin, &mut []);
                    } else {
                        self.state.figures.refused.add("capacity");
                        // Closed by being dropped: nothing was started on it.
                        drop(self.driver.detach(NOBODY, socket));
                    }
                }
                Completion::ReceiveEnded { conn, end } => {
                    self.state.receive_ended(conn, end == ReceiveEnd::Cancelled);
                }
                Completion::Doorbell => {}
            }
            if !self.state.actions.is_empty() {
                self.act();
            }
        }
        self.completions = completions;
    }

    fn take_messages(&mut self) {
        let (me, shards) = (self.state.me, self.state.mesh.shards());
        for from in 0..shards {
            for _ in 0..BATCHES_PER_TURN {
                let Some(batch) = self.state.mesh.pop(ShardId(from), me) else { break };
                self.state.figures.mesh_received.add(batch.len() as u64);
                for message in batch {
                    self.state.message(message);
                }
                self.state.drain_local();
            }
        }
        for _ in 0..REQUESTS_PER_TURN {
            let Some(request) = self.state.mesh.next_request(me) else { break };
            match self.state.request(request) {
                Some(ForDriver::Adopt(adopted)) => self.adopt(*adopted),
                Some(ForDriver::Explain(asked)) => {
                    let under_way = asked.live.and_then(|conn| self.driver.sending(conn));
                    self.state.explain(*asked, under_way.as_deref());
                }
                None => {}
            }
        }
    }

    fn fan_out(&mut self) {
        let State { core, connections, dirty, slow, settings, latency, now, variant_memory, me, deflating, .. } =
            &mut self.state;
        if !core.has_deliveries() {
            return;
        }
        let limits = &settings.config.limits;
        let bounds = core.rules().outbox(limits.outbox_bytes_max);
        // Beyond the shard's bound those who lag pay for it, not those who keep up.
        let outboxes = core.memory().bytes().saturating_sub(core.log_bytes()) + variant_memory.bytes();
        let memory_is_full = outboxes > limits.outbox_shard_bytes_max;
        // Slices cost a few percent, so that only a crowd is served in slices: what is done soon is done at once.
        let slice = settings.config.shards.turn_deliveries_max as usize;
        let at_once = slice.saturating_mul(AT_ONCE_SLICES);
        let budget = if core.deliveries_under_way() <= at_once { at_once } else { slice };
        latency.adapt(now.monotonic_us);
        let memory_bytes_max = limits.outbox_shard_bytes_max;
        let mut variants = Variants::new(*me, settings.namespaces(), variant_memory, memory_bytes_max, deflating);
        core.fan_out(budget, |conn, bytes, lane, room, batch| {
            let Some(connection) = connections.get_mut(conn) else { return };
            // A smaller batch behind one that did not fit must not overtake it: both are read from the log.
            let is_behind = slow.iter().any(|(one, of, _)| (*one, *of) == (conn, room));
            if is_behind {
                return;
            }
            let lags = memory_is_full && connection.outbox.bytes() > LAGS_BYTES;
            // What is urgent has its own reserve.
            let is_behind = connection.is_behind && lane == Lane::Ordinary;
            let (way, events) = ((lane, bounds.of(lane)), (bytes, room, batch));
            let before = connection.outbox.events_bytes();
            if lags || is_behind || variants::queue((conn, &mut *connection), way, events, &mut variants).is_err() {
                connection.is_behind = true;
                slow.push((conn, room, batch.events.first().map_or(0, |event| event.seq - 1)));
                return;
            }
            let waiting = connection.outbox.events_bytes();
            // Nothing is delivered where none of a connection's namespaces wants the room any more.
            if waiting > before && latency.is_chosen() {
                latency.follow(&mut connection.followed, conn, waiting, batch.received_us, batch.events.len());
            }
            if connection.outbox.mark_dirty() {
                dirty.push(conn);
            }
        });
        let mut slow = std::mem::take(&mut self.state.slow);
        for (conn, _, _) in &slow {
            if let Some(connection) = self.state.connections.get_mut(*conn) {
                connection.is_behind = false;
            }
        }
        self.state.fell_behind(&slow);
        slow.clear();
        self.state.slow = slow;
        self.state.drain_local();
    }

    fn flush(&mut self) {
        let State { core, connections, dirty, figures, latency, sending, .. } = &mut self.state;
        let mut bytes = 0;
        let mut polled = Vec::new();
        for conn in dirty.drain(..) {
            let Some(connection) = connections.get_mut(conn) else { continue };
            if connection.socket.is_none() {
                connection.outbox.passed_over();
                polled.push(conn);
                continue;
            }
            let waiting = connection.outbox.events_bytes();
            if let Some(chunk) = connection.outbox.take_chunk(core.memory()) {
                if !connection.followed.is_none() {
                    latency.taken(&connection.followed, waiting - connection.outbox.events_bytes());
                }
                *sending += 1;
                bytes += chunk.len() as u64;
                connection.sent_bytes += chunk.len() as u64;
                self.driver.send(conn, connection.socket, chunk);
            } else if connection.outbox.is_sending() && !connection.outbox.note_stalled(true) {
                core.recorder.traffic(conn, What::Waits { bytes: connection.outbox.bytes() as u64 });
            }
        }
        if bytes > 0 {
            figures.bytes_sent.add(bytes);
        }
        for conn in polled {
            self.state.answer_poll(conn);
        }
    }

    fn send_messages(&mut self) {
        let (me, shards) = (self.state.me, self.state.mesh.shards());
        self.state.has_backlog = false;
        let mut backlog = 0;
        for to in 0..shards {
            let to = ShardId(to);
            let Some(queue) = self.state.core.outgoing(to) else { continue };
            if queue.is_empty() {
                continue;
            }
            let messages = std::mem::take(queue);
            if let Err(messages) = self.state.mesh.push(me, to, messages) {
                // Kept, in order, until that shard has caught up.
                backlog += messages.len();
                if let Some(queue) = self.state.core.outgoing(to) {
                    *queue = messages;
                }
                self.state.has_backlog = true;
            }
        }
        self.state.figures.mesh_backlog.set(backlog as u64);
    }

    /// Does with sockets what was decided.
    fn act(&mut self) {
        let mut actions = std::mem::take(&mut self.state.actions);
        while !actions.is_empty() {
            for action in actions.drain(..) {
                match action {
                    Action::Receive(conn, socket) => self.driver.receive(conn, socket),
                    Action::CancelReceive(conn, socket) => self.driver.cancel_receive(conn, socket),
                    Action::Shutdown(socket) => self.driver.shutdown(socket),
                    Action::Close(conn, socket) => self.driver.close(conn, socket),
                    Action::HandOver(conn) => self.hand_over(conn),
                    Action::Move { from, to } => self.move_socket(from, to),
                    Action::StopListening => self.driver.stop_listening(),
                }
            }
            // A socket that changed hands is received from anew.
            std::mem::swap(&mut actions, &mut self.state.actions);
        }
        // The memory is kept.
        self.state.actions = actions;
    }

    /// Gives a connection that is no WebSocket to the control plane.
    fn hand_over(&mut self, conn: ConnKey) {
        // Nothing was sent on it, so that nothing is followed.
        let Some(connection) = self.state.connections.remove(conn) else { return };
        let Phase::HandOver(head) = connection.phase else { return };
        let socket = self.driver.detach(conn, connection.socket);
        let adopted = Adopted { socket, received: head.bytes, origin: head.origin };
        let refused = match (head.to_shard, &self.state.inbox) {
            (Some(shard), _) => match self.state.mesh.request(shard, Request::Adopt(Box::new(adopted))) {
                Ok(()) => return,
                Err(Request::Adopt(adopted)) => Some(*adopted),
                Err(_) => return,
            },
            (None, Some(inbox)) => inbox.push(adopted).err(),
            (None, None) => Some(adopted),
        };
        let Some(Adopted { socket, .. }) = refused else {
            self.state.figures.handed_over.add(1);
            return;
        };
        self.state.figures.refused.add("http_busy");
        let mut answer = Vec::new();
        Refusal::unavailable("too many HTTP connections", 1).response(&mut answer);
        // Nothing was sent on this socket yet, so that this fits its buffer; should it not, the peer sees a close.
        if let Err(error) = io::Write::write(&mut TcpStream::from(socket), &answer) {
            tracing::debug!(%error, "a connection beyond the control plane's limit could not be told");
        }
    }

    /// Gives one connection's socket to another.
    fn move_socket(&mut self, from: ConnKey, to: ConnKey) {
        let Some(mut connection) = self.state.connections.remove(from) else { return };
        self.state.latency.forget(&mut connection.followed);
        let descriptor = self.driver.detach(from, connection.socket);
        let socket = self.driver.attach(descriptor);
        if !self.state.moved(from, connection, to, socket) {
            // The session has ended meanwhile. Closed by being dropped: nothing was started on it.
            drop(self.driver.detach(NOBODY, socket));
        }
    }

    fn adopt(&mut self, adopted: Adopted) {
        let Adopted { socket, mut received, origin } = adopted;
        if !self.state.has_room() {
            self.state.figures.refused.add("capacity");
            return;
        }
        self.state.figures.adopted.add(1);
        let socket = self.driver.attach(socket);
        self.state.opened(socket, origin, &mut received);
    }

    fn count(&mut self) {
        if !self.state.core.has_deliveries() {
            self.state.deflating.forget();
        }
        let State { figures, core, connections, latency, sending, variant_memory, deflating, .. } = &self.state;
        let (counted, driver) = (core.figures(), self.driver.figures());
        figures.turns.add(1);
        figures.deflated_messages.set(deflating.counts.messages);
        figures.deflate_bytes_before.set(deflating.counts.bytes_before);
        figures.deflate_bytes_after.set(deflating.counts.bytes_after);
        figures.deflate_bytes_saved.set(deflating.counts.bytes_saved);
        figures.deflate_skipped.set(deflating.counts.skipped);
        figures.enters.set(driver.enters);
        figures.completions.set(driver.completions);
        figures.buffers_exhausted.set(driver.buffer_exhausted);
        figures.submissions_full.set(driver.submission_full);
        figures.accept_failures.set(driver.accept_failures);
        figures.publishes.set(counted.publishes);
        figures.deliveries.set(counted.deliveries);
        figures.duplicates.set(counted.duplicates);
        figures.logs_evicted.set(counted.logs_evicted);
        let locks = core.lock_figures();
        figures.locks.set(locks.held);
        figures.locks_acquired.set(locks.acquired);
        figures.locks_refused.set(locks.refused);
        figures.locks_expired.set(locks.expired);
        figures.presence_forgotten.set(counted.presence_forgotten);
        figures.log_bytes.set(core.log_bytes() as u64);
        figures.journal_pending.set(core.journal_pending_bytes() as u64);
        figures.journal_refused.set(core.journal_refused());
        figures.mesh_sent.set(counted.mesh_sent);
        figures.rooms.set(core.rooms().len() as u64);
        let outboxes = core.memory().bytes().saturating_sub(core.log_bytes()) + variant_memory.bytes();
        figures.outbox_bytes.set(outboxes as u64);
        figures.sending.set(*sending as u64);
        figures.latency_followed.set(latency.chosen_total);
        figures.latency_lost.set(latency.lost_total);
        figures.handshakes.set((connections.len() as u64).saturating_sub(figures.connections.value()));
    }
}

/// Stands for a connection where there is none yet.
const NOBODY: ConnKey = ConnKey { slot: u32::MAX, generation: 0 };

/// Deliveries of a turn from which on events wait for others to go with them: milliseconds of work.
const CROWD: usize = 512;

/// How long they wait each time, and how often.
const GATHER_WAIT: Duration = Duration::from_micros(30);
const GATHERS_PER_TURN: usize = 32;

/// So many slices are delivered in one turn, when that is all there is.
const AT_ONCE_SLICES: usize = 16;

/// A connection with less than this in its outbox keeps up, whatever the shard's memory.
const LAGS_BYTES: usize = 64 * 1024;

fn origin(peer: Peer) -> ConnectionOrigin {
    match peer {
        Peer::Ip(ip, port) => ConnectionOrigin { peer: Some(SocketAddr::new(ip, port)), client: None },
        Peer::Unix => ConnectionOrigin::default(),
    }
}

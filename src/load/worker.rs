//! One thread of the load generator: its connections, and what it sends on them.
//!
//! A turn: connect what is due, send what is due, wait for readiness, read. What is due is looked at again between two
//! sockets, so that a long burst of deliveries delays the next event as little as possible; how late it went out
//! nevertheless is recorded as the generator's own lag.
//!
//! Larger than most files, because setting up, receiving and sending all work on the same connections within one turn.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use std::{io, mem};

use tungstenite::Utf8Bytes;

use super::client::{Client, Received};
use super::failure::Failure;
use super::message::{self, Detail, Envelope};
use super::plan::{EchoVia, Mode, Pace};
use super::poller::{Poller, Readiness, Ready};
use super::run::Run;
use super::schedule::Schedule;
use super::sequence::SeqTracker;
use super::session::Session;
use super::stamp::SeqField;
use super::tally::Tally;
use super::traffic::{Lane, Template, Traffic};

/// Connections of one worker that are being set up at a time: the hub's backlog is not the generator's to fill.
const SETUPS_MAX: usize = 256;
/// Longest wait, so that timeouts and the end of the run are seen in time.
const TICK_NS: u64 = 50_000_000;

/// A thread's part of a run.
pub(crate) struct Worker {
    run: Arc<Run>,
    poller: Poller,
    connections: Vec<Connection>,
    /// Connects that are still to be begun: the next one, and when.
    next_connect: usize,
    connects: Schedule,
    /// Connections being set up, and when each has to be done.
    setups: VecDeque<(u64, usize)>,
    in_setup: usize,
    traffic: Traffic,
    /// Connections with something written that is not yet flushed.
    unflushed: Vec<usize>,
    /// Deliveries of this turn per room.
    turn_delivered: Vec<u64>,
    templates: Vec<Template>,
    seq_field: SeqField,
    /// When the next subscriber vanishes, and who.
    vanishes: Option<Schedule>,
    next_vanish: usize,
    /// Who is to come back, and when, in that order.
    away: VecDeque<(u64, usize)>,
    tally: Tally,
}

struct Connection {
    client: Option<Client>,
    role: Role,
    stage: Stage,
    /// Its number in the whole run.
    number: usize,
    seq: SeqTracker,
    /// What it comes back to, in runs where it does.
    session: Option<Box<Session>>,
    /// Echoes asked for and not yet back.
    in_flight: u32,
    begun_ns: u64,
    watches_write: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Subscriber { room: usize },
    Publisher,
    Echo,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    New,
    Connecting,
    Greeting,
    Subscribing,
    Resuming,
    Ready,
    Away,
    Ended,
}

impl Worker {
    /// The worker with this number out of `plan.threads`.
    pub(crate) fn new(run: Arc<Run>, number: usize) -> io::Result<Worker> {
        let plan = &run.plan;
        let connections: Vec<Connection> = (number..plan.connections_all())
            .step_by(plan.threads)
            .map(|number| Connection {
                client: None,
                role: match plan.mode {
                    Mode::Echo => Role::Echo,
                    _ if number >= plan.connections => Role::Publisher,
                    _ => Role::Subscriber { room: number % plan.rooms.max(1) },
                },
                stage: Stage::New,
                number,
                seq: SeqTracker::default(),
                session: None,
                in_flight: 0,
                begun_ns: 0,
                watches_write: false,
            })
            .collect();
        let templates = Template::all(plan);
        let connects =
            Schedule::new(run.now_ns(), plan.connect_rate / plan.threads as f64, number as f64 / plan.threads as f64);
        Ok(Worker {
            poller: Poller::new()?,
            connections,
            next_connect: 0,
            connects,
            setups: VecDeque::new(),
            in_setup: 0,
            traffic: Traffic::Waiting,
            unflushed: Vec::new(),
            turn_delivered: vec![0; plan.rooms],
            templates,
            seq_field: SeqField::new(),
            vanishes: None,
            next_vanish: 0,
            away: VecDeque::new(),
            tally: Tally::default(),
            run,
        })
    }

    /// The means to wake it.
    pub(crate) fn waker(&self) -> super::poller::Waker {
        self.poller.waker()
    }

    /// Works until the run is stopped.
    pub(crate) fn work(mut self) -> io::Result<Tally> {
        let mut ready = Ready::new();
        while !self.run.stopped() {
            let now = self.run.now_ns();
            self.connect_due(now);
            self.vanish_due(now);
            self.come_back_due(now);
            self.expire_setups(now);
            self.send_due(now);
            let wait = self.next_ns().min(now + TICK_NS).saturating_sub(self.run.now_ns());
            self.poller.wait(&mut ready, Duration::from_nanos(wait))?;
            for readiness in ready.drain() {
                self.handle(readiness);
                let now = self.run.now_ns();
                if self.next_ns() <= now {
                    self.send_due(now);
                }
            }
            self.tell_deliveries();
        }
        for connection in &mut self.connections {
            if let Some(client) = &mut connection.client {
                self.tally.pings += client.pings();
                // The run is over; whether the hub still hears of it changes no figure.
                if let Err(failure) = client.close() {
                    tracing::debug!(%failure, "closing a connection of the load generator");
                }
            }
        }
        Ok(self.tally)
    }

    /// When something is to be done next, whatever comes from the sockets.
    fn next_ns(&self) -> u64 {
        let connect = self.may_connect().then(|| self.connects.next_ns());
        let send = match &self.traffic {
            Traffic::Open { table, .. } => {
                table.next_ns().filter(|due| self.run.window().is_some_and(|w| *due < w.end_ns))
            }
            Traffic::Waiting => self.run.window().map(|w| w.start_ns),
            Traffic::Closed { .. } => None,
        };
        let vanish = self.vanishes.as_ref().map(Schedule::next_ns);
        let vanish = vanish.filter(|due| self.run.window().is_some_and(|w| *due < w.end_ns));
        let come_back = self.away.front().map(|(due, _)| *due);
        connect.into_iter().chain(send).chain(vanish).chain(come_back).min().unwrap_or(u64::MAX)
    }

    // Setting up.

    fn may_connect(&self) -> bool {
        self.next_connect < self.connections.len() && self.in_setup < SETUPS_MAX
    }

    fn connect_due(&mut self, now: u64) {
        while self.may_connect() && self.connects.take(now).is_some() {
            let index = self.next_connect;
            self.next_connect += 1;
            self.begin(index, now);
        }
    }

    fn begin(&mut self, index: usize, now: u64) {
        self.tally.tried += 1;
        self.connect(index, now);
    }

    fn connect(&mut self, index: usize, now: u64) {
        let plan = &self.run.plan;
        self.in_setup += 1;
        let connection = &mut self.connections[index];
        connection.begun_ns = now;
        connection.stage = Stage::Connecting;
        connection.watches_write = true;
        let client = Client::connect(&plan.target, plan.source(connection.number));
        let added = client.and_then(|client| {
            let Some(socket) = client.socket() else { return Err(Failure::Lost) };
            self.poller.add(socket, index, true).map_err(|e| Failure::from_io(&e))?;
            Ok(client)
        });
        match added {
            Ok(client) => {
                connection.client = Some(client);
                self.setups.push_back((now + plan.setup_timeout_ns, index));
            }
            Err(failure) => self.fail(index, failure),
        }
    }

    fn expire_setups(&mut self, now: u64) {
        while let Some((deadline, index)) = self.setups.front().copied() {
            let connection = &self.connections[index];
            let awaited = match connection.stage {
                // It has come back since, and has a later deadline.
                _ if connection.begun_ns + self.run.plan.setup_timeout_ns > deadline => None,
                Stage::Connecting => Some("upgrade"),
                Stage::Greeting => Some("greeting"),
                Stage::Subscribing => Some("answer to subscribe"),
                Stage::Resuming => Some("answer to resume"),
                Stage::New | Stage::Ready | Stage::Away | Stage::Ended => None,
            };
            match awaited {
                Some(_) if deadline > now => return,
                Some(what) => self.fail(index, Failure::Timeout(what)),
                None => {}
            }
            self.setups.pop_front();
        }
    }

    /// The upgrade is done.
    fn opened(&mut self, index: usize) -> Result<(), Failure> {
        let now = self.run.now_ns();
        let plan = &self.run.plan;
        let connection = &mut self.connections[index];
        self.tally.connect.record(now.saturating_sub(connection.begun_ns));
        match connection.role {
            Role::Subscriber { .. } if plan.mode == Mode::Reconnect => connection.stage = Stage::Greeting,
            Role::Subscriber { room } if plan.subscribe => {
                let command = message::subscribe("s", &plan.room(room), None);
                return self.ask(index, Stage::Subscribing, command);
            }
            _ => self.ready(index),
        }
        Ok(())
    }

    /// Sends a command whose answer is waited for.
    fn ask(&mut self, index: usize, stage: Stage, command: String) -> Result<(), Failure> {
        let connection = &mut self.connections[index];
        connection.stage = stage;
        let Some(client) = &mut connection.client else { return Ok(()) };
        client.send(command.into())?;
        client.flush()
    }

    fn ready(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        connection.stage = Stage::Ready;
        if let Role::Subscriber { room } = connection.role {
            self.run.rooms[room].subscribers.fetch_add(1, Relaxed);
        }
        self.in_setup -= 1;
        self.tally.ready += 1;
        self.run.open.fetch_add(1, Relaxed);
        self.run.settled.fetch_add(1, Relaxed);
    }

    /// The connection is over, and not because this side wanted it.
    fn fail(&mut self, index: usize, failure: Failure) {
        let connection = &mut self.connections[index];
        if let Some(client) = connection.client.take() {
            self.tally.pings += client.pings();
        }
        let stage = mem::replace(&mut connection.stage, Stage::Ended);
        let was_ready = connection.session.as_ref().is_some_and(|session| session.away_ns.is_some());
        self.in_setup -= usize::from(was_ready);
        self.run.away.fetch_sub(usize::from(was_ready), Relaxed);
        match stage {
            Stage::New | Stage::Ended => return,
            stage if was_ready || stage == Stage::Ready => {
                self.tally.lost += 1;
                self.run.open.fetch_sub(1, Relaxed);
                if let Role::Subscriber { room } = connection.role {
                    self.run.rooms[room].subscribers.fetch_sub(1, Relaxed);
                }
            }
            _ => {
                self.in_setup -= 1;
                self.run.settled.fetch_add(1, Relaxed);
            }
        }
        self.count(failure);
    }

    fn count(&mut self, failure: Failure) {
        self.run.failures.fetch_add(1, Relaxed);
        self.tally.failures.count(failure);
    }

    // Receiving.

    fn handle(&mut self, readiness: Readiness) {
        let index = readiness.key;
        let Some(client) = self.connections.get_mut(index).and_then(|c| c.client.as_mut()) else { return };
        let advanced = match client.advance(readiness.readable, readiness.writable) {
            Ok(true) => self.opened(index).and_then(|()| self.read(index)),
            Ok(false) if readiness.readable => self.read(index),
            Ok(false) => Ok(()),
            Err(failure) => Err(failure),
        };
        match advanced {
            Ok(()) => self.watch(index),
            Err(failure) => self.fail(index, failure),
        }
    }

    fn read(&mut self, index: usize) -> Result<(), Failure> {
        // One look at the clock serves all that came in one piece.
        let mut now = None;
        loop {
            let Some(client) = &mut self.connections[index].client else { return Ok(()) };
            let received = client.receive()?;
            let now = *now.get_or_insert_with(|| self.run.now_ns());
            match received {
                Received::Text(text) => self.received(index, text.as_str(), now)?,
                Received::Binary => return Err(Failure::Protocol("a binary frame, text was expected".into())),
                Received::Nothing => break,
                Received::Ended => return Err(Failure::Lost),
            }
        }
        self.flush_written();
        Ok(())
    }

    fn received(&mut self, index: usize, text: &str, now: u64) -> Result<(), Failure> {
        let Some(due) = self.run.plan.stamp.find(text.as_bytes()) else { return self.control(index, text) };
        match self.connections[index].role {
            Role::Subscriber { room } => {
                self.delivered(due, now);
                if let Some(count) = self.turn_delivered.get_mut(room) {
                    *count += 1;
                }
                if self.run.plan.check_seq
                    && let Some(seq) = self.seq_field.find(text.as_bytes())
                {
                    self.connections[index].seq.see(seq, &mut self.tally.disorder);
                }
                Ok(())
            }
            Role::Echo => {
                self.delivered(due, now);
                if self.run.plan.echo == EchoVia::Path && text.len() != self.run.plan.size {
                    self.count(Failure::EchoDiffers);
                }
                let connection = &mut self.connections[index];
                connection.in_flight = connection.in_flight.saturating_sub(1);
                self.send_echoes(index, now);
                Ok(())
            }
            // What a room that it was joined to without asking brings.
            Role::Publisher => Ok(()),
        }
    }

    fn delivered(&mut self, due: u64, now: u64) {
        self.run.delivered.fetch_add(1, Relaxed);
        if self.run.window().is_some_and(|w| w.counts(due)) {
            self.run.counted_delivered.fetch_add(1, Relaxed);
            self.tally.delivered += 1;
            self.tally.latency.record(now.saturating_sub(due));
        }
    }

    /// A message that is none of the generator's own events.
    fn control(&mut self, index: usize, text: &str) -> Result<(), Failure> {
        let Some(envelope) = Envelope::parse(text) else {
            return Err(Failure::Protocol("a message that is not of the protocol".into()));
        };
        let connection = &mut self.connections[index];
        match (envelope.kind.as_str(), connection.stage) {
            ("connection_established", Stage::Greeting) => return self.greeted(index, envelope.detail()),
            ("resumed", Stage::Resuming) => return self.resumed(index, envelope.detail()),
            ("subscribed", Stage::Subscribing) => {
                let detail = envelope.detail();
                if let Some(seq) = detail.seq {
                    connection.seq.begin(seq);
                }
                if let Some(session) = &mut connection.session {
                    session.epoch = detail.epoch;
                }
                self.ready(index);
            }
            ("error", Stage::Subscribing | Stage::Resuming) => return Err(envelope.detail().failure()),
            ("error", _) => self.count(envelope.detail().failure()),
            ("gap", _) => {
                let detail = envelope.detail();
                if let (Some(from), Some(to)) = (detail.from_seq, detail.to_seq) {
                    self.tally.disorder.told += to.saturating_sub(from).saturating_add(1);
                }
            }
            _ => {
                // Events of others in the same room have their place in its order, too.
                if let (Role::Subscriber { room }, Some(name), Some(seq), true) =
                    (connection.role, &envelope.room, envelope.seq, self.run.plan.check_seq)
                    && *name == self.run.plan.room(room)
                {
                    connection.seq.see(seq, &mut self.tally.disorder);
                }
            }
        }
        Ok(())
    }

    // Vanishing and coming back.

    fn vanish_due(&mut self, now: u64) {
        let Some(window) = self.run.window() else { return };
        let plan = &self.run.plan;
        let subscribers = self.connections.iter().filter(|one| matches!(one.role, Role::Subscriber { .. })).count();
        let rate = plan.reconnect_rate * subscribers as f64 / plan.connections.max(1) as f64;
        if rate <= 0.0 {
            return;
        }
        let last = now.min(window.end_ns.saturating_sub(1));
        loop {
            let schedule = self.vanishes.get_or_insert_with(|| Schedule::new(window.start_ns, rate, 0.5));
            if schedule.take(last).is_none() {
                return;
            }
            self.tally.reconnects.due += 1;
            // The next in turn that is there; each comes to vanish as often as any other.
            let turn = (0..self.connections.len()).map(|step| (self.next_vanish + step) % self.connections.len());
            let is_there = |one: &Connection| one.stage == Stage::Ready && one.session.is_some();
            let Some(index) = turn.into_iter().find(|index| is_there(&self.connections[*index])) else { continue };
            self.next_vanish = index + 1;
            self.vanish(index, now);
        }
    }

    fn vanish(&mut self, index: usize, now: u64) {
        let connection = &mut self.connections[index];
        if let Some(session) = &mut connection.session {
            session.away_ns = Some(now);
        }
        if let Some(client) = connection.client.take() {
            self.tally.pings += client.pings();
            client.vanish(self.tally.reconnects.begun.is_multiple_of(2));
        }
        connection.stage = Stage::Away;
        self.tally.reconnects.begun += 1;
        self.away.push_back((now + self.run.plan.away_ns, index));
        self.run.away.fetch_add(1, Relaxed);
    }

    fn come_back_due(&mut self, now: u64) {
        while let Some((_, index)) = self.away.front().copied().filter(|(due, _)| *due <= now) {
            self.away.pop_front();
            self.connect(index, now);
        }
    }

    /// The greeting came: of the first connection of a session, or of one that is to take it up.
    fn greeted(&mut self, index: usize, greeting: Detail) -> Result<(), Failure> {
        let connection = &mut self.connections[index];
        let Role::Subscriber { room } = connection.role else { return Ok(()) };
        let room = self.run.plan.room(room);
        let Some(session) = &connection.session else {
            connection.session = Some(Box::new(Session::new(greeting)?));
            return self.ask(index, Stage::Subscribing, message::subscribe("s", &room, None));
        };
        let command = session.resume(&room, connection.seq.last());
        self.ask(index, Stage::Resuming, command)
    }

    fn resumed(&mut self, index: usize, answer: Detail) -> Result<(), Failure> {
        let now = self.run.now_ns();
        let connection = &mut self.connections[index];
        let (Role::Subscriber { room }, Some(session)) = (connection.role, &mut connection.session) else {
            return Ok(());
        };
        let room = self.run.plan.room(room);
        session.resumed(&room, answer, now, &mut connection.seq, &mut self.tally.reconnects)?;
        connection.stage = Stage::Ready;
        self.in_setup -= 1;
        self.run.away.fetch_sub(1, Relaxed);
        Ok(())
    }

    /// Tells the other threads what this turn brought: closed loops of theirs may go on.
    fn tell_deliveries(&mut self) {
        let now = self.run.now_ns();
        let mut any = false;
        for (room, count) in self.run.rooms.iter().zip(&mut self.turn_delivered).filter(|(_, count)| **count > 0) {
            room.deliver(mem::take(count), now);
            any = true;
        }
        if any && self.run.plan.threads > 1 && matches!(self.run.plan.pace, Pace::Window(_)) {
            self.run.wake_all();
        }
    }

    // Sending.

    fn send_due(&mut self, now: u64) {
        let Some(window) = self.run.window().filter(|w| w.start_ns <= now) else { return };
        if matches!(self.traffic, Traffic::Waiting) {
            let numbers: Vec<usize> = self.connections.iter().map(|c| c.number).collect();
            self.traffic = Traffic::plan(&self.run.plan, &numbers, window);
            if let Traffic::Closed { lanes, .. } = &self.traffic {
                let echoes: Vec<usize> = lanes.iter().filter(|l| l.room.is_none()).map(|l| l.connection).collect();
                echoes.into_iter().for_each(|connection| self.send_echoes(connection, now));
            }
        }
        // Taken out for the time of sending, which needs all of the rest.
        let mut traffic = mem::replace(&mut self.traffic, Traffic::Waiting);
        match &mut traffic {
            Traffic::Open { lanes, table } => {
                let last = now.min(window.end_ns.saturating_sub(1));
                while let Some((lane, due)) = table.take(last) {
                    if window.counts(due) {
                        self.tally.lag.record(now.saturating_sub(due));
                    }
                    self.send(lanes[lane], due);
                }
            }
            Traffic::Closed { lanes, window: limit } if now < window.end_ns => self.fill_rooms(lanes, *limit, now),
            Traffic::Closed { .. } | Traffic::Waiting => {}
        }
        self.traffic = traffic;
        self.flush_written();
    }

    /// Closed loop: publishes until every room has its number of events in flight.
    fn fill_rooms(&mut self, lanes: &[Lane], limit: u32, now: u64) {
        // What this turn has brought so far makes room.
        self.tell_deliveries();
        let plan_limit = |room: usize| u64::from(limit) * self.run.plan.lanes_of_room(room) as u64;
        let limits: Vec<u64> = (0..self.run.rooms.len()).map(plan_limit).collect();
        loop {
            let mut any = false;
            for lane in lanes {
                let Some(room) = lane.room else { return };
                if self.connections[lane.connection].stage != Stage::Ready {
                    continue;
                }
                if self.run.rooms[room].give_up(now) {
                    self.count(Failure::Stalled);
                }
                if self.run.rooms[room].reserve(limits[room]) {
                    self.send(*lane, self.run.now_ns());
                    any = true;
                }
            }
            if !any {
                return;
            }
        }
    }

    /// Closed loop: sends until the client has its number of echoes in flight.
    fn send_echoes(&mut self, connection: usize, now: u64) {
        let Pace::Window(limit) = self.run.plan.pace else { return };
        if self.run.window().is_none_or(|w| now < w.start_ns || now >= w.end_ns) {
            return;
        }
        while self.connections[connection].stage == Stage::Ready && self.connections[connection].in_flight < limit {
            let before = self.connections[connection].in_flight;
            self.send(Lane { connection, room: None }, self.run.now_ns());
            if self.connections[connection].in_flight == before {
                return;
            }
        }
    }

    fn send(&mut self, lane: Lane, due: u64) {
        let plan = &self.run.plan;
        let connection = &mut self.connections[lane.connection];
        let Some(template) = self.templates.get(lane.room.unwrap_or(0)) else { return };
        let mut text = String::with_capacity(template.head.len() + plan.size + template.tail.len());
        text.push_str(&template.head);
        plan.stamp.write(due, plan.size, &mut text);
        text.push_str(&template.tail);
        let sent = match &mut connection.client {
            Some(client) if connection.stage == Stage::Ready => client.send(Utf8Bytes::from(text)),
            _ => Err(Failure::NotSent),
        };
        if let Err(failure) = sent {
            match failure {
                Failure::NotSent | Failure::SendBufferFull => self.count(failure),
                failure => self.fail(lane.connection, failure),
            }
            return;
        }
        if lane.room.is_none() {
            connection.in_flight = connection.in_flight.saturating_add(1);
        }
        self.unflushed.push(lane.connection);
        self.run.sent.fetch_add(1, Relaxed);
        if self.run.window().is_some_and(|w| w.counts(due)) {
            let deliveries = lane.room.map_or(1, |room| self.run.rooms[room].subscribers.load(Relaxed));
            self.tally.sent += 1;
            self.tally.expected += deliveries;
            self.run.counted_expected.fetch_add(deliveries, Relaxed);
        }
    }

    fn flush_written(&mut self) {
        let mut unflushed = mem::take(&mut self.unflushed);
        unflushed.dedup();
        for index in unflushed.drain(..) {
            let Some(client) = &mut self.connections[index].client else { continue };
            match client.flush() {
                Ok(()) => self.watch(index),
                Err(failure) => self.fail(index, failure),
            }
        }
        // Keeps its memory for the next turn.
        self.unflushed = unflushed;
    }

    /// Watches for room to write exactly while something waits for it.
    fn watch(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        let Some(client) = &connection.client else { return };
        let wants = client.wants_write();
        if wants == connection.watches_write {
            return;
        }
        connection.watches_write = wants;
        let modified = match client.socket() {
            Some(socket) => self.poller.modify(socket, index, wants),
            None => Ok(()),
        };
        if let Err(error) = modified {
            self.fail(index, Failure::from_io(&error));
        }
    }
}

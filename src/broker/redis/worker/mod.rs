//! The broker's thread: takes what shards hand over, talks to the servers, and tells the shards.
//!
//! ```text
//! turn:  1. what servers pushed          so that what waits in memory gets less
//!        2. what commands came to        answers free their rooms for the next call
//!        3. what shards handed over
//!        4. what took too long           given up, told, and the link made again
//!        5. calls, subscriptions, reads  everything that came meanwhile goes together
//!        6. what shards are told         one batch for each
//! ```
//!
//! All that is decided is decided here, on one thread; commands are tasks of the same thread that report what came of them.
//! What becomes of rooms that are followed is in `rooms` and `reads`, of links in `links`, who has which rooms of a cluster in
//! `topology`. Larger than others, because all of this is one state.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use redis::{RedisError, Value};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use self::rooms::{Room, RoomLanes};
use self::topology::{Learned, Learning};
use super::canary::CANARY_MS;
use super::connection::{Connections, Inbox, LinkError, Target};
use super::encoding::{self, Reader};
use super::locks;
use super::placement::{Routes, ServerId};
use super::request::Request;
use super::scripts::Scripts;
use super::server::{self, Link, Meaning, Server};
use super::submissions::{Answer, DOUBTFUL, NO_LINK, Outcome, Submissions, Told as Answered};
use super::tracker::Told;
use crate::broker::figures::BrokerFigures;
use crate::broker::link::Intake;
use crate::hub::brokered::{Carried, FromBroker, LockCall, ToBroker};
use crate::hub::name::{RoomName, ShardId};

mod links;
mod reads;
mod rooms;
mod topology;

/// Batches of one shard that a turn takes.
const BATCHES_PER_TURN: usize = 64;
/// Bytes of what a server pushed that wait for the next turn.
const INBOX_BYTES_MAX: usize = 32 << 20;
/// Deepest nesting of data that other programs publish; what clients of this hub publish is checked by `limits.depth_max`.
const DEPTH_MAX: usize = 512;

/// The state of the broker.
pub struct Worker {
    intake: Intake,
    scripts: Arc<Scripts>,
    servers: Vec<Server>,
    /// In a cluster, what is known of it and when it is asked.
    learning: Option<Learning>,
    routes: Routes,
    submissions: Submissions,
    lanes: RoomLanes,
    /// Tells reads apart.
    next_read: u64,
    rooms: HashMap<Box<str>, Room>,
    backlogs: Vec<Backlog>,
    reader: Reader,
    reports: mpsc::UnboundedReceiver<Report>,
    reporter: mpsc::UnboundedSender<Report>,
    /// One that ended the wait.
    arrived: Option<Report>,
    pushed: Arc<Notify>,
    start: Instant,
    bounds: Limits,
    figures: Arc<BrokerFigures>,
    answers: Vec<Answer>,
}

/// What bounds it.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// An answer.
    pub timeout_ms: u64,
    /// Bytes of events that wait for a shard.
    pub backlog_bytes_max: usize,
    /// Replicas that must have an event before it is acknowledged.
    pub replicas_min: u32,
}

impl Limits {
    /// How long a canary is waited for: as long as its command may take, which is told where it fails (in a cluster the other
    /// servers may be well), and as long again for the message.
    fn deaf_ms(self) -> u64 {
        2 * self.timeout_ms
    }
}

/// What a shard is told next.
#[derive(Default)]
struct Backlog {
    messages: Vec<FromBroker>,
    bytes: usize,
}

/// What came of a command.
struct Report {
    server: ServerId,
    generation: u64,
    what: What,
}

enum What {
    Connected(Box<Result<Connections, LinkError>>, Arc<Inbox>),
    Published { room: RoomName, serial: u64, events: usize, answer: Result<Value, RedisError>, replicas: Option<i64> },
    Cleared { room: RoomName, serial: u64, answer: Result<Value, RedisError> },
    Subscribed { rooms: Vec<RoomName>, error: Option<RedisError> },
    Unsubscribed { rooms: Vec<RoomName>, error: Option<RedisError> },
    Read { room: RoomName, serial: u64, ticket: u64, answer: Result<Value, RedisError> },
    Renewed { room: RoomName, answer: Result<Value, RedisError> },
    Locked { shard: ShardId, number: u64, answer: Result<Value, RedisError> },
    Learned(Box<Learned>),
    Canary { channel: u32, error: Option<RedisError> },
    Listening { error: Option<RedisError> },
}

impl Worker {
    /// The broker of these servers, or of a cluster, which is one target.
    pub fn new(
        intake: Intake,
        scripts: Scripts,
        targets: Vec<Target>,
        submissions: Submissions,
        limits: Limits,
        figures: Arc<BrokerFigures>,
    ) -> Worker {
        let (reporter, reports) = mpsc::unbounded_channel();
        figures.servers.set(targets.len() as u64);
        let is_cluster = targets.iter().any(Target::is_cluster);
        let targets = targets.into_iter().map(Arc::new);
        let servers: Vec<Server> = targets.map(if is_cluster { Server::nobody } else { Server::new }).collect();
        let routes = match is_cluster {
            true => Routes::slots(),
            false => Routes::hashed(servers.iter().map(|server| server.name.clone()).collect()),
        };
        Worker {
            backlogs: (0..intake.shards()).map(|_| Backlog::default()).collect(),
            intake,
            scripts: Arc::new(scripts),
            servers,
            learning: is_cluster.then(Learning::default),
            routes,
            submissions,
            lanes: RoomLanes::new(),
            next_read: 0,
            rooms: HashMap::new(),
            reader: Reader::new(DEPTH_MAX),
            reports,
            reporter,
            arrived: None,
            pushed: Arc::new(Notify::new()),
            start: Instant::now(),
            bounds: limits,
            figures,
            answers: Vec::new(),
        }
    }

    /// Connects to all servers for the first time; the first error that a person has to put right.
    pub async fn connect(&mut self) -> Result<(), (String, LinkError)> {
        if self.learning.is_some() {
            self.learn(self.now_ms());
            while let Some(report) = self.reports.recv().await {
                let What::Learned(learned) = report.what else { continue };
                if let Err(error) = &learned.best
                    && error.remedy().is_some()
                {
                    let name = self.servers.first().map(|server| server.name.clone()).unwrap_or_default();
                    return Err((name, learned.best.err().unwrap_or(LinkError::Timeout)));
                }
                self.learned(*learned);
                break;
            }
        } else {
            for server in self.ids() {
                self.begin_link(server);
            }
        }
        let mut first = None;
        let mut missing = self.servers.iter().filter(|server| matches!(server.link, Link::Connecting)).count();
        while missing > 0
            && let Some(report) = self.reports.recv().await
        {
            let What::Connected(outcome, inbox) = report.what else {
                self.report(report);
                continue;
            };
            missing -= 1;
            let name = self.server(report.server).map(|server| server.name.clone()).unwrap_or_default();
            match *outcome {
                Err(error) if error.remedy().is_some() => drop(first.get_or_insert((name, error))),
                outcome => self.report(Report { what: What::Connected(Box::new(outcome), inbox), ..report }),
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// Runs until it is asked to end, and what was handed over is answered or took too long.
    pub async fn run(mut self) {
        let mut stop_ms = None;
        loop {
            self.turn();
            if self.intake.stop_requested() {
                let deadline = *stop_ms.get_or_insert(self.now_ms() + self.bounds.timeout_ms);
                let is_done = self.submissions.pending_bytes() == 0;
                if (is_done && !self.intake.has_entries()) || self.now_ms() >= deadline {
                    break;
                }
            }
            if self.intake.has_entries() {
                // More than a turn takes: the connections get their turn, and then it goes on.
                tokio::task::yield_now().await;
                continue;
            }
            let wait = tokio::time::sleep(self.next_wait());
            tokio::select! {
                () = self.intake.entries() => {}
                () = self.pushed.notified() => {}
                report = self.reports.recv() => {
                    // Handled in its place: what was pushed before it is taken first.
                    self.arrived = report;
                }
                () = wait => {}
            }
        }
    }

    fn now_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    fn ids(&self) -> impl Iterator<Item = ServerId> + use<> {
        (0..u16::try_from(self.servers.len()).unwrap_or(u16::MAX)).map(ServerId)
    }

    fn server(&mut self, server: ServerId) -> Option<&mut Server> {
        self.servers.get_mut(server.place())
    }

    fn turn(&mut self) {
        for server in self.ids() {
            self.take_pushed(server);
        }
        while let Some(report) = self.arrived.take().or_else(|| self.reports.try_recv().ok()) {
            self.report(report);
        }
        for shard in 0..self.intake.shards() {
            for _ in 0..BATCHES_PER_TURN {
                let Some(batch) = self.intake.pop(ShardId(shard)) else { break };
                for message in batch {
                    self.take(ShardId(shard), message);
                }
            }
        }
        let now_ms = self.now_ms();
        self.submissions.expire(&self.routes, now_ms, &mut self.answers);
        self.look_at_cluster(now_ms);
        for server in self.ids() {
            self.look_at_times(server, now_ms);
            self.send_calls(server, now_ms);
            self.send_subscriptions(server, now_ms);
            self.send_reads(server, now_ms);
        }
        self.answer();
        self.flush();
        self.count();
    }

    /// How long nothing happens unless something comes.
    fn next_wait(&self) -> Duration {
        let now_ms = self.now_ms();
        let of_servers = self.servers.iter().flat_map(|server| {
            let of_link = match &server.link {
                Link::Down { retry_ms } => Some(*retry_ms),
                Link::Connecting | Link::Unwanted => None,
                Link::Up(up) if !up.answers.may_ask(now_ms) => up.answers.next_ms(now_ms),
                Link::Up(up) => Some(up.canary.next_ms(self.bounds.deaf_ms())),
            };
            [of_link, server.retries.front().map(|(at_ms, _)| *at_ms)]
        });
        let of_cluster = self.learning.as_ref().and_then(Learning::next_ms);
        let times = of_servers.chain([of_cluster, self.submissions.next_due_ms()]).flatten();
        let next_ms = times.min().unwrap_or(now_ms + CANARY_MS).min(now_ms + CANARY_MS);
        // A timer of this runtime has a resolution of a millisecond: what is due now is due in the next one.
        Duration::from_millis(next_ms.saturating_sub(now_ms).max(1))
    }

    // What shards hand over.

    fn take(&mut self, shard: ShardId, message: ToBroker) {
        let now_ms = self.now_ms();
        match message {
            ToBroker::Submit(submission) => {
                self.figures.submissions.add(1);
                let server = self.server_of(submission.room.as_str());
                self.submissions.push(shard, submission, server, &self.routes, now_ms, &mut self.answers);
            }
            ToBroker::Lock(call) => self.lock(shard, *call),
            ToBroker::Follow { room, from, claim } => self.follow(shard, room, from, claim),
            ToBroker::Leave { room } => self.leave(&room),
            ToBroker::Clear { room, number } => {
                let server = self.server_of(room.as_str());
                self.submissions.clear(shard, (room, server), number, &self.routes, now_ms, &mut self.answers);
            }
        }
    }

    /// Not queued: a client asks again, and what was to be freed is said again.
    fn lock(&mut self, shard: ShardId, call: LockCall) {
        let LockCall { room, field, number, node, action } = call;
        let server = self.server_of(room.as_str());
        let Some(connection) = self.connections(server).map(|connections| connections.publish.clone()) else {
            return self.tell(shard, FromBroker::Locked { number, outcome: Err(NO_LINK) }, 0);
        };
        let call = self.scripts.lock(&room, &field, node, &action);
        self.spawn(server, async move { What::Locked { shard, number, answer: connection.call(&call).await } });
    }

    fn server_of(&self, room: &str) -> ServerId {
        self.rooms.get(room).map_or_else(|| self.routes.of(room), |room| room.server)
    }

    // What came of commands.

    fn report(&mut self, report: Report) {
        let Report { server: id, generation, what } = report;
        let is_current = self.server(id).is_some_and(|server| server.generation == generation);
        if let What::Locked { shard, number, answer } = what {
            // Answered whatever became of the link: somebody waits.
            let error = answer.as_ref().err().cloned();
            let outcome = answer.map_err(|error| server::refusal(&error)).and_then(locks::locked);
            self.tell(shard, FromBroker::Locked { number, outcome }, 0);
            if let Some(error) = error.filter(|_| is_current) {
                self.failed(id, &error);
            }
            return;
        }
        if !is_current {
            return;
        }
        let is_answer = matches!(
            what,
            What::Subscribed { .. }
                | What::Unsubscribed { .. }
                | What::Read { .. }
                | What::Canary { .. }
                | What::Listening { .. }
        );
        match what {
            What::Connected(outcome, inbox) => match *outcome {
                Ok(connections) => self.begin(id, connections, inbox),
                Err(error) => self.end_link(id, &error),
            },
            What::Published { room, serial, events, answer, replicas } => {
                let (outcome, error) = self.outcome(server::published(answer, events));
                let outcome = match (outcome, replicas) {
                    (Outcome::Done(numbers), Some(replicas)) if replicas < i64::from(self.bounds.replicas_min) => {
                        tracing::warn!(%replicas, "an event is on fewer replicas than broker.redis.replicas_min");
                        drop(numbers);
                        Outcome::Unsafe
                    }
                    (outcome, _) => outcome,
                };
                if matches!(outcome, Outcome::Done(_)) {
                    self.figures.events_out.add(events as u64);
                }
                self.answered(id, &room, serial, outcome, error);
            }
            What::Cleared { room, serial, answer } => {
                let (outcome, error) = self.outcome(server::cleared(answer));
                self.answered(id, &room, serial, outcome, error);
            }
            What::Subscribed { rooms, error } => {
                self.lanes.subscribing.done(id, rooms.len());
                self.subscribed(id, &rooms, error);
            }
            What::Unsubscribed { rooms, error } => {
                self.lanes.unsubscribing.done(id, rooms.len());
                self.unsubscribed(id, &rooms, error);
            }
            What::Read { room, serial, ticket, answer } => {
                self.lanes.reading.done(id, 1);
                self.was_read(id, &room, serial, ticket, answer);
            }
            What::Renewed { room, answer } => {
                self.lanes.reading.done(id, 1);
                self.was_renewed(id, &room, answer);
            }
            What::Learned(learned) => self.learned(*learned),
            What::Locked { .. } => {}
            What::Canary { channel, error: Some(error) } => {
                if let Some(up) = self.server(id).and_then(Server::up) {
                    up.canary.refused(channel);
                }
                self.failed(id, &error);
            }
            What::Listening { error: Some(error) } => self.failed(id, &error),
            What::Canary { error: None, .. } | What::Listening { error: None } => {}
        }
        let now_ms = self.now_ms();
        // Whatever it was. The link may have ended with it.
        let server = self.server(id).filter(|server| is_answer && server.generation == generation);
        if let Some(up) = server.and_then(Server::up) {
            up.answers.answered(now_ms);
        }
    }

    fn answered(&mut self, id: ServerId, room: &RoomName, serial: u64, outcome: Outcome, error: Option<RedisError>) {
        let now_ms = self.now_ms();
        let sent = self.submissions.answered(room, serial, outcome, &self.routes, now_ms, &mut self.answers);
        if let Some(sent) = sent {
            self.figures.round_trip.add(sent.elapsed_us(self.start.elapsed().as_micros() as u64));
            if sent.is_again {
                self.figures.resent.add(1);
            }
        }
        if let Some(error) = error {
            let is_refusal = self.meaning(&error) == Meaning::Refused;
            if (is_refusal || server::is_on_its_way(&error))
                && let Some(server) = self.server(id)
                && server.may_say(now_ms)
            {
                let (server, room) = (server.name.as_str(), room.as_str());
                tracing::warn!(server, room, %error, "Redis did not take events; this is said once a second at most");
            }
            self.failed(id, &error);
        }
    }

    /// What an error means here: where rooms have no slots, who has them can't be asked.
    fn meaning(&self, error: &RedisError) -> Meaning {
        match server::meaning(error) {
            Meaning::Elsewhere if self.learning.is_none() => Meaning::Refused,
            meaning => meaning,
        }
    }

    /// What became of a call: one that only another server of a cluster could carry out, which is not known to be one, is
    /// refused.
    fn outcome(&self, (outcome, error): (Outcome, Option<RedisError>)) -> (Outcome, Option<RedisError>) {
        match &error {
            Some(refusal) if matches!(outcome, Outcome::NotYet) && self.meaning(refusal) == Meaning::Refused => {
                (Outcome::Refused(server::ONE_OF_A_CLUSTER), error)
            }
            _ => (outcome, error),
        }
    }

    /// An error that may be one of the link.
    fn failed(&mut self, id: ServerId, error: &RedisError) {
        match self.meaning(error) {
            Meaning::Refused => {}
            // It can't be learned before the slot is there.
            Meaning::Elsewhere if server::is_on_its_way(error) => {}
            Meaning::Elsewhere => self.learn_soon(),
            Meaning::NotNow | Meaning::Broken => self.end_link(id, &error.clone().into()),
        }
    }

    /// Whether to complain of an error. A room that has gone to another server is none to complain of.
    fn may_say(&mut self, id: ServerId, error: &RedisError) -> bool {
        let now_ms = self.now_ms();
        let is_worth = self.meaning(error) != Meaning::Elsewhere || server::is_on_its_way(error);
        is_worth && self.server(id).is_some_and(|server| server.may_say(now_ms))
    }

    // Commands.

    /// Runs a command as a task, which reports.
    fn spawn(&self, server: ServerId, command: impl Future<Output = What> + Send + 'static) {
        let generation = self.servers.get(server.place()).map_or(0, |server| server.generation);
        let reporter = self.reporter.clone();
        // The task ends with its command, which has a timeout.
        drop(tokio::spawn(async move {
            let what = command.await;
            // Nobody listens any more when the broker has ended.
            drop(reporter.send(Report { server, generation, what }));
        }));
    }

    fn connections(&self, server: ServerId) -> Option<&Connections> {
        match &self.servers.get(server.place())?.link {
            Link::Up(up) => Some(&up.connections),
            _ => None,
        }
    }

    fn send_calls(&mut self, id: ServerId, now_ms: u64) {
        let Some(connection) = self.connections(id).map(|connections| connections.publish.clone()) else { return };
        let now_us = self.start.elapsed().as_micros() as u64;
        while let Some((room, serial, request)) = self.submissions.next(id, &self.routes, now_ms, now_us) {
            let connection = connection.clone();
            match request {
                Request::Clear => {
                    let call = self.scripts.clear(&room);
                    self.spawn(id, async move {
                        let answer = connection.call(&call).await;
                        What::Cleared { room, serial, answer }
                    });
                }
                Request::Publish(publish) => {
                    let known = self.rooms.get(room.as_str()).and_then(|room| room.tracker.as_ref()?.place());
                    let (call, events) = (self.scripts.publish(&room, &publish, known), publish.events());
                    let Limits { replicas_min, timeout_ms, .. } = self.bounds;
                    self.figures.calls.add(1);
                    self.spawn(id, async move {
                        let answer = connection.call(&call).await;
                        let replicas = if replicas_min == 0 || answer.is_err() {
                            None
                        } else {
                            let timeout = Duration::from_millis(timeout_ms);
                            // Without an answer, none is known to have it.
                            Some(connection.wait(replicas_min, timeout).await.unwrap_or(0))
                        };
                        What::Published { room, serial, events, answer, replicas }
                    });
                }
            }
        }
    }

    // What shards are told.

    fn answer(&mut self) {
        for answer in std::mem::take(&mut self.answers) {
            let Answer { shard, room, number, told } = answer;
            let message = match told {
                Answered::Submitted(outcome) => {
                    match &outcome {
                        Ok(_) => {}
                        Err(refused) if *refused == DOUBTFUL => self.figures.in_doubt.add(1),
                        Err(_) => self.figures.refused.add(1),
                    }
                    FromBroker::Submitted { room, number, outcome }
                }
                Answered::Cleared(outcome) => FromBroker::Cleared { number, outcome },
            };
            self.tell(shard, message, 0);
        }
    }

    fn tell_all(&mut self, room: &RoomName, shard: ShardId, told: Vec<Told>) {
        for told in told {
            let room = room.clone();
            let (message, events) = match told {
                Told::Followed(followed) => {
                    let bytes = followed.events.iter().map(encoding::event_bytes).sum();
                    self.figures.events_in.add(followed.events.len() as u64);
                    (FromBroker::Followed { room, outcome: Ok(followed) }, bytes)
                }
                Told::Events { epoch, first_seq, events } => {
                    let bytes = events.iter().map(encoding::event_bytes).sum();
                    self.figures.events_in.add(events.len() as u64);
                    (FromBroker::Events(Box::new(Carried { room, epoch, first_seq, events })), bytes)
                }
                Told::Emptied { epoch, log_from } => (FromBroker::Emptied { room, epoch, log_from }, 0),
            };
            self.tell(shard, message, events);
        }
    }

    fn tell(&mut self, shard: ShardId, message: FromBroker, bytes: usize) {
        if let Some(backlog) = self.backlogs.get_mut(usize::from(shard.0)) {
            backlog.messages.push(message);
            backlog.bytes += bytes;
        }
    }

    fn flush(&mut self) {
        for (shard, backlog) in (0u16..).zip(&mut self.backlogs) {
            if backlog.messages.is_empty() {
                continue;
            }
            match self.intake.tell(ShardId(shard), std::mem::take(&mut backlog.messages)) {
                Ok(()) => backlog.bytes = 0,
                Err(messages) => backlog.messages = messages,
            }
        }
    }

    fn count(&mut self) {
        let up = self.servers.iter().filter(|server| server.is_up()).count() as u64;
        // A cluster is one, of which some may be there.
        self.figures.servers_up.set(if self.learning.is_some() { up.min(1) } else { up });
        let fails = |server: &&Server| server.address.is_some() && server.has_failed();
        self.figures.primaries_failing.set(self.servers.iter().filter(fails).count() as u64);
        self.figures.rooms.set(self.rooms.len() as u64);
        self.figures.rooms_behind.set(self.lanes.reading.count() as u64);
        self.figures.pending_bytes.set(self.submissions.pending_bytes() as u64);
        self.figures.backlog_bytes.set(self.backlogs.iter().map(|backlog| backlog.bytes as u64).sum());
    }
}

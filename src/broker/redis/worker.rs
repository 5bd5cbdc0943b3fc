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
//! Larger than others, because all of this is one state: what a link's end means for rooms, reads and shards is told once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redis::{PushInfo, PushKind, RedisError, Value};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::canaries::{CANARY_MS, Round};
use super::connection::{Connection, Connections, Inbox, LinkError};
use super::encoding::{self, Reader};
use super::locks;
use super::placement;
use super::primaries::Primary;
use super::request::Request;
use super::scripts::Scripts;
use super::server::{self, Link, Meaning, Server};
use super::submissions::{Answer, DOUBTFUL, NO_LINK, Outcome, Told as Answered};
use super::tracker::{Page, Step, Told, Tracker, Wanted};
use crate::broker::figures::BrokerFigures;
use crate::broker::link::Intake;
use crate::hub::brokered::{Carried, FromBroker, LockCall, Place, ToBroker};
use crate::hub::name::{RoomName, ShardId};
use crate::wire::native::Refused;

/// Batches of one shard that a turn takes.
const BATCHES_PER_TURN: usize = 64;
/// Channels that one command subscribes to.
const SUBSCRIBE_MAX: usize = 256;
/// Bytes of what a server pushed that wait for the next turn.
const INBOX_BYTES_MAX: usize = 32 << 20;
/// How long after a link was made clients are believed that say to have seen events which the log does not have.
const CLAIMS_MS: u64 = 600_000;
/// How long a room rests whose read or subscription was refused.
const REFUSED_MS: u64 = 1000;
/// Deepest nesting of data that other programs publish; what clients of this hub publish is checked by `limits.depth_max`.
const DEPTH_MAX: usize = 512;

/// The state of the broker.
pub struct Worker {
    intake: Intake,
    scripts: Arc<Scripts>,
    servers: Vec<Server>,
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

/// A room that is followed, was, or will be.
struct Room {
    name: RoomName,
    shard: ShardId,
    server: usize,
    /// None where it is not wanted any more.
    tracker: Option<Tracker>,
    subscription: Subscription,
    /// It waits to be read.
    is_queued: bool,
    /// Its home waits for an answer.
    is_asked: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subscription {
    None,
    Asked,
    Active,
    Ending,
}

/// What a shard is told next.
#[derive(Default)]
struct Backlog {
    messages: Vec<FromBroker>,
    bytes: usize,
}

/// What came of a command.
struct Report {
    server: usize,
    generation: u64,
    what: What,
}

enum What {
    Connected(Box<Result<Connections, LinkError>>, Arc<Inbox>),
    Published { room: RoomName, serial: u64, events: usize, answer: Result<Value, RedisError>, replicas: Option<i64> },
    Cleared { room: RoomName, serial: u64, answer: Result<Value, RedisError> },
    Subscribed { rooms: Vec<RoomName>, primary: Primary, error: Option<RedisError> },
    Unsubscribed { rooms: Vec<RoomName>, primary: Primary, error: Option<RedisError> },
    Read { room: RoomName, primary: Primary, ticket: u64, answer: Result<Value, RedisError> },
    Renewed { room: RoomName, primary: Primary, answer: Result<Value, RedisError> },
    Locked { shard: ShardId, number: u64, primary: Primary, answer: Result<Value, RedisError> },
    Learned(Result<Value, RedisError>),
    Tried { primary: Primary, answers: bool },
    Canary { at: usize, primary: Primary, error: Option<RedisError> },
    Listening { at: usize, primary: Primary, error: Option<RedisError> },
}

impl Worker {
    /// The broker of these servers.
    pub fn new(
        intake: Intake,
        scripts: Scripts,
        servers: Vec<Server>,
        limits: Limits,
        figures: Arc<BrokerFigures>,
    ) -> Worker {
        let (reporter, reports) = mpsc::unbounded_channel();
        figures.servers.set(servers.len() as u64);
        Worker {
            backlogs: (0..intake.shards()).map(|_| Backlog::default()).collect(),
            intake,
            scripts: Arc::new(scripts),
            servers,
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
        let mut first = None;
        for at in 0..self.servers.len() {
            self.begin_link(at);
        }
        let mut missing = self.servers.len();
        while missing > 0
            && let Some(report) = self.reports.recv().await
        {
            let What::Connected(outcome, inbox) = report.what else {
                self.report(report);
                continue;
            };
            missing -= 1;
            let name = self.servers.get(report.server).map(|server| server.name.clone()).unwrap_or_default();
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
                let is_done = self.servers.iter().all(|server| server.submissions.pending_bytes() == 0);
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

    fn turn(&mut self) {
        for at in 0..self.servers.len() {
            self.take_pushed(at);
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
        for at in 0..self.servers.len() {
            self.look_at_times(at, now_ms);
            self.send_calls(at, now_ms);
            self.send_subscriptions(at);
            self.send_reads(at);
        }
        self.answer();
        self.flush();
        self.count();
    }

    /// How long nothing happens unless something comes.
    fn next_wait(&self) -> Duration {
        let now_ms = self.now_ms();
        let times = self.servers.iter().flat_map(|server| {
            let (of_link, of_primaries) = match &server.link {
                Link::Down { retry_ms } => (Some(*retry_ms), None),
                Link::Connecting => (None, None),
                Link::Up(up) => (Some(up.canaries.next_ms(self.bounds.deaf_ms())), server.primaries.next_ms()),
            };
            let of_retries = server.retries.front().map(|(at_ms, _)| *at_ms);
            [of_link, of_retries, server.submissions.next_due_ms(), of_primaries]
        });
        let next_ms = times.flatten().min().unwrap_or(now_ms + CANARY_MS).min(now_ms + CANARY_MS);
        // A timer of this runtime has a resolution of a millisecond: what is due now is due in the next one.
        Duration::from_millis(next_ms.saturating_sub(now_ms).max(1))
    }

    // What shards hand over.

    fn take(&mut self, shard: ShardId, message: ToBroker) {
        let now_ms = self.now_ms();
        match message {
            ToBroker::Submit(submission) => {
                self.figures.submissions.add(1);
                let at = self.server_of(submission.room.as_str());
                if let Some(server) = self.servers.get_mut(at) {
                    server.submissions.push(shard, submission, &server.primaries, now_ms, &mut self.answers);
                }
            }
            ToBroker::Lock(call) => self.lock(shard, *call),
            ToBroker::Follow { room, from, claim } => self.follow(shard, room, from, claim),
            ToBroker::Leave { room } => self.leave(&room),
            ToBroker::Clear { room, number } => {
                let at = self.server_of(room.as_str());
                if let Some(server) = self.servers.get_mut(at) {
                    server.submissions.clear(shard, room, number, &server.primaries, now_ms, &mut self.answers);
                }
            }
        }
    }

    /// Not queued: a client asks again, and what was to be freed is said again.
    fn lock(&mut self, shard: ShardId, call: LockCall) {
        let LockCall { room, field, number, node, action } = call;
        let at = self.server_of(room.as_str());
        let Some(connection) = self.connections(at).map(|connections| connections.publish.clone()) else {
            return self.tell(shard, FromBroker::Locked { number, outcome: Err(NO_LINK) }, 0);
        };
        let primaries = self.servers.get(at).map(|server| &server.primaries);
        let primary = primaries.map(|primaries| primaries.of(room.as_str())).unwrap_or_default();
        if primaries.is_some_and(|primaries| primaries.fails(primary)) {
            return self.tell(shard, FromBroker::Locked { number, outcome: Err(NO_LINK) }, 0);
        }
        let call = self.scripts.lock(&room, &field, node, &action);
        self.spawn(at, async move { What::Locked { shard, number, primary, answer: connection.call(&call).await } });
    }

    fn server_of(&self, room: &str) -> usize {
        match self.rooms.get(room) {
            Some(room) => room.server,
            None => placement::server_of(room, self.servers.iter().map(|server| server.name.as_str())),
        }
    }

    fn follow(&mut self, shard: ShardId, name: RoomName, from: Option<Place>, claim: Option<(u64, u64)>) {
        let (at, now_ms) = (self.server_of(name.as_str()), self.now_ms());
        let Some(server) = self.servers.get_mut(at) else { return };
        let may_have_lost = server.up_ms + CLAIMS_MS > now_ms;
        let room = self.rooms.entry(name.as_str().into()).or_insert_with(|| Room {
            name: name.clone(),
            shard,
            server: at,
            tracker: None,
            subscription: Subscription::None,
            is_queued: false,
            is_asked: false,
        });
        room.shard = shard;
        match &mut room.tracker {
            Some(tracker) => tracker.follow(from),
            None => room.tracker = Some(Tracker::new(from)),
        }
        if let Some(((epoch, seq), tracker)) = claim.filter(|_| may_have_lost).zip(room.tracker.as_mut()) {
            tracker.claim(epoch, seq);
        }
        if !server.is_up() {
            // It is followed as soon as there is a link, and the home told then.
            room.is_asked = false;
            self.tell(shard, FromBroker::Followed { room: name, outcome: Err(NO_LINK) }, 0);
            return;
        }
        room.is_asked = true;
        room.want(server);
        if server.primaries.fails(server.primaries.of(name.as_str())) {
            // Likewise.
            self.refuse_follow(&name, NO_LINK);
        }
    }

    fn leave(&mut self, name: &RoomName) {
        let Some(room) = self.rooms.get_mut(name.as_str()) else { return };
        room.tracker = None;
        room.is_asked = false;
        match room.subscription {
            Subscription::None => drop(self.rooms.remove(name.as_str())),
            Subscription::Active => {
                if let Some(server) = self.servers.get_mut(room.server) {
                    server.unsubscribing.push(server.primaries.of(name.as_str()), name.clone());
                }
            }
            // What is on its way decides when it is there.
            Subscription::Asked | Subscription::Ending => {}
        }
    }

    // What servers push.

    fn take_pushed(&mut self, at: usize) {
        let Some(up) = self.servers.get_mut(at).and_then(Server::up) else { return };
        let pushed = up.inbox.take();
        for channel in &pushed.dropped {
            self.figures.overruns.add(1);
            if let Some(room) = self.scripts.room_of(channel) {
                self.fall_behind(room);
            }
        }
        for push in pushed.messages {
            if !self.take_push(at, push) {
                return;
            }
        }
        let unreadable = self.reader.take_unreadable();
        if unreadable > 0 {
            self.figures.unreadable.add(unreadable);
            tracing::warn!(
                unreadable,
                "events or messages from Redis could not be read: another program publishes them"
            );
        }
    }

    /// False where the link ended with it.
    fn take_push(&mut self, at: usize, push: PushInfo) -> bool {
        match push.kind {
            PushKind::Message | PushKind::SMessage => {
                let mut data = push.data.into_iter();
                if let (Some(Value::BulkString(channel)), Some(Value::BulkString(payload))) = (data.next(), data.next())
                {
                    self.take_message(at, &channel, payload.into());
                }
            }
            PushKind::SUnsubscribe => {
                // Unasked where the room's slot has moved to another server of the cluster.
                if let Some(Value::BulkString(channel)) = push.data.first() {
                    self.subscription_ended(at, channel);
                }
            }
            PushKind::Disconnection => {
                self.end_link(at, &LinkError::Redis(std::io::Error::from(std::io::ErrorKind::ConnectionReset).into()));
                return false;
            }
            _ => {}
        }
        true
    }

    fn take_message(&mut self, at: usize, channel: &[u8], payload: Bytes) {
        let Some(name) = self.scripts.room_of(channel) else {
            self.hear_canary(at, channel);
            return;
        };
        let Some(room) = self.rooms.get_mut(name) else { return };
        let Some(tracker) = &mut room.tracker else { return };
        let bytes = payload.len();
        let is_full = self
            .backlogs
            .get(usize::from(room.shard.0))
            .is_none_or(|backlog| backlog.bytes + bytes > self.bounds.backlog_bytes_max && backlog.bytes > 0);
        if is_full {
            self.figures.overruns.add(1);
            tracker.fall_behind();
        } else if let Some(message) = self.reader.message(&payload) {
            let was_behind = tracker.is_behind();
            let mut told = Vec::new();
            tracker.message(message, bytes, &mut told);
            if tracker.is_behind() && !was_behind {
                self.figures.holes.add(1);
            }
            let (name, shard) = (room.name.clone(), room.shard);
            self.tell_all(&name, shard, told);
        } else {
            // Whatever it was, it has a number.
            tracker.fall_behind();
        }
        self.queue_read(name);
    }

    fn hear_canary(&mut self, at: usize, channel: &[u8]) {
        let Some(up) = self.servers.get_mut(at).and_then(Server::up) else { return };
        if let Some(canary) = self.scripts.canary_of(channel) {
            up.canaries.heard(canary);
        }
    }

    fn subscription_ended(&mut self, at: usize, channel: &[u8]) {
        let Some(name) = self.scripts.room_of(channel) else {
            if let Some(up) = self.servers.get_mut(at).and_then(Server::up)
                && let Some(canary) = self.scripts.canary_of(channel)
            {
                up.canaries.lost(canary);
            }
            return;
        };
        let Some(room) = self.rooms.get_mut(name) else { return };
        if room.subscription != Subscription::Active {
            return;
        }
        room.subscription = Subscription::None;
        if let (Some(tracker), Some(server)) = (&mut room.tracker, self.servers.get_mut(room.server)) {
            tracker.fall_behind();
            room.want(server);
        }
    }

    fn fall_behind(&mut self, name: &str) {
        if let Some(tracker) = self.rooms.get_mut(name).and_then(|room| room.tracker.as_mut()) {
            tracker.fall_behind();
        }
        self.queue_read(name);
    }

    /// Has a room read that is behind.
    fn queue_read(&mut self, name: &str) {
        if let Some(room) = self.rooms.get_mut(name)
            && let Some(server) = self.servers.get_mut(room.server)
        {
            room.want(server);
        }
    }

    // What came of commands.

    fn report(&mut self, report: Report) {
        let Report { server: at, generation, what } = report;
        if let What::Locked { shard, number, primary, answer } = what {
            // Answered whatever became of the link: somebody waits.
            let error = answer.as_ref().err().cloned();
            let outcome = answer.map_err(|error| server::refusal(&error)).and_then(locks::locked);
            self.tell(shard, FromBroker::Locked { number, outcome }, 0);
            if let Some(server) = self.servers.get_mut(at).filter(|server| server.generation == generation) {
                server.saw(primary, error.as_ref());
                if let Some(error) = error {
                    self.failed(at, &error);
                }
            }
            return;
        }
        let Some(server) = self.servers.get_mut(at) else { return };
        if server.generation != generation {
            return;
        }
        match what {
            What::Connected(outcome, inbox) => match *outcome {
                Ok(connections) => self.begin(at, connections, inbox),
                Err(error) => self.end_link(at, &error),
            },
            What::Published { room, serial, events, answer, replicas } => {
                let (outcome, error) = server::published(answer, events);
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
                self.answered(at, &room, serial, outcome, error);
            }
            What::Cleared { room, serial, answer } => {
                let (outcome, error) = server::cleared(answer);
                self.answered(at, &room, serial, outcome, error);
            }
            What::Subscribed { rooms, primary, error } => {
                server.subscribing.done(primary, rooms.len());
                server.saw(primary, error.as_ref());
                self.subscribed(at, &rooms, error);
            }
            What::Unsubscribed { rooms, primary, error } => {
                server.unsubscribing.done(primary, rooms.len());
                server.saw(primary, error.as_ref());
                self.unsubscribed(at, &rooms, error);
            }
            What::Read { room, primary, ticket, answer } => {
                server.reading.done(primary, 1);
                server.saw(primary, answer.as_ref().err());
                self.was_read(at, primary, &room, ticket, answer);
            }
            What::Renewed { room, primary, answer } => {
                server.reading.done(primary, 1);
                server.saw(primary, answer.as_ref().err());
                self.was_renewed(at, primary, &room, answer);
            }
            // Where it was not to be had, it is asked again, and what is known holds until then.
            What::Learned(slots) => {
                let is_known = slots.as_ref().is_ok_and(|slots| server.learn(slots));
                if !is_known {
                    tracing::debug!(server = %server.name, ?slots, "the cluster did not tell who has which slots");
                }
            }
            What::Locked { .. } => {}
            What::Tried { primary, answers } => server.primaries.tried(primary, answers),
            What::Canary { at: canary, primary, error } => {
                server.saw(primary, error.as_ref());
                if let Some(error) = error {
                    // Should it be so of all servers of a cluster, the library has come to a halt.
                    let may_hear = server.up().is_none_or(|up| up.canaries.refused(canary));
                    self.canary_failed(at, &error, may_hear);
                }
            }
            What::Listening { at: canary, primary, error } => {
                server.saw(primary, error.as_ref());
                let may_hear = server.up().is_none_or(|up| up.canaries.listens(canary, error.is_none()));
                if let Some(error) = error {
                    self.canary_failed(at, &error, may_hear);
                }
            }
        }
    }

    fn canary_failed(&mut self, at: usize, error: &RedisError, may_hear: bool) {
        let is_cluster = self.servers.get(at).is_some_and(|server| server.target.is_cluster());
        match server::meaning(error) {
            Meaning::Broken if !may_hear && is_cluster && error.is_timeout() => self.is_deaf(at),
            Meaning::Broken if !may_hear => self.end_link(at, &error.clone().into()),
            _ => self.failed(at, error),
        }
    }

    fn answered(&mut self, at: usize, room: &RoomName, serial: u64, outcome: Outcome, error: Option<RedisError>) {
        let now_ms = self.now_ms();
        if let Some(server) = self.servers.get_mut(at)
            && let Some(sent) =
                server.submissions.answered(room, serial, outcome, &mut server.primaries, &mut self.answers)
        {
            self.figures.round_trip.add(sent.elapsed_us(self.start.elapsed().as_micros() as u64));
            if sent.is_again {
                self.figures.resent.add(1);
            }
        }
        if let Some(error) = error {
            let is_refusal = server::meaning(&error) == Meaning::Refused;
            if is_refusal
                && let Some(server) = self.servers.get_mut(at)
                && server.may_say(now_ms)
            {
                let (server, room) = (server.name.as_str(), room.as_str());
                tracing::warn!(server, room, %error, "Redis refused events; this is said once a second at most");
            }
            self.failed(at, &error);
        }
    }

    /// An error that may be one of the link.
    fn failed(&mut self, at: usize, error: &RedisError) {
        let Some(server) = self.servers.get(at) else { return };
        let is_of_link = match server::meaning(error) {
            Meaning::Refused => false,
            // The others of the cluster may be well; what concerns the slots of one is tried again by the library.
            Meaning::NotNow => !server.target.is_cluster(),
            Meaning::Broken if server.target.is_cluster() => !error.is_timeout() && server.primaries.all_fail(),
            Meaning::Broken => true,
        };
        if is_of_link {
            self.end_link(at, &error.clone().into());
        }
    }

    fn subscribed(&mut self, at: usize, names: &[RoomName], error: Option<RedisError>) {
        for name in names {
            let Some(room) = self.rooms.get_mut(name.as_str()) else { continue };
            let Some(server) = self.servers.get_mut(at) else { continue };
            if let Some(error) = &error {
                room.subscription = Subscription::None;
                if room.tracker.is_none() {
                    self.rooms.remove(name.as_str());
                    continue;
                }
                server.retries.push_back((self.start.elapsed().as_millis() as u64 + REFUSED_MS, name.clone()));
                let refused = server::refusal(error);
                self.refuse_follow(name, refused);
                continue;
            }
            room.subscription = Subscription::Active;
            match &room.tracker {
                Some(_) => room.want(server),
                None => server.unsubscribing.push(server.primaries.of(name.as_str()), name.clone()),
            }
        }
        if let Some(error) = error {
            if self.servers.get_mut(at).is_some_and(|server| server.may_say(self.start.elapsed().as_millis() as u64)) {
                tracing::warn!(%error, rooms = names.len(), "Redis refused a subscription");
            }
            self.failed(at, &error);
        }
    }

    fn unsubscribed(&mut self, at: usize, names: &[RoomName], error: Option<RedisError>) {
        for name in names {
            let Some(room) = self.rooms.get_mut(name.as_str()) else { continue };
            let Some(server) = self.servers.get_mut(at) else { continue };
            // One that could not be ended may be ended or not: it is begun again where it is wanted.
            room.subscription = Subscription::None;
            match &mut room.tracker {
                Some(tracker) => {
                    tracker.fall_behind();
                    room.want(server);
                }
                None => drop(self.rooms.remove(name.as_str())),
            }
        }
        if let Some(error) = error {
            self.failed(at, &error);
        }
    }

    fn was_read(
        &mut self,
        at: usize,
        primary: Primary,
        name: &RoomName,
        ticket: u64,
        answer: Result<Value, RedisError>,
    ) {
        let page = answer.and_then(|value| self.page(value).ok_or_else(server::not_understood));
        let page = match page {
            Ok(page) => page,
            Err(error) => {
                self.read_failed(at, name, &error);
                return;
            }
        };
        let Some(room) = self.rooms.get_mut(name.as_str()) else { return };
        let Some(tracker) = &mut room.tracker else { return };
        let mut told = Vec::new();
        let step = tracker.page(ticket, page, &mut told);
        let shard = room.shard;
        if told.iter().any(|told| matches!(told, Told::Followed(_))) {
            room.is_asked = false;
        }
        match step {
            Step::None => {}
            Step::Read => {
                let wanted = tracker.next_read();
                self.read(at, primary, name.clone(), wanted);
            }
            Step::Renew(old) => self.renew(at, primary, name.clone(), old),
        }
        self.tell_all(name, shard, told);
        self.queue_read(name.as_str());
    }

    fn read_failed(&mut self, at: usize, name: &RoomName, error: &RedisError) {
        if let Some(room) = self.rooms.get_mut(name.as_str())
            && let Some(tracker) = &mut room.tracker
            && let Some(server) = self.servers.get_mut(at)
        {
            tracker.give_up();
            // It is not read before its time has come.
            room.is_queued = true;
            server.retries.push_back((self.start.elapsed().as_millis() as u64 + REFUSED_MS, name.clone()));
            if server.may_say(self.start.elapsed().as_millis() as u64) {
                tracing::warn!(room = name.as_str(), %error, "a room's log could not be read");
            }
            self.refuse_follow(name, server::refusal(error));
        }
        self.failed(at, error);
    }

    fn refuse_follow(&mut self, name: &RoomName, refused: Refused) {
        if let Some(room) = self.rooms.get_mut(name.as_str())
            && std::mem::take(&mut room.is_asked)
        {
            let shard = room.shard;
            self.tell(shard, FromBroker::Followed { room: name.clone(), outcome: Err(refused) }, 0);
        }
    }

    fn was_renewed(&mut self, at: usize, primary: Primary, name: &RoomName, answer: Result<Value, RedisError>) {
        if let Err(error) = answer {
            self.read_failed(at, name, &error);
            return;
        }
        let Some(tracker) = self.rooms.get_mut(name.as_str()).and_then(|room| room.tracker.as_mut()) else { return };
        if tracker.renewed() {
            let wanted = tracker.next_read();
            self.read(at, primary, name.clone(), wanted);
        }
    }

    /// What was read of a room.
    fn page(&mut self, value: Value) -> Option<Page> {
        let Value::Array(parts) = value else { return None };
        let [epoch, seq, id, log_from, Value::Array(entries)] = <[Value; 5]>::try_from(parts).ok()? else {
            return None;
        };
        let seq_of = |value: &Value| match value {
            Value::BulkString(digits) => encoding::seq(digits),
            _ => None,
        };
        let (Value::BulkString(epoch), Value::BulkString(id)) = (epoch, id) else { return None };
        let mut found = Vec::with_capacity(entries.len() / 2);
        let mut entries = entries.into_iter();
        while let (Some(last), Some(Value::BulkString(message))) = (entries.next(), entries.next()) {
            found.push((seq_of(&last)?, self.reader.message(&message.into())));
        }
        let (epoch, seq, log_from) = (encoding::epoch(&epoch)?, seq_of(&seq)?, seq_of(&log_from)?);
        Some(Page { epoch, seq, id: encoding::id(&id), log_from, entries: found })
    }

    // Links.

    fn begin_link(&mut self, at: usize) {
        let Some(server) = self.servers.get_mut(at) else { return };
        server.link = Link::Connecting;
        let (target, scripts) = (server.target.clone(), self.scripts.clone());
        let inbox = Inbox::new(self.pushed.clone(), INBOX_BYTES_MAX);
        self.spawn(at, async move {
            let outcome = target.connect(&scripts, inbox.clone()).await;
            What::Connected(Box::new(outcome), inbox)
        });
    }

    fn begin(&mut self, at: usize, connections: Connections, inbox: Arc<Inbox>) {
        let now_ms = self.now_ms();
        let Some(server) = self.servers.get_mut(at) else { return };
        let is_again = server.set_up(connections, inbox, now_ms);
        server.submissions.link_up();
        if is_again {
            self.figures.reconnects.add(1);
            tracing::warn!(server = %server.name, "the broker is reached again");
        } else {
            tracing::info!(server = %server.name, "the broker is reached");
        }
        for room in self.rooms.values_mut().filter(|room| room.server == at && room.tracker.is_some()) {
            room.want(server);
        }
    }

    /// The link does not hear what is said over it, whether or not that is answered.
    fn is_deaf(&mut self, at: usize) {
        let Some(server) = self.servers.get(at) else { return };
        self.figures.deaf.add(1);
        tracing::error!(server = %server.name, "the broker's connection does not hear its own messages");
        self.end_link(at, &LinkError::Timeout);
    }

    /// The link is broken, or was not made.
    fn end_link(&mut self, at: usize, error: &LinkError) {
        let now_ms = self.now_ms();
        let Some(server) = self.servers.get_mut(at) else { return };
        let was_up = server.is_up();
        server::complain(&server.name, error, was_up || server.generation == 0);
        server.set_down(now_ms);
        server.submissions.link_down(&server.primaries, now_ms, &mut self.answers);
        let mut refused = Vec::new();
        self.rooms.retain(|_, room| {
            if room.server != at {
                return true;
            }
            room.subscription = Subscription::None;
            room.is_queued = false;
            if let Some(tracker) = &mut room.tracker {
                tracker.lost();
            }
            if std::mem::take(&mut room.is_asked) {
                refused.push((room.shard, room.name.clone()));
            }
            room.tracker.is_some()
        });
        for (shard, room) in refused {
            self.tell(shard, FromBroker::Followed { room, outcome: Err(NO_LINK) }, 0);
        }
    }

    fn look_at_times(&mut self, at: usize, now_ms: u64) {
        let deaf_ms = self.bounds.deaf_ms();
        let Some(server) = self.servers.get_mut(at) else { return };
        server.submissions.expire(&mut server.primaries, now_ms, &mut self.answers);
        while let Some((_, name)) = server.retries.pop_front_if(|(at_ms, _)| *at_ms <= now_ms) {
            if let Some(room) = self.rooms.get_mut(name.as_str()).filter(|room| room.tracker.is_some()) {
                room.is_queued = false;
                room.want(server);
            }
        }
        match &mut server.link {
            Link::Down { retry_ms } if *retry_ms <= now_ms => self.begin_link(at),
            Link::Down { .. } | Link::Connecting => {}
            Link::Up(up) if up.canaries.is_deaf(now_ms, deaf_ms) => self.is_deaf(at),
            Link::Up(up) => {
                if let Some(round) = up.canaries.due(now_ms) {
                    self.send_canaries(at, &round);
                }
                self.look_at_primaries(at, now_ms);
            }
        }
    }

    /// Has the primaries of a cluster known, and those tried that fail.
    fn look_at_primaries(&mut self, at: usize, now_ms: u64) {
        let Some(server) = self.servers.get_mut(at).filter(|server| server.target.is_cluster()) else { return };
        for (primary, fails) in server.primaries.news() {
            if fails {
                tracing::error!(%primary, "a server of the cluster does not answer: publishes to its rooms are refused");
            } else {
                tracing::warn!(%primary, "a server of the cluster answers again");
            }
        }
        let to_try = server.primaries.to_try(now_ms);
        let learns = server.primaries.learns(now_ms);
        let target = server.target.clone();
        if !to_try.is_empty() {
            self.refuse_of_failing(at);
        }
        for (primary, address) in to_try {
            let target = target.clone();
            self.spawn(at, async move {
                let tried = target.try_server(&address).await;
                if let Err(error) = &tried {
                    tracing::debug!(primary = %address, %error, "a server of the cluster was tried");
                }
                What::Tried { primary, answers: tried.is_ok() }
            });
        }
        if learns && let Some(connection) = self.connections(at).map(|connections| connections.follow.clone()) {
            self.spawn(at, async move { What::Learned(connection.cluster_slots().await) });
        }
    }

    /// Tells those who asked for rooms of primaries that fail. They are followed as soon as they can be.
    fn refuse_of_failing(&mut self, at: usize) {
        let Some(primaries) = self.servers.get(at).map(|server| &server.primaries) else { return };
        let waits =
            |room: &&Room| room.server == at && room.is_asked && primaries.fails(primaries.of(room.name.as_str()));
        let waiting: Vec<RoomName> = self.rooms.values().filter(waits).map(|room| room.name.clone()).collect();
        waiting.iter().for_each(|name| self.refuse_follow(name, NO_LINK));
    }

    // Commands.

    /// Runs a command as a task, which reports.
    fn spawn(&self, at: usize, command: impl Future<Output = What> + Send + 'static) {
        let generation = self.servers.get(at).map_or(0, |server| server.generation);
        let reporter = self.reporter.clone();
        // The task ends with its command, which has a timeout.
        drop(tokio::spawn(async move {
            let what = command.await;
            // Nobody listens any more when the broker has ended.
            drop(reporter.send(Report { server: at, generation, what }));
        }));
    }

    fn connections(&self, at: usize) -> Option<&Connections> {
        match &self.servers.get(at)?.link {
            Link::Up(up) => Some(&up.connections),
            _ => None,
        }
    }

    /// Has canaries listened to and sent; not at primaries that fail, unless all do: then it has to be known whether
    /// anything is heard.
    fn send_canaries(&mut self, at: usize, round: &Round) {
        let Some(server) = self.servers.get_mut(at) else { return };
        let Link::Up(up) = &mut server.link else { return };
        let follow = up.connections.follow.clone();
        let says =
            round.listen.iter().map(|canary| (*canary, false)).chain(round.say.iter().map(|canary| (*canary, true)));
        let mut all: Vec<(usize, bool, Primary)> = says
            .map(|(canary, says)| (canary, says, server.primaries.of_key(&self.scripts.canary_channel(canary))))
            .collect();
        if !all.iter().all(|(.., primary)| server.primaries.fails(*primary)) {
            all.retain(|(canary, says, primary)| {
                let fails = server.primaries.fails(*primary);
                // The others tell whether anything is heard.
                if fails && *says {
                    up.canaries.refused(*canary);
                } else if fails {
                    up.canaries.listens(*canary, false);
                }
                !fails
            });
        }
        for (canary, says, primary) in all {
            let (follow, command) = (follow.clone(), self.scripts.canary(canary));
            let channels = [self.scripts.canary_channel(canary)];
            self.spawn(at, async move {
                if says {
                    What::Canary { at: canary, primary, error: follow.command(command).await.err() }
                } else {
                    What::Listening { at: canary, primary, error: follow.subscribe(&channels).await.err() }
                }
            });
        }
    }

    fn send_calls(&mut self, at: usize, now_ms: u64) {
        let Some(connection) = self.connections(at).map(|connections| connections.publish.clone()) else { return };
        let now_us = self.start.elapsed().as_micros() as u64;
        while let Some((room, serial, request)) =
            self.servers.get_mut(at).and_then(|server| server.submissions.next(&server.primaries, now_ms, now_us))
        {
            let connection = connection.clone();
            match request {
                Request::Clear => {
                    let call = self.scripts.clear(&room);
                    self.spawn(at, async move {
                        let answer = connection.call(&call).await;
                        What::Cleared { room, serial, answer }
                    });
                }
                Request::Publish(publish) => {
                    let known = self.rooms.get(room.as_str()).and_then(|room| room.tracker.as_ref()?.place());
                    let (call, events) = (self.scripts.publish(&room, &publish, known), publish.events());
                    let Limits { replicas_min, timeout_ms, .. } = self.bounds;
                    self.figures.calls.add(1);
                    self.spawn(at, async move {
                        let answer = connection.call(&call).await;
                        let replicas = if replicas_min == 0 || answer.is_err() {
                            None
                        } else {
                            let timeout = Duration::from_millis(timeout_ms);
                            // Without an answer, none is known to have it.
                            Some(connection.wait(replicas_min, timeout, call.key()).await.unwrap_or(0))
                        };
                        What::Published { room, serial, events, answer, replicas }
                    });
                }
            }
        }
    }

    fn send_subscriptions(&mut self, at: usize) {
        let Some(connection) = self.connections(at).map(|connections| connections.follow.clone()) else { return };
        loop {
            let Some(server) = self.servers.get_mut(at) else { return };
            // In a cluster each goes by itself: those of a server that is gone must not hold up the others.
            let at_once = if server.target.is_cluster() { 1 } else { SUBSCRIBE_MAX };
            let (mut rooms, mut primary) = (Vec::new(), Primary::default());
            while rooms.len() < at_once
                && let Some((of, name)) = server.subscribing.pop(&server.primaries)
            {
                let Some(room) = self.rooms.get_mut(name.as_str()) else { continue };
                if room.tracker.is_some() {
                    rooms.push(name);
                    primary = of;
                } else {
                    self.rooms.remove(name.as_str());
                }
            }
            let is_ending = rooms.is_empty();
            while is_ending
                && rooms.len() < at_once
                && let Some((of, name)) = server.unsubscribing.pop(&server.primaries)
            {
                let Some(room) = self.rooms.get_mut(name.as_str()) else { continue };
                if room.tracker.is_none() && room.subscription == Subscription::Active {
                    room.subscription = Subscription::Ending;
                    rooms.push(name);
                    primary = of;
                }
            }
            if rooms.is_empty() {
                return;
            }
            let lanes = if is_ending { &mut server.unsubscribing } else { &mut server.subscribing };
            lanes.sent(primary, rooms.len());
            let channels: Vec<String> = rooms.iter().map(|room| self.scripts.channel(room.as_str())).collect();
            let connection = connection.clone();
            self.spawn(at, async move {
                if is_ending {
                    What::Unsubscribed { error: connection.unsubscribe(&channels).await.err(), rooms, primary }
                } else {
                    What::Subscribed { error: connection.subscribe(&channels).await.err(), rooms, primary }
                }
            });
        }
    }

    fn send_reads(&mut self, at: usize) {
        let mut postponed = Vec::new();
        while let Some(server) = self.servers.get_mut(at).filter(|server| server.is_up()) {
            let Some((primary, name)) = server.reading.pop(&server.primaries) else { break };
            let Some(room) = self.rooms.get_mut(name.as_str()) else { continue };
            // Read when its shard has taken what waits for it.
            let backlog = self.backlogs.get(usize::from(room.shard.0)).map_or(0, |backlog| backlog.bytes);
            if backlog > self.bounds.backlog_bytes_max / 2 {
                postponed.push((primary, name));
                continue;
            }
            room.is_queued = false;
            let Some(tracker) = room.tracker.as_mut().filter(|tracker| tracker.is_behind()) else { continue };
            if room.subscription == Subscription::Active {
                let wanted = tracker.begin();
                self.read(at, primary, name, wanted);
            }
        }
        if let Some(server) = self.servers.get_mut(at) {
            postponed.into_iter().for_each(|(primary, name)| server.reading.push(primary, name));
        }
    }

    fn read(&mut self, at: usize, primary: Primary, room: RoomName, wanted: Wanted) {
        let Some(connection) = self.reads(at, primary) else { return };
        self.figures.reads.add(1);
        let epoch = wanted.epoch.unwrap_or_else(|| fastrand::u64(..));
        let call = self.scripts.read(&room, &wanted, epoch);
        self.spawn(at, async move {
            let answer = connection.call(&call).await;
            What::Read { room, primary, ticket: wanted.ticket, answer }
        });
    }

    fn renew(&mut self, at: usize, primary: Primary, room: RoomName, old: u64) {
        let Some(connection) = self.reads(at, primary) else { return };
        self.figures.renewed.add(1);
        tracing::warn!(room = room.as_str(), "a room's log has lost its end: it gets another epoch");
        let call = self.scripts.renew(&room, old, fastrand::u64(..));
        self.spawn(at, async move {
            let answer = connection.call(&call).await;
            What::Renewed { room, primary, answer }
        });
    }

    /// Counts another read: over what.
    fn reads(&mut self, at: usize, primary: Primary) -> Option<Connection> {
        let connection = self.connections(at)?.follow.clone();
        self.servers.get_mut(at)?.reading.sent(primary, 1);
        Some(connection)
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
        let up = self.servers.iter().filter(|server| server.is_up()).count();
        self.figures.servers_up.set(up as u64);
        self.figures.primaries_failing.set(self.servers.iter().map(|server| server.primaries.failing() as u64).sum());
        self.figures.rooms.set(self.rooms.len() as u64);
        self.figures.rooms_behind.set(self.servers.iter().map(|server| server.reading.count() as u64).sum());
        self.figures
            .pending_bytes
            .set(self.servers.iter().map(|server| server.submissions.pending_bytes() as u64).sum());
        self.figures.backlog_bytes.set(self.backlogs.iter().map(|backlog| backlog.bytes as u64).sum());
    }
}

impl Room {
    /// Has it subscribed to, or read where it is behind.
    fn want(&mut self, server: &mut Server) {
        if !server.is_up() {
            return;
        }
        match self.subscription {
            Subscription::None => {
                self.subscription = Subscription::Asked;
                server.subscribing.push(server.primaries.of(self.name.as_str()), self.name.clone());
            }
            Subscription::Active => {
                if !self.is_queued && self.tracker.as_ref().is_some_and(Tracker::is_behind) {
                    self.is_queued = true;
                    server.reading.push(server.primaries.of(self.name.as_str()), self.name.clone());
                }
            }
            // It is looked at when that is done.
            Subscription::Asked | Subscription::Ending => {}
        }
    }
}

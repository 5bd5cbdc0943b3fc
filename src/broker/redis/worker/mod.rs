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
//! What becomes of links is in `links`, who has which rooms of a cluster in `topology`. Larger than others, because
//! all of this is one state.
//!
//! A subscription is there when the server pushes that it is, and has ended when it pushes that, in the order in which it does.
//! The answers to these commands tell only of failures, and may be those to others: a server of a cluster that ends a
//! subscription by itself says it in the form of an answer, and the library takes it for that to whatever was asked first. So
//! what is asked over such a connection knows its own answer (see `read.lua`), or does without it, and another one publishes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redis::{PushInfo, PushKind, RedisError, Value};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use self::topology::{Learned, Learning};
use super::canary::{CANARY_MS, Canary};
use super::connection::{Connection, Connections, Inbox, LinkError, Target};
use super::encoding::{self, Reader};
use super::lanes::Lanes;
use super::locks;
use super::placement::{Routes, ServerId};
use super::request::Request;
use super::scripts::Scripts;
use super::server::{self, Link, Meaning, Server};
use super::submissions::{Answer, DOUBTFUL, NO_LINK, Outcome, Submissions, Told as Answered};
use super::tracker::{Page, Step, Told, Tracker, Wanted};
use crate::broker::figures::BrokerFigures;
use crate::broker::link::Intake;
use crate::hub::brokered::{Carried, FromBroker, LockCall, Place, ToBroker};
use crate::hub::name::{RoomName, ShardId};
use crate::wire::native::Refused;

mod links;
mod topology;

/// Batches of one shard that a turn takes.
const BATCHES_PER_TURN: usize = 64;
/// Channels that one command subscribes to.
const SUBSCRIBE_MAX: usize = 256;
/// Channels whose subscription is on its way to a server, or whose end is.
const SUBSCRIPTIONS_MAX: usize = 2048;
/// Reads on their way to a server. What comes meanwhile waits for them, so that this bounds it.
const READS_MAX: usize = 512;
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

/// Rooms that something is to be asked for.
struct RoomLanes {
    /// Their channels are subscribed to.
    subscribing: Lanes,
    /// They are not wanted any more.
    unsubscribing: Lanes,
    /// They are read.
    reading: Lanes,
}

/// A room that is followed, was, or will be.
struct Room {
    name: RoomName,
    shard: ShardId,
    server: ServerId,
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
            lanes: RoomLanes {
                subscribing: Lanes::new(SUBSCRIPTIONS_MAX),
                unsubscribing: Lanes::new(SUBSCRIPTIONS_MAX),
                reading: Lanes::new(READS_MAX),
            },
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

    fn follow(&mut self, shard: ShardId, name: RoomName, from: Option<Place>, claim: Option<(u64, u64)>) {
        let (id, now_ms) = (self.server_of(name.as_str()), self.now_ms());
        let Some(server) = self.servers.get(id.place()) else { return };
        let may_have_lost = !server.is_up() || server.up_ms + CLAIMS_MS > now_ms;
        let room = self.rooms.entry(name.as_str().into()).or_insert_with(|| Room {
            name: name.clone(),
            shard,
            server: id,
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
        // Without a link it is followed as soon as there is one, and the home told then.
        room.is_asked = self.routes.is_up(id);
        room.want(&self.routes, &mut self.lanes);
        if !self.routes.is_up(id) {
            self.tell(shard, FromBroker::Followed { room: name, outcome: Err(NO_LINK) }, 0);
        }
    }

    fn leave(&mut self, name: &RoomName) {
        let Some(room) = self.rooms.get_mut(name.as_str()) else { return };
        room.tracker = None;
        room.is_asked = false;
        match room.subscription {
            Subscription::None => drop(self.rooms.remove(name.as_str())),
            Subscription::Active => self.lanes.unsubscribing.push(room.server, name.clone()),
            // What is on its way decides when it is there.
            Subscription::Asked | Subscription::Ending => {}
        }
    }

    // What servers push.

    fn take_pushed(&mut self, server: ServerId) {
        let Some(up) = self.server(server).and_then(Server::up) else { return };
        let pushed = up.inbox.take();
        for channel in &pushed.dropped {
            self.figures.overruns.add(1);
            if let Some(room) = self.scripts.room_of(channel) {
                self.fall_behind(room);
            }
        }
        for push in pushed.messages {
            if !self.take_push(server, push) {
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
    fn take_push(&mut self, server: ServerId, push: PushInfo) -> bool {
        let mut data = push.data.into_iter();
        match push.kind {
            PushKind::Message | PushKind::SMessage => {
                if let (Some(Value::BulkString(channel)), Some(Value::BulkString(payload))) = (data.next(), data.next())
                {
                    self.take_message(server, &channel, payload.into());
                }
            }
            PushKind::Subscribe | PushKind::SSubscribe => {
                if let Some(Value::BulkString(channel)) = data.next() {
                    self.subscription_began(server, &channel);
                }
            }
            PushKind::Unsubscribe | PushKind::SUnsubscribe => {
                if let Some(Value::BulkString(channel)) = data.next() {
                    self.subscription_ended(server, &channel);
                }
            }
            PushKind::Disconnection => {
                let error = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
                self.end_link(server, &LinkError::Redis(error.into()));
                return false;
            }
            _ => {}
        }
        true
    }

    fn take_message(&mut self, server: ServerId, channel: &[u8], payload: Bytes) {
        let Some(name) = self.scripts.room_of(channel) else {
            if let Some((canary, at)) = self.canary_in(server, channel) {
                canary.heard(at);
            }
            return;
        };
        // One that had the room may say something yet that nobody else hears.
        let Some(room) = self.rooms.get_mut(name).filter(|room| room.server == server) else { return };
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

    /// The canary of a link, and which it is whose channel this is.
    fn canary_in(&mut self, server: ServerId, channel: &[u8]) -> Option<(&mut Canary, u32)> {
        let at = self.scripts.canary_of(channel)?;
        Some((&mut self.server(server)?.up()?.canary, at))
    }

    /// A channel is subscribed to.
    fn subscription_began(&mut self, server: ServerId, channel: &[u8]) {
        let Some(name) = self.scripts.room_of(channel) else {
            if let Some((canary, at)) = self.canary_in(server, channel) {
                canary.listens(at);
            }
            return;
        };
        let Some(room) = self.rooms.get_mut(name).filter(|room| room.server == server) else {
            // It was not refused, as it seemed to be, and nobody wants it any more.
            return self.end_subscriptions(server, Vec::new(), vec![self.scripts.channel(name)]);
        };
        // Also where the answer to another command was taken for a refusal of this one.
        if matches!(room.subscription, Subscription::None | Subscription::Asked) {
            room.subscription = Subscription::Active;
            match &room.tracker {
                Some(_) => room.want(&self.routes, &mut self.lanes),
                None => self.lanes.unsubscribing.push(server, room.name.clone()),
            }
        }
    }

    /// A subscription has ended: as it was asked for, or because the room's slot is another server's now.
    fn subscription_ended(&mut self, server: ServerId, channel: &[u8]) {
        let Some(name) = self.scripts.room_of(channel) else {
            if let Some((canary, at)) = self.canary_in(server, channel) {
                canary.lost(at);
                if let Some(up) = self.server(server).and_then(Server::up) {
                    up.answers.mix_up();
                }
                self.learn_soon();
            }
            return;
        };
        let Some(room) = self.rooms.get_mut(name).filter(|room| room.server == server) else { return };
        match room.subscription {
            Subscription::Active => {
                if let Some(up) = self.server(server).and_then(Server::up) {
                    up.answers.mix_up();
                }
                self.learn_soon();
            }
            Subscription::Ending => {}
            // It is that of a subscription before the one that is asked for.
            Subscription::None | Subscription::Asked => return,
        }
        self.begin_anew(name);
    }

    /// A room is not subscribed to: it is again where it is wanted.
    fn begin_anew(&mut self, name: &str) {
        let Some(room) = self.rooms.get_mut(name) else { return };
        room.subscription = Subscription::None;
        match &mut room.tracker {
            Some(tracker) => {
                tracker.fall_behind();
                room.want(&self.routes, &mut self.lanes);
            }
            None => drop(self.rooms.remove(name)),
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
        if let Some(room) = self.rooms.get_mut(name) {
            room.want(&self.routes, &mut self.lanes);
        }
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

    fn subscribed(&mut self, id: ServerId, names: &[RoomName], error: Option<RedisError>) {
        let retry_ms = self.now_ms() + REFUSED_MS;
        for name in names {
            let Some(room) = self.rooms.get_mut(name.as_str()) else { continue };
            // One that is subscribed to was told to be.
            if room.server != id || room.subscription != Subscription::Asked {
                continue;
            }
            if error.is_some() && room.tracker.is_none() {
                self.rooms.remove(name.as_str());
                continue;
            }
            // Where it was not told and not refused, that was the answer to something else: it is asked for again then.
            if let Some(server) = self.servers.get_mut(id.place()) {
                server.retries.push_back((retry_ms, name.clone()));
            }
            if let Some(error) = &error {
                room.subscription = Subscription::None;
                self.refuse_follow(name, server::refusal(error));
            }
        }
        if let Some(error) = error {
            if self.may_say(id, &error) {
                tracing::warn!(%error, rooms = names.len(), "Redis refused a subscription");
            }
            self.failed(id, &error);
        }
    }

    /// Whether to complain of an error. A room that has gone to another server is none to complain of.
    fn may_say(&mut self, id: ServerId, error: &RedisError) -> bool {
        let now_ms = self.now_ms();
        let is_worth = self.meaning(error) != Meaning::Elsewhere || server::is_on_its_way(error);
        is_worth && self.server(id).is_some_and(|server| server.may_say(now_ms))
    }

    fn unsubscribed(&mut self, id: ServerId, names: &[RoomName], error: Option<RedisError>) {
        for name in names {
            // One whose end could not be had may have ended or not: it is begun again where it is wanted.
            let room = self.rooms.get(name.as_str()).filter(|room| room.server == id);
            if room.is_some_and(|room| room.subscription == Subscription::Ending) {
                self.begin_anew(name.as_str());
            }
        }
        if let Some(error) = error {
            self.failed(id, &error);
        }
    }

    fn was_read(&mut self, id: ServerId, name: &RoomName, serial: u64, ticket: u64, answer: Result<Value, RedisError>) {
        let parts = match answer.map(|value| answered_to(value, serial)) {
            Ok(Some(parts)) => parts,
            Ok(None) => return self.read_astray(id, name),
            Err(error) => {
                self.give_up_read(id, name, &error);
                return self.failed(id, &error);
            }
        };
        if let Some(up) = self.server(id).and_then(Server::up) {
            up.answers.is_right();
        }
        let Some(page) = self.page(parts) else {
            // Another program has written there.
            return self.give_up_read(id, name, &server::not_understood());
        };
        let Some(room) = self.rooms.get_mut(name.as_str()).filter(|room| room.server == id) else { return };
        let Some(tracker) = &mut room.tracker else { return };
        let mut told = Vec::new();
        let step = tracker.page(ticket, page, &mut told);
        let shard = room.shard;
        if told.iter().any(|told| matches!(told, Told::Followed(_))) {
            room.is_asked = false;
        }
        match step {
            Step::None => {}
            Step::Read => self.read_on(id, name),
            Step::Renew(old) => self.renew(id, name.clone(), old),
        }
        self.tell_all(name, shard, told);
        self.queue_read(name.as_str());
    }

    /// The next page of a room.
    fn read_on(&mut self, id: ServerId, name: &RoomName) {
        let may_ask = self.may_ask(id, self.now_ms());
        let Some(tracker) = self.rooms.get_mut(name.as_str()).and_then(|room| room.tracker.as_mut()) else { return };
        if may_ask {
            let wanted = tracker.next_read();
            self.read(id, name.clone(), wanted);
        } else {
            tracker.give_up();
        }
    }

    /// Something else was answered than was asked. It is read again when answers are what they should be.
    fn read_astray(&mut self, id: ServerId, name: &RoomName) {
        let up = self.servers.get_mut(id.place()).and_then(Server::up);
        if up.is_some_and(|up| !up.answers.is_wrong()) {
            return self.end_link(id, &server::not_understood().into());
        }
        let room = self.rooms.get_mut(name.as_str()).filter(|room| room.server == id);
        if let Some(tracker) = room.and_then(|room| room.tracker.as_mut()) {
            tracker.give_up();
        }
        self.queue_read(name.as_str());
    }

    /// A room could not be read: it is again some time later.
    fn give_up_read(&mut self, id: ServerId, name: &RoomName, error: &RedisError) {
        let retry_ms = self.now_ms() + REFUSED_MS;
        if let Some(room) = self.rooms.get_mut(name.as_str()).filter(|room| room.server == id)
            && let Some(tracker) = &mut room.tracker
            && let Some(server) = self.servers.get_mut(id.place())
        {
            tracker.give_up();
            // It is not read before its time has come.
            room.is_queued = true;
            server.retries.push_back((retry_ms, name.clone()));
            if self.may_say(id, error) {
                tracing::warn!(room = name.as_str(), %error, "a room's log could not be read");
            }
            self.refuse_follow(name, server::refusal(error));
        }
    }

    fn refuse_follow(&mut self, name: &RoomName, refused: Refused) {
        if let Some(room) = self.rooms.get_mut(name.as_str())
            && std::mem::take(&mut room.is_asked)
        {
            let shard = room.shard;
            self.tell(shard, FromBroker::Followed { room: name.clone(), outcome: Err(refused) }, 0);
        }
    }

    fn was_renewed(&mut self, id: ServerId, name: &RoomName, answer: Result<Value, RedisError>) {
        if let Err(error) = answer {
            self.give_up_read(id, name, &error);
            return self.failed(id, &error);
        }
        let room = self.rooms.get_mut(name.as_str()).filter(|room| room.server == id);
        if room.and_then(|room| room.tracker.as_mut()).is_some_and(Tracker::renewed) {
            self.read_on(id, name);
            self.queue_read(name.as_str());
        }
    }

    /// What was read of a room. None where it is no page.
    fn page(&mut self, parts: [Value; 5]) -> Option<Page> {
        let [epoch, seq, id, log_from, Value::Array(entries)] = parts else { return None };
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

    /// Whether something may be asked over the connection that is subscribed.
    fn may_ask(&self, id: ServerId, now_ms: u64) -> bool {
        let link = self.servers.get(id.place()).map(|server| &server.link);
        matches!(link, Some(Link::Up(up)) if up.answers.may_ask(now_ms))
    }

    /// That connection, which something is asked over now.
    fn ask(&mut self, id: ServerId) -> Option<Connection> {
        let up = self.server(id)?.up()?;
        up.answers.ask();
        Some(up.connections.follow.clone())
    }

    fn send_subscriptions(&mut self, id: ServerId, now_ms: u64) {
        // In a cluster each goes by itself: those of one command must have one slot.
        let at_once = if self.learning.is_some() { 1 } else { SUBSCRIBE_MAX };
        while self.may_ask(id, now_ms) {
            let mut rooms = Vec::new();
            while rooms.len() < at_once
                && let Some(name) = self.lanes.subscribing.pop(id)
            {
                let Some(room) = self.rooms.get_mut(name.as_str()) else { continue };
                if room.subscription != Subscription::Asked {
                    continue;
                }
                if room.tracker.is_some() {
                    rooms.push(name);
                } else {
                    self.rooms.remove(name.as_str());
                }
            }
            if !rooms.is_empty() {
                self.subscribe(id, rooms);
                continue;
            }
            while rooms.len() < at_once
                && let Some(name) = self.lanes.unsubscribing.pop(id)
            {
                let Some(room) = self.rooms.get_mut(name.as_str()) else { continue };
                if room.tracker.is_none() && room.subscription == Subscription::Active {
                    room.subscription = Subscription::Ending;
                    rooms.push(name);
                }
            }
            if rooms.is_empty() {
                return;
            }
            let channels = self.channels(&rooms);
            self.end_subscriptions(id, rooms, channels);
        }
    }

    fn channels(&self, rooms: &[RoomName]) -> Vec<String> {
        rooms.iter().map(|room| self.scripts.channel(room.as_str())).collect()
    }

    fn subscribe(&mut self, id: ServerId, rooms: Vec<RoomName>) {
        let Some(connection) = self.ask(id) else { return };
        self.lanes.subscribing.sent(id, rooms.len());
        let channels = self.channels(&rooms);
        self.spawn(id, async move { What::Subscribed { error: connection.subscribe(&channels).await.err(), rooms } });
    }

    fn end_subscriptions(&mut self, id: ServerId, rooms: Vec<RoomName>, channels: Vec<String>) {
        let Some(connection) = self.ask(id) else { return };
        self.lanes.unsubscribing.sent(id, rooms.len());
        self.spawn(
            id,
            async move { What::Unsubscribed { error: connection.unsubscribe(&channels).await.err(), rooms } },
        );
    }

    fn send_reads(&mut self, id: ServerId, now_ms: u64) {
        let mut postponed = Vec::new();
        while self.may_ask(id, now_ms)
            && let Some(name) = self.lanes.reading.pop(id)
        {
            let Some(room) = self.rooms.get_mut(name.as_str()) else { continue };
            // Read when its shard has taken what waits for it.
            let backlog = self.backlogs.get(usize::from(room.shard.0)).map_or(0, |backlog| backlog.bytes);
            if backlog > self.bounds.backlog_bytes_max / 2 {
                postponed.push(name);
                continue;
            }
            room.is_queued = false;
            let Some(tracker) = room.tracker.as_mut().filter(|tracker| tracker.is_behind()) else { continue };
            if room.subscription == Subscription::Active {
                let wanted = tracker.begin();
                self.read(id, name, wanted);
            }
        }
        postponed.into_iter().for_each(|name| self.lanes.reading.push(id, name));
    }

    /// Over the connection that is subscribed: what comes there before the answer is in it.
    fn read(&mut self, id: ServerId, room: RoomName, wanted: Wanted) {
        let Some(connection) = self.ask(id) else { return };
        self.lanes.reading.sent(id, 1);
        self.figures.reads.add(1);
        self.next_read += 1;
        let (serial, ticket) = (self.next_read, wanted.ticket);
        let epoch = wanted.epoch.unwrap_or_else(|| fastrand::u64(..));
        let call = self.scripts.read(&room, &wanted, epoch, serial);
        self.spawn(id, async move {
            let answer = connection.call(&call).await;
            What::Read { room, serial, ticket, answer }
        });
    }

    fn renew(&mut self, id: ServerId, room: RoomName, old: u64) {
        let Some(connection) = self.connections(id).map(|connections| connections.publish.clone()) else { return };
        self.lanes.reading.sent(id, 1);
        self.figures.renewed.add(1);
        tracing::warn!(room = room.as_str(), "a room's log has lost its end: it gets another epoch");
        let call = self.scripts.renew(&room, old, fastrand::u64(..));
        self.spawn(id, async move {
            let answer = connection.call(&call).await;
            What::Renewed { room, answer }
        });
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

impl Room {
    /// Has it subscribed to, or read where it is behind.
    fn want(&mut self, routes: &Routes, lanes: &mut RoomLanes) {
        if !routes.is_up(self.server) {
            return;
        }
        match self.subscription {
            Subscription::None => {
                self.subscription = Subscription::Asked;
                lanes.subscribing.push(self.server, self.name.clone());
            }
            Subscription::Active => {
                if !self.is_queued && self.tracker.as_ref().is_some_and(Tracker::is_behind) {
                    self.is_queued = true;
                    lanes.reading.push(self.server, self.name.clone());
                }
            }
            // It is looked at when that is done.
            Subscription::Asked | Subscription::Ending => {}
        }
    }
}

/// What a read found, if that is the answer to this one.
fn answered_to(answer: Value, serial: u64) -> Option<[Value; 5]> {
    let Value::Array(parts) = answer else { return None };
    let [epoch, seq, id, log_from, entries, Value::BulkString(echo)] = <[Value; 6]>::try_from(parts).ok()? else {
        return None;
    };
    (echo == serial.to_string().as_bytes()).then_some([epoch, seq, id, log_from, entries])
}

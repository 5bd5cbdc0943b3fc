//! The nodes' thread: keeps the lease, looks who else lives, carries calls there and back, and registers what this node has.
//!
//! ```text
//! turn:  1. what others say              answers, calls, that somebody came or went
//!        2. what became of commands
//!        3. what this node wants         calls, ids, presence
//!        4. times                        beats, deadlines, the link
//! ```
//!
//! Commands are tasks of the same thread that report what came of them; nothing here waits for one. Larger than others
//! because it is one state: what the end of the link means for beats, calls and claims is told once.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use redis::{PushKind, RedisError, Value, cmd};
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::calls::{Failure, Frame, LONG_MS, Pending};
use super::keys::{Keys, parse_run, run_text};
use super::members::{Beat, Event, Members, NodeInfo, Was};
use super::registered::{Change, ChangeKind, Ids, Presence, is_of_lock, room_of};
use super::{Asked, Call, ClaimFailure, FreeLock, Handle, Service, Task, Tell, TellPresence};
use crate::broker::redis::connection::{Connection, Connections, Inbox, LinkError, Target};
use crate::broker::redis::server::{Meaning, is_on_its_way, meaning};
use crate::hub::reply::{self, HubError};
use crate::hub::shared_locks::NotedLock;
use crate::wire::codes::ErrorCode;

/// Calls of others that are carried out at a time; beyond it they are refused.
const SERVING_MAX: usize = 256;
/// The same of those that wait for something to happen.
const SERVING_LONG_MAX: usize = 4096;
/// Bytes of what others say that wait for a turn.
const INBOX_BYTES_MAX: usize = 64 << 20;
/// Ids, or fields of presence, in one command.
const BATCH: usize = 500;
/// Such commands on their way.
const BATCHES_MAX: usize = 8;
/// How long a node may take to clean up after another before a third one is asked to.
const CLEAN_MS: u64 = 15_000;
/// Members are told of so many sessions at a time that a dead node has left behind.
const TOLD_AT_ONCE: usize = 1000;
/// How often it is tried to tell them, and the time between.
const TELL_TRIES: usize = 40;
const TELL_WAIT: Duration = Duration::from_millis(250);
/// Bytes of answers that wait for a link.
const UNSAID_BYTES_MAX: usize = 16 << 20;
/// Dead nodes whose record could not be taken away yet.
const LEFT_MAX: usize = 256;
/// The first wait before a link is made again, and the longest.
const WAIT_MIN_MS: u64 = 40;
const WAIT_MAX_MS: u64 = 1000;
/// How long ids are refused after the registry was lost, until all nodes have told which they have.
const REST_MS: u64 = 1500;
/// How often at most it is looked which servers a cluster of Redis has.
const LOOK_AROUND_MS: u64 = 5000;
/// How long nothing is registered after a refusal, as of a Redis that is out of memory, and how often that is told.
const REFUSED_REST_MS: u64 = 250;
const REFUSED_TOLD_MS: u64 = 1000;
/// How long an answer is kept for a node that lives and does not listen, and how often it is said again meanwhile.
const ANSWER_KEPT_MS: u64 = 10_000;
const ANSWER_AGAIN_MS: u64 = 100;
/// The shortest time that a call is given at the other end.
const TTL_MIN_MS: u64 = 10;

/// Times that bound it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) lease_ms: u64,
    pub(super) timeout_ms: u64,
}

pub(super) struct Worker {
    handle: Handle,
    run: u64,
    target: Arc<Target>,
    keys: Keys,
    bounds: Bounds,
    service: Service,
    start: Instant,
    link: Link,
    /// Tells links apart, so that what is reported of a former one means nothing.
    generation: u64,
    attempts: u32,
    is_beating: bool,
    /// When this node said something to itself that it has not heard.
    canary_sent_ms: Option<u64>,
    members: Members,
    pending: Pending,
    /// Calls of others that are being carried out, by their run and number.
    serving: HashMap<(u64, u64), Serving>,
    serving_long: usize,
    ids: Ids<Tell>,
    /// From when on ids may be claimed.
    claims_from_ms: u64,
    presence: Presence,
    batches: usize,
    /// From when on more may be registered, and when that something was refused may be told again.
    register_from_ms: u64,
    tell_refused_ms: u64,
    look_around_ms: u64,
    /// Answers that could not be said, how many bytes they are, and when they are said again.
    unsaid: VecDeque<KeptAnswer>,
    unsaid_bytes: usize,
    say_again_ms: u64,
    /// Dead nodes after which this one has cleaned up, but for their record.
    left: VecDeque<u64>,
    reports: mpsc::UnboundedReceiver<Report>,
    reporter: mpsc::UnboundedSender<Report>,
    pushed: Arc<Notify>,
    /// Is dropped when this node is registered for the first time, or can't be.
    started: Option<SyncSender<()>>,
}

/// An answer to another node's call, which is kept until then where that one does not hear it.
struct KeptAnswer {
    to: u64,
    frame: Bytes,
    until_ms: u64,
}

/// A call of another node that is being carried out.
struct Serving {
    task: AbortHandle,
    is_long: bool,
}

enum Link {
    Down { retry_ms: u64 },
    Connecting,
    Up { connections: Connections, inbox: Arc<Inbox> },
}

struct Report {
    generation: u64,
    what: What,
}

enum What {
    Connected(Box<Result<Connections, LinkError>>, Arc<Inbox>),
    Beaten(Result<Value, RedisError>),
    Sent { number: u64, to: u64, answer: Result<Value, RedisError> },
    Said(Result<Value, RedisError>),
    Answered { kept: KeptAnswer, answer: Result<Value, RedisError> },
    Claimed { claims: Vec<(Box<str>, Tell)>, answer: Result<Value, RedisError> },
    Released { ids: Vec<Box<str>>, answer: Result<Value, RedisError> },
    Reclaimed { ids: Vec<Box<str>>, answer: Result<Value, RedisError> },
    Written { changes: Vec<Change>, answer: Result<Value, RedisError> },
    Served { to: u64, number: u64, outcome: Result<Vec<u8>, HubError> },
    Freed { node: NodeInfo, outcome: Result<LeftBehind, RedisError> },
    LeftTold { node: NodeInfo },
    Nothing,
    Finished { run: u64, answer: Result<Value, RedisError> },
}

impl Worker {
    pub(super) fn new(handle: Handle, target: Target, keys: Keys, bounds: Bounds, service: Service) -> Worker {
        let (reporter, reports) = mpsc::unbounded_channel();
        let me = handle.me();
        Worker {
            run: me.run,
            members: Members::new(me.run, &me.name, bounds.lease_ms),
            handle,
            target: Arc::new(target),
            keys,
            bounds,
            service,
            start: Instant::now(),
            link: Link::Down { retry_ms: 0 },
            generation: 0,
            attempts: 0,
            is_beating: false,
            canary_sent_ms: None,
            pending: Pending::default(),
            serving: HashMap::new(),
            serving_long: 0,
            started: None,
            ids: Ids::default(),
            claims_from_ms: 0,
            presence: Presence::default(),
            batches: 0,
            register_from_ms: 0,
            tell_refused_ms: 0,
            look_around_ms: 0,
            unsaid: VecDeque::new(),
            unsaid_bytes: 0,
            say_again_ms: 0,
            left: VecDeque::new(),
            reports,
            reporter,
            pushed: Arc::new(Notify::new()),
        }
    }

    /// Runs until it is asked to end, and takes this node out of the registry then.
    pub(super) async fn run(
        mut self,
        mut calls: mpsc::Receiver<Call>,
        mut tasks: mpsc::UnboundedReceiver<Task>,
        started: SyncSender<()>,
    ) {
        self.started = Some(started);
        let shared = self.handle.0.clone();
        loop {
            self.turn();
            let wait = tokio::time::sleep(self.next_wait());
            tokio::select! {
                () = shared.stopped.notified() => {}
                () = self.pushed.notified() => {}
                Some(report) = self.reports.recv() => {
                    // What was pushed before it may mean that it is not what it seems to be.
                    self.take_pushed();
                    self.report(report);
                }
                Some(call) = calls.recv() => self.call(call),
                Some(task) = tasks.recv() => {
                    self.task(task);
                    // What came with it goes together.
                    while let Ok(task) = tasks.try_recv() {
                        self.task(task);
                    }
                }
                () = wait => {}
            }
            if shared.stop.load(Ordering::SeqCst) {
                break;
            }
        }
        self.retire().await;
    }

    fn now_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    fn next_wait(&self) -> Duration {
        let now_ms = self.now_ms();
        let of_link = match &self.link {
            Link::Down { retry_ms } => Some(*retry_ms),
            Link::Connecting => None,
            Link::Up { .. } => (!self.is_beating).then(|| self.members.next_ms()),
        };
        let is_up = matches!(self.link, Link::Up { .. });
        // Until then it is of no use to look; later, whatever comes has it looked at.
        let register = (is_up && self.register_from_ms > now_ms).then_some(self.register_from_ms);
        let say_again = (is_up && !self.unsaid.is_empty()).then_some(self.say_again_ms);
        let next_ms = [of_link, self.pending.next_ms(), self.presence.next_ms(), register, say_again]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(now_ms + 1000);
        // A timer of this runtime has a resolution of a millisecond: what is due now is due in the next one.
        Duration::from_millis(next_ms.saturating_sub(now_ms).clamp(1, 1000))
    }

    /// Says what there is.
    fn count(&mut self) {
        let figures = self.handle.figures();
        figures.alive.set(1 + self.members.others().count() as u64);
        figures.registry_up.set(u64::from(matches!(self.link, Link::Up { .. })));
        figures.lease_age_ms.set(self.now_ms().saturating_sub(self.members.beaten_ms()));
        figures.client_ids.set(self.ids.held().len() as u64);
        figures.present.set(self.presence.len() as u64);
        figures.missing.add(std::mem::take(&mut self.pending.missing));
    }

    fn turn(&mut self) {
        self.count();
        self.take_pushed();
        let now_ms = self.now_ms();
        self.pending.expire(now_ms);
        self.presence.look(now_ms);
        match &self.link {
            Link::Down { retry_ms } if *retry_ms <= now_ms => self.connect(),
            Link::Down { .. } | Link::Connecting => {}
            Link::Up { .. } if self.canary_sent_ms.is_some_and(|sent| sent + self.bounds.timeout_ms <= now_ms) => {
                self.link_lost(&"it does not bring what is said to this node");
            }
            Link::Up { .. } => {
                if self.register_from_ms <= now_ms {
                    self.register();
                }
                if self.say_again_ms <= now_ms {
                    self.say_again();
                }
                if !self.is_beating && self.members.next_ms() <= now_ms {
                    self.beat(now_ms);
                }
            }
        }
    }

    // ---- the link ----

    fn connect(&mut self) {
        let target = self.target.clone();
        let inbox = Inbox::new(self.pushed.clone(), INBOX_BYTES_MAX);
        let of_link = inbox.clone();
        self.link = Link::Connecting;
        let channel = self.keys.channel(self.run);
        self.spawn(async move {
            // In a cluster that is who has the registry as well: all of it has one slot.
            let connected = match target.connect_to_owner(&channel, of_link.clone()).await {
                // Nobody is told of this node before it hears what is said to it.
                Ok(connections) => match connections.follow.subscribe(&[channel]).await {
                    Ok(()) => Ok(connections),
                    Err(error) => Err(error.into()),
                },
                Err(error) => Err(error),
            };
            What::Connected(Box::new(connected), of_link)
        });
        drop(inbox);
    }

    fn link_lost(&mut self, error: &dyn std::fmt::Display) {
        let now_ms = self.now_ms();
        self.started = None;
        self.handle.figures().links_lost.add(1);
        if self.attempts == 0 {
            tracing::warn!(%error, "nodes can't know each other right now: the registry can't be reached");
        }
        let longest = (WAIT_MIN_MS << self.attempts.min(8)).min(WAIT_MAX_MS);
        self.attempts = self.attempts.saturating_add(1);
        self.link = Link::Down { retry_ms: now_ms + fastrand::u64(longest / 2..=longest) };
        self.generation += 1;
        (self.is_beating, self.batches, self.canary_sent_ms) = (false, 0, None);
        self.members.failed(now_ms);
        // What was being written may be written or not.
        self.presence.lost(false);
        for tell in self.ids.refuse_all() {
            tell(Err(ClaimFailure::Unreachable));
        }
    }

    fn spawn(&self, what: impl Future<Output = What> + Send + 'static) -> AbortHandle {
        let (reporter, generation) = (self.reporter.clone(), self.generation);
        let task = tokio::spawn(async move {
            // Nobody listens any more at the end.
            drop(reporter.send(Report { generation, what: what.await }));
        });
        task.abort_handle()
    }

    fn publish_connection(&self) -> Option<Connection> {
        match &self.link {
            Link::Up { connections, .. } => Some(connections.publish.clone()),
            _ => None,
        }
    }

    /// Sends a command; `report` says what is told of its answer.
    fn send(
        &self,
        command: redis::Cmd,
        report: impl FnOnce(Result<Value, RedisError>) -> What + Send + 'static,
    ) -> bool {
        let Some(connection) = self.publish_connection() else { return false };
        self.spawn(async move { report(connection.command(command).await) });
        true
    }

    // ---- what is said ----

    fn take_pushed(&mut self) {
        let Link::Up { inbox, .. } = &self.link else { return };
        let pushed = inbox.take();
        if !pushed.dropped.is_empty() {
            tracing::warn!("more was said to this node by others than it could take: calls of theirs go unanswered");
        }
        for push in pushed.messages {
            match push.kind {
                PushKind::Message | PushKind::SMessage => {
                    let Some(Value::BulkString(bytes)) = push.data.get(1) else { continue };
                    match Frame::decode(bytes) {
                        Some((from, frame)) => self.heard(from, frame),
                        None => tracing::debug!("what another node said can't be read"),
                    }
                }
                PushKind::Disconnection => return self.link_lost(&"the connection ended"),
                // A server of a cluster ends the subscription because the slot is another's now.
                PushKind::SUnsubscribe => return self.link_lost(&"this node's channel has gone to another server"),
                _ => {}
            }
        }
    }

    fn heard(&mut self, from: u64, frame: Frame) {
        match frame {
            Frame::Look if from == self.run => self.canary_sent_ms = None,
            Frame::Look => self.members.look_soon(),
            Frame::Answer { number, .. } if self.pending.is_repeated(number, from) => {}
            Frame::Answer { number, outcome } => {
                let outcome = outcome.map_err(Failure::Refused);
                if let Err(Ok(late)) = self.pending.answered(number, from, outcome)
                    && let Some(node) = self.members.others().find(|node| node.run == from)
                {
                    (self.service.late)(node.clone(), late);
                }
            }
            Frame::Cancel { number } => {
                // What it was about to answer is put back as it ends.
                if let Some(serving) = self.serving.remove(&(from, number)) {
                    self.serving_long -= usize::from(serving.is_long);
                    serving.task.abort();
                }
            }
            Frame::Call { number, ttl_ms, data } => {
                let is_long = ttl_ms > LONG_MS;
                let (count, max) = match is_long {
                    true => (self.serving_long, SERVING_LONG_MAX),
                    false => (self.serving.len() - self.serving_long, SERVING_MAX),
                };
                if count >= max {
                    self.handle.figures().refused.add(1);
                    let busy =
                        HubError::new(ErrorCode::Unavailable, "the node has too much to do right now; try again");
                    return self.answer(from, number, Err(busy));
                }
                let timeout = Duration::from_millis(ttl_ms);
                let answering = (self.service.answer)(Asked { from, data, timeout });
                let task = self.spawn(async move {
                    let outcome = tokio::time::timeout(timeout, answering).await;
                    let late = || HubError::new(ErrorCode::Unavailable, "there was no answer in time");
                    What::Served { to: from, number, outcome: outcome.unwrap_or_else(|_| Err(late())) }
                });
                self.serving_long += usize::from(is_long);
                self.serving.insert((from, number), Serving { task, is_long });
            }
        }
    }

    fn answer(&mut self, to: u64, number: u64, outcome: Result<Bytes, HubError>) {
        let frame = Frame::Answer { number, outcome }.encode(self.run).or_else(|| {
            let error = HubError::new(ErrorCode::TooLarge, "the answer is too long to be carried to another node");
            Frame::Answer { number, outcome: Err(error) }.encode(self.run)
        });
        if let Some(frame) = frame {
            let until_ms = self.now_ms() + ANSWER_KEPT_MS;
            self.say_answer(KeptAnswer { to, frame: frame.into(), until_ms });
        }
    }

    /// Says an answer, or keeps it until there is a link: a session may be in it, or a message, which nobody else has. Who
    /// does not wait for it any more gives it back.
    fn say_answer(&mut self, kept: KeptAnswer) {
        let Some(connection) = self.publish_connection() else { return self.keep_answer(kept) };
        let command = self.keys.publish(kept.to, &kept.frame);
        self.spawn(async move { What::Answered { answer: connection.command(command).await, kept } });
    }

    fn keep_answer(&mut self, kept: KeptAnswer) {
        if self.unsaid.is_empty() {
            self.say_again_ms = self.now_ms() + ANSWER_AGAIN_MS;
        }
        self.unsaid_bytes += kept.frame.len();
        self.unsaid.push_back(kept);
        while self.unsaid_bytes > UNSAID_BYTES_MAX
            && let Some(KeptAnswer { to, frame, .. }) = self.unsaid.pop_front()
        {
            self.unsaid_bytes -= frame.len();
            tracing::warn!(node = run_text(to), "an answer to another node is lost: the registry is away for too long");
        }
    }

    fn say_again(&mut self) {
        self.unsaid_bytes = 0;
        for kept in std::mem::take(&mut self.unsaid) {
            self.say_answer(kept);
        }
    }

    /// An answer was said. Where nobody heard it for certain it is said again: the node that waits for it may be about to make
    /// its link anew, as this one did, because the registry has gone to another server.
    fn answered(&mut self, kept: KeptAnswer, answer: &Result<Value, RedisError>) {
        let was_heard = match answer {
            Ok(Value::Int(0)) => false,
            Ok(_) => true,
            Err(error) => meaning(error) == Meaning::Broken,
        };
        let waits = || self.members.others().any(|node| node.run == kept.to) && self.now_ms() < kept.until_ms;
        if !was_heard && waits() {
            self.keep_answer(kept);
        }
    }

    /// Has the others look who lives.
    fn tell_all_to_look(&self) {
        let Some(frame) = Frame::Look.encode(self.run) else { return };
        for other in self.members.others() {
            self.send(self.keys.publish(other.run, &frame), What::Said);
        }
    }

    // ---- what this node wants ----

    fn call(&mut self, call: Call) {
        let Call { to, data, timeout, responder } = call;
        if self.publish_connection().is_none() {
            // Its answer tells that all of them are missing.
            let answers = to.into_iter().map(|node| super::Answer { node, outcome: Err(Failure::Missing) });
            return responder.resolve(Ok(answers.collect()));
        }
        let ttl_ms = (timeout.as_millis() as u64).max(TTL_MIN_MS);
        let now_ms = self.now_ms();
        let runs: Vec<u64> = to.iter().map(|node| node.run).collect();
        self.handle.figures().calls.add(runs.len() as u64);
        // The other end ends first, so that what it says of that still comes.
        let deadline_ms = now_ms + ttl_ms + ttl_ms / 10;
        let Some(number) = self.pending.begin(to, deadline_ms, ttl_ms > LONG_MS, responder) else { return };
        let Some(frame) = (Frame::Call { number, ttl_ms, data }).encode(self.run) else {
            let error = HubError::new(ErrorCode::TooLarge, "this is too long to be carried to another node");
            for run in runs {
                drop(self.pending.answered(number, run, Err(Failure::Refused(error.clone()))));
            }
            return;
        };
        for to in runs {
            self.send(self.keys.publish(to, &frame), move |answer| What::Sent { number, to, answer });
        }
    }

    fn task(&mut self, task: Task) {
        match task {
            Task::Claim { id, tell } if self.may_claim() => self.ids.claim(id, tell),
            Task::Claim { tell, .. } => tell(Err(ClaimFailure::Unreachable)),
            Task::Release { id } => self.ids.release(id),
            Task::Present { room, session, told, presenting } => {
                let now_ms = self.now_ms();
                self.presence.set(&room, &session, told, presenting, now_ms);
            }
            Task::Cleaned { run } => self.finish(run),
            Task::Sweep => self.sweep(),
        }
    }

    fn sweep(&mut self) {
        for (number, asked) in self.pending.sweep() {
            let Some(frame) = (Frame::Cancel { number }).encode(self.run) else { continue };
            for run in asked {
                self.send(self.keys.publish(run, &frame), What::Said);
            }
        }
    }

    fn may_claim(&self) -> bool {
        self.publish_connection().is_some() && self.claims_from_ms <= self.now_ms()
    }

    /// Sends what is to be registered, or not any more.
    fn register(&mut self) {
        while self.batches < BATCHES_MAX {
            let releases = self.ids.next_releases(BATCH);
            let claims = self.ids.next_claims(BATCH);
            let changes = self.presence.next(BATCH);
            if releases.is_empty() && claims.is_empty() && changes.is_empty() {
                return;
            }
            if !releases.is_empty() {
                let command = self.keys.release(self.run, &releases);
                self.batches += 1;
                self.send(command, move |answer| What::Released { ids: releases, answer });
            }
            if !claims.is_empty() {
                let ids: Vec<Box<str>> = claims.iter().map(|(id, _)| id.clone()).collect();
                let command = self.keys.claim(self.run, &ids);
                self.batches += 1;
                self.send(command, move |answer| What::Claimed { claims, answer });
            }
            if !changes.is_empty() {
                let told = |change: &Change| (!change.kind.is_absent()).then(|| change.told.clone());
                let fields: Vec<_> = changes.iter().map(|change| (change.field.clone(), told(change))).collect();
                let fields = fields.iter().map(|(field, told)| (&**field, told.as_deref()));
                let command = self.keys.present_changes(self.run, fields);
                self.batches += 1;
                self.send(command, move |answer| What::Written { changes, answer });
            }
        }
    }

    // ---- who lives ----

    fn beat(&mut self, now_ms: u64) {
        let info = serde_json::to_string(&self.handle.me()).unwrap_or_else(|_| "{}".to_owned());
        let may_bury = self.members.may_bury(now_ms);
        let command = self.keys.beat(self.run, &info, self.bounds.lease_ms, CLEAN_MS, may_bury);
        self.is_beating = self.send(command, What::Beaten);
        // A connection may be there and bring nothing.
        if let (None, Some(frame)) = (self.canary_sent_ms, Frame::Look.encode(self.run)) {
            self.canary_sent_ms = Some(now_ms);
            self.send(self.keys.publish(self.run, &frame), What::Said);
        }
        self.members.sent(now_ms);
        if self.look_around_ms <= now_ms {
            self.look_around_ms = now_ms + LOOK_AROUND_MS;
            self.look_around();
        }
    }

    /// Keeps in mind who else is in the cluster of Redis, should its server there be gone.
    fn look_around(&self) {
        let Link::Up { connections, .. } = &self.link else { return };
        let (target, connections) = (self.target.clone(), connections.clone());
        self.spawn(async move {
            // What it means that this fails, the next beat finds out.
            drop(target.look_around(&connections).await);
            What::Nothing
        });
    }

    fn beaten(&mut self, answer: Result<Value, RedisError>) {
        self.is_beating = false;
        let beat = match answer.map(read_beat) {
            Ok(Some(beat)) => beat,
            other => {
                // Refused for now, as by a primary without its replicas: the hub does not wait for that to start.
                self.started = None;
                return match other {
                    Err(error) => self.failed(&error),
                    Ok(_) => tracing::error!("the registry of nodes answered something else than it should"),
                };
            }
        };
        // Not before: another server may have the registry than the one that is reached.
        if std::mem::take(&mut self.attempts) > 0 {
            tracing::info!("the registry of nodes can be reached again");
        }
        let is_new = beat.was == Was::New;
        let events = self.members.beaten(beat, self.now_ms());
        self.handle.set_others(self.members.others().cloned().collect());
        for event in &events {
            self.note(event);
        }
        self.started = None;
        if is_new {
            self.tell_all_to_look();
        }
        for event in events {
            if let Event::CleanUp(node) = &event {
                // That is told when what this thread has to clean up is done.
                self.clean_up(node.clone());
            } else {
                (self.service.event)(event);
            }
        }
    }

    fn note(&mut self, event: &Event) {
        match event {
            Event::Joined(node) => tracing::info!(node = node.name, run = run_text(node.run), "a node has joined"),
            Event::Left(node) => {
                tracing::info!(node = node.name, run = run_text(node.run), "a node has left, or is dead");
                self.pending.gone(node.run);
            }
            Event::CleanUp(node) => {
                tracing::info!(node = node.name, run = run_text(node.run), "this node cleans up after another");
            }
            Event::Revived { was_buried } => {
                self.handle.figures().revived.add(1);
                tracing::warn!(was_buried, "the registry did not know this node any more; it registers again");
                self.presence.lost(*was_buried);
                if !was_buried {
                    self.claims_from_ms = self.now_ms() + REST_MS;
                }
                let held: Vec<Box<str>> = self.ids.held().cloned().collect();
                for ids in held.chunks(BATCH) {
                    let claimed = ids.to_vec();
                    self.send(self.keys.claim(self.run, ids), |answer| What::Reclaimed { ids: claimed, answer });
                }
            }
            Event::SameName(node) => {
                let name = &node.name;
                tracing::error!(name, "another node has the same name; give each its own with node.name");
            }
        }
    }

    /// Frees the ids of a dead node, and finds who was present through it.
    fn clean_up(&mut self, node: NodeInfo) {
        if self.left.contains(&node.run) {
            // Only its record is left.
            return (self.service.event)(Event::CleanUp(node));
        }
        let Some(connection) = self.publish_connection() else { return };
        let (keys, run) = (self.keys.clone(), node.run);
        let others: Vec<u64> = self.handle.alive().iter().map(|node| node.run).collect();
        self.spawn(async move { What::Freed { node, outcome: free(&connection, &keys, run, &others).await } });
    }

    fn freed(&mut self, node: NodeInfo, outcome: Result<LeftBehind, RedisError>) {
        match outcome {
            Ok(LeftBehind { locks, absent }) => {
                let (lock, presence) = (self.service.lock.clone(), self.service.presence.clone());
                self.spawn(async move {
                    // As many at a time as the way through the broker always has room for.
                    for part in locks.chunks(TOLD_AT_ONCE) {
                        let freed = part.iter().map(|(field, noted)| free_lock(&lock, room_of(field), noted, node.run));
                        if join_all(freed).await.contains(&false) {
                            // What it had stays in the registry; this node, or another one, is asked again later.
                            return What::Nothing;
                        }
                    }
                    for part in absent.chunks(TOLD_AT_ONCE) {
                        let told = part.iter().map(|(field, told)| tell(&presence, room_of(field), told, false));
                        join_all(told).await;
                    }
                    What::LeftTold { node }
                });
            }
            // This node, or another one, is asked again later.
            Err(error) => self.failed(&error),
        }
    }

    /// Members know who has left with a dead node.
    fn left_told(&mut self, node: NodeInfo) {
        // Should the registry not take it now, this node is asked again, and members have been told.
        if self.left.len() >= LEFT_MAX {
            self.left.pop_front();
        }
        self.left.push_back(node.run);
        (self.service.event)(Event::CleanUp(node));
    }

    fn finish(&mut self, run: u64) {
        let Some(connection) = self.publish_connection() else { return };
        let (finish, mut present) = (self.keys.finish(run), cmd("UNLINK"));
        present.arg(self.keys.present(run));
        self.spawn(async move {
            // First what is left, so that it is not left when nobody looks for it any more.
            let answer = match connection.command(present).await {
                Ok(_) => connection.command(finish).await,
                Err(error) => Err(error),
            };
            What::Finished { run, answer }
        });
    }

    // ---- what became of commands ----

    fn report(&mut self, report: Report) {
        let is_former = report.generation != self.generation;
        match report.what {
            // Also of a former link: nobody else knows that these did not come anywhere.
            What::Answered { kept, answer } => {
                self.answered(kept, &answer);
                self.said(answer, is_former);
            }
            What::Sent { number, to, answer } => {
                let is_missing = match &answer {
                    // Nobody hears it there.
                    Ok(heard) => *heard == Value::Int(0),
                    // Where the link broke it may have come there, and its answer comes over the next one.
                    Err(error) => !is_former || meaning(error) != Meaning::Broken,
                };
                if is_missing {
                    drop(self.pending.answered(number, to, Err(Failure::Missing)));
                }
                self.said(answer, is_former);
            }
            What::Served { to, number, outcome } => {
                if let Some(serving) = self.serving.remove(&(to, number)) {
                    self.serving_long -= usize::from(serving.is_long);
                }
                self.handle.figures().served.add(1);
                // Also where it was given up meanwhile: who gets it then puts it back.
                self.answer(to, number, outcome.map(Into::into));
            }
            What::Claimed { claims, answer } => self.claimed(claims, answer, is_former),
            What::Released { ids, answer } => {
                if answer.is_err() {
                    self.ids.not_released(ids);
                }
                self.batch_done(answer, is_former);
            }
            // Also of a former link: nothing else tells that others may have these ids.
            What::Reclaimed { ids, answer } => self.reclaimed(ids, answer, is_former),
            // No command, and nothing of the link.
            What::LeftTold { node } => self.left_told(node),
            What::Written { changes, answer } => {
                match &answer {
                    Ok(Value::Array(alone)) => self.tell_presence(&changes, alone),
                    Ok(_) => {}
                    Err(_) => self.presence.not_written(changes),
                }
                self.batch_done(answer, is_former);
            }
            _ if is_former => {}
            What::Connected(outcome, inbox) => self.connected(*outcome, inbox),
            What::Beaten(answer) => self.beaten(answer),
            What::Said(answer) => self.said(answer, is_former),
            What::Freed { node, outcome } => self.freed(node, outcome),
            What::Nothing => {}
            What::Finished { run, answer } => match answer {
                Ok(_) => {
                    self.left.retain(|left| *left != run);
                    self.handle.figures().cleaned.add(1);
                    tracing::info!(run = run_text(run), "what a dead node left behind is gone");
                    self.tell_all_to_look();
                }
                Err(error) => self.failed(&error),
            },
        }
    }

    /// Tells of who came or went where no other node has them.
    fn tell_presence(&self, changes: &[Change], alone: &[Value]) {
        let alone = changes.iter().zip(alone).filter(|(_, alone)| **alone == Value::Int(1)).map(|(change, _)| change);
        let told = alone.filter(|change| change.kind.is_news() && !is_of_lock(&change.field));
        let told: Vec<Change> = told.cloned().collect();
        if told.is_empty() {
            return;
        }
        let presence = self.service.presence.clone();
        self.spawn(async move {
            let each = told.iter().map(|change| {
                let is_there = change.kind == ChangeKind::Entered;
                tell(&presence, room_of(&change.field), &change.told, is_there)
            });
            join_all(each).await;
            What::Nothing
        });
    }

    fn batch_done(&mut self, answer: Result<Value, RedisError>, is_former: bool) {
        if is_former {
            return;
        }
        self.batches -= 1;
        if let Err(error) = answer {
            self.failed(&error);
        }
    }

    fn connected(&mut self, outcome: Result<Connections, LinkError>, inbox: Arc<Inbox>) {
        match outcome {
            Ok(connections) => {
                self.link = Link::Up { connections, inbox };
                self.register_from_ms = 0;
                self.members.look_soon();
                self.say_again();
            }
            Err(error) => self.link_lost(&error),
        }
    }

    fn said(&mut self, answer: Result<Value, RedisError>, is_former: bool) {
        if let (Err(error), false) = (answer, is_former) {
            self.failed(&error);
        }
    }

    /// A command was refused, or the link is broken.
    fn failed(&mut self, error: &RedisError) {
        match meaning(error) {
            // Another server of the cluster has all of it. While it is on its way there, either may refuse what names several
            // keys.
            Meaning::Elsewhere if !is_on_its_way(error) => self.link_lost(error),
            Meaning::Broken | Meaning::NotNow => self.link_lost(error),
            Meaning::Refused | Meaning::Elsewhere => {
                let now_ms = self.now_ms();
                if self.tell_refused_ms <= now_ms {
                    self.tell_refused_ms = now_ms + REFUSED_TOLD_MS;
                    tracing::warn!(%error, "the registry of nodes refused something");
                }
                self.register_from_ms = now_ms + REFUSED_REST_MS;
                self.members.failed(now_ms);
            }
        }
    }

    fn claimed(&mut self, claims: Vec<(Box<str>, Tell)>, answer: Result<Value, RedisError>, is_former: bool) {
        let holders = match &answer {
            Ok(Value::Array(holders)) if holders.len() == claims.len() => Some(holders),
            _ => None,
        };
        if matches!(&answer, Ok(Value::Array(holders)) if holders.is_empty()) {
            self.members.look_soon();
        }
        let mine = run_text(self.run).into_bytes();
        for (at, (id, tell)) in claims.into_iter().enumerate() {
            let outcome = match holders.and_then(|holders| holders.get(at)) {
                Some(Value::BulkString(holder)) if *holder == mine => Ok(()),
                Some(_) => Err(ClaimFailure::Taken),
                None => Err(ClaimFailure::Unreachable),
            };
            if outcome.is_err() {
                self.ids.release(id);
            }
            tell(outcome);
        }
        self.batch_done(answer, is_former);
    }

    /// This node had ids that others may have claimed when they took it for dead.
    fn reclaimed(&mut self, ids: Vec<Box<str>>, answer: Result<Value, RedisError>, is_former: bool) {
        let holders = match answer {
            Ok(Value::Array(holders)) if holders.len() == ids.len() => holders,
            // The registry does not know this node, which claims them once more when it is registered.
            Ok(_) => return self.members.forgotten(),
            // Until the registry can be reached; then it may know this node and not the ids.
            Err(error) => {
                self.members.forgotten();
                if !is_former {
                    self.failed(&error);
                }
                return;
            }
        };
        let mine = run_text(self.run).into_bytes();
        for (id, holder) in ids.iter().zip(holders) {
            if !matches!(holder, Value::BulkString(holder) if holder == mine) {
                (self.service.taken)(id);
            }
        }
    }

    /// Takes this node out of the registry; whoever looks first cleans up after it.
    async fn retire(self) {
        let Some(connection) = self.publish_connection() else { return };
        let retire = async {
            connection.command(self.keys.retire(self.run)).await?;
            let Some(frame) = Frame::Look.encode(self.run) else { return Ok(()) };
            for other in self.members.others() {
                connection.command(self.keys.publish(other.run, &frame)).await?;
            }
            Ok::<(), RedisError>(())
        };
        let timeout = Duration::from_millis(self.bounds.timeout_ms);
        match tokio::time::timeout(timeout, retire).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "this node could not say that it ends; its lease will"),
            Err(_) => tracing::warn!("this node could not say in time that it ends; its lease will"),
        }
    }
}

/// Tells members of a room who has come or gone; again where that can't be taken at the moment.
async fn tell(presence: &TellPresence, room: &str, told: &Bytes, is_there: bool) {
    if let Err(error) = insist(|| presence(room, told.clone(), is_there)).await {
        tracing::warn!(room, is_there, %error, "members could not be told of presence");
    }
}

/// Frees a lock that a dead node had noted; likewise. False where the broker takes nothing.
async fn free_lock(free: &FreeLock, room: &str, noted: &[u8], dead: u64) -> bool {
    let Ok(noted) = serde_json::from_slice::<NotedLock>(noted) else { return true };
    let outcome = insist(|| free(room, NotedLock { node: dead, ..noted.clone() })).await;
    if let Err(error) = &outcome {
        tracing::warn!(room, %error, "a lock of a dead node is not free yet");
    }
    outcome.is_ok()
}

/// Asks until it is answered, where it was only too early.
async fn insist(ask: impl Fn() -> reply::Pending<()>) -> Result<(), HubError> {
    for _ in 1..TELL_TRIES {
        match ask().await {
            Err(error) if error.code == ErrorCode::Unavailable => tokio::time::sleep(TELL_WAIT).await,
            outcome => return outcome,
        }
    }
    ask().await
}

/// What a dead node had, by field of its hash.
#[derive(Debug)]
struct LeftBehind {
    /// The locks that it had noted. Through which node one is held the broker knows.
    locks: Vec<(Box<str>, Bytes)>,
    /// Who was present through it and is not through one of those that live.
    absent: Vec<(Box<str>, Bytes)>,
}

/// Frees the ids of a dead node, and gives what else it had.
async fn free(connection: &Connection, keys: &Keys, dead: u64, living: &[u64]) -> Result<LeftBehind, RedisError> {
    let holder = run_text(dead).into_bytes();
    let mut ids: Vec<Box<str>> = Vec::new();
    for_each(connection, keys, &keys.clients(), |id, run| {
        if run == &holder[..] {
            ids.push(id.into());
        }
    })
    .await?;
    for ids in ids.chunks(BATCH) {
        connection.command(keys.release(dead, ids)).await?;
    }
    let mut present: Vec<(Box<str>, Bytes)> = Vec::new();
    for_each(connection, keys, &keys.present(dead), |field, told| {
        present.push((field.into(), Bytes::copy_from_slice(told)));
    })
    .await?;
    let (locks, present): (Vec<_>, Vec<_>) = present.into_iter().partition(|(field, _)| is_of_lock(field));
    let mut absent = Vec::new();
    for part in present.chunks(BATCH) {
        let mut is_elsewhere = vec![false; part.len()];
        for run in living.iter().filter(|run| **run != dead) {
            let mut command = cmd("HMGET");
            command.arg(keys.present(*run));
            for (field, _) in part {
                command.arg(&**field);
            }
            if let Value::Array(values) = connection.command(command).await? {
                for (is_elsewhere, value) in is_elsewhere.iter_mut().zip(values) {
                    *is_elsewhere |= value != Value::Nil;
                }
            }
        }
        absent.extend(part.iter().zip(is_elsewhere).filter(|(_, elsewhere)| !elsewhere).map(|(one, _)| one.clone()));
    }
    Ok(LeftBehind { locks, absent })
}

/// Calls a function for each field of a hash; for some twice, where the hash changes meanwhile.
async fn for_each(
    connection: &Connection,
    keys: &Keys,
    hash: &str,
    mut each: impl FnMut(&str, &[u8]),
) -> Result<(), RedisError> {
    let mut cursor = "0".to_owned();
    loop {
        let answer = connection.command(keys.scan(hash, &cursor)).await?;
        let Value::Array(parts) = answer else { return Ok(()) };
        let [Value::BulkString(next), fields] = &parts[..] else { return Ok(()) };
        // A protocol of version 3 still gives them as a list here.
        if let Value::Array(fields) = fields {
            for pair in fields.chunks_exact(2) {
                if let [Value::BulkString(field), Value::BulkString(value)] = pair
                    && let Ok(field) = std::str::from_utf8(field)
                {
                    each(field, value);
                }
            }
        }
        cursor = String::from_utf8_lossy(next).into_owned();
        if cursor == "0" {
            return Ok(());
        }
    }
}

/// What `beat.lua` answers.
fn read_beat(answer: Value) -> Option<Beat> {
    let Value::Array(parts) = answer else { return None };
    let [was, redis_ms, Value::Array(living), Value::Array(mine)] = &parts[..] else { return None };
    let was = match text(was)? {
        "known" => Was::Known,
        "new" => Was::New,
        "dead" => Was::Dead,
        _ => return None,
    };
    let redis_ms = text(redis_ms)?.parse().ok()?;
    let living = living.chunks_exact(3).filter_map(|one| match one {
        [run, until_ms, info] => Some((node(run, info)?, text(until_ms)?.parse().ok()?)),
        _ => None,
    });
    let mine_of = mine.chunks_exact(2).filter_map(|one| match one {
        [run, info] => node(run, info),
        _ => None,
    });
    Some(Beat { was, redis_ms, living: living.collect(), mine: mine_of.collect() })
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

/// What a node says of itself; one of which only the run is known has that for a name.
fn node(run: &Value, info: &Value) -> Option<NodeInfo> {
    let run_as_text = text(run)?;
    let run = parse_run(run_as_text)?;
    let unknown = || NodeInfo {
        run,
        name: run_as_text.to_owned(),
        public: None,
        internal: None,
        started_ms: 0,
        version: String::new(),
    };
    Some(match serde_json::from_str::<NodeInfo>(text(info)?) {
        Ok(info) => NodeInfo { run, ..info },
        Err(_) => unknown(),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::config::Config;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    /// One that has no link, and what it had done of other nodes' ends.
    fn worker() -> (Worker, Arc<Mutex<Vec<u64>>>) {
        let config = Config::from_toml("[broker]\nkind = \"redis\"\n[broker.redis]\nurl = [\"redis://127.0.0.1:1\"]\n");
        let config = config.expect("a configuration");
        let target = Target::all(&config, "n1").expect("no certificates").remove(0);
        let cleaned: Arc<Mutex<Vec<u64>>> = Arc::default();
        let of_service = cleaned.clone();
        let service = Service {
            answer: Box::new(|_| Box::pin(async { Ok(Vec::new()) })),
            event: Box::new(move |event| {
                if let Event::CleanUp(node) = event {
                    of_service.lock().expect("not poisoned").push(node.run);
                }
            }),
            presence: Arc::new(|_, _, _| crate::hub::reply::Pending::ready(Ok(()))),
            lock: Arc::new(|_, _| reply::Pending::ready(Ok(()))),
            taken: Box::new(|_| ()),
            late: Box::new(|_, _| ()),
        };
        let (handle, _intake) = super::super::link(info(1));
        let bounds = Bounds { lease_ms: 5000, timeout_ms: 1000 };
        (Worker::new(handle, target, Keys::new("ringhub", false), bounds, service), cleaned)
    }

    fn info(run: u64) -> NodeInfo {
        let (public, internal, version) = (None, None, String::new());
        NodeInfo { run, name: format!("n{run}"), public, internal, started_ms: 0, version }
    }

    #[test]
    fn ids_that_could_not_be_claimed_again_are_claimed_once_more_though_the_link_broke_meanwhile() {
        let known = |worker: &mut Worker| {
            let beat = Beat { was: Was::Known, redis_ms: 1, living: Vec::new(), mine: Vec::new() };
            worker.members.beaten(beat, 1)
        };
        for answer in [Err(broken()), Ok(Value::Array(Vec::new()))] {
            let (mut worker, _) = worker();
            assert!(known(&mut worker).is_empty());
            worker.link_lost(&"the connection ended");
            let what = What::Reclaimed { ids: vec!["c".into()], answer };
            worker.report(Report { generation: worker.generation - 1, what });
            let events = known(&mut worker);
            assert!(matches!(events[..], [Event::Revived { was_buried: false }]), "{events:?}");
        }
    }

    #[test]
    fn members_are_told_once_of_who_left_with_a_dead_node() {
        let (mut worker, cleaned) = worker();
        worker.link_lost(&"the connection ended");
        // Told by a task that takes its time.
        worker.report(Report { generation: worker.generation - 1, what: What::LeftTold { node: info(7) } });
        assert_eq!(*cleaned.lock().expect("not poisoned"), [7]);
        // The record could not be taken away: the registry asks for it again, and there is nothing else to do.
        worker.clean_up(info(7));
        assert_eq!(*cleaned.lock().expect("not poisoned"), [7, 7]);
        let finished = What::Finished { run: 7, answer: Ok(Value::Okay) };
        worker.report(Report { generation: worker.generation, what: finished });
        worker.clean_up(info(7));
        assert_eq!(cleaned.lock().expect("not poisoned").len(), 2, "another run of it is looked at");
    }

    #[test]
    fn an_answer_waits_for_a_link_within_its_bound() {
        let (mut worker, _) = worker();
        let served = |number, bytes| What::Served { to: 9, number, outcome: Ok(vec![b'1'; bytes]) };
        worker.report(Report { generation: 0, what: served(1, 100) });
        let frames: Vec<_> = worker.unsaid.iter().map(|kept| (kept.to, Frame::decode(&kept.frame))).collect();
        let [(9, Some((1, Frame::Answer { number: 1, outcome: Ok(told) })))] = &frames[..] else {
            panic!("{frames:?}")
        };
        assert_eq!(told.len(), 100);
        for number in 2..200 {
            worker.report(Report { generation: 0, what: served(number, 1 << 18) });
        }
        let bytes: usize = worker.unsaid.iter().map(|kept| kept.frame.len()).sum();
        assert_eq!(bytes, worker.unsaid_bytes);
        assert!((UNSAID_BYTES_MAX / 2..=UNSAID_BYTES_MAX).contains(&bytes), "{bytes}");
    }

    #[test]
    fn an_answer_that_nobody_heard_is_kept_for_a_node_that_lives() {
        for (answer, to, is_kept) in [
            (Ok(Value::Int(0)), 2, true),
            (moved(), 2, true),
            (Ok(Value::Int(1)), 2, false),
            // It may have been heard, and must not be heard twice.
            (Err(broken()), 2, false),
            (Ok(Value::Int(0)), 3, false),
        ] {
            let (mut worker, _) = worker();
            let living = vec![(info(2), 60_000)];
            worker.members.beaten(Beat { was: Was::Known, redis_ms: 1, living, mine: Vec::new() }, 1);
            let kept = KeptAnswer { to, frame: Bytes::from_static(b"{}"), until_ms: ANSWER_KEPT_MS };
            let told = format!("{answer:?} to {to}");
            worker.report(Report { generation: worker.generation + 1, what: What::Answered { kept, answer } });
            assert_eq!(worker.unsaid.len(), usize::from(is_kept), "{told}");
        }
    }

    #[test]
    fn calls_that_came_nowhere_are_answered_though_the_link_is_another_by_then() {
        let (mut worker, _) = worker();
        let (responder, pending) = reply::pending();
        let number = worker.pending.begin(vec![info(2), info(3)], 60_000, false, responder).expect("begun");
        let sent = |to, answer| Report { generation: 0, what: What::Sent { number, to, answer } };
        worker.report(sent(2, moved()));
        worker.report(sent(3, Err(broken())));
        assert_eq!(worker.pending.next_ms(), Some(60_000), "whether that one came there is not known");
        worker.report(sent(3, moved()));
        let answers = pending.wait().expect("all are missing");
        assert!(answers.iter().all(|answer| answer.outcome == Err(Failure::Missing)), "{answers:?}");
    }

    #[test]
    fn after_a_refusal_nothing_is_registered_for_a_while() {
        let (mut worker, _) = worker();
        worker.batches = 1;
        let refused = redis::parse_redis_value(b"-OOM command not allowed\r\n").expect("a value").extract_error();
        worker.report(Report { generation: 0, what: What::Released { ids: vec!["c".into()], answer: refused } });
        let rest = worker.register_from_ms.checked_sub(worker.now_ms()).expect("it rests");
        assert!((1..=REFUSED_REST_MS).contains(&rest), "{rest}");
        assert_eq!(worker.ids.next_releases(10).len(), 1, "it is released later");
    }

    fn moved() -> Result<Value, RedisError> {
        redis::parse_redis_value(b"-MOVED 1 a:1\r\n").expect("a value").extract_error()
    }

    fn broken() -> RedisError {
        std::io::Error::from(std::io::ErrorKind::ConnectionReset).into()
    }

    #[test]
    fn the_answer_to_a_beat_is_read() {
        let run = "00000000000000ab";
        let answer = Value::Array(vec![
            bulk("new"),
            bulk("1700000000123"),
            Value::Array(vec![bulk(run), bulk("1700000005123"), bulk(r#"{"name":"n1","more":1}"#)]),
            Value::Array(vec![bulk("00000000000000cd"), bulk("{}")]),
        ]);
        let beat = read_beat(answer).expect("it is one");
        assert_eq!((beat.was, beat.redis_ms), (Was::New, 1_700_000_000_123));
        assert_eq!((beat.living[0].0.run, beat.living[0].0.name.as_str()), (0xab, "n1"));
        assert_eq!(beat.living[0].1, 1_700_000_005_123);
        assert_eq!((beat.mine[0].run, beat.mine[0].name.as_str()), (0xcd, "00000000000000cd"));
        for other in [Value::Nil, Value::Array(vec![bulk("new")]), Value::Array(vec![bulk("x"), bulk("1")])] {
            assert_eq!(read_beat(other), None);
        }
    }
}

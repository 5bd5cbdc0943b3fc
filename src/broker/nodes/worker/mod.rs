//! The nodes' thread: keeps the lease, looks who else lives, carries calls there and back, and registers what this node has.
//!
//! ```text
//! turn:  1. what others say              answers, calls, that somebody came or went
//!        2. what became of commands
//!        3. what this node wants         calls, ids, presence
//!        4. times                        beats, deadlines, the link
//! ```
//!
//! Commands are tasks of the same thread that report what came of them; nothing here waits for one. What is said is in `talk`,
//! who lives in `living`, what this node registers in `registration`, and what dead ones left behind in `left`. All of it is
//! one state: what the end of the link means for beats, calls and claims is told here, once.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use redis::{RedisError, Value};
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use self::left::LeftBehind;
use self::talk::{KeptAnswer, Serving};
use super::calls::{Failure, Frame, Pending};
use super::keys::{Keys, run_text};
use super::members::{Members, NodeInfo};
use super::registered::{Change, Ids, Presence};
use super::{Call, ClaimFailure, Handle, Service, Task, Tell};
use crate::broker::redis::connection::{Connection, Connections, Inbox, LinkError, Target};
use crate::broker::redis::server::{Meaning, is_on_its_way, meaning};
use crate::hub::reply::HubError;

mod left;
mod living;
mod registration;
mod talk;

/// Bytes of what others say that wait for a turn.
const INBOX_BYTES_MAX: usize = 64 << 20;
/// Ids, or fields of presence, in one command.
const BATCH: usize = 500;
/// The first wait before a link is made again, and the longest.
const WAIT_MIN_MS: u64 = 40;
const WAIT_MAX_MS: u64 = 1000;
/// How long nothing is registered after a refusal, as of a Redis that is out of memory, and how often that is told.
const REFUSED_REST_MS: u64 = 250;
const REFUSED_TOLD_MS: u64 = 1000;

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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use bytes::Bytes;

    use super::super::members::{Beat, Event, Was};
    use super::talk::{ANSWER_KEPT_MS, UNSAID_BYTES_MAX};
    use super::*;
    use crate::config::Config;

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
            lock: Arc::new(|_, _| crate::hub::reply::Pending::ready(Ok(()))),
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
        let (responder, pending) = crate::hub::reply::pending();
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
}

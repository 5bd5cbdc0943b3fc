//! Connections that come and go: connect, upgrade, greeting, subscribe, close, at a fixed rate.
//!
//! The rate is an open loop: an attempt that finds all places taken waits, and its wait is part of its latency.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::client::{Client, Received};
use super::failure::Failure;
use super::message::{self, Envelope};
use super::plan::Pace;
use super::poller::{Poller, Readiness, Ready, Waker};
use super::run::{Run, Window};
use super::schedule::Schedule;
use super::tally::Tally;

const TICK_NS: u64 = 50_000_000;
/// Bits of a poller key that name the place; the rest is the number of its owner.
const PLACE_BITS: u32 = 24;

/// A thread's part of a churn run.
pub(crate) struct Churner {
    run: Arc<Run>,
    poller: Poller,
    places: Vec<Option<Attempt>>,
    free: Vec<usize>,
    /// Keys and deadlines, in the order they were begun.
    deadlines: VecDeque<(u64, usize)>,
    schedule: Option<Schedule>,
    rate: f64,
    phase: f64,
    begun: usize,
    tally: Tally,
}

struct Attempt {
    client: Client,
    stage: Stage,
    key: usize,
    room: usize,
    due_ns: u64,
    begun_ns: u64,
    watches_write: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Connecting,
    Greeting,
    Subscribing,
    Closing,
}

impl Churner {
    /// The worker with this number out of `plan.threads`.
    pub(crate) fn new(run: Arc<Run>, number: usize) -> io::Result<Churner> {
        let plan = &run.plan;
        let places = plan.connections.div_ceil(plan.threads).clamp(1, (1 << PLACE_BITS) - 1);
        let rate = match plan.pace {
            Pace::Rate(rate) => rate,
            // A closed loop of connects has no rate of its own: as fast as places become free.
            Pace::Window(_) => plan.connect_rate,
        };
        Ok(Churner {
            poller: Poller::new()?,
            places: (0..places).map(|_| None).collect(),
            free: (0..places).rev().collect(),
            deadlines: VecDeque::new(),
            schedule: None,
            rate: rate / plan.threads as f64,
            phase: number as f64 / plan.threads as f64,
            begun: number,
            tally: Tally::default(),
            run,
        })
    }

    /// The means to wake it.
    pub(crate) fn waker(&self) -> Waker {
        self.poller.waker()
    }

    /// Works until the run is stopped.
    pub(crate) fn work(mut self) -> io::Result<Tally> {
        let mut ready = Ready::new();
        while !self.run.stopped() {
            let now = self.run.now_ns();
            self.begin_due(now);
            self.expire(now);
            let due = self.schedule.as_ref().filter(|_| !self.free.is_empty()).map_or(u64::MAX, Schedule::next_ns);
            let ending = self.run.window().is_some_and(|w| now >= w.end_ns);
            let until = if ending { now + TICK_NS } else { due.min(now + TICK_NS) };
            self.poller.wait(&mut ready, Duration::from_nanos(until.saturating_sub(self.run.now_ns())))?;
            for readiness in ready.drain() {
                self.handle(readiness);
            }
        }
        Ok(self.tally)
    }

    fn begin_due(&mut self, now: u64) {
        let Some(window) = self.run.window() else { return };
        let (rate, phase) = (self.rate, self.phase);
        let last = now.min(window.end_ns.saturating_sub(1));
        while let Some(place) = self.free.last().copied() {
            let schedule = self.schedule.get_or_insert_with(|| Schedule::new(window.start_ns, rate, phase));
            let Some(due) = schedule.take(last) else { return };
            self.free.pop();
            self.begin(place, due, window);
        }
    }

    fn begin(&mut self, place: usize, due: u64, window: Window) {
        let plan = &self.run.plan;
        let now = self.run.now_ns();
        let number = self.begun;
        self.begun += plan.threads;
        self.tally.tried += 1;
        self.run.sent.fetch_add(1, Relaxed);
        if window.counts(due) {
            self.tally.sent += 1;
            self.tally.expected += 1;
            self.run.counted_expected.fetch_add(1, Relaxed);
            self.tally.lag.record(now.saturating_sub(due));
        }
        let key = place | (number << PLACE_BITS);
        let client = Client::connect(&plan.target, plan.source(number)).and_then(|client| {
            let Some(socket) = client.socket() else { return Err(Failure::Lost) };
            self.poller.add(socket, key, true).map_err(|e| Failure::from_io(&e))?;
            Ok(client)
        });
        match client {
            Ok(client) => {
                self.deadlines.push_back((now + plan.setup_timeout_ns, key));
                self.run.open.fetch_add(1, Relaxed);
                self.places[place] = Some(Attempt {
                    client,
                    stage: Stage::Connecting,
                    key,
                    room: number % plan.rooms.max(1),
                    due_ns: due,
                    begun_ns: now,
                    watches_write: true,
                });
            }
            Err(failure) => {
                self.free.push(place);
                self.count(failure);
            }
        }
    }

    fn expire(&mut self, now: u64) {
        while let Some((deadline, key)) = self.deadlines.front().copied() {
            if let Some(attempt) = self.attempt(key) {
                if deadline > now {
                    return;
                }
                let what = match attempt.stage {
                    Stage::Connecting => "upgrade",
                    Stage::Greeting => "greeting",
                    Stage::Subscribing => "answer to subscribe",
                    Stage::Closing => "answer to close",
                };
                self.end(key, Some(Failure::Timeout(what)));
            }
            self.deadlines.pop_front();
        }
    }

    fn attempt(&mut self, key: usize) -> Option<&mut Attempt> {
        self.places.get_mut(key & ((1 << PLACE_BITS) - 1))?.as_mut().filter(|a| a.key == key)
    }

    fn handle(&mut self, readiness: Readiness) {
        let key = readiness.key;
        let stepped = self.step(readiness);
        match stepped {
            Ok(false) => self.watch(key),
            Ok(true) => self.end(key, None),
            Err(failure) => self.end(key, Some(failure)),
        }
    }

    /// Goes on with an attempt; true when it is complete.
    fn step(&mut self, readiness: Readiness) -> Result<bool, Failure> {
        let run = Arc::clone(&self.run);
        let plan = &run.plan;
        let Some(attempt) = self.attempt(readiness.key) else { return Ok(false) };
        if attempt.client.advance(readiness.readable, readiness.writable)? {
            let took = run.now_ns().saturating_sub(attempt.begun_ns);
            attempt.stage = Stage::Greeting;
            if !plan.greeting {
                self.greeted(readiness.key)?;
            }
            self.tally.connect.record(took);
        }
        loop {
            let Some(attempt) = self.attempt(readiness.key) else { return Ok(false) };
            match attempt.client.receive()? {
                Received::Nothing => return Ok(false),
                Received::Ended => return Ok(true),
                Received::Binary => return Err(Failure::Protocol("a binary frame, text was expected".into())),
                Received::Text(text) => {
                    let stage = attempt.stage;
                    let kind = Envelope::parse(text.as_str());
                    match (stage, kind) {
                        (_, Some(e)) if e.kind == "error" => return Err(e.detail().failure()),
                        (Stage::Greeting, Some(_)) => self.greeted(readiness.key)?,
                        (Stage::Subscribing, Some(e)) if e.kind == "subscribed" => self.complete(readiness.key)?,
                        (_, Some(_)) => {}
                        (_, None) => return Err(Failure::Protocol("a message that is not of the protocol".into())),
                    }
                }
            }
        }
    }

    fn greeted(&mut self, key: usize) -> Result<(), Failure> {
        if !self.run.plan.subscribe {
            return self.complete(key);
        }
        let run = Arc::clone(&self.run);
        let Some(attempt) = self.attempt(key) else { return Ok(()) };
        attempt.stage = Stage::Subscribing;
        attempt.client.send(message::subscribe("s", &run.plan.room(attempt.room), None).into())?;
        attempt.client.flush()
    }

    /// Everything asked for has been answered: close.
    fn complete(&mut self, key: usize) -> Result<(), Failure> {
        let now = self.run.now_ns();
        let window = self.run.window();
        let Some(attempt) = self.attempt(key) else { return Ok(()) };
        let due = attempt.due_ns;
        attempt.stage = Stage::Closing;
        attempt.client.close()?;
        self.tally.ready += 1;
        self.run.delivered.fetch_add(1, Relaxed);
        if window.is_some_and(|w| w.counts(due)) {
            self.tally.delivered += 1;
            self.tally.latency.record(now.saturating_sub(due));
            self.run.counted_delivered.fetch_add(1, Relaxed);
        }
        Ok(())
    }

    fn end(&mut self, key: usize, failure: Option<Failure>) {
        let place = key & ((1 << PLACE_BITS) - 1);
        let Some(attempt) = self.attempt(key) else { return };
        let closing = attempt.stage == Stage::Closing;
        self.tally.pings += attempt.client.pings();
        if let Some(slot) = self.places.get_mut(place) {
            *slot = None;
        }
        self.free.push(place);
        self.run.open.fetch_sub(1, Relaxed);
        match failure {
            // Some servers end the connection instead of answering the close; the attempt was complete.
            None | Some(Failure::Lost) if closing => {}
            None => self.count(Failure::Lost),
            Some(failure) => self.count(failure),
        }
    }

    fn count(&mut self, failure: Failure) {
        self.run.failures.fetch_add(1, Relaxed);
        self.tally.failures.count(failure);
    }

    fn watch(&mut self, key: usize) {
        let Some(attempt) = self.places.get_mut(key & ((1 << PLACE_BITS) - 1)).and_then(Option::as_mut) else { return };
        let wants = attempt.client.wants_write();
        if attempt.key != key || wants == attempt.watches_write {
            return;
        }
        attempt.watches_write = wants;
        let modified = match attempt.client.socket() {
            Some(socket) => self.poller.modify(socket, key, wants),
            None => Ok(()),
        };
        if let Err(error) = modified {
            self.end(key, Some(Failure::from_io(&error)));
        }
    }
}

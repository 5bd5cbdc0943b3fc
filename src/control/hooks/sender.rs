//! The thread that tells the backend what happened: one call at a time, so that events arrive in order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::batch::{self, Batch, Event, Numbers};
use super::debounce::{Change, Debounce, Noted};
use super::feed::Report;
use super::{END_WAIT, Shared, end_span, retry, signature};
use crate::config::{HookKind, HooksConfig};
use crate::control::breaker::{Breaker, BreakerState};
use crate::control::client::{Answer, CallError, Client};
use crate::control::moment::unix_ms;

/// How often the queue is looked into.
const LOOK: Duration = Duration::from_millis(25);
/// Of an answer nothing matters but its status; so much is read, where it is no more, that the connection can be used again.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// What an attempt came to.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// The backend has it.
    Taken,
    /// It does not want it, and would not the next time.
    Refused(u16),
    /// It could not take it this time.
    Failed { word: &'static str, retry_after: Option<Duration> },
}

fn outcome(answer: Result<Answer, CallError>) -> Outcome {
    match answer {
        Ok(Answer { status: 200..=299, .. }) => Outcome::Taken,
        Ok(Answer { status: 429, retry_after, .. }) => Outcome::Failed { word: "rate_limited", retry_after },
        Ok(Answer { status: 500..=599, retry_after, .. }) => Outcome::Failed { word: "status_5xx", retry_after },
        Ok(answer) => Outcome::Refused(answer.status),
        // It has answered, and so has it, perhaps; its events have ids.
        Err(error) => Outcome::Failed { word: error.word(), retry_after: None },
    }
}

pub(super) struct Sender {
    shared: Arc<Shared>,
    url: String,
    client: Client,
    node: String,
    breaker: Breaker,
    debounce: Debounce,
    events: VecDeque<Event>,
    numbers: Numbers,
    /// What is in hand: it stays there until it is told or given up.
    batch: Option<Attempted>,
}

struct Attempted {
    batch: Batch,
    failures: u32,
    began_ms: u64,
    next_ms: u64,
}

impl Sender {
    pub(super) fn new(shared: Arc<Shared>, url: String, client: Client, node: String, run: u64) -> Sender {
        let rooms_max = shared.whole().hooks.queue_max;
        Sender {
            shared,
            url,
            client,
            node,
            breaker: Breaker::new(),
            debounce: Debounce::new(rooms_max),
            events: VecDeque::new(),
            numbers: Numbers::new(run),
            batch: None,
        }
    }

    pub(super) fn run(mut self) {
        while !self.shared.stop.load(Ordering::SeqCst) {
            if !self.work(false) {
                std::thread::park_timeout(LOOK);
            }
        }
        // The last reports are in the queue by now: shards end before the hooks.
        let until_ms = self.shared.elapsed_ms() + END_WAIT.as_millis() as u64;
        while self.has_work() && self.shared.elapsed_ms() < until_ms {
            if !self.work(true) {
                std::thread::sleep(LOOK);
            }
        }
        self.give_up();
    }

    fn has_work(&self) -> bool {
        self.batch.is_some() || !self.events.is_empty() || self.debounce.len() > 0 || self.shared.feed.queued() > 0
    }

    /// Counts as lost what is left at the end.
    fn give_up(&mut self) {
        while let Some(report) = self.shared.feed.pop() {
            drop(report);
            self.shared.feed.count_lost(1);
        }
        let in_hand = self.batch.take().map_or(0, |attempted| attempted.batch.events);
        self.shared.feed.count_lost(in_hand + self.events.len() as u64 + self.debounce.len() as u64);
        let lost = self.shared.feed.lost();
        if lost > 0 {
            tracing::warn!(lost, "events were not told to the backend before the end");
        }
    }

    /// Takes what there is and makes an attempt, where one is due. False where there was nothing to do.
    fn work(&mut self, ends: bool) -> bool {
        let config = self.shared.whole();
        let config = &config.hooks;
        self.take(config, ends);
        let now_ms = self.shared.elapsed_ms();
        if self.batch.is_none() {
            let wait_ms = if ends { 0 } else { config.batch_wait_ms };
            let made = batch::gather(&mut self.events, config.batch_max, wait_ms, now_ms, &mut self.numbers);
            self.batch = made.map(|batch| Attempted { batch, failures: 0, began_ms: now_ms, next_ms: 0 });
        }
        self.count_held();
        let state = self.breaker.state(now_ms);
        self.shared.events_calls.set_state(state);
        let is_due = self.batch.as_ref().is_some_and(|one| one.next_ms <= now_ms);
        if !is_due || state == BreakerState::Open {
            return false;
        }
        self.attempt(config);
        self.count_held();
        true
    }

    fn count_held(&self) {
        let in_hand = self.batch.as_ref().map_or(0, |attempted| attempted.batch.events);
        let held = in_hand + (self.events.len() + self.debounce.len()) as u64;
        self.shared.held.store(held, Ordering::Relaxed);
    }

    /// Takes reports out of the queue, as many as a batch has: what waits for a backend that does not answer waits in the
    /// queue, where it is bounded.
    fn take(&mut self, config: &HooksConfig, ends: bool) {
        let now_ms = self.shared.elapsed_ms();
        while self.events.len() < config.batch_max
            && let Some(report) = self.shared.feed.pop()
        {
            let event = match report {
                Report::Connection(report) => batch::connection(&report, &self.node, &mut self.numbers, now_ms),
                Report::Message(report) => batch::message(&report, &self.node, &mut self.numbers, now_ms),
                Report::Room { room, is_occupied, at_ms } => {
                    self.note(Change { room, is_occupied, at_ms }, config, now_ms)
                }
            };
            self.events.extend(event);
        }
        while self.events.len() < config.batch_max
            && let Some(change) = self.debounce.next(now_ms, config.debounce_ms, ends)
        {
            let event = self.room(&change, config, now_ms);
            self.events.extend(event);
        }
    }

    fn room(&mut self, change: &Change, config: &HooksConfig, now_ms: u64) -> Option<Event> {
        let kind = if change.is_occupied { HookKind::Occupied } else { HookKind::Vacated };
        config.events.contains(&kind).then(|| batch::room(change, &self.node, &mut self.numbers, now_ms))?
    }

    fn note(&mut self, change: Change, config: &HooksConfig, now_ms: u64) -> Option<Event> {
        match self.debounce.note(change, config.debounce_ms, now_ms) {
            Noted::Waits => None,
            Noted::Undone => {
                self.shared.debounced.fetch_add(2, Ordering::Relaxed);
                None
            }
            Noted::After(before) => self.room(&before, config, now_ms),
        }
    }

    fn attempt(&mut self, config: &HooksConfig) {
        let Some(attempted) = &mut self.batch else { return };
        let batch = &attempted.batch;
        let mut headers = signature::headers(&config.secret, &batch.id, unix_ms() / 1000, &batch.body);
        let timeout = Duration::from_millis(config.timeout_ms);
        let events = batch.events;
        let span = self.shared.trace(None, &mut headers);
        let calls = &self.shared.events_calls;
        let answer = calls.timed(|| self.client.post(&self.url, &headers, &batch.body, timeout, ANSWER_BYTES_MAX));
        end_span(span, "hook events", &answer, ("ringhub.events", events.into()));
        let outcome = outcome(answer);
        let now_ms = self.shared.elapsed_ms();
        match outcome {
            Outcome::Taken => {
                self.shared.told.fetch_add(events, Ordering::Relaxed);
                self.batch = None;
                self.answered(now_ms);
            }
            Outcome::Refused(status) => {
                tracing::warn!(status, events, "the backend refused a batch of events, which is left out");
                self.shared.refused.fetch_add(events, Ordering::Relaxed);
                self.batch = None;
                self.answered(now_ms);
            }
            Outcome::Failed { word, retry_after } => {
                let was = self.breaker.state(now_ms);
                self.breaker.failed(now_ms);
                self.shared.events_calls.failed(word);
                let state = self.breaker.state(now_ms);
                self.shared.events_calls.set_state(state);
                attempted.failures = attempted.failures.saturating_add(1);
                let wait = retry::wait(attempted.failures, fastrand::f64(), retry_after);
                attempted.next_ms = now_ms + wait.as_millis() as u64;
                match (was, state) {
                    (BreakerState::Closed, BreakerState::Open) => {
                        tracing::error!(
                            reason = word,
                            "the backend does not take events and is left alone for a while"
                        );
                    }
                    (BreakerState::Closed, _) => {
                        tracing::warn!(reason = word, "the backend did not take a batch of events")
                    }
                    _ => tracing::debug!(reason = word, "the backend still takes no events"),
                }
                if now_ms.saturating_sub(attempted.began_ms) >= config.retry_s * 1000 {
                    tracing::error!(events, attempts = attempted.failures, "a batch of events is given up");
                    self.shared.feed.count_lost(events);
                    self.batch = None;
                }
            }
        }
    }

    /// It answers, whatever it says.
    fn answered(&mut self, now_ms: u64) {
        if self.breaker.state(now_ms) != BreakerState::Closed {
            tracing::info!(lost = self.shared.feed.lost(), "the backend takes events again");
        }
        self.breaker.worked();
        self.shared.events_calls.set_state(BreakerState::Closed);
        self.shared.events_calls.worked();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let answer = |status| outcome(Ok(Answer { status, retry_after: None, body: Err(CallError::Garbage) }));
        assert_eq!((answer(200), answer(204)), (Outcome::Taken, Outcome::Taken));
        for status in [301, 400, 401, 404, 410, 413] {
            assert_eq!(answer(status), Outcome::Refused(status));
        }
        for status in [429, 500, 503] {
            assert!(matches!(answer(status), Outcome::Failed { .. }), "{status}");
        }
        for error in [CallError::Timeout, CallError::Connection, CallError::Tls, CallError::Garbage] {
            assert!(matches!(outcome(Err(error)), Outcome::Failed { .. }), "{error:?}");
        }
    }
}

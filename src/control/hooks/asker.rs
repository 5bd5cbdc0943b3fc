//! The threads that ask the backend whether clients may connect.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::desk::{Desk, Grant, Question, Verdict};
use super::{Shared, Tell, decision, end_span, signature};
use crate::config::HookFail;
use crate::control::breaker::{Breaker, BreakerState};
use crate::control::client::{Answer, CallError, Client};
use crate::control::moment::unix_ms;

/// How long a thread sleeps when nobody wakes it.
const IDLE: Duration = Duration::from_secs(1);

/// What the threads share.
pub(super) struct Asker {
    pub(super) shared: Arc<Shared>,
    pub(super) desk: Desk,
    pub(super) url: String,
    pub(super) client: Client,
    pub(super) breaker: Mutex<Probed>,
    pub(super) tell: Tell,
}

/// A breaker that several threads look at: one of them probes.
#[derive(Debug)]
pub(super) struct Probed {
    breaker: Breaker,
    is_probing: bool,
}

/// What a thread may do.
#[derive(Debug, PartialEq, Eq)]
enum Pass {
    /// Call.
    Ordinary,
    /// Call; it decides whether others may again.
    Probe,
    /// Don't.
    Closed,
}

impl Probed {
    pub(super) fn new() -> Probed {
        Probed { breaker: Breaker::new(), is_probing: false }
    }

    fn pass(&mut self, now_ms: u64) -> Pass {
        match self.breaker.state(now_ms) {
            BreakerState::Closed => Pass::Ordinary,
            BreakerState::HalfOpen if !self.is_probing => {
                self.is_probing = true;
                Pass::Probe
            }
            BreakerState::HalfOpen | BreakerState::Open => Pass::Closed,
        }
    }

    fn ended(&mut self, pass: &Pass, worked: bool, now_ms: u64) -> BreakerState {
        if *pass == Pass::Probe {
            self.is_probing = false;
        }
        match (worked, self.breaker.state(now_ms)) {
            (true, _) => self.breaker.worked(),
            // Calls that began before it opened say nothing new.
            (false, state) if *pass == Pass::Probe || state == BreakerState::Closed => self.breaker.failed(now_ms),
            (false, _) => {}
        }
        self.breaker.state(now_ms)
    }
}

impl Asker {
    /// The life of one thread.
    pub(super) fn run(&self, place: usize) {
        while !self.desk.shared.stop.load(Ordering::SeqCst) {
            match self.desk.next() {
                Some((question, _ticket)) => {
                    let verdict = self.ask(&question);
                    (self.tell)(question.shard, question.conn, verdict);
                }
                None => self.desk.wait(place, IDLE),
            }
        }
    }

    fn ask(&self, question: &Question) -> Verdict {
        let config = self.shared.whole();
        let hooks = &config.hooks;
        let calls = &self.shared.connect_calls;
        let pass = self.breaker().pass(self.shared.elapsed_ms());
        if pass == Pass::Closed {
            calls.set_state(BreakerState::Open);
            return self.unanswered(hooks.connect_fail);
        }
        let body = decision::body(question, &config.node.name, unix_ms());
        let id = format!("ask_{:032x}", u128::from(fastrand::u64(..)) << 64 | u128::from(fastrand::u64(..)));
        let mut headers = signature::headers(&hooks.secret, &id, unix_ms() / 1000, &body);
        let timeout = Duration::from_millis(hooks.connect_timeout_ms);
        let span = self.shared.trace(question.trace, &mut headers);
        let answer = calls.timed(|| self.call(&headers, &body, timeout));
        end_span(span, "hook connect", &answer, ("ringhub.shard", u64::from(question.shard.0).into()));
        let verdict = answer.map_err(CallError::word).and_then(|answer| decision::read(&answer, &config));
        let now_ms = self.shared.elapsed_ms();
        let (before, after) = {
            let mut breaker = self.breaker();
            let before = breaker.breaker.state(now_ms);
            (before, breaker.ended(&pass, verdict.is_ok(), now_ms))
        };
        calls.set_state(after);
        match &verdict {
            Ok(_) => {
                calls.worked();
                if before != BreakerState::Closed {
                    tracing::info!("the backend decides on connections again");
                }
            }
            Err(word) => {
                calls.failed(word);
                let fail = hooks.connect_fail.word();
                if before == BreakerState::Closed && after == BreakerState::Open {
                    tracing::error!(
                        reason = word,
                        fail,
                        "the backend does not decide on connections and is left alone for a while"
                    );
                } else {
                    tracing::debug!(reason = word, fail, "the backend did not decide on a connection");
                }
            }
        }
        match verdict {
            Ok(verdict) => {
                let is_allowed = matches!(verdict, Verdict::Allow(_));
                let counter = if is_allowed { &self.shared.allowed } else { &self.shared.denied };
                counter.fetch_add(1, Ordering::Relaxed);
                verdict
            }
            Err(_) => self.unanswered(hooks.connect_fail),
        }
    }

    /// One call; a second where the first met a connection that the backend was about to close.
    fn call(&self, headers: &[(&str, String)], body: &[u8], timeout: Duration) -> Result<Answer, CallError> {
        let began = std::time::Instant::now();
        match self.client.post(&self.url, headers, body, timeout, decision::ANSWER_BYTES_MAX) {
            Err(CallError::Connection) => {
                let left = timeout.saturating_sub(began.elapsed());
                self.client.post(&self.url, headers, body, left, decision::ANSWER_BYTES_MAX)
            }
            answer => answer,
        }
    }

    fn unanswered(&self, fail: HookFail) -> Verdict {
        match fail {
            HookFail::Open => {
                self.shared.failed_open.fetch_add(1, Ordering::Relaxed);
                Verdict::Allow(Box::<Grant>::default())
            }
            HookFail::Closed => {
                self.shared.failed_closed.fetch_add(1, Ordering::Relaxed);
                Verdict::Failed
            }
        }
    }

    fn breaker(&self) -> std::sync::MutexGuard<'_, Probed> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_probes_and_late_failures_of_others_change_nothing() {
        let mut probed = Probed::new();
        for _ in 0..3 {
            let pass = probed.pass(0);
            assert_eq!(pass, Pass::Ordinary);
            probed.ended(&pass, false, 0);
        }
        assert_eq!(probed.pass(10), Pass::Closed);
        assert_eq!(probed.ended(&Pass::Ordinary, false, 10), BreakerState::Open, "one that began before");
        let probe = probed.pass(1000);
        assert_eq!((&probe, probed.pass(1000)), (&Pass::Probe, Pass::Closed));
        assert_eq!(probed.ended(&probe, false, 1000), BreakerState::Open);
        assert_eq!(probed.pass(2999), Pass::Closed, "it waits twice as long");
        let probe = probed.pass(3000);
        assert_eq!(probed.ended(&probe, true, 3000), BreakerState::Closed);
        assert_eq!(probed.pass(3000), Pass::Ordinary);
    }
}

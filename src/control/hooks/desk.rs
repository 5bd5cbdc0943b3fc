//! Where shards ask whether a client may connect: a bounded queue of questions, and threads that carry them to the backend.
//!
//! A shard puts its question in and goes on; the verdict comes to it as a request. A client that goes away takes its
//! question with it.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::Thread;
use std::time::Duration;

use crossbeam::queue::ArrayQueue;
use serde_json::{Map, Value};

use crate::auth::{Added, Identity};
use crate::control::telemetry::SpanContext;
use crate::hub::name::ShardId;
use crate::ring::ConnKey;
use crate::session::ClientId;
use crate::session::SessionId;
use crate::wire::refusal::Refusal;

/// What is asked about one client.
#[derive(Debug)]
pub struct Question {
    /// Its shard.
    pub shard: ShardId,
    /// Its connection.
    pub conn: ConnKey,
    /// Whom its token speaks for.
    pub identity: Arc<Identity>,
    /// The id it is to have.
    pub client_id: ClientId,
    /// The session it is to have.
    pub session_id: SessionId,
    /// What it asked for.
    pub request: Box<RequestTold>,
    /// The admission's span, where it is traced.
    pub trace: Option<SpanContext>,
    /// Gone when the client is.
    pub client: Weak<()>,
}

/// What the backend is told of a client's request: nothing that carries credentials.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestTold {
    /// The path, without its query.
    pub path: Box<str>,
    /// The client's address.
    pub address: Option<IpAddr>,
    /// Headers of the allow-list that were there, in lower case, with their values.
    pub headers: Vec<(Box<str>, Box<str>)>,
}

/// What the backend grants beyond the token.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Grant {
    /// Permissions, and rooms that are joined at once.
    pub added: Added,
    /// Merged into the connection's metadata.
    pub metadata: Map<String, Value>,
}

/// Whether a client may connect.
#[derive(Debug)]
pub enum Verdict {
    /// It may.
    Allow(Box<Grant>),
    /// It may not.
    Deny(Refusal),
    /// Nobody said, and that is as good as a no.
    Failed,
}

/// Too many clients wait for an answer, or the hub ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many clients wait to be let in")]
pub struct Busy;

/// The shards' end; clones share the queue.
#[derive(Debug, Clone)]
pub struct Desk {
    pub(super) shared: Arc<DeskShared>,
}

#[derive(Debug)]
pub(super) struct DeskShared {
    questions: ArrayQueue<Question>,
    /// Questions in the queue or under way.
    pending: AtomicUsize,
    pending_max: usize,
    /// Whether each thread waits for a question.
    waiting: Box<[AtomicBool]>,
    threads: OnceLock<Vec<Thread>>,
    pub(super) stop: AtomicBool,
}

impl Desk {
    /// For so many questions at a time, of which so many are asked at a time.
    pub fn new(pending_max: usize, calls_max: usize) -> Desk {
        let shared = DeskShared {
            questions: ArrayQueue::new(pending_max.max(1)),
            pending: AtomicUsize::new(0),
            pending_max: pending_max.max(1),
            waiting: (0..calls_max.max(1)).map(|_| AtomicBool::new(false)).collect(),
            threads: OnceLock::new(),
            stop: AtomicBool::new(false),
        };
        Desk { shared: Arc::new(shared) }
    }

    /// Asks, unless too many wait.
    pub fn ask(&self, question: Question) -> Result<(), Busy> {
        let shared = &*self.shared;
        if shared.pending.fetch_add(1, Ordering::SeqCst) >= shared.pending_max || shared.stop.load(Ordering::SeqCst) {
            shared.pending.fetch_sub(1, Ordering::SeqCst);
            return Err(Busy);
        }
        if shared.questions.push(question).is_err() {
            shared.pending.fetch_sub(1, Ordering::SeqCst);
            return Err(Busy);
        }
        // Between the question and the look at who waits, as on the other side (`wait`): one of the two sees the other.
        fence(Ordering::SeqCst);
        let woken = shared.waiting.iter().position(|waits| waits.swap(false, Ordering::SeqCst));
        if let Some(thread) = woken.and_then(|place| shared.threads.get()?.get(place)) {
            thread.unpark();
        }
        Ok(())
    }

    /// The next question whose client still waits. Its place is taken until the ticket is dropped.
    pub fn next(&self) -> Option<(Question, DeskTicket)> {
        loop {
            let question = self.shared.questions.pop()?;
            let ticket = DeskTicket { shared: self.shared.clone() };
            if question.client.strong_count() > 0 {
                return Some((question, ticket));
            }
        }
    }

    /// How many clients wait for an answer.
    pub fn pending(&self) -> usize {
        self.shared.pending.load(Ordering::Relaxed)
    }

    /// A thread has nothing to do.
    pub(super) fn wait(&self, place: usize, at_most: Duration) {
        let Some(waits) = self.shared.waiting.get(place) else { return };
        waits.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if self.shared.questions.is_empty() && !self.shared.stop.load(Ordering::SeqCst) {
            std::thread::park_timeout(at_most);
        }
        waits.store(false, Ordering::SeqCst);
    }

    pub(super) fn set_threads(&self, threads: Vec<Thread>) {
        // There is one start.
        drop(self.shared.threads.set(threads));
    }

    pub(super) fn end(&self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.threads.get().into_iter().flatten().for_each(Thread::unpark);
    }
}

/// One question's place in the bound.
#[derive(Debug)]
pub struct DeskTicket {
    shared: Arc<DeskShared>,
}

impl Drop for DeskTicket {
    fn drop(&mut self) {
        self.shared.pending.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(slot: u32) -> (Question, Arc<()>) {
        let client = Arc::new(());
        let question = Question {
            shard: ShardId(0),
            conn: ConnKey { slot, generation: 0 },
            identity: Arc::new(Identity::anonymous("u".to_owned())),
            client_id: "c".into(),
            session_id: "s".into(),
            request: Box::default(),
            trace: None,
            client: Arc::downgrade(&client),
        };
        (question, client)
    }

    #[test]
    fn a_full_desk_takes_no_question_until_one_is_answered() {
        let desk = Desk::new(2, 1);
        let (all, clients): (Vec<_>, Vec<_>) = (0..4).map(question).unzip();
        let taken: Vec<bool> = all.into_iter().map(|one| desk.ask(one).is_ok()).collect();
        assert_eq!((taken, desk.pending()), (vec![true, true, false, false], 2));
        let (_, ticket) = desk.next().expect("a question");
        assert!(desk.ask(question(4).0).is_err(), "one that is being asked counts");
        drop(ticket);
        assert!(desk.ask(question(5).0).is_ok());
        drop(clients);
        assert!(desk.next().is_none(), "nobody waits for these any more");
        assert_eq!(desk.pending(), 0);
    }
}

//! What nodes say to each other: calls, and answers, which are kept where nobody heard them.

use std::time::Duration;

use bytes::Bytes;
use redis::{PushKind, RedisError, Value};
use tokio::task::AbortHandle;

use super::super::calls::{Failure, Frame, LONG_MS};
use super::super::keys::run_text;
use super::super::{Answer, Asked, Call};
use super::{Link, What, Worker};
use crate::broker::redis::server::{Meaning, meaning};
use crate::hub::reply::HubError;
use crate::wire::codes::ErrorCode;

/// Calls of others that are carried out at a time; beyond it they are refused.
const SERVING_MAX: usize = 256;
/// The same of those that wait for something to happen.
const SERVING_LONG_MAX: usize = 4096;
/// Bytes of answers that wait for a link.
pub(super) const UNSAID_BYTES_MAX: usize = 16 << 20;
/// How long an answer is kept for a node that lives and does not listen, and how often it is said again meanwhile.
pub(super) const ANSWER_KEPT_MS: u64 = 10_000;
const ANSWER_AGAIN_MS: u64 = 100;
/// The shortest time that a call is given at the other end.
const TTL_MIN_MS: u64 = 10;

/// An answer to another node's call, which is kept until then where that one does not hear it.
pub(super) struct KeptAnswer {
    pub(super) to: u64,
    pub(super) frame: Bytes,
    pub(super) until_ms: u64,
}

/// A call of another node that is being carried out.
pub(super) struct Serving {
    pub(super) task: AbortHandle,
    pub(super) is_long: bool,
}

impl Worker {
    pub(super) fn take_pushed(&mut self) {
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

    pub(super) fn heard(&mut self, from: u64, frame: Frame) {
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

    pub(super) fn answer(&mut self, to: u64, number: u64, outcome: Result<Bytes, HubError>) {
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
    pub(super) fn say_answer(&mut self, kept: KeptAnswer) {
        let Some(connection) = self.publish_connection() else { return self.keep_answer(kept) };
        let command = self.keys.publish(kept.to, &kept.frame);
        self.spawn(async move { What::Answered { answer: connection.command(command).await, kept } });
    }

    pub(super) fn keep_answer(&mut self, kept: KeptAnswer) {
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

    pub(super) fn say_again(&mut self) {
        self.unsaid_bytes = 0;
        for kept in std::mem::take(&mut self.unsaid) {
            self.say_answer(kept);
        }
    }

    /// An answer was said. Where nobody heard it for certain it is said again: the node that waits for it may be about to make
    /// its link anew, as this one did, because the registry has gone to another server.
    pub(super) fn answered(&mut self, kept: KeptAnswer, answer: &Result<Value, RedisError>) {
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
    pub(super) fn tell_all_to_look(&self) {
        let Some(frame) = Frame::Look.encode(self.run) else { return };
        for other in self.members.others() {
            self.send(self.keys.publish(other.run, &frame), What::Said);
        }
    }

    pub(super) fn call(&mut self, call: Call) {
        let Call { to, data, timeout, responder } = call;
        if self.publish_connection().is_none() {
            // Its answer tells that all of them are missing.
            let answers = to.into_iter().map(|node| Answer { node, outcome: Err(Failure::Missing) });
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

    pub(super) fn sweep(&mut self) {
        for (number, asked) in self.pending.sweep() {
            let Some(frame) = (Frame::Cancel { number }).encode(self.run) else { continue };
            for run in asked {
                self.send(self.keys.publish(run, &frame), What::Said);
            }
        }
    }
}

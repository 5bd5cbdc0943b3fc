//! Calls between nodes: what they look like on the way, and who waits for what. Pure.
//!
//! ```text
//! {"from":RUN,"call":7,"ttl_ms":1990,"data":…}     ─► a node
//! {"from":RUN,"answer":7,"data":…}                 ◄─ or "error":{"code":…,"message":…}
//! {"from":RUN,"cancel":7}                          ─► nobody waits for the answer any more
//! {"from":RUN,"look":true}                         ─► all: somebody has come or gone
//! ```

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::keys::{parse_run, run_text};
use super::members::NodeInfo;
use crate::hub::reply::{HubError, Responder};
use crate::wire::codes::ErrorCode;

/// A message on its way, at most.
pub const FRAME_BYTES_MAX: usize = 4 << 20;
/// Calls that wait for answers at a time.
pub(super) const PENDING_MAX: usize = 4096;
/// Of these, such as wait for something to happen: the others always have a place.
pub(super) const LONG_MAX: usize = 3072;
/// Answers that came which are known.
const CAME_MAX: usize = 1 << 16;
/// A call that may take longer than this waits for something to happen.
pub(super) const LONG_MS: u64 = 10_000;

/// What a node answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Which node.
    pub node: NodeInfo,
    /// Its answer as JSON, or why there is none.
    pub outcome: Result<Bytes, Failure>,
}

/// Why there is no answer of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// It did not answer in time, or is not there.
    Missing,
    /// It refused.
    Refused(HubError),
}

/// A message between nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    Look,
    Call { number: u64, ttl_ms: u64, data: Bytes },
    Cancel { number: u64 },
    Answer { number: u64, outcome: Result<Bytes, HubError> },
}

#[derive(Serialize, Deserialize)]
struct Written<'a> {
    from: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    look: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    call: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cancel: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    answer: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ttl_ms: Option<u64>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<WrittenError>,
}

#[derive(Serialize, Deserialize)]
struct WrittenError {
    code: String,
    message: String,
}

impl Frame {
    /// As it goes over the link; none where it is no JSON or too long.
    pub(super) fn encode(&self, from: u64) -> Option<Vec<u8>> {
        let raw = |data: &Bytes| serde_json::from_slice::<Box<RawValue>>(data).ok();
        let mut written = Written {
            from: run_text(from),
            look: false,
            call: None,
            cancel: None,
            answer: None,
            ttl_ms: None,
            data: None,
            error: None,
        };
        let data;
        match self {
            Frame::Look => written.look = true,
            Frame::Cancel { number } => written.cancel = Some(*number),
            Frame::Call { number, ttl_ms, data: body } => {
                (written.call, written.ttl_ms) = (Some(*number), Some(*ttl_ms));
                data = raw(body)?;
                written.data = Some(&data);
            }
            Frame::Answer { number, outcome } => {
                written.answer = Some(*number);
                match outcome {
                    Ok(body) => {
                        data = raw(body)?;
                        written.data = Some(&data);
                    }
                    Err(HubError { code, message }) => {
                        let (code, message) = (code.as_str().to_owned(), message.clone());
                        written.error = Some(WrittenError { code, message });
                    }
                }
            }
        }
        serde_json::to_vec(&written).ok().filter(|frame| frame.len() <= FRAME_BYTES_MAX)
    }

    /// What came, and from which run; none where it can't be read.
    pub(super) fn decode(bytes: &[u8]) -> Option<(u64, Frame)> {
        let Written { from, look, call, cancel, answer, ttl_ms, data, error } = serde_json::from_slice(bytes).ok()?;
        let from = parse_run(&from)?;
        let body = || Some(Bytes::copy_from_slice(data?.get().as_bytes()));
        let frame = match (look, call, answer) {
            (true, None, None) => Frame::Look,
            (false, None, None) => Frame::Cancel { number: cancel? },
            (false, Some(number), None) => Frame::Call { number, ttl_ms: ttl_ms?, data: body()? },
            (false, None, Some(number)) => {
                let outcome = match error {
                    Some(WrittenError { code, message }) => {
                        let code = ErrorCode::ALL.into_iter().find(|one| one.as_str() == code);
                        Err(HubError::new(code.unwrap_or(ErrorCode::Internal), message))
                    }
                    None => Ok(body()?),
                };
                Frame::Answer { number, outcome }
            }
            _ => return None,
        };
        Some((from, frame))
    }
}

/// The calls that are not answered by all who were asked.
#[derive(Debug, Default)]
pub(super) struct Pending {
    calls: HashMap<u64, Waiting>,
    /// By their deadlines, in milliseconds.
    deadlines: BTreeMap<(u64, u64), ()>,
    long: usize,
    /// Answers that did not come in time, since it was looked at last.
    pub(super) missing: u64,
    last: u64,
    /// Answers that came, by number and node, the last of them.
    came: HashSet<(u64, u64)>,
    came_in_order: VecDeque<(u64, u64)>,
}

#[derive(Debug)]
struct Waiting {
    asked: Vec<NodeInfo>,
    answers: Vec<Answer>,
    deadline_ms: u64,
    is_long: bool,
    responder: Responder<Vec<Answer>>,
}

impl Pending {
    /// Begins a call; its number. The responder is dropped, which answers `unavailable`, where too many wait.
    pub(super) fn begin(
        &mut self,
        asked: Vec<NodeInfo>,
        deadline_ms: u64,
        is_long: bool,
        responder: Responder<Vec<Answer>>,
    ) -> Option<u64> {
        if asked.is_empty() {
            responder.resolve(Ok(Vec::new()));
            return None;
        }
        if self.calls.len() >= PENDING_MAX || is_long && self.long >= LONG_MAX {
            return None;
        }
        self.long += usize::from(is_long);
        self.last += 1;
        self.deadlines.insert((deadline_ms, self.last), ());
        self.calls.insert(self.last, Waiting { asked, answers: Vec::new(), deadline_ms, is_long, responder });
        Some(self.last)
    }

    /// Whether an answer came before: one of which its node could not know that it was heard is said again. It must not be
    /// given back then.
    pub(super) fn is_repeated(&mut self, number: u64, from: u64) -> bool {
        if !self.came.insert((number, from)) {
            return true;
        }
        self.came_in_order.push_back((number, from));
        if self.came_in_order.len() > CAME_MAX
            && let Some(first) = self.came_in_order.pop_front()
        {
            self.came.remove(&first);
        }
        false
    }

    /// A node has answered. Given back where nobody waits for it any more.
    pub(super) fn answered(
        &mut self,
        number: u64,
        from: u64,
        outcome: Result<Bytes, Failure>,
    ) -> Result<(), Result<Bytes, Failure>> {
        let Some(waiting) = self.calls.get_mut(&number) else { return Err(outcome) };
        if waiting.responder.is_abandoned() {
            self.end(number);
            return Err(outcome);
        }
        let Some(place) = waiting.asked.iter().position(|node| node.run == from) else { return Ok(()) };
        let node = waiting.asked.swap_remove(place);
        waiting.answers.push(Answer { node, outcome });
        if waiting.asked.is_empty() {
            self.end(number);
        }
        Ok(())
    }

    /// A node is gone: nobody waits for it any more.
    pub(super) fn gone(&mut self, run: u64) {
        let concerned = |waiting: &Waiting| waiting.asked.iter().any(|node| node.run == run);
        let numbers: Vec<u64> =
            self.calls.iter().filter(|(_, waiting)| concerned(waiting)).map(|(number, _)| *number).collect();
        for number in numbers {
            drop(self.answered(number, run, Err(Failure::Missing)));
        }
    }

    /// Ends the calls for whose answers nobody waits any more; their numbers, and who was asked and has not answered.
    pub(super) fn sweep(&mut self) -> Vec<(u64, Vec<u64>)> {
        let abandoned = self.calls.iter().filter(|(_, waiting)| waiting.responder.is_abandoned());
        let abandoned = abandoned.map(|(number, waiting)| {
            let asked: Vec<u64> = waiting.asked.iter().map(|node| node.run).collect();
            (*number, asked)
        });
        let abandoned: Vec<_> = abandoned.collect();
        for (number, _) in &abandoned {
            self.end(*number);
        }
        abandoned
    }

    /// Ends the calls whose time is over.
    pub(super) fn expire(&mut self, now_ms: u64) {
        while let Some(((deadline_ms, number), ())) = self.deadlines.first_key_value().map(|(key, ())| (*key, ())) {
            if deadline_ms > now_ms {
                return;
            }
            self.end(number);
        }
    }

    /// When the next call's time is over.
    pub(super) fn next_ms(&self) -> Option<u64> {
        self.deadlines.first_key_value().map(|((deadline_ms, _), ())| *deadline_ms)
    }

    fn end(&mut self, number: u64) {
        let Some(waiting) = self.calls.remove(&number) else { return };
        let Waiting { asked, mut answers, deadline_ms, is_long, responder } = waiting;
        self.long -= usize::from(is_long);
        self.deadlines.remove(&(deadline_ms, number));
        let failed = answers.iter().filter(|answer| answer.outcome == Err(Failure::Missing)).count();
        if !responder.is_abandoned() {
            self.missing += (asked.len() + failed) as u64;
        }
        answers.extend(asked.into_iter().map(|node| Answer { node, outcome: Err(Failure::Missing) }));
        answers.sort_by(|one, other| (&one.node.name, one.node.run).cmp(&(&other.node.name, other.node.run)));
        responder.resolve(Ok(answers));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::reply::pending;

    fn node(run: u64) -> NodeInfo {
        let (public, internal, version) = (None, None, String::new());
        NodeInfo { run, name: format!("n{run}"), public, internal, started_ms: 0, version }
    }

    #[test]
    fn frames_are_read_as_they_are_written() {
        let body = Bytes::from_static(br#"{"what":"stats","x":[1.50,"\u00e4"]}"#);
        let refused = Err(HubError::new(ErrorCode::NotFound, "no \"such\" thing"));
        for frame in [
            Frame::Look,
            Frame::Cancel { number: 3 },
            Frame::Call { number: 7, ttl_ms: 2000, data: body.clone() },
            Frame::Answer { number: 7, outcome: Ok(body) },
            Frame::Answer { number: u64::MAX, outcome: refused },
        ] {
            let bytes = frame.encode(5).expect("it is JSON");
            assert_eq!(Frame::decode(&bytes), Some((5, frame)));
        }
    }

    #[test]
    fn what_is_no_frame_is_not_read_and_too_long_a_one_is_not_written() {
        for text in [
            "",
            "{}",
            r#"{"from":"1","look":true}"#,
            r#"{"from":"0000000000000001"}"#,
            r#"{"from":"0000000000000001","call":1,"data":{}}"#,
            r#"{"from":"0000000000000001","call":1,"answer":1,"ttl_ms":1,"data":{}}"#,
            r#"{"from":"0000000000000001","answer":1}"#,
        ] {
            assert_eq!(Frame::decode(text.as_bytes()), None, "{text}");
        }
        let long = Bytes::from(format!("\"{}\"", "x".repeat(FRAME_BYTES_MAX)));
        assert_eq!(Frame::Answer { number: 1, outcome: Ok(long) }.encode(1), None);
        assert_eq!(Frame::Answer { number: 1, outcome: Ok(Bytes::from_static(b"{")) }.encode(1), None);
    }

    #[test]
    fn a_call_ends_when_all_have_answered() {
        let mut calls = Pending::default();
        let (responder, answer) = pending();
        let number = calls.begin(vec![node(2), node(1)], 100, false, responder).expect("begun");
        assert_eq!(calls.answered(number, 2, Ok(Bytes::from_static(b"2"))), Ok(()));
        assert_eq!(calls.answered(number, 2, Ok(Bytes::from_static(b"again"))), Ok(()));
        assert_eq!(calls.answered(number, 1, Ok(Bytes::from_static(b"1"))), Ok(()));
        let answers = answer.wait().expect("answered");
        let told: Vec<_> = answers.iter().map(|one| (one.node.run, one.outcome.clone().expect("told"))).collect();
        assert_eq!(told, [(1, Bytes::from_static(b"1")), (2, Bytes::from_static(b"2"))]);
        assert_eq!(calls.next_ms(), None);
    }

    #[test]
    fn who_does_not_answer_in_time_or_is_gone_is_missing() {
        let mut calls = Pending::default();
        let (responder, answer) = pending();
        let number = calls.begin(vec![node(1), node(2), node(3)], 100, false, responder).expect("begun");
        assert_eq!(calls.answered(number, 2, Ok(Bytes::from_static(b"2"))), Ok(()));
        calls.gone(3);
        calls.expire(99);
        assert_eq!(calls.next_ms(), Some(100));
        calls.expire(100);
        let answers = answer.wait().expect("answered");
        let missing: Vec<bool> = answers.iter().map(|one| one.outcome == Err(Failure::Missing)).collect();
        assert_eq!(missing, [true, false, true]);
        let late = Ok(Bytes::from_static(b"late"));
        assert_eq!(calls.answered(number, 1, late.clone()), Err(late), "what came too late is given back");
    }

    #[test]
    fn an_answer_that_came_before_is_known_among_the_last() {
        let mut calls = Pending::default();
        assert!(!calls.is_repeated(1, 7));
        assert!(!calls.is_repeated(1, 8) && !calls.is_repeated(2, 7));
        assert!(calls.is_repeated(1, 7) && calls.is_repeated(1, 8));
        for number in 3..CAME_MAX as u64 {
            assert!(!calls.is_repeated(number, 7));
        }
        assert!(calls.is_repeated(1, 7), "it is among the last");
        assert!(!calls.is_repeated(0, 7));
        assert!(!calls.is_repeated(1, 7), "it was the first of more than are kept");
    }

    #[test]
    fn a_call_whose_answer_nobody_waits_for_is_ended() {
        let mut calls = Pending::default();
        let (responder, answer) = pending();
        let number = calls.begin(vec![node(1), node(2)], 100, true, responder).expect("begun");
        assert_eq!(calls.answered(number, 2, Ok(Bytes::from_static(b"2"))), Ok(()));
        assert_eq!(calls.sweep(), []);
        drop(answer);
        assert_eq!(calls.sweep(), [(number, vec![1])]);
        assert_eq!((calls.sweep(), calls.next_ms()), (vec![], None));
    }

    #[test]
    fn calls_that_wait_for_something_to_happen_leave_room_for_others() {
        let mut calls = Pending::default();
        let mut waiting = Vec::new();
        for _ in 0..LONG_MAX {
            let (responder, answer) = pending();
            assert!(calls.begin(vec![node(1)], 100, true, responder).is_some());
            waiting.push(answer);
        }
        let (responder, _answer) = pending();
        assert_eq!(calls.begin(vec![node(1)], 100, true, responder), None);
        let (responder, _answer) = pending();
        assert!(calls.begin(vec![node(1)], 100, false, responder).is_some());
        calls.expire(100);
        let (responder, _answer) = pending();
        assert!(calls.begin(vec![node(1)], 200, true, responder).is_some());
    }

    #[test]
    fn calls_that_wait_are_bounded_and_one_to_nobody_is_answered_at_once() {
        let mut calls = Pending::default();
        let (responder, answer) = pending();
        assert_eq!(calls.begin(Vec::new(), 100, false, responder), None);
        assert_eq!(answer.wait(), Ok(Vec::new()));
        let mut waiting = Vec::new();
        for _ in 0..PENDING_MAX {
            let (responder, answer) = pending();
            assert!(calls.begin(vec![node(1)], 100, false, responder).is_some());
            waiting.push(answer);
        }
        let (responder, answer) = pending();
        assert_eq!(calls.begin(vec![node(1)], 100, false, responder), None);
        assert_eq!(answer.wait().map_err(|error| error.code), Err(ErrorCode::Unavailable));
    }
}

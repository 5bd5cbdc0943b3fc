//! What waits to be published, and what was sent and is not answered yet.
//!
//! ```text
//! push ─► waiting of a room ─► next: all of them as one call ─► sent ─► answered
//!               │                                                 │
//!               │ no link for buffer_ms: refused                  ├ the link broke: sent again, the same call
//!               └                                                 └ no answer within timeout_ms: IN_DOUBT
//! ```
//!
//! A room has one call on its way at a time. That keeps its order, and under load makes one call of all that came
//! meanwhile. A call that is sent again is the same, with the same number: Redis knows whether it had it.
//!
//! Pure: times are milliseconds that are given. Larger than most files, because all that can become of a submission is told
//! once, in its order.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::encoding;
use super::lanes::Lanes;
use super::placement::{Routes, ServerId};
use super::request::{Publish, Request};
use crate::hub::brokered::{IN_DOUBT, Numbers, Submission};
use crate::hub::name::{RoomName, ShardId};
use crate::wire::codes::ErrorCode;
use crate::wire::native::Refused;

/// Events of one call at most, and their bytes: a script holds up all other rooms of its server.
const CALL_EVENTS_MAX: usize = 1000;
const CALL_BYTES_MAX: usize = 256 << 10;

/// Calls on their way to a server at a time.
const CALLS_MAX: usize = 1024;

/// How long a call rests that the server could not carry out yet, or not any more.
const REST_MS: u64 = 50;

/// Why a submission is refused while there is no link.
pub const NO_LINK: Refused = Refused::new(ErrorCode::Unavailable, "the broker can't be reached");
/// Why a submission is refused that would wait behind too many.
pub const TOO_MUCH: Refused = Refused::new(ErrorCode::Unavailable, "too much waits for the broker");
/// What is told of a submission that may have been taken.
pub const DOUBTFUL: Refused = Refused::new(ErrorCode::Unavailable, IN_DOUBT);

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// An answer.
    pub timeout_ms: u64,
    /// A link, for what is not sent.
    pub buffer_ms: u64,
    /// Bytes of a shard's events.
    pub pending_bytes_max: usize,
}

impl Bounds {
    /// How long something may wait to be sent.
    fn wait_ms(&self, is_up: bool) -> u64 {
        if is_up { self.timeout_ms.max(self.buffer_ms) } else { self.buffer_ms }
    }
}

/// Submissions to all servers.
#[derive(Debug)]
pub struct Submissions {
    rooms: HashMap<RoomName, Room>,
    /// Rooms with something to send and nothing on its way, each once; and those whose call is on its way.
    ready: Lanes,
    /// Rooms whose call rests, which are ready at a time.
    resting: VecDeque<(u64, RoomName)>,
    /// Bytes of each shard.
    bytes: Vec<usize>,
    bounds: Bounds,
    next_serial: u64,
    /// When something has to be looked at: the rooms by the times of their oldest.
    due: BTreeMap<(u64, u64), RoomName>,
    next_due: u64,
}

#[derive(Debug)]
struct Room {
    /// Who has it.
    server: ServerId,
    waiting: VecDeque<Waiting>,
    call: Option<Call>,
    /// It is in `ready`, or rests.
    is_ready: bool,
    /// Where it is in `due`.
    due: Option<(u64, u64)>,
}

#[derive(Debug)]
struct Waiting {
    shard: ShardId,
    what: What,
    bytes: usize,
    since_ms: u64,
}

#[derive(Debug)]
enum What {
    Submit(Box<Submission>),
    Clear { number: u64 },
}

#[derive(Debug)]
struct Call {
    /// Tells it from the room's other calls.
    serial: u64,
    parts: Vec<Part>,
    request: Request,
    first_sent_ms: u64,
    sent: Option<Sent>,
    /// Where it is on its way to.
    on_its_way_to: Option<ServerId>,
    /// It may have been carried out, so that a refusal can't say that it was not.
    is_doubtful: bool,
}

impl Call {
    fn is_on_its_way(&self) -> bool {
        self.on_its_way_to.is_some()
    }
}

/// When a call was sent that is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    at_us: u64,
    /// Not for the first time.
    pub is_again: bool,
}

impl Sent {
    /// How long ago it was sent.
    pub fn elapsed_us(self, now_us: u64) -> u64 {
        now_us.saturating_sub(self.at_us)
    }
}

/// A submission within a call, or a clearing.
#[derive(Debug)]
struct Part {
    shard: ShardId,
    number: u64,
    is_clear: bool,
    events: usize,
    bytes: usize,
}

/// What is told of a submission, or a clearing.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its shard.
    pub shard: ShardId,
    /// Its room.
    pub room: RoomName,
    /// Its number.
    pub number: u64,
    /// What became of it.
    pub told: Told,
}

/// What became of something.
#[derive(Debug, PartialEq, Eq)]
pub enum Told {
    /// Of a submission.
    Submitted(Result<Numbers, Refused>),
    /// Of a clearing.
    Cleared(Result<u64, Refused>),
}

/// What became of a call.
#[derive(Debug)]
pub enum Outcome {
    /// It was carried out.
    Done(Numbers),
    /// The log was emptied of so many.
    Cleared(u64),
    /// It was not.
    Refused(Refused),
    /// It was not, and will be when the server has recovered.
    NotYet,
    /// It is not known whether it was.
    Unknown,
    /// It was, but not safely.
    Unsafe,
}

impl Submissions {
    /// None yet, from so many shards.
    pub fn new(shards: u16, bounds: Bounds) -> Submissions {
        Submissions {
            rooms: HashMap::new(),
            ready: Lanes::new(CALLS_MAX),
            resting: VecDeque::new(),
            bytes: vec![0; usize::from(shards)],
            bounds,
            next_serial: 0,
            due: BTreeMap::new(),
            next_due: 0,
        }
    }

    /// Bytes that wait or are on their way.
    pub fn pending_bytes(&self) -> usize {
        self.bytes.iter().sum()
    }

    /// Takes a submission to a room of a server, or tells why not.
    pub fn push(
        &mut self,
        shard: ShardId,
        submission: Box<Submission>,
        server: ServerId,
        routes: &Routes,
        now_ms: u64,
        answers: &mut Vec<Answer>,
    ) {
        let bytes = submission.events.iter().map(encoding::event_bytes).sum();
        let room = submission.room.clone();
        let waiting = Waiting { shard, what: What::Submit(submission), bytes, since_ms: now_ms };
        self.wait(room, waiting, server, routes, answers);
    }

    /// Takes a wish to empty the log of a server's room, which keeps its place among the submissions.
    pub fn clear(
        &mut self,
        shard: ShardId,
        (room, server): (RoomName, ServerId),
        number: u64,
        routes: &Routes,
        now_ms: u64,
        answers: &mut Vec<Answer>,
    ) {
        let bytes = size_of::<Waiting>();
        let waiting = Waiting { shard, what: What::Clear { number }, bytes, since_ms: now_ms };
        self.wait(room, waiting, server, routes, answers);
    }

    fn wait(&mut self, name: RoomName, waiting: Waiting, server: ServerId, routes: &Routes, answers: &mut Vec<Answer>) {
        // Without a link only what may be buffered waits.
        if !routes.is_up(server) && self.bounds.buffer_ms == 0 {
            answers.push(waiting.refused(name, NO_LINK));
            return;
        }
        let Some(pending) = self.bytes.get_mut(usize::from(waiting.shard.0)) else { return };
        // One that is larger than all that may wait goes when nothing else does.
        if *pending + waiting.bytes > self.bounds.pending_bytes_max && *pending > 0 {
            answers.push(waiting.refused(name, TOO_MUCH));
            return;
        }
        *pending += waiting.bytes;
        let room = self.rooms.entry(name.clone()).or_insert_with(|| Room::new(server));
        room.waiting.push_back(waiting);
        if room.call.is_none() {
            self.make_ready(&name);
        }
        self.set_due(&name, routes);
    }

    fn make_ready(&mut self, name: &RoomName) {
        if let Some(room) = self.rooms.get_mut(name).filter(|room| !room.is_ready) {
            room.is_ready = true;
            self.ready.push(room.server, name.clone());
        }
    }

    /// There is no link to a server any more. What was on its way has to be sent again.
    pub fn link_down(&mut self, server: ServerId, routes: &Routes, now_ms: u64, answers: &mut Vec<Answer>) {
        let is_on_its_way = |room: &Room| room.call.as_ref().is_some_and(|call| call.on_its_way_to == Some(server));
        let on_their_way: Vec<RoomName> =
            self.rooms.iter().filter(|(_, room)| is_on_its_way(room)).map(|(name, _)| name.clone()).collect();
        for name in &on_their_way {
            self.put_back(name, true);
            self.make_ready(name);
        }
        let waits = |room: &Room| room.server == server && !room.waiting.is_empty();
        let waiting: Vec<RoomName> =
            self.rooms.iter().filter(|(_, room)| waits(room)).map(|(name, _)| name.clone()).collect();
        for name in &waiting {
            self.refuse_waiting(name, routes, now_ms, answers);
        }
    }

    /// A call is not on its way any more, and not answered.
    fn put_back(&mut self, name: &RoomName, is_doubtful: bool) {
        let Some(call) = self.rooms.get_mut(name).and_then(|room| room.call.as_mut()) else { return };
        call.is_doubtful |= is_doubtful;
        if let Some(server) = call.on_its_way_to.take() {
            self.ready.done(server, 1);
        }
    }

    /// Rooms may have gone to other servers.
    pub fn rearrange(&mut self, routes: &Routes) {
        let mut moved = Vec::new();
        for (name, room) in &mut self.rooms {
            let server = routes.of(name.as_str());
            if std::mem::replace(&mut room.server, server) != server {
                moved.push(name.clone());
            }
        }
        self.ready.rearrange(routes);
        self.wake(u64::MAX);
        moved.iter().for_each(|name| self.set_due(name, routes));
    }

    /// Has those ready that have rested for long enough.
    fn wake(&mut self, now_ms: u64) {
        while let Some((_, name)) = self.resting.pop_front_if(|(at_ms, _)| *at_ms <= now_ms) {
            if let Some(room) = self.rooms.get(&name) {
                self.ready.push(room.server, name);
            }
        }
    }

    /// What is to be sent next to a server.
    pub fn next(
        &mut self,
        server: ServerId,
        routes: &Routes,
        now_ms: u64,
        now_us: u64,
    ) -> Option<(RoomName, u64, Request)> {
        while routes.is_up(server) {
            let name = self.ready.pop(server)?;
            let Some(room) = self.rooms.get_mut(&name) else { continue };
            room.is_ready = false;
            if room.call.is_none() {
                room.call = room.next_call(self.next_serial, now_ms);
                self.next_serial += 1;
            }
            let Some(call) = &mut room.call else {
                // All that waited was given up.
                self.set_due(&name, routes);
                continue;
            };
            call.on_its_way_to = Some(server);
            call.sent = Some(Sent { at_us: now_us, is_again: call.sent.is_some() });
            let (serial, request) = (call.serial, call.request.clone());
            self.ready.sent(server, 1);
            self.set_due(&name, routes);
            return Some((name, serial, request));
        }
        None
    }

    /// What became of the call of a room; when it was sent. One that was given up is passed over.
    pub fn answered(
        &mut self,
        name: &RoomName,
        serial: u64,
        outcome: Outcome,
        routes: &Routes,
        now_ms: u64,
        answers: &mut Vec<Answer>,
    ) -> Option<Sent> {
        let room = self.rooms.get_mut(name)?;
        let call = room.call.as_ref().filter(|call| call.serial == serial)?;
        let (_, sent) = (call.on_its_way_to?, call.sent);
        let outcome = match outcome {
            Outcome::Unknown => {
                self.put_back(name, true);
                self.make_ready(name);
                return sent;
            }
            Outcome::NotYet => {
                if !std::mem::replace(&mut room.is_ready, true) {
                    self.resting.push_back((now_ms + REST_MS, name.clone()));
                }
                self.put_back(name, false);
                return sent;
            }
            Outcome::Done(numbers) => Ok(Done::Numbers(numbers)),
            Outcome::Cleared(count) => Ok(Done::Cleared(count)),
            Outcome::Refused(refused) => Err(if call.is_doubtful { DOUBTFUL } else { refused }),
            Outcome::Unsafe => Err(DOUBTFUL),
        };
        self.finish(name, outcome, routes, answers);
        sent
    }

    fn finish(&mut self, name: &RoomName, outcome: Result<Done, Refused>, routes: &Routes, answers: &mut Vec<Answer>) {
        let Some(room) = self.rooms.get_mut(name) else { return };
        let Some(call) = room.call.take() else { return };
        if let Some(server) = call.on_its_way_to {
            self.ready.done(server, 1);
        }
        let mut from = 0;
        for part in call.parts {
            if let Some(pending) = self.bytes.get_mut(usize::from(part.shard.0)) {
                *pending = pending.saturating_sub(part.bytes);
            }
            let told = match &outcome {
                Ok(Done::Numbers(numbers)) => {
                    let events = numbers.events.get(from..from + part.events).unwrap_or_default().to_vec();
                    Told::Submitted(Ok(Numbers { epoch: numbers.epoch, events, nodes: numbers.nodes }))
                }
                Ok(Done::Cleared(count)) => Told::Cleared(Ok(*count)),
                Err(refused) => Told::refused(part.is_clear, refused.clone()),
            };
            from += part.events;
            answers.push(Answer { shard: part.shard, room: name.clone(), number: part.number, told });
        }
        if !room.waiting.is_empty() {
            self.make_ready(name);
        }
        self.set_due(name, routes);
    }

    /// Gives up what has waited too long, and has ready what has rested.
    pub fn expire(&mut self, routes: &Routes, now_ms: u64, answers: &mut Vec<Answer>) {
        self.wake(now_ms);
        while let Some(entry) = self.due.first_entry().filter(|entry| entry.key().0 <= now_ms) {
            let name = entry.remove();
            let Some(room) = self.rooms.get_mut(&name) else { continue };
            room.due = None;
            if let Some(call) = &room.call
                && call.first_sent_ms + self.bounds.timeout_ms <= now_ms
            {
                let refused = if call.is_on_its_way() || call.is_doubtful { DOUBTFUL } else { NO_LINK };
                self.finish(&name, Err(refused), routes, answers);
            }
            self.refuse_waiting(&name, routes, now_ms, answers);
            self.set_due(&name, routes);
        }
    }

    /// When [`Submissions::expire`] has something to do.
    pub fn next_due_ms(&self) -> Option<u64> {
        let of_resting = self.resting.front().map(|(at_ms, _)| *at_ms);
        self.due.first_key_value().map(|((at, _), _)| *at).into_iter().chain(of_resting).min()
    }

    /// Refuses what waits without a link, or behind a call that is not answered, for too long.
    fn refuse_waiting(&mut self, name: &RoomName, routes: &Routes, now_ms: u64, answers: &mut Vec<Answer>) {
        let Some(room) = self.rooms.get_mut(name) else { return };
        let wait_ms = self.bounds.wait_ms(routes.is_up(room.server));
        while let Some(first) = room.waiting.pop_front_if(|first| first.since_ms + wait_ms <= now_ms) {
            if let Some(pending) = self.bytes.get_mut(usize::from(first.shard.0)) {
                *pending = pending.saturating_sub(first.bytes);
            }
            answers.push(first.refused(name.clone(), NO_LINK));
        }
        self.set_due(name, routes);
    }

    /// Notes when a room has to be looked at, and forgets one that has nothing left.
    fn set_due(&mut self, name: &RoomName, routes: &Routes) {
        let Some(room) = self.rooms.get_mut(name) else { return };
        let of_call = room.call.as_ref().map(|call| call.first_sent_ms + self.bounds.timeout_ms);
        let wait_ms = self.bounds.wait_ms(routes.is_up(room.server));
        let of_waiting = room.waiting.front().map(|first| first.since_ms + wait_ms);
        let at = of_call.into_iter().chain(of_waiting).min();
        if room.due.map(|due| due.0) != at {
            if let Some(due) = room.due.take() {
                self.due.remove(&due);
            }
            if let Some(at) = at {
                self.next_due += 1;
                let due = (at, self.next_due);
                room.due = Some(due);
                self.due.insert(due, name.clone());
            }
        }
        if room.call.is_none() && room.waiting.is_empty() && !room.is_ready {
            self.rooms.remove(name);
        }
    }
}

/// What an answer has.
enum Done {
    Numbers(Numbers),
    Cleared(u64),
}

impl Told {
    fn refused(is_clear: bool, refused: Refused) -> Told {
        if is_clear { Told::Cleared(Err(refused)) } else { Told::Submitted(Err(refused)) }
    }
}

impl Waiting {
    fn number(&self) -> u64 {
        match &self.what {
            What::Submit(submission) => submission.number,
            What::Clear { number } => *number,
        }
    }

    fn refused(&self, room: RoomName, refused: Refused) -> Answer {
        let told = Told::refused(matches!(self.what, What::Clear { .. }), refused);
        Answer { shard: self.shard, room, number: self.number(), told }
    }
}

impl Room {
    fn new(server: ServerId) -> Room {
        Room { server, waiting: VecDeque::new(), call: None, is_ready: false, due: None }
    }

    /// All that waits as one call, as much as fits.
    fn next_call(&mut self, serial: u64, now_ms: u64) -> Option<Call> {
        let call = |parts, request| Call {
            serial,
            parts,
            request,
            first_sent_ms: now_ms,
            sent: None,
            on_its_way_to: None,
            is_doubtful: false,
        };
        let mut publish = match self.waiting.front().map(|first| &first.what)? {
            What::Submit(submission) => Publish::new(submission),
            What::Clear { .. } => {
                let Waiting { shard, bytes, what, .. } = self.waiting.pop_front()?;
                let What::Clear { number } = what else { return None };
                return Some(call(vec![Part { shard, number, is_clear: true, events: 0, bytes }], Request::Clear));
            }
        };
        let (mut events, mut bytes) = (0, 0);
        let mut parts = Vec::new();
        while let Some(next) = self.waiting.pop_front_if(|next| match &next.what {
            What::Submit(submission) => {
                let fits = events + submission.events.len() <= CALL_EVENTS_MAX && bytes + next.bytes <= CALL_BYTES_MAX;
                parts.is_empty() || fits
            }
            What::Clear { .. } => false,
        }) {
            let Waiting { shard, what: What::Submit(submission), bytes: of_it, .. } = next else { continue };
            events += submission.events.len();
            bytes += of_it;
            let number = submission.number;
            parts.push(Part { shard, number, is_clear: false, events: submission.events.len(), bytes: of_it });
            publish.add(&submission);
        }
        Some(call(parts, Request::Publish(publish)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::encoding::tests::event;
    use super::*;
    use crate::hub::brokered::{BrokeredEvent, EventKey, Keep, Numbered};
    use crate::hub::name::NameHasher;

    const BOUNDS: Bounds = Bounds { timeout_ms: 2000, buffer_ms: 0, pending_bytes_max: 1 << 20 };

    fn room(name: &str) -> RoomName {
        NameHasher::new(1).room(name)
    }

    fn submission(name: &str, number: u64, events: Vec<BrokeredEvent>) -> Box<Submission> {
        let keep = Keep { events_max: 10, age_ms: 1000 };
        Box::new(Submission { room: room(name), number, events, new_epoch: 5, keep })
    }

    const ONE: ServerId = ServerId(0);

    /// One server, with a link to it or without.
    fn routes(is_up: bool) -> Routes {
        let mut routes = Routes::hashed(vec!["a".to_owned()]);
        routes.set_up(ONE, is_up);
        routes
    }

    fn submissions(bounds: Bounds) -> Submissions {
        Submissions::new(1, bounds)
    }

    fn push(submissions: &mut Submissions, name: &str, number: u64, now_ms: u64) -> Vec<Answer> {
        push_to(submissions, &routes(true), name, number, now_ms)
    }

    fn push_to(submissions: &mut Submissions, routes: &Routes, name: &str, number: u64, now_ms: u64) -> Vec<Answer> {
        let mut answers = Vec::new();
        let submission = submission(name, number, vec![event(number)]);
        let server = routes.of(name);
        submissions.push(ShardId(0), submission, server, routes, now_ms, &mut answers);
        answers
    }

    fn done(first: u64, count: u64) -> Outcome {
        let events = (first..first + count).map(|seq| Numbered { seq, duplicate_of: None }).collect();
        Outcome::Done(Numbers { epoch: 5, events, nodes: 1 })
    }

    fn outcomes(answers: &[Answer]) -> Vec<(u64, Result<u64, &str>)> {
        let one = |answer: &Answer| match &answer.told {
            Told::Submitted(Ok(numbers)) => (answer.number, Ok(numbers.events[0].seq)),
            Told::Cleared(Ok(count)) => (answer.number, Ok(*count)),
            Told::Submitted(Err(refused)) | Told::Cleared(Err(refused)) if *refused == NO_LINK => {
                (answer.number, Err("no link"))
            }
            Told::Submitted(Err(refused)) if *refused == DOUBTFUL => (answer.number, Err("in doubt")),
            Told::Submitted(Err(refused)) if *refused == TOO_MUCH => (answer.number, Err("too much")),
            _ => (answer.number, Err("refused")),
        };
        answers.iter().map(one).collect()
    }

    /// The next call: its room, serial, number and count of events.
    fn next(submissions: &mut Submissions, now_ms: u64) -> Option<(RoomName, u64, u64, usize)> {
        submissions.next(ONE, &routes(true), now_ms, 0).map(|(name, serial, request)| match request {
            Request::Publish(publish) => (name, serial, publish.number, publish.events()),
            Request::Clear => (name, serial, 0, 0),
        })
    }

    #[test]
    fn what_comes_while_a_call_is_on_its_way_is_one_call_after_it() {
        let mut submissions = submissions(BOUNDS);
        for number in 1..=4 {
            assert_eq!(push(&mut submissions, "doc:1", number, 0), []);
            if number == 1 {
                assert_eq!(next(&mut submissions, 0), Some((room("doc:1"), 0, 1, 1)));
            }
        }
        assert_eq!(submissions.next(ONE, &routes(true), 0, 0), None, "one at a time");
        let mut answers = Vec::new();
        submissions.answered(&room("doc:1"), 0, done(11, 1), &routes(true), 0, &mut answers);
        assert_eq!(next(&mut submissions, 1), Some((room("doc:1"), 1, 4, 3)));
        submissions.answered(&room("doc:1"), 1, done(12, 3), &routes(true), 0, &mut answers);
        assert_eq!(outcomes(&answers), [(1, Ok(11)), (2, Ok(12)), (3, Ok(13)), (4, Ok(14))]);
        assert_eq!(submissions.pending_bytes(), 0);
        assert!(submissions.rooms.is_empty() && submissions.due.is_empty());
    }

    #[test]
    fn rooms_do_not_wait_for_each_other() {
        let mut submissions = submissions(BOUNDS);
        push(&mut submissions, "doc:1", 1, 0);
        push(&mut submissions, "doc:2", 2, 0);
        assert_eq!(next(&mut submissions, 0).map(|next| next.0), Some(room("doc:1")));
        assert_eq!(next(&mut submissions, 0).map(|next| next.0), Some(room("doc:2")));
    }

    #[test]
    fn events_with_keys_are_chunks_of_their_own() {
        let mut submissions = submissions(BOUNDS);
        let keyed = BrokeredEvent { key: Some(EventKey::OfHub("k".into())), ..event(3) };
        let events = vec![event(1), event(2), keyed.clone(), event(4)];
        submissions.push(ShardId(0), submission("doc:1", 1, events), ONE, &routes(true), 0, &mut Vec::new());
        let (_, _, request) = submissions.next(ONE, &routes(true), 0, 0).expect("something waits");
        let Request::Publish(request) = request else { panic!("events") };
        let chunks = request.chunks.iter().map(|chunk| (chunk.events, chunk.key.as_ref(), chunk.last_id));
        assert_eq!(
            chunks.collect::<Vec<_>>(),
            [(2, None, event(2).id), (1, keyed.key.as_ref(), keyed.id), (1, None, event(4).id)]
        );
    }

    #[test]
    fn a_call_has_bounds_but_takes_one_submission_at_least() {
        let mut submissions = submissions(Bounds { pending_bytes_max: 64 << 20, ..BOUNDS });
        let mut answers = Vec::new();
        let many = (0..700).map(event).collect::<Vec<_>>();
        for number in 1..=2 {
            submissions.push(
                ShardId(0),
                submission("doc:1", number, many.clone()),
                ONE,
                &routes(true),
                0,
                &mut answers,
            );
        }
        let large = BrokeredEvent { data: vec![b'1'; 2 * CALL_BYTES_MAX].into(), ..event(1) };
        submissions.push(ShardId(0), submission("doc:1", 3, vec![large]), ONE, &routes(true), 0, &mut answers);
        for (number, events) in [(1, 700), (2, 700), (3, 1)] {
            let (name, serial, last, count) = next(&mut submissions, 0).expect("something waits");
            assert_eq!((last, count), (number, events));
            submissions.answered(&name, serial, done(1, events as u64), &routes(true), 0, &mut answers);
        }
    }

    #[test]
    fn a_broken_link_has_the_same_call_sent_again_and_the_rest_refused() {
        let mut submissions = submissions(BOUNDS);
        push(&mut submissions, "doc:1", 1, 0);
        let sent = submissions.next(ONE, &routes(true), 0, 0).expect("something waits");
        push(&mut submissions, "doc:1", 2, 1);
        let mut answers = Vec::new();
        submissions.link_down(ONE, &routes(false), 5, &mut answers);
        assert_eq!(outcomes(&answers), [(2, Err("no link"))], "it was never sent");
        assert_eq!(outcomes(&push_to(&mut submissions, &routes(false), "doc:1", 3, 6)), [(3, Err("no link"))]);
        assert_eq!(submissions.next(ONE, &routes(false), 7, 0), None);
        push(&mut submissions, "doc:1", 4, 8);
        assert_eq!(submissions.next(ONE, &routes(true), 8, 0), Some(sent), "nothing is added to it");
        answers.clear();
        submissions.answered(&room("doc:1"), 0, done(1, 1), &routes(true), 0, &mut answers);
        assert_eq!(outcomes(&answers), [(1, Ok(1))]);
        assert_eq!(next(&mut submissions, 9).map(|next| next.2), Some(4));
    }

    #[test]
    fn a_call_without_an_answer_in_time_is_in_doubt_and_its_answer_means_nothing_any_more() {
        let mut submissions = submissions(BOUNDS);
        push(&mut submissions, "doc:1", 1, 0);
        submissions.next(ONE, &routes(true), 10, 0).expect("something waits");
        let mut answers = Vec::new();
        submissions.expire(&routes(true), 2009, &mut answers);
        assert_eq!(answers, []);
        assert_eq!(submissions.next_due_ms(), Some(2010));
        submissions.expire(&routes(true), 2010, &mut answers);
        assert_eq!(outcomes(&answers), [(1, Err("in doubt"))]);
        answers.clear();
        submissions.answered(&room("doc:1"), 0, done(1, 1), &routes(true), 0, &mut answers);
        assert_eq!(answers, []);
        push(&mut submissions, "doc:1", 2, 2011);
        assert_eq!(next(&mut submissions, 2011).map(|next| next.2), Some(2));
    }

    #[test]
    fn a_refusal_of_a_call_that_may_have_been_carried_out_before_is_a_doubt() {
        let mut submissions = submissions(BOUNDS);
        let refused = || Outcome::Refused(Refused::new(ErrorCode::Unavailable, "out of memory"));
        push(&mut submissions, "doc:1", 1, 0);
        submissions.next(ONE, &routes(true), 0, 0).expect("something waits");
        let mut answers = Vec::new();
        submissions.link_down(ONE, &routes(false), 1, &mut answers);
        submissions.next(ONE, &routes(true), 2, 0).expect("again");
        submissions.answered(&room("doc:1"), 0, refused(), &routes(true), 0, &mut answers);
        push(&mut submissions, "doc:1", 2, 3);
        submissions.next(ONE, &routes(true), 3, 0).expect("something waits");
        submissions.answered(&room("doc:1"), 1, refused(), &routes(true), 0, &mut answers);
        assert_eq!(outcomes(&answers), [(1, Err("in doubt")), (2, Err("refused"))]);
    }

    #[test]
    fn what_was_certainly_not_carried_out_is_refused_as_such_when_its_time_is_over() {
        let mut submissions = submissions(BOUNDS);
        push(&mut submissions, "doc:1", 1, 0);
        submissions.next(ONE, &routes(true), 0, 0).expect("something waits");
        let mut answers = Vec::new();
        submissions.answered(&room("doc:1"), 0, Outcome::NotYet, &routes(true), 5, &mut answers);
        submissions.expire(&routes(true), 4 + REST_MS, &mut answers);
        assert_eq!(submissions.next(ONE, &routes(true), 4 + REST_MS, 0), None, "it rests");
        assert_eq!(submissions.next_due_ms(), Some(5 + REST_MS));
        submissions.expire(&routes(true), 5 + REST_MS, &mut answers);
        assert_eq!(next(&mut submissions, 5 + REST_MS).map(|next| next.2), Some(1));
        submissions.answered(&room("doc:1"), 0, Outcome::NotYet, &routes(true), 60, &mut answers);
        submissions.expire(&routes(false), 60 + REST_MS, &mut answers);
        assert_eq!(
            submissions.next_due_ms(),
            Some(2000),
            "without a link there is nothing to do until its time is over"
        );
        submissions.link_down(ONE, &routes(false), 1, &mut answers);
        submissions.expire(&routes(false), 2000, &mut answers);
        assert_eq!(outcomes(&answers), [(1, Err("no link"))]);
    }

    #[test]
    fn a_clearing_keeps_its_place_among_the_submissions() {
        let mut submissions = submissions(BOUNDS);
        let mut answers = Vec::new();
        push(&mut submissions, "doc:1", 1, 0);
        submissions.clear(ShardId(0), (room("doc:1"), ONE), 77, &routes(true), 0, &mut answers);
        push(&mut submissions, "doc:1", 2, 0);
        assert_eq!(next(&mut submissions, 0).map(|next| next.2), Some(1));
        submissions.answered(&room("doc:1"), 0, done(1, 1), &routes(true), 0, &mut answers);
        assert_eq!(next(&mut submissions, 0).map(|next| next.3), Some(0));
        submissions.answered(&room("doc:1"), 1, Outcome::Cleared(9), &routes(true), 0, &mut answers);
        assert_eq!(next(&mut submissions, 0).map(|next| next.2), Some(2));
        assert_eq!(outcomes(&answers), [(1, Ok(1)), (77, Ok(9))]);
    }

    #[test]
    fn a_buffer_holds_what_comes_without_a_link_for_so_long() {
        let mut submissions = submissions(Bounds { buffer_ms: 500, ..BOUNDS });
        let mut answers = push_to(&mut submissions, &routes(false), "doc:1", 1, 0);
        answers.extend(push_to(&mut submissions, &routes(false), "doc:1", 2, 300));
        submissions.expire(&routes(false), 499, &mut answers);
        assert_eq!(answers, []);
        submissions.expire(&routes(false), 500, &mut answers);
        assert_eq!(outcomes(&answers), [(1, Err("no link"))]);
        assert_eq!(next(&mut submissions, 600).map(|next| next.2), Some(2));
    }

    #[test]
    fn what_waits_is_bounded_for_each_shard() {
        let mut submissions = submissions(Bounds { pending_bytes_max: 300, ..BOUNDS });
        assert_eq!(push(&mut submissions, "doc:1", 1, 0), []);
        assert_eq!(outcomes(&push(&mut submissions, "doc:1", 2, 0)), []);
        assert_eq!(outcomes(&push(&mut submissions, "doc:1", 3, 0)), [(3, Err("too much"))]);
    }

    #[test]
    fn servers_do_not_wait_for_each_other_and_what_waits_goes_along_with_its_slot() {
        let (one, two) = (ServerId(1), ServerId(2));
        // `foo` has slot 12 182, `bar` 5061.
        let mut routes = Routes::slots();
        routes.learn([(0, 8191, one), (8192, 16_383, two)].into_iter());
        let mut submissions = submissions(BOUNDS);
        assert_eq!(outcomes(&push_to(&mut submissions, &routes, "foo", 1, 0)), [(1, Err("no link"))]);
        routes.set_up(one, true);
        routes.set_up(two, true);
        for (name, number) in [("foo", 2), ("bar", 3)] {
            assert_eq!(push_to(&mut submissions, &routes, name, number, 0), []);
        }
        let sent = submissions.next(two, &routes, 0, 0).expect("it waits");
        assert_eq!((sent.0.as_str(), submissions.next(two, &routes, 0, 0)), ("foo", None));
        assert_eq!(push_to(&mut submissions, &routes, "foo", 4, 0), []);

        // It goes on where the slot has gone, with the same call and in its order; the other does not notice.
        routes.learn([(0, 16_383, one)].into_iter());
        submissions.rearrange(&routes);
        assert_eq!(push_to(&mut submissions, &routes, "foo", 5, 1), []);
        let mut answers = Vec::new();
        submissions.answered(&sent.0, sent.1, Outcome::NotYet, &routes, 1, &mut answers);
        assert_eq!(submissions.next(one, &routes, 1, 0).map(|next| next.0), Some(room("bar")));
        submissions.expire(&routes, 1 + REST_MS, &mut answers);
        assert_eq!(submissions.next(one, &routes, 1 + REST_MS, 0).as_ref(), Some(&sent));
        submissions.answered(&sent.0, sent.1, done(1, 1), &routes, 60, &mut answers);
        let next = submissions.next(one, &routes, 60, 0).expect("what came meanwhile");
        submissions.answered(&next.0, next.1, done(2, 2), &routes, 60, &mut answers);
        assert_eq!(outcomes(&answers), [(2, Ok(1)), (4, Ok(2)), (5, Ok(3))]);

        // What rests does so no longer than it has to, and what was on its way over a link that ends is in doubt.
        assert_eq!(push_to(&mut submissions, &routes, "foo", 6, 70), []);
        let sent = submissions.next(one, &routes, 70, 0).expect("it waits");
        submissions.answered(&sent.0, sent.1, Outcome::NotYet, &routes, 70, &mut answers);
        submissions.rearrange(&routes);
        assert_eq!(submissions.next(one, &routes, 70, 0).as_ref(), Some(&sent));
        answers.clear();
        submissions.link_down(two, &routes, 71, &mut answers);
        assert_eq!(submissions.next(one, &routes, 71, 0), None, "that was another's");
        routes.set_up(one, false);
        submissions.link_down(one, &routes, 71, &mut answers);
        submissions.expire(&routes, 2070, &mut answers);
        assert!(outcomes(&answers).contains(&(6, Err("in doubt"))));
    }
}

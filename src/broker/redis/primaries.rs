//! The primaries of a cluster: which of them has a room, and what waits for each.
//!
//! A cluster is one link to many servers. What is on its way has a bound of its own for each, so that one that is gone holds
//! up no rooms but its own; and a circuit breaker: once something failed there, nothing is sent until a connection of its own
//! has found that it answers. (The library holds up all of a link while it looks for a server that does not answer, which
//! each command for it has it do.) What is no cluster is one server. Pure.

use std::collections::VecDeque;
use std::fmt;

use redis::Value;

use crate::hub::name::RoomName;

/// Slots of a cluster.
const SLOTS: u16 = 16_384;

/// How often it is asked which primary has which slots while none fails.
const LEARN_MS: u64 = 60_000;

/// How often those that fail are tried, and who has their slots is asked.
const TRY_MS: u64 = 500;

/// A primary, by its place among those of a cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Primary(u16);

/// The primaries of a cluster.
#[derive(Debug)]
pub struct Primaries {
    /// Whose each slot is; empty while that is not known, when all are the first's.
    of_slot: Vec<Primary>,
    /// The first stands for all that are not known, and does not fail. One that has gone keeps its place.
    breakers: Vec<Breaker>,
    learned_ms: Option<u64>,
    tried_ms: u64,
}

#[derive(Debug, Default)]
struct Breaker {
    address: Address,
    has_slots: bool,
    /// Something failed there, and nothing has worked since.
    is_open: bool,
    was_told: bool,
    is_tried: bool,
}

/// Where a primary listens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Address {
    /// Its host.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.host, self.port)
    }
}

impl Primaries {
    /// One, which has all rooms.
    pub fn new() -> Primaries {
        Primaries { of_slot: Vec::new(), breakers: vec![Breaker::default()], learned_ms: None, tried_ms: 0 }
    }

    /// The link is over. Over the next one those that fail are tried as well, before anything is sent there.
    pub fn link_down(&mut self) {
        self.breakers.iter_mut().for_each(|breaker| breaker.is_tried = false);
        self.learned_ms = None;
    }

    /// Whether to ask which primary has which slots; it is being asked from here on.
    pub fn learns(&mut self, now_ms: u64) -> bool {
        let every_ms = if self.failing() > 0 { TRY_MS } else { LEARN_MS };
        let is_due = self.learned_ms.is_none_or(|learned_ms| learned_ms + every_ms <= now_ms);
        if is_due {
            self.learned_ms = Some(now_ms);
        }
        is_due
    }

    /// Those that fail and are to be tried; they are being tried from here on.
    pub fn to_try(&mut self, now_ms: u64) -> Vec<(Primary, Address)> {
        if self.tried_ms + TRY_MS > now_ms {
            return Vec::new();
        }
        self.tried_ms = now_ms;
        let failing = (0..).zip(&mut self.breakers).filter(|(_, breaker)| breaker.is_open && !breaker.is_tried);
        failing
            .map(|(place, breaker)| {
                breaker.is_tried = true;
                (Primary(place), breaker.address.clone())
            })
            .collect()
    }

    /// One was tried.
    pub fn tried(&mut self, primary: Primary, answers: bool) {
        if let Some(breaker) = self.breakers.get_mut(usize::from(primary.0)) {
            breaker.is_tried = false;
            breaker.is_open &= !answers;
        }
    }

    /// When there is something to be asked or tried, where one fails.
    pub fn next_ms(&self) -> Option<u64> {
        (self.failing() > 0).then_some(self.tried_ms + TRY_MS)
    }

    /// Takes an answer to CLUSTER SLOTS: ranges, each with its primary and then its replicas. False where it is none.
    pub fn learn(&mut self, slots: &Value) -> bool {
        let Some(ranges) = ranges(slots) else { return false };
        self.of_slot = vec![Primary::default(); usize::from(SLOTS)];
        self.breakers.iter_mut().for_each(|breaker| breaker.has_slots = false);
        for (first, last, address) in ranges {
            let primary = self.known(address);
            if let Some(breaker) = self.breakers.get_mut(usize::from(primary.0)) {
                breaker.has_slots = true;
            }
            if let Some(slots) = self.of_slot.get_mut(first..=last) {
                slots.fill(primary);
            }
        }
        true
    }

    fn known(&mut self, address: Address) -> Primary {
        let place = self.breakers.iter().skip(1).position(|breaker| breaker.address == address).map(|place| place + 1);
        let place = place.unwrap_or_else(|| {
            self.breakers.push(Breaker { address, ..Breaker::default() });
            self.breakers.len() - 1
        });
        u16::try_from(place).map_or_else(|_| Primary::default(), Primary)
    }

    /// Who has a room.
    pub fn of(&self, room: &str) -> Primary {
        // Its keys and channels have its name in braces.
        self.of_key(room.split_once('}').map_or(room, |(tag, _)| tag))
    }

    /// Who has a key or a channel.
    pub fn of_key(&self, key: &str) -> Primary {
        if self.of_slot.is_empty() {
            return Primary::default();
        }
        self.of_slot.get(usize::from(slot_of(key.as_bytes()))).copied().unwrap_or_default()
    }

    /// Something was answered there, or not.
    pub fn saw(&mut self, primary: Primary, was_answered: bool) {
        if let Some(breaker) = self.breakers.get_mut(usize::from(primary.0)).filter(|_| primary != Primary::default()) {
            breaker.is_open = !was_answered;
        }
    }

    /// Whether something failed there, and nothing has worked since.
    pub fn fails(&self, primary: Primary) -> bool {
        self.breakers.get(usize::from(primary.0)).is_some_and(|breaker| breaker.is_open)
    }

    /// Whether there is none that works, or it is not known.
    pub fn all_fail(&self) -> bool {
        self.breakers.iter().filter(|breaker| breaker.has_slots).all(|breaker| breaker.is_open)
    }

    /// How many fail.
    pub fn failing(&self) -> usize {
        self.breakers.iter().filter(|breaker| breaker.is_open).count()
    }

    /// The addresses of those that fail since this was asked last, with true, and of those that do so no more.
    pub fn news(&mut self) -> impl Iterator<Item = (&Address, bool)> {
        let told = self.breakers.iter_mut().filter(|breaker| breaker.was_told != breaker.is_open);
        told.map(|breaker| {
            breaker.was_told = breaker.is_open;
            (&breaker.address, breaker.is_open)
        })
    }
}

/// First and last slot and the primary's address.
fn ranges(slots: &Value) -> Option<Vec<(usize, usize, Address)>> {
    let Value::Array(ranges) = slots else { return None };
    let range = |range: &Value| {
        let Value::Array(parts) = range else { return None };
        let [Value::Int(first), Value::Int(last), Value::Array(primary), ..] = &parts[..] else { return None };
        let (Value::BulkString(host), Value::Int(port)) = (primary.first()?, primary.get(1)?) else { return None };
        let address = Address { host: String::from_utf8_lossy(host).into_owned(), port: u16::try_from(*port).ok()? };
        Some((usize::try_from(*first).ok()?, usize::try_from(*last).ok()?, address))
    };
    ranges.iter().map(range).collect()
}

/// The slot of a key: CRC-16 (XMODEM) of what is in its first braces.
pub fn slot_of(key: &[u8]) -> u16 {
    let tagged = memchr::memchr(b'{', key).and_then(|open| {
        let rest = key.get(open + 1..)?;
        memchr::memchr(b'}', rest).filter(|close| *close > 0).map(|close| &rest[..close])
    });
    let crc = tagged.unwrap_or(key).iter().fold(0u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| (crc << 1) ^ if crc & 0x8000 == 0 { 0 } else { 0x1021 })
    });
    crc % SLOTS
}

/// Rooms that wait for a command of a kind to be sent, each at its primary, and how many are on their way.
#[derive(Debug)]
pub struct Lanes {
    lanes: Vec<Lane>,
    /// On their way to one primary at most.
    sent_max: usize,
}

#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<RoomName>,
    sent: usize,
}

impl Lanes {
    /// Nothing waits. So many may be on their way to one primary.
    pub fn new(sent_max: usize) -> Lanes {
        Lanes { lanes: Vec::new(), sent_max }
    }

    fn lane(&mut self, primary: Primary) -> &mut Lane {
        let place = usize::from(primary.0);
        if self.lanes.len() <= place {
            self.lanes.resize_with(place + 1, Lane::default);
        }
        &mut self.lanes[place]
    }

    /// Another waits.
    pub fn push(&mut self, primary: Primary, room: RoomName) {
        self.lane(primary).waiting.push_back(room);
    }

    /// The next that may be sent, which is not counted yet.
    pub fn pop(&mut self, primaries: &Primaries) -> Option<(Primary, RoomName)> {
        let sent_max = self.sent_max;
        (0..).zip(&mut self.lanes).find_map(|(place, lane)| {
            let primary = Primary(place);
            if lane.sent < sent_max && !primaries.fails(primary) {
                Some((primary, lane.waiting.pop_front()?))
            } else {
                None
            }
        })
    }

    /// So many more are on their way.
    pub fn sent(&mut self, primary: Primary, count: usize) {
        self.lane(primary).sent += count;
    }

    /// So many are not on their way any more.
    pub fn done(&mut self, primary: Primary, count: usize) {
        let lane = self.lane(primary);
        lane.sent = lane.sent.saturating_sub(count);
    }

    /// Those that wait or are on their way.
    pub fn len(&self) -> usize {
        self.lanes.iter().map(|lane| lane.waiting.len() + lane.sent).sum()
    }

    /// Nothing waits any more, and nothing is on its way.
    pub fn clear(&mut self) {
        self.lanes.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::name::NameHasher;

    fn slots(ranges: &[(i64, i64, &str, i64)]) -> Value {
        let range = |&(first, last, host, port): &(i64, i64, &str, i64)| {
            let node = |port| {
                Value::Array(vec![Value::BulkString(host.into()), Value::Int(port), Value::BulkString("id".into())])
            };
            Value::Array(vec![Value::Int(first), Value::Int(last), node(port), node(port + 1)])
        };
        Value::Array(ranges.iter().map(range).collect())
    }

    /// A cluster of two: `foo` is on the second, `bar` on the first.
    fn two() -> Primaries {
        let mut primaries = Primaries::new();
        assert!(primaries.learn(&slots(&[(0, 8191, "10.0.0.1", 6379), (8192, 16_383, "10.0.0.2", 6379)])));
        primaries
    }

    #[test]
    fn a_key_has_the_slot_that_redis_gives_it() {
        // As CLUSTER KEYSLOT tells.
        assert_eq!(slot_of(b"123456789"), 12_739);
        assert_eq!(slot_of(b"foo"), 12_182);
        assert_eq!(slot_of(b"app:{foo}:log"), 12_182);
        assert_eq!(slot_of(b"{}foo"), slot_of(b"{}foo"));
        assert_ne!(slot_of(b"{}foo"), slot_of(b"foo"));
    }

    #[test]
    fn rooms_are_where_the_cluster_says() {
        let mut primaries = Primaries::new();
        assert_eq!(primaries.of("foo"), primaries.of("bar"), "nothing is known");
        primaries = two();
        assert_eq!((primaries.of("foo"), primaries.of("bar")), (Primary(2), Primary(1)));
        assert_eq!(primaries.of("foo}bar"), Primary(2), "what is in the braces counts");
        // A replica has taken over, and some slots are nobody's.
        assert!(primaries.learn(&slots(&[(0, 8191, "10.0.0.3", 6379), (12_183, 16_383, "10.0.0.2", 6379)])));
        assert_eq!((primaries.of("foo"), primaries.of("bar")), (Primary(0), Primary(3)));
        for wrong in [Value::Nil, Value::Array(vec![Value::Int(1)]), Value::Array(vec![Value::Array(vec![])])] {
            assert!(!primaries.learn(&wrong));
        }
        assert!(!primaries.learn(&slots(&[(-1, 5, "", 1)])));
        assert_eq!(primaries.of("bar"), Primary(3), "what was known stays");
        assert!(primaries.learn(&slots(&[(16_000, 20_000, "10.0.0.9", 1)])), "slots that there are not are nobody's");
    }

    #[test]
    fn one_that_fails_is_tried_until_it_answers_and_who_has_its_slots_is_asked() {
        let mut primaries = two();
        assert!(primaries.learns(1000));
        assert!(!primaries.learns(1000 + LEARN_MS - 1) && primaries.to_try(1000).is_empty());
        assert_eq!(primaries.next_ms(), None);
        primaries.saw(Primary(2), false);
        assert_eq!(primaries.next_ms(), Some(1000 + TRY_MS));
        let second = Address { host: "10.0.0.2".to_owned(), port: 6379 };
        assert!(primaries.to_try(999 + TRY_MS).is_empty(), "not more often than that");
        assert_eq!(primaries.to_try(1000 + TRY_MS), [(Primary(2), second.clone())]);
        assert!(primaries.learns(1000 + TRY_MS) && !primaries.learns(1001 + TRY_MS));
        assert!(primaries.to_try(1000 + 2 * TRY_MS).is_empty(), "once at a time");
        primaries.tried(Primary(2), false);
        assert_eq!(primaries.to_try(1000 + 3 * TRY_MS), [(Primary(2), second)]);
        assert!(primaries.fails(Primary(2)));
        primaries.tried(Primary(2), true);
        assert!(!primaries.fails(Primary(2)));
        primaries.saw(Primary(2), false);
        assert_eq!(primaries.to_try(1000 + 4 * TRY_MS).len(), 1);
        primaries.link_down();
        assert!(primaries.fails(Primary(2)));
        assert_eq!(primaries.to_try(1000 + 5 * TRY_MS).len(), 1, "what became of the try is not known any more");
        assert!(primaries.learns(1000 + 4 * TRY_MS), "everything may be elsewhere");
    }

    #[test]
    fn a_primary_fails_from_a_failure_to_the_next_answer_and_that_is_told_once() {
        let mut primaries = two();
        let news = |primaries: &mut Primaries| -> Vec<(String, bool)> {
            primaries.news().map(|(address, fails)| (address.to_string(), fails)).collect()
        };
        primaries.saw(Primary(2), true);
        assert!(!primaries.fails(Primary(2)) && news(&mut primaries).is_empty());
        primaries.saw(Primary(2), false);
        primaries.saw(Primary(2), false);
        assert!(primaries.fails(Primary(2)) && !primaries.fails(Primary(1)) && !primaries.all_fail());
        assert_eq!(primaries.failing(), 1);
        assert_eq!(news(&mut primaries), [("10.0.0.2:6379".to_owned(), true)]);
        assert!(news(&mut primaries).is_empty());
        primaries.saw(Primary(2), true);
        assert_eq!(news(&mut primaries), [("10.0.0.2:6379".to_owned(), false)]);
        primaries.saw(Primary(1), false);
        primaries.saw(Primary(2), false);
        assert!(primaries.all_fail() && Primaries::new().all_fail());
        assert!(primaries.learn(&slots(&[(0, 8191, "10.0.0.3", 6379), (8192, 16_383, "10.0.0.2", 6379)])));
        assert!(!primaries.all_fail(), "the first has none any more");
        let mut primaries = two();
        primaries.saw(Primary(0), false);
        assert_eq!(primaries.failing(), 0, "where the server is not known it can't be tried");
    }

    #[test]
    fn each_primary_has_a_bound_of_its_own_and_nothing_while_it_fails() {
        let mut primaries = two();
        let names = NameHasher::new(1);
        let mut lanes = Lanes::new(100);
        let (one, two) = (Primary(1), Primary(2));
        for number in 0..200 {
            lanes.push(one, names.room(&format!("doc:{number}")));
            lanes.push(two, names.room(&format!("doc:{number}")));
        }
        let send = |lanes: &mut Lanes, primaries: &Primaries| {
            let mut sent = [0; 3];
            while let Some((primary, _)) = lanes.pop(primaries) {
                lanes.sent(primary, 1);
                sent[usize::from(primary.0)] += 1;
            }
            sent
        };
        assert_eq!(send(&mut lanes, &primaries), [0, 100, 100]);
        primaries.saw(two, false);
        for primary in [one, two] {
            lanes.done(primary, 98);
        }
        assert_eq!(send(&mut lanes, &primaries), [0, 98, 0]);
        primaries.saw(two, true);
        assert_eq!(send(&mut lanes, &primaries), [0, 0, 98]);
        assert_eq!(lanes.len(), 100 + 100 + 2 + 2);
        lanes.done(two, 1000);
        lanes.clear();
        assert_eq!(lanes.len(), 0);
    }
}

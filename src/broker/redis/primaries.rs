//! The primaries of a cluster: which of them has a room, and what waits for each.
//!
//! A cluster is one link to many servers. What is on its way has a bound of its own for each, so that one that is gone holds
//! up no rooms but its own; and a circuit breaker: once something failed there, nothing is sent until a connection of its own
//! has found that it answers. (The library holds up all of a link while it looks for a server that does not answer, which
//! each command for it has it do.) What is no cluster is one server. Pure.

use std::borrow::Cow;
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
    /// The first stands for all that are not known. One that has gone keeps its place. Those without slots don't fail.
    breakers: Vec<Breaker>,
    learned_ms: Option<u64>,
}

#[derive(Debug, Default)]
struct Breaker {
    address: Address,
    has_slots: bool,
    /// Something failed there, and nothing has worked since.
    is_open: bool,
    /// It is being tried, or when to try it next.
    is_tried: bool,
    try_ms: u64,
    /// It was tried in vain, and that it fails was told.
    is_certain: bool,
    was_told: bool,
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

impl Default for Primaries {
    /// One, which has all rooms.
    fn default() -> Primaries {
        Primaries { of_slot: Vec::new(), breakers: vec![Breaker::default()], learned_ms: None }
    }
}

impl Primaries {
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

    /// Those that fail and are to be tried, at once and then now and again; they are being tried from here on.
    pub fn to_try(&mut self, now_ms: u64) -> Vec<(Primary, Address)> {
        let failing = (0..).zip(&mut self.breakers).filter(|(_, breaker)| breaker.is_open && !breaker.is_tried);
        let due = failing.filter(|(_, breaker)| breaker.try_ms <= now_ms);
        due.map(|(place, breaker)| {
            (breaker.is_tried, breaker.try_ms) = (true, now_ms + TRY_MS);
            (Primary(place), breaker.address.clone())
        })
        .collect()
    }

    /// One was tried.
    pub fn tried(&mut self, primary: Primary, answers: bool) {
        if let Some(breaker) = self.breakers.get_mut(usize::from(primary.0)) {
            breaker.is_tried = false;
            breaker.is_open &= !answers;
            breaker.is_certain = breaker.is_open;
        }
    }

    /// When one is to be tried.
    pub fn next_ms(&self) -> Option<u64> {
        let waiting = self.breakers.iter().filter(|breaker| breaker.is_open && !breaker.is_tried);
        waiting.map(|breaker| breaker.try_ms).min()
    }

    /// Takes an answer to CLUSTER SLOTS: ranges, each with its primary and then its replicas. False where it is none.
    pub fn learn(&mut self, slots: &Value) -> bool {
        let Some(ranges) = ranges(slots) else { return false };
        self.of_slot = vec![Primary::default(); usize::from(SLOTS)];
        self.breakers.iter_mut().for_each(|breaker| breaker.has_slots = false);
        for (first, last, address) in ranges {
            // Where none is told that could be connected to, a primary could not be tried.
            let Some(primary) = address.map(|address| self.known(address)) else { continue };
            if let Some(breaker) = self.breakers.get_mut(usize::from(primary.0)) {
                breaker.has_slots = true;
            }
            if let Some(slots) = self.of_slot.get_mut(first..=last) {
                slots.fill(primary);
            }
        }
        // Nothing is for one without slots any more, whatever becomes of it.
        for breaker in self.breakers.iter_mut().filter(|breaker| !breaker.has_slots) {
            (breaker.is_open, breaker.is_certain, breaker.was_told) = (false, false, false);
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
        if let Some(breaker) = self.breakers.get_mut(usize::from(primary.0)).filter(|breaker| breaker.has_slots) {
            if was_answered {
                (breaker.is_open, breaker.is_certain) = (false, false);
            } else if !breaker.is_open {
                (breaker.is_open, breaker.try_ms) = (true, 0);
            }
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

    /// The addresses of those that were found to fail since this was asked last, with true, and of those that do so no more.
    pub fn news(&mut self) -> impl Iterator<Item = (&Address, bool)> {
        let told = self.breakers.iter_mut().filter(|breaker| breaker.was_told != breaker.is_certain);
        told.map(|breaker| {
            breaker.was_told = breaker.is_certain;
            (&breaker.address, breaker.is_certain)
        })
    }
}

/// First and last slot and the primary's address, where one is told.
fn ranges(slots: &Value) -> Option<Vec<(usize, usize, Option<Address>)>> {
    let Value::Array(ranges) = slots else { return None };
    let range = |range: &Value| {
        let Value::Array(parts) = range else { return None };
        let [Value::Int(first), Value::Int(last), Value::Array(primary), ..] = &parts[..] else { return None };
        let Value::Int(port) = primary.get(1)? else { return None };
        let host = match primary.first()? {
            Value::BulkString(host) => String::from_utf8_lossy(host),
            _ => Cow::Borrowed(""),
        };
        let is_known = !["", "?", "0.0.0.0", "::"].contains(&&*host);
        let port = u16::try_from(*port).ok()?;
        let address = is_known.then(|| Address { host: host.into_owned(), port });
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

    /// What waits is for who has it now.
    pub fn rearrange(&mut self, primaries: &Primaries) {
        let waiting: Vec<RoomName> = self.lanes.iter_mut().flat_map(|lane| lane.waiting.drain(..)).collect();
        waiting.into_iter().for_each(|room| self.push(primaries.of(room.as_str()), room));
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
    pub fn count(&self) -> usize {
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
        let mut primaries = Primaries::default();
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
        let mut primaries = Primaries::default();
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
        let second = Address { host: "10.0.0.2".to_owned(), port: 6379 };
        assert_eq!(primaries.next_ms(), Some(0), "at once");
        assert_eq!(primaries.to_try(1100), [(Primary(2), second.clone())]);
        assert!(primaries.learns(1000 + TRY_MS) && !primaries.learns(1001 + TRY_MS));
        assert!(primaries.to_try(1100 + TRY_MS).is_empty() && primaries.next_ms().is_none(), "once at a time");
        primaries.tried(Primary(2), false);
        assert_eq!(primaries.next_ms(), Some(1100 + TRY_MS));
        assert_eq!(primaries.to_try(1100 + TRY_MS), [(Primary(2), second)]);
        primaries.saw(Primary(2), false);
        primaries.tried(Primary(2), false);
        assert!(primaries.to_try(1101 + TRY_MS).is_empty(), "not more often because more fails");
        assert_eq!(primaries.to_try(1100 + 2 * TRY_MS).len(), 1);
        primaries.link_down();
        assert!(primaries.fails(Primary(2)));
        assert_eq!(primaries.to_try(1100 + 3 * TRY_MS).len(), 1, "what became of the try is not known any more");
        assert!(primaries.learns(1100), "everything may be elsewhere");
        primaries.tried(Primary(2), true);
        assert!(!primaries.fails(Primary(2)));
    }

    #[test]
    fn a_primary_whose_address_is_not_told_does_not_fail() {
        let mut primaries = Primaries::default();
        for host in ["", "?", "0.0.0.0"] {
            assert!(primaries.learn(&slots(&[(0, 8191, "10.0.0.1", 6379), (8192, 16_383, host, 6379)])));
            primaries.saw(primaries.of("foo"), false);
            assert_eq!((primaries.of("foo"), primaries.failing()), (Primary(0), 0), "{host}");
        }
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
        assert!(news(&mut primaries).is_empty(), "it is not certain");
        primaries.tried(Primary(2), false);
        assert_eq!(news(&mut primaries), [("10.0.0.2:6379".to_owned(), true)]);
        assert!(news(&mut primaries).is_empty());
        primaries.saw(Primary(2), true);
        assert_eq!(news(&mut primaries), [("10.0.0.2:6379".to_owned(), false)]);
        primaries.saw(Primary(1), false);
        primaries.saw(Primary(2), false);
        assert!(primaries.all_fail() && Primaries::default().all_fail());
        assert!(primaries.learn(&slots(&[(0, 8191, "10.0.0.3", 6379), (8192, 16_383, "10.0.0.2", 6379)])));
        assert!(!primaries.all_fail(), "the first has none any more");
        assert_eq!(primaries.failing(), 1);
        primaries.saw(Primary(1), false);
        assert_eq!(primaries.failing(), 1, "what comes of it now is nothing to anybody");
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
        assert_eq!(lanes.count(), 100 + 100 + 2 + 2);
        // One fails for good, and another gets its slots.
        primaries.saw(two, false);
        let moved = names.room("foo");
        lanes.push(two, moved.clone());
        assert_eq!(send(&mut lanes, &primaries), [0, 0, 0]);
        assert!(primaries.learn(&slots(&[(0, 16_383, "10.0.0.1", 6379)])));
        lanes.done(one, 100);
        lanes.rearrange(&primaries);
        assert_eq!(std::iter::from_fn(|| lanes.pop(&primaries)).last(), Some((one, moved)));
        lanes.done(two, 1000);
        lanes.clear();
        assert_eq!(lanes.count(), 0);
    }
}

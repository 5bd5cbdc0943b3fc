//! Rooms that are occupied and vacated again at once, and the other way round, are not worth a word: what is told of a room
//! waits for a while, and goes with what undoes it. Without a clock of its own.

use std::collections::{HashMap, VecDeque};

use crate::hub::name::RoomName;

/// A change of a room that may be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    pub room: RoomName,
    pub is_occupied: bool,
    pub at_ms: u64,
}

/// What became of a change.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Noted {
    /// It waits.
    Waits,
    /// It undoes what waited: neither is told.
    Undone,
    /// It waits, and what waited before it was too long ago to be undone by it: that is to be told now.
    After(Change),
}

/// Changes that wait.
#[derive(Debug)]
pub(super) struct Debounce {
    waiting: HashMap<Box<str>, Waiting>,
    /// The same in the order in which they are due, by number; those that were undone are still in it.
    order: VecDeque<(u64, Box<str>)>,
    last: u64,
    waiting_max: usize,
}

#[derive(Debug)]
struct Waiting {
    change: Change,
    number: u64,
    since_ms: u64,
}

impl Debounce {
    /// For so many rooms; where there are more, the oldest are told before their time.
    pub(super) fn new(waiting_max: usize) -> Debounce {
        Debounce { waiting: HashMap::new(), order: VecDeque::new(), last: 0, waiting_max: waiting_max.max(1) }
    }

    /// A room has changed. Whether that was in time to undo the change before it is told by the times of both, since they
    /// may have waited elsewhere.
    pub(super) fn note(&mut self, change: Change, debounce_ms: u64, now_ms: u64) -> Noted {
        let room: Box<str> = change.room.as_str().into();
        let before = self.waiting.remove(&room);
        let noted = match before {
            Some(before) if before.change.is_occupied == change.is_occupied => {
                // The change in between was lost on its way here.
                self.waiting.insert(room, before);
                return Noted::Waits;
            }
            Some(before) if change.at_ms.saturating_sub(before.change.at_ms) <= debounce_ms => {
                self.tidy();
                return Noted::Undone;
            }
            Some(before) => Noted::After(before.change),
            None => Noted::Waits,
        };
        self.last += 1;
        self.order.push_back((self.last, room.clone()));
        self.waiting.insert(room, Waiting { change, number: self.last, since_ms: now_ms });
        noted
    }

    /// The next change that has waited long enough, or all the same where too many wait or `all` is to go.
    pub(super) fn next(&mut self, now_ms: u64, debounce_ms: u64, all: bool) -> Option<Change> {
        loop {
            let (number, room) = self.order.front()?;
            let Some(waiting) = self.waiting.get(room).filter(|waiting| waiting.number == *number) else {
                self.order.pop_front();
                continue;
            };
            let is_due = now_ms.saturating_sub(waiting.since_ms) >= debounce_ms;
            if !is_due && !all && self.waiting.len() <= self.waiting_max {
                return None;
            }
            let (_, room) = self.order.pop_front()?;
            return self.waiting.remove(&room).map(|waiting| waiting.change);
        }
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// What was undone does not pile up behind a change that waits.
    fn tidy(&mut self) {
        if self.order.len() > self.waiting.len() * 2 + 1024 {
            let waiting = &self.waiting;
            self.order.retain(|(number, room)| waiting.get(room).is_some_and(|one| one.number == *number));
        }
        if self.waiting.is_empty() && self.waiting.capacity() > 1024 {
            self.waiting.shrink_to_fit();
            self.order.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::name::NameHasher;

    fn change(room: &str, is_occupied: bool, at_ms: u64) -> Change {
        Change { room: NameHasher::new(1).room(room), is_occupied, at_ms }
    }

    fn told(debounce: &mut Debounce, now_ms: u64) -> Vec<(String, bool)> {
        std::iter::from_fn(|| debounce.next(now_ms, 100, false))
            .map(|change| (change.room.as_str().to_owned(), change.is_occupied))
            .collect()
    }

    fn note(debounce: &mut Debounce, room: &str, is_occupied: bool, at_ms: u64) -> Noted {
        debounce.note(change(room, is_occupied, at_ms), 100, at_ms)
    }

    #[test]
    fn what_is_undone_in_time_is_not_told() {
        let mut debounce = Debounce::new(10);
        assert_eq!(note(&mut debounce, "a:1", true, 0), Noted::Waits);
        assert_eq!(note(&mut debounce, "a:2", true, 10), Noted::Waits);
        assert_eq!(note(&mut debounce, "a:1", false, 50), Noted::Undone);
        assert_eq!(told(&mut debounce, 100), [], "the second waits");
        assert_eq!(told(&mut debounce, 110), [("a:2".to_owned(), true)]);
        assert_eq!(note(&mut debounce, "a:2", false, 200), Noted::Waits);
        assert_eq!(note(&mut debounce, "a:2", true, 300), Noted::Undone, "nor is a room that was empty for a moment");
        assert_eq!(note(&mut debounce, "a:2", false, 310), Noted::Waits);
        assert_eq!(told(&mut debounce, 409), []);
        assert_eq!(told(&mut debounce, 410), [("a:2".to_owned(), false)]);
        assert_eq!(debounce.len(), 0);
    }

    #[test]
    fn what_lasted_is_told_even_where_both_ends_of_it_come_late() {
        let mut debounce = Debounce::new(10);
        assert_eq!(debounce.note(change("a:1", true, 0), 100, 5000), Noted::Waits);
        let noted = debounce.note(change("a:1", false, 3000), 100, 5000);
        assert_eq!(noted, Noted::After(change("a:1", true, 0)));
        assert_eq!(told(&mut debounce, 5100), [("a:1".to_owned(), false)]);
    }

    #[test]
    fn without_a_debounce_all_is_told_in_order() {
        let mut debounce = Debounce::new(10);
        let mut all = Vec::new();
        for (at_ms, is_occupied) in [(1, true), (2, false), (3, true)] {
            assert_eq!(debounce.note(change("a:1", is_occupied, at_ms), 0, at_ms), Noted::Waits);
            all.extend(std::iter::from_fn(|| debounce.next(at_ms, 0, false)));
        }
        assert_eq!(all.iter().map(|change| change.is_occupied).collect::<Vec<_>>(), [true, false, true]);
    }

    #[test]
    fn too_many_and_the_last_ones_are_told_before_their_time() {
        let mut debounce = Debounce::new(2);
        for number in 0..5 {
            debounce.note(change(&format!("a:{number}"), true, number), 1000, number);
        }
        let early = std::iter::from_fn(|| debounce.next(5, 1000, false)).count();
        assert_eq!((early, debounce.len()), (3, 2));
        assert_eq!(std::iter::from_fn(|| debounce.next(5, 1000, true)).count(), 2);
    }

    #[test]
    fn a_room_that_flaps_takes_no_memory() {
        let mut debounce = Debounce::new(10);
        debounce.note(change("a:0", true, 0), 1000, 0);
        for number in 0..100_000 {
            debounce.note(change("a:1", number % 2 == 0, number), 1000, number);
        }
        assert!(debounce.order.len() < 3000, "{}", debounce.order.len());
    }
}

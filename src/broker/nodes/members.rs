//! Who else is there, as far as this node knows. Pure: answers of Redis and the time come in, what changed goes out.
//!
//! ```text
//! beat ──► known or new: has its lease        a lease that is over ──► dead: one node cleans up, then it is forgotten
//!    ▲        │
//!    └────────┘ each third of a lease, and when the first lease of another ends
//! ```
//!
//! A node that could not reach Redis for a while must not take others for dead: they could not renew their leases either. So
//! the dead are looked for only where beats were answered all the time for as long as a lease lasts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A node, as it says itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// This run of it. Filled in from the registry, not from what it says.
    #[serde(skip)]
    pub run: u64,
    /// Its name.
    pub name: String,
    /// Where its clients connect, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public: Option<String>,
    /// Where its operators connect, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub internal: Option<String>,
    /// When it was started, in milliseconds since 1970.
    #[serde(default)]
    pub started_ms: u64,
    /// Its version.
    #[serde(default)]
    pub version: String,
}

/// What changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A node is there that was not.
    Joined(NodeInfo),
    /// A node is not there any more: it has ended, or its lease is over. Told to every node that knew it.
    Left(NodeInfo),
    /// A node is dead, and this one cleans up after it: told to one node at a time, and again to another one where
    /// [`super::Handle::cleaned`] does not come in time. It may be told again after a node has done it.
    CleanUp(NodeInfo),
    /// The registry did not know this node any more; it is registered again, with its ids of clients and who is present.
    /// What else it had there is gone.
    Revived {
        /// Whether others took it for dead and cleaned up after it. Otherwise the registry was lost.
        was_buried: bool,
    },
    /// Another node has the same name.
    SameName(NodeInfo),
}

/// What Redis answered to a beat.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Beat {
    pub(super) was: Was,
    /// The time of its clock, in milliseconds.
    pub(super) redis_ms: u64,
    /// Who lives, and until when its lease lasts.
    pub(super) living: Vec<(NodeInfo, u64)>,
    /// After whom this node has to clean up.
    pub(super) mine: Vec<NodeInfo>,
}

/// What this run was in the registry before a beat.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Was {
    #[default]
    Known,
    New,
    Dead,
}

/// The other nodes.
#[derive(Debug)]
pub(super) struct Members {
    me: u64,
    my_name: String,
    lease_ms: u64,
    others: BTreeMap<u64, Other>,
    /// Whether this node was one of them.
    was_there: bool,
    was_dead: bool,
    is_forgotten: bool,
    /// Since when beats are answered without a pause.
    steady_since_ms: Option<u64>,
    beaten_ms: u64,
    next_ms: u64,
}

#[derive(Debug)]
struct Other {
    info: NodeInfo,
    until_redis_ms: u64,
    /// By this node's clock, for the case that the registry was lost.
    seen_ms: u64,
    same_name_told: bool,
}

impl Members {
    pub(super) fn new(me: u64, my_name: &str, lease_ms: u64) -> Members {
        Members {
            me,
            my_name: my_name.to_owned(),
            lease_ms,
            others: BTreeMap::new(),
            was_there: false,
            was_dead: false,
            is_forgotten: false,
            steady_since_ms: None,
            beaten_ms: 0,
            next_ms: 0,
        }
    }

    /// Whether those whose lease is over are dead, and not only as cut off as this node was.
    pub(super) fn may_bury(&self, now_ms: u64) -> bool {
        let is_steady = now_ms.saturating_sub(self.beaten_ms) < self.lease_ms * 2 / 3;
        is_steady && self.steady_since_ms.is_some_and(|since_ms| since_ms + self.lease_ms <= now_ms)
    }

    /// When the next beat is due.
    pub(super) fn next_ms(&self) -> u64 {
        self.next_ms
    }

    /// Somebody has come or gone.
    pub(super) fn look_soon(&mut self) {
        self.next_ms = 0;
    }

    /// A beat was sent, which is answered later.
    pub(super) fn sent(&mut self, now_ms: u64) {
        self.next_ms = now_ms + self.lease_ms / 3;
    }

    /// A beat was not answered.
    pub(super) fn failed(&mut self, now_ms: u64) {
        self.steady_since_ms = None;
        self.next_ms = now_ms + (self.lease_ms / 12).clamp(50, 500);
    }

    /// What this node has is not all in the registry: its next answer counts as that of one which was lost.
    pub(super) fn forgotten(&mut self) {
        self.is_forgotten = true;
    }

    /// When a beat was answered last.
    pub(super) fn beaten_ms(&self) -> u64 {
        self.beaten_ms
    }

    /// All nodes that live, as far as is known; not this one.
    pub(super) fn others(&self) -> impl Iterator<Item = &NodeInfo> {
        self.others.values().map(|other| &other.info)
    }

    /// A beat was answered.
    pub(super) fn beaten(&mut self, beat: Beat, now_ms: u64) -> Vec<Event> {
        let mut events = Vec::new();
        let was_silent = now_ms.saturating_sub(self.beaten_ms) >= self.lease_ms;
        if self.steady_since_ms.is_none() || now_ms.saturating_sub(self.beaten_ms) >= self.lease_ms * 2 / 3 {
            self.steady_since_ms = Some(now_ms);
        }
        self.beaten_ms = now_ms;
        match beat.was {
            Was::Dead => self.was_dead = true,
            Was::New if self.was_there => events.push(Event::Revived { was_buried: self.was_dead || was_silent }),
            Was::Known if self.is_forgotten => events.push(Event::Revived { was_buried: false }),
            Was::New | Was::Known => {}
        }
        self.is_forgotten &= beat.was == Was::Dead;
        self.was_there |= beat.was != Was::Dead;
        if beat.was != Was::Dead {
            self.was_dead = false;
        }
        let mut first_end_ms = u64::MAX;
        let mut listed = Vec::with_capacity(beat.living.len());
        for (info, until_redis_ms) in beat.living {
            if info.run == self.me {
                continue;
            }
            listed.push(info.run);
            let left_ms = until_redis_ms.saturating_sub(beat.redis_ms);
            if left_ms > 0 {
                first_end_ms = first_end_ms.min(now_ms + left_ms);
            }
            let same_name = info.name == self.my_name;
            match self.others.get_mut(&info.run) {
                Some(other) => {
                    // One that was started before and is gone, as after a restart, does not renew its lease.
                    let is_renewed = other.until_redis_ms != until_redis_ms;
                    if same_name && is_renewed && !other.same_name_told {
                        other.same_name_told = true;
                        events.push(Event::SameName(info.clone()));
                    }
                    (other.info, other.until_redis_ms, other.seen_ms) = (info, until_redis_ms, now_ms);
                }
                // One that is dead already and was not found out to be is no newcomer.
                None if left_ms == 0 => {}
                None => {
                    events.push(Event::Joined(info.clone()));
                    let other = Other { info: info.clone(), until_redis_ms, seen_ms: now_ms, same_name_told: false };
                    self.others.insert(info.run, other);
                }
            }
        }
        // Who is not listed was buried, has ended, or the registry was lost: then it registers again within a lease.
        let registry_is_new = beat.was == Was::New && self.others.keys().all(|run| !listed.contains(run));
        let lease_ms = self.lease_ms;
        let gone = |run: &u64, other: &mut Other| {
            !listed.contains(run) && (!registry_is_new && beat.was == Was::Known || other.seen_ms + lease_ms <= now_ms)
        };
        for (_, other) in self.others.extract_if(.., gone) {
            events.push(Event::Left(other.info));
        }
        for other in self.others.values().filter(|other| !listed.contains(&other.info.run)) {
            first_end_ms = first_end_ms.min(other.seen_ms + lease_ms);
        }
        for info in beat.mine {
            if let Some(other) = self.others.remove(&info.run) {
                events.push(Event::Left(other.info));
            }
            events.push(Event::CleanUp(info));
        }
        // A moment later, since the server's clock need not have come that far.
        let first_end_ms = first_end_ms.saturating_add(20);
        self.next_ms = (now_ms + self.lease_ms / 3).min(first_end_ms.max(now_ms + 50));
        if self.was_dead {
            self.next_ms = self.next_ms.min(now_ms + 200);
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE_MS: u64 = 5000;

    fn node(run: u64) -> NodeInfo {
        let (public, internal, version) = (None, None, String::new());
        NodeInfo { run, name: format!("n{run}"), public, internal, started_ms: 0, version }
    }

    fn beat(redis_ms: u64, living: &[(u64, u64)]) -> Beat {
        let living = living.iter().map(|(run, until_ms)| (node(*run), *until_ms)).collect();
        Beat { was: Was::Known, redis_ms, living, mine: Vec::new() }
    }

    fn new(redis_ms: u64, living: &[(u64, u64)]) -> Beat {
        Beat { was: Was::New, ..beat(redis_ms, living) }
    }

    fn members() -> Members {
        Members::new(1, "n1", LEASE_MS)
    }

    #[test]
    fn who_comes_and_goes_is_told_once() {
        let mut members = members();
        assert_eq!(members.beaten(new(0, &[(1, 5000), (2, 4000)]), 0), [Event::Joined(node(2))]);
        assert_eq!(members.beaten(beat(1000, &[(1, 6000), (2, 5500)]), 1000), []);
        assert_eq!(members.beaten(beat(2000, &[(1, 7000)]), 2000), [Event::Left(node(2))]);
        assert_eq!(members.beaten(beat(3000, &[(1, 8000)]), 3000), []);
        assert_eq!(members.others().count(), 0);
    }

    #[test]
    fn the_dead_are_looked_for_when_their_lease_ends() {
        let mut members = members();
        members.beaten(new(0, &[(1, 5000), (2, 1200)]), 100);
        assert_eq!(members.next_ms(), 1320, "when the lease of the other ends");
        members.beaten(beat(0, &[(1, 5000), (2, 4900)]), 100);
        assert_eq!(members.next_ms(), 100 + LEASE_MS / 3, "or to renew its own");
    }

    #[test]
    fn nobody_is_taken_for_dead_by_who_was_cut_off_itself() {
        let mut members = members();
        assert!(!members.may_bury(0));
        for now_ms in (0..=LEASE_MS).step_by(1000) {
            members.beaten(beat(now_ms, &[]), now_ms);
        }
        assert!(members.may_bury(LEASE_MS));
        assert!(!members.may_bury(LEASE_MS + LEASE_MS), "no beat was answered for long");
        members.beaten(beat(0, &[]), LEASE_MS * 2);
        assert!(!members.may_bury(LEASE_MS * 2), "the others need time to renew their leases");
        members.failed(LEASE_MS * 2 + 10);
        members.beaten(beat(0, &[]), LEASE_MS * 2 + 100);
        assert!(!members.may_bury(LEASE_MS * 3 + 50));
    }

    #[test]
    fn a_registry_that_was_lost_makes_nobody_leave_who_comes_back_in_time() {
        let mut members = members();
        members.beaten(new(0, &[(1, 5000), (2, 5000), (3, 5000)]), 0);
        let revived = Event::Revived { was_buried: false };
        assert_eq!(members.beaten(new(10, &[(1, 5010)]), 1000), [revived]);
        assert_eq!(members.others().count(), 2);
        assert_eq!(members.beaten(beat(20, &[(1, 5020), (2, 6000)]), 5000 - 1), [Event::Left(node(3))]);
        assert_eq!(members.others().count(), 1);
    }

    #[test]
    fn one_that_was_taken_for_dead_comes_back_when_it_was_cleaned_up_after() {
        let mut members = members();
        members.beaten(new(0, &[(1, 5000), (2, 5000)]), 0);
        let dead = Beat { was: Was::Dead, ..beat(9000, &[(2, 14_000)]) };
        assert_eq!(members.beaten(dead, 9000), []);
        assert_eq!(members.next_ms(), 9200, "it tries again soon");
        let revived = Event::Revived { was_buried: true };
        assert_eq!(members.beaten(new(9200, &[(1, 14_200), (2, 14_000)]), 9200), std::slice::from_ref(&revived));
        // Or had been, before it asked.
        let late = 9200 + LEASE_MS;
        assert_eq!(members.beaten(new(late, &[(1, late + 5000), (2, late + 10)]), late), [revived]);
    }

    #[test]
    fn a_node_that_has_the_same_name_and_lives_is_told_once() {
        let mut members = members();
        let twin = |redis_ms, until_ms| {
            let info = NodeInfo { run: 2, ..node(1) };
            Beat { living: vec![(info, until_ms)], ..beat(redis_ms, &[]) }
        };
        let is_told = |events: &[Event]| events.iter().any(|event| matches!(event, Event::SameName(_)));
        assert!(!is_told(&members.beaten(twin(0, 4000), 0)), "a former run of it, perhaps");
        assert!(!is_told(&members.beaten(twin(1000, 4000), 1000)));
        assert!(is_told(&members.beaten(twin(2000, 6500), 2000)));
        assert!(!is_told(&members.beaten(twin(3000, 7000), 3000)));
    }

    #[test]
    fn whoever_is_to_be_cleaned_up_after_has_left() {
        let mut members = members();
        members.beaten(new(0, &[(1, 5000), (2, 5000)]), 0);
        let buried = Beat { mine: vec![node(2)], ..beat(5100, &[(1, 9000)]) };
        // Not listed any more and buried at once: it has left once.
        assert_eq!(members.beaten(buried, 5100), [Event::Left(node(2)), Event::CleanUp(node(2))]);
    }
}

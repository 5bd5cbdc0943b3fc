//! What this node has in Redis under its name, and what of it is still to be said: ids of clients, and who is present in
//! rooms. Pure; kept here as well, so that it can be said again when the registry was lost.

use std::collections::{BTreeSet, HashMap, VecDeque};

use bytes::Bytes;

use crate::hub::presence::Presenting;

/// Ids of clients that this node has or wants.
#[derive(Debug)]
pub(super) struct Ids<T> {
    held: HashMap<Box<str>, u32>,
    /// Claims that were not sent yet, with who waits for them.
    to_claim: VecDeque<(Box<str>, T)>,
    to_release: Vec<Box<str>>,
}

impl<T> Default for Ids<T> {
    fn default() -> Ids<T> {
        Ids { held: HashMap::new(), to_claim: VecDeque::new(), to_release: Vec::new() }
    }
}

impl<T> Ids<T> {
    /// Somebody wants an id.
    pub(super) fn claim(&mut self, id: Box<str>, who: T) {
        self.to_claim.push_back((id, who));
    }

    /// Somebody has no use for an id any more.
    pub(super) fn release(&mut self, id: Box<str>) {
        let Some(count) = self.held.get_mut(&id) else { return };
        *count -= 1;
        if *count == 0 {
            self.held.remove(&id);
            self.to_release.push(id);
        }
    }

    /// The next claims to send. One that is refused is given back as one that was granted.
    pub(super) fn next_claims(&mut self, max: usize) -> Vec<(Box<str>, T)> {
        let count = self.to_claim.len().min(max);
        let claims: Vec<_> = self.to_claim.drain(..count).collect();
        for (id, _) in &claims {
            // From here on, so that a former holder's end does not free it behind the claim that is on its way.
            *self.held.entry(id.clone()).or_insert(0) += 1;
        }
        claims
    }

    /// The next ids to give back; those that were claimed anew meanwhile are kept.
    pub(super) fn next_releases(&mut self, max: usize) -> Vec<Box<str>> {
        let from = self.to_release.len().saturating_sub(max);
        let mut ids = self.to_release.split_off(from);
        ids.retain(|id| !self.held.contains_key(id));
        ids
    }

    /// Could not be sent: they are given back later.
    pub(super) fn not_released(&mut self, ids: Vec<Box<str>>) {
        self.to_release.extend(ids);
    }

    /// All claims that were not sent, which are refused where the link is down.
    pub(super) fn refuse_all(&mut self) -> impl Iterator<Item = T> {
        self.to_claim.drain(..).map(|(_, who)| who)
    }

    /// All ids that this node has.
    pub(super) fn held(&self) -> impl ExactSizeIterator<Item = &Box<str>> {
        self.held.keys()
    }
}

/// Who is present in rooms through this node, by room and session.
#[derive(Debug, Default)]
pub(super) struct Presence {
    here: HashMap<Box<str>, Here>,
    /// Who is not any more, with what members are told.
    left: HashMap<Box<str>, Bytes>,
    /// Who came and went without members having been told, and may have been written meanwhile.
    in_doubt: BTreeSet<Box<str>>,
    /// Fields that have to be written.
    changed: BTreeSet<Box<str>>,
    /// Fields of sessions that go to another node, and when it is to be seen whether they have come there.
    moving: VecDeque<(u64, Box<str>)>,
}

/// How long a session may take to another node before it has left. While it is on its way, the hash of the node that it
/// comes from has it.
const MOVING_MS: u64 = 3000;

#[derive(Debug)]
struct Here {
    told: Bytes,
    /// Whether members know of it.
    is_known: bool,
    /// Whether it may have been written, though no answer said so.
    is_in_doubt: bool,
}

/// Something to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) field: Box<str>,
    /// What members are told.
    pub(super) told: Bytes,
    pub(super) kind: ChangeKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ChangeKind {
    /// A session is there.
    Entered,
    /// It is there, as members know.
    Again,
    /// It is not there any more.
    Left,
    /// It is not there any more, and nobody was told that it was.
    Undone,
}

impl ChangeKind {
    /// Whether it is there no more.
    pub(super) fn is_absent(self) -> bool {
        matches!(self, ChangeKind::Left | ChangeKind::Undone)
    }

    /// Whether members are to be told.
    pub(super) fn is_news(self) -> bool {
        matches!(self, ChangeKind::Entered | ChangeKind::Left)
    }
}

/// Stands between room and session in the name of a field; neither has control characters.
const BETWEEN: char = '\t';

/// The field of a session in a room.
pub(super) fn field(room: &str, session: &str) -> Box<str> {
    format!("{room}{BETWEEN}{session}").into()
}

/// Stands before the number of a lock, in place of a session.
const LOCK: char = '\u{1}';

/// What stands for a lock in place of a session: by its number, since a field may be locked anew, through another node as
/// well, while it is not known yet what has become of a lock that has left with its session.
pub(super) fn of_lock(token: u64) -> Box<str> {
    format!("{LOCK}{token}").into()
}

/// Whether a field is of a lock.
pub(super) fn is_of_lock(field: &str) -> bool {
    field.split_once(BETWEEN).is_some_and(|(_, session)| session.starts_with(LOCK))
}

/// The room of a field.
pub(super) fn room_of(field: &str) -> &str {
    field.split_once(BETWEEN).map_or(field, |(room, _)| room)
}

impl Presence {
    /// Somebody is there, or not any more.
    pub(super) fn set(&mut self, room: &str, session: &str, told: Bytes, presenting: Presenting, now_ms: u64) {
        let field = field(room, session);
        if presenting == Presenting::There {
            // Who comes back before it was told to have left was there all the time.
            let has_left = self.left.remove(&field).is_some();
            let is_known = has_left || self.here.get(&field).is_some_and(|here| here.is_known);
            let is_in_doubt =
                self.in_doubt.remove(&field) || self.here.get(&field).is_some_and(|here| here.is_in_doubt);
            self.here.insert(field.clone(), Here { told, is_known, is_in_doubt });
        } else {
            match self.here.remove(&field) {
                Some(here) if here.is_known => drop(self.left.insert(field.clone(), told)),
                // Gone before anybody was told that it came, but it may be written.
                Some(here) if here.is_in_doubt => {
                    self.in_doubt.insert(field.clone());
                    self.changed.insert(field);
                    return;
                }
                Some(_) => {
                    self.changed.remove(&field);
                    return;
                }
                None => return,
            }
            if presenting == Presenting::Moves {
                self.moving.push_back((now_ms + MOVING_MS, field));
                return;
            }
        }
        self.changed.insert(field);
    }

    /// How many are there.
    pub(super) fn len(&self) -> usize {
        self.here.len()
    }

    /// Looks whose time to come to another node is over.
    pub(super) fn look(&mut self, now_ms: u64) {
        while let Some((_, field)) = self.moving.pop_front_if(|(until_ms, _)| *until_ms <= now_ms) {
            self.changed.insert(field);
        }
    }

    /// When to look.
    pub(super) fn next_ms(&self) -> Option<u64> {
        self.moving.front().map(|(until_ms, _)| *until_ms)
    }

    /// The next changes to write. What is sent counts as known from here on.
    pub(super) fn next(&mut self, max: usize) -> Vec<Change> {
        let mut changes = Vec::new();
        while changes.len() < max
            && let Some(field) = self.changed.pop_first()
        {
            if let Some(here) = self.here.get_mut(&field) {
                let was_known = std::mem::replace(&mut here.is_known, true);
                let kind = if was_known { ChangeKind::Again } else { ChangeKind::Entered };
                changes.push(Change { told: here.told.clone(), field, kind });
            } else if let Some(told) = self.left.remove(&field) {
                changes.push(Change { field, told, kind: ChangeKind::Left });
            } else if self.in_doubt.remove(&field) {
                changes.push(Change { field, told: Bytes::new(), kind: ChangeKind::Undone });
            }
        }
        changes
    }

    /// Changes of which it is not known whether they were written: they are written again.
    pub(super) fn not_written(&mut self, changes: Vec<Change>) {
        for Change { field, told, kind } in changes {
            match (kind, self.here.get_mut(&field)) {
                (ChangeKind::Left, None) => drop(self.left.insert(field.clone(), told)),
                (ChangeKind::Entered, Some(here)) => (here.is_known, here.is_in_doubt) = (false, true),
                (ChangeKind::Undone, None) => drop(self.in_doubt.insert(field.clone())),
                _ => {}
            }
            self.changed.insert(field);
        }
    }

    /// All have to be written again; where members were told that all have left, as something new.
    pub(super) fn lost(&mut self, all_left: bool) {
        self.changed.extend(self.here.keys().cloned());
        if all_left {
            self.left.clear();
            self.in_doubt.clear();
            self.here.values_mut().for_each(|here| here.is_known = false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_given_back_when_nobody_has_it_any_more() {
        let mut ids = Ids::default();
        for who in [1, 2] {
            ids.claim("a".into(), who);
        }
        assert_eq!(ids.next_claims(10).len(), 2);
        ids.release("a".into());
        assert!(ids.next_releases(10).is_empty(), "somebody still has it");
        ids.release("a".into());
        assert_eq!(ids.next_releases(10), [Box::<str>::from("a")]);
        ids.release("a".into());
        assert!(ids.next_releases(10).is_empty());
    }

    #[test]
    fn an_id_that_was_claimed_anew_is_not_given_back() {
        let mut ids = Ids::default();
        ids.claim("a".into(), ());
        ids.next_claims(1);
        ids.release("a".into());
        ids.claim("a".into(), ());
        ids.next_claims(1);
        assert!(ids.next_releases(10).is_empty());
        assert_eq!(ids.held().count(), 1);
        // A claim that is on its way when the one before ends.
        ids.claim("b".into(), ());
        ids.next_claims(1);
        ids.claim("b".into(), ());
        ids.next_claims(1);
        ids.release("b".into());
        assert!(ids.next_releases(10).is_empty());
    }

    fn told() -> Bytes {
        Bytes::from_static(b"{}")
    }

    fn kinds(changes: &[Change]) -> Vec<(&str, ChangeKind)> {
        changes.iter().map(|change| (&*change.field, change.kind)).collect()
    }

    #[test]
    fn of_who_comes_and_goes_the_last_state_is_written() {
        let mut presence = Presence::default();
        presence.set("project:1", "s", told(), Presenting::There, 0);
        presence.set("project:1", "s", told(), Presenting::Left, 0);
        assert_eq!(presence.next(10), [], "nobody was told that it came");
        presence.set("project:1", "t", told(), Presenting::There, 0);
        assert_eq!(kinds(&presence.next(10)), [("project:1\tt", ChangeKind::Entered)]);
        presence.set("project:1", "t", told(), Presenting::Left, 0);
        presence.set("project:1", "t", told(), Presenting::There, 0);
        assert_eq!(kinds(&presence.next(10)), [("project:1\tt", ChangeKind::Again)], "it was there all the time");
        presence.set("project:1", "t", told(), Presenting::Left, 0);
        presence.set("project:1", "u", told(), Presenting::Left, 0);
        assert_eq!(kinds(&presence.next(10)), [("project:1\tt", ChangeKind::Left)]);
        assert_eq!(room_of("project:1\tt"), "project:1");
    }

    #[test]
    fn who_has_gone_before_it_was_known_whether_it_was_written_is_taken_out() {
        let mut presence = Presence::default();
        presence.set("project:1", "s", told(), Presenting::There, 0);
        let sent = presence.next(10);
        presence.not_written(sent);
        presence.set("project:1", "s", told(), Presenting::Left, 0);
        let sent = presence.next(10);
        assert_eq!(kinds(&sent), [("project:1\ts", ChangeKind::Undone)], "nobody was told that it came");
        presence.not_written(sent);
        assert_eq!(kinds(&presence.next(10)), [("project:1\ts", ChangeKind::Undone)]);
        assert_eq!(presence.next(10), []);
        presence.set("project:1", "s", told(), Presenting::There, 0);
        assert_eq!(kinds(&presence.next(10)), [("project:1\ts", ChangeKind::Entered)]);
        // On its way when it leaves, and the answer gets lost.
        let mut presence = Presence::default();
        presence.set("project:1", "s", told(), Presenting::There, 0);
        let sent = presence.next(10);
        presence.set("project:1", "s", told(), Presenting::Left, 0);
        presence.not_written(sent);
        assert_eq!(kinds(&presence.next(10)), [("project:1\ts", ChangeKind::Left)]);
    }

    #[test]
    fn who_goes_to_another_node_has_left_a_while_later() {
        let mut presence = Presence::default();
        presence.set("project:1", "s", told(), Presenting::There, 0);
        assert_eq!(presence.next(10).len(), 1);
        presence.set("project:1", "s", told(), Presenting::Moves, 100);
        presence.look(100);
        assert_eq!(presence.next(10), []);
        assert_eq!(presence.next_ms(), Some(100 + MOVING_MS));
        presence.look(100 + MOVING_MS);
        assert_eq!(kinds(&presence.next(10)), [("project:1\ts", ChangeKind::Left)]);
        assert_eq!(presence.next_ms(), None);
    }

    #[test]
    fn what_may_not_have_been_written_is_written_again() {
        let mut presence = Presence::default();
        presence.set("project:1", "s", told(), Presenting::There, 0);
        let changes = presence.next(10);
        presence.not_written(changes);
        assert_eq!(kinds(&presence.next(10)), [("project:1\ts", ChangeKind::Entered)]);
        presence.lost(false);
        assert_eq!(kinds(&presence.next(10)), [("project:1\ts", ChangeKind::Again)]);
        presence.lost(true);
        assert_eq!(kinds(&presence.next(10)), [("project:1\ts", ChangeKind::Entered)]);
        presence.set("project:1", "s", told(), Presenting::Left, 0);
        let changes = presence.next(10);
        presence.not_written(changes.clone());
        assert_eq!(presence.next(10), changes);
        // It came back meanwhile.
        presence.not_written(changes);
        presence.set("project:1", "s", told(), Presenting::There, 0);
        assert_eq!(kinds(&presence.next(10)), [("project:1\ts", ChangeKind::Again)]);
    }
}

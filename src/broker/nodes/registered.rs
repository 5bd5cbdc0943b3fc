//! What this node has in Redis under its name, and what of it is still to be said: ids of clients, and who is present in
//! rooms. Pure; kept here as well, so that it can be said again when the registry was lost.

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::Bytes;

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
    pub(super) fn held(&self) -> impl Iterator<Item = &Box<str>> {
        self.held.keys()
    }
}

/// Who is present in rooms through this node, by room and session.
#[derive(Debug, Default)]
pub(super) struct Presence {
    here: BTreeMap<Box<str>, Bytes>,
    /// Fields that have to be written or deleted.
    changed: std::collections::BTreeSet<Box<str>>,
}

/// Stands between room and session in the name of a field; neither has control characters.
const BETWEEN: char = '\t';

/// The field of a session in a room.
pub(super) fn field(room: &str, session: &str) -> Box<str> {
    format!("{room}{BETWEEN}{session}").into()
}

/// The room of a field.
pub(super) fn room_of(field: &str) -> &str {
    field.split_once(BETWEEN).map_or(field, |(room, _)| room)
}

impl Presence {
    /// Somebody is there, or not any more.
    pub(super) fn set(&mut self, room: &str, session: &str, told: Option<Bytes>) {
        let field = field(room, session);
        match told {
            Some(told) => drop(self.here.insert(field.clone(), told)),
            None => drop(self.here.remove(&field)),
        }
        self.changed.insert(field);
    }

    /// The next fields to write (with what is told) or to delete.
    pub(super) fn next(&mut self, max: usize) -> Vec<(Box<str>, Option<Bytes>)> {
        let mut fields = Vec::new();
        while fields.len() < max
            && let Some(field) = self.changed.pop_first()
        {
            let told = self.here.get(&field).cloned();
            fields.push((field, told));
        }
        fields
    }

    /// Fields that could not be written.
    pub(super) fn not_written(&mut self, fields: impl IntoIterator<Item = Box<str>>) {
        self.changed.extend(fields);
    }

    /// All have to be written again.
    pub(super) fn lost(&mut self) {
        self.changed.extend(self.here.keys().cloned());
    }

    /// Whether there is something to write.
    pub(super) fn is_changed(&self) -> bool {
        !self.changed.is_empty()
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
        assert_eq!(ids.next_releases(10), ["a".into()]);
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

    #[test]
    fn of_who_is_present_the_last_state_is_written() {
        let mut presence = Presence::default();
        let told = Bytes::from_static(b"{}");
        presence.set("project:1", "s", Some(told.clone()));
        presence.set("project:1", "s", None);
        presence.set("project:1", "t", None);
        presence.set("project:1", "t", Some(told.clone()));
        let written = presence.next(10);
        assert_eq!(written, [("project:1\ts".into(), None), ("project:1\tt".into(), Some(told.clone()))]);
        assert!(!presence.is_changed());
        presence.lost();
        assert_eq!(presence.next(10), [("project:1\tt".into(), Some(told))]);
        assert_eq!(room_of("project:1\tt"), "project:1");
    }
}

//! The locks that are held on a node, a page at a time, by room and field.
//!
//! Each shard has a part of them, in order. It looks at a bounded number of its locks for one page, so that no turn gets
//! long by it; where that is not enough it says how far it came, and the page ends there.

use std::collections::BTreeSet;
use std::ops::Bound;

use super::core::Core;
use super::locks::{LockInfo, lock_info};
use super::name::RoomName;
use super::view::Window;

/// Locks that one shard looks at for one page. Those that are not held, but kept for somebody, are looked at and not listed.
const LOOKED_AT_MAX: usize = 4096;
/// Stands between room and field in the name of a lock's place; neither has control characters, so that the order of such
/// names is that of rooms and then of fields.
const BETWEEN: char = '\t';

/// A part of the locks that are held.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LockPage {
    /// In the order of their rooms and fields.
    pub locks: Vec<LockInfo>,
    /// How many are held in all.
    pub total: usize,
    /// The place up to which was looked, where that is not the end.
    pub next: Option<Box<str>>,
}

impl LockPage {
    /// Puts the parts of two shards together.
    pub fn with(mut self, other: LockPage) -> LockPage {
        self.locks.extend(other.locks);
        self.total += other.total;
        self.next = match (self.next, other.next) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        self
    }

    /// Of all shards' parts, what can be told in order: `limit` locks at most, and none behind a place up to which some
    /// shard did not look.
    pub fn finish(mut self, limit: usize) -> LockPage {
        self.locks.sort_by(|one, other| (&one.room, &one.field).cmp(&(&other.room, &other.field)));
        if let Some(next) = &self.next {
            self.locks.retain(|lock| *place(&lock.room, &lock.field) <= **next);
        }
        if self.locks.len() > limit {
            self.locks.truncate(limit);
            self.next = self.locks.last().map(|lock| place(&lock.room, &lock.field));
        }
        self
    }
}

/// The name of a lock's place in the list.
pub fn place(room: &str, field: &str) -> Box<str> {
    format!("{room}{BETWEEN}{field}").into()
}

impl Core {
    /// The locks that are held in a room homed here, by field.
    pub fn list_locks(&self, room: &RoomName) -> Vec<LockInfo> {
        let id = self.rooms.find(room);
        let home = id.and_then(|id| self.rooms.get(id)).and_then(|room| room.home.as_deref());
        let fields = home.and_then(|home| home.locks()).into_iter().flat_map(|locks| &locks.fields);
        fields.filter_map(|(field, entry)| Some(lock_info(room, field, entry.lock.held()?))).collect()
    }

    /// The locks held in rooms homed here, or in one of them, from a place on.
    pub fn lock_page(&self, room: Option<&RoomName>, window: &Window) -> LockPage {
        let after = window.after.as_deref().unwrap_or_default();
        let (after_room, after_field) = after.split_once(BETWEEN).unwrap_or((after, ""));
        let one_room = room.map(|room| BTreeSet::from([room.clone()]));
        let rooms = one_room.as_ref().unwrap_or(&self.locks.rooms);
        let total = match room {
            Some(room) => self.list_locks(room).len(),
            None => self.locks.figures.held as usize,
        };
        let mut page = LockPage { total, ..LockPage::default() };
        let mut looked_at = 0;
        for room in rooms.range::<str, _>((Bound::Included(after_room), Bound::Unbounded)) {
            let home = self.rooms.find(room).and_then(|id| self.rooms.get(id)).and_then(|room| room.home.as_deref());
            let Some(locks) = home.and_then(|home| home.locks()) else { continue };
            let from = if room.as_str() == after_room { Bound::Excluded(after_field) } else { Bound::Unbounded };
            for (field, entry) in locks.fields.range::<str, _>((from, Bound::Unbounded)) {
                // One more than is wanted tells whether there are more.
                if page.locks.len() > window.limit || looked_at >= LOOKED_AT_MAX {
                    return page;
                }
                looked_at += 1;
                page.locks.extend(entry.lock.held().map(|held| lock_info(room, field, held)));
                page.next = Some(place(room.as_str(), field));
            }
        }
        page.next = None;
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(room: &str, field: &str) -> LockInfo {
        let (client_id, session_id, user_id) = Default::default();
        let (room, field, expires_at) = (room.to_owned(), field.to_owned(), String::new());
        LockInfo { room, field, token: 1, expires_at, client_id, session_id, user_id }
    }

    fn page(locks: &[(&str, &str)], next: Option<(&str, &str)>) -> LockPage {
        let next = next.map(|(room, field)| place(room, field));
        LockPage { locks: locks.iter().map(|(room, field)| lock(room, field)).collect(), total: locks.len(), next }
    }

    fn told(page: &LockPage) -> (Vec<(&str, &str)>, Option<&str>) {
        let places = page.locks.iter().map(|lock| (lock.room.as_str(), lock.field.as_str()));
        (places.collect(), page.next.as_deref())
    }

    #[test]
    fn parts_of_shards_are_put_in_order_up_to_where_all_have_looked() {
        let (one, other) = (page(&[("a:1", "x"), ("a:3", "x")], None), page(&[("a:2", "x"), ("a:2", "y")], None));
        let whole = one.clone().with(other.clone()).finish(10);
        assert_eq!(told(&whole), (vec![("a:1", "x"), ("a:2", "x"), ("a:2", "y"), ("a:3", "x")], None));
        assert_eq!(whole.total, 4);
        assert_eq!(told(&one.clone().with(other).finish(2)), (vec![("a:1", "x"), ("a:2", "x")], Some("a:2\tx")));
        // One shard did not look beyond a place: what another one has behind it comes with the next page.
        let short = page(&[("a:2", "x")], Some(("a:2", "z")));
        assert_eq!(told(&one.clone().with(short).finish(10)), (vec![("a:1", "x"), ("a:2", "x")], Some("a:2\tz")));
        let none = page(&[], Some(("a:0", "z")));
        assert_eq!(told(&one.with(none).finish(10)), (vec![], Some("a:0\tz")), "an empty page, and yet there is more");
        // A room whose name begins as another's does: the order is that of rooms, then of fields.
        let near = page(&[("a:1", "z"), ("a:1 b", "a"), ("a:1!", "a")], None).finish(10);
        assert_eq!(told(&near).0, [("a:1", "z"), ("a:1 b", "a"), ("a:1!", "a")]);
    }
}

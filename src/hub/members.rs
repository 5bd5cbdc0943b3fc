//! Who of a shard's connections is in a room.
//!
//! A fan-out may be spread over several turns and meanwhile members come and go: newcomers are appended behind the end
//! that the fan-out has noted, leavers leave a hole, and holes are closed when no fan-out is under way.

use std::sync::Arc;

use super::delta::Bases;
use super::selection::Selection;
use crate::ring::ConnKey;

/// Stands where a member left while a fan-out was under way.
pub const HOLE: ConnKey = ConnKey { slot: u32::MAX, generation: u32::MAX };

/// So few holes are left alone.
const HOLES_MIN: u32 = 32;

/// Which of a room's lists: 0 for those who get everything, else a group's id.
pub type ListId = u32;

const EVERYTHING: ListId = 0;

/// A room's members on one shard.
///
/// Most rooms are those of one session or one user and have a single member here, which wants everything: that takes no
/// memory of its own. A room that had more once keeps its lists until all of them are gone.
#[derive(Debug)]
pub enum Members {
    /// Nobody, or one who wants everything.
    Sole(Option<ConnKey>),
    /// All others.
    Listed(Box<Lists>),
}

/// The members of a room that has, or had, more than one.
#[derive(Debug, Default)]
pub struct Lists {
    everything: List,
    /// Most rooms have no member with a filter, and none that is parked.
    groups: Option<Box<Groups>>,
}

/// A slow reader, and what it wants: a member, but out of the fan-out until it has caught up.
type Parked = (ConnKey, Option<Arc<Selection>>);

#[derive(Debug, Default)]
struct List {
    conns: Vec<ConnKey>,
    holes: u32,
}

#[derive(Debug, Default)]
struct Groups {
    list: Vec<Group>,
    last_id: ListId,
    parked: Vec<Parked>,
    /// What events are compared with, where members want them as changes.
    bases: Option<Box<Bases>>,
}

/// Members who want the same selection.
#[derive(Debug)]
struct Group {
    id: ListId,
    selection: Arc<Selection>,
    members: List,
}

impl List {
    fn remove(&mut self, conn: ConnKey, keep_places: bool) -> bool {
        let Some(place) = self.conns.iter().position(|one| *one == conn) else { return false };
        if keep_places {
            if let Some(member) = self.conns.get_mut(place) {
                *member = HOLE;
            }
            self.holes += 1;
        } else {
            self.conns.swap_remove(place);
            // A crowd that has gone must not keep its memory.
            if self.conns.len() < self.conns.capacity() / 4 {
                self.conns.shrink_to_fit();
            }
        }
        true
    }

    fn close_holes(&mut self) {
        if self.holes > 0 {
            self.conns.retain(|conn| *conn != HOLE);
            self.holes = 0;
        }
    }

    fn is_sparse(&self) -> bool {
        self.holes > HOLES_MIN && self.holes as usize > self.conns.len() / 2
    }

    /// Closes holes and says where each place has gone, and the end.
    fn compact(&mut self) -> Vec<usize> {
        let mut moved = Vec::with_capacity(self.conns.len() + 1);
        let mut kept = 0;
        for conn in &self.conns {
            moved.push(kept);
            kept += usize::from(*conn != HOLE);
        }
        moved.push(kept);
        self.close_holes();
        moved
    }

    fn len(&self) -> usize {
        self.conns.len() - self.holes as usize
    }
}

impl Default for Members {
    fn default() -> Members {
        Members::Sole(None)
    }
}

impl Members {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Members::Sole(member) => usize::from(member.is_some()),
            Members::Listed(lists) => lists.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a connection that is not a member. False where that would need one group more than `groups_max`.
    pub fn add(&mut self, conn: ConnKey, selection: Option<Arc<Selection>>, groups_max: usize) -> bool {
        match self {
            Members::Sole(place @ None) if selection.is_none() => {
                *place = Some(conn);
                true
            }
            _ => self.listed().add(conn, selection, groups_max),
        }
    }

    /// Removes a connection; `keep_places` while a fan-out is under way. False where it was no member.
    pub fn remove(&mut self, conn: ConnKey, keep_places: bool) -> bool {
        match self {
            Members::Sole(member) if *member != Some(conn) => false,
            // The fan-outs under way have noted its place, which a newcomer must not get.
            Members::Sole(_) if keep_places => self.listed().remove(conn, keep_places),
            Members::Sole(member) => member.take().is_some(),
            Members::Listed(lists) => {
                let removed = lists.remove(conn, keep_places);
                self.let_go_of_lists();
                removed
            }
        }
    }

    /// Takes a member out of the fan-out. Nothing happens where it is out already.
    pub fn park(&mut self, conn: ConnKey, keep_places: bool) {
        self.listed().park(conn, keep_places);
    }

    /// Puts a parked member back, behind the end that fan-outs under way have noted.
    pub fn unpark(&mut self, conn: ConnKey, groups_max: usize) {
        if let Members::Listed(lists) = self {
            lists.unpark(conn, groups_max);
        }
    }

    /// What a member wants; none for everything.
    pub fn selection_of(&self, conn: ConnKey) -> Option<Arc<Selection>> {
        self.lists()?.selection_of(conn)
    }

    /// What a parked member wants; none where it is not parked.
    pub fn parked(&self, conn: ConnKey) -> Option<Option<Arc<Selection>>> {
        self.lists()?.parked(conn)
    }

    /// Where a member stands: which list, what it selects, which place. None where it is no member, or parked.
    pub fn find(&self, conn: ConnKey) -> Option<(ListId, Option<&Arc<Selection>>, usize)> {
        match self {
            Members::Sole(member) => (*member == Some(conn)).then_some((EVERYTHING, None, 0)),
            Members::Listed(lists) => lists.find(conn),
        }
    }

    /// Closes the holes of a list in which they have become more than the members, as they may within a turn in which the
    /// same members come and go again and again; says which list, and where its places have gone.
    pub fn compact_sparse(&mut self) -> Option<(ListId, Vec<usize>)> {
        match self {
            Members::Sole(_) => None,
            Members::Listed(lists) => lists.compact_sparse(),
        }
    }

    /// Tidies up after the last fan-out.
    pub fn close_holes(&mut self) {
        if let Members::Listed(lists) = self {
            lists.close_holes();
            self.let_go_of_lists();
        }
    }

    /// The places of a list, holes included.
    pub fn list(&self, id: ListId) -> &[ConnKey] {
        match self {
            Members::Sole(member) if id == EVERYTHING => member.as_slice(),
            Members::Sole(_) => &[],
            Members::Listed(lists) => lists.list(id),
        }
    }

    /// The lists with a selection.
    pub fn groups(&self) -> impl Iterator<Item = (ListId, &Arc<Selection>, usize)> {
        self.lists().into_iter().flat_map(Lists::groups)
    }

    /// A member wants events as changes, from here on.
    pub fn want_deltas(&mut self) {
        self.listed().want_deltas();
    }

    /// What events are to be compared with; none where no member wants them as changes.
    pub fn bases(&mut self) -> Option<&mut Bases> {
        match self {
            Members::Sole(_) => None,
            Members::Listed(lists) => lists.bases(),
        }
    }

    /// Every member.
    pub fn iter(&self) -> impl Iterator<Item = ConnKey> {
        let (sole, lists) = match self {
            Members::Sole(member) => (*member, None),
            Members::Listed(lists) => (None, Some(lists)),
        };
        sole.into_iter().chain(lists.into_iter().flat_map(|lists| lists.iter()))
    }

    fn lists(&self) -> Option<&Lists> {
        match self {
            Members::Sole(_) => None,
            Members::Listed(lists) => Some(lists),
        }
    }

    /// The lists, made where there are none yet.
    fn listed(&mut self) -> &mut Lists {
        if let Members::Sole(member) = self {
            let everything = List { conns: member.iter().copied().collect(), holes: 0 };
            *self = Members::Listed(Box::new(Lists { everything, groups: None }));
        }
        match self {
            Members::Listed(lists) => lists,
            Members::Sole(_) => unreachable!("made above"),
        }
    }

    /// Lets go of the memory when nobody is left and no place is kept.
    fn let_go_of_lists(&mut self) {
        if self.lists().is_some_and(|lists| lists.everything.conns.is_empty() && lists.groups.is_none()) {
            *self = Members::default();
        }
    }
}

impl Lists {
    fn len(&self) -> usize {
        let groups = self.groups.as_ref().map_or(0, |groups| {
            groups.parked.len() + groups.list.iter().map(|group| group.members.len()).sum::<usize>()
        });
        self.everything.len() + groups
    }

    fn add(&mut self, conn: ConnKey, selection: Option<Arc<Selection>>, groups_max: usize) -> bool {
        let Some(selection) = selection else {
            self.everything.conns.push(conn);
            return true;
        };
        let groups = self.groups.get_or_insert_default();
        if let Some(group) = groups.list.iter_mut().find(|group| group.selection == selection) {
            group.members.conns.push(conn);
            return true;
        }
        if groups.list.len() >= groups_max {
            return false;
        }
        groups.last_id += 1;
        let mut members = List::default();
        members.conns.push(conn);
        groups.list.push(Group { id: groups.last_id, selection, members });
        true
    }

    fn remove(&mut self, conn: ConnKey, keep_places: bool) -> bool {
        if self.everything.remove(conn, keep_places) {
            return true;
        }
        let Some(groups) = self.groups.as_mut() else { return false };
        if let Some(place) = groups.parked.iter().position(|(one, _)| *one == conn) {
            groups.parked.swap_remove(place);
            if !keep_places {
                self.drop_empty_groups();
            }
            return true;
        }
        let removed = groups.list.iter_mut().any(|group| group.members.remove(conn, keep_places));
        if !keep_places {
            self.drop_empty_groups();
        }
        removed
    }

    fn park(&mut self, conn: ConnKey, keep_places: bool) {
        if self.everything.remove(conn, keep_places) {
            self.groups.get_or_insert_default().parked.push((conn, None));
            return;
        }
        let Some(groups) = self.groups.as_mut() else { return };
        let group = groups
            .list
            .iter_mut()
            .find_map(|group| group.members.remove(conn, keep_places).then(|| group.selection.clone()));
        if let Some(selection) = group {
            groups.parked.push((conn, Some(selection)));
        }
    }

    fn unpark(&mut self, conn: ConnKey, groups_max: usize) {
        let Some(groups) = self.groups.as_mut() else { return };
        let Some(place) = groups.parked.iter().position(|(one, _)| *one == conn) else { return };
        let (conn, selection) = groups.parked.swap_remove(place);
        // Its group counted when it was a member before; should others have come meanwhile, one more is borne.
        if !self.add(conn, selection.clone(), groups_max) {
            self.add(conn, selection, usize::MAX);
        }
    }

    fn selection_of(&self, conn: ConnKey) -> Option<Arc<Selection>> {
        let groups = self.groups.as_ref()?;
        let group = groups.list.iter().find(|group| group.members.conns.contains(&conn));
        group.map(|group| group.selection.clone()).or_else(|| self.parked(conn).flatten())
    }

    fn parked(&self, conn: ConnKey) -> Option<Option<Arc<Selection>>> {
        let groups = self.groups.as_ref()?;
        groups.parked.iter().find(|(one, _)| *one == conn).map(|(_, selection)| selection.clone())
    }

    fn find(&self, conn: ConnKey) -> Option<(ListId, Option<&Arc<Selection>>, usize)> {
        if let Some(place) = self.everything.conns.iter().position(|one| *one == conn) {
            return Some((EVERYTHING, None, place));
        }
        let groups = self.groups.as_ref()?;
        groups.list.iter().find_map(|group| {
            let place = group.members.conns.iter().position(|one| *one == conn)?;
            Some((group.id, Some(&group.selection), place))
        })
    }

    fn compact_sparse(&mut self) -> Option<(ListId, Vec<usize>)> {
        if self.everything.is_sparse() {
            return Some((EVERYTHING, self.everything.compact()));
        }
        let group = self.groups.as_mut()?.list.iter_mut().find(|group| group.members.is_sparse())?;
        Some((group.id, group.members.compact()))
    }

    fn close_holes(&mut self) {
        self.everything.close_holes();
        if let Some(groups) = self.groups.as_mut() {
            for group in &mut groups.list {
                group.members.close_holes();
            }
            self.drop_empty_groups();
        }
    }

    fn drop_empty_groups(&mut self) {
        if let Some(groups) = self.groups.as_mut() {
            groups.list.retain(|group| !group.members.conns.is_empty());
            if groups.list.is_empty() && groups.parked.is_empty() && groups.bases.is_none() {
                self.groups = None;
            }
        }
    }

    fn list(&self, id: ListId) -> &[ConnKey] {
        if id == EVERYTHING {
            return &self.everything.conns;
        }
        let groups = self.groups.as_ref().map_or(&[][..], |groups| &groups.list);
        groups.iter().find(|group| group.id == id).map_or(&[], |group| &group.members.conns)
    }

    fn groups(&self) -> impl Iterator<Item = (ListId, &Arc<Selection>, usize)> {
        let groups = self.groups.as_ref().map_or(&[][..], |groups| &groups.list);
        groups.iter().map(|group| (group.id, &group.selection, group.members.conns.len()))
    }

    fn want_deltas(&mut self) {
        self.groups.get_or_insert_default().bases.get_or_insert_default().keep();
    }

    fn bases(&mut self) -> Option<&mut Bases> {
        let groups = self.groups.as_mut()?;
        groups.bases.take_if(|bases| bases.are_unused());
        groups.bases.as_deref_mut()
    }

    fn iter(&self) -> impl Iterator<Item = ConnKey> {
        let groups = self.groups.as_ref().map_or(&[][..], |groups| &groups.list);
        let filtered = groups.iter().flat_map(|group| group.members.conns.iter());
        let parked = self.groups.as_ref().map_or(&[][..], |groups| &groups.parked);
        let parked = parked.iter().map(|(conn, _)| conn);
        self.everything.conns.iter().chain(filtered).chain(parked).copied().filter(|conn| *conn != HOLE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::native::Wanted;

    fn conn(slot: u32) -> ConnKey {
        ConnKey { slot, generation: 0 }
    }

    fn selection(kind: &str) -> Option<Arc<Selection>> {
        let wanted = Wanted { types: vec![kind.into()], filters: None };
        Selection::compile(&wanted, 1).expect("compiles").map(Arc::new)
    }

    #[test]
    fn members_with_the_same_selection_share_a_group() {
        let mut members = Members::default();
        assert!(members.add(conn(1), None, 2));
        assert!(members.add(conn(2), selection("a"), 2));
        assert!(members.add(conn(3), selection("a"), 2));
        assert!(members.add(conn(4), selection("b"), 2));
        assert!(!members.add(conn(5), selection("c"), 2), "one group too many");
        assert_eq!(members.len(), 4);
        assert_eq!(members.groups().count(), 2);
        assert!(members.remove(conn(4), false));
        assert!(!members.remove(conn(4), false));
        assert!(members.add(conn(5), selection("c"), 2), "an empty group makes room");
        assert_eq!(members.iter().count(), 4);
    }

    #[test]
    fn a_list_of_holes_is_closed_and_tells_where_its_places_went() {
        let mut members = Members::default();
        for slot in 0..100 {
            assert!(members.add(conn(slot), None, 0));
        }
        for slot in 0..50 {
            assert!(members.remove(conn(slot), true));
        }
        assert_eq!(members.compact_sparse(), None, "as many as members are borne");
        assert!(members.remove(conn(98), true));
        let (list, moved) = members.compact_sparse().expect("sparse");
        assert_eq!((list, moved[0], moved[50], moved[60], moved[98], moved[99], moved[100]), (0, 0, 0, 10, 48, 48, 49));
        assert_eq!(members.find(conn(60)).map(|(_, _, place)| place), Some(10));
        assert_eq!(members.list(0).len(), 49);
    }

    #[test]
    fn a_sole_member_takes_no_memory_of_its_own_and_a_crowd_that_is_gone_neither() {
        assert!(size_of::<Members>() <= 16);
        let mut members = Members::default();
        assert_eq!((members.list(0), members.find(conn(1))), (&[][..], None));
        assert!(members.add(conn(1), None, 0));
        assert!(matches!(members, Members::Sole(Some(_))));
        assert_eq!((members.list(0), members.find(conn(1))), (&[conn(1)][..], Some((0, None, 0))));
        assert!(!members.remove(conn(2), false));
        assert!(members.add(conn(2), None, 0));
        assert_eq!(members.list(0), [conn(1), conn(2)]);
        assert_eq!(members.iter().collect::<Vec<_>>(), [conn(1), conn(2)]);
        for slot in 1..=2 {
            assert!(matches!(members, Members::Listed(_)));
            assert!(members.remove(conn(slot), false));
        }
        assert!(matches!(members, Members::Sole(None)));
    }

    #[test]
    fn the_place_of_a_sole_member_is_kept_while_a_fan_out_is_under_way() {
        let mut members = Members::default();
        assert!(members.add(conn(1), None, 0));
        assert!(members.remove(conn(1), true));
        assert!(members.add(conn(2), None, 0));
        assert_eq!(members.list(0), [HOLE, conn(2)], "a newcomer stands behind the end that was noted");
        assert_eq!(members.len(), 1);
        assert!(members.remove(conn(2), true));
        members.close_holes();
        assert!(matches!(members, Members::Sole(None)));
    }

    #[test]
    fn a_sole_member_that_is_parked_or_wants_a_selection_is_listed() {
        let mut members = Members::default();
        assert!(!members.add(conn(1), selection("a"), 0), "one group too many");
        assert!(members.add(conn(1), None, 0));
        members.park(conn(1), false);
        assert_eq!((members.list(0), members.len(), members.parked(conn(1))), (&[][..], 1, Some(None)));
        members.unpark(conn(1), 0);
        assert_eq!(members.list(0), [conn(1)]);
        assert!(members.remove(conn(1), false));
        assert!(members.add(conn(1), selection("a"), 1));
        assert_eq!((members.groups().count(), members.selection_of(conn(1))), (1, selection("a")));
    }

    #[test]
    fn places_are_kept_while_a_fan_out_is_under_way() {
        let mut members = Members::default();
        for slot in 0..4 {
            assert!(members.add(conn(slot), None, 0));
        }
        assert!(members.remove(conn(1), true));
        assert_eq!(members.list(0), [conn(0), HOLE, conn(2), conn(3)]);
        assert_eq!(members.len(), 3);
        members.close_holes();
        assert_eq!(members.list(0), [conn(0), conn(2), conn(3)]);
        assert!(members.remove(conn(0), false));
        assert_eq!(members.list(0), [conn(3), conn(2)]);
    }
}

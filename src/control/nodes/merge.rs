//! Answers of several nodes put together. Pure.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;
use utoipa::ToSchema;

use super::call::{Part, PresentMember, PresentPart};
use crate::hub::view::RoomView;

/// The name of the node that something comes from; none where there is one node.
pub(crate) type Node = Option<String>;

/// Something of one node.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(crate) struct Of<T> {
    #[serde(flatten)]
    pub(crate) item: T,
    /// The node that it is at, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) node: Node,
}

/// A page of what several nodes have.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Page<T> {
    pub(crate) items: Vec<T>,
    pub(crate) total: usize,
    /// There may be more than `total`: nodes have items in common, and not all of them were looked at.
    pub(crate) is_lower_bound: bool,
    pub(crate) next: Option<String>,
}

/// Puts parts together, in order. What a node may have before another one's items, but did not come to, ends the page: it
/// goes on there. Items with one name are on one page, which may be longer by that.
pub(crate) fn pages<T>(parts: Vec<(Node, Part<T>)>, limit: usize, name: impl Fn(&T) -> &str) -> Page<Of<T>> {
    let total = parts.iter().map(|(_, part)| part.total).sum();
    let upto = parts.iter().filter_map(|(_, part)| part.upto.clone()).min();
    let items = parts
        .into_iter()
        .flat_map(|(node, part)| part.items.into_iter().map(move |item| Of { item, node: node.clone() }));
    let mut items: Vec<Of<T>> = items.filter(|of| upto.as_deref().is_none_or(|upto| name(&of.item) <= upto)).collect();
    items.sort_by(|one, other| (name(&one.item), &one.node).cmp(&(name(&other.item), &other.node)));
    let next = cut(&mut items, limit, |of| name(&of.item)).or(upto.map(String::from));
    Page { items, total, is_lower_bound: false, next }
}

/// Cuts a page, but not between items of one name; where it goes on.
fn cut<T>(items: &mut Vec<T>, limit: usize, name: impl Fn(&T) -> &str) -> Option<String> {
    let last = items.get(limit.checked_sub(1)?).map(|last| name(last).to_owned())?;
    let count = items.iter().take_while(|item| name(item) <= &*last).count();
    let is_cut = count < items.len();
    items.truncate(count);
    is_cut.then_some(last)
}

/// A room, as several nodes have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct RoomAcross {
    #[serde(flatten)]
    pub(crate) room: RoomView,
    /// How many of the members are connected to which node, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) members_by_node: Option<BTreeMap<String, u32>>,
}

impl RoomAcross {
    pub(crate) fn new(node: &Node, room: RoomView) -> RoomAcross {
        let members_by_node = node.clone().map(|node| BTreeMap::from([(node, room.members)]));
        RoomAcross { room, members_by_node }
    }

    /// Adds what another node has of it. Its log is told as the node has it that has come furthest.
    pub(crate) fn with(&mut self, other: RoomAcross) {
        let members = self.room.members.saturating_add(other.room.members);
        if (other.room.seq, other.room.history_events) > (self.room.seq, self.room.history_events) {
            self.room = other.room;
        }
        self.room.members = members;
        if let (Some(here), Some(there)) = (&mut self.members_by_node, other.members_by_node) {
            for (node, members) in there {
                *here.entry(node).or_default() += members;
            }
        }
    }
}

/// Puts parts of lists of rooms together: what nodes have of one room is one item. `total` counts each room once as far as
/// all parts are complete; else it is at least as large as what one node has, and as what is told.
pub(crate) fn rooms(parts: Vec<(Node, Part<RoomView>)>, is_first: bool, limit: usize) -> Page<RoomAcross> {
    let is_complete = is_first && parts.iter().all(|(_, part)| part.upto.is_none());
    let most = parts.iter().map(|(_, part)| part.total).max().unwrap_or(0);
    let upto = parts.iter().filter_map(|(_, part)| part.upto.clone()).min();
    let is_one_node = parts.len() == 1;
    let mut rooms: BTreeMap<String, RoomAcross> = BTreeMap::new();
    for (node, part) in parts {
        for view in part.items.into_iter().filter(|view| upto.as_deref().is_none_or(|upto| *view.room <= *upto)) {
            let name = view.room.clone();
            let room = RoomAcross::new(&node, view);
            match rooms.get_mut(&name) {
                Some(known) => known.with(room),
                None => drop(rooms.insert(name, room)),
            }
        }
    }
    let total = match rooms.len() {
        _ if is_one_node => most,
        told if is_complete => told,
        told => told.max(most),
    };
    let mut items: Vec<RoomAcross> = rooms.into_values().collect();
    let next = cut(&mut items, limit, |item| &item.room.room).or(upto.map(String::from));
    Page { items, total, is_lower_bound: !is_one_node && !is_complete, next }
}

/// Who is in a room, as several nodes have it: each session once, where it joined last.
pub(crate) fn presence(parts: Vec<(Node, PresentPart)>, limit: usize) -> (usize, u64, Vec<Of<PresentMember>>) {
    let (mut count, mut seq) = (0usize, 0);
    let mut members: Vec<Of<PresentMember>> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for (node, part) in parts {
        count += part.count;
        seq = part.seq.max(seq);
        for member in part.members {
            let of = Of { item: member, node: node.clone() };
            match places.get(&of.item.session_id).and_then(|place| members.get_mut(*place)) {
                Some(known) => {
                    count = count.saturating_sub(1);
                    if known.item.joined_ms < of.item.joined_ms {
                        *known = of;
                    }
                }
                None => {
                    places.insert(of.item.session_id.clone(), members.len());
                    members.push(of);
                }
            }
        }
    }
    members.sort_by(|one, other| {
        (one.item.joined_ms, &one.item.client_id).cmp(&(other.item.joined_ms, &other.item.client_id))
    });
    members.truncate(limit);
    (count, seq, members)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(items: &[&'static str], total: usize, upto: Option<&str>) -> Part<&'static str> {
        Part { items: items.to_vec(), total, upto: upto.map(Into::into) }
    }

    fn node(name: &str) -> Node {
        Some(name.to_owned())
    }

    fn told<'a>(page: &'a Page<Of<&'static str>>) -> (Vec<(&'static str, &'a str)>, Option<&'a str>) {
        let items = page.items.iter().map(|of| (of.item, of.node.as_deref().unwrap_or_default()));
        (items.collect(), page.next.as_deref())
    }

    #[test]
    fn pages_of_nodes_are_put_in_order() {
        let parts = vec![(node("n1"), part(&["a", "d"], 2, None)), (node("n2"), part(&["b", "c"], 2, None))];
        let page = pages(parts.clone(), 10, |item| item);
        assert_eq!(told(&page), (vec![("a", "n1"), ("b", "n2"), ("c", "n2"), ("d", "n1")], None));
        assert_eq!(page.total, 4);
        assert_eq!(told(&pages(parts, 3, |item| item)).1, Some("c"));
    }

    #[test]
    fn nothing_is_told_behind_what_a_node_may_have_and_did_not_tell() {
        let parts = vec![(node("n1"), part(&["a", "x"], 9, None)), (node("n2"), part(&["b"], 5, Some("b")))];
        assert_eq!(told(&pages(parts, 10, |item| item)), (vec![("a", "n1"), ("b", "n2")], Some("b")));
        // Walking on reaches everything.
        let parts = vec![(node("n1"), part(&["x"], 9, None)), (node("n2"), part(&["c"], 5, None))];
        assert_eq!(told(&pages(parts, 10, |item| item)), (vec![("c", "n2"), ("x", "n1")], None));
    }

    #[test]
    fn a_walk_with_any_limit_finds_everything_once() {
        let lists: [&[&'static str]; 3] = [&["a", "b", "f", "g"], &["b", "c", "d", "e"], &["h"]];
        for limit in 1..9 {
            let (mut found, mut after) = (Vec::new(), None::<String>);
            loop {
                let part_of = |list: &&[&'static str]| {
                    let behind = list.iter().copied().filter(|name| after.as_deref().is_none_or(|after| *name > after));
                    let items: Vec<&'static str> = behind.take(limit).collect();
                    let listing = crate::hub::view::Listing { items, total: list.len() };
                    Part::new(listing, limit, |item| item)
                };
                let parts = lists.iter().enumerate().map(|(at, list)| (node(&at.to_string()), part_of(list)));
                let page = pages(parts.collect(), limit, |item| item);
                found.extend(page.items.iter().map(|of| of.item));
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
            assert_eq!(found, ["a", "b", "b", "c", "d", "e", "f", "g", "h"], "{limit} at a time");
        }
    }

    fn room(name: &str, members: u32, seq: u64) -> RoomView {
        let (kind, epoch, first_seq, shard) = (String::new(), String::new(), None, 0);
        let (history_events, history_bytes) = (0, 0);
        RoomView { room: name.to_owned(), kind, members, seq, epoch, history_events, history_bytes, first_seq, shard }
    }

    #[test]
    fn a_room_of_several_nodes_is_one_with_all_its_members() {
        let part = |items: &[RoomView], upto: Option<&str>| Part {
            items: items.to_vec(),
            total: items.len(),
            upto: upto.map(Into::into),
        };
        let parts = vec![
            (node("n1"), part(&[room("a", 2, 5), room("c", 1, 1)], None)),
            (node("n2"), part(&[room("a", 3, 7), room("b", 1, 1)], None)),
        ];
        let page = rooms(parts.clone(), true, 10);
        let names: Vec<_> =
            page.items.iter().map(|item| (&*item.room.room, item.room.members, item.room.seq)).collect();
        assert_eq!(names, [("a", 5, 7), ("b", 1, 1), ("c", 1, 1)]);
        assert_eq!((page.total, page.is_lower_bound, page.next), (3, false, None));
        let by_node = page.items[0].members_by_node.clone().expect("told");
        assert_eq!(by_node, BTreeMap::from([("n1".to_owned(), 2), ("n2".to_owned(), 3)]));
        let page = rooms(parts, true, 2);
        assert_eq!((page.items.len(), page.next.as_deref()), (2, Some("b")));
        assert_eq!((page.total, page.is_lower_bound), (3, false), "all of them were looked at");
        let parts = vec![(None, part(&[room("a", 2, 5)], None))];
        assert_eq!(rooms(parts, true, 10).items[0].members_by_node, None);
    }

    #[test]
    fn a_total_that_may_be_larger_says_so() {
        let part = |names: &[&str], total, upto: Option<&str>| Part {
            items: names.iter().map(|name| room(name, 1, 1)).collect(),
            total,
            upto: upto.map(Into::into),
        };
        let told = |parts, is_first| {
            let page = rooms(parts, is_first, 2);
            (page.total, page.is_lower_bound)
        };
        // Each has three rooms: three in all, or six.
        let parts = vec![(node("n1"), part(&["a", "b"], 3, Some("b"))), (node("n2"), part(&["b", "c"], 3, Some("c")))];
        assert_eq!(told(parts, true), (3, true));
        // Behind the first page nobody knows how many there were before it.
        assert_eq!(told(vec![(node("n1"), part(&["x"], 3, None)), (node("n2"), part(&[], 2, None))], false), (3, true));
        let alone = vec![(node("n1"), part(&["a", "b"], 9, Some("b")))];
        assert_eq!(told(alone, true), (9, false), "one node knows its own");
    }

    #[test]
    fn a_session_that_two_nodes_know_is_there_once() {
        let member = |session: &str, joined_ms| PresentMember {
            client_id: format!("{session}-{joined_ms}"),
            user_id: "ann".to_owned(),
            session_id: session.to_owned(),
            metadata: Default::default(),
            joined_ms,
        };
        let part =
            |members: &[PresentMember], seq| PresentPart { count: members.len(), seq, members: members.to_vec() };
        let parts = vec![
            (node("n1"), part(&[member("s", 1), member("t", 4)], 8)),
            (node("n2"), part(&[member("s", 6), member("u", 2)], 9)),
        ];
        let (count, seq, members) = presence(parts.clone(), 10);
        assert_eq!((count, seq), (3, 9));
        let told: Vec<_> = members.iter().map(|of| (&*of.item.client_id, of.node.as_deref())).collect();
        assert_eq!(told, [("u-2", Some("n2")), ("t-4", Some("n1")), ("s-6", Some("n2"))]);
        assert_eq!(presence(parts, 1).2.len(), 1);
    }
}

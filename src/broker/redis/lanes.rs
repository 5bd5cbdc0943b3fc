//! Rooms that wait for a command of a kind to be sent, each to its server, and how many are on their way. Pure.
//!
//! What is on its way has a bound for each server, so that one that is slow holds up no rooms but its own.

use std::collections::VecDeque;

use super::placement::{Routes, ServerId};
use crate::hub::name::RoomName;

/// A lane for each server.
#[derive(Debug)]
pub struct Lanes {
    lanes: Vec<Lane>,
    /// On their way to one server at most.
    sent_max: usize,
}

#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<RoomName>,
    sent: usize,
}

impl Lanes {
    /// Nothing waits. So many may be on their way to one server.
    pub fn new(sent_max: usize) -> Lanes {
        Lanes { lanes: Vec::new(), sent_max }
    }

    fn lane(&mut self, server: ServerId) -> &mut Lane {
        if self.lanes.len() <= server.place() {
            self.lanes.resize_with(server.place() + 1, Lane::default);
        }
        &mut self.lanes[server.place()]
    }

    /// Another waits.
    pub fn push(&mut self, server: ServerId, room: RoomName) {
        self.lane(server).waiting.push_back(room);
    }

    /// The next that may be sent to a server, which is not counted yet.
    pub fn pop(&mut self, server: ServerId) -> Option<RoomName> {
        let sent_max = self.sent_max;
        let lane = self.lane(server);
        if lane.sent < sent_max { lane.waiting.pop_front() } else { None }
    }

    /// What waits is for who has it now.
    pub fn rearrange(&mut self, routes: &Routes) {
        let waiting: Vec<RoomName> = self.lanes.iter_mut().flat_map(|lane| lane.waiting.drain(..)).collect();
        waiting.into_iter().for_each(|room| self.push(routes.of(room.as_str()), room));
    }

    /// What waits is asked whether it still does.
    pub fn retain(&mut self, mut still_waits: impl FnMut(&RoomName) -> bool) {
        self.lanes.iter_mut().for_each(|lane| lane.waiting.retain(&mut still_waits));
    }

    /// So many more are on their way.
    pub fn sent(&mut self, server: ServerId, count: usize) {
        self.lane(server).sent += count;
    }

    /// So many are not on their way any more.
    pub fn done(&mut self, server: ServerId, count: usize) {
        let lane = self.lane(server);
        lane.sent = lane.sent.saturating_sub(count);
    }

    /// Those that wait or are on their way.
    pub fn count(&self) -> usize {
        self.lanes.iter().map(|lane| lane.waiting.len() + lane.sent).sum()
    }

    /// Nothing waits for a server any more, and nothing is on its way there.
    pub fn clear(&mut self, server: ServerId) {
        *self.lane(server) = Lane::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::name::NameHasher;

    #[test]
    fn each_server_has_a_bound_of_its_own() {
        let names = NameHasher::new(1);
        let (one, two) = (ServerId(1), ServerId(2));
        let mut lanes = Lanes::new(100);
        for number in 0..200 {
            lanes.push(one, names.room(&format!("doc:{number}")));
            lanes.push(two, names.room(&format!("doc:{number}")));
        }
        let send = |lanes: &mut Lanes, server: ServerId| {
            let mut sent = 0;
            while lanes.pop(server).is_some() {
                lanes.sent(server, 1);
                sent += 1;
            }
            sent
        };
        assert_eq!((send(&mut lanes, one), send(&mut lanes, two), send(&mut lanes, ServerId(7))), (100, 100, 0));
        lanes.done(two, 98);
        assert_eq!((send(&mut lanes, one), send(&mut lanes, two)), (0, 98));
        assert_eq!(lanes.count(), 100 + 100 + 100 + 2);
        lanes.clear(one);
        assert_eq!((lanes.count(), send(&mut lanes, one)), (102, 0));
        lanes.retain(|name| name.as_str() == "doc:199");
        lanes.done(two, 1000);
        assert_eq!(lanes.pop(two).as_ref().map(RoomName::as_str), Some("doc:199"));
        assert_eq!(lanes.count(), 0);
    }

    #[test]
    fn what_waits_goes_along_with_its_slot() {
        let (one, two) = (ServerId(1), ServerId(2));
        let mut routes = Routes::slots();
        let foo = NameHasher::new(1).room("foo");
        let mut lanes = Lanes::new(100);
        lanes.push(one, foo.clone());
        routes.learn([(0, 16_383, two)].into_iter());
        lanes.rearrange(&routes);
        assert_eq!((lanes.pop(one), lanes.pop(two)), (None, Some(foo)));
    }
}

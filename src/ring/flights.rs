//! What is under way, per connection: a table indexed by slot, and the few leftovers of connections already closed.

use std::collections::hash_map::Entry;

use bytes::Bytes;
use rustc_hash::FxHashMap;

use super::slots::{Owner, Slots};
use super::token::{Operation, Token};
use super::{ConnKey, Socket};

/// Where a connection's multishot receive stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Receive {
    /// Nothing is under way.
    #[default]
    Idle,
    /// The kernel has it.
    Armed,
    /// The kernel has it, and was asked to end it.
    Cancelling,
    /// Ended for want of a buffer; to be started again.
    Starved,
}

/// What is under way for one connection.
#[derive(Debug, Default)]
pub(super) struct Flight {
    pub(super) receive: Receive,
    /// What the kernel still has to take; lives here until the send's completion.
    pub(super) sending: Option<Bytes>,
}

/// All connections of a shard.
#[derive(Debug, Default)]
pub(super) struct Flights {
    slots: Slots<Flight>,
    /// Chunks of closed connections that the kernel has not let go of.
    orphans: FxHashMap<Token, Bytes>,
}

impl Flights {
    /// The slot, taken over by `conn` if that is new here.
    #[inline]
    pub(super) fn open(&mut self, conn: ConnKey, socket: Socket) -> &mut Owner<Flight> {
        self.slots.open(conn, socket)
    }

    /// The slot, if `conn` still owns it.
    #[inline]
    pub(super) fn current(&mut self, conn: ConnKey) -> Option<&mut Owner<Flight>> {
        self.slots.current(conn)
    }

    /// Ends the ownership of a slot. Says whether the kernel still has something of it; a chunk under way is kept for it.
    pub(super) fn close(&mut self, conn: ConnKey) -> bool {
        let Some(flight) = self.slots.close(conn) else { return false };
        let mut under_way = matches!(flight.receive, Receive::Armed | Receive::Cancelling);
        if let Some(chunk) = flight.sending {
            under_way = true;
            match self.orphans.entry(Token::of_connection(Operation::Send, conn)) {
                Entry::Vacant(place) => {
                    place.insert(chunk);
                }
                // The generation came round while a send of 16 million owners ago is still under way: rather lose the
                // memory than free it under the kernel.
                Entry::Occupied(_) => std::mem::forget(chunk),
            }
        }
        under_way
    }

    /// A closed connection's send has ended.
    pub(super) fn drop_orphan(&mut self, token: Token) {
        drop(self.orphans.remove(&token));
    }

    /// Every owner there is.
    pub(super) fn all(&self) -> Vec<(ConnKey, Socket)> {
        self.slots.all()
    }

    /// How many chunks of closed connections are under way.
    #[cfg(test)]
    pub(super) fn orphans(&self) -> usize {
        self.orphans.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: ConnKey = ConnKey { slot: 3, generation: 1 };
    const SECOND: ConnKey = ConnKey { slot: 3, generation: 2 };

    #[test]
    fn a_successor_does_not_see_its_predecessors_chunk() {
        let mut flights = Flights::default();
        flights.open(FIRST, Socket(10)).sending = Some(Bytes::from_static(b"first"));
        assert!(flights.close(FIRST));
        assert_eq!(flights.orphans(), 1);
        assert!(flights.open(SECOND, Socket(11)).sending.is_none());
        assert!(flights.current(FIRST).is_none());
        flights.drop_orphan(Token::of_connection(Operation::Send, FIRST));
        assert_eq!(flights.orphans(), 0);
        assert!(flights.current(SECOND).is_some());
    }

    #[test]
    fn a_connection_that_nothing_is_known_of_can_be_closed() {
        let mut flights = Flights::default();
        assert!(!flights.close(FIRST));
        flights.open(FIRST, Socket(10));
        assert!(!flights.close(SECOND));
        assert_eq!(flights.all(), vec![(FIRST, Socket(10))]);
    }

    #[test]
    fn a_slot_costs_no_more_than_a_cache_line() {
        assert!(size_of::<Owner<Flight>>() <= 64);
    }
}

//! What is under way, per connection: a table indexed by slot, and the few leftovers of connections already closed.

use std::collections::hash_map::Entry;
use std::num::NonZero;

use bytes::Bytes;
use rustc_hash::FxHashMap;
use slab::Slab;

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
    /// Where its chunk under way is; most connections have none most of the time, and spend no more than this on it.
    chunk: Option<Place>,
}

/// A place among the chunks under way, from 1.
type Place = NonZero<u32>;

/// All connections of a shard.
#[derive(Debug, Default)]
pub(super) struct Flights {
    slots: Slots<Flight>,
    /// What the kernel still has to take; lives here until the send's completion.
    chunks: Slab<Bytes>,
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

    /// Has a chunk under way, which lives until [`Flights::sent`], or [`Flights::drop_orphan`] where it is closed before.
    #[inline]
    pub(super) fn send(&mut self, conn: ConnKey, socket: Socket, chunk: Bytes) {
        let flight = self.slots.open(conn, socket);
        debug_assert!(flight.chunk.is_none(), "two sends at once");
        // There are no more of them than connections.
        let place = u32::try_from(self.chunks.insert(chunk) + 1).ok().and_then(Place::new);
        let before = std::mem::replace(&mut flight.chunk, place);
        if let Some(under_way) = before.and_then(|place| self.chunks.try_remove(index(place))) {
            // A mistake of the caller must not free memory under the kernel.
            std::mem::forget(under_way);
        }
    }

    /// What is left of a connection's chunk under way, and the socket that it goes to.
    #[inline]
    pub(super) fn sending(&mut self, conn: ConnKey) -> Option<(Socket, &mut Bytes)> {
        let flight = self.slots.current(conn)?;
        Some((flight.socket, self.chunks.get_mut(index(flight.chunk?))?))
    }

    /// A connection's chunk is not under way any more.
    #[inline]
    pub(super) fn sent(&mut self, conn: ConnKey) {
        let place = self.slots.current(conn).and_then(|flight| flight.chunk.take());
        drop(place.and_then(|place| self.chunks.try_remove(index(place))));
    }

    /// Ends the ownership of a slot. Says whether the kernel still has something of it; a chunk under way is kept for it.
    pub(super) fn close(&mut self, conn: ConnKey) -> bool {
        let Some(flight) = self.slots.close(conn) else { return false };
        let mut under_way = matches!(flight.receive, Receive::Armed | Receive::Cancelling);
        if let Some(chunk) = flight.chunk.and_then(|place| self.chunks.try_remove(index(place))) {
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

fn index(place: Place) -> usize {
    place.get() as usize - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: ConnKey = ConnKey { slot: 3, generation: 1 };
    const SECOND: ConnKey = ConnKey { slot: 3, generation: 2 };

    #[test]
    fn a_successor_does_not_see_its_predecessors_chunk() {
        let mut flights = Flights::default();
        flights.send(FIRST, Socket(10), Bytes::from_static(b"first"));
        assert!(flights.close(FIRST));
        assert_eq!(flights.orphans(), 1);
        flights.open(SECOND, Socket(11));
        assert_eq!(flights.sending(SECOND), None);
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
    fn a_chunk_lives_until_it_is_sent_or_an_orphan_ends() {
        let mut flights = Flights::default();
        let chunk = Bytes::from(vec![b'1'; 10]);
        flights.send(FIRST, Socket(10), chunk.clone());
        let (socket, rest) = flights.sending(FIRST).expect("under way");
        assert_eq!((socket, rest.len()), (Socket(10), 10));
        assert!(!chunk.is_unique());
        flights.sent(FIRST);
        assert_eq!(flights.sending(FIRST), None);
        assert!(chunk.is_unique(), "nothing holds it after it was sent");
        flights.send(FIRST, Socket(10), chunk.clone());
        assert!(flights.close(FIRST));
        assert!(!chunk.is_unique(), "the kernel may still read it");
        flights.drop_orphan(Token::of_connection(Operation::Send, FIRST));
        assert!(chunk.is_unique());
    }

    #[test]
    fn a_slot_is_small() {
        assert!(size_of::<Owner<Flight>>() <= 16);
    }
}

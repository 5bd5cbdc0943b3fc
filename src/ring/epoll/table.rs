//! What the driver knows of each connection: a table indexed by slot.

use bytes::Bytes;

use super::super::token::GENERATION_MASK;
use super::super::{ConnKey, Socket};

/// No connection has this generation, as only 24 bits of it are used.
const NOBODY: u32 = u32::MAX;

/// Where a connection's receive stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Receive {
    /// Nobody asks.
    Idle,
    /// What arrives is wanted.
    Armed,
    /// What has arrived is wanted, and then the end.
    Cancelling,
}

/// What the kernel is asked to tell of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Watched {
    /// Nothing: it is not in the epoll set.
    No,
    /// That something has arrived.
    Receiving,
    /// That, and that there is room to send again.
    Both,
}

/// One slot's owner.
#[derive(Debug)]
pub(super) struct Owner {
    generation: u32,
    pub(super) socket: Socket,
    pub(super) watched: Watched,
    pub(super) receive: Receive,
    /// The kernel said that there is something, and did not say yet that this is all. It says so once.
    pub(super) is_readable: bool,
    /// The peer has ended or the socket has failed: less than was asked for is not all then.
    pub(super) has_ended: bool,
    /// Stands among those that are read next.
    pub(super) is_due: bool,
    /// Found no buffer.
    pub(super) is_starved: bool,
    /// The kernel takes nothing more for now.
    pub(super) is_blocked: bool,
    /// What it still has to take.
    pub(super) sending: Option<Bytes>,
}

impl Owner {
    fn nobody() -> Owner {
        Owner {
            generation: NOBODY,
            socket: Socket::NONE,
            watched: Watched::No,
            receive: Receive::Idle,
            is_readable: false,
            has_ended: false,
            is_due: false,
            is_starved: false,
            is_blocked: false,
            sending: None,
        }
    }
}

/// All connections of a shard.
#[derive(Debug, Default)]
pub(super) struct Table {
    slots: Vec<Owner>,
}

impl Table {
    /// The slot, taken over by `conn` if that is new here.
    #[inline]
    pub(super) fn open(&mut self, conn: ConnKey, socket: Socket) -> &mut Owner {
        let slot = conn.slot as usize;
        if slot >= self.slots.len() {
            self.slots.resize_with(slot + 1, Owner::nobody);
        }
        let owner = &mut self.slots[slot];
        let generation = conn.generation & GENERATION_MASK;
        if owner.generation != generation {
            debug_assert_eq!(owner.generation, NOBODY, "the slot's last owner was neither closed nor detached");
            *owner = Owner { generation, socket, ..Owner::nobody() };
        }
        owner
    }

    /// The slot, if `conn` still owns it.
    #[inline]
    pub(super) fn current(&mut self, conn: ConnKey) -> Option<&mut Owner> {
        self.slots.get_mut(conn.slot as usize).filter(|owner| owner.generation == conn.generation & GENERATION_MASK)
    }

    /// Ends the ownership of a slot.
    pub(super) fn close(&mut self, conn: ConnKey) -> Option<Owner> {
        self.current(conn).map(|owner| std::mem::replace(owner, Owner::nobody()))
    }

    /// Every owner there is.
    pub(super) fn all(&self) -> Vec<(ConnKey, Socket)> {
        let owned = |(slot, owner): (usize, &Owner)| {
            let conn = ConnKey { slot: slot as u32, generation: owner.generation };
            (owner.generation != NOBODY).then_some((conn, owner.socket))
        };
        self.slots.iter().enumerate().filter_map(owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: ConnKey = ConnKey { slot: 3, generation: 1 };
    const SECOND: ConnKey = ConnKey { slot: 3, generation: 2 };

    #[test]
    fn a_successor_has_nothing_of_its_predecessor() {
        let mut table = Table::default();
        let first = table.open(FIRST, Socket(10));
        (first.is_readable, first.watched, first.sending) = (true, Watched::Both, Some(Bytes::from_static(b"first")));
        assert!(table.current(SECOND).is_none());
        let closed = table.close(FIRST).unwrap();
        assert_eq!((closed.watched, closed.sending.as_deref()), (Watched::Both, Some(&b"first"[..])));
        assert!(table.close(FIRST).is_none());
        let second = table.open(SECOND, Socket(11));
        assert!(!second.is_readable && second.watched == Watched::No && second.sending.is_none());
        assert!(table.current(FIRST).is_none());
        assert_eq!(table.all(), vec![(SECOND, Socket(11))]);
    }

    #[test]
    fn a_slot_costs_no_more_than_a_cache_line() {
        assert!(size_of::<Owner>() <= 64);
    }
}

//! What a driver knows of each connection: a table indexed by slot, whose owners change.

use std::ops::{Deref, DerefMut};

use super::token::GENERATION_MASK;
use super::{ConnKey, Socket};

/// No connection has this generation, as only 24 bits of it are used.
const NOBODY: u32 = u32::MAX;

/// A slot's owner, and what the driver has to know of it.
#[derive(Debug)]
pub(super) struct Owner<T> {
    generation: u32,
    pub(super) socket: Socket,
    state: T,
}

/// All connections of a shard.
#[derive(Debug, Default)]
pub(super) struct Slots<T> {
    slots: Vec<Owner<T>>,
}

impl<T: Default> Slots<T> {
    /// The slot, taken over by `conn` if that is new here.
    #[inline]
    pub(super) fn open(&mut self, conn: ConnKey, socket: Socket) -> &mut Owner<T> {
        let slot = conn.slot as usize;
        if slot >= self.slots.len() {
            self.slots.resize_with(slot + 1, Owner::nobody);
        }
        let owner = &mut self.slots[slot];
        let generation = conn.generation & GENERATION_MASK;
        if owner.generation != generation {
            debug_assert_eq!(owner.generation, NOBODY, "the slot's last owner was neither closed nor detached");
            *owner = Owner { generation, socket, state: T::default() };
        }
        owner
    }

    /// The slot, if `conn` still owns it.
    #[inline]
    pub(super) fn current(&mut self, conn: ConnKey) -> Option<&mut Owner<T>> {
        self.slots.get_mut(conn.slot as usize).filter(|owner| owner.generation == conn.generation & GENERATION_MASK)
    }

    /// Ends the ownership of a slot.
    pub(super) fn close(&mut self, conn: ConnKey) -> Option<T> {
        self.current(conn).map(|owner| std::mem::replace(owner, Owner::nobody()).state)
    }

    /// Every owner there is.
    pub(super) fn all(&self) -> Vec<(ConnKey, Socket)> {
        let owned = |(slot, owner): (usize, &Owner<T>)| {
            let conn = ConnKey { slot: slot as u32, generation: owner.generation };
            (owner.generation != NOBODY).then_some((conn, owner.socket))
        };
        self.slots.iter().enumerate().filter_map(owned).collect()
    }
}

impl<T: Default> Owner<T> {
    fn nobody() -> Owner<T> {
        Owner { generation: NOBODY, socket: Socket::NONE, state: T::default() }
    }
}

impl<T> Deref for Owner<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.state
    }
}

impl<T> DerefMut for Owner<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: ConnKey = ConnKey { slot: 3, generation: 1 };
    const SECOND: ConnKey = ConnKey { slot: 3, generation: 2 };

    #[test]
    fn a_successor_has_nothing_of_its_predecessor() {
        let mut slots: Slots<Option<&str>> = Slots::default();
        **slots.open(FIRST, Socket(10)) = Some("first");
        assert!(slots.current(SECOND).is_none());
        assert_eq!(slots.close(FIRST), Some(Some("first")));
        assert_eq!(slots.close(FIRST), None);
        let second = slots.open(SECOND, Socket(11));
        assert_eq!((**second, second.socket), (None, Socket(11)));
        assert!(slots.current(FIRST).is_none());
        assert_eq!(slots.all(), [(SECOND, Socket(11))]);
    }

    #[test]
    fn who_owns_a_slot_already_keeps_what_is_known_of_it() {
        let mut slots: Slots<u8> = Slots::default();
        **slots.open(FIRST, Socket(10)) = 7;
        assert_eq!(**slots.open(FIRST, Socket(10)), 7);
        assert_eq!(slots.close(SECOND), None, "nothing is known of that one");
        assert_eq!(slots.all(), [(FIRST, Socket(10))]);
    }
}

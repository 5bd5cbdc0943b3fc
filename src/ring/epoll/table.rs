//! What the driver on epoll knows of each connection.

use bytes::Bytes;

use super::super::slots::Slots;

/// All connections of a shard.
pub(super) type Table = Slots<Connection>;

/// Where a connection's receive stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Receive {
    /// Nobody asks.
    #[default]
    Idle,
    /// What arrives is wanted.
    Armed,
    /// What has arrived is wanted, and then the end.
    Cancelling,
}

/// What the kernel is asked to tell of a socket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Watched {
    /// Nothing: it is not in the epoll set.
    #[default]
    No,
    /// That something has arrived.
    Receiving,
    /// That, and that there is room to send again.
    Both,
}

/// What is known of one connection.
#[derive(Debug, Default)]
pub(super) struct Connection {
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

#[cfg(test)]
mod tests {
    use super::super::super::slots::Owner;
    use super::*;

    #[test]
    fn a_slot_costs_no_more_than_a_cache_line() {
        assert!(size_of::<Owner<Connection>>() <= 64);
    }
}

//! What a shard is home to besides rooms: client ids (each held by one connection), users (each with a bounded number of
//! connections) and network addresses (each with a bounded number and rate of connections).

use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::batch::Address;
use super::message::ClaimRefused;
use crate::ring::Now;
use crate::session::limits::TokenBucket;

/// The directories of a shard.
#[derive(Debug)]
pub struct Directory {
    clients: HashMap<Arc<str>, Address, FixedState>,
    users: HashMap<Arc<str>, u32, FixedState>,
    peers: HashMap<IpAddr, Peer, FixedState>,
    swept_us: u64,
}

#[derive(Debug)]
struct Peer {
    connections: u32,
    rate: TokenBucket,
}

/// What may come from one network address; 0 is no limit.
#[derive(Debug, Clone, Copy)]
pub struct PeerLimits {
    /// Connections at a time.
    pub connections_max: u32,
    /// New connections per second; twice as many may come at once.
    pub connects_per_s: u32,
}

impl Directory {
    /// Empty directories, hashed with the node's seed.
    pub fn new(seed: u64) -> Directory {
        let state = FixedState::with_seed(seed);
        Directory {
            clients: HashMap::with_hasher(state.clone()),
            users: HashMap::with_hasher(state.clone()),
            peers: HashMap::with_hasher(state),
            swept_us: 0,
        }
    }

    /// Reserves a client id.
    pub fn claim_client(&mut self, client_id: Arc<str>, address: Address) -> Result<(), ClaimRefused> {
        match self.clients.entry(client_id) {
            hashbrown::hash_map::Entry::Occupied(_) => Err(ClaimRefused::Taken),
            hashbrown::hash_map::Entry::Vacant(place) => {
                place.insert(address);
                Ok(())
            }
        }
    }

    /// Frees a client id, if that connection has it.
    pub fn release_client(&mut self, client_id: &str, address: Address) {
        if self.clients.get(client_id) == Some(&address) {
            self.clients.remove(client_id);
            if self.clients.len() * 8 < self.clients.capacity() && self.clients.capacity() > 1024 {
                self.clients.shrink_to(self.clients.len() * 2);
            }
        }
    }

    /// Who has a client id.
    pub fn client(&self, client_id: &str) -> Option<Address> {
        self.clients.get(client_id).copied()
    }

    /// Counts one more connection of a user; `connections_max` 0 is no limit.
    pub fn claim_user(&mut self, user_id: Arc<str>, connections_max: u32) -> Result<(), ClaimRefused> {
        let count = self.users.entry(user_id).or_insert(0);
        if connections_max > 0 && *count >= connections_max {
            return Err(ClaimRefused::UserConnections);
        }
        *count += 1;
        Ok(())
    }

    /// Counts one connection less of a user.
    pub fn release_user(&mut self, user_id: &str) {
        if let Some(count) = self.users.get_mut(user_id) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.users.remove(user_id);
                if self.users.len() * 8 < self.users.capacity() && self.users.capacity() > 1024 {
                    self.users.shrink_to(self.users.len() * 2);
                }
            }
        }
    }

    /// Counts one more connection from an address.
    pub fn claim_peer(&mut self, peer: IpAddr, limits: PeerLimits, now: Now) -> Result<(), ClaimRefused> {
        self.sweep(limits, now);
        let entry = self.peers.entry(peer).or_insert_with(|| Peer {
            connections: 0,
            rate: TokenBucket::full(limits.connects_per_s.saturating_mul(2), now),
        });
        if limits.connections_max > 0 && entry.connections >= limits.connections_max {
            return Err(ClaimRefused::PeerConnections);
        }
        if limits.connects_per_s > 0 {
            let burst = limits.connects_per_s.saturating_mul(2);
            entry
                .rate
                .take(limits.connects_per_s, burst, now)
                .map_err(|retry_after_ms| ClaimRefused::PeerRate { retry_after_ms })?;
        }
        entry.connections += 1;
        Ok(())
    }

    /// Counts one connection less from an address.
    pub fn release_peer(&mut self, peer: IpAddr, limits: PeerLimits) {
        if let Some(entry) = self.peers.get_mut(&peer) {
            entry.connections = entry.connections.saturating_sub(1);
            // Without a rate there is nothing to remember; with one, `sweep` forgets the entry once its bucket is full.
            if entry.connections == 0 && limits.connects_per_s == 0 {
                self.peers.remove(&peer);
            }
        }
    }

    /// Forgets addresses without connections whose rate has recovered, once every two seconds at most: so long takes an
    /// empty bucket to fill, and so many addresses as can connect in that time is what the table may hold beyond need.
    fn sweep(&mut self, limits: PeerLimits, now: Now) {
        if now.monotonic_us.saturating_sub(self.swept_us) < 2_000_000 {
            return;
        }
        self.swept_us = now.monotonic_us;
        let burst = limits.connects_per_s.saturating_mul(2);
        self.peers.retain(|_, peer| peer.connections > 0 || !peer.rate.is_full(limits.connects_per_s, burst, now));
    }

    /// Client ids, users and addresses held.
    pub fn len(&self) -> (usize, usize, usize) {
        (self.clients.len(), self.users.len(), self.peers.len())
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == (0, 0, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::name::ShardId;
    use super::*;
    use crate::ring::ConnKey;

    fn address(slot: u32) -> Address {
        Address { shard: ShardId(0), conn: ConnKey { slot, generation: 0 } }
    }

    fn at(ms: u64) -> Now {
        Now { monotonic_us: ms * 1000, unix_ms: ms }
    }

    #[test]
    fn a_client_id_is_held_by_one_connection() {
        let mut directory = Directory::new(1);
        assert_eq!(directory.claim_client("a".into(), address(1)), Ok(()));
        assert_eq!(directory.claim_client("a".into(), address(2)), Err(ClaimRefused::Taken));
        directory.release_client("a", address(2));
        assert_eq!(directory.client("a"), Some(address(1)), "only its holder frees it");
        directory.release_client("a", address(1));
        assert_eq!(directory.claim_client("a".into(), address(2)), Ok(()));
    }

    #[test]
    fn users_are_bounded_in_number_and_forgotten() {
        let mut directory = Directory::new(1);
        assert_eq!(directory.claim_user("alice".into(), 2), Ok(()));
        assert_eq!(directory.claim_user("alice".into(), 2), Ok(()));
        assert_eq!(directory.claim_user("alice".into(), 2), Err(ClaimRefused::UserConnections));
        assert_eq!(directory.claim_user("alice".into(), 0), Ok(()), "0 is no limit");
        for _ in 0..3 {
            directory.release_user("alice");
        }
        assert!(directory.is_empty());
    }

    #[test]
    fn addresses_are_bounded_in_number_and_rate_and_forgotten() {
        let mut directory = Directory::new(1);
        let limits = PeerLimits { connections_max: 3, connects_per_s: 2 };
        let peer: IpAddr = [127, 0, 0, 1].into();
        for _ in 0..3 {
            assert_eq!(directory.claim_peer(peer, limits, at(0)), Ok(()));
        }
        assert_eq!(directory.claim_peer(peer, limits, at(0)), Err(ClaimRefused::PeerConnections));
        directory.release_peer(peer, limits);
        assert_eq!(directory.claim_peer(peer, limits, at(0)), Ok(()));
        directory.release_peer(peer, limits);
        assert_eq!(directory.claim_peer(peer, limits, at(0)), Err(ClaimRefused::PeerRate { retry_after_ms: 500 }));
        assert_eq!(directory.claim_peer(peer, limits, at(500)), Ok(()));
        for _ in 0..3 {
            directory.release_peer(peer, limits);
        }
        let other: IpAddr = [127, 0, 0, 2].into();
        assert_eq!(directory.claim_peer(other, limits, at(9000)), Ok(()));
        assert_eq!(directory.len(), (0, 0, 1), "an address without connections is forgotten");
    }
}

//! What a shard is home to besides rooms: client ids (each held by one connection), users (each with a bounded number of
//! connections) and network addresses (each with a bounded number and rate of connections).

use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::FixedState;
use hashbrown::{HashMap, HashTable};

use super::batch::Address;
use super::message::ClaimRefused;
use crate::ring::Now;
use crate::session::ClientId;
use crate::session::limits::TokenBucket;

/// The directories of a shard.
#[derive(Debug)]
pub struct Directory {
    clients: Clients,
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
            clients: Clients { held: Vec::new(), places: HashTable::new(), state: state.clone() },
            users: HashMap::with_hasher(state.clone()),
            peers: HashMap::with_hasher(state),
            swept_us: 0,
        }
    }

    /// Reserves a client id.
    pub fn claim_client(&mut self, client_id: ClientId, address: Address) -> Result<(), ClaimRefused> {
        if self.clients.claim(client_id, address) { Ok(()) } else { Err(ClaimRefused::Taken) }
    }

    /// Frees a client id, if that connection has it.
    pub fn release_client(&mut self, client_id: &str, address: Address) {
        self.clients.release(client_id, address);
    }

    /// Who has a client id.
    pub fn client(&self, client_id: &str) -> Option<Address> {
        self.clients.get(client_id)
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
        (self.clients.held.len(), self.users.len(), self.peers.len())
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == (0, 0, 0)
    }
}

/// Who has which client id. Every connection has an entry, so that these stand close together, and the table, of which up to
/// half is free, has only their places.
#[derive(Debug)]
struct Clients {
    held: Vec<Held>,
    places: HashTable<u32>,
    state: FixedState,
}

#[derive(Debug)]
struct Held {
    client_id: ClientId,
    address: Address,
}

impl Clients {
    fn get(&self, client_id: &str) -> Option<Address> {
        let place = self.places.find(self.state.hash_one(client_id), |place| is_at(&self.held, *place, client_id))?;
        self.held.get(*place as usize).map(|held| held.address)
    }

    /// False where somebody has it already.
    fn claim(&mut self, client_id: ClientId, address: Address) -> bool {
        if self.get(&client_id).is_some() {
            return false;
        }
        let Clients { held, places, state } = self;
        places.insert_unique(state.hash_one(&*client_id), held.len() as u32, |place| hash_at(held, state, *place));
        held.push(Held { client_id, address });
        true
    }

    /// Nothing happens where another one has it.
    fn release(&mut self, client_id: &str, address: Address) {
        if self.get(client_id) != Some(address) {
            return;
        }
        let Clients { held, places, state } = self;
        let is_it = |place: &u32| is_at(held, *place, client_id);
        let Ok(entry) = places.find_entry(state.hash_one(client_id), is_it) else { return };
        let (place, _) = entry.remove();
        held.swap_remove(place as usize);
        // The last one has taken its place.
        let last = held.len() as u32;
        if let Some(place_of_last) = places.find_mut(hash_at(held, state, place), |place| *place == last) {
            *place_of_last = place;
        }
        if held.len() * 8 < held.capacity() && held.capacity() > 1024 {
            held.shrink_to(held.len() * 2);
            places.shrink_to(held.len() * 2, |place| hash_at(held, state, *place));
        }
    }
}

fn is_at(held: &[Held], place: u32, client_id: &str) -> bool {
    held.get(place as usize).is_some_and(|held| held.client_id == client_id)
}

fn hash_at(held: &[Held], state: &FixedState, place: u32) -> u64 {
    held.get(place as usize).map_or(0, |held| state.hash_one(&*held.client_id))
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
    fn client_ids_are_found_by_whoever_has_them_while_others_come_and_go() {
        let mut directory = Directory::new(2);
        let mut held = std::collections::HashMap::new();
        let mut random = fastrand::Rng::with_seed(7);
        for step in 0..20_000u32 {
            // A crowd comes, and most of it leaves again.
            let id =
                format!("client-{}-of-those-that-are-there", random.u32(0..if step < 10_000 { 6000 } else { 500 }));
            let is_new = !held.contains_key(&id);
            assert_eq!(directory.claim_client(id.as_str().into(), address(step)).is_ok(), is_new);
            held.entry(id.clone()).or_insert(step);
            assert_eq!(directory.client(&id), held.get(&id).map(|slot| address(*slot)));
            let leaves = if step < 10_000 { random.u32(0..3) == 0 } else { true };
            if let Some(gone) = held.keys().next().cloned().filter(|_| leaves) {
                directory.release_client(&gone, address(held[&gone] + 1));
                assert!(directory.client(&gone).is_some(), "only its holder frees it");
                directory.release_client(&gone, address(held[&gone]));
                held.remove(&gone);
                assert_eq!(directory.client(&gone), None);
            }
            assert_eq!(directory.len().0, held.len());
        }
        for (id, slot) in &held {
            assert_eq!(directory.client(id), Some(address(*slot)));
        }
        for (id, slot) in held {
            directory.release_client(&id, address(slot));
        }
        assert!(directory.is_empty());
        assert!(
            directory.clients.held.capacity() <= 1024 && directory.clients.places.capacity() <= 2048,
            "memory is given back"
        );
    }

    #[test]
    fn an_entry_is_small() {
        assert!(size_of::<Held>() <= 40, "every connection has one");
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

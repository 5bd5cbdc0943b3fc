//! Which primaries a cluster has, and which rooms go from one to another.
//!
//! It is asked now and then, more often while something is not as it should be, and at once where a server says that it does
//! not have what it was asked for. Those that are reached are asked, and where none of them serves its slots, those that are
//! configured. A server without slots is forgotten; its place in the list may be another's later.

use super::super::connection::{LinkError, gather};
use super::super::placement::{NOBODY, ServerId};
use super::super::server::{self, Link, Server};
use super::super::slots::{Address, Topology, agreed, slot_of};
use super::super::submissions::NO_LINK;
use super::rooms::{RoomLanes, Subscription};
use super::{What, Worker};
use crate::hub::brokered::FromBroker;

/// How often it is asked who has which slots while all is well.
const LEARN_MS: u64 = 5000;
/// How often while a primary is not reached.
const LEARN_SOON_MS: u64 = 500;
/// How often at most.
const LEARN_MIN_MS: u64 = 50;
/// How long a topology counts that is no older than another, which nobody knows any more: as of a cluster that began anew.
const HOLDS_MS: u64 = 2 * LEARN_MS;
/// How many servers are asked at a time.
const ASKED_MAX: usize = 8;

/// When a cluster is asked who has which slots.
#[derive(Debug, Default)]
pub(super) struct Learning {
    is_asked: bool,
    /// When it was asked last, and is to be asked next.
    asked_ms: u64,
    next_ms: u64,
    /// The epoch of the topology that counts, and when it was told last.
    epoch: u64,
    told_ms: u64,
    /// That it could not be asked was told, and that has not changed.
    was_told: bool,
}

/// What a cluster told.
pub(super) struct Learned {
    /// What the one told that knows best; none where none of them serves its slots.
    pub(super) best: Result<Option<Topology>, LinkError>,
    /// Those that are reached and don't serve their slots, and which link it was.
    not_serving: Vec<(ServerId, u64)>,
}

impl Learning {
    /// When it is to be asked.
    pub(super) fn next_ms(&self) -> Option<u64> {
        (!self.is_asked).then_some(self.next_ms)
    }

    fn soon(&mut self) {
        self.next_ms = self.next_ms.min(self.asked_ms + LEARN_MIN_MS);
    }

    /// Whether a topology counts: an earlier one does not, unless nobody knows better for a while.
    fn counts(&mut self, topology: &Topology, now_ms: u64) -> bool {
        let does = topology.epoch >= self.epoch || self.told_ms + HOLDS_MS <= now_ms;
        if does {
            (self.epoch, self.told_ms) = (topology.epoch, now_ms);
        }
        does
    }
}

impl Worker {
    /// What is known of the cluster does not hold any more.
    pub(super) fn learn_soon(&mut self) {
        if let Some(learning) = &mut self.learning {
            learning.soon();
        }
    }

    pub(super) fn look_at_cluster(&mut self, now_ms: u64) {
        let next_ms = self.learning.as_ref().and_then(Learning::next_ms);
        if next_ms.is_some_and(|next_ms| next_ms <= now_ms) {
            self.learn(now_ms);
        }
    }

    /// Asks the cluster.
    pub(super) fn learn(&mut self, now_ms: u64) {
        let is_well = self.servers.iter().skip(1).any(Server::is_up) && !self.servers.iter().any(Server::has_failed);
        let Some(learning) = &mut self.learning else { return };
        let wait_ms = if is_well { LEARN_MS } else { LEARN_SOON_MS };
        (learning.is_asked, learning.asked_ms, learning.next_ms) = (true, now_ms, now_ms + wait_ms);
        let Some(cluster) = self.servers.first().map(|nobody| nobody.target.clone()) else { return };
        let mut asked: Vec<_> = (0..)
            .zip(&self.servers)
            .filter_map(|(place, server)| match (&server.link, &server.address) {
                (Link::Up(up), Some(address)) => {
                    let link = (ServerId(place), server.generation);
                    Some((link, address.clone(), up.connections.publish.clone()))
                }
                _ => None,
            })
            .collect();
        fastrand::shuffle(&mut asked);
        asked.truncate(ASKED_MAX);
        // One that is silent holds up nobody for long.
        let patience = std::time::Duration::from_millis(self.bounds.timeout_ms / 2);
        self.spawn(NOBODY, async move {
            let answers = asked.into_iter().map(|(link, address, connection)| async move {
                let answer = tokio::time::timeout(patience, connection.topology(&address.host)).await;
                Some((link, address, answer.ok()?.ok()?))
            });
            let told = gather(answers, |told| told.as_ref().is_some_and(|(.., told)| told.is_ok)).await;
            let told = told.into_iter().flatten();
            let mut not_serving = Vec::new();
            let mut views = Vec::new();
            for (link, address, told) in told {
                if !told.is_ok {
                    not_serving.push(link);
                }
                views.push((Some(address), told));
            }
            let best = match agreed(views) {
                Some(best) => {
                    cluster.heard(&best);
                    Ok(Some(best))
                }
                None => cluster.ask().await,
            };
            let best = match best {
                Ok(Some(best)) if best.ranges.is_empty() => Err(LinkError::NoAddress),
                best => best,
            };
            What::Learned(Box::new(Learned { best, not_serving }))
        });
    }

    /// The cluster has told, or not.
    pub(super) fn learned(&mut self, learned: Learned) {
        let (topology, error) = match learned.best {
            Ok(Some(topology)) => (Some(topology), None),
            Ok(None) => (None, Some(LinkError::NotServing)),
            Err(error) => (None, Some(error)),
        };
        if let Some(learning) = &mut self.learning {
            learning.is_asked = false;
            let was_told = std::mem::replace(&mut learning.was_told, error.is_some());
            if let Some((error, nobody)) = error.as_ref().zip(self.servers.first()) {
                server::complain(&nobody.name, error, !was_told);
            }
        }
        let now_ms = self.now_ms();
        if let Some(topology) = topology
            && self.learning.as_mut().is_some_and(|learning| learning.counts(&topology, now_ms))
        {
            self.rearrange(&topology);
        }
        // Who is parted from the others hears nothing of what they say.
        for (id, generation) in learned.not_serving {
            if self.servers.get(id.place()).is_some_and(|server| server.is_up() && server.generation == generation) {
                self.end_link(id, &LinkError::NotServing);
            }
        }
    }

    /// Takes who has which slots: links to those that are new, none to those that have nothing any more, and all rooms where
    /// they are now.
    fn rearrange(&mut self, topology: &Topology) {
        let mut begun = Vec::new();
        let mut ranges = Vec::with_capacity(topology.ranges.len());
        for (first, last, address) in &topology.ranges {
            if let Some(id) = self.place_of(address, &mut begun) {
                ranges.push((*first, *last, id));
            }
        }
        if !self.routes.learn(ranges.iter().copied()) {
            return;
        }
        let slots = self.routes.unowned();
        if slots > 0 {
            tracing::warn!(
                slots,
                "the cluster does not tell who has some of its slots: publishes to their rooms are refused"
            );
        }
        // Before the link ends to one that has nothing any more: what waits for it goes on at others that are there.
        self.move_rooms();
        let now_ms = self.now_ms();
        for id in self.ids().skip(1) {
            let Some(address) = self.servers.get(id.place()).and_then(|server| server.address.clone()) else {
                continue;
            };
            if !ranges.iter().any(|(.., owner)| *owner == id) {
                tracing::info!(server = %address, "a server of the cluster has no slots any more");
                self.let_go(id);
            } else if begun.contains(&id) {
                self.begin_primary(id, address);
            } else {
                self.look_at_canary(id, now_ms);
            }
        }
    }

    /// The place of a primary in the list, which may be one that nobody has, or a new one. None where it can't be connected
    /// to.
    fn place_of(&mut self, address: &Address, begun: &mut Vec<ServerId>) -> Option<ServerId> {
        let known = self.servers.iter().position(|server| server.address.as_ref() == Some(address));
        if let Some(known) = known {
            return u16::try_from(known).ok().map(ServerId);
        }
        let cluster = self.servers.first()?.target.clone();
        cluster.primary(address, 0)?;
        let is_free = |server: &Server| server.address.is_none();
        let place = self.servers.iter().skip(1).position(is_free).map_or(self.servers.len(), |place| place + 1);
        let id = ServerId(u16::try_from(place).ok()?);
        if place == self.servers.len() {
            self.servers.push(Server::nobody(cluster));
        }
        self.servers.get_mut(place)?.address = Some(address.clone());
        begun.push(id);
        Some(id)
    }

    fn begin_primary(&mut self, id: ServerId, address: Address) {
        let canary = self.canary_of(id);
        let Some(target) = self.servers.first().and_then(|nobody| nobody.target.primary(&address, canary)) else {
            return;
        };
        if let Some(server) = self.servers.get_mut(id.place()) {
            // What is reported of whoever had the place means nothing.
            *server = Server::primary(target.into(), address, canary, server.generation + 1);
            self.begin_link(id);
        }
    }

    /// A server has no slots any more.
    fn let_go(&mut self, id: ServerId) {
        if let Some(server) = self.servers.get_mut(id.place()) {
            server.set_down(self.start.elapsed().as_millis() as u64);
            (server.link, server.address) = (Link::Unwanted, None);
        }
        self.forget(id);
    }

    /// Has a server's canary be one that has a slot of it.
    fn look_at_canary(&mut self, id: ServerId, now_ms: u64) {
        let Some(canary) = self.servers.get(id.place()).map(|server| server.canary) else { return };
        if !self.routes.has(id, slot_of(self.scripts.canary_channel(canary).as_bytes())) {
            let canary = self.canary_of(id);
            if let Some(server) = self.servers.get_mut(id.place()) {
                server.set_canary(canary, now_ms);
            }
        }
    }

    fn canary_of(&self, id: ServerId) -> u32 {
        self.scripts.canary_within(|slot| self.routes.has(id, slot))
    }

    /// Has all rooms be with the servers that have them now. What was asked of the former ones means nothing any more.
    fn move_rooms(&mut self) {
        let moved: Vec<Box<str>> = self
            .rooms
            .iter()
            .filter(|(name, room)| self.routes.of(name) != room.server)
            .map(|(name, _)| name.clone())
            .collect();
        self.submissions.rearrange(&self.routes);
        if moved.is_empty() {
            return;
        }
        tracing::info!(rooms = moved.len(), "rooms have gone to other servers of the cluster");
        let RoomLanes { subscribing, unsubscribing, reading } = &mut self.lanes;
        for lanes in [subscribing, unsubscribing, reading] {
            let stays = |name: &str| self.rooms.get(name).is_some_and(|room| self.routes.of(name) == room.server);
            lanes.retain(|name| stays(name.as_str()));
        }
        for name in moved {
            let Some(room) = self.rooms.get_mut(&name) else { continue };
            let Some(tracker) = &mut room.tracker else {
                self.rooms.remove(&name);
                continue;
            };
            // What was said meanwhile was said elsewhere.
            tracker.give_up();
            room.server = self.routes.of(&name);
            (room.subscription, room.is_queued) = (Subscription::None, false);
            room.want(&self.routes, &mut self.lanes);
            if !self.routes.is_up(room.server) && std::mem::take(&mut room.is_asked) {
                let (shard, room) = (room.shard, room.name.clone());
                self.tell(shard, FromBroker::Followed { room, outcome: Err(NO_LINK) }, 0);
            }
        }
    }
}

//! An event's way from a publisher to the shards that want it: it is given its number at its room's home, is put behind the
//! others of the turn, and goes out with them as one batch.

use std::sync::Arc;

use bytes::Bytes;

use super::batch::{Address, Batch};
use super::core::Core;
use super::message::{Message, OVERLOADED, Publish, Published, ReplyTo};
use super::name::RoomName;
use super::rooms::{Home, RoomId};
use crate::ring::Now;
use crate::wire::envelope::Event;
use crate::wire::native::Refused;

/// The largest batch that is kept open while an earlier one of the same room is still being fanned out.
const OPEN_BATCH_BYTES_MAX: usize = 256 * 1024;
/// A batch is not made larger than this, whatever a turn brings: its offsets have 32 bits.
pub(super) const BATCH_BYTES_MAX: usize = 64 << 20;

impl Core {
    pub(super) fn publish(&mut self, publish: Publish, now: Now) {
        self.now = now;
        if self.is_relaying() {
            return self.publish_relayed(publish);
        }
        self.received_us = publish.received_us;
        let id = self.ensure_home(&publish.room);
        if let Some(id) = id
            && self.home_mut(id).is_some_and(|home| home.is_durable())
        {
            // Answered when the journal has it, or at once where it is refused.
            drop(self.publish_durable(id, publish));
            return;
        }
        let Publish { room, kind, data, key, exclude, reply, .. } = publish;
        let outcome = match id {
            Some(id) => self.publish_at(id, &room, &kind, &data, key.as_deref(), exclude),
            None => Err(OVERLOADED),
        };
        self.answer(reply, room, outcome);
    }

    /// Gives an event of a room homed here its number and puts it behind the turn's others. Nobody is told what becomes of
    /// it in the journal or at the broker; it has no number yet where the latter gives it.
    pub fn publish_here(
        &mut self,
        room: &RoomName,
        kind: &str,
        data: &[u8],
        key: Option<&str>,
        exclude: Option<Address>,
        now: Now,
    ) -> Result<Published, Refused> {
        self.now = now;
        if self.is_relaying() {
            self.say_relayed(room.clone(), kind, Bytes::copy_from_slice(data), None);
            return Ok(Published {
                id: [0; 36],
                seq: 0,
                epoch: 0,
                duplicate: false,
                delivered: 0,
                queued: 0,
                nodes: 0,
            });
        }
        let id = self.ensure_home(room).ok_or(OVERLOADED)?;
        if self.home_mut(id).is_some_and(|home| home.is_durable()) {
            let (room, data) = (room.clone(), Bytes::copy_from_slice(data));
            let (kind, key, reply) = (kind.into(), key.map(Into::into), ReplyTo::Nobody);
            let received_us = now.monotonic_us;
            return self.publish_durable(id, Publish { room, kind, data, key, exclude, received_us, reply });
        }
        self.publish_at(id, room, kind, data, key, exclude)
    }

    pub(super) fn publish_at(
        &mut self,
        id: RoomId,
        room: &RoomName,
        kind: &str,
        data: &[u8],
        key: Option<&str>,
        exclude: Option<Address>,
    ) -> Result<Published, Refused> {
        let now = self.now;
        let received_us = match std::mem::take(&mut self.received_us) {
            0 => now.monotonic_us,
            received_us => received_us,
        };
        if let Some(key) = key
            && let Some(keys) = self.home_mut(id).and_then(Home::keys_mut)
            && let Some(published) = keys.find(key, now.unix_ms)
        {
            self.figures.duplicates += 1;
            return Ok(Published { duplicate: true, ..published });
        }
        if self.home_mut(id).is_some_and(|home| home.open_bytes() >= BATCH_BYTES_MAX) {
            self.seal(id);
        }
        let stamp = self.ids.stamp(now.unix_ms);
        let home = self.home_mut(id).ok_or(OVERLOADED)?;
        home.seq += 1;
        let (seq, epoch) = (home.seq, home.epoch);
        let (delivered, queued) = home.audience();
        let published = Published { id: stamp.id, seq, epoch, duplicate: false, delivered, queued, nodes: 0 };
        if let Some(key) = key {
            let seed = home.epoch;
            home.keys_from(seed).remember(key, published, now.unix_ms);
        }
        let rules = home.rules;
        self.recorder.published(&stamp.id, kind, room.hash(), seq, received_us, exclude);
        if delivered > 0 || self.rules.log(rules).events_max > 0 {
            let key = key.map_or(0, |key| self.hasher.hash(key) | 1);
            let home = self.home_mut(id).ok_or(OVERLOADED)?;
            let first = !home.has_open();
            let event = Event { room: room.as_str(), kind, seq, data };
            let open = home.contents().open.get_or_insert_default();
            open.push(&stamp, &event, exclude, key);
            if first {
                open.received_us = received_us;
                self.unsealed.push(id);
            }
        } else {
            self.rooms.forget_if_idle(id);
        }
        self.figures.publishes += 1;
        self.kind_publishes.add(rules);
        Ok(published)
    }

    // ---- from open batches to deliveries ----

    /// Seals what was published since; to be called once per turn. A room that is still being fanned out keeps gathering,
    /// so that a fan-out slower than its publishers makes larger batches instead of a longer queue.
    pub fn seal_all(&mut self) {
        let mut kept = 0;
        for at in 0..self.unsealed.len() {
            let Some(&id) = self.unsealed.get(at) else { break };
            let gathering = self.rooms.get(id).is_some_and(|room| {
                room.jobs > 0 && room.home.as_ref().is_some_and(|home| home.open_bytes() < OPEN_BATCH_BYTES_MAX)
            });
            if gathering {
                if let Some(place) = self.unsealed.get_mut(kept) {
                    *place = id;
                }
                kept += 1;
            } else {
                self.dispatch(id);
            }
        }
        self.unsealed.truncate(kept);
    }

    /// Seals one room's batch at once, because its members are about to change.
    pub(super) fn seal(&mut self, id: RoomId) {
        if self.home_mut(id).is_some_and(|home| home.has_open()) {
            self.unsealed.retain(|one| *one != id);
            self.dispatch(id);
        }
    }

    pub(super) fn dispatch(&mut self, id: RoomId) {
        let Some(room) = self.rooms.get_mut(id) else { return };
        let Some(home) = room.home.as_deref_mut() else { return };
        let unix_ms = self.now.unix_ms;
        let Some(open) = home.take_open() else { return };
        let batch = Arc::new(open.seal(room.name.clone(), &self.memory, unix_ms));
        if home.is_durable() {
            return self.hand_to_journal(id, batch);
        }
        self.send_out(id, batch);
    }

    /// Puts a batch into its room's log and on its way to the members.
    pub(super) fn send_out(&mut self, id: RoomId, batch: Arc<Batch>) {
        let Some(room) = self.rooms.get_mut(id) else { return };
        let Some(home) = room.home.as_deref_mut() else { return };
        let mut here = false;
        for shard in home.members.shards() {
            if shard == self.me {
                here = true;
            } else if let Some(queue) = self.outgoing.get_mut(usize::from(shard.0)) {
                self.figures.mesh_sent += 1;
                queue.push(Message::Deliver(batch.clone()));
            }
        }
        self.keep(id, &batch);
        if !here {
            self.rooms.forget_if_idle(id);
        } else if self.local.is_empty() {
            self.begin_fan_out(id, batch);
        } else {
            // Some who are members for this home may still have to hear of it, and are not in the list yet.
            self.local.push_back(Message::Deliver(batch));
        }
    }
}

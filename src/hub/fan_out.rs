//! A batch's way to the members of its room on this shard: spread over several turns where they are many, so that nobody
//! else waits for long.

use std::sync::Arc;

use bytes::Bytes;

use super::batch::{Address, Batch};
use super::core::Core;
use super::members::{HOLE, ListId};
use super::message::RoomState;
use super::name::RoomName;
use super::outbox::Lane;
use super::recorder::{Mark, Noted};
use super::rooms::RoomId;
use super::selection::Selection;
use crate::config::Policy;
use crate::ring::ConnKey;

/// A batch on its way to a list of members.
pub(super) struct Job {
    room: RoomId,
    list: ListId,
    batch: Arc<Batch>,
    at: usize,
    end: usize,
    noted: Noted,
}

impl Core {
    /// Begins to fan a batch out to this shard's members.
    pub fn deliver(&mut self, batch: Arc<Batch>) {
        if let Some(id) = self.rooms.find(&batch.room) {
            self.begin_fan_out(id, batch);
        }
    }

    pub(super) fn begin_fan_out(&mut self, id: RoomId, batch: Arc<Batch>) {
        let Some(room) = self.rooms.get_mut(id) else { return };
        room.note_given(batch.events.last().map_or(0, |event| event.seq));
        let batch = match room.members.bases() {
            None => batch,
            Some(bases) => {
                let deltas = bases.compare(&batch, &self.memory);
                Arc::new(batch.with_deltas(deltas))
            }
        };
        for (list, selection, end) in room.members.groups() {
            let selected = batch.select(selection, &mut self.scratch, &self.memory);
            let noted = self.recorder.fan_out(&batch, Mark::of(Some(selection)), selected.as_deref());
            if let Some(selected) = selected {
                self.jobs.push_back(Job { room: id, list, batch: selected, at: 0, end, noted });
                room.jobs += 1;
            }
        }
        let end = room.members.list(0).len();
        if end > 0 {
            let noted = self.recorder.fan_out(&batch, Mark::EVERYTHING, Some(&batch));
            self.jobs.push_back(Job { room: id, list: 0, batch, at: 0, end, noted });
            room.jobs += 1;
        }
    }

    /// How many deliveries the events of this turn will make, on all shards.
    pub fn deliveries_open(&self) -> usize {
        let homes = self.unsealed.iter().filter_map(|id| self.rooms.get(*id)?.home.as_deref());
        homes.map(|home| home.members_total() as usize).sum()
    }

    /// How many deliveries the fan-outs under way have in all, those already made included: the end of a large one is as
    /// large as its beginning.
    pub fn deliveries_under_way(&self) -> usize {
        self.jobs.iter().map(|job| job.end).sum()
    }

    /// Whether deliveries wait.
    pub fn has_deliveries(&self) -> bool {
        !self.jobs.is_empty()
    }

    /// Hands out the next deliveries, at most `budget`: to this connection, these bytes, in this lane.
    pub fn fan_out(&mut self, budget: usize, mut deliver: impl FnMut(ConnKey, &Bytes, Lane, RoomId, &Batch)) {
        let mut left = budget;
        while left > 0 {
            let Some(job) = self.jobs.front_mut() else { return };
            let Some(room) = self.rooms.get_mut(job.room) else {
                self.jobs.pop_front();
                continue;
            };
            let to = job.end.min(job.at + left);
            let lane = self.rules.lane(room.name.as_str());
            let members = room.members.list(job.list).get(job.at..to).unwrap_or_default();
            for conn in members {
                if *conn == HOLE {
                    continue;
                }
                if job.batch.has_exclusions() {
                    let frames = job.batch.frames_for(Address { shard: self.me, conn: *conn }, &self.memory);
                    if !frames.is_empty() {
                        deliver(*conn, &frames, lane, job.room, &job.batch);
                    }
                } else {
                    deliver(*conn, &job.batch.bytes, lane, job.room, &job.batch);
                }
            }
            self.figures.deliveries += (members.len() * job.batch.events.len()) as u64;
            left -= to - job.at;
            job.at = to;
            if job.at < job.end {
                return;
            }
            let id = job.room;
            self.recorder.fan_out_ended(job.noted);
            self.jobs.pop_front();
            room.jobs -= 1;
            if room.jobs == 0 {
                room.members.close_holes();
                self.rooms.forget_if_idle(id);
            }
        }
    }

    /// Hands one member what the fan-outs under way still have for it, because it is about to lose its place in the list.
    pub fn fan_out_rest(&mut self, id: RoomId, conn: ConnKey, mut deliver: impl FnMut(&Bytes, &Batch)) {
        let Some(room) = self.rooms.get(id).filter(|room| room.jobs > 0) else { return };
        let Some((list, _, place)) = room.members.find(conn) else { return };
        for job in self.jobs.iter().filter(|job| job.room == id && job.list == list) {
            if !(job.at..job.end).contains(&place) {
                continue;
            }
            let frames = job.batch.frames_for(Address { shard: self.me, conn }, &self.memory);
            if !frames.is_empty() {
                deliver(&frames, &job.batch);
            }
            self.figures.deliveries += job.batch.events.len() as u64;
        }
    }

    /// The last event before those that fan-outs under way still have for a member; none where they have nothing.
    pub fn given_up_to(&self, id: RoomId, conn: ConnKey) -> Option<u64> {
        let room = self.rooms.get(id).filter(|room| room.jobs > 0)?;
        let (list, _, place) = room.members.find(conn)?;
        let mut rest = self.jobs.iter().filter(|job| job.room == id && job.list == list);
        let job = rest.find(|job| (job.at..job.end).contains(&place))?;
        job.batch.events.first().map(|event| event.seq.saturating_sub(1))
    }

    /// Whether a connection is a member with that very selection, and has been given all that came so far.
    pub fn is_settled_with(&self, id: RoomId, conn: ConnKey, selection: Option<&Arc<Selection>>) -> bool {
        let found = self.rooms.get(id).filter(|room| room.jobs == 0).and_then(|room| room.members.find(conn));
        found.is_some_and(|(_, present, _)| present == selection)
    }

    /// Closes the holes of a list that has hardly anything else, under the fan-outs that go through it.
    fn compact(&mut self, id: RoomId) {
        let Some((list, moved)) = self.rooms.get_mut(id).and_then(|room| room.members.compact_sparse()) else { return };
        for job in self.jobs.iter_mut().filter(|job| job.room == id && job.list == list) {
            // Places a job has noted are within the list, whose end is the last entry.
            let end = moved.last().copied().unwrap_or(0);
            job.at = moved.get(job.at).copied().unwrap_or(end);
            job.end = moved.get(job.end).copied().unwrap_or(end);
        }
    }

    /// Makes a connection of this shard a member, after its join was granted. Where it is one already, its selection is
    /// replaced and the home is told that it counts once. False where the room has too many different selections here.
    pub fn add_member(&mut self, room: &RoomName, conn: ConnKey, selection: Option<Arc<Selection>>) -> Option<RoomId> {
        let id = self.rooms.ensure(room);
        let selections_max = self.limits.selections_max;
        let place = self.rooms.get_mut(id)?;
        if place.members.add(conn, selection, selections_max) {
            return Some(id);
        }
        self.rooms.forget_if_idle(id);
        None
    }

    /// A room's home has counted a new member, which gets what comes after its last event.
    pub fn joined(&mut self, id: RoomId, state: &RoomState) {
        if let Some(room) = self.rooms.get_mut(id) {
            room.note_given(state.seq);
            room.note_epoch(state.epoch);
        }
    }

    /// A room's log is another one from here on, of which this shard's members have nothing.
    pub fn renewed(&mut self, id: RoomId, epoch: u64) {
        if let Some(room) = self.rooms.get_mut(id) {
            room.note_epoch(epoch);
        }
    }

    /// The last event that a member was given, or chose not to be given; none where that is not known. One that lags is not
    /// looked at.
    pub fn reached(&self, id: RoomId, conn: ConnKey) -> Option<u64> {
        self.given_up_to(id, conn).or_else(|| self.rooms.get(id)?.given_seq())
    }

    /// The last event that this shard's members were given, those that lag apart; none where that is not known.
    pub fn given_last(&self, id: RoomId) -> Option<u64> {
        self.rooms.get(id)?.given_seq()
    }

    /// Whether events of a room can be read once more.
    pub fn keeps_log(&self, id: RoomId) -> bool {
        let rules = self.rooms.get(id).map(|room| self.rules.place(room.name.as_str()));
        rules.is_some_and(|rules| self.rules.log(rules).events_max > 0)
    }

    /// What happens to a member of a room who reads too slowly.
    pub fn policy_of(&self, id: RoomId) -> Policy {
        let rules = self.rooms.get(id).map(|room| self.rules.place(room.name.as_str()));
        rules.map_or(Policy::CatchUp, |rules| self.rules.policy(rules))
    }

    /// Takes a slow reader out of the fan-out; it stays a member.
    pub fn park(&mut self, id: RoomId, conn: ConnKey) {
        if let Some(room) = self.rooms.get_mut(id) {
            let keep_places = room.jobs > 0;
            room.members.park(conn, keep_places);
            if keep_places {
                self.compact(id);
            }
        }
    }

    /// A member of a room wants its events as changes, from here on.
    pub fn want_deltas(&mut self, id: RoomId) {
        if let Some(room) = self.rooms.get_mut(id) {
            room.members.want_deltas();
        }
    }

    /// Puts a reader that has caught up back into the fan-out.
    pub fn unpark(&mut self, id: RoomId, conn: ConnKey) {
        let selections_max = self.limits.selections_max;
        if let Some(room) = self.rooms.get_mut(id) {
            room.members.unpark(conn, selections_max);
        }
    }

    /// What a slow reader wants of the room it is parked in; none where it is not.
    pub fn parked(&self, id: RoomId, conn: ConnKey) -> Option<Option<Arc<Selection>>> {
        self.rooms.get(id)?.members.parked(conn)
    }

    /// What a member wants of a room.
    pub fn selection_of(&self, id: RoomId, conn: ConnKey) -> Option<Arc<Selection>> {
        self.rooms.get(id)?.members.selection_of(conn)
    }

    /// What stands in the recorder for what a member wants of a room.
    pub fn mark_of(&self, id: RoomId, conn: ConnKey) -> Mark {
        Mark::of(self.selection_of(id, conn).as_ref())
    }

    /// Takes a connection out of a room on this shard; the home is not told by this.
    pub fn remove_member(&mut self, id: RoomId, conn: ConnKey) -> bool {
        let Some(room) = self.rooms.get_mut(id) else { return false };
        let keep_places = room.jobs > 0;
        let removed = room.members.remove(conn, keep_places);
        if keep_places {
            self.compact(id);
        }
        self.rooms.forget_if_idle(id);
        removed
    }
}

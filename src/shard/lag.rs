//! Slow readers. A connection whose outbox is full is taken out of the room's fan-out and reads on from the room's log
//! when it has read what it had: its home answers through the queue that brings live events too, so that what it is given
//! and what comes live meet without gap or repeat. Meanwhile it costs the others nothing.

use std::sync::Arc;

use bytes::Bytes;

use super::connection::{Lag, LagWaits, Phase};
use super::state::State;
use super::variants::{self, Variants};
use crate::config::Policy;
use crate::hub::batch::{Address, Batch};
use crate::hub::core::epoch_text;
use crate::hub::message::{CatchUp, CaughtUp, HistoryTold, Message, Piece, Ticket};
use crate::hub::name::RoomName;
use crate::hub::outbox::{Full, Lane};
use crate::hub::recorder::What;
use crate::hub::relayed::BEFORE_ALL;
use crate::hub::rooms::RoomId;
use crate::ring::ConnKey;
use crate::wire::codes::ErrorCode;
use crate::wire::envelope::{self, write_gap};
use crate::wire::native::Refused;

impl State {
    /// Connections could not take a batch of a room; with each the last event before it.
    pub fn fell_behind(&mut self, slow: &[(ConnKey, RoomId, u64)]) {
        let mut closed = Vec::new();
        for (conn, room, after_seq) in slow {
            // Who is being let in has had no time to read.
            if self.core.policy_of(*room) == Policy::Disconnect && self.client_mut(*conn).is_some() {
                self.note_lag(*conn, *room, *after_seq, LagWaits::Outbox);
                closed.push(*conn);
            } else {
                self.reads_on(*conn, *room, *after_seq);
            }
        }
        // One may be too slow for several rooms: where it would go on in each, should it come back, is noted before.
        closed.into_iter().for_each(|conn| self.close_slow(conn));
    }

    fn reads_on(&mut self, conn: ConnKey, room: RoomId, after_seq: u64) {
        self.lag_begins(conn, room, after_seq, LagWaits::Outbox, false);
        // Where the shard's memory is full, a connection may be put off that has nothing to wait for.
        if self.connections.get(conn).is_some_and(|connection| connection.outbox.is_empty()) {
            self.ask_to_catch_up(conn);
        }
    }

    /// `is_replay` where it was asked for, and nothing that came live was held back.
    pub(super) fn lag_begins(&mut self, conn: ConnKey, room: RoomId, after_seq: u64, waits: LagWaits, is_replay: bool) {
        if self.note_lag(conn, room, after_seq, waits) {
            self.core.park(room, conn);
            if !is_replay {
                self.figures.slow_readers.add(1);
            }
            if let Some(room) = self.core.rooms().get(room).map(|room| room.name.clone()) {
                self.core.recorder.change(conn, What::FellBehind { room, after_seq, is_replay });
            }
        }
    }

    /// False where it lags in that room already: a batch behind the one that did not fit changes nothing, it is read from the
    /// log as well.
    pub(super) fn note_lag(&mut self, conn: ConnKey, room: RoomId, after_seq: u64, waits: LagWaits) -> bool {
        let Some(lags) = self.lags_mut(conn) else { return false };
        let is_new = !lags.iter().any(|lag| lag.room == room);
        if is_new {
            lags.push(Lag { room, after_seq, waits });
            if let Some(connection) = self.connections.get_mut(conn) {
                connection.outbox.note_lag(true);
            }
        }
        is_new
    }

    /// Where a connection lags, be it open or still being let in.
    fn lags_mut(&mut self, conn: ConnKey) -> Option<&mut Vec<Lag>> {
        match self.connections.get_mut(conn).map(|connection| &mut connection.phase) {
            Some(Phase::Open(client)) => Some(&mut client.under_way().lags),
            Some(Phase::Admission(admission)) => Some(&mut admission.behind),
            _ => None,
        }
    }

    /// Asks a home for what the connection missed: one room at a time, urgent ones before others, and of these the one that
    /// has waited for the longest first.
    pub fn ask_to_catch_up(&mut self, conn: ConnKey) {
        self.ask_in(conn, &[Lane::Urgent, Lane::Ordinary]);
    }

    /// Something was sent, and more waits: urgent rooms go on as soon as nothing urgent is left, whatever else there is.
    pub fn ask_for_urgent(&mut self, conn: ConnKey) {
        let outbox = self.connections.get(conn).map(|connection| &connection.outbox);
        if outbox.is_some_and(|outbox| !outbox.waits_in(Lane::Urgent)) {
            self.ask_in(conn, &[Lane::Urgent]);
        }
    }

    fn ask_in(&mut self, conn: ConnKey, lanes: &[Lane]) {
        if self.waits_for_memory(conn) {
            return;
        }
        let (address, number) = (self.address(conn), self.catch_ups + 1);
        let outbox_bytes_max = self.settings.config.limits.outbox_bytes_max;
        let State { core, connections, .. } = self;
        let Some(connection) = connections.get_mut(conn) else { return };
        let bytes_max = outbox_bytes_max.saturating_sub(connection.outbox.queued_bytes()).min(outbox_bytes_max / 2);
        let Phase::Open(client) = &mut connection.phase else { return };
        let Some(under_way) = client.under_way.as_mut() else { return };
        let lags = &mut under_way.lags;
        if lags.iter().any(|lag| matches!(lag.waits, LagWaits::Home(_))) {
            return;
        }
        let place = lanes
            .iter()
            .find_map(|lane| lags.iter().position(|lag| lag.waits == LagWaits::Outbox && core.lane(lag.room) == *lane));
        let Some(place) = place else { return };
        // To the end, so that a busy room which is never caught up with does not keep the others waiting.
        let lag = lags.remove(place);
        let (id, after_seq) = (lag.room, lag.after_seq);
        lags.push(Lag { waits: LagWaits::Home(number), ..lag });
        self.catch_ups = number;
        let Some(room) = self.core.rooms().get(id).map(|room| room.name.clone()) else { return };
        let selection = self.core.parked(id, conn).flatten();
        let ask = CatchUp { room: room.clone(), address, number, after_seq, selection, bytes_max };
        self.core.send_home(&room, Message::CatchUp(Box::new(ask)));
    }

    /// A room's log is another one from here on, or lacks what would have come next: its members go on as slow readers do,
    /// from the last event that they have; their home tells them what is missing.
    pub fn renewed(&mut self, room: &RoomName, epoch: u64, after_seq: u64) {
        let Some(id) = self.core.rooms().find(room) else { return };
        let members: Vec<ConnKey> =
            self.core.rooms().get(id).map(|room| room.members.iter().collect()).unwrap_or_default();
        let is_another = after_seq == BEFORE_ALL;
        for conn in members {
            // What has its number already goes first.
            let rest_after = self.deliver_rest(id, conn).filter(|_| !is_another);
            let lags = self.lags_mut(conn).into_iter().flatten();
            for lag in lags.filter(|lag| lag.room == id) {
                if let LagWaits::AnswerOnly(part) = lag.waits {
                    lag.waits = LagWaits::Answer(part);
                }
                if !is_another {
                    continue;
                }
                lag.after_seq = BEFORE_ALL;
                if matches!(lag.waits, LagWaits::Home(_)) {
                    // The answer is about the log that is gone.
                    lag.waits = LagWaits::Outbox;
                }
            }
            if let Some(client) = self.client_mut(conn).filter(|_| is_another) {
                client.forget_ack(id);
            }
            self.lag_begins(conn, id, rest_after.unwrap_or(after_seq), LagWaits::Outbox, false);
            self.go_on(conn);
        }
        self.core.renewed(id, epoch);
    }

    /// What a connection missed, or a part of it.
    pub fn caught_up(&mut self, caught_up: CaughtUp) {
        let CaughtUp { room, address, number, pieces, to_seq, complete } = caught_up;
        let conn = address.conn;
        let waits = LagWaits::Home(number);
        let id = self.core.rooms().find(&room);
        let Some(id) = id.filter(|id| self.lag_mut(conn, *id).is_some_and(|lag| lag.waits == waits)) else {
            // It left the room meanwhile, or began anew; its other rooms may have waited for this answer.
            return self.go_on(conn);
        };
        let lane = self.core.lane(id);
        let after_seq = self.lag_mut(conn, id).map_or(to_seq, |lag| lag.after_seq);
        let mut reached = to_seq;
        let mut fitted = true;
        let mut before = None;
        let (mut given, mut bytes, mut given_after) = (Vec::new(), 0, after_seq);
        for piece in &pieces {
            let (first_seq, pushed) = match piece {
                Piece::Events(batch) => {
                    let frames = batch.frames_for(address, self.core.memory());
                    let pushed = self.push_batch(conn, lane, id, batch, &frames);
                    if pushed.is_ok() {
                        given.push(batch);
                        bytes += frames.len();
                    }
                    (batch.events.first().map_or(1, |event| event.seq), pushed)
                }
                Piece::Gap { from_seq, to_seq, reason, epoch } => {
                    let numbers = (*from_seq, *to_seq);
                    let pushed = self.push_gap(conn, lane, (room.as_str(), id), numbers, (reason, *epoch));
                    if pushed.is_ok() {
                        if epoch.is_none() {
                            // What is in the gap is told of by the gap: it was not left out since it was not wanted.
                            let events = events_for(address, &given);
                            self.core.recorder.given(conn, &room, given_after, *from_seq - 1, events, bytes);
                        }
                        given.clear();
                        (bytes, given_after) = (0, *to_seq);
                    }
                    // That the log is another one has to be told first, and is asked for again.
                    (if epoch.is_some() { after_seq } else { *from_seq }, pushed)
                }
            };
            if pushed.is_err() {
                reached = before.unwrap_or(if first_seq == BEFORE_ALL { BEFORE_ALL } else { first_seq - 1 });
                fitted = false;
                break;
            }
            before = Some(piece.last_seq());
        }
        self.core.recorder.given(conn, &room, given_after, reached, events_for(address, &given), bytes);
        let Some(lag) = self.lag_mut(conn, id) else { return };
        lag.after_seq = reached;
        lag.waits = LagWaits::Outbox;
        if complete && fitted {
            if let Some(client) = self.client_mut(conn) {
                client.forget_lag(id);
            }
            self.core.unpark(id, conn);
            self.caught_up_for_deltas(conn, id);
            self.core.recorder.change(conn, What::CaughtUp { room, to_seq: reached });
        }
        self.go_on(conn);
    }

    /// Asks for the next part where nothing is to be sent, and so nothing will report that it was.
    pub(super) fn go_on(&mut self, conn: ConnKey) {
        if self
            .connections
            .get(conn)
            .is_some_and(|connection| connection.outbox.events_bytes() == 0 && !connection.outbox.is_sending())
        {
            self.ask_to_catch_up(conn);
        }
    }

    /// Holds a room's events back until a command with several parts is answered. Those that come before the live ones are
    /// read from the log then, from the first on that is there, or all `after` one; and so are those that come live
    /// meanwhile, behind the room's event `joined_seq`. A room without a log can't hold them back, and does not.
    pub fn hold_replay(
        &mut self,
        conn: ConnKey,
        room: RoomId,
        batches: &[Arc<Batch>],
        (after, joined_seq): (Option<u64>, u64),
        part: u32,
    ) {
        let first = batches.first().and_then(|batch| batch.events.first());
        if let Some(after_seq) = after.or(first.map(|event| event.seq.saturating_sub(1))) {
            self.lag_begins(conn, room, after_seq, LagWaits::Answer(part), true);
        } else if self.core.keeps_log(room) {
            self.lag_begins(conn, room, joined_seq, LagWaits::AnswerOnly(part), true);
        }
    }

    /// Queues the events that come before the live ones.
    pub fn replay(&mut self, conn: ConnKey, room: RoomId, batches: &[Arc<Batch>], to_seq: u64) {
        let (address, lane) = (self.address(conn), self.core.lane(room));
        let Some(first_seq) = batches.first().and_then(|batch| batch.events.first()).map(|event| event.seq) else {
            return;
        };
        let (mut given, mut bytes, mut stopped_at) = (Vec::new(), 0, None);
        for batch in batches {
            let first_seq = batch.events.first().map_or(1, |event| event.seq);
            let frames = batch.frames_for(address, self.core.memory());
            if self.push_batch(conn, lane, room, batch, &frames).is_err() {
                stopped_at = Some(first_seq - 1);
                break;
            }
            given.push(batch);
            bytes += frames.len();
            self.figures.replayed.add(batch.events.len() as u64);
        }
        if let Some(name) = self.core.rooms().get(room).map(|room| room.name.clone()) {
            let to_seq = stopped_at.unwrap_or(to_seq);
            self.core.recorder.given(conn, &name, first_seq - 1, to_seq, events_for(address, &given), bytes);
        }
        if let Some(after_seq) = stopped_at {
            self.lag_begins(conn, room, after_seq, LagWaits::Outbox, true);
        }
    }

    /// The answer that replays were held back for was sent.
    pub fn release_lags(&mut self, conn: ConnKey, part: u32) {
        let State { core, connections, .. } = self;
        let Some(Phase::Open(client)) = connections.get_mut(conn).map(|connection| &mut connection.phase) else {
            return;
        };
        let Some(under_way) = client.under_way.as_mut() else { return };
        let lags = &mut under_way.lags;
        let has_missed_nothing =
            |lag: &mut Lag| lag.waits == LagWaits::AnswerOnly(part) && core.given_last(lag.room) == Some(lag.after_seq);
        let even: Vec<Lag> = lags.extract_if(.., has_missed_nothing).collect();
        for lag in lags {
            if [LagWaits::Answer(part), LagWaits::AnswerOnly(part)].contains(&lag.waits) {
                lag.waits = LagWaits::Outbox;
            }
        }
        client.tidy();
        for Lag { room: id, after_seq, .. } in even {
            self.core.unpark(id, conn);
            self.caught_up_for_deltas(conn, id);
            if let Some(room) = self.core.rooms().get(id).map(|room| room.name.clone()) {
                self.core.recorder.change(conn, What::CaughtUp { room, to_seq: after_seq });
            }
        }
        self.ask_to_catch_up(conn);
    }

    /// The answer to `history` or `presence`, which may be long: it goes the way of events, not of answers.
    pub fn history_told(&mut self, told: HistoryTold) {
        let HistoryTold { address, ticket, kind, body } = told;
        let Ticket::Single(reference) = ticket else { return };
        let stamp = self.core.ids().stamp(self.now.unix_ms);
        let Some(connection) = self.connections.get_mut(address.conn) else { return };
        if !connection.wants_answer(reference.as_ref()) && connection.socketio.is_some() {
            return;
        }
        envelope::begin(&mut self.payload, kind, &stamp, connection.shown(reference.as_ref()));
        self.payload.extend_from_slice(&body);
        self.core.recorder.told(address.conn, kind, &self.payload, true);
        let mut frame = Vec::new();
        connection.finish_message(&self.settings, &mut self.payload, kind, reference.as_ref(), None, Some(&mut frame));
        let frame = self.core.memory().share(self.deflating.chunk(&connection.outbox, frame));
        if self.push_events(address.conn, Lane::Ordinary, &frame).is_err() {
            let message = "too much waits for this connection already; read, then ask again";
            self.refuse_command(address.conn, reference.as_ref(), &Refused::new(ErrorCode::Unavailable, message));
        }
    }

    fn push_gap(
        &mut self,
        conn: ConnKey,
        lane: Lane,
        (room, id): (&str, RoomId),
        (from_seq, to_seq): (u64, u64),
        (reason, epoch): (&'static str, Option<u64>),
    ) -> Result<(), Full> {
        let stamp = self.core.ids().stamp(self.now.unix_ms);
        envelope::begin(&mut self.payload, "gap", &stamp, None);
        let another = epoch.map(epoch_text);
        write_gap(&mut self.payload, room, (Some(from_seq), Some(to_seq)), reason, another.as_deref());
        self.core.recorder.told(conn, "gap", &self.payload, true);
        if self.is_stream(conn) {
            self.payload.push(b'}');
            self.push_stream_gap(conn, id, to_seq, epoch)?;
            self.figures.gaps.add(1);
            return Ok(());
        }
        let mut frame = Vec::new();
        if let Some(connection) = self.connections.get_mut(conn) {
            connection.finish_message(&self.settings, &mut self.payload, "gap", None, Some(id), Some(&mut frame));
        }
        // Among the events, since it tells what is missing between them.
        let frame = self.core.memory().share(frame);
        self.push_events(conn, lane, &frame)?;
        self.figures.gaps.add(1);
        let room = self.core.hasher().room(room);
        self.core.recorder.change(conn, What::Gap { room, from_seq, to_seq, reason });
        Ok(())
    }

    /// Queues a batch whose frames for this connection are given, in the form it takes.
    fn push_batch(
        &mut self,
        conn: ConnKey,
        lane: Lane,
        room: RoomId,
        batch: &Batch,
        frames: &Bytes,
    ) -> Result<(), Full> {
        let deflates = self.connections.get(conn).is_some_and(|connection| connection.outbox.deflate_bits() > 0);
        if !self.is_encoded_for(conn) && !deflates {
            return self.push_events(conn, lane, frames);
        }
        let way = (lane, self.outbox_bytes_max(lane));
        let State { connections, dirty, settings, variant_memory, me, deflating, .. } = self;
        let memory_bytes_max = settings.config.limits.outbox_shard_bytes_max;
        let mut variants = Variants::new(*me, settings.namespaces(), variant_memory, memory_bytes_max, deflating);
        let Some(connection) = connections.get_mut(conn) else { return Ok(()) };
        variants::queue((conn, connection), way, (frames, room, batch), &mut variants)?;
        if connection.outbox.mark_dirty() {
            dirty.push(conn);
        }
        Ok(())
    }

    fn push_events(&mut self, conn: ConnKey, lane: Lane, frames: &Bytes) -> Result<(), Full> {
        let bytes_max = self.outbox_bytes_max(lane);
        let Some(connection) = self.connections.get_mut(conn) else { return Ok(()) };
        if frames.is_empty() || !matches!(connection.phase, Phase::Open(_)) {
            return Ok(());
        }
        connection.outbox.push_events(frames, lane, bytes_max)?;
        if connection.outbox.mark_dirty() {
            self.dirty.push(conn);
        }
        Ok(())
    }

    /// Up to how much, with all that waits for a connection, an event of that lane may be queued.
    pub(super) fn outbox_bytes_max(&self, lane: Lane) -> usize {
        self.core.rules().outbox(self.settings.config.limits.outbox_bytes_max).of(lane)
    }

    fn lag_mut(&mut self, conn: ConnKey, room: RoomId) -> Option<&mut Lag> {
        self.client_mut(conn)?.under_way.as_mut()?.lags.iter_mut().find(|lag| lag.room == room)
    }
}

/// The numbers of those events that a connection gets of some batches.
fn events_for(address: Address, batches: &[&Arc<Batch>]) -> impl Iterator<Item = u64> {
    let events = batches.iter().flat_map(|batch| batch.events.iter());
    events.filter(move |event| event.exclude != Some(address)).map(|event| event.seq)
}

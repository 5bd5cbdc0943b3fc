//! What the home does with a room's log: replays for newcomers, catching up for slow readers, history for those who ask,
//! and letting go of what is old or too much.

use std::sync::Arc;

use hashbrown::HashSet;

use super::batch::{Address, Batch};
use super::core::{Core, epoch_text};
use super::log::Excerpt;
use super::message::{CatchUp, CaughtUp, HistoryAsked, HistoryTold, Message, Piece, RoomState};
use super::name::RoomName;
use super::relayed::BEFORE_ALL;
use super::reply::Responder;
use super::rooms::{Home, RoomId};
use super::selection::Selection;
use crate::config::Policy;
use crate::ring::Now;
use crate::wire::json::{write_string, write_u64};
use crate::wire::native::Since;

/// Rooms looked at per sweep, at least; a sweep is made once a second.
const SWEEP_MIN: u32 = 64;
/// Bytes of one `history` answer, at about.
const HISTORY_BYTES_MAX: usize = 1 << 20;

impl Core {
    /// What a newcomer is told of a room and the events it gets first. The room's open batch has been sealed.
    pub(super) fn replay(
        &mut self,
        id: RoomId,
        since: Option<&Since>,
        selection: Option<&Selection>,
        address: Address,
    ) -> Option<(RoomState, Option<Vec<Arc<Batch>>>)> {
        let now_ms = self.now.unix_ms;
        let home = self.rooms.get(id)?.home.as_deref()?;
        let (seq, epoch) = (home.seq, home.epoch);
        let mut state = RoomState { seq, epoch, recovered: true, replayed: 0, missed: Some(0) };
        let Some(since) = since else { return Some((state, None)) };
        let first = home.log().first_seq().unwrap_or(seq + 1);
        // From which number on, and whether anything before it counts as missed or can't be known.
        let (after, unknown) = match since {
            Since::Seq { seq: last, epoch: at } => {
                let same = at.as_ref().is_none_or(|at| **at == *epoch_text(epoch));
                // A log of another life: all of this one is new to the client, what the other had can't be known.
                if same && *last <= seq { (*last, false) } else { (0, true) }
            }
            Since::Last(count) => (home.log().before_last(*count, seq), false),
            Since::Seconds(_) | Since::Time(_) => {
                let from_ms = match since {
                    Since::Time(unix_ms) => *unix_ms,
                    Since::Seconds(seconds) => now_ms.saturating_sub(seconds.saturating_mul(1000)),
                    Since::Seq { .. } | Since::Last(_) => now_ms,
                };
                let after = home.log().before_time(from_ms, seq);
                // Events from before the log's beginning may have been in that time as well.
                (after, after + 1 == first && first > 1)
            }
        };
        let excerpt = home.log().after(after, seq, usize::MAX);
        let missed = excerpt.missing.map_or(0, |(from, to)| to + 1 - from);
        let mut batches = self.selected(excerpt.batches, selection);
        batches.retain(|batch| batch.events.iter().any(|event| event.exclude != Some(address)));
        let events = batches.iter().flat_map(|batch| batch.events.iter());
        state.replayed = events.filter(|event| event.exclude != Some(address)).count() as u64;
        state.missed = (!unknown).then_some(missed);
        state.recovered = state.missed == Some(0);
        Some((state, Some(batches)))
    }

    fn selected(&mut self, batches: Vec<Arc<Batch>>, selection: Option<&Selection>) -> Vec<Arc<Batch>> {
        let Some(selection) = selection else { return batches };
        let Core { scratch, memory, .. } = self;
        batches.iter().filter_map(|batch| batch.select(selection, scratch, memory)).collect()
    }

    /// A slow reader has read all it had and wants to go on.
    pub(super) fn catch_up(&mut self, ask: CatchUp) {
        let CatchUp { room, address, number, after_seq, selection, bytes_max } = ask;
        let id = self.rooms.find(&room);
        let mut latest = false;
        if let Some(id) = id {
            // What is sealed now is in the log, and went to the reader's shard before the answer, which passes it by.
            self.seal(id);
            latest = self.policy_of(id) == Policy::Latest;
        }
        let bytes_max = if latest { usize::MAX } else { bytes_max };
        let home = id.and_then(|id| self.rooms.get(id)).and_then(|room| room.home.as_deref());
        let is_other = after_seq == BEFORE_ALL;
        let epoch = home.filter(|_| is_other).map(|home| home.epoch);
        let after_seq = if is_other { 0 } else { after_seq };
        // Where there is no room any more the reader has left it; it is answered all the same, since it waits.
        let excerpt = home.map_or_else(
            || Excerpt { to_seq: after_seq, complete: true, ..Excerpt::default() },
            |home| home.log().after(after_seq, home.seq, bytes_max),
        );
        let mut pieces = Vec::new();
        match excerpt.missing {
            // Nothing of what it has belongs to this log; that none of this one's is missing has to be told all the same.
            _ if is_other => {
                let to_seq = excerpt.missing.map_or(0, |(_, to_seq)| to_seq);
                pieces.push(Piece::Gap { from_seq: 1, to_seq, reason: "epoch", epoch });
            }
            Some((from_seq, to_seq)) => pieces.push(Piece::Gap { from_seq, to_seq, reason: "history", epoch: None }),
            None => {}
        }
        let (to_seq, complete) = (excerpt.to_seq, excerpt.complete);
        let batches = self.selected(excerpt.batches, selection.as_deref());
        if latest {
            pieces.extend(newest_per_key(&batches));
        } else {
            pieces.extend(batches.into_iter().map(Piece::Events));
        }
        let caught_up = CaughtUp { room, address, number, pieces, to_seq, complete };
        self.send(address.shard, Message::CaughtUp(Box::new(caught_up)));
    }

    /// A client asks for a part of the log.
    pub(super) fn history(&mut self, ask: HistoryAsked) {
        let HistoryAsked { room, address, ticket, since, limit, reverse } = ask;
        let body = self.history_text(&room, since.as_ref(), limit, reverse);
        let told = HistoryTold { address, ticket, kind: "history", body: body.into() };
        self.send(address.shard, Message::HistoryTold(Box::new(told)));
    }

    /// A part of a room's log, as JSON.
    pub fn history_text(&mut self, room: &RoomName, since: Option<&Since>, limit: usize, reverse: bool) -> Vec<u8> {
        let mut body = Vec::new();
        let id = self.rooms.find(room);
        if let Some(id) = id {
            self.seal(id);
        }
        // A room whose last fan-outs are under way may be there without what its home knew.
        match id.and_then(|id| self.rooms.get(id)).and_then(|room| room.home.as_deref()) {
            Some(home) => {
                write_history(&mut body, home, room.as_str(), since, limit, reverse, self.now.unix_ms);
            }
            None => write_nothing(&mut body, room.as_str()),
        }
        body
    }

    /// Empties a room's log; its numbers go on, so that those who come back are told what they missed. Says how many
    /// events went: of a durable room, once they can't come back by a restart.
    pub fn clear_history(&mut self, room: &RoomName, responder: Responder<u64>) {
        if self.is_relaying() {
            return self.clear_relayed(room, responder);
        }
        let Some(id) = self.rooms.find(room) else { return responder.resolve(Ok(0)) };
        self.seal(id);
        let Some(home) = self.home_mut(id) else { return responder.resolve(Ok(0)) };
        if home.is_durable() {
            return self.clear_durable(id, responder);
        }
        let (events, bytes) = (home.log().events(), home.log().bytes());
        home.clear_log();
        home.forget_all_keys();
        self.log_bytes = self.log_bytes.saturating_sub(bytes);
        self.rooms.forget_if_idle(id);
        responder.resolve(Ok(events as u64));
    }

    /// Puts a sealed batch into its room's log.
    pub(super) fn keep(&mut self, id: RoomId, batch: &Arc<Batch>) {
        let bounds = match self.home_mut(id) {
            Some(home) => home.rules,
            None => return,
        };
        let bounds = self.rules.log(bounds);
        let Some(home) = self.home_mut(id) else { return };
        let before = home.log().bytes();
        home.contents().log.push(batch.clone(), bounds);
        home.log_is_fresh = true;
        let (after, is_durable) = (home.log().bytes(), home.is_durable());
        self.log_bytes = (self.log_bytes + after).saturating_sub(before);
        if is_durable {
            self.durable_log_changed(before, after);
        }
        if self.logs_are_too_large() {
            self.make_room(id);
        }
    }

    /// The logs of this shard are beyond their bound: those that were not used for the longest time give way, found by a
    /// hand that goes round the table and passes by, once, what was used since it came by last.
    fn make_room(&mut self, newest: RoomId) {
        let places = self.rooms.places();
        let mut looked_at = 0;
        while self.logs_are_too_large() && looked_at < places.saturating_mul(2) {
            let id = RoomId(self.hand % places.max(1));
            self.hand = self.hand.wrapping_add(1);
            looked_at += 1;
            let Some(home) = self.home_mut(id) else { continue };
            if std::mem::take(&mut home.log_is_fresh) && looked_at <= places || home.log().is_empty() || id == newest {
                continue;
            }
            // Those of durable rooms have a bound of their own, which their publishers are told of.
            if home.is_durable() {
                continue;
            }
            let bytes = home.log().bytes();
            home.clear_log();
            if let Some(relayed) = home.relayed_mut() {
                relayed.note_thin();
            }
            self.log_bytes = self.log_bytes.saturating_sub(bytes);
            self.figures.logs_evicted += 1;
            self.rooms.forget_if_idle(id);
        }
    }

    /// Lets go of what has become too old, a part of the table at a time; to be called once a second.
    pub fn sweep(&mut self, now: Now) {
        self.now = now;
        self.expire_lingering();
        self.free_again();
        self.say_again();
        let now_ms = now.unix_ms;
        let places = self.rooms.places();
        let share = (places / 60).max(SWEEP_MIN).min(places);
        for _ in 0..share {
            let id = RoomId(self.swept % places.max(1));
            self.swept = self.swept.wrapping_add(1);
            let Some(rules) = self.home_mut(id).map(|home| home.rules) else { continue };
            let bounds = self.rules.log(rules);
            let Some(home) = self.home_mut(id) else { continue };
            let before = home.log().bytes();
            home.shorten_log(|log| log.trim(bounds, now_ms));
            let freed = before - home.log().bytes();
            home.forget_keys(|keys| keys.forget_old(now_ms));
            // Of a kind that keeps no events, what this turn's were in is kept for the next ones until here.
            home.tidy();
            self.log_bytes = self.log_bytes.saturating_sub(freed);
            self.sweep_durable(id, freed);
            self.rooms.forget_if_idle(id);
        }
    }

    /// Bytes of frames in the logs of this shard.
    pub fn log_bytes(&self) -> usize {
        self.log_bytes
    }
}

/// For rooms whose members want the newest state only: the last event of each key (or type, where there is no key), in
/// order, and gaps where others were left out.
fn newest_per_key(batches: &[Arc<Batch>]) -> Vec<Piece> {
    let mut seen = HashSet::new();
    let mut pieces = Vec::new();
    // From the end, since the last of a key is the one that counts.
    for batch in batches.iter().rev() {
        for (place, event) in batch.events.iter().enumerate().rev() {
            let is_newest = match event.key {
                0 => seen.insert((batch.kind(event).to_owned(), 0)),
                key => seen.insert((String::new(), key)),
            };
            if is_newest {
                pieces.extend(Batch::part(batch, place..place + 1).map(Piece::Events));
            } else if let Some(Piece::Gap { from_seq, .. }) = pieces.last_mut() {
                *from_seq = event.seq;
            } else {
                pieces.push(Piece::Gap { from_seq: event.seq, to_seq: event.seq, reason: "latest", epoch: None });
            }
        }
    }
    pieces.reverse();
    pieces
}

fn write_nothing(body: &mut Vec<u8>, room: &str) {
    body.extend_from_slice(b"{\"room\":");
    write_string(body, room);
    body.extend_from_slice(b",\"events\":[],\"seq\":0,\"epoch\":null,\"more\":false}");
}

fn write_history(
    body: &mut Vec<u8>,
    home: &Home,
    room: &str,
    since: Option<&Since>,
    limit: usize,
    reverse: bool,
    now_ms: u64,
) {
    let after = match since {
        None => 0,
        Some(Since::Seq { seq, epoch }) => {
            let same = epoch.as_ref().is_none_or(|at| **at == *epoch_text(home.epoch));
            if same { *seq } else { 0 }
        }
        Some(Since::Last(count)) => home.log().before_last(*count, home.seq),
        Some(Since::Time(unix_ms)) => home.log().before_time(*unix_ms, home.seq),
        Some(Since::Seconds(seconds)) => {
            home.log().before_time(now_ms.saturating_sub(seconds.saturating_mul(1000)), home.seq)
        }
    };
    // In reverse, `since` names the event before which one wants to read.
    let before = match since {
        Some(Since::Seq { seq, .. }) if reverse => *seq,
        _ => u64::MAX,
    };
    let excerpt = home.log().after(if reverse { 0 } else { after }, home.seq, usize::MAX);
    let events = excerpt.batches.iter().flat_map(|batch| batch.events.iter().map(move |event| (batch, event)));
    let wanted: Vec<_> = events.filter(|(_, event)| event.seq < before).collect();
    let mut ordered: Box<dyn Iterator<Item = _>> = Box::new(wanted.iter());
    if reverse {
        ordered = Box::new(wanted.iter().rev());
    }
    body.extend_from_slice(b"{\"room\":");
    write_string(body, room);
    body.extend_from_slice(b",\"events\":[");
    let mut written = 0;
    for (batch, event) in ordered {
        let text = batch.payload(event);
        if written == limit || (written > 0 && body.len() + text.len() > HISTORY_BYTES_MAX) {
            break;
        }
        if written > 0 {
            body.push(b',');
        }
        body.extend_from_slice(text);
        written += 1;
    }
    body.extend_from_slice(b"],\"seq\":");
    write_u64(body, home.seq);
    body.extend_from_slice(b",\"epoch\":");
    write_string(body, &epoch_text(home.epoch));
    body.extend_from_slice(if written < wanted.len() { b",\"more\":true}" } else { b",\"more\":false}" });
}

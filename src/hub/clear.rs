//! Emptying the log of a durable room: its events are on the disk, and so it has to be that they count no more.

use std::collections::VecDeque;

use super::core::Core;
use super::message::OVERLOADED;
use super::reply::Responder;
use super::rooms::RoomId;
use super::stored::{Cleared, Entry, Progress};
use crate::wire::codes::ErrorCode;
use crate::wire::native::Refused;

/// The answer to who wants a log emptied meanwhile. It may be empty after a restart all the same: what the disk has of the
/// attempt is not known.
const NOT_CLEARED: Refused =
    Refused::new(ErrorCode::Unavailable, "the journal can't be written right now; the history was not emptied");
/// Logs that may be waiting to be emptied: as many answers as a journal that hangs may keep waiting.
const CLEARS_MAX: usize = 1024;

/// A log that is emptied when the journal has that.
#[derive(Debug)]
pub(super) struct Clearing {
    number: u64,
    room: RoomId,
    log_from: u64,
    responder: Responder<u64>,
}

impl Core {
    /// Empties a durable room's log of all that was acknowledged before now, as soon as the journal has that. Until then it
    /// is as it was, so that nobody is told of a log that a restart would fill again.
    pub(super) fn clear_durable(&mut self, id: RoomId, responder: Responder<u64>) {
        let Some(room) = self.rooms.get_mut(id) else { return };
        let Some(home) = room.home.as_deref_mut() else { return };
        let (name, epoch, log_from) = (room.name.clone(), home.epoch, home.seq + 1);
        let Some(durable) = home.durable_mut() else { return };
        let Some(journaling) = self.journaling.as_deref_mut().filter(|journaling| journaling.is_up) else {
            return responder.resolve(Err(NOT_CLEARED.into()));
        };
        if journaling.clears.len() >= CLEARS_MAX {
            return responder.resolve(Err(OVERLOADED.into()));
        }
        durable.pending += 1;
        journaling.number += 1;
        let (number, failures) = (journaling.number, journaling.failures);
        journaling.out.push(Entry::Cleared(Cleared { number, failures, room: name, epoch, log_from }));
        journaling.clears.push_back(Clearing { number, room: id, log_from, responder });
    }

    pub(super) fn next_cleared(&mut self, progress: &Progress) -> Option<Clearing> {
        let journaling = self.journaling.as_deref_mut()?;
        journaling.clears.pop_front_if(|clearing| clearing.number <= progress.synced)
    }

    pub(super) fn cleared(&mut self, clearing: Clearing) {
        let Clearing { room: id, log_from, responder, .. } = clearing;
        let Some(home) = self.home_mut(id) else { return };
        if let Some(durable) = home.durable_mut() {
            durable.pending = durable.pending.saturating_sub(1);
            // Keys of events that came since are still good.
            if durable.given < log_from {
                home.forget_all_keys();
            }
        }
        let (events, before) = (home.log().events(), home.log().bytes());
        home.shorten_log(|log| log.let_go_before(log_from));
        let (gone, after) = (events - home.log().events(), home.log().bytes());
        self.log_bytes = (self.log_bytes + after).saturating_sub(before);
        self.durable_log_changed(before, after);
        self.rooms.forget_if_idle(id);
        responder.resolve(Ok(gone as u64));
    }

    /// The journal failed: no log was emptied that was to be.
    pub(super) fn refuse_clears(&mut self, clears: VecDeque<Clearing>) {
        for Clearing { room, responder, .. } in clears {
            if let Some(durable) = self.home_mut(room).and_then(|home| home.durable_mut()) {
                durable.pending = durable.pending.saturating_sub(1);
            }
            responder.resolve(Err(NOT_CLEARED.into()));
            self.rooms.forget_if_idle(room);
        }
    }
}

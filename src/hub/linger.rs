//! Rooms that are kept for a while after a stream of events has left them.
//!
//! A stream that broke comes back within seconds, with the epoch it had. A room that nobody else is in and whose log is
//! empty would be gone by then, and its next life would tell the stream that something may have been missed.

use std::collections::VecDeque;

use super::core::Core;
use super::name::RoomName;

/// Rooms of one shard that are kept for this alone: a client that opens streams of ever new rooms must not fill the table.
/// What was left first goes first; those who come back to it are told that they may have missed something.
const LINGERING_MAX: usize = 16 * 1024;

/// The rooms that linger, each of them once, and until when they did when they came here, in seconds of the monotonic
/// clock: a room that was left again since has a later end, and goes to the back when its first one is there.
#[derive(Debug, Default)]
pub(super) struct Lingering(VecDeque<(u32, RoomName)>);

impl Core {
    /// A stream leaves a room homed here: it may come back for as long as a session may.
    pub(super) fn linger(&mut self, room: &RoomName) {
        let until_ms = self.now.monotonic_us / 1000 + self.limits.session_away_ms;
        let until_s = u32::try_from(until_ms.div_ceil(1000)).unwrap_or(u32::MAX);
        let Some(id) = self.rooms.find(room).filter(|_| self.limits.session_away_ms > 0) else { return };
        let Some(home) = self.home_mut(id) else { return };
        if std::mem::replace(&mut home.lingers_until_s, until_s) == 0 {
            self.lingering.0.push_back((until_s, room.clone()));
        }
        if self.lingering.0.len() > LINGERING_MAX
            && let Some((_, oldest)) = self.lingering.0.pop_front()
        {
            self.end_lingering(&oldest);
        }
    }

    /// Forgets rooms that nobody came back to; to be called once a second.
    pub(super) fn expire_lingering(&mut self) {
        let now_s = self.now.monotonic_us / 1_000_000;
        while let Some((_, room)) = self.lingering.0.pop_front_if(|(until_s, _)| u64::from(*until_s) <= now_s) {
            let id = self.rooms.find(&room);
            let until_s = id.and_then(|id| self.home_mut(id)).map_or(0, |home| home.lingers_until_s);
            if u64::from(until_s) > now_s {
                self.lingering.0.push_back((until_s, room));
            } else {
                self.end_lingering(&room);
            }
        }
    }

    fn end_lingering(&mut self, room: &RoomName) {
        let Some(id) = self.rooms.find(room) else { return };
        if let Some(home) = self.home_mut(id) {
            home.lingers_until_s = 0;
        }
        self.rooms.forget_if_idle(id);
    }
}

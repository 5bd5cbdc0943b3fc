//! When which connection is to be looked at: a calendar of tenths of a second.
//!
//! A connection notes when it is due; the calendar may hold it earlier too, which costs a look. So nothing is ever taken
//! out before its time, and putting something off is free.

use std::collections::BTreeMap;

use crate::ring::ConnKey;

/// Milliseconds in one entry of the calendar.
pub const TICK_MS: u64 = 100;

/// The calendar.
#[derive(Debug, Default)]
pub struct Timers {
    ticks: BTreeMap<u64, Vec<ConnKey>>,
}

impl Timers {
    /// Has a connection looked at when `due_ms` is over, at most a tick later.
    pub fn schedule(&mut self, conn: ConnKey, due_ms: u64) {
        self.ticks.entry(due_ms.div_ceil(TICK_MS)).or_default().push(conn);
    }

    /// Takes out the connections of one tick that is over.
    pub fn pop(&mut self, now_ms: u64) -> Option<Vec<ConnKey>> {
        let entry = self.ticks.first_entry()?;
        (*entry.key() * TICK_MS <= now_ms).then(|| entry.remove())
    }

    /// When the next tick is over.
    pub fn next_ms(&self) -> Option<u64> {
        self.ticks.first_key_value().map(|(tick, _)| tick * TICK_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_come_out_when_their_time_is_over() {
        let conn = |slot| ConnKey { slot, generation: 0 };
        let mut timers = Timers::default();
        timers.schedule(conn(1), 250);
        timers.schedule(conn(2), 201);
        timers.schedule(conn(3), 1000);
        assert_eq!(timers.next_ms(), Some(300));
        assert_eq!(timers.pop(299), None);
        assert_eq!(timers.pop(300), Some(vec![conn(1), conn(2)]));
        assert_eq!(timers.pop(300), None);
        assert_eq!(timers.pop(5000), Some(vec![conn(3)]));
        assert_eq!(timers.next_ms(), None);
    }
}

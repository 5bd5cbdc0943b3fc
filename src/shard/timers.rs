//! When which connection is to be looked at: a calendar of tenths of a second.
//!
//! A connection notes when it is due, and for when it stands in the calendar ([`Alarm`]), which may be earlier and then costs
//! a look. So putting something off is free, a connection has one entry that counts, and what was entered for a later time
//! before something came in between is passed over.

use std::collections::BTreeMap;

use crate::ring::ConnKey;

/// Milliseconds in one entry of the calendar.
pub const TICK_MS: u64 = 100;

/// A page of the calendar: tenths of a second of the monotonic clock, which last for 13 years.
pub type Tick = u32;

/// For when a connection stands in the calendar.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Alarm(Option<std::num::NonZero<Tick>>);

impl Alarm {
    /// Whether it was set for this tick; it is off from here on.
    pub fn rings(&mut self, tick: Tick) -> bool {
        let rings = self.0.is_some_and(|set| set.get() == tick);
        if rings {
            self.0 = None;
        }
        rings
    }
}

/// The calendar.
#[derive(Debug, Default)]
pub struct Timers {
    ticks: BTreeMap<Tick, Vec<ConnKey>>,
}

impl Timers {
    /// Has a connection looked at when `due_ms` is over, at most a tick later; it may be looked at before.
    pub fn schedule(&mut self, conn: ConnKey, alarm: &mut Alarm, due_ms: u64) {
        let tick = Tick::try_from(due_ms.div_ceil(TICK_MS)).unwrap_or(Tick::MAX).max(1);
        if alarm.0.is_some_and(|set| set.get() <= tick) {
            return;
        }
        alarm.0 = std::num::NonZero::new(tick);
        self.ticks.entry(tick).or_default().push(conn);
    }

    /// Takes out one tick that is over, and its connections.
    pub fn pop(&mut self, now_ms: u64) -> Option<(Tick, Vec<ConnKey>)> {
        let entry = self.ticks.first_entry()?;
        (u64::from(*entry.key()) * TICK_MS <= now_ms).then(|| entry.remove_entry())
    }

    /// When the next tick is over.
    pub fn next_ms(&self) -> Option<u64> {
        self.ticks.first_key_value().map(|(tick, _)| u64::from(*tick) * TICK_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conn(slot: u32) -> ConnKey {
        ConnKey { slot, generation: 0 }
    }

    #[test]
    fn connections_come_out_when_their_time_is_over() {
        let mut timers = Timers::default();
        let mut alarms = [Alarm::default(); 3];
        timers.schedule(conn(1), &mut alarms[0], 250);
        timers.schedule(conn(2), &mut alarms[1], 201);
        timers.schedule(conn(3), &mut alarms[2], 1000);
        assert_eq!(timers.next_ms(), Some(300));
        assert_eq!(timers.pop(299), None);
        assert_eq!(timers.pop(300), Some((3, vec![conn(1), conn(2)])));
        assert_eq!(timers.pop(300), None);
        assert_eq!(timers.pop(5000), Some((10, vec![conn(3)])));
        assert_eq!(timers.next_ms(), None);
    }

    #[test]
    fn a_connection_has_one_entry_however_often_it_is_put_off() {
        let mut timers = Timers::default();
        let mut alarm = Alarm::default();
        for due_ms in 1000..2000 {
            timers.schedule(conn(1), &mut alarm, due_ms);
        }
        assert_eq!(timers.pop(5000), Some((10, vec![conn(1)])));
        assert_eq!(timers.pop(5000), None);
    }

    #[test]
    fn an_entry_that_an_earlier_one_came_before_does_not_ring() {
        let mut timers = Timers::default();
        let mut alarm = Alarm::default();
        timers.schedule(conn(1), &mut alarm, 2000);
        timers.schedule(conn(1), &mut alarm, 1000);
        assert_eq!(timers.pop(1000), Some((10, vec![conn(1)])));
        assert!(alarm.rings(10));
        timers.schedule(conn(1), &mut alarm, 3000);
        assert_eq!(timers.pop(2000), Some((20, vec![conn(1)])));
        assert!(!alarm.rings(20));
        assert_eq!(timers.pop(3000), Some((30, vec![conn(1)])));
        assert!(alarm.rings(30));
    }
}

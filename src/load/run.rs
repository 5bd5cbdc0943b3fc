//! What the threads of a run share: its clock, its measured time, counters for the progress bar and for closed loops.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use super::plan::Plan;
use super::poller::Waker;

/// A closed loop without any delivery for this long gives up on what is in flight.
const STALL_NS: u64 = 2_000_000_000;

/// When a run sends and what of it counts; nanoseconds since the run's origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    /// Sending begins: the warm-up.
    pub(crate) start_ns: u64,
    /// What is due from here on counts.
    pub(crate) count_ns: u64,
    /// Sending ends.
    pub(crate) end_ns: u64,
}

impl Window {
    /// Whether something due at this time counts.
    pub(crate) fn counts(&self, due_ns: u64) -> bool {
        (self.count_ns..self.end_ns).contains(&due_ns)
    }
}

/// A room as all threads see it. Counters only grow, except `subscribers`.
#[derive(Debug, Default)]
pub(crate) struct Room {
    pub(crate) subscribers: AtomicU64,
    published: AtomicU64,
    delivered: AtomicU64,
    progress_ns: AtomicU64,
}

impl Room {
    /// Events that not all subscribers have got: deliveries come in order, so whole rounds of them are whole events.
    fn in_flight(&self) -> u64 {
        match self.subscribers.load(Relaxed) {
            0 => 0,
            subscribers => self.published.load(Relaxed).saturating_sub(self.delivered.load(Relaxed) / subscribers),
        }
    }

    /// Takes the right to publish one more while fewer than `limit` are in flight.
    pub(crate) fn reserve(&self, limit: u64) -> bool {
        if self.subscribers.load(Relaxed) == 0 {
            return false;
        }
        let published = self.published.load(Relaxed);
        self.in_flight() < limit && self.published.compare_exchange(published, published + 1, Relaxed, Relaxed).is_ok()
    }

    /// Counts deliveries.
    pub(crate) fn deliver(&self, count: u64, now_ns: u64) {
        self.delivered.fetch_add(count, Relaxed);
        self.progress_ns.store(now_ns, Relaxed);
    }

    /// Gives up on what is in flight if nothing was delivered for long. True for the one caller that did.
    pub(crate) fn give_up(&self, now_ns: u64) -> bool {
        let progress = self.progress_ns.load(Relaxed);
        if self.in_flight() == 0 || now_ns.saturating_sub(progress) < STALL_NS {
            return false;
        }
        if self.progress_ns.compare_exchange(progress, now_ns, Relaxed, Relaxed).is_err() {
            return false;
        }
        let subscribers = self.subscribers.load(Relaxed).max(1);
        self.delivered.store(self.published.load(Relaxed) * subscribers, Relaxed);
        true
    }
}

/// The state of a run.
pub(crate) struct Run {
    pub(crate) plan: Plan,
    origin: Instant,
    window: OnceLock<Window>,
    stop: AtomicBool,
    wakers: OnceLock<Vec<Waker>>,
    pub(crate) rooms: Vec<Room>,
    /// Connections that are ready or have failed to become so.
    pub(crate) settled: AtomicUsize,
    pub(crate) open: AtomicUsize,
    /// Connections that have vanished and are not back yet.
    pub(crate) away: AtomicUsize,
    pub(crate) failures: AtomicU64,
    pub(crate) sent: AtomicU64,
    /// Every delivery.
    pub(crate) delivered: AtomicU64,
    /// Deliveries that count, wanted and seen.
    pub(crate) counted_expected: AtomicU64,
    pub(crate) counted_delivered: AtomicU64,
}

impl Run {
    /// A run whose clock begins at `origin`.
    pub(crate) fn new(plan: Plan, origin: Instant) -> Run {
        let rooms = (0..plan.rooms).map(|_| Room::default()).collect();
        Run {
            plan,
            origin,
            window: OnceLock::new(),
            stop: AtomicBool::new(false),
            wakers: OnceLock::new(),
            rooms,
            settled: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            away: AtomicUsize::new(0),
            failures: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            counted_expected: AtomicU64::new(0),
            counted_delivered: AtomicU64::new(0),
        }
    }

    /// Nanoseconds since the origin.
    pub(crate) fn now_ns(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The measured time, once it is fixed.
    pub(crate) fn window(&self) -> Option<Window> {
        self.window.get().copied()
    }

    /// Fixes the measured time; the first call decides.
    pub(crate) fn begin(&self, window: Window) {
        for room in &self.rooms {
            room.progress_ns.store(window.start_ns, Relaxed);
        }
        self.window.get_or_init(|| window);
        self.wake_all();
    }

    /// Gives the run the wakers of its workers; the first call decides.
    pub(crate) fn set_wakers(&self, wakers: Vec<Waker>) {
        self.wakers.get_or_init(|| wakers);
    }

    /// Wakes every worker.
    pub(crate) fn wake_all(&self) {
        for waker in self.wakers.get().into_iter().flatten() {
            // A worker that can't be woken looks again by itself within a tenth of a second.
            if waker.wake().is_err() {
                tracing::debug!("a worker of the load generator could not be woken");
            }
        }
    }

    /// Asks the workers to end.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Relaxed);
        self.wake_all();
    }

    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_in_the_warm_up_or_after_the_end_does_not_count() {
        let window = Window { start_ns: 10, count_ns: 20, end_ns: 30 };
        let counted: Vec<u64> = (0..40).filter(|t| window.counts(*t)).collect();
        assert_eq!(counted, (20..30).collect::<Vec<_>>());
    }

    #[test]
    fn a_closed_loop_publishes_again_when_every_subscriber_has_the_event() {
        let room = Room::default();
        assert!(!room.reserve(2), "nobody is there");
        room.subscribers.store(3, Relaxed);
        assert!(room.reserve(2) && room.reserve(2) && !room.reserve(2));
        room.deliver(2, 5);
        assert!(!room.reserve(2));
        room.deliver(1, 6);
        assert!(room.reserve(2) && !room.reserve(2));
    }

    #[test]
    fn a_stalled_window_is_given_up_once() {
        let room = Room::default();
        room.subscribers.store(3, Relaxed);
        assert!(room.reserve(1));
        room.deliver(1, 100);
        assert!(!room.give_up(100 + STALL_NS - 1));
        assert!(room.give_up(100 + STALL_NS));
        assert!(!room.give_up(100 + STALL_NS));
        assert!(room.reserve(1));
    }
}

//! How long events take through the hub: from the moment that a publish was received to the completion of a subscriber's
//! send, without the clients' help.
//!
//! A part of the deliveries is followed. Which ones is decided by counting deliveries, with a step that grows with the load
//! and is drawn anew each time, so that every delivery of a moment is as likely as any other, the last of a crowd as well as
//! its first; a followed delivery counts for all that it stands for. Where it ends is known by its place among the bytes in
//! its connection's outbox, not by the next completion, so that a connection with much to read counts with all its wait.
//!
//! Not in it: deliveries to those who had fallen behind (they read on from the log) and replays, which are late by nature.

use std::num::NonZero;

use crate::control::Histogram;
use crate::ring::ConnKey;

/// Deliveries that are followed at a time. Beyond it they are lost to the figures, and counted.
const FOLLOWED_MAX: usize = 1024;
/// Within this time as many are chosen as below, or the step is changed.
const WINDOW_US: u64 = 10_000;
const CHOSEN_MIN: u32 = 8;
const CHOSEN_MAX: u32 = 32;
/// The largest step: more deliveries than a shard makes in a window.
const STEP_MAX: u32 = 1 << 20;
/// When the table is nearly full, deliveries that have waited for so long are given up, so that connections which stopped
/// reading don't end the measurement of the others.
const STALE_US: u64 = 5_000_000;

const _: () = assert!(FOLLOWED_MAX < u16::MAX as usize, "places have 16 bits");

/// The deliveries of one connection that are followed, oldest first; none for most.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Followed(Option<Place>);

/// A place in the table, from 1.
type Place = NonZero<u16>;

impl Followed {
    /// Whether there is none.
    #[inline]
    pub fn is_none(&self) -> bool {
        self.0.is_none()
    }
}

/// One delivery.
#[derive(Debug)]
struct Delivery {
    conn: ConnKey,
    received_us: u64,
    /// Bytes of events that have yet to be taken out of the outbox up to this delivery's end.
    to_take: usize,
    /// How many deliveries it stands for.
    count: u64,
    next: Option<Place>,
    is_free: bool,
}

/// The deliveries that are followed.
#[derive(Debug)]
pub(super) struct Latency {
    /// Deliveries until the next is chosen, that one included.
    left: u32,
    step: u32,
    chosen: u32,
    window_us: u64,
    random: u64,
    table: Vec<Delivery>,
    free: Option<Place>,
    used: usize,
    hand: usize,
    /// Deliveries that were chosen, and those of them that were never seen to end.
    pub chosen_total: u64,
    pub lost_total: u64,
}

impl Default for Latency {
    fn default() -> Latency {
        Latency {
            left: 1,
            step: 1,
            chosen: 0,
            window_us: 0,
            random: 0x9e37_79b9_7f4a_7c15,
            table: Vec::new(),
            free: None,
            used: 0,
            hand: 0,
            chosen_total: 0,
            lost_total: 0,
        }
    }
}

impl Latency {
    /// Counts a delivery; whether it is to be followed.
    #[inline]
    pub fn is_chosen(&mut self) -> bool {
        self.left -= 1;
        self.left == 0
    }

    /// Follows a delivery that was chosen and is the last in its connection's outbox, where `waiting` bytes of events wait
    /// with it.
    #[cold]
    pub fn follow(&mut self, followed: &mut Followed, conn: ConnKey, waiting: usize, received_us: u64, events: usize) {
        let count = u64::from(self.step) * events as u64;
        self.chosen_total += 1;
        self.chosen += 1;
        if self.chosen > CHOSEN_MAX {
            self.chosen = 0;
            self.step = (self.step * 2).min(STEP_MAX);
        }
        self.draw();
        let delivery = Delivery { conn, received_us, to_take: waiting, count, next: None, is_free: false };
        let Some(place) = self.put(delivery) else {
            self.lost_total += 1;
            return;
        };
        let Some(first) = followed.0 else {
            followed.0 = Some(place);
            return;
        };
        let mut last = first;
        while let Some(next) = self.at(last).and_then(|delivery| delivery.next) {
            last = next;
        }
        if let Some(last) = self.at(last) {
            last.next = Some(place);
        }
    }

    /// Some bytes of events were taken out of the outbox and given to the driver.
    pub fn taken(&mut self, followed: &Followed, bytes: usize) {
        let mut place = followed.0;
        while let Some(delivery) = place.and_then(|place| self.at(place)) {
            delivery.to_take = delivery.to_take.saturating_sub(bytes);
            place = delivery.next;
        }
    }

    /// What was given to the driver was sent.
    pub fn sent(&mut self, followed: &mut Followed, now_us: u64, histogram: &Histogram) {
        while let Some(place) = followed.0
            && let Some(delivery) = self.at(place)
            && delivery.to_take == 0
        {
            histogram.add_many(now_us.saturating_sub(delivery.received_us), delivery.count);
            followed.0 = delivery.next;
            self.give_back(place);
        }
    }

    /// The connection is gone, or its deliveries are not followed any longer.
    pub fn forget(&mut self, followed: &mut Followed) {
        while let Some(place) = followed.0 {
            followed.0 = self.at(place).and_then(|delivery| delivery.next);
            self.give_back(place);
            self.lost_total += 1;
        }
    }

    /// Adapts the step to the load; to be called once per turn with deliveries.
    #[inline]
    pub fn adapt(&mut self, now_us: u64) {
        let windows = now_us.saturating_sub(self.window_us) / WINDOW_US;
        if windows == 0 {
            return;
        }
        self.window_us = now_us;
        // One halving for a window with few, and one for each that went by without a delivery.
        let halvings = (windows - 1).min(30) + u64::from(self.chosen < CHOSEN_MIN);
        self.chosen = 0;
        if halvings > 0 && self.step > 1 {
            self.step = (self.step >> halvings).max(1);
            self.draw();
        }
    }

    /// A connection whose deliveries are to be forgotten to make room; to be asked about once a second until there is none.
    pub fn stale(&mut self, now_us: u64) -> Option<ConnKey> {
        if self.used < FOLLOWED_MAX / 4 * 3 {
            self.hand = 0;
            return None;
        }
        let is_stale = |one: &Delivery| !one.is_free && one.received_us + STALE_US < now_us;
        let rest = self.table.get(self.hand..).unwrap_or_default();
        let found = rest.iter().position(is_stale).map(|place| self.hand + place);
        // From the start again the next time, where all have been looked at.
        self.hand = found.map_or(0, |place| place + 1);
        found.and_then(|place| self.table.get(place)).map(|one| one.conn)
    }

    /// From 1 to twice the step less 1, so that the step is the mean.
    fn draw(&mut self) {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let span = u64::from(self.step) * 2 - 1;
        self.left = 1 + (self.random % span) as u32;
    }

    fn at(&mut self, place: Place) -> Option<&mut Delivery> {
        self.table.get_mut(usize::from(place.get()) - 1)
    }

    fn put(&mut self, delivery: Delivery) -> Option<Place> {
        let place = match self.free {
            Some(place) => {
                let slot = self.at(place)?;
                let next = std::mem::replace(slot, delivery).next;
                self.free = next;
                place
            }
            None if self.table.len() < FOLLOWED_MAX => {
                self.table.push(delivery);
                Place::new(self.table.len() as u16)?
            }
            None => return None,
        };
        self.used += 1;
        Some(place)
    }

    fn give_back(&mut self, place: Place) {
        let free = self.free;
        if let Some(delivery) = self.at(place) {
            delivery.next = free;
            delivery.is_free = true;
            self.free = Some(place);
            self.used -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONN: ConnKey = ConnKey { slot: 7, generation: 0 };

    #[test]
    fn a_delivery_ends_with_the_send_that_has_its_last_byte() {
        let (mut latency, histogram) = (Latency::default(), Histogram::default());
        let mut followed = Followed::default();
        assert!(latency.is_chosen());
        // 50 bytes were there before; a chunk of 30 goes, then one of 70.
        latency.follow(&mut followed, CONN, 100, 1_000, 3);
        assert!(latency.is_chosen(), "at rest each is followed");
        latency.follow(&mut followed, CONN, 120, 1_010, 1);
        latency.sent(&mut followed, 1_020, &histogram);
        latency.taken(&followed, 30);
        latency.sent(&mut followed, 1_030, &histogram);
        latency.taken(&followed, 70);
        assert_eq!(histogram.read().count(), 0);
        latency.sent(&mut followed, 1_040, &histogram);
        assert_eq!((histogram.read().count(), histogram.read().sum_us), (3, 120), "once for each of its events");
        assert!(!followed.is_none());
        latency.taken(&followed, 20);
        latency.sent(&mut followed, 1_050, &histogram);
        assert_eq!((histogram.read().count(), histogram.read().sum_us), (4, 160));
        assert!(followed.is_none());
        assert_eq!((latency.used, latency.lost_total, latency.chosen_total), (0, 0, 2));
    }

    #[test]
    fn under_load_few_are_followed_and_stand_for_all() {
        let (mut latency, histogram) = (Latency::default(), Histogram::default());
        let mut now_us = 0;
        let mut by_place = [0u64; 10];
        // A crowd of 1000, once in a millisecond, for ten seconds. What is late in the crowd takes longer.
        for _ in 0..10_000 {
            now_us += 1_000;
            latency.adapt(now_us);
            for member in 0..1_000 {
                if latency.is_chosen() {
                    let mut followed = Followed::default();
                    let before = histogram.read().count();
                    latency.follow(&mut followed, CONN, 1, now_us, 1);
                    latency.taken(&followed, 1);
                    latency.sent(&mut followed, now_us + member, &histogram);
                    by_place[member as usize / 100] += histogram.read().count() - before;
                }
            }
        }
        let followed = latency.chosen_total;
        assert!((8_000..40_000).contains(&followed), "{followed} of ten million were followed");
        let counts = histogram.read();
        let near = |told: u64, exact: u64| told.abs_diff(exact) * 10 <= exact;
        assert!(near(counts.count(), 10_000_000), "{} stand for ten million", counts.count());
        for (place, count) in by_place.iter().enumerate() {
            assert!(near(*count, 1_000_000), "the tenth {place} of the crowd counts {count}");
        }
        for (permille, exact) in [(100, 100), (500, 500), (900, 900), (990, 990)] {
            let told = counts.permille_us(permille).expect("some");
            assert!(told + exact / 10 >= exact && told <= exact + exact / 4, "{permille}: {told}");
        }
    }

    #[test]
    fn a_burst_is_followed_within_bounds_and_after_it_each_delivery_is_again() {
        let mut latency = Latency::default();
        latency.adapt(10_000);
        for _ in 0..10_000_000 {
            if latency.is_chosen() {
                let mut followed = Followed::default();
                latency.follow(&mut followed, CONN, 1, 0, 1);
                latency.forget(&mut followed);
            }
        }
        assert!(latency.chosen_total < 1_000, "{}", latency.chosen_total);
        latency.adapt(400_000);
        assert!(latency.is_chosen(), "after a quiet time");
    }

    #[test]
    fn a_full_table_loses_deliveries_until_those_who_stopped_reading_are_given_up() {
        let mut latency = Latency::default();
        let mut stuck: Vec<Followed> = Vec::new();
        for slot in 0..2_000u32 {
            let mut followed = Followed::default();
            latency.follow(&mut followed, ConnKey { slot, generation: 0 }, 1, 0, 1);
            stuck.push(followed);
        }
        assert_eq!(latency.lost_total, 2_000 - FOLLOWED_MAX as u64);
        assert_eq!(latency.stale(STALE_US), None, "they may still read");
        let mut given_up = 0;
        while let Some(conn) = latency.stale(STALE_US + 1) {
            latency.forget(&mut stuck[conn.slot as usize]);
            given_up += 1;
        }
        assert!((FOLLOWED_MAX / 4..=FOLLOWED_MAX).contains(&given_up), "{given_up}");
        let lost = latency.lost_total;
        let mut followed = Followed::default();
        latency.follow(&mut followed, CONN, 1, 0, 1);
        assert!(!followed.is_none());
        assert_eq!(latency.lost_total, lost);
    }
}

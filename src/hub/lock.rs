//! One field's lock: who holds it and until when, and who has been waiting for so long that it is theirs next.
//!
//! A lock belongs to a session. Which of its connections speaks does not matter, but one that speaks for it proves so: by
//! being the connection that the lock was granted to, or by knowing the number it was granted with from the session itself.
//!
//! Nobody waits in a queue: a refused session asks again when it likes. One that was refused [`REFUSALS_MIN`] times, each
//! within [`ATTEMPT_MS`] of the one before, has the lock kept for it for [`RESERVED_MS`] when it becomes free, so that
//! those who ask more often don't keep it out. A single refusal reserves nothing, and who came once and went costs nobody
//! time.

use std::sync::Arc;

use super::batch::Address;
use crate::auth::Identity;
use crate::ring::Now;
use crate::session::ClientId;
use crate::session::SessionId;

/// Refusals after which a lock is reserved for a session.
pub const REFUSALS_MIN: u8 = 3;
/// Attempts that are further apart don't count together, in milliseconds.
pub const ATTEMPT_MS: u64 = 5000;
/// How long a free lock is kept for a session that waits for it, in milliseconds: enough for one that asks every second.
pub const RESERVED_MS: u64 = 2000;
/// Sessions whose refusals are counted, per lock; a lock that more want has other troubles.
const WAITERS_MAX: usize = 16;

/// Whose a lock is.
#[derive(Debug, Clone)]
pub struct Holder {
    /// The connection that took or renewed it last.
    pub client_id: ClientId,
    /// The session, whose it is.
    pub session_id: SessionId,
    /// Whom that acts for.
    pub identity: Arc<Identity>,
}

impl Holder {
    /// Whether two are the same session. A session's name may be another user's when it has ended.
    pub fn is_session_of(&self, other: &Holder) -> bool {
        self.session_id == other.session_id && self.identity.user_id == other.identity.user_id
    }
}

/// A lock that is held.
#[derive(Debug, Clone)]
pub struct Held {
    /// The number it was granted with.
    pub token: u64,
    /// Until when, in milliseconds of the monotonic clock.
    pub until_ms: u64,
    /// What its holder was told, in milliseconds since 1970.
    pub expires_at_ms: u64,
    /// For how long it was asked for last.
    pub ttl_ms: u64,
    /// The connection that took or renewed it last.
    pub address: Address,
    /// Whose it is.
    pub holder: Holder,
}

/// Why a lock can't be had.
#[derive(Debug, Clone)]
pub struct LockHeld {
    /// Who holds it; none while it is free and kept for a session that waits for it.
    pub holder: Option<Holder>,
    /// Until when, in milliseconds since 1970.
    pub expires_at_ms: u64,
}

/// One field's lock.
#[derive(Debug, Default)]
pub struct Lock {
    held: Option<Held>,
    /// For whom it is kept while it is free, and until when (milliseconds of the monotonic clock).
    reserved: Option<(Holder, u64)>,
    /// In the order of their first refusal.
    waiters: Vec<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    who: Holder,
    refusals: u8,
    /// When it was refused last, in milliseconds of the monotonic clock.
    last_ms: u64,
}

impl Waiter {
    fn is_gone(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.last_ms) > ATTEMPT_MS
    }
}

impl Lock {
    /// Who holds it.
    pub fn held(&self) -> Option<&Held> {
        self.held.as_ref()
    }

    /// Whether a session may have the lock: true where it has it already. A refusal is counted. [`Lock::pass`] comes first.
    pub fn check(&mut self, address: Address, who: &Holder, known: Option<u64>, now: Now) -> Result<bool, LockHeld> {
        let now_ms = now.monotonic_us / 1000;
        if let Some(held) = &self.held {
            let is_its_own = held.address == address || known == Some(held.token);
            if !is_its_own || !held.holder.is_session_of(who) {
                let refused = LockHeld { holder: Some(held.holder.clone()), expires_at_ms: held.expires_at_ms };
                self.count_refusal(who.clone(), now_ms);
                return Err(refused);
            }
            return Ok(true);
        }
        if let Some((next, until_ms)) = &self.reserved
            && !next.is_session_of(who)
        {
            let expires_at_ms = now.unix_ms + until_ms.saturating_sub(now_ms);
            self.count_refusal(who.clone(), now_ms);
            return Err(LockHeld { holder: None, expires_at_ms });
        }
        Ok(false)
    }

    /// Takes the lock for a session, or renews it where that holds it already; true where it was taken. `known` is the
    /// number that its connection knows the session to hold it with. [`Lock::pass`] comes first.
    pub fn acquire(
        &mut self,
        address: Address,
        who: Holder,
        known: Option<u64>,
        ttl_ms: u64,
        now: Now,
        token: impl FnOnce() -> u64,
    ) -> Result<(&Held, bool), LockHeld> {
        self.check(address, &who, known, now)?;
        self.reserved = None;
        self.waiters.retain(|waiter| !waiter.who.is_session_of(&who));
        let is_taken = self.held.is_none();
        let held = self.held.get_or_insert_with(|| Held {
            token: token(),
            until_ms: 0,
            expires_at_ms: 0,
            ttl_ms,
            address,
            holder: who.clone(),
        });
        held.extend(address, who, ttl_ms, now);
        Ok((held, is_taken))
    }

    /// Has it held for longer. None where it is not held with that number any more.
    pub fn renew(&mut self, address: Address, who: Holder, token: u64, ttl_ms: Option<u64>, now: Now) -> Option<&Held> {
        let held = self.held.as_mut().filter(|held| held.token == token)?;
        let ttl_ms = ttl_ms.unwrap_or(held.ttl_ms);
        held.extend(address, who, ttl_ms, now);
        Some(held)
    }

    /// Frees it, if it is held with that number, or whatever its number where none is given.
    pub fn free(&mut self, token: Option<u64>, now_ms: u64) -> Option<Held> {
        let held = self.held.take_if(|held| token.is_none_or(|token| held.token == token))?;
        self.reserve(now_ms);
        Some(held)
    }

    /// It is held through another node from here on. What the lock was, if it was held with that number.
    pub fn leave(&mut self, token: u64) -> Option<Held> {
        self.held.take_if(|held| held.token == token)
    }

    /// It was held through another node until now. False where a later number was given already, or this one is here.
    pub fn arrive(&mut self, held: Held) -> Result<Option<Held>, Held> {
        if self.held.as_ref().is_some_and(|one| one.token >= held.token) {
            return Err(held);
        }
        // Whoever had it here lost it before this number was given.
        self.reserved = None;
        self.waiters.retain(|waiter| !waiter.who.is_session_of(&held.holder));
        Ok(self.held.replace(held))
    }

    /// The connection that had it last is known.
    pub fn name_holder(&mut self, token: u64, client_id: &str) {
        if let Some(held) = self.held.as_mut().filter(|held| held.token == token && held.holder.client_id.is_empty()) {
            held.holder.client_id = client_id.into();
        }
    }

    /// Does what is due by now; the lock that has ended by it.
    pub fn pass(&mut self, now_ms: u64) -> Option<Held> {
        let ended = self.held.take_if(|held| held.until_ms <= now_ms);
        let unused = self.reserved.take_if(|(_, until_ms)| *until_ms <= now_ms);
        if ended.is_some() || unused.is_some() {
            self.reserve(now_ms);
        }
        if self.held.is_none() {
            self.waiters.retain(|waiter| !waiter.is_gone(now_ms));
        }
        ended
    }

    /// When [`Lock::pass`] has something to do, in milliseconds of the monotonic clock; none where nothing is left of it.
    pub fn due_ms(&self) -> Option<u64> {
        let held = self.held.as_ref().map(|held| held.until_ms);
        let reserved = self.reserved.as_ref().map(|(_, until_ms)| *until_ms);
        let forgotten = || self.waiters.iter().map(|waiter| waiter.last_ms + ATTEMPT_MS + 1).max();
        held.or(reserved).or_else(forgotten)
    }

    /// It has become free: the first who has been waiting for long enough is next.
    fn reserve(&mut self, now_ms: u64) {
        self.waiters.retain(|waiter| !waiter.is_gone(now_ms));
        let next = self.waiters.iter().position(|waiter| waiter.refusals >= REFUSALS_MIN);
        self.reserved = next.map(|next| (self.waiters.remove(next).who, now_ms + RESERVED_MS));
    }

    fn count_refusal(&mut self, who: Holder, now_ms: u64) {
        // Whoever stayed away for too long has lost its place.
        self.waiters.retain(|waiter| !waiter.is_gone(now_ms));
        if let Some(waiter) = self.waiters.iter_mut().find(|waiter| waiter.who.is_session_of(&who)) {
            waiter.refusals = waiter.refusals.saturating_add(1);
            waiter.last_ms = now_ms;
        } else if self.waiters.len() < WAITERS_MAX {
            self.waiters.push(Waiter { who, refusals: 1, last_ms: now_ms });
        }
    }
}

impl Held {
    /// Never shortens: what an older connection of the session sent may arrive behind what a newer one did, which has been
    /// told a later end.
    fn extend(&mut self, address: Address, who: Holder, ttl_ms: u64, now: Now) {
        // A millisecond more than is told, since the two clocks are cut to milliseconds at different moments: nobody else
        // has the lock before its holder knows that it has ended.
        self.until_ms = self.until_ms.max(now.monotonic_us / 1000 + ttl_ms + 1);
        self.expires_at_ms = self.expires_at_ms.max(now.unix_ms + ttl_ms);
        self.ttl_ms = ttl_ms;
        self.address = address;
        self.holder = who;
    }
}

#[cfg(test)]
mod tests {
    use super::super::name::ShardId;
    use super::*;
    use crate::ring::ConnKey;

    fn address(slot: u32) -> Address {
        Address { shard: ShardId(0), conn: ConnKey { slot, generation: 0 } }
    }

    fn who(session: &str) -> Holder {
        let identity = Arc::new(Identity::anonymous("alice".to_owned()));
        Holder { client_id: "c".into(), session_id: session.into(), identity }
    }

    fn at(ms: u64) -> Now {
        Now { monotonic_us: ms * 1000, unix_ms: 1_000_000 + ms }
    }

    /// A session's connection has the session's number.
    fn acquire(lock: &mut Lock, session: u32, known: Option<u64>, ms: u64, token: u64) -> Result<u64, Option<String>> {
        lock.pass(ms);
        let who = who(&session.to_string());
        let outcome = lock.acquire(address(session), who, known, 1000, at(ms), || token);
        outcome
            .map(|(held, _)| held.token)
            .map_err(|refused| refused.holder.map(|holder| holder.session_id.to_string()))
    }

    #[test]
    fn a_lock_is_held_by_one_session_until_it_is_freed_or_its_time_is_over() {
        let mut lock = Lock::default();
        assert_eq!(acquire(&mut lock, 1, None, 0, 7), Ok(7));
        assert_eq!(acquire(&mut lock, 2, None, 500, 8), Err(Some("1".to_owned())));
        assert!(lock.free(Some(6), 500).is_none(), "an old number frees nothing");
        assert_eq!(lock.free(Some(7), 500).map(|held| held.token), Some(7));
        assert_eq!(acquire(&mut lock, 2, None, 500, 8), Ok(8));
        assert_eq!(lock.due_ms(), Some(1501));
        assert!(lock.pass(1500).is_none());
        assert_eq!(lock.pass(1501).map(|held| held.token), Some(8));
        assert_eq!(lock.due_ms(), None);
        assert!(lock.renew(address(2), who("2"), 8, None, at(1501)).is_none());
    }

    #[test]
    fn the_session_that_holds_a_lock_renews_it_under_its_number() {
        let mut lock = Lock::default();
        assert_eq!(acquire(&mut lock, 1, None, 0, 7), Ok(7));
        assert_eq!(acquire(&mut lock, 1, None, 100, 8), Ok(7), "the same connection");
        // Another connection of the session has to know the number.
        assert!(lock.acquire(address(9), who("1"), None, 1000, at(200), || 9).is_err());
        assert!(lock.acquire(address(9), who("1"), Some(7), 1000, at(200), || 9).is_ok_and(|(_, taken)| !taken));
        assert!(
            lock.acquire(address(9), who("2"), Some(7), 1000, at(200), || 9).is_err(),
            "the number alone is not enough"
        );
        let held = lock.renew(address(9), who("1"), 7, Some(5000), at(300)).expect("held");
        assert_eq!((held.until_ms, held.expires_at_ms), (5301, 1_005_300));
        let held = lock.renew(address(9), who("1"), 7, Some(1), at(400)).expect("held");
        assert_eq!((held.until_ms, held.expires_at_ms), (5301, 1_005_300), "a renewal does not shorten");
        let held = lock.renew(address(9), who("1"), 7, None, at(6000)).expect("held");
        assert_eq!(held.until_ms, 6002, "as long as last time");
    }

    #[test]
    fn one_refusal_reserves_nothing_and_three_do() {
        let mut lock = Lock::default();
        assert_eq!(acquire(&mut lock, 1, None, 0, 1), Ok(1));
        assert!(acquire(&mut lock, 2, None, 10, 9).is_err());
        lock.free(Some(1), 20);
        assert_eq!(acquire(&mut lock, 1, None, 20, 2), Ok(2), "one refusal");
        assert!(acquire(&mut lock, 2, None, 30, 9).is_err());
        assert!(acquire(&mut lock, 2, None, 40, 9).is_err());
        lock.free(Some(2), 50);
        assert_eq!(acquire(&mut lock, 1, None, 60, 9), Err(None), "it is kept for the other one");
        assert_eq!(lock.due_ms(), Some(2050));
        assert_eq!(acquire(&mut lock, 2, None, 70, 3), Ok(3));
        // And its count begins anew.
        lock.free(Some(3), 80);
        assert_eq!(acquire(&mut lock, 1, None, 90, 4), Ok(4));
    }

    #[test]
    fn refusals_count_together_over_free_moments_and_not_over_long_ones() {
        let mut lock = Lock::default();
        for round in 0..3 {
            assert!(acquire(&mut lock, 1, None, round * 1000, round).is_ok());
            assert!(acquire(&mut lock, 2, None, round * 1000, 99).is_err());
            lock.free(None, round * 1000 + 500);
        }
        assert_eq!(acquire(&mut lock, 1, None, 2600, 99), Err(None));
        let mut lock = Lock::default();
        for round in 0..3 {
            assert!(acquire(&mut lock, 1, None, round * 6000, round).is_ok());
            assert!(acquire(&mut lock, 2, None, round * 6000, 99).is_err());
            lock.free(None, round * 6000 + 500);
        }
        assert_eq!(acquire(&mut lock, 1, None, 12_600, 5), Ok(5));
    }

    #[test]
    fn whoever_was_refused_first_is_next_and_one_that_is_gone_holds_up_the_others_for_a_moment() {
        let mut lock = Lock::default();
        assert_eq!(acquire(&mut lock, 1, None, 0, 1), Ok(1));
        for round in 0..3 {
            for session in [4, 2, 3] {
                assert!(acquire(&mut lock, session, None, 100 * round, 9).is_err());
            }
        }
        lock.free(Some(1), 300);
        assert_eq!(acquire(&mut lock, 2, None, 400, 9), Err(None));
        // Session 4 has gone; session 2 is next, then 3.
        assert_eq!(acquire(&mut lock, 3, None, 2300, 9), Err(None));
        assert_eq!(acquire(&mut lock, 2, None, 2300, 2), Ok(2));
        lock.free(Some(2), 2400);
        assert_eq!(acquire(&mut lock, 2, None, 2400, 9), Err(None));
        assert_eq!(acquire(&mut lock, 3, None, 2400, 3), Ok(3));
    }

    #[test]
    fn nothing_is_left_of_a_free_lock_that_nobody_asks_for() {
        let mut lock = Lock::default();
        assert_eq!(acquire(&mut lock, 1, None, 0, 1), Ok(1));
        for session in 2..50 {
            for _ in 0..3 {
                assert!(acquire(&mut lock, session, None, 10, 9).is_err());
            }
        }
        assert!(lock.waiters.len() <= WAITERS_MAX);
        lock.free(None, 20);
        let mut looks = 0;
        while let Some(due_ms) = lock.due_ms() {
            lock.pass(due_ms);
            looks += 1;
            assert!(looks < 10 && due_ms < 20 + ATTEMPT_MS + RESERVED_MS);
        }
    }

    #[test]
    fn another_user_with_the_name_of_an_ended_session_is_somebody_else() {
        let mut lock = Lock::default();
        assert_eq!(acquire(&mut lock, 1, None, 0, 1), Ok(1));
        let bob = Holder { identity: Arc::new(Identity::anonymous("bob".to_owned())), ..who("1") };
        assert!(lock.acquire(address(1), bob, Some(1), 1000, at(0), || 2).is_err());
    }
}

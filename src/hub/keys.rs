//! Idempotency keys: what was published under a key in a room within the last five minutes is not published again.

use std::collections::VecDeque;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::message::Published;

/// How long a key is remembered (PROTOCOL §4).
pub const KEY_AGE_MS: u64 = 300_000;
/// Keys remembered per room; beyond it the oldest is forgotten early.
pub const KEYS_MAX: usize = 16_384;

/// The keys of a room.
#[derive(Debug)]
pub struct Keys {
    published: HashMap<Box<str>, Published, FixedState>,
    oldest: VecDeque<(u64, Box<str>)>,
}

impl Keys {
    /// No keys; hashed with a seed that clients don't know.
    pub fn new(seed: u64) -> Keys {
        Keys { published: HashMap::with_hasher(FixedState::with_seed(seed)), oldest: VecDeque::new() }
    }

    /// What was published under a key.
    pub fn find(&mut self, key: &str, now_ms: u64) -> Option<Published> {
        self.forget_old(now_ms);
        self.published.get(key).copied()
    }

    /// Remembers what was published under a key.
    pub fn remember(&mut self, key: &str, published: Published, now_ms: u64) {
        if self.oldest.len() >= KEYS_MAX
            && let Some((_, oldest)) = self.oldest.pop_front()
        {
            self.published.remove(&oldest);
        }
        self.published.insert(key.into(), published);
        self.oldest.push_back((now_ms + KEY_AGE_MS, key.into()));
    }

    /// Forgets what is too old.
    pub fn forget_old(&mut self, now_ms: u64) {
        while self.oldest.front().is_some_and(|(until_ms, _)| *until_ms <= now_ms) {
            if let Some((_, key)) = self.oldest.pop_front() {
                self.published.remove(&key);
            }
        }
    }

    /// Forgets what was published after `seq`, since it came to nothing. Keys are remembered in the order of their events.
    pub fn forget_after(&mut self, seq: u64) {
        while let Some((_, key)) = self.oldest.back() {
            if self.published.get(key).is_some_and(|published| published.seq <= seq) {
                return;
            }
            self.published.remove(key);
            self.oldest.pop_back();
        }
    }

    /// Whether none are remembered.
    pub fn is_empty(&self) -> bool {
        self.oldest.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(seq: u64) -> Published {
        Published { id: [b'0'; 36], seq, epoch: 1, duplicate: false, delivered: 0, queued: 0, nodes: 0 }
    }

    #[test]
    fn a_key_is_remembered_for_five_minutes() {
        let mut keys = Keys::new(1);
        keys.remember("a", published(1), 0);
        keys.remember("b", published(2), 200_000);
        assert_eq!(keys.find("a", 299_999).map(|p| p.seq), Some(1));
        assert_eq!(keys.find("a", 300_000), None);
        assert_eq!(keys.find("b", 300_000).map(|p| p.seq), Some(2));
        assert_eq!(keys.find("b", 500_000), None);
        assert!(keys.is_empty());
    }

    #[test]
    fn what_came_to_nothing_may_be_published_again() {
        let mut keys = Keys::new(1);
        for seq in 1..=4 {
            keys.remember(&seq.to_string(), published(seq), seq);
        }
        keys.forget_after(2);
        assert_eq!(keys.find("2", 5).map(|p| p.seq), Some(2));
        assert_eq!((keys.find("3", 5), keys.find("4", 5)), (None, None));
        keys.forget_after(0);
        assert!(keys.is_empty());
    }

    #[test]
    fn the_number_of_keys_is_bounded() {
        let mut keys = Keys::new(1);
        for number in 0..KEYS_MAX as u64 + 10 {
            keys.remember(&number.to_string(), published(number), 0);
        }
        assert_eq!(keys.find("9", 0), None);
        assert_eq!(keys.find("10", 0).map(|p| p.seq), Some(10));
        assert_eq!(keys.published.len(), KEYS_MAX);
    }
}

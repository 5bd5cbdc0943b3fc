//! Whether a link hears what is said over it: now and then the broker says something to itself, in one channel, or in several
//! of a cluster, so that each of its servers has to carry something. Pure.
//!
//! In a cluster some may fail for a server that is gone while the others are well, and are begun anew later. Where none is
//! heard, the link is deaf, whatever it answers.

use std::collections::HashSet;

/// How often it is tried whether a link hears its own messages.
pub const CANARY_MS: u64 = 2000;

/// The canaries of a link.
#[derive(Debug)]
pub struct Canaries {
    count: usize,
    /// Those whose channels are subscribed to, and those that are being.
    listening: HashSet<usize>,
    asked: HashSet<usize>,
    /// Those that were sent and neither heard nor refused, and when they were.
    unheard: HashSet<usize>,
    sent_ms: Option<u64>,
    /// Whether one of the last was heard.
    is_heard: bool,
    next_ms: u64,
}

/// What is due.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Canaries whose channels are to be subscribed to.
    pub listen: Vec<usize>,
    /// Canaries that are to be sent.
    pub say: Vec<usize>,
}

impl Canaries {
    /// So many, none of which is subscribed to.
    pub fn new(count: usize, now_ms: u64) -> Canaries {
        Canaries {
            count,
            listening: HashSet::new(),
            asked: HashSet::new(),
            unheard: HashSet::new(),
            sent_ms: None,
            is_heard: true,
            next_ms: now_ms,
        }
    }

    /// What is to be done by now.
    pub fn due(&mut self, now_ms: u64) -> Option<Round> {
        if self.next_ms > now_ms || self.sent_ms.is_some() {
            return None;
        }
        self.next_ms = now_ms + CANARY_MS;
        let mut round = Round::default();
        for canary in 0..self.count {
            if self.listening.contains(&canary) {
                round.say.push(canary);
            } else if self.asked.insert(canary) {
                round.listen.push(canary);
            }
        }
        if !round.say.is_empty() {
            self.unheard = self.listening.clone();
            (self.sent_ms, self.is_heard) = (Some(now_ms), false);
        }
        Some(round)
    }

    /// A channel is subscribed to, or can't be. False where none can.
    pub fn listens(&mut self, canary: usize, does: bool) -> bool {
        self.asked.remove(&canary);
        if does {
            self.listening.insert(canary);
        }
        if does && self.asked.is_empty() && self.sent_ms.is_none() {
            // They can be sent at once.
            self.next_ms = 0;
        }
        !self.asked.is_empty() || !self.listening.is_empty()
    }

    /// A server has ended a subscription: the channel is another's now.
    pub fn lost(&mut self, canary: usize) {
        self.listening.remove(&canary);
        self.is_heard |= self.unheard.contains(&canary);
        self.forget(canary);
    }

    /// One was heard.
    pub fn heard(&mut self, canary: usize) {
        self.is_heard |= self.unheard.contains(&canary);
        self.forget(canary);
    }

    /// One could not be sent, so that it can't be heard. False where that is so of all.
    pub fn refused(&mut self, canary: usize) -> bool {
        let was_last = self.forget(canary);
        !was_last || self.is_heard
    }

    /// True where it was the last that was waited for.
    fn forget(&mut self, canary: usize) -> bool {
        let was_waited_for = self.unheard.remove(&canary);
        if self.unheard.is_empty() {
            self.sent_ms = None;
        }
        was_waited_for && self.unheard.is_empty()
    }

    /// Whether one was not heard for so long.
    pub fn is_deaf(&self, now_ms: u64, deaf_ms: u64) -> bool {
        self.sent_ms.is_some_and(|sent_ms| sent_ms + deaf_ms <= now_ms)
    }

    /// When something is due next.
    pub fn next_ms(&self, deaf_ms: u64) -> u64 {
        self.sent_ms.map_or(self.next_ms, |sent_ms| sent_ms + deaf_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEAF_MS: u64 = 1000;

    /// All are subscribed to, and the first round was sent.
    fn sent(count: usize) -> Canaries {
        let mut canaries = Canaries::new(count, 0);
        let all: Vec<usize> = (0..count).collect();
        assert_eq!(canaries.due(0), Some(Round { listen: all.clone(), say: vec![] }));
        assert!((0..count).all(|canary| canaries.listens(canary, true)));
        assert_eq!(canaries.due(5), Some(Round { listen: vec![], say: all }));
        canaries
    }

    #[test]
    fn one_that_is_heard_is_sent_again_later() {
        let mut canaries = sent(1);
        assert_eq!((canaries.due(6), canaries.next_ms(DEAF_MS)), (None, 5 + DEAF_MS));
        canaries.heard(0);
        assert!(!canaries.is_deaf(5 + DEAF_MS, DEAF_MS));
        assert_eq!((canaries.due(6), canaries.next_ms(DEAF_MS)), (None, 5 + CANARY_MS));
        assert_eq!(canaries.due(5 + CANARY_MS), Some(Round { listen: vec![], say: vec![0] }));
        assert!(canaries.is_deaf(5 + CANARY_MS + DEAF_MS, DEAF_MS), "this one was not heard");
    }

    #[test]
    fn a_server_that_is_gone_is_no_matter_of_the_others() {
        let mut canaries = sent(3);
        canaries.heard(0);
        assert!(canaries.refused(1), "there are others");
        canaries.heard(2);
        assert!(!canaries.is_deaf(5 + DEAF_MS, DEAF_MS));
        // And where it was gone before.
        let mut canaries = Canaries::new(2, 0);
        canaries.due(0);
        assert!(canaries.listens(0, true) && canaries.listens(1, false));
        assert_eq!(canaries.due(5), None, "what fails is not tried over and over");
        assert_eq!(canaries.due(CANARY_MS), Some(Round { listen: vec![1], say: vec![0] }));
        canaries.heard(0);
        assert!(canaries.listens(1, true));
        assert_eq!(canaries.due(CANARY_MS + 1), Some(Round { listen: vec![], say: vec![0, 1] }));
    }

    #[test]
    fn where_none_can_be_sent_or_listened_to_all_is_gone() {
        let mut canaries = sent(2);
        assert!(canaries.refused(0));
        assert!(!canaries.refused(1), "none was heard");
        let mut canaries = Canaries::new(2, 0);
        canaries.due(0);
        assert!(canaries.listens(0, false));
        assert!(!canaries.listens(1, false));
    }

    #[test]
    fn a_channel_that_goes_to_another_server_is_subscribed_to_anew() {
        let mut canaries = sent(2);
        canaries.lost(0);
        canaries.heard(1);
        assert_eq!(canaries.due(5 + CANARY_MS), Some(Round { listen: vec![0], say: vec![1] }));
        // One that came a second time, or late, is none that is waited for.
        canaries.heard(0);
        assert!(canaries.is_deaf(5 + CANARY_MS + DEAF_MS, DEAF_MS));
    }
}

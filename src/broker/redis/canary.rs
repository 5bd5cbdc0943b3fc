//! Whether a link hears what is said over it: now and then the broker says something to itself. Where that is not heard, the
//! link is deaf, whatever it answers. Pure.

/// How often it is tried whether a link hears its own messages.
pub const CANARY_MS: u64 = 2000;

/// The canary of a link.
#[derive(Debug)]
pub struct Canary {
    /// Which of its channels is used: in a cluster each server has others.
    channel: u32,
    listening: Listening,
    /// When it was said last, while it was neither heard nor refused.
    said_ms: Option<u64>,
    next_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listening {
    No,
    Asked,
    Yes,
}

/// What is due.
#[derive(Debug, PartialEq, Eq)]
pub enum Due {
    /// The channel is to be subscribed to.
    Listen,
    /// Something is to be said in it.
    Say,
}

impl Canary {
    /// One that is not listened to yet.
    pub fn new(channel: u32, now_ms: u64) -> Canary {
        Canary { channel, listening: Listening::No, said_ms: None, next_ms: now_ms }
    }

    /// Its channel.
    pub fn channel(&self) -> u32 {
        self.channel
    }

    /// What is to be done by now.
    pub fn due(&mut self, now_ms: u64) -> Option<Due> {
        if self.next_ms > now_ms || self.said_ms.is_some() {
            return None;
        }
        self.next_ms = now_ms + CANARY_MS;
        // What was asked for and is not there by then is asked for again.
        if self.listening == Listening::Yes {
            self.said_ms = Some(now_ms);
            Some(Due::Say)
        } else {
            self.listening = Listening::Asked;
            Some(Due::Listen)
        }
    }

    /// Its channel is subscribed to.
    pub fn listens(&mut self, channel: u32) {
        if self.channel == channel && self.listening != Listening::Yes {
            // It can be said at once.
            (self.listening, self.next_ms) = (Listening::Yes, 0);
        }
    }

    /// The server has ended a subscription: the channel is another's now.
    pub fn lost(&mut self, channel: u32) {
        if self.channel == channel && self.listening == Listening::Yes {
            (self.listening, self.said_ms) = (Listening::No, None);
        }
    }

    /// It was heard.
    pub fn heard(&mut self, channel: u32) {
        if self.channel == channel {
            self.said_ms = None;
        }
    }

    /// It could not be said, so that it can't be heard.
    pub fn refused(&mut self, channel: u32) {
        self.heard(channel);
    }

    /// Whether it was not heard for so long.
    pub fn is_deaf(&self, now_ms: u64, deaf_ms: u64) -> bool {
        self.said_ms.is_some_and(|said_ms| said_ms + deaf_ms <= now_ms)
    }

    /// When something is due next.
    pub fn next_ms(&self, deaf_ms: u64) -> u64 {
        self.said_ms.map_or(self.next_ms, |said_ms| said_ms + deaf_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEAF_MS: u64 = 1000;

    /// It is subscribed to, and was said at 5 ms.
    fn said() -> Canary {
        let mut canary = Canary::new(7, 0);
        assert_eq!(canary.due(0), Some(Due::Listen));
        assert_eq!(canary.due(5), None);
        canary.listens(7);
        assert_eq!(canary.due(5), Some(Due::Say));
        canary
    }

    #[test]
    fn one_that_is_heard_is_said_again_later() {
        let mut canary = said();
        assert_eq!((canary.due(6), canary.next_ms(DEAF_MS)), (None, 5 + DEAF_MS));
        canary.heard(8);
        assert!(canary.is_deaf(5 + DEAF_MS, DEAF_MS), "another's");
        canary.heard(7);
        assert!(!canary.is_deaf(5 + DEAF_MS, DEAF_MS));
        assert_eq!((canary.due(6), canary.next_ms(DEAF_MS)), (None, 5 + CANARY_MS));
        assert_eq!(canary.due(5 + CANARY_MS), Some(Due::Say));
        assert!(canary.is_deaf(5 + CANARY_MS + DEAF_MS, DEAF_MS), "this one was not heard");
    }

    #[test]
    fn one_that_can_not_be_said_is_not_waited_for() {
        let mut canary = said();
        canary.refused(7);
        assert!(!canary.is_deaf(5 + DEAF_MS, DEAF_MS));
        assert_eq!(canary.due(5 + CANARY_MS), Some(Due::Say));
    }

    #[test]
    fn a_channel_that_goes_to_another_server_is_asked_for_until_it_is_there() {
        let mut canary = said();
        canary.lost(8);
        assert_eq!(canary.next_ms(DEAF_MS), 5 + DEAF_MS, "that was another's");
        canary.lost(7);
        assert!(!canary.is_deaf(5 + DEAF_MS, DEAF_MS));
        assert_eq!(canary.due(5 + CANARY_MS), Some(Due::Listen));
        assert_eq!(canary.due(5 + 2 * CANARY_MS), Some(Due::Listen), "it may have been refused");
        canary.listens(7);
        canary.listens(7);
        assert_eq!(canary.due(6 + 2 * CANARY_MS), Some(Due::Say));
    }
}

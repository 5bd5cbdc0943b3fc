//! What the home of a session's room knows besides the room: whose session it is, which connection holds it, and the
//! inbox of messages that wait for the backend.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::batch::Address;
use super::reply::Responder;

/// A session at its home.
#[derive(Debug)]
pub struct SessionHome {
    /// The user who began it; nobody else may hold it.
    pub user_id: Arc<str>,
    /// The connection that holds it.
    pub live: Option<Address>,
    inbox: VecDeque<Bytes>,
    waiting: VecDeque<Responder<Bytes>>,
}

impl SessionHome {
    /// A session that a user begins.
    pub fn new(user_id: Arc<str>) -> SessionHome {
        SessionHome { user_id, live: None, inbox: VecDeque::new(), waiting: VecDeque::new() }
    }

    /// Whether nothing would be lost with it.
    pub fn is_idle(&self) -> bool {
        self.live.is_none() && self.inbox.is_empty() && self.waiting.is_empty()
    }

    /// Puts a client's message into the inbox, or hands it to someone who waits for one. False where the inbox is full.
    pub fn deposit(&mut self, mut message: Bytes, inbox_max: usize) -> bool {
        while let Some(waiting) = self.waiting.pop_front() {
            match waiting.try_resolve(Ok(message)) {
                Ok(()) => return true,
                // Whoever waited has given up; the message is still ours.
                Err(Ok(given_back)) => message = given_back,
                Err(Err(_)) => return false,
            }
        }
        if self.inbox.len() >= inbox_max {
            return false;
        }
        self.inbox.push_back(message);
        true
    }

    /// Answers with the next message, now or when there is one. False where too many wait already.
    pub fn collect(&mut self, responder: Responder<Bytes>, waiting_max: usize) -> bool {
        self.waiting.retain(|waiting| !waiting.is_abandoned());
        match self.inbox.pop_front() {
            Some(message) => {
                if let Err(Ok(message)) = responder.try_resolve(Ok(message)) {
                    self.inbox.push_front(message);
                }
                true
            }
            None if self.waiting.len() >= waiting_max => false,
            None => {
                self.waiting.push_back(responder);
                true
            }
        }
    }

    /// Messages that wait.
    pub fn inbox_len(&self) -> usize {
        self.inbox.len()
    }
}

#[cfg(test)]
mod tests {
    use super::super::reply::pending;
    use super::*;

    #[test]
    fn messages_wait_in_order_and_the_inbox_is_bounded() {
        let mut session = SessionHome::new("alice".into());
        assert!(session.deposit(Bytes::from_static(b"1"), 2));
        assert!(session.deposit(Bytes::from_static(b"2"), 2));
        assert!(!session.deposit(Bytes::from_static(b"3"), 2));
        for expected in ["1", "2"] {
            let (responder, answer) = pending();
            assert!(session.collect(responder, 4));
            assert_eq!(answer.wait().expect("answered"), expected.as_bytes());
        }
        assert!(session.is_idle());
    }

    #[test]
    fn a_message_goes_past_those_who_gave_up_to_the_next_who_waits() {
        let mut session = SessionHome::new("alice".into());
        let (first, gave_up) = pending();
        let (second, answer) = pending();
        assert!(session.collect(first, 4));
        assert!(session.collect(second, 4));
        drop(gave_up);
        assert!(session.deposit(Bytes::from_static(b"x"), 0));
        assert_eq!(answer.wait().expect("answered"), &b"x"[..]);
    }
}

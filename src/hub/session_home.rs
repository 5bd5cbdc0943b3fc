//! What the home of a session's room knows besides the room: whose session it is, which connection holds it, and the
//! inbox of messages that wait for the backend.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::batch::Address;
use super::message::{Kept, ResumeToken};
use super::presence::Turn;
use super::reply::{HubError, Responder};
use crate::auth::Identity;
use crate::wire::codes::ErrorCode;

/// Bytes that the messages of one inbox may have together; a client sends as fast as it may, whether or not the backend
/// reads.
const INBOX_BYTES_MAX: usize = 1 << 20;

/// A session at its home.
#[derive(Debug)]
pub struct SessionHome {
    /// Who began it; nobody else may hold it. Shared with the session itself, so that it costs a pointer.
    pub identity: Arc<Identity>,
    /// The connection that holds it.
    pub live: Option<Address>,
    /// The turn of the last connection that took it up.
    pub turn: Turn,
    /// What proves that a client had it before.
    pub token: ResumeToken,
    /// What waits for it. Most sessions have a connection and no messages for the backend, and spend one pointer on it.
    waits: Option<Box<Waits>>,
}

/// What waits for the next connection of a session, and for the backend.
#[derive(Debug, Default)]
struct Waits {
    /// What it had when its connection went, for as long as it can be resumed.
    kept: Option<Box<Kept>>,
    /// Until when what is left of it is kept, in milliseconds of the monotonic clock.
    away_until_ms: u64,
    /// Most sessions have neither messages for the backend nor calls of it that wait for one.
    inbox: Option<Box<Inbox>>,
}

#[derive(Debug, Default)]
struct Inbox {
    messages: VecDeque<Bytes>,
    bytes: usize,
    waiting: VecDeque<Responder<Bytes>>,
}

impl Waits {
    fn is_empty(&self) -> bool {
        self.kept.is_none() && self.inbox.is_none()
    }
}

impl SessionHome {
    /// A session that a user begins.
    pub fn new(identity: Arc<Identity>, token: ResumeToken) -> SessionHome {
        SessionHome { identity, live: None, turn: Turn::default(), token, waits: None }
    }

    /// A connection takes it up; which one held it before.
    pub fn take_up(&mut self, address: Address, unix_ms: u64) -> Option<Address> {
        if self.live != Some(address) {
            self.turn = self.turn.next(unix_ms);
        }
        self.live.replace(address)
    }

    /// Whether nothing would be lost with it.
    pub fn is_idle(&self) -> bool {
        self.live.is_none() && self.waits.as_ref().is_none_or(|waits| waits.is_empty())
    }

    /// A connection that held it is gone; `kept` is all that is left of it. True where that waits until then. Where another
    /// one has taken it over by its name, that one may still ask for what the old one had.
    pub fn leave(&mut self, address: Address, kept: Option<Box<Kept>>, away_until_ms: u64) -> bool {
        let held_it = self.live == Some(address);
        if held_it {
            self.live = None;
        }
        if !held_it && kept.is_none() {
            return false;
        }
        self.keep(kept, away_until_ms);
        self.waits.as_ref().is_some_and(|waits| !waits.is_empty())
    }

    /// What its connection had is kept until then.
    pub fn keep(&mut self, kept: Option<Box<Kept>>, away_until_ms: u64) {
        let waits = self.waits.get_or_insert_default();
        (waits.kept, waits.away_until_ms) = (kept, away_until_ms);
        self.tidy();
    }

    /// What is kept of it.
    pub fn kept(&self) -> Option<&Kept> {
        self.waits.as_ref()?.kept.as_deref()
    }

    /// What is kept of it, to be changed.
    pub fn kept_mut(&mut self) -> Option<&mut Kept> {
        self.waits.as_mut()?.kept.as_deref_mut()
    }

    /// Takes out what is kept of it.
    pub fn take_kept(&mut self) -> Option<Box<Kept>> {
        let kept = self.waits.as_mut()?.kept.take();
        self.tidy();
        kept
    }

    /// Until when what is left of it is kept, in milliseconds of the monotonic clock.
    pub fn away_until_ms(&self) -> u64 {
        self.waits.as_ref().map_or(0, |waits| waits.away_until_ms)
    }

    /// Whether nobody came back in time.
    pub fn is_over(&self, now_ms: u64) -> bool {
        self.live.is_none() && self.away_until_ms() <= now_ms
    }

    /// Whether it can be resumed by someone with that user id and token, compared in time that tells nothing of it.
    pub fn may_be_resumed(&self, user_id: &str, token: &ResumeToken) -> bool {
        let differs = self.token.iter().zip(token).fold(0, |differs, (one, other)| differs | (one ^ other));
        self.identity.user_id == user_id && differs == 0
    }

    /// Puts a client's message into the inbox, or hands it to someone who waits for one. False where the inbox is full.
    pub fn deposit(&mut self, mut message: Bytes, inbox_max: usize) -> bool {
        let inbox = self.waits.get_or_insert_default().inbox.get_or_insert_default();
        while let Some(waiting) = inbox.waiting.pop_front() {
            match waiting.try_resolve(Ok(message)) {
                Ok(()) => {
                    self.tidy();
                    return true;
                }
                // Whoever waited has given up; the message is still ours.
                Err(Ok(given_back)) => message = given_back,
                Err(Err(_)) => return false,
            }
        }
        // The bound in bytes leaves room for one message of any size.
        let fits = inbox.messages.len() < inbox_max
            && (inbox.messages.is_empty() || inbox.bytes + message.len() <= INBOX_BYTES_MAX);
        if fits {
            inbox.bytes += message.len();
            inbox.messages.push_back(message);
        }
        self.tidy();
        fits
    }

    /// Puts a message back in front of those that wait, or hands it to someone who waits for one.
    pub fn put_back(&mut self, mut message: Bytes) {
        let inbox = self.waits.get_or_insert_default().inbox.get_or_insert_default();
        while let Some(waiting) = inbox.waiting.pop_front() {
            match waiting.try_resolve(Ok(message)) {
                Err(Ok(given_back)) => message = given_back,
                Ok(()) | Err(Err(_)) => return self.tidy(),
            }
        }
        inbox.bytes += message.len();
        inbox.messages.push_front(message);
    }

    /// Answers with the next message, now or when there is one. False where too many wait already.
    pub fn collect(&mut self, responder: Responder<Bytes>, waiting_max: usize) -> bool {
        let inbox = self.waits.get_or_insert_default().inbox.get_or_insert_default();
        inbox.waiting.retain(|waiting| !waiting.is_abandoned());
        let taken = match inbox.messages.pop_front() {
            Some(message) => {
                let bytes = message.len();
                match responder.try_resolve(Ok(message)) {
                    Err(Ok(message)) => inbox.messages.push_front(message),
                    Ok(()) | Err(Err(_)) => inbox.bytes -= bytes,
                }
                true
            }
            None if inbox.waiting.len() >= waiting_max => false,
            None => {
                inbox.waiting.push_back(responder);
                true
            }
        };
        self.tidy();
        taken
    }

    fn tidy(&mut self) {
        let Some(waits) = self.waits.as_mut() else { return };
        waits.inbox.take_if(|inbox| inbox.messages.is_empty() && inbox.waiting.is_empty());
        // Of a session without a connection it is still to be known until when it is kept.
        if self.live.is_some() && waits.is_empty() {
            self.waits = None;
        }
    }

    /// Takes all messages out. Whoever waits for one is told that there is no such session any more.
    pub fn take_inbox(&mut self) -> Vec<Bytes> {
        let inbox = self.waits.as_mut().and_then(|waits| waits.inbox.take());
        let Some(Inbox { messages, waiting, .. }) = inbox.map(|inbox| *inbox) else { return Vec::new() };
        for one in waiting {
            one.resolve(Err(HubError::new(ErrorCode::NotFound, "the session is at another node now")));
        }
        messages.into()
    }

    /// Messages that wait.
    pub fn inbox_len(&self) -> usize {
        self.waits.as_ref().and_then(|waits| waits.inbox.as_ref()).map_or(0, |inbox| inbox.messages.len())
    }
}

#[cfg(test)]
mod tests {
    use super::super::name::ShardId;
    use super::super::reply::pending;
    use super::*;
    use crate::ring::ConnKey;

    fn session() -> SessionHome {
        SessionHome::new(Arc::new(Identity::anonymous("alice".to_owned())), [0; 16])
    }

    #[test]
    fn messages_wait_in_order_and_the_inbox_is_bounded() {
        let mut session = session();
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
    fn what_waits_takes_memory_only_while_it_does() {
        let (mut session, address) =
            (session(), Address { shard: ShardId(0), conn: ConnKey { slot: 1, generation: 0 } });
        assert_eq!(session.take_up(address, 0), None);
        assert!(session.deposit(Bytes::from_static(b"1"), 1));
        let (responder, _answer) = pending();
        assert!(session.collect(responder, 1));
        assert!(session.waits.is_none());
        assert!(session.leave(address, Some(Box::default()), 5));
        assert!(session.kept().is_some() && !session.is_over(4) && session.is_over(5));
        assert_eq!(session.take_up(address, 0), None);
        assert!(session.take_kept().is_some());
        assert!(session.waits.is_none());
    }

    #[test]
    fn a_session_without_a_connection_is_kept_until_its_time_even_if_nothing_waits() {
        let (mut session, address) =
            (session(), Address { shard: ShardId(0), conn: ConnKey { slot: 1, generation: 0 } });
        session.take_up(address, 0);
        assert!(!session.leave(address, None, 5), "nothing waits");
        assert!(session.is_idle() && !session.is_over(4) && session.is_over(5));
    }

    #[test]
    fn a_message_that_is_put_back_is_the_next_again() {
        let mut session = session();
        assert!(session.deposit(Bytes::from_static(b"2"), 4));
        session.put_back(Bytes::from_static(b"1"));
        for expected in ["1", "2"] {
            let (responder, answer) = pending();
            assert!(session.collect(responder, 4));
            assert_eq!(answer.wait().expect("answered"), expected.as_bytes());
        }
        let (responder, answer) = pending();
        assert!(session.collect(responder, 4));
        session.put_back(Bytes::from_static(b"3"));
        assert_eq!(answer.wait().expect("answered"), &b"3"[..]);
        assert!(session.is_idle());
    }

    #[test]
    fn an_inbox_is_bounded_in_bytes_and_takes_one_message_of_any_size() {
        let mut session = session();
        assert!(session.deposit(Bytes::from(vec![b' '; 2 * INBOX_BYTES_MAX]), 100));
        assert!(!session.deposit(Bytes::from_static(b"1"), 100));
        let (responder, answer) = pending();
        assert!(session.collect(responder, 4));
        assert_eq!(answer.wait().expect("answered").len(), 2 * INBOX_BYTES_MAX);
        assert!(session.deposit(Bytes::from_static(b"1"), 100));
        assert!(session.deposit(Bytes::from(vec![b' '; INBOX_BYTES_MAX - 1]), 100));
        assert!(!session.deposit(Bytes::from_static(b"1"), 100));
    }

    #[test]
    fn a_message_goes_past_those_who_gave_up_to_the_next_who_waits() {
        let mut session = session();
        let (first, gave_up) = pending();
        let (second, answer) = pending();
        assert!(session.collect(first, 4));
        assert!(session.collect(second, 4));
        drop(gave_up);
        assert!(session.deposit(Bytes::from_static(b"x"), 0));
        assert_eq!(answer.wait().expect("answered"), &b"x"[..]);
    }
}

//! What is on its way to the backend: a bounded queue that nobody ever waits at.
//!
//! Shards put reports in, and the sender's thread takes them out when it looks, so that putting one in rings no bell. What
//! does not fit is counted as lost, and that is all that a slow backend can do to a shard.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use crossbeam::queue::ArrayQueue;

use crate::auth::Identity;
use crate::control::store::ConnectionReport;
use crate::hub::name::RoomName;
use crate::session::ClientId;
use crate::session::SessionId;

/// Something that a backend may be told of.
#[derive(Debug, Clone)]
pub enum Report {
    /// A client was let in, or is gone.
    Connection(ConnectionReport),
    /// A client sent a message for the backend.
    Message(Box<MessageReport>),
    /// A room has its first member, or the last one has gone.
    Room {
        /// The room.
        room: RoomName,
        /// Which of the two.
        is_occupied: bool,
        /// When, as unix time.
        at_ms: u64,
    },
}

/// A client's message for the backend.
#[derive(Debug, Clone)]
pub struct MessageReport {
    /// When it came, as unix time.
    pub at_ms: u64,
    /// The client.
    pub client_id: ClientId,
    /// Its session.
    pub session_id: SessionId,
    /// Whose it is.
    pub identity: Arc<Identity>,
    /// The message's data: valid JSON.
    pub data: Bytes,
}

impl Report {
    /// What it takes beyond its place in the queue.
    fn bytes(&self) -> usize {
        match self {
            Report::Message(message) => message.data.len(),
            // Names are short, and shared with whoever has them.
            Report::Connection(_) | Report::Room { .. } => 0,
        }
    }
}

/// The queue.
#[derive(Debug)]
pub struct Feed {
    reports: ArrayQueue<Report>,
    bytes: AtomicUsize,
    bytes_max: usize,
    lost: AtomicU64,
}

impl Feed {
    /// A queue for so many reports, and so many bytes of messages.
    pub fn new(reports_max: usize, bytes_max: usize) -> Feed {
        Feed {
            reports: ArrayQueue::new(reports_max.max(1)),
            bytes: AtomicUsize::new(0),
            bytes_max,
            lost: AtomicU64::new(0),
        }
    }

    /// Puts a report in. False where it does not fit, which is counted.
    pub fn push(&self, report: Report) -> bool {
        let bytes = report.bytes();
        if self.bytes.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) > self.bytes_max && bytes > 0
            || self.reports.push(report).is_err()
        {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.lost.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        true
    }

    /// Takes out the oldest report.
    pub fn pop(&self) -> Option<Report> {
        let report = self.reports.pop()?;
        self.bytes.fetch_sub(report.bytes(), Ordering::Relaxed);
        Some(report)
    }

    /// How many reports wait.
    pub fn queued(&self) -> usize {
        self.reports.len()
    }

    /// Counts as lost what was taken out and could not be told.
    pub(super) fn count_lost(&self, events: u64) {
        self.lost.fetch_add(events, Ordering::Relaxed);
    }

    /// How many were lost.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: usize) -> Report {
        Report::Message(Box::new(MessageReport {
            at_ms: 0,
            client_id: "c".into(),
            session_id: "s".into(),
            identity: Arc::new(Identity::anonymous("u".to_owned())),
            data: Bytes::from(vec![b'1'; bytes]),
        }))
    }

    #[test]
    fn what_does_not_fit_in_number_or_bytes_is_counted() {
        let feed = Feed::new(3, 100);
        assert!(feed.push(message(60)));
        assert!(!feed.push(message(60)), "too many bytes");
        assert!(feed.push(message(40)) && feed.push(message(0)));
        assert!(!feed.push(message(0)), "too many reports");
        assert_eq!((feed.queued(), feed.lost()), (3, 2));
        assert!(feed.pop().is_some());
        assert!(feed.push(message(60)), "the place and the bytes are free again");
    }

    #[test]
    fn a_report_is_small_enough_to_wait_in_thousands() {
        assert!(size_of::<Report>() <= 144, "{}", size_of::<Report>());
    }
}

//! What is on its way to the store: bounded queues that nobody ever waits at.
//!
//! Shards and the monitor put reports in; the store's thread takes them out when it looks, so that putting one in rings no
//! bell. What does not fit is counted as lost, and that is all that a slow disk can do to a shard.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;

use super::records::{AlertRecord, Sample};
use crate::auth::Identity;
use crate::ring::ConnKey;
use crate::session::ClientId;
use crate::session::SessionId;

/// Samples that may wait: half an hour of them.
const SAMPLES_MAX: usize = 180;
/// Changes of alerts that may wait: there are few alerts, and each changes once in several seconds at most.
const ALERTS_MAX: usize = 256;

/// Who ended a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClosedBy {
    /// The hub, with a close frame.
    Hub,
    /// The client, with a close frame.
    Client,
    /// Nobody said anything: the socket ended or failed.
    Nobody,
}

impl ClosedBy {
    /// As it stands in the table.
    pub fn as_str(self) -> &'static str {
        match self {
            ClosedBy::Hub => "hub",
            ClosedBy::Client => "client",
            ClosedBy::Nobody => "nobody",
        }
    }
}

/// How a connection ended.
#[derive(Debug, Clone)]
pub struct Closed {
    /// When, as unix time.
    pub at_ms: u64,
    /// The close code; none where there was no close frame or it had none.
    pub code: Option<u16>,
    /// What was said about it.
    pub reason: Box<str>,
    /// Who ended it.
    pub by: ClosedBy,
    /// Messages that came from the client.
    pub messages_received: u32,
    /// Bytes that came from it.
    pub bytes_received: u64,
    /// Bytes that were sent to it.
    pub bytes_sent: u64,
}

/// A connection that was let in or has ended. Both reports of one say who it was, so that one that is lost costs no more
/// than what it alone knew.
#[derive(Debug, Clone)]
pub struct ConnectionReport {
    /// Its shard.
    pub shard: u16,
    /// Its place there, which no other connection has had (within 16 million that used the place).
    pub conn: ConnKey,
    /// When it was let in, as unix time.
    pub opened_ms: u64,
    /// Its client id.
    pub client_id: ClientId,
    /// Its session.
    pub session_id: SessionId,
    /// Whose it is.
    pub identity: Arc<Identity>,
    /// Its end; none in the report of its beginning.
    pub closed: Option<Closed>,
}

/// What was lost, by table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Reports of connections.
    pub connections: u64,
    /// Performance samples.
    pub samples: u64,
    /// Changes of alerts.
    pub alerts: u64,
}

impl Counts {
    /// All together.
    pub fn total(&self) -> u64 {
        self.connections + self.samples + self.alerts
    }
}

/// Counts that several threads add to.
#[derive(Debug, Default)]
pub(super) struct SharedCounts {
    connections: AtomicU64,
    samples: AtomicU64,
    alerts: AtomicU64,
}

impl SharedCounts {
    pub(super) fn add(&self, counts: Counts) {
        self.connections.fetch_add(counts.connections, Ordering::Relaxed);
        self.samples.fetch_add(counts.samples, Ordering::Relaxed);
        self.alerts.fetch_add(counts.alerts, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> Counts {
        Counts {
            connections: self.connections.load(Ordering::Relaxed),
            samples: self.samples.load(Ordering::Relaxed),
            alerts: self.alerts.load(Ordering::Relaxed),
        }
    }
}

/// The queues.
#[derive(Debug)]
pub struct Ledger {
    connections: ArrayQueue<ConnectionReport>,
    samples: ArrayQueue<Sample>,
    alerts: ArrayQueue<AlertRecord>,
    pub(super) lost: SharedCounts,
}

impl Ledger {
    /// Queues in which so many reports of connections may wait.
    pub fn new(connections_max: usize) -> Ledger {
        Ledger {
            connections: ArrayQueue::new(connections_max.max(1)),
            samples: ArrayQueue::new(SAMPLES_MAX),
            alerts: ArrayQueue::new(ALERTS_MAX),
            lost: SharedCounts::default(),
        }
    }

    /// Reports a connection.
    pub fn connection(&self, report: ConnectionReport) {
        if self.connections.push(report).is_err() {
            self.lost.add(Counts { connections: 1, ..Counts::default() });
        }
    }

    /// Reports a sample.
    pub fn sample(&self, sample: Sample) {
        if self.samples.push(sample).is_err() {
            self.lost.add(Counts { samples: 1, ..Counts::default() });
        }
    }

    /// Reports that an alert was raised or cleared.
    pub fn alert(&self, record: AlertRecord) {
        if self.alerts.push(record).is_err() {
            self.lost.add(Counts { alerts: 1, ..Counts::default() });
        }
    }

    /// Takes out the oldest report of a connection.
    pub fn next_connection(&self) -> Option<ConnectionReport> {
        self.connections.pop()
    }

    /// How many reports wait.
    pub fn queued(&self) -> usize {
        self.connections.len() + self.samples.len() + self.alerts.len()
    }

    /// What was lost so far.
    pub fn lost(&self) -> Counts {
        self.lost.read()
    }

    /// Moves what waits into a batch, up to its bound.
    pub(super) fn take(&self, batch: &mut Batch) {
        while let Some(record) = self.alerts.pop() {
            batch.alerts.push(record);
        }
        while let Some(sample) = self.samples.pop() {
            batch.samples.push(sample);
        }
        while batch.connections.len() < BATCH_MAX
            && let Some(report) = self.next_connection()
        {
            batch.connections.push(report);
        }
    }
}

/// Reports of connections in one transaction: some 10 ms of work, after which questions get their turn.
const BATCH_MAX: usize = 2000;

/// What is written together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub connections: Vec<ConnectionReport>,
    pub samples: Vec<Sample>,
    pub alerts: Vec<AlertRecord>,
}

impl Batch {
    pub(super) fn counts(&self) -> Counts {
        Counts {
            connections: self.connections.len() as u64,
            samples: self.samples.len() as u64,
            alerts: self.alerts.len() as u64,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.counts().total() == 0
    }

    pub(super) fn clear(&mut self) {
        self.connections.clear();
        self.samples.clear();
        self.alerts.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(slot: u32) -> ConnectionReport {
        ConnectionReport {
            shard: 0,
            conn: ConnKey { slot, generation: 0 },
            opened_ms: 0,
            client_id: "c".into(),
            session_id: "s".into(),
            identity: Arc::new(Identity::anonymous("u".to_owned())),
            closed: None,
        }
    }

    #[test]
    fn what_does_not_fit_is_counted_and_what_fits_comes_out_in_order() {
        let ledger = Ledger::new(3);
        (0..5).for_each(|slot| ledger.connection(report(slot)));
        assert_eq!((ledger.queued(), ledger.lost().connections), (3, 2));
        let mut batch = Batch::default();
        ledger.take(&mut batch);
        let slots: Vec<u32> = batch.connections.iter().map(|report| report.conn.slot).collect();
        assert_eq!(slots, [0, 1, 2]);
        assert_eq!(ledger.queued(), 0);
    }

    #[test]
    fn a_report_is_small_enough_to_wait_in_thousands() {
        assert!(size_of::<ConnectionReport>() <= 136, "{}", size_of::<ConnectionReport>());
    }
}

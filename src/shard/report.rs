//! What the stored history is told of connections. Where none is kept this is one look at a missing ledger.

use super::connection::Phase;
use super::state::State;
use crate::control::store::{Closed, ClosedBy, ConnectionReport};
use crate::ring::ConnKey;

/// How a connection ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ending<'r> {
    /// The close code, where one was said.
    pub code: Option<u16>,
    /// What was said about it.
    pub reason: &'r str,
    /// By whom.
    pub by: ClosedBy,
}

impl Ending<'_> {
    /// The socket ended or failed, and nobody said anything.
    pub const LOST: Ending<'static> = Ending { code: None, reason: "", by: ClosedBy::Nobody };
}

impl State {
    /// Reports that a client was let in.
    pub fn report_opened(&self, conn: ConnKey) {
        let Some(ledger) = &self.ledger else { return };
        if let Some(report) = self.report(conn) {
            ledger.connection(report);
        }
    }

    /// Reports that a client is gone; nothing for what was never let in.
    pub fn report_closed(&self, conn: ConnKey, ending: Ending<'_>) {
        let (Some(ledger), Some(connection)) = (&self.ledger, self.connections.get(conn)) else { return };
        let Some(report) = self.report(conn) else { return };
        let closed = Closed {
            at_ms: self.now.unix_ms,
            code: ending.code,
            reason: ending.reason.into(),
            by: ending.by,
            messages_received: connection.messages_received,
            bytes_received: connection.received_bytes,
            bytes_sent: connection.sent_bytes,
        };
        ledger.connection(ConnectionReport { closed: Some(closed), ..report });
    }

    fn report(&self, conn: ConnKey) -> Option<ConnectionReport> {
        let Phase::Open(client) = &self.connections.get(conn)?.phase else { return None };
        let session = &client.session;
        Some(ConnectionReport {
            shard: self.me.0,
            conn,
            opened_ms: self.now.unix_ms.saturating_sub(self.now_ms().saturating_sub(client.opened_ms)),
            client_id: session.client_id.clone(),
            session_id: session.session_id.clone(),
            identity: session.identity.clone(),
            closed: None,
        })
    }
}

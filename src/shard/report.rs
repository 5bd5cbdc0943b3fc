//! What the stored history and the backend's hooks are told. Where there are none this is one look at a missing ledger and
//! one at a missing feed.

use bytes::Bytes;

use super::connection::Phase;
use super::state::State;
use crate::config::HookKind;
use crate::control::hooks::{MessageReport, Report};
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
        if self.ledger.is_none() && self.hooks.feed.is_none() {
            return;
        }
        if let Some(report) = self.report(conn) {
            self.hand_on(HookKind::Connect, report);
        }
    }

    /// Reports that a client is gone; nothing for what was never let in.
    pub fn report_closed(&self, conn: ConnKey, ending: Ending<'_>) {
        if self.ledger.is_none() && self.hooks.feed.is_none() {
            return;
        }
        let Some(connection) = self.connections.get(conn) else { return };
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
        self.hand_on(HookKind::Disconnect, ConnectionReport { closed: Some(closed), ..report });
    }

    fn hand_on(&self, kind: HookKind, report: ConnectionReport) {
        if let Some(feed) = self.hooks.feed.as_ref().filter(|_| self.is_told(kind)) {
            // What does not fit is counted there.
            feed.push(Report::Connection(report.clone()));
        }
        if let Some(ledger) = &self.ledger {
            ledger.connection(report);
        }
    }

    fn is_told(&self, kind: HookKind) -> bool {
        self.settings.config.hooks.events.contains(&kind)
    }

    /// Reports a client's message for the backend. False where no hook tells of it.
    pub fn report_message(&self, conn: ConnKey, data: &Bytes) -> bool {
        let Some(feed) = self.hooks.feed.as_ref().filter(|_| self.is_told(HookKind::Message)) else { return false };
        let Some(Phase::Open(client)) = self.connections.get(conn).map(|connection| &connection.phase) else {
            return false;
        };
        let session = &client.session;
        feed.push(Report::Message(Box::new(MessageReport {
            at_ms: self.now.unix_ms,
            client_id: session.client_id.clone(),
            session_id: session.session_id.clone(),
            identity: session.identity.clone(),
            data: data.clone(),
        })))
    }

    /// Reports the rooms homed here that were occupied or vacated in this turn.
    pub fn report_rooms(&mut self) {
        let Some(feed) = &self.hooks.feed else { return };
        for (room, is_occupied) in self.core.take_occupancy() {
            feed.push(Report::Room { room, is_occupied, at_ms: self.now.unix_ms });
        }
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

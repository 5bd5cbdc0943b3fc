//! Whether a client may connect, where a backend is asked: after its token was found good and its claims are granted, and
//! before it is in any room. The shard goes on meanwhile; the client's going away, the end of the wait and a drain all end
//! in the same way as for any other admission.

use std::sync::Arc;

use super::admission::RETRY_AFTER_S;
use super::connection::{Admission, HeadBuffer, Phase};
use super::report::Ending;
use super::request::counted_address;
use super::state::State;
use crate::config::Config;
use crate::control::hooks::{Question, RequestTold, Verdict};
use crate::control::telemetry::{Side, Span};
use crate::ring::ConnKey;
use crate::wire::http::Head;
use crate::wire::refusal::Refusal;

/// What an answer may take longer than the configuration allows: the threads that wait for it may have to wait for a
/// processor, and a second attempt begins within the time of the first.
const MARGIN_MS: u64 = 5000;
/// What of a header is told.
const HEADER_BYTES_MAX: usize = 1024;

/// What the backend is told of a request.
pub(super) fn request_told(head: &Head<'_>, buffer: &HeadBuffer, config: &Config) -> Box<RequestTold> {
    let headers = config.hooks.connect_headers.iter().filter_map(|name| {
        let value = head.header(name)?;
        (value.len() <= HEADER_BYTES_MAX).then(|| (name.to_ascii_lowercase().into(), value.into()))
    });
    Box::new(RequestTold {
        path: head.path.into(),
        address: counted_address(&buffer.origin),
        headers: headers.collect(),
    })
}

impl Admission {
    /// The rooms that the backend has added.
    pub(super) fn more_rooms(&self) -> impl Iterator<Item = &str> {
        let rooms = self.grant.iter().flat_map(|grant| grant.added.rooms.iter());
        let mine = |room: &str| {
            room == "global"
                || room.strip_prefix("user:") == Some(&self.admit.identity.user_id)
                || room.strip_prefix("session:") == Some(&self.session_id)
        };
        rooms.map(|room| &**room).filter(move |room| !mine(room))
    }
}

impl State {
    /// Begins the span of an admission, where it is to be told.
    pub(super) fn admission_span(&self, head: &Head<'_>) -> Option<Box<Span>> {
        let telemetry = self.hooks.telemetry.as_ref().filter(|_| head.wants_websocket())?;
        telemetry.begin(Side::Server, head.header("traceparent")).map(Box::new)
    }

    /// Tells how an admission ended; `outcome` is a word of a small set.
    pub(super) fn end_span(&self, span: Option<Box<Span>>, outcome: &'static str, status: u16) {
        let Some(span) = span else { return };
        let attributes = vec![
            ("http.request.method", "GET".into()),
            ("http.response.status_code", u64::from(status).into()),
            ("ringhub.outcome", outcome.into()),
            ("ringhub.shard", u64::from(self.me.0).into()),
        ];
        span.end("websocket connect", attributes, (status >= 500).then_some(outcome));
    }

    /// Tells how the admission of a connection ended, if it is in one that is traced.
    pub(super) fn admission_ended(&mut self, conn: ConnKey, outcome: &'static str, status: u16) {
        let Some(connection) = self.connections.get_mut(conn) else { return };
        let Phase::Admission(admission) = &mut connection.phase else { return };
        let span = admission.span.take();
        self.end_span(span, outcome, status);
    }

    /// Asks the backend; the verdict comes as a request.
    pub(super) fn ask_backend(&mut self, conn: ConnKey, request: Box<RequestTold>) {
        let due_ms = self.now_ms() + self.settings.config.hooks.connect_timeout_ms + MARGIN_MS;
        let Some(desk) = self.hooks.desk.clone() else { return self.join_first_rooms(conn) };
        let Some(connection) = self.connections.get_mut(conn) else { return };
        let Phase::Admission(admission) = &mut connection.phase else { return };
        let asked = Arc::new(());
        let question = Question {
            shard: self.me,
            conn,
            identity: admission.admit.identity.clone(),
            client_id: admission.client_id.clone(),
            session_id: admission.session_id.clone(),
            request,
            trace: admission.span.as_ref().map(|span| span.context()),
            client: Arc::downgrade(&asked),
        };
        if desk.ask(question).is_err() {
            let refusal = Refusal::unavailable("too many clients wait to be let in", RETRY_AFTER_S);
            return self.refuse_admission(conn, "hook_busy", &refusal);
        }
        admission.asked = Some(asked);
        connection.due_ms = due_ms;
        self.timers.schedule(conn, &mut connection.alarm, due_ms);
    }

    /// The backend's word on a client, unless that has gone away meanwhile.
    pub(super) fn verdict(&mut self, conn: ConnKey, verdict: Verdict) {
        let Some(connection) = self.connections.get_mut(conn) else { return };
        let Phase::Admission(admission) = &mut connection.phase else { return };
        if admission.asked.take().is_none() {
            return;
        }
        match verdict {
            Verdict::Allow(grant) => {
                if *grant != Default::default() {
                    admission.admit.identity = Arc::new(admission.admit.identity.with(grant.added.clone()));
                    admission.grant = Some(grant);
                }
                self.join_first_rooms(conn);
                self.drain_local();
            }
            Verdict::Deny(refusal) => self.refuse_admission(conn, "hook_denied", &refusal),
            Verdict::Failed => {
                let message = "the backend that decides who may connect does not answer";
                self.refuse_admission(conn, "hook_failed", &Refusal::unavailable(message, RETRY_AFTER_S));
            }
        }
    }

    fn refuse_admission(&mut self, conn: ConnKey, label: &'static str, refusal: &Refusal) {
        self.admission_ended(conn, label, refusal.status);
        self.release(conn, Ending::LOST);
        self.refuse_as(conn, label, refusal);
    }
}

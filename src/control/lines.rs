//! `POST /api/v1/publish` with `application/x-ndjson`: an event per line, an answer per line, in order, for as long as the
//! caller goes on. A caller that does not read its answers is not read from either.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::Stream;
use hyper::StatusCode;
use hyper::body::Body as _;
use hyper::header::{self, HeaderMap};

use super::api::Api;
use super::backend::{Backend, Published};
use super::body::refused;
use super::door::Remote;
use super::publish::Entry;
use super::service::Streams;
use crate::hub::reply::{HubError, Pending};
use crate::wire::codes::ErrorCode;

const NDJSON: &str = "application/x-ndjson";
/// Events whose answers are waited for at a time.
const IN_FLIGHT_MAX: usize = 256;
/// Answers are sent off when there are no more just now, or so many bytes.
const CHUNK_BYTES: usize = 16 * 1024;

/// Whether the body is one event per line.
pub(crate) fn is_lines(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().is_some_and(|essence| essence.trim().eq_ignore_ascii_case(NDJSON))
}

/// Publishes the lines of a body as they come.
pub(crate) fn publish_lines<B: Backend>(api: Arc<Api<B>>, identity: Arc<B::Identity>, body: Body) -> Response {
    let lines = Lines {
        api,
        identity,
        body,
        unread: Vec::new(),
        looked_at: 0,
        ended: false,
        pending: VecDeque::new(),
        answers: Vec::new(),
    };
    let headers = [(header::CONTENT_TYPE, NDJSON), (header::CACHE_CONTROL, "no-store")];
    let mut response = (StatusCode::OK, headers, Body::from_stream(lines)).into_response();
    response.extensions_mut().insert(Streams);
    response
}

struct Lines<B: Backend> {
    api: Arc<Api<B>>,
    identity: Arc<B::Identity>,
    body: Body,
    /// What came and is no whole line yet.
    unread: Vec<u8>,
    /// How much of it has no line's end.
    looked_at: usize,
    ended: bool,
    pending: VecDeque<Remote<Pending<Published>>>,
    answers: Vec<u8>,
}

impl<B: Backend> Lines<B> {
    /// The next line, without its end; the last one need not have any.
    fn next_line(&mut self) -> Option<Vec<u8>> {
        loop {
            let unseen = self.unread.get(self.looked_at..).unwrap_or_default();
            let line = match memchr::memchr(b'\n', unseen) {
                Some(at) => {
                    let rest = self.unread.split_off(self.looked_at + at + 1);
                    std::mem::replace(&mut self.unread, rest)
                }
                None if self.ended => std::mem::take(&mut self.unread),
                None => {
                    self.looked_at = self.unread.len();
                    return None;
                }
            };
            self.looked_at = 0;
            if line.is_empty() {
                return None;
            }
            if !line.trim_ascii().is_empty() {
                return Some(line);
            }
        }
    }

    fn publish(&mut self, line: &[u8]) {
        self.pending.push_back(match serde_json::from_slice(line) {
            Ok(event) => self.api.publish(&self.identity, event),
            Err(error) => self.api.remote(Pending::ready(Err(refused(&error)))),
        });
    }

    fn answer(&mut self, outcome: &Result<Published, HubError>) {
        // What is written here can be: texts and numbers.
        if serde_json::to_writer(&mut self.answers, &Entry::new(outcome)).is_ok() {
            self.answers.push(b'\n');
        }
    }

    /// Takes what came; a line beyond the bound ends it all, since what comes behind it can't be told apart.
    fn take(&mut self, bytes: &[u8]) {
        self.unread.extend_from_slice(bytes);
        let limit = self.api.body_bytes_max;
        if self.unread.len() > limit && memchr::memchr(b'\n', &self.unread).is_none() {
            self.unread = Vec::new();
            self.ended = true;
            let message = format!("a line is longer than {limit} bytes");
            self.pending.push_back(self.api.remote(Pending::ready(Err(HubError::new(ErrorCode::TooLarge, message)))));
        }
    }
}

impl<B: Backend> Stream for Lines<B> {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            while this.pending.len() < IN_FLIGHT_MAX
                && let Some(line) = this.next_line()
            {
                this.publish(&line);
            }
            while this.answers.len() < CHUNK_BYTES
                && let Some(first) = this.pending.front_mut()
                && let Poll::Ready(outcome) = Pin::new(first).poll(context)
            {
                this.pending.pop_front();
                this.answer(&outcome);
            }
            if !this.answers.is_empty() {
                return Poll::Ready(Some(Ok(Bytes::from(std::mem::take(&mut this.answers)))));
            }
            if this.ended {
                if this.pending.is_empty() && this.unread.is_empty() {
                    return Poll::Ready(None);
                }
                return Poll::Pending;
            }
            if this.pending.len() >= IN_FLIGHT_MAX {
                return Poll::Pending;
            }
            match std::task::ready!(Pin::new(&mut this.body).poll_frame(context)) {
                Some(Ok(frame)) => {
                    if let Some(bytes) = frame.data_ref() {
                        this.take(bytes);
                    }
                }
                Some(Err(_)) => {
                    // Cut off: a line that may be a half is not published.
                    this.unread = Vec::new();
                    this.ended = true;
                }
                None => this.ended = true,
            }
        }
    }
}

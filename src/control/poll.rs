//! Requests that wait for something to happen (`GET /api/v1/sessions/{id}/messages?timeout_s=30`): the connection's side
//! has the timer, since glommio's timers stay on their thread, and tells the handler when the time is over.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_channel::oneshot;
use futures_util::FutureExt as _;
use futures_util::future::Shared;
use hyper::{Method, Request};

/// The longest wait.
pub(crate) const WAIT_MAX_S: u64 = 300;
/// The wait where the caller says nothing.
const WAIT_DEFAULT_S: u64 = 30;

/// Resolves when the time is over.
#[derive(Debug, Clone)]
pub(crate) struct IsOver(Shared<oneshot::Receiver<()>>);

impl Future for IsOver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        // A sender that is gone means that nobody counts the time any more.
        self.0.poll_unpin(context).map(drop)
    }
}

/// What tells a handler that its time is over.
pub(crate) fn time() -> (oneshot::Sender<()>, IsOver) {
    let (sender, receiver) = oneshot::channel();
    (sender, IsOver(receiver.shared()))
}

/// How long a request may wait; none for those that don't. What is said of the time and is no number counts as none said:
/// the route refuses it.
pub(crate) fn wait_of<T>(request: &Request<T>) -> Option<Duration> {
    let path = request.uri().path();
    let waits = request.method() == Method::GET
        && path.strip_prefix("/api/v1/sessions/").is_some_and(|rest| rest.ends_with("/messages"));
    if !waits {
        return None;
    }
    let query = request.uri().query().unwrap_or_default();
    let seconds = query.split('&').find_map(|pair| pair.strip_prefix("timeout_s=")?.parse().ok());
    Some(Duration::from_secs(seconds.unwrap_or(WAIT_DEFAULT_S).min(WAIT_MAX_S)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_for_messages_waits_as_long_as_it_says_within_a_bound() {
        let wait =
            |target: &str| wait_of(&Request::get(target).body(()).expect("a request")).map(|wait| wait.as_secs());
        assert_eq!(wait("/api/v1/sessions/s/messages"), Some(30));
        assert_eq!(wait("/api/v1/sessions/s/messages?a=b&timeout_s=5"), Some(5));
        assert_eq!(wait("/api/v1/sessions/s/messages?timeout_s=100000"), Some(300));
        assert_eq!(wait("/api/v1/sessions/s"), None);
        assert_eq!(wait("/api/v1/messages"), None);
    }
}

//! Answers across threads: what a caller of the hub's handle waits for.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_channel::oneshot;

use crate::wire::codes::ErrorCode;
use crate::wire::native::Refused;

/// Why a call to the hub failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubError {
    /// The protocol's error code.
    pub code: ErrorCode,
    /// One sentence for a person.
    pub message: String,
}

impl HubError {
    /// An error with its sentence.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> HubError {
        HubError { code, message: message.into() }
    }
}

impl fmt::Display for HubError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.code.as_str(), self.message)
    }
}

impl std::error::Error for HubError {}

impl From<Refused> for HubError {
    fn from(refused: Refused) -> HubError {
        HubError { code: refused.code, message: refused.message.into_owned() }
    }
}

/// An answer on its way: a future, or something to wait for.
#[derive(Debug)]
#[must_use = "the answer tells whether it worked"]
pub struct Pending<T>(pub(crate) oneshot::Receiver<Result<T, HubError>>);

/// The side that answers. One that is dropped answers `unavailable`.
pub struct Responder<T> {
    answer: Option<Answer<T>>,
    /// What it says then.
    dropped: &'static str,
}

/// What is said of a hub that has ended.
const STOPPED: &str = "the hub stopped before it answered";
/// The same of something that may be done all the same.
const STOPPED_IN_DOUBT: &str =
    "the hub stopped before it answered; the event may still be published: with a key it can be repeated safely";

enum Answer<T> {
    To(oneshot::Sender<Result<T, HubError>>),
    Call(Box<dyn FnOnce(Result<T, HubError>) + Send>),
}

impl<T> fmt::Debug for Responder<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Responder")
    }
}

/// A pair of the two.
pub fn pending<T>() -> (Responder<T>, Pending<T>) {
    let (sender, receiver) = oneshot::channel();
    (Responder { answer: Some(Answer::To(sender)), dropped: STOPPED }, Pending(receiver))
}

impl<T> Pending<T> {
    /// An answer that is known already.
    pub fn ready(answer: Result<T, HubError>) -> Pending<T> {
        let (responder, pending) = pending();
        responder.resolve(answer);
        pending
    }
}

impl<T> Pending<T> {
    /// Waits no longer: an answer that has come already is given, and none comes from here on. None where none had come,
    /// or it had been given.
    pub fn close(&mut self) -> Option<Result<T, HubError>> {
        self.0.close();
        self.0.try_recv().ok().flatten()
    }
}

impl<T> Future for Pending<T> {
    type Output = Result<T, HubError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0)
            .poll(context)
            .map(|answer| answer.unwrap_or_else(|_| Err(HubError::new(ErrorCode::Unavailable, STOPPED))))
    }
}

impl<T> Responder<T> {
    /// A responder whose answer is handed to a function.
    pub fn to(call: impl FnOnce(Result<T, HubError>) + Send + 'static) -> Responder<T> {
        let dropped = "the hub can't answer right now; try again";
        Responder { answer: Some(Answer::Call(Box::new(call))), dropped }
    }

    /// One that says, should it be dropped, that the event may be published all the same.
    pub fn in_doubt(mut self) -> Responder<T> {
        self.dropped = STOPPED_IN_DOUBT;
        self
    }

    /// Answers; nobody may be waiting any more, which is not an error.
    pub fn resolve(self, answer: Result<T, HubError>) {
        drop(self.try_resolve(answer));
    }

    /// Answers, and gives the answer back where nobody waits any more.
    pub fn try_resolve(mut self, answer: Result<T, HubError>) -> Result<(), Result<T, HubError>> {
        match self.answer.take() {
            Some(Answer::To(sender)) => sender.send(answer),
            Some(Answer::Call(call)) => {
                call(answer);
                Ok(())
            }
            None => Err(answer),
        }
    }

    /// Whether nobody waits any more.
    pub fn is_abandoned(&self) -> bool {
        matches!(&self.answer, Some(Answer::To(sender)) if sender.is_canceled())
    }
}

impl<T> Drop for Responder<T> {
    fn drop(&mut self) {
        let Some(answer) = self.answer.take() else { return };
        let error = Err(HubError::new(ErrorCode::Unavailable, self.dropped));
        match answer {
            // Nobody may be waiting any more.
            Answer::To(sender) => drop(sender.send(error)),
            Answer::Call(call) => call(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_executor::block_on;

    use super::*;

    #[test]
    fn whoever_waits_is_told_though_the_responder_was_dropped() {
        let (responder, answer) = pending::<u8>();
        drop(responder);
        assert_eq!(block_on(answer).map_err(|error| error.code), Err(ErrorCode::Unavailable));
        let (responder, answer) = pending::<u8>();
        drop(Responder::to(move |outcome: Result<u8, HubError>| responder.resolve(outcome)));
        assert_eq!(block_on(answer).map_err(|error| error.code), Err(ErrorCode::Unavailable));
        assert_eq!(block_on(Pending::ready(Ok(7))), Ok(7));
    }

    #[test]
    fn what_may_be_done_all_the_same_is_not_told_to_have_failed() {
        let (responder, answer) = pending::<u8>();
        drop(responder.in_doubt());
        let error = block_on(answer).expect_err("nobody answered");
        assert_eq!((error.code, &*error.message), (ErrorCode::Unavailable, STOPPED_IN_DOUBT));
        let (responder, answer) = pending();
        responder.in_doubt().resolve(Ok(7));
        assert_eq!(block_on(answer), Ok(7));
    }

    #[test]
    fn an_answer_that_came_before_the_end_of_the_wait_is_not_left_behind() {
        let (responder, mut answer) = pending();
        responder.resolve(Ok(7));
        assert_eq!(answer.close(), Some(Ok(7)));
        assert_eq!(answer.close(), None);
        let (responder, mut answer) = pending::<u8>();
        assert_eq!(answer.close(), None);
        assert_eq!(responder.try_resolve(Ok(7)), Err(Ok(7)));
    }

    #[test]
    fn an_answer_that_nobody_waits_for_comes_back() {
        let (responder, answer) = pending();
        assert!(!responder.is_abandoned());
        drop(answer);
        assert!(responder.is_abandoned());
        assert_eq!(responder.try_resolve(Ok(7)), Err(Ok(7)));
    }
}

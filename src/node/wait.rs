//! Waiting for the hub's answers on a thread of one's own.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake};
use std::thread::Thread;
use std::time::{Duration, Instant};

use super::{HubError, Pending};

impl<T> Pending<T> {
    /// Blocks this thread until the answer is there. Not for use on a shard or in async code.
    pub fn wait(self) -> Result<T, HubError> {
        futures_executor::block_on(self)
    }

    /// Blocks this thread until the answer is there or the time is over (none). What comes later is not lost where the
    /// answering side keeps it, as an inbox does.
    pub fn wait_timeout(mut self, timeout: Duration) -> Result<Option<T>, HubError> {
        let waker = Arc::new(Unpark(std::thread::current())).into();
        let mut context = Context::from_waker(&waker);
        let until = Instant::now() + timeout;
        loop {
            if let Poll::Ready(answer) = Pin::new(&mut self).poll(&mut context) {
                return answer.map(Some);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                // An answer that came in this very moment is taken, not lost.
                self.0.close();
                return match self.0.try_recv() {
                    Ok(Some(answer)) => answer.map(Some),
                    Ok(None) | Err(_) => Ok(None),
                };
            }
            std::thread::park_timeout(left);
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::reply::pending;

    #[test]
    fn an_answer_in_time_is_had_and_none_after_it() {
        let (responder, answer) = pending();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            responder.resolve(Ok(7));
        });
        assert_eq!(answer.wait_timeout(Duration::from_secs(20)), Ok(Some(7)));
        thread.join().expect("ends");
        let (responder, answer) = pending::<u8>();
        assert_eq!(answer.wait_timeout(Duration::from_millis(5)), Ok(None));
        assert!(responder.is_abandoned(), "whoever answers later knows that nobody waits");
    }
}

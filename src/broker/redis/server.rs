//! One server of several (or a cluster): its link, what is sent over it, and which rooms are followed over it.

use std::collections::VecDeque;
use std::sync::Arc;

use redis::{ErrorKind, RedisError, ServerErrorKind, Value};

use super::canaries::Canaries;
use super::connection::{Connections, Inbox, LinkError, Target};
use super::encoding;
use super::primaries::{Lanes, Primaries, Primary};
use super::submissions::{NO_LINK, Outcome, Submissions};
use crate::hub::name::RoomName;
use crate::wire::codes::ErrorCode;
use crate::wire::native::Refused;

/// The first wait before a link is made again, and the longest. What is drawn is between half of it and all.
const WAIT_MIN_MS: u64 = 40;
const WAIT_MAX_MS: u64 = 5000;

/// A link that was there for this long was a good one.
const LASTING_MS: u64 = 500;

/// Channels whose subscription is on its way to a primary, or whose end is.
const SUBSCRIPTIONS_MAX: usize = 2048;

/// Reads on their way to a primary. What comes meanwhile waits for them, so that this bounds it.
const READS_MAX: usize = 512;

/// Channels that are tried in a cluster: enough for each of its servers to have one, with near certainty.
const CANARIES_OF_CLUSTER: usize = 32;

/// A server.
pub struct Server {
    /// What is connected to.
    pub target: Arc<Target>,
    /// Its addresses, for people.
    pub name: String,
    /// The link.
    pub link: Link,
    /// Tells links apart, so that what is reported of a former one means nothing.
    pub generation: u64,
    /// Events for it.
    pub submissions: Submissions,
    /// Its primaries, where it is a cluster.
    pub primaries: Primaries,
    /// Rooms whose channels are subscribed to.
    pub subscribing: Lanes,
    /// Rooms that are not wanted any more.
    pub unsubscribing: Lanes,
    /// Rooms that are read.
    pub reading: Lanes,
    /// Rooms that are read or subscribed to again at a time, after a refusal.
    pub retries: VecDeque<(u64, RoomName)>,
    attempts: u32,
    /// When its last link was made.
    pub up_ms: u64,
    was_up: bool,
    said_ms: Option<u64>,
}

/// What there is of a link.
pub enum Link {
    /// Nothing until this time.
    Down {
        /// When to try.
        retry_ms: u64,
    },
    /// It is being made.
    Connecting,
    /// It is there.
    Up(Box<Up>),
}

/// A link.
pub struct Up {
    /// Its connections.
    pub connections: Connections,
    /// What they push.
    pub inbox: Arc<Inbox>,
    /// Whether it hears what is said over it.
    pub canaries: Canaries,
}

impl Server {
    /// One that there is no link to yet.
    pub fn new(target: Target, submissions: Submissions) -> Server {
        Server {
            name: target.name(),
            target: Arc::new(target),
            link: Link::Down { retry_ms: 0 },
            generation: 0,
            submissions,
            primaries: Primaries::default(),
            subscribing: Lanes::new(SUBSCRIPTIONS_MAX),
            unsubscribing: Lanes::new(SUBSCRIPTIONS_MAX),
            reading: Lanes::new(READS_MAX),
            retries: VecDeque::new(),
            attempts: 0,
            up_ms: 0,
            was_up: false,
            said_ms: None,
        }
    }

    /// The link, where there is one.
    pub fn up(&mut self) -> Option<&mut Up> {
        match &mut self.link {
            Link::Up(up) => Some(up),
            _ => None,
        }
    }

    /// Whether there is a link.
    pub fn is_up(&self) -> bool {
        matches!(self.link, Link::Up(_))
    }

    /// Whether a complaint is due: one a second, since all rooms have the same.
    pub fn may_say(&mut self, now_ms: u64) -> bool {
        let may = self.said_ms.is_none_or(|said_ms| said_ms + 1000 <= now_ms);
        if may {
            self.said_ms = Some(now_ms);
        }
        may
    }

    /// Takes an answer to CLUSTER SLOTS. False where it is none.
    pub fn learn(&mut self, slots: &Value) -> bool {
        let is_known = self.primaries.learn(slots);
        if is_known {
            for lanes in [&mut self.subscribing, &mut self.unsubscribing, &mut self.reading] {
                lanes.rearrange(&self.primaries);
            }
            self.submissions.rearrange(&self.primaries);
        }
        is_known
    }

    /// What a command at a primary came to.
    pub fn saw(&mut self, primary: Primary, error: Option<&RedisError>) {
        self.primaries.saw(primary, error.is_none_or(|error| meaning(error) == Meaning::Refused));
    }

    /// There is a link. Whether it was there before, and was lost.
    pub fn set_up(&mut self, connections: Connections, inbox: Arc<Inbox>, now_ms: u64) -> bool {
        self.up_ms = now_ms;
        let canaries = Canaries::new(if self.target.is_cluster() { CANARIES_OF_CLUSTER } else { 1 }, now_ms);
        self.link = Link::Up(Box::new(Up { connections, inbox, canaries }));
        std::mem::replace(&mut self.was_up, true)
    }

    /// There is no link, and another is tried some time later.
    pub fn set_down(&mut self, now_ms: u64) {
        if self.is_up() {
            // One that ends as soon as it is there is not made as often as can be, but soon: an answer may wait for it.
            let is_lasting = now_ms >= self.up_ms + LASTING_MS;
            self.attempts = if is_lasting { 0 } else { self.attempts.min(2) };
        }
        let longest = (WAIT_MIN_MS << self.attempts.min(16)).min(WAIT_MAX_MS);
        self.attempts = self.attempts.saturating_add(1);
        self.link = Link::Down { retry_ms: now_ms + fastrand::u64(longest / 2..=longest) };
        self.generation += 1;
        for lanes in [&mut self.subscribing, &mut self.unsubscribing, &mut self.reading] {
            lanes.clear();
        }
        self.retries.clear();
        self.primaries.link_down();
    }
}

/// What an error means for the link and for what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// The link is broken, or the server does not answer: it is not known whether what was asked was done.
    Broken,
    /// The server takes nothing for now, and did nothing. Another link may lead to one that does.
    NotNow,
    /// This was refused, and not done.
    Refused,
}

/// What an error means.
pub fn meaning(error: &RedisError) -> Meaning {
    match error.kind() {
        ErrorKind::Server(
            ServerErrorKind::BusyLoading
            | ServerErrorKind::MasterDown
            | ServerErrorKind::ReadOnly
            | ServerErrorKind::ClusterDown,
        ) => Meaning::NotNow,
        ErrorKind::Server(_) | ErrorKind::Extension => match error.code() {
            // The user was taken away, or its password changed.
            Some("NOAUTH" | "WRONGPASS") => Meaning::NotNow,
            _ => Meaning::Refused,
        },
        _ => Meaning::Broken,
    }
}

/// What is told to who asked for something that the server refused.
pub fn refusal(error: &RedisError) -> Refused {
    if meaning(error) != Meaning::Refused {
        return NO_LINK;
    }
    let message = match error.code() {
        Some("OOM") => "the broker is out of memory",
        Some("MISCONF") => "the broker can't write its data",
        Some("NOREPLICAS") => "the broker has too few replicas",
        Some("NOPERM") => "the broker does not permit it",
        _ => "the broker refused it",
    };
    Refused::new(ErrorCode::Unavailable, message)
}

/// What became of publishing so many events. The error, where there was one.
pub fn published(answer: Result<Value, RedisError>, events: usize) -> (Outcome, Option<RedisError>) {
    match answer {
        Ok(Value::Array(parts)) => {
            let numbers = match &parts[..] {
                [Value::BulkString(answer), Value::Int(nodes)] => {
                    encoding::numbers(answer, events, u32::try_from(*nodes).unwrap_or(u32::MAX))
                }
                _ => None,
            };
            match numbers {
                Some(numbers) => (Outcome::Done(numbers), None),
                None => (Outcome::Unsafe, Some(not_understood())),
            }
        }
        Ok(_) => (Outcome::Unsafe, Some(not_understood())),
        Err(error) => (failed(&error), Some(error)),
    }
}

/// What became of emptying a log.
pub fn cleared(answer: Result<Value, RedisError>) -> (Outcome, Option<RedisError>) {
    match answer {
        Ok(Value::Int(count)) => (Outcome::Cleared(u64::try_from(count).unwrap_or(0)), None),
        Ok(_) => (Outcome::Unsafe, Some(not_understood())),
        Err(error) => (failed(&error), Some(error)),
    }
}

fn failed(error: &RedisError) -> Outcome {
    match meaning(error) {
        Meaning::Broken => Outcome::Unknown,
        Meaning::NotNow => Outcome::NotYet,
        Meaning::Refused => Outcome::Refused(refusal(error)),
    }
}

/// An answer of another form than the scripts give.
pub fn not_understood() -> RedisError {
    RedisError::from((ErrorKind::UnexpectedReturnType, "a script answered something else than it should"))
}

/// Says that there is no link, and what to do.
pub fn complain(name: &str, error: &LinkError, is_first: bool) {
    let remedy = error.remedy().unwrap_or("it is tried again");
    if is_first {
        tracing::error!(server = name, %error, remedy, "the broker can't be reached: publishes are refused until it can");
    } else {
        tracing::debug!(server = name, %error, remedy, "the broker still can't be reached");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server_error(line: &'static str) -> RedisError {
        let value = redis::parse_redis_value(line.as_bytes()).expect("an error is a value");
        value.extract_error().expect_err("it is an error")
    }

    #[test]
    fn errors_of_a_server_are_told_from_those_of_the_link() {
        for (line, expected) in [
            ("-READONLY You can't write against a read only replica.\r\n", Meaning::NotNow),
            ("-LOADING Redis is loading the dataset in memory\r\n", Meaning::NotNow),
            ("-MASTERDOWN Link with MASTER is down\r\n", Meaning::NotNow),
            ("-CLUSTERDOWN The cluster is down\r\n", Meaning::NotNow),
            ("-NOAUTH Authentication required.\r\n", Meaning::NotNow),
            ("-OOM command not allowed when used memory > 'maxmemory'.\r\n", Meaning::Refused),
            ("-MISCONF Redis is configured to save RDB snapshots\r\n", Meaning::Refused),
            ("-NOREPLICAS Not enough good replicas to write.\r\n", Meaning::Refused),
            ("-NOPERM this user has no permissions\r\n", Meaning::Refused),
            ("-ERR something else\r\n", Meaning::Refused),
            ("-OVERTAKEN a later submission of this run is here already\r\n", Meaning::Refused),
        ] {
            assert_eq!(meaning(&server_error(line)), expected, "{line}");
        }
        let cut: RedisError = std::io::Error::from(std::io::ErrorKind::ConnectionReset).into();
        assert_eq!(meaning(&cut), Meaning::Broken);
        let slow: RedisError = std::io::Error::from(std::io::ErrorKind::TimedOut).into();
        assert_eq!(meaning(&slow), Meaning::Broken);
    }

    #[test]
    fn an_answer_that_is_none_of_the_script_is_a_doubt() {
        for answer in
            [Value::Nil, Value::Array(vec![]), Value::Array(vec![Value::BulkString(b"x".into()), Value::Int(1)])]
        {
            assert!(matches!(published(Ok(answer), 1), (Outcome::Unsafe, Some(_))));
        }
        let good = Value::Array(vec![Value::BulkString(b"5 1 1".into()), Value::Int(2)]);
        assert!(matches!(published(Ok(good), 1), (Outcome::Done(_), None)));
    }
}

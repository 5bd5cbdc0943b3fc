//! One server of several, or a primary of a cluster: the link to it, and what its errors mean.

use std::collections::VecDeque;
use std::sync::Arc;

use redis::{ErrorKind, RedisError, ServerErrorKind, Value};

use super::answers::Answers;
use super::canary::Canary;
use super::connection::{Connections, Inbox, LinkError, Target};
use super::encoding;
use super::slots::Address;
use super::submissions::{NO_LINK, Outcome};
use crate::hub::name::RoomName;
use crate::wire::codes::ErrorCode;
use crate::wire::native::Refused;

/// The first wait before a link is made again, and the longest. What is drawn is between half of it and all.
const WAIT_MIN_MS: u64 = 40;
const WAIT_MAX_MS: u64 = 5000;

/// The longest wait in a cluster, where a server that is back is told of by the others only when it takes over.
const WAIT_IN_CLUSTER_MAX_MS: u64 = 500;

/// A link that was there for this long was a good one.
const LASTING_MS: u64 = 500;

/// A server.
pub struct Server {
    /// What is connected to.
    pub target: Arc<Target>,
    /// Its addresses, for people.
    pub name: String,
    /// Where it is, if it is a primary of a cluster. None for one that has no slots any more.
    pub address: Option<Address>,
    /// The canary whose slot it has.
    pub canary: u32,
    /// The link.
    pub link: Link,
    /// Tells links apart, so that what is reported of a former one means nothing.
    pub generation: u64,
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
    /// There is none and none is made: it has no rooms.
    Unwanted,
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
    pub canary: Canary,
    /// What was asked over the connection that is subscribed.
    pub answers: Answers,
}

impl Server {
    /// One that there is no link to yet.
    pub fn new(target: Arc<Target>) -> Server {
        Server {
            name: target.name(),
            target,
            address: None,
            canary: 0,
            link: Link::Down { retry_ms: 0 },
            generation: 0,
            retries: VecDeque::new(),
            attempts: 0,
            up_ms: 0,
            was_up: false,
            said_ms: None,
        }
    }

    /// Whoever has what no server of a cluster has: nobody.
    pub fn nobody(cluster: Arc<Target>) -> Server {
        Server { link: Link::Unwanted, ..Server::new(cluster) }
    }

    /// A primary of a cluster, in a place where another was.
    pub fn primary(target: Arc<Target>, address: Address, canary: u32, generation: u64) -> Server {
        Server { address: Some(address), canary, generation, ..Server::new(target) }
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

    /// Whether there is no link because one was lost or tried in vain.
    pub fn has_failed(&self) -> bool {
        matches!(self.link, Link::Down { .. } | Link::Connecting) && self.attempts > 0
    }

    /// Whether a complaint is due: one a second, since all rooms have the same.
    pub fn may_say(&mut self, now_ms: u64) -> bool {
        let may = self.said_ms.is_none_or(|said_ms| said_ms + 1000 <= now_ms);
        if may {
            self.said_ms = Some(now_ms);
        }
        may
    }

    /// There is a link. Whether it was there before, and was lost.
    pub fn set_up(&mut self, connections: Connections, inbox: Arc<Inbox>, now_ms: u64) -> bool {
        self.up_ms = now_ms;
        let canary = Canary::new(self.canary, now_ms);
        self.link = Link::Up(Box::new(Up { connections, inbox, canary, answers: Answers::default() }));
        std::mem::replace(&mut self.was_up, true)
    }

    /// It has the slot of another canary now.
    pub fn set_canary(&mut self, canary: u32, now_ms: u64) {
        self.canary = canary;
        if let Some(up) = self.up() {
            up.canary = Canary::new(canary, now_ms);
        }
    }

    /// There is no link, and another is tried some time later.
    pub fn set_down(&mut self, now_ms: u64) {
        if self.is_up() {
            // One that ends as soon as it is there is not made as often as can be, but soon: an answer may wait for it.
            let is_lasting = now_ms >= self.up_ms + LASTING_MS;
            self.attempts = if is_lasting { 0 } else { self.attempts.min(2) };
        }
        let max = if self.address.is_some() { WAIT_IN_CLUSTER_MAX_MS } else { WAIT_MAX_MS };
        let longest = (WAIT_MIN_MS << self.attempts.min(16)).min(max);
        self.attempts = self.attempts.saturating_add(1);
        self.link = Link::Down { retry_ms: now_ms + fastrand::u64(longest / 2..=longest) };
        self.generation += 1;
        self.retries.clear();
    }
}

/// What an error means for the link and for what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// The link is broken, or the server does not answer: it is not known whether what was asked was done.
    Broken,
    /// The server takes nothing for now, and did nothing. Another link may lead to one that does.
    NotNow,
    /// Another server of the cluster has it, or will, and nothing was done.
    Elsewhere,
    /// This was refused, and not done.
    Refused,
}

/// What an error means.
pub fn meaning(error: &RedisError) -> Meaning {
    match error.kind() {
        // While a slot is on its way, scripts that name several keys, some of which are not there, are carried out by neither
        // server.
        ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::Ask | ServerErrorKind::TryAgain) => {
            Meaning::Elsewhere
        }
        // Said of one slot, which the server does not have and knows of nobody who does.
        ErrorKind::Server(ServerErrorKind::ClusterDown)
            if error.detail().is_some_and(|detail| detail.contains("slot not served")) =>
        {
            Meaning::Elsewhere
        }
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

/// Why something is refused that another server has, where none but this one is known.
pub const ONE_OF_A_CLUSTER: Refused =
    Refused::new(ErrorCode::Unavailable, "the broker's server is one of a cluster, and has no part of this room");

/// Whether a slot is on its way, which the topology does not show.
pub fn is_on_its_way(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(ServerErrorKind::Ask | ServerErrorKind::TryAgain))
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
        Meaning::NotNow | Meaning::Elsewhere => Outcome::NotYet,
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
            ("-CLUSTERDOWN Hash slot not served\r\n", Meaning::Elsewhere),
            ("-MOVED 3999 127.0.0.1:6381\r\n", Meaning::Elsewhere),
            ("-ASK 3999 127.0.0.1:6381\r\n", Meaning::Elsewhere),
            ("-TRYAGAIN Multiple keys request during rehashing of slot\r\n", Meaning::Elsewhere),
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

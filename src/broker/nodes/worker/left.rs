//! What a dead node left behind: the ids of its clients, locks, who was present through it.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use redis::{RedisError, Value, cmd};

use super::super::keys::{Keys, run_text};
use super::super::members::{Event, NodeInfo};
use super::super::registered::{is_of_lock, room_of};
use super::super::{FreeLock, TellPresence};
use super::{BATCH, What, Worker};
use crate::broker::redis::connection::Connection;
use crate::hub::reply::{self, HubError};
use crate::hub::shared_locks::NotedLock;
use crate::wire::codes::ErrorCode;

/// Members are told of so many sessions at a time that a dead node has left behind.
const TOLD_AT_ONCE: usize = 1000;
/// How often it is tried to tell them, and the time between.
const TELL_TRIES: usize = 40;
const TELL_WAIT: Duration = Duration::from_millis(250);
/// Dead nodes whose record could not be taken away yet.
const LEFT_MAX: usize = 256;

/// What a dead node had, by field of its hash.
#[derive(Debug)]
pub(super) struct LeftBehind {
    /// The locks that it had noted. Through which node one is held the broker knows.
    pub(super) locks: Vec<(Box<str>, Bytes)>,
    /// Who was present through it and is not through one of those that live.
    pub(super) absent: Vec<(Box<str>, Bytes)>,
}

impl Worker {
    /// Frees the ids of a dead node, and finds who was present through it.
    pub(super) fn clean_up(&mut self, node: NodeInfo) {
        if self.left.contains(&node.run) {
            // Only its record is left.
            return (self.service.event)(Event::CleanUp(node));
        }
        let Some(connection) = self.publish_connection() else { return };
        let (keys, run) = (self.keys.clone(), node.run);
        let others: Vec<u64> = self.handle.alive().iter().map(|node| node.run).collect();
        self.spawn(async move { What::Freed { node, outcome: free(&connection, &keys, run, &others).await } });
    }

    pub(super) fn freed(&mut self, node: NodeInfo, outcome: Result<LeftBehind, RedisError>) {
        match outcome {
            Ok(LeftBehind { locks, absent }) => {
                let (lock, presence) = (self.service.lock.clone(), self.service.presence.clone());
                self.spawn(async move {
                    // As many at a time as the way through the broker always has room for.
                    for part in locks.chunks(TOLD_AT_ONCE) {
                        let freed = part.iter().map(|(field, noted)| free_lock(&lock, room_of(field), noted, node.run));
                        if join_all(freed).await.contains(&false) {
                            // What it had stays in the registry; this node, or another one, is asked again later.
                            return What::Nothing;
                        }
                    }
                    for part in absent.chunks(TOLD_AT_ONCE) {
                        let told = part.iter().map(|(field, told)| tell(&presence, room_of(field), told, false));
                        join_all(told).await;
                    }
                    What::LeftTold { node }
                });
            }
            // This node, or another one, is asked again later.
            Err(error) => self.failed(&error),
        }
    }

    /// Members know who has left with a dead node.
    pub(super) fn left_told(&mut self, node: NodeInfo) {
        // Should the registry not take it now, this node is asked again, and members have been told.
        if self.left.len() >= LEFT_MAX {
            self.left.pop_front();
        }
        self.left.push_back(node.run);
        (self.service.event)(Event::CleanUp(node));
    }

    pub(super) fn finish(&mut self, run: u64) {
        let Some(connection) = self.publish_connection() else { return };
        let (finish, mut present) = (self.keys.finish(run), cmd("UNLINK"));
        present.arg(self.keys.present(run));
        self.spawn(async move {
            // First what is left, so that it is not left when nobody looks for it any more.
            let answer = match connection.command(present).await {
                Ok(_) => connection.command(finish).await,
                Err(error) => Err(error),
            };
            What::Finished { run, answer }
        });
    }
}

/// Tells members of a room who has come or gone; again where that can't be taken at the moment.
pub(super) async fn tell(presence: &TellPresence, room: &str, told: &Bytes, is_there: bool) {
    if let Err(error) = insist(|| presence(room, told.clone(), is_there)).await {
        tracing::warn!(room, is_there, %error, "members could not be told of presence");
    }
}

/// Frees a lock that a dead node had noted; likewise. False where the broker takes nothing.
async fn free_lock(free: &FreeLock, room: &str, noted: &[u8], dead: u64) -> bool {
    let Ok(noted) = serde_json::from_slice::<NotedLock>(noted) else { return true };
    let outcome = insist(|| free(room, NotedLock { node: dead, ..noted.clone() })).await;
    if let Err(error) = &outcome {
        tracing::warn!(room, %error, "a lock of a dead node is not free yet");
    }
    outcome.is_ok()
}

/// Asks until it is answered, where it was only too early.
async fn insist(ask: impl Fn() -> reply::Pending<()>) -> Result<(), HubError> {
    for _ in 1..TELL_TRIES {
        match ask().await {
            Err(error) if error.code == ErrorCode::Unavailable => tokio::time::sleep(TELL_WAIT).await,
            outcome => return outcome,
        }
    }
    ask().await
}

/// Frees the ids of a dead node, and gives what else it had.
async fn free(connection: &Connection, keys: &Keys, dead: u64, living: &[u64]) -> Result<LeftBehind, RedisError> {
    let holder = run_text(dead).into_bytes();
    let mut ids: Vec<Box<str>> = Vec::new();
    for_each(connection, keys, &keys.clients(), |id, run| {
        if run == &holder[..] {
            ids.push(id.into());
        }
    })
    .await?;
    for ids in ids.chunks(BATCH) {
        connection.command(keys.release(dead, ids)).await?;
    }
    let mut present: Vec<(Box<str>, Bytes)> = Vec::new();
    for_each(connection, keys, &keys.present(dead), |field, told| {
        present.push((field.into(), Bytes::copy_from_slice(told)));
    })
    .await?;
    let (locks, present): (Vec<_>, Vec<_>) = present.into_iter().partition(|(field, _)| is_of_lock(field));
    let mut absent = Vec::new();
    for part in present.chunks(BATCH) {
        let mut is_elsewhere = vec![false; part.len()];
        for run in living.iter().filter(|run| **run != dead) {
            let mut command = cmd("HMGET");
            command.arg(keys.present(*run));
            for (field, _) in part {
                command.arg(&**field);
            }
            if let Value::Array(values) = connection.command(command).await? {
                for (is_elsewhere, value) in is_elsewhere.iter_mut().zip(values) {
                    *is_elsewhere |= value != Value::Nil;
                }
            }
        }
        absent.extend(part.iter().zip(is_elsewhere).filter(|(_, elsewhere)| !elsewhere).map(|(one, _)| one.clone()));
    }
    Ok(LeftBehind { locks, absent })
}

/// Calls a function for each field of a hash; for some twice, where the hash changes meanwhile.
async fn for_each(
    connection: &Connection,
    keys: &Keys,
    hash: &str,
    mut each: impl FnMut(&str, &[u8]),
) -> Result<(), RedisError> {
    let mut cursor = "0".to_owned();
    loop {
        let answer = connection.command(keys.scan(hash, &cursor)).await?;
        let Value::Array(parts) = answer else { return Ok(()) };
        let [Value::BulkString(next), fields] = &parts[..] else { return Ok(()) };
        // A protocol of version 3 still gives them as a list here.
        if let Value::Array(fields) = fields {
            for pair in fields.chunks_exact(2) {
                if let [Value::BulkString(field), Value::BulkString(value)] = pair
                    && let Ok(field) = std::str::from_utf8(field)
                {
                    each(field, value);
                }
            }
        }
        cursor = String::from_utf8_lossy(next).into_owned();
        if cursor == "0" {
            return Ok(());
        }
    }
}

//! What this node registers: which ids its clients have, and who is present through it.

use futures_util::future::join_all;
use redis::{RedisError, Value};

use super::super::keys::run_text;
use super::super::registered::{Change, ChangeKind, is_of_lock, room_of};
use super::super::{ClaimFailure, Task, Tell};
use super::left::tell;
use super::{BATCH, What, Worker};

/// Such commands on their way.
const BATCHES_MAX: usize = 8;

impl Worker {
    pub(super) fn task(&mut self, task: Task) {
        match task {
            Task::Claim { id, tell } if self.may_claim() => self.ids.claim(id, tell),
            Task::Claim { tell, .. } => tell(Err(ClaimFailure::Unreachable)),
            Task::Release { id } => self.ids.release(id),
            Task::Present { room, session, told, presenting } => {
                let now_ms = self.now_ms();
                self.presence.set(&room, &session, told, presenting, now_ms);
            }
            Task::Cleaned { run } => self.finish(run),
            Task::Sweep => self.sweep(),
        }
    }

    pub(super) fn may_claim(&self) -> bool {
        self.publish_connection().is_some() && self.claims_from_ms <= self.now_ms()
    }

    /// Sends what is to be registered, or not any more.
    pub(super) fn register(&mut self) {
        while self.batches < BATCHES_MAX {
            let releases = self.ids.next_releases(BATCH);
            let claims = self.ids.next_claims(BATCH);
            let changes = self.presence.next(BATCH);
            if releases.is_empty() && claims.is_empty() && changes.is_empty() {
                return;
            }
            if !releases.is_empty() {
                let command = self.keys.release(self.run, &releases);
                self.batches += 1;
                self.send(command, move |answer| What::Released { ids: releases, answer });
            }
            if !claims.is_empty() {
                let ids: Vec<Box<str>> = claims.iter().map(|(id, _)| id.clone()).collect();
                let command = self.keys.claim(self.run, &ids);
                self.batches += 1;
                self.send(command, move |answer| What::Claimed { claims, answer });
            }
            if !changes.is_empty() {
                let told = |change: &Change| (!change.kind.is_absent()).then(|| change.told.clone());
                let fields: Vec<_> = changes.iter().map(|change| (change.field.clone(), told(change))).collect();
                let fields = fields.iter().map(|(field, told)| (&**field, told.as_deref()));
                let command = self.keys.present_changes(self.run, fields);
                self.batches += 1;
                self.send(command, move |answer| What::Written { changes, answer });
            }
        }
    }

    pub(super) fn batch_done(&mut self, answer: Result<Value, RedisError>, is_former: bool) {
        if is_former {
            return;
        }
        self.batches -= 1;
        if let Err(error) = answer {
            self.failed(&error);
        }
    }

    pub(super) fn claimed(
        &mut self,
        claims: Vec<(Box<str>, Tell)>,
        answer: Result<Value, RedisError>,
        is_former: bool,
    ) {
        let holders = match &answer {
            Ok(Value::Array(holders)) if holders.len() == claims.len() => Some(holders),
            _ => None,
        };
        if matches!(&answer, Ok(Value::Array(holders)) if holders.is_empty()) {
            self.members.look_soon();
        }
        let mine = run_text(self.run).into_bytes();
        for (at, (id, tell)) in claims.into_iter().enumerate() {
            let outcome = match holders.and_then(|holders| holders.get(at)) {
                Some(Value::BulkString(holder)) if *holder == mine => Ok(()),
                Some(_) => Err(ClaimFailure::Taken),
                None => Err(ClaimFailure::Unreachable),
            };
            if outcome.is_err() {
                self.ids.release(id);
            }
            tell(outcome);
        }
        self.batch_done(answer, is_former);
    }

    /// This node had ids that others may have claimed when they took it for dead.
    pub(super) fn reclaimed(&mut self, ids: Vec<Box<str>>, answer: Result<Value, RedisError>, is_former: bool) {
        let holders = match answer {
            Ok(Value::Array(holders)) if holders.len() == ids.len() => holders,
            // The registry does not know this node, which claims them once more when it is registered.
            Ok(_) => return self.members.forgotten(),
            // Until the registry can be reached; then it may know this node and not the ids.
            Err(error) => {
                self.members.forgotten();
                if !is_former {
                    self.failed(&error);
                }
                return;
            }
        };
        let mine = run_text(self.run).into_bytes();
        for (id, holder) in ids.iter().zip(holders) {
            if !matches!(holder, Value::BulkString(holder) if holder == mine) {
                (self.service.taken)(id);
            }
        }
    }

    /// Tells of who came or went where no other node has them.
    pub(super) fn tell_presence(&self, changes: &[Change], alone: &[Value]) {
        let alone = changes.iter().zip(alone).filter(|(_, alone)| **alone == Value::Int(1)).map(|(change, _)| change);
        let told = alone.filter(|change| change.kind.is_news() && !is_of_lock(&change.field));
        let told: Vec<Change> = told.cloned().collect();
        if told.is_empty() {
            return;
        }
        let presence = self.service.presence.clone();
        self.spawn(async move {
            let each = told.iter().map(|change| {
                let is_there = change.kind == ChangeKind::Entered;
                tell(&presence, room_of(&change.field), &change.told, is_there)
            });
            join_all(each).await;
            What::Nothing
        });
    }
}

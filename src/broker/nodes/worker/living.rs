//! Who lives: the beats by which this node keeps its lease and learns of others.

use redis::{RedisError, Value};

use super::super::calls::Frame;
use super::super::keys::{parse_run, run_text};
use super::super::members::{Beat, Event, NodeInfo, Was};
use super::{BATCH, Link, What, Worker};

/// How long a node may take to clean up after another before a third one is asked to.
const CLEAN_MS: u64 = 15_000;
/// How long ids are refused after the registry was lost, until all nodes have told which they have.
const REST_MS: u64 = 1500;
/// How often at most it is looked which servers a cluster of Redis has.
const LOOK_AROUND_MS: u64 = 5000;

impl Worker {
    pub(super) fn beat(&mut self, now_ms: u64) {
        let info = serde_json::to_string(&self.handle.me()).unwrap_or_else(|_| "{}".to_owned());
        let may_bury = self.members.may_bury(now_ms);
        let command = self.keys.beat(self.run, &info, self.bounds.lease_ms, CLEAN_MS, may_bury);
        self.is_beating = self.send(command, What::Beaten);
        // A connection may be there and bring nothing.
        if let (None, Some(frame)) = (self.canary_sent_ms, Frame::Look.encode(self.run)) {
            self.canary_sent_ms = Some(now_ms);
            self.send(self.keys.publish(self.run, &frame), What::Said);
        }
        self.members.sent(now_ms);
        if self.look_around_ms <= now_ms {
            self.look_around_ms = now_ms + LOOK_AROUND_MS;
            self.look_around();
        }
    }

    /// Keeps in mind who else is in the cluster of Redis, should its server there be gone.
    pub(super) fn look_around(&self) {
        let Link::Up { connections, .. } = &self.link else { return };
        let (target, connections) = (self.target.clone(), connections.clone());
        self.spawn(async move {
            // What it means that this fails, the next beat finds out.
            drop(target.look_around(&connections).await);
            What::Nothing
        });
    }

    pub(super) fn beaten(&mut self, answer: Result<Value, RedisError>) {
        self.is_beating = false;
        let beat = match answer.map(read_beat) {
            Ok(Some(beat)) => beat,
            other => {
                // Refused for now, as by a primary without its replicas: the hub does not wait for that to start.
                self.started = None;
                return match other {
                    Err(error) => self.failed(&error),
                    Ok(_) => tracing::error!("the registry of nodes answered something else than it should"),
                };
            }
        };
        // Not before: another server may have the registry than the one that is reached.
        if std::mem::take(&mut self.attempts) > 0 {
            tracing::info!("the registry of nodes can be reached again");
        }
        let is_new = beat.was == Was::New;
        let events = self.members.beaten(beat, self.now_ms());
        self.handle.set_others(self.members.others().cloned().collect());
        for event in &events {
            self.note(event);
        }
        self.started = None;
        if is_new {
            self.tell_all_to_look();
        }
        for event in events {
            if let Event::CleanUp(node) = &event {
                // That is told when what this thread has to clean up is done.
                self.clean_up(node.clone());
            } else {
                (self.service.event)(event);
            }
        }
    }

    pub(super) fn note(&mut self, event: &Event) {
        match event {
            Event::Joined(node) => tracing::info!(node = node.name, run = run_text(node.run), "a node has joined"),
            Event::Left(node) => {
                tracing::info!(node = node.name, run = run_text(node.run), "a node has left, or is dead");
                self.pending.gone(node.run);
            }
            Event::CleanUp(node) => {
                tracing::info!(node = node.name, run = run_text(node.run), "this node cleans up after another");
            }
            Event::Revived { was_buried } => {
                self.handle.figures().revived.add(1);
                tracing::warn!(was_buried, "the registry did not know this node any more; it registers again");
                self.presence.lost(*was_buried);
                if !was_buried {
                    self.claims_from_ms = self.now_ms() + REST_MS;
                }
                let held: Vec<Box<str>> = self.ids.held().cloned().collect();
                for ids in held.chunks(BATCH) {
                    let claimed = ids.to_vec();
                    self.send(self.keys.claim(self.run, ids), |answer| What::Reclaimed { ids: claimed, answer });
                }
            }
            Event::SameName(node) => {
                let name = &node.name;
                tracing::error!(name, "another node has the same name; give each its own with node.name");
            }
        }
    }
}

/// What `beat.lua` answers.
fn read_beat(answer: Value) -> Option<Beat> {
    let Value::Array(parts) = answer else { return None };
    let [was, redis_ms, Value::Array(living), Value::Array(mine)] = &parts[..] else { return None };
    let was = match text(was)? {
        "known" => Was::Known,
        "new" => Was::New,
        "dead" => Was::Dead,
        _ => return None,
    };
    let redis_ms = text(redis_ms)?.parse().ok()?;
    let living = living.chunks_exact(3).filter_map(|one| match one {
        [run, until_ms, info] => Some((node(run, info)?, text(until_ms)?.parse().ok()?)),
        _ => None,
    });
    let mine_of = mine.chunks_exact(2).filter_map(|one| match one {
        [run, info] => node(run, info),
        _ => None,
    });
    Some(Beat { was, redis_ms, living: living.collect(), mine: mine_of.collect() })
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

/// What a node says of itself; one of which only the run is known has that for a name.
fn node(run: &Value, info: &Value) -> Option<NodeInfo> {
    let run_as_text = text(run)?;
    let run = parse_run(run_as_text)?;
    let unknown = || NodeInfo {
        run,
        name: run_as_text.to_owned(),
        public: None,
        internal: None,
        started_ms: 0,
        version: String::new(),
    };
    Some(match serde_json::from_str::<NodeInfo>(text(info)?) {
        Ok(info) => NodeInfo { run, ..info },
        Err(_) => unknown(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn the_answer_to_a_beat_is_read() {
        let run = "00000000000000ab";
        let answer = Value::Array(vec![
            bulk("new"),
            bulk("1700000000123"),
            Value::Array(vec![bulk(run), bulk("1700000005123"), bulk(r#"{"name":"n1","more":1}"#)]),
            Value::Array(vec![bulk("00000000000000cd"), bulk("{}")]),
        ]);
        let beat = read_beat(answer).expect("it is one");
        assert_eq!((beat.was, beat.redis_ms), (Was::New, 1_700_000_000_123));
        assert_eq!((beat.living[0].0.run, beat.living[0].0.name.as_str()), (0xab, "n1"));
        assert_eq!(beat.living[0].1, 1_700_000_005_123);
        assert_eq!((beat.mine[0].run, beat.mine[0].name.as_str()), (0xcd, "00000000000000cd"));
        for other in [Value::Nil, Value::Array(vec![bulk("new")]), Value::Array(vec![bulk("x"), bulk("1")])] {
            assert_eq!(read_beat(other), None);
        }
    }
}

//! Somebody who edits a quote: locks a field, types into it, lets it go. Two of them want the same field now and then.

use fastrand::Rng;
use serde_json::json;

use super::member::{Actor, Due, Identity, Say};
use crate::load::message::Envelope;

/// The quote that is edited.
pub(super) const QUOTE: &str = "Q-1001";
/// Its room.
pub(super) const ROOM: &str = "quote:Q-1001";

const FIELDS: [&str; 4] = ["deductible", "coverage", "start_date", "discount"];
/// How long a lock outlives an editor who vanishes.
const TTL_S: u64 = 20;
/// How often a field is asked for before another one is chosen.
const ATTEMPTS: u32 = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Asking,
    Editing { token: u64, left: u32 },
}

/// One editor.
pub(super) struct Editor {
    name: &'static str,
    chance: Rng,
    phase: Phase,
    field: &'static str,
    attempts: u32,
    begins: Due,
    types: Due,
}

impl Editor {
    pub(super) fn new(name: &'static str, seed: u64) -> Editor {
        Editor {
            name,
            chance: Rng::with_seed(seed),
            phase: Phase::Idle,
            field: FIELDS[0],
            attempts: 0,
            begins: Due::every(800..2_500),
            types: Due::every(500..1_100),
        }
    }

    fn ask_for_lock(&mut self, say: &mut Say) {
        if self.attempts == 0 {
            // The first one is what both want most.
            self.field = if self.chance.bool() { FIELDS[0] } else { FIELDS[self.chance.usize(0..FIELDS.len())] };
        }
        self.attempts += 1;
        self.phase = Phase::Asking;
        say.command("lock.acquire", Some("lock"), &json!({"room": ROOM, "field": self.field, "ttl_s": TTL_S}));
    }

    fn type_something(&mut self, token: u64, left: u32, say: &mut Say) {
        if left == 0 {
            self.phase = Phase::Idle;
            self.attempts = 0;
            say.command("lock.release", Some("release"), &json!({"room": ROOM, "field": self.field, "token": token}));
            return;
        }
        let value = self.chance.u32(1..40) * 25;
        let data = json!({"quote_id": QUOTE, "field": self.field, "value": value, "editor": self.name, "lock": token});
        say.publish(ROOM, "quote.field_edited", &data);
        self.phase = Phase::Editing { token, left: left - 1 };
    }
}

impl Actor for Editor {
    fn identity(&self) -> Identity {
        let granted =
            ["websocket:connect", "websocket:subscribe", "websocket:publish", "quote:*:read", "quote:*:write"];
        Identity {
            client_id: format!("demo-editor-{}", self.name),
            user: self.name.to_owned(),
            name: format!("{}{}", self.name[..1].to_uppercase(), &self.name[1..]),
            permissions: granted.map(str::to_owned).to_vec(),
        }
    }

    fn began(&mut self, _now_ms: u64, say: &mut Say) {
        self.phase = Phase::Idle;
        say.command("metadata", None, &json!({"set": {"app": "demo", "kind": "editor", "quote": QUOTE}}));
        say.command("subscribe", None, &json!({"room": ROOM}));
    }

    fn heard(&mut self, message: &Envelope<'_>, _now_ms: u64, _say: &mut Say) {
        if message.answers("lock") {
            let token = message.data.and_then(|data| serde_json::from_str::<Granted>(data.get()).ok());
            self.phase = match token {
                Some(Granted { token }) if message.kind == "lock.acquired" => {
                    self.types.restart();
                    Phase::Editing { token, left: self.chance.u32(3..7) }
                }
                _ => Phase::Idle,
            };
            if self.attempts >= ATTEMPTS {
                self.attempts = 0;
            }
        }
        // An administrator, or the time, has taken the field away.
        let is_lost = matches!(message.kind.as_str(), "lock.released" | "lock.expired");
        if let (true, Phase::Editing { token, .. }, Some(data)) = (is_lost, self.phase, message.data)
            && serde_json::from_str::<Granted>(data.get()).is_ok_and(|told| told.token == token)
        {
            self.phase = Phase::Idle;
            self.attempts = 0;
        }
    }

    fn step(&mut self, now_ms: u64, say: &mut Say) {
        match self.phase {
            Phase::Idle if self.begins.comes(now_ms, &mut self.chance) => self.ask_for_lock(say),
            Phase::Editing { token, left } if self.types.comes(now_ms, &mut self.chance) => {
                self.type_something(token, left, say);
            }
            _ => {}
        }
    }
}

/// What is told of a lock.
#[derive(serde::Deserialize)]
struct Granted {
    token: u64,
}

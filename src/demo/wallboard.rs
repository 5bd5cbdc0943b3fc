//! A screen in the hall: shows all that happens in projects. One of them reads too slowly, as a tablet does on a bad network.

use serde_json::json;

use super::member::{Actor, Due, Identity, Say};
use super::world::{ARCHIVE, PROJECTS};

/// How often the slow one says that it is there. What it gets of the hub's pings waits behind all that it has not read.
const ALIVE_MS: u64 = 8_000;
/// It takes one message in so long.
const BITE_MS: u64 = 600;
/// The kernel's buffer of the slow one, in bytes: a small one is full at once.
const SLOW_BUFFER: usize = 4096;
/// How long it is switched off when somebody has disconnected it.
const OFF_MS: u64 = 60_000;

/// A screen.
pub(super) struct Wallboard {
    client_id: &'static str,
    is_slow: bool,
    next_ms: u64,
    alive: Due,
    chance: fastrand::Rng,
}

impl Wallboard {
    /// One that reads all that comes.
    pub(super) fn attentive() -> Wallboard {
        Wallboard {
            client_id: "demo-wallboard",
            is_slow: false,
            next_ms: 0,
            alive: Due::every(ALIVE_MS..ALIVE_MS + 1),
            chance: fastrand::Rng::with_seed(0),
        }
    }

    /// One that does not.
    pub(super) fn slow() -> Wallboard {
        Wallboard { client_id: "demo-slow-wallboard", is_slow: true, ..Wallboard::attentive() }
    }
}

impl Actor for Wallboard {
    fn identity(&self) -> Identity {
        let granted = ["websocket:connect", "websocket:subscribe", "project:*:read", "workflow:*:read"];
        Identity {
            client_id: self.client_id.to_owned(),
            user: "lobby".to_owned(),
            name: "Lobby".to_owned(),
            permissions: granted.map(str::to_owned).to_vec(),
        }
    }

    fn began(&mut self, _now_ms: u64, say: &mut Say) {
        let place = if self.is_slow { "stairs" } else { "lobby" };
        say.command("metadata", None, &json!({"set": {"app": "demo", "kind": "wallboard", "place": place}}));
        let rooms: Vec<String> =
            PROJECTS.iter().map(|name| format!("project:{name}")).chain([ARCHIVE.to_owned()]).collect();
        say.command("subscribe", None, &json!({"rooms": rooms}));
    }

    fn step(&mut self, now_ms: u64, say: &mut Say) {
        if self.is_slow && self.alive.comes(now_ms, &mut self.chance) {
            say.command("ping", None, &json!(null));
        }
    }

    fn appetite(&mut self, now_ms: u64) -> usize {
        if !self.is_slow {
            return usize::MAX;
        }
        let is_hungry = now_ms >= self.next_ms;
        if is_hungry {
            self.next_ms = now_ms + BITE_MS;
        }
        usize::from(is_hungry)
    }

    fn offended_ms(&self) -> u64 {
        OFF_MS
    }

    fn receive_buffer(&self) -> Option<usize> {
        self.is_slow.then_some(SLOW_BUFFER)
    }
}

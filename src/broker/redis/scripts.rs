//! The scripts, and calls of them.
//!
//! What they do is told in their files, in `scripts/`: any program may call them.

use std::borrow::Cow;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use redis::{Cmd, cmd};

use super::encoding::{EventId, NO_ID};
use super::request::Publish;
use super::slots::slot_of;
use super::tracker::Wanted;
use crate::hub::brokered::{EventKey, Place, SharedLock};
use crate::hub::name::RoomName;

/// How long a room's epoch and numbers are kept after its last event: much longer than any log.
const META_MS: u64 = 30 * 24 * 3600 * 1000;

/// Bytes of events that one read brings, about; the largest event may be more.
const READ_BYTES: usize = 256 << 10;

/// Canaries that are tried for one that has a certain slot.
const CANARIES_MAX: u32 = 1 << 18;

/// Stands for a room in keys and channels that are only tried.
const PROBE: &str = "probe";

/// A script.
#[derive(Debug)]
pub struct Script {
    /// Its text.
    pub text: &'static str,
    sha: String,
}

/// All of them, and what the keys of rooms are called.
#[derive(Debug)]
pub struct Scripts {
    prefix: String,
    /// PUBLISH or SPUBLISH.
    publish_command: &'static str,
    /// The run of this node, as it is in keys.
    run: String,
    publish: Script,
    read: Script,
    renew: Script,
    clear: Script,
    lock: Script,
}

/// A call of a script: by its hash, and with its text where the server does not know it.
#[derive(Debug)]
pub struct Call {
    text: &'static str,
    sha: String,
    keys: Vec<String>,
    arguments: Vec<Vec<u8>>,
}

impl Script {
    fn new(text: &'static str) -> Script {
        let sha = digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
        let sha = sha.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Script { text, sha }
    }

    fn call(&self, keys: Vec<String>, arguments: Vec<Vec<u8>>) -> Call {
        Call { text: self.text, sha: self.sha.clone(), keys, arguments }
    }
}

impl Call {
    /// By its hash.
    pub fn by_hash(&self) -> Cmd {
        self.command("EVALSHA", &self.sha)
    }

    /// With its text.
    pub fn by_text(&self) -> Cmd {
        self.command("EVAL", self.text)
    }

    fn command(&self, name: &str, script: &str) -> Cmd {
        let bytes: usize = self.arguments.iter().map(|argument| argument.len() + 16).sum();
        let mut command = Cmd::with_capacity(3 + self.keys.len() + self.arguments.len(), bytes + 256);
        command.arg(name).arg(script).arg(self.keys.len()).arg(&self.keys[..]);
        for argument in &self.arguments {
            command.arg(&argument[..]);
        }
        command
    }
}

impl Scripts {
    /// The scripts for keys with a prefix.
    pub fn new(prefix: &str, is_cluster: bool, run: u64) -> Scripts {
        Scripts {
            prefix: prefix.to_owned(),
            publish_command: if is_cluster { "SPUBLISH" } else { "PUBLISH" },
            run: format!("{run:016x}"),
            publish: Script::new(include_str!("scripts/publish.lua")),
            read: Script::new(include_str!("scripts/read.lua")),
            renew: Script::new(include_str!("scripts/renew.lua")),
            clear: Script::new(include_str!("scripts/clear.lua")),
            lock: Script::new(include_str!("scripts/lock.lua")),
        }
    }

    /// All scripts.
    pub fn all(&self) -> [&Script; 5] {
        [&self.publish, &self.read, &self.renew, &self.clear, &self.lock]
    }

    /// The channel of a room.
    pub fn channel(&self, room: &str) -> String {
        self.key(room, "events")
    }

    /// The room of a channel.
    pub fn room_of<'a>(&self, channel: &'a [u8]) -> Option<&'a str> {
        let channel = std::str::from_utf8(channel).ok()?;
        channel.strip_prefix(&self.prefix)?.strip_prefix(":{")?.strip_suffix("}:events")
    }

    /// A channel that this run hears itself in, the `at`th of many: each may have another slot.
    pub fn canary_channel(&self, at: u32) -> String {
        format!("{}:{{{}}}:{}", self.prefix, canary_room(at), self.run)
    }

    /// Which canary has that channel.
    pub fn canary_of(&self, channel: &[u8]) -> Option<u32> {
        let channel = std::str::from_utf8(channel).ok()?;
        let (at, run) = channel.strip_prefix(&self.prefix)?.strip_prefix(":{canary-")?.split_once("}:")?;
        at.parse().ok().filter(|_| run == self.run)
    }

    /// A canary whose channel has one of those slots that something has. Even one of a single slot is found among them.
    pub fn canary_within(&self, has: impl Fn(u16) -> bool) -> u32 {
        (0..CANARIES_MAX).find(|at| has(slot_of(self.canary_channel(*at).as_bytes()))).unwrap_or(0)
    }

    /// What is said there.
    pub fn canary(&self, at: u32) -> Cmd {
        let mut command = cmd(self.publish_command);
        command.arg(self.canary_channel(at)).arg("");
        command
    }

    /// Does nothing, in a room that no client can name; in a cluster in one that has the slot of a canary.
    pub fn probe(&self, canary: Option<u32>) -> Call {
        let room = probed(canary);
        let keys = vec![self.key(&room, "meta"), self.key(&room, "log")];
        let arguments = vec![self.channel(&room).into_bytes(), self.publish_command.into(), text(META_MS)];
        self.clear.call(keys, arguments)
    }

    /// Says something there, which nobody hears.
    pub fn probe_channel(&self, canary: Option<u32>) -> Cmd {
        let mut command = cmd(self.publish_command);
        command.arg(self.channel(&probed(canary))).arg("");
        command
    }

    fn key(&self, room: &str, what: &str) -> String {
        format!("{}:{{{room}}}:{what}", self.prefix)
    }

    /// Publishes events.
    ///
    /// `known` is the last event of the room that this node has, if it follows it.
    pub fn publish(&self, room: &RoomName, publish: &Publish, known: Option<&Place>) -> Call {
        let room = room.as_str();
        let mut keys =
            vec![self.key(room, "meta"), self.key(room, "log"), self.key(room, &format!("run:{}", self.run))];
        let mut arguments = vec![
            self.channel(room).into_bytes(),
            self.publish_command.into(),
            text(publish.new_epoch),
            text(publish.number),
            text(publish.keep.events_max),
            text(publish.keep.age_ms),
            text(META_MS.max(publish.keep.age_ms.saturating_mul(2))),
            known.map_or_else(Vec::new, place_text),
        ];
        for chunk in &publish.chunks {
            match &chunk.key {
                Some(key) => {
                    let key = match key {
                        EventKey::Given(key) => format!("key:{key}"),
                        EventKey::OfHub(key) => format!("hub:{key}"),
                    };
                    keys.push(self.key(room, &key));
                    arguments.push(b"key".to_vec());
                }
                None => arguments.push(text(chunk.events as u64)),
            }
            arguments.push(id_text(&chunk.last_id));
            arguments.push(chunk.bytes.clone());
        }
        self.publish.call(keys, arguments)
    }

    /// Reads a room. `epoch` is for one that nobody knows; `serial` comes back.
    pub fn read(&self, room: &RoomName, wanted: &Wanted, epoch: u64, serial: u64) -> Call {
        let keys = vec![self.key(room.as_str(), "meta"), self.key(room.as_str(), "log")];
        let bounds = [READ_BYTES as u64, META_MS];
        self.read.call(keys, [epoch, wanted.from_seq].into_iter().chain(bounds).chain([serial]).map(text).collect())
    }

    /// Changes a room's epoch.
    pub fn renew(&self, room: &RoomName, old: u64, new: u64) -> Call {
        let arguments =
            vec![self.channel(room.as_str()).into_bytes(), self.publish_command.into(), text(old), text(new)];
        self.renew.call(vec![self.key(room.as_str(), "meta")], arguments)
    }

    /// Does something with a field's lock.
    pub fn lock(&self, room: &RoomName, field: &str, node: u64, action: &SharedLock) -> Call {
        let keys = vec![self.key(room.as_str(), "locks"), self.key(room.as_str(), "fence")];
        let mut arguments = vec![field.as_bytes().to_vec(), text(META_MS)];
        match action {
            SharedLock::Acquire { ttl_ms, session, holder, turn } => {
                let holder = serde_json::to_vec(holder).unwrap_or_default();
                let session = session.as_bytes().to_vec();
                arguments.extend([b"acquire".to_vec(), text(node), text(*ttl_ms), session, holder, turn_text(*turn)]);
            }
            SharedLock::Renew { token, ttl_ms, turn } => {
                arguments.extend([b"renew".to_vec(), text(node), text(*ttl_ms), text(*token), turn_text(*turn)]);
            }
            SharedLock::Look { token } => arguments.extend([b"look".to_vec(), text(node), text(*token)]),
            SharedLock::Free { token } => {
                arguments.extend([b"free".to_vec(), text(node), token.map_or_else(Vec::new, text)]);
            }
        }
        self.lock.call(keys, arguments)
    }

    /// Empties a room's log.
    pub fn clear(&self, room: &RoomName) -> Call {
        let keys = vec![self.key(room.as_str(), "meta"), self.key(room.as_str(), "log")];
        let arguments = vec![self.channel(room.as_str()).into_bytes(), self.publish_command.into(), text(META_MS)];
        self.clear.call(keys, arguments)
    }
}

/// No room that a client can name has such a name.
fn canary_room(at: u32) -> String {
    format!("canary-{at}")
}

fn probed(canary: Option<u32>) -> Cow<'static, str> {
    canary.map_or(Cow::Borrowed(PROBE), |at| canary_room(at).into())
}

/// Turns are compared as texts: the numbers of scripts are not that large.
fn turn_text(turn: u64) -> Vec<u8> {
    format!("{turn:016x}").into_bytes()
}

fn text(number: u64) -> Vec<u8> {
    number.to_string().into_bytes()
}

/// Where the id is not known it is a dash, which fits any.
fn place_text(place: &Place) -> Vec<u8> {
    let mut text = format!("{} {} ", place.epoch, place.seq).into_bytes();
    let is_known = place.id != NO_ID;
    text.extend_from_slice(if is_known { &place.id } else { b"-" });
    text
}

fn id_text(id: &EventId) -> Vec<u8> {
    id.to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_is_that_of_one_room() {
        let scripts = Scripts::new("app:1", false, 7);
        assert_eq!(scripts.channel("doc:a}b"), "app:1:{doc:a}b}:events");
        assert_eq!(scripts.room_of(b"app:1:{doc:a}b}:events"), Some("doc:a}b"));
        for other in ["app:2:{doc:1}:events", "app:1:{doc:1}:log", "app:1", "app:1:{canary-0}:0000000000000007"] {
            assert_eq!(scripts.room_of(other.as_bytes()), None, "{other}");
        }
        assert_eq!(scripts.canary_of(scripts.canary_channel(31).as_bytes()), Some(31));
        for other in
            ["app:1:{canary-0}:0000000000000008", "app:2:{canary-0}:0000000000000007", "app:1:{canary-x}:events"]
        {
            assert_eq!(scripts.canary_of(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn the_hash_of_a_script_is_sha_1_in_hexadecimal() {
        assert_eq!(Script::new("return 1").sha, "e0e1f9fabfc9d4800c877a703b823ac0578ff8db");
    }
}

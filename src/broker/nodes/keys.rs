//! What nodes keep of each other in Redis: keys, channels and scripts.
//!
//! All keys and channels have one pair of braces, so that a cluster has them in one slot: one server has all of it, and
//! scripts may use keys together. What is in them is told in the scripts.

use redis::{Cmd, cmd};

/// Keys that begin with a prefix.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    prefix: String,
    publish_command: &'static str,
}

const BEAT: &str = include_str!("scripts/beat.lua");
const RETIRE: &str = include_str!("scripts/retire.lua");
const FINISH: &str = include_str!("scripts/finish.lua");
const CLAIM: &str = include_str!("scripts/claim.lua");
const RELEASE: &str = include_str!("scripts/release.lua");
const PRESENT: &str = include_str!("scripts/present.lua");

/// A run of a node, as it is in keys and messages.
pub(super) fn run_text(run: u64) -> String {
    format!("{run:016x}")
}

/// What [`run_text`] made.
pub(super) fn parse_run(text: &str) -> Option<u64> {
    let is_run = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_run.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

impl Keys {
    pub(super) fn new(prefix: &str, is_cluster: bool) -> Keys {
        Keys { prefix: prefix.to_owned(), publish_command: if is_cluster { "SPUBLISH" } else { "PUBLISH" } }
    }

    fn key(&self, what: &str) -> String {
        format!("{}:{{nodes}}:{what}", self.prefix)
    }

    /// The lease of a node: a key that is there while it lasts.
    pub(super) fn lease(&self, run: u64) -> String {
        self.key(&format!("lease:{}", run_text(run)))
    }

    /// Who is present in rooms through a node: a hash.
    pub(super) fn present(&self, run: u64) -> String {
        self.key(&format!("present:{}", run_text(run)))
    }

    /// The ids of clients that nodes have: a hash.
    pub(super) fn clients(&self) -> String {
        self.key("clients")
    }

    /// Where a node hears what others say to it.
    pub(super) fn channel(&self, run: u64) -> String {
        self.key(&format!("calls:{}", run_text(run)))
    }

    /// Says something to a node.
    pub(super) fn publish(&self, run: u64, frame: &[u8]) -> Cmd {
        let mut command = Cmd::with_capacity(3, frame.len() + 128);
        command.arg(self.publish_command).arg(self.channel(run)).arg(frame);
        command
    }

    /// Renews a lease and looks who lives.
    pub(super) fn beat(&self, run: u64, info: &str, lease_ms: u64, clean_ms: u64, may_bury: bool) -> Cmd {
        let keys = [self.key("index"), self.key("infos"), self.key("dead"), self.lease(run)];
        let mut command = script(BEAT, &keys);
        command.arg(run_text(run)).arg(info).arg(lease_ms).arg(clean_ms).arg(u8::from(may_bury));
        command
    }

    /// Ends a lease.
    pub(super) fn retire(&self, run: u64) -> Cmd {
        let mut command = script(RETIRE, &[self.key("index"), self.key("dead"), self.lease(run)]);
        command.arg(run_text(run));
        command
    }

    /// Nothing of a dead node is left.
    pub(super) fn finish(&self, run: u64) -> Cmd {
        let mut command = script(FINISH, &[self.key("dead"), self.key("infos")]);
        command.arg(run_text(run));
        command
    }

    /// Claims ids of clients.
    pub(super) fn claim(&self, run: u64, ids: &[Box<str>]) -> Cmd {
        with_ids(script(CLAIM, &[self.clients(), self.key("index")]), run, ids)
    }

    /// Gives ids of clients back.
    pub(super) fn release(&self, run: u64, ids: &[Box<str>]) -> Cmd {
        with_ids(script(RELEASE, &[self.clients()]), run, ids)
    }

    /// Tells which sessions are in rooms, with what members are told of them, or without where they left.
    pub(super) fn present_changes<'a>(
        &self,
        run: u64,
        changes: impl Iterator<Item = (&'a str, Option<&'a [u8]>)>,
    ) -> Cmd {
        let mut command = script(PRESENT, &[self.present(run), self.key("index"), self.key("dead")]);
        command.arg(run_text(run)).arg(self.key("present:"));
        for (field, told) in changes {
            command.arg(field).arg(told.unwrap_or_default());
        }
        command
    }

    /// A part of a hash.
    pub(super) fn scan(&self, hash: &str, cursor: &str) -> Cmd {
        let mut command = cmd("HSCAN");
        command.arg(hash).arg(cursor).arg("COUNT").arg(500);
        command
    }
}

fn with_ids(mut command: Cmd, run: u64, ids: &[Box<str>]) -> Cmd {
    command.arg(run_text(run));
    for id in ids {
        command.arg(&**id);
    }
    command
}

/// These are short and seldom called: their text goes along, so that no server has to know it.
fn script(text: &str, keys: &[String]) -> Cmd {
    let mut command = cmd("EVAL");
    command.arg(text).arg(keys.len()).arg(keys);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_read_as_they_are_written() {
        for run in [0, 1, u64::MAX, 0x0123_4567_89ab_cdef] {
            assert_eq!(parse_run(&run_text(run)), Some(run));
        }
        for text in ["", "1", "+000000000000001", "00000000000000001", "000000000000000g"] {
            assert_eq!(parse_run(text), None, "{text}");
        }
    }

    #[test]
    fn keys_and_channels_have_one_slot_and_are_none_of_a_room() {
        let keys = Keys::new("app", false);
        for key in [keys.lease(1), keys.present(1), keys.clients(), keys.channel(1)] {
            assert!(key.starts_with("app:{nodes}:"), "{key}");
        }
    }
}

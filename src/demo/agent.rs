//! An agent: tells in its own room what it does, what it believes, what it expects, and what worries it.

use fastrand::Rng;
use serde_json::json;

use super::member::{Actor, Due, Identity, Say};

/// An agent's name, the model that it runs on, and what it works at.
pub(super) type Role = (&'static str, &'static str, [&'static str; 3]);

/// The agents.
pub(super) const AGENTS: [Role; 6] = [
    ("planner", "large", ["splits the release into tasks", "orders the backlog", "weighs two designs"]),
    ("coder-1", "large", ["writes the parser", "moves the cache behind a trait", "fixes a flaky test"]),
    ("coder-2", "medium", ["ports the importer", "adds retries to the client", "removes dead code"]),
    ("reviewer", "large", ["reads a pull request", "checks error paths", "compares benchmarks"]),
    ("tester", "medium", ["runs the suite", "bisects a regression", "fuzzes the decoder"]),
    ("analyst", "small", ["reads last night's logs", "looks for slow queries", "sums up incidents"]),
];

const BELIEFS: [&str; 5] = [
    "the cache is stale after a deploy",
    "the migration can run without downtime",
    "the flaky test depends on the clock",
    "latency grows with the size of the index",
    "the importer drops empty rows",
];
const EXPECTATIONS: [&str; 3] =
    ["the build will take 9 minutes", "the queue will be empty within the hour", "two more reviews are needed"];
const WORRIES: [(&str, &str, &str); 3] = [
    ("high", "retry loop", "the same call failed five times within a minute"),
    ("medium", "contradiction", "two sources disagree on the schema"),
    ("low", "repetition", "the plan has come back to an earlier step"),
];

/// One agent.
pub(super) struct Agent {
    role: Role,
    room: String,
    chance: Rng,
    confidence: f64,
    works: Due,
    believes: Due,
    expects: Due,
    worries: Due,
    stumbles: Due,
    leaves: Due,
}

impl Agent {
    pub(super) fn new(role: &Role, seed: u64) -> Agent {
        Agent {
            role: *role,
            room: format!("agent:{}", role.0),
            chance: Rng::with_seed(seed),
            confidence: 0.6,
            works: Due::every(2_500..7_000),
            believes: Due::every(3_000..6_000),
            expects: Due::every(8_000..15_000),
            worries: Due::every(20_000..45_000),
            stumbles: Due::every(30_000..90_000),
            leaves: Due::every(60_000..180_000),
        }
    }

    fn tell_status(&mut self, say: &mut Say) {
        let status =
            ["idle", "thinking", "working", "working", "working", "waiting", "blocked"][self.chance.usize(0..7)];
        let task = self.role.2[self.chance.usize(0..3)];
        let data = json!({"agent_id": self.role.0, "status": status, "task": task});
        say.publish(&self.room, "agent.status_changed", &data);
    }

    fn tell_belief(&mut self, say: &mut Say) {
        self.confidence = (self.confidence + self.chance.f64() * 0.3 - 0.15).clamp(0.05, 0.99);
        let belief = BELIEFS[self.chance.usize(0..BELIEFS.len())];
        let data = json!({
            "agent_id": self.role.0,
            "belief": belief,
            "confidence_level": hundredths(self.confidence),
            "evidence": self.chance.u32(1..9),
        });
        say.publish(&self.room, "epistemic_update", &data);
    }

    fn tell_expectation(&mut self, say: &mut Say) {
        let prediction = EXPECTATIONS[self.chance.usize(0..EXPECTATIONS.len())];
        let data = json!({
            "agent_id": self.role.0,
            "prediction": prediction,
            "confidence_level": hundredths(0.3 + self.chance.f64() * 0.6),
            "horizon_s": self.chance.u32(60..3600),
        });
        say.publish(&self.room, "prediction_update", &data);
    }

    fn tell_worry(&mut self, say: &mut Say) {
        let (severity, pattern, message) = WORRIES[self.chance.usize(0..WORRIES.len())];
        let data = json!({"agent_id": self.role.0, "severity": severity, "patterns": [pattern], "message": message});
        say.publish(&self.room, "pattern_alert", &data);
    }
}

impl Actor for Agent {
    fn identity(&self) -> Identity {
        let name = self.role.0;
        let granted = ["websocket:connect", "websocket:subscribe", "websocket:publish", "project:*:read"];
        let own = ["monitor", "write"].map(|action| format!("agent:{name}:{action}"));
        Identity {
            client_id: format!("demo-agent-{name}"),
            user: format!("agent-{name}"),
            name: format!("The {name}"),
            permissions: granted.into_iter().map(str::to_owned).chain(own).collect(),
        }
    }

    fn began(&mut self, _now_ms: u64, say: &mut Say) {
        let (name, model, _) = self.role;
        say.command("metadata", None, &json!({"set": {"app": "demo", "kind": "agent", "model": model}}));
        say.command("subscribe", None, &json!({"rooms": [self.room, "project:atlas"]}));
        say.publish(
            &self.room,
            "agent.connected",
            &json!({"agent_id": name, "status": "idle", "name": format!("The {name}")}),
        );
        say.publish(&self.room, "connection.established", &json!({"client_id": format!("{name}-to-model")}));
        for due in [&mut self.works, &mut self.leaves] {
            due.restart();
        }
    }

    fn step(&mut self, now_ms: u64, say: &mut Say) {
        if self.works.comes(now_ms, &mut self.chance) {
            self.tell_status(say);
        }
        if self.believes.comes(now_ms, &mut self.chance) {
            self.tell_belief(say);
        }
        if self.expects.comes(now_ms, &mut self.chance) {
            self.tell_expectation(say);
        }
        if self.worries.comes(now_ms, &mut self.chance) {
            self.tell_worry(say);
        }
        if self.stumbles.comes(now_ms, &mut self.chance) {
            let data = json!({"code": 529, "message": "the model's provider is overloaded; it is tried again"});
            say.publish(&self.room, "connection.error", &data);
        }
        if self.leaves.comes(now_ms, &mut self.chance) {
            let data = json!({"agent_id": self.role.0, "reason": "its container is replaced"});
            say.publish(&self.room, "agent.disconnected", &data);
            say.leave(self.chance.u64(5_000..12_000));
        }
    }
}

fn hundredths(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

//! What a backend publishes: projects with pull requests and issues, workflows, what an assistant makes of them, sales.

use fastrand::Rng;
use serde_json::{Value, json};

use super::member::Due;

/// The projects.
pub(super) const PROJECTS: [&str; 3] = ["atlas", "borealis", "cascade"];
/// Where transcripts go: much, and for whoever wants all of it.
pub(super) const ARCHIVE: &str = "project:archive";

const TITLES: [&str; 6] = [
    "Read the configuration once",
    "Retry on a lost connection",
    "Show totals per region",
    "Use the new date picker",
    "Drop support for the old format",
    "Explain refused logins",
];
const AUTHORS: [&str; 4] = ["anna", "ben", "agent-coder-1", "agent-coder-2"];
const STEPS: [&str; 5] = ["checkout", "build", "test", "package", "deploy"];
const SUGGESTIONS: [&str; 3] =
    ["These two functions do the same", "A timeout is missing here", "This index is not used any more"];
/// Characters of one transcript.
const TRANSCRIPT: usize = 32_000;

/// For whom an event is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum To {
    /// A room.
    Room(String),
    /// One user, wherever that is.
    User(&'static str),
    /// Every connection.
    Everyone,
}

/// An event to be published.
#[derive(Debug, Clone)]
pub(super) struct Event {
    pub(super) to: To,
    pub(super) kind: &'static str,
    pub(super) data: Value,
}

/// One project's open pull requests and issues.
struct Project {
    name: &'static str,
    pull_requests: Vec<u32>,
    issues: Vec<u32>,
    next: u32,
    moves: Due,
}

/// One workflow, which runs again and again.
struct Workflow {
    project: &'static str,
    run: u32,
    progress: Option<f64>,
    fails_at: Option<f64>,
    moves: Due,
    rests: Due,
}

/// All of it.
pub(super) struct World {
    chance: Rng,
    projects: Vec<Project>,
    workflows: Vec<Workflow>,
    archives: Due,
    sums_up: Due,
    announces: Due,
    sandbox: Due,
    has_sandbox: bool,
    sold: u32,
}

impl World {
    pub(super) fn new(chance: Rng) -> World {
        let project = |name| Project {
            name,
            pull_requests: vec![101, 104],
            issues: vec![102, 103],
            next: 105,
            moves: Due::every(1_200..3_000),
        };
        let workflow = |project| Workflow {
            project,
            run: 40,
            progress: None,
            fails_at: None,
            moves: Due::every(500..1_200),
            rests: Due::every(3_000..8_000),
        };
        World {
            chance,
            projects: PROJECTS.into_iter().map(project).collect(),
            workflows: PROJECTS.into_iter().map(workflow).collect(),
            archives: Due::every(80..110),
            sums_up: Due::every(5_000..5_001),
            announces: Due::every(8_000..16_000),
            sandbox: Due::every(15_000..25_000),
            has_sandbox: false,
            sold: 0,
        }
    }

    /// What happens up to now.
    pub(super) fn step(&mut self, now_ms: u64) -> Vec<Event> {
        let mut events = Vec::new();
        let mut chance = self.chance.fork();
        for project in &mut self.projects {
            if project.moves.comes(now_ms, &mut chance) {
                project.step(&mut chance, &mut events);
            }
        }
        for workflow in &mut self.workflows {
            workflow.step(now_ms, &mut chance, &mut events);
        }
        if self.archives.comes(now_ms, &mut chance) {
            events.push(transcript(&mut chance));
        }
        if self.sums_up.comes(now_ms, &mut chance) {
            self.sold += chance.u32(0..4);
            let data = json!({"quotes_open": chance.u32(20..40), "quotes_sold": self.sold});
            events.push(Event { to: To::Room("analytics:sales".to_owned()), kind: "analytics.snapshot", data });
        }
        if self.announces.comes(now_ms, &mut chance) {
            let data = json!({"severity": "info", "message": "maintenance tonight from 02:00 to 02:15 UTC"});
            events.push(Event { to: To::Everyone, kind: "system_alert", data });
        }
        if self.sandbox.comes(now_ms, &mut chance) {
            events.push(self.toggle_sandbox());
        }
        events
    }

    /// A project that is made to try something out, and deleted.
    fn toggle_sandbox(&mut self) -> Event {
        self.has_sandbox = !self.has_sandbox;
        let (kind, data) = match self.has_sandbox {
            true => ("project.updated", json!({"project_id": "sandbox", "name": "Sandbox", "status": "active"})),
            false => ("project.deleted", json!({"project_id": "sandbox"})),
        };
        Event { to: To::Room("project:sandbox".to_owned()), kind, data }
    }
}

impl Project {
    fn step(&mut self, chance: &mut Rng, events: &mut Vec<Event>) {
        let room = To::Room(format!("project:{}", self.name));
        let title = TITLES[chance.usize(0..TITLES.len())];
        let author = AUTHORS[chance.usize(0..AUTHORS.len())];
        let mut tell = |kind, data| events.push(Event { to: room.clone(), kind, data });
        match chance.u32(0..10) {
            0 if self.pull_requests.len() < 6 => {
                let number = self.number();
                self.pull_requests.push(number);
                tell("pr.created", self.pull_request(number, title, author));
            }
            1 if self.pull_requests.len() > 1 => {
                let number = self.pull_requests.remove(0);
                let mut data = self.pull_request(number, title, author);
                data["merged"] = chance.bool().into();
                tell("pr.closed", data);
                let data = json!({"title": "Pull request closed", "message": format!("#{number} of {}", self.name)});
                events.push(Event { to: To::User("anna"), kind: "notification.created", data });
            }
            2 | 3 => {
                let Some(number) = pick(&self.pull_requests, chance) else { return };
                tell("pr.updated", self.pull_request(number, title, author));
            }
            4 if self.issues.len() < 8 => {
                let number = self.number();
                self.issues.push(number);
                tell("issue.created", issue(number, title, "triage"));
            }
            5 if self.issues.len() > 1 => tell("issue.closed", issue(self.issues.remove(0), title, "done")),
            6 => {
                let Some(number) = pick(&self.issues, chance) else { return };
                tell("issue.updated", issue(number, title, "accepted"));
            }
            7 => {
                let summary = SUGGESTIONS[chance.usize(0..SUGGESTIONS.len())];
                tell("ai.suggestion", json!({"summary": summary, "confidence": share(chance), "file": "src/lib.rs"}));
            }
            8 => {
                let summary =
                    format!("{} pull requests and {} issues are open", self.pull_requests.len(), self.issues.len());
                tell("ai.analysis_complete", json!({"summary": summary, "confidence": share(chance)}));
            }
            _ => {
                let status = ["on track", "at risk", "on track", "delayed"][chance.usize(0..4)];
                tell("project.updated", json!({"project_id": self.name, "name": self.name, "status": status}));
            }
        }
    }

    fn number(&mut self) -> u32 {
        self.next += 1;
        self.next - 1
    }

    fn pull_request(&self, number: u32, title: &str, author: &str) -> Value {
        let url = format!("https://git.example/{}/pull/{number}", self.name);
        json!({"number": number, "title": title, "author": author, "url": url})
    }
}

impl Workflow {
    fn step(&mut self, now_ms: u64, chance: &mut Rng, events: &mut Vec<Event>) {
        let (kind, data) = match self.progress {
            None if self.rests.comes(now_ms, chance) => {
                self.run += 1;
                self.progress = Some(0.0);
                self.fails_at = (chance.u32(0..4) == 0).then(|| 20.0 + chance.f64() * 70.0);
                ("workflow.started", json!({"workflow_id": self.id(), "step": STEPS[0]}))
            }
            Some(progress) if self.moves.comes(now_ms, chance) => {
                let progress = (progress + 2.0 + chance.f64() * 5.0).min(100.0);
                let step = STEPS[((progress / 20.0) as usize).min(STEPS.len() - 1)];
                self.progress = (progress < 100.0).then_some(progress);
                if self.fails_at.is_some_and(|at| progress >= at) {
                    self.progress = None;
                    let error = format!("{step}: 3 of 412 checks failed");
                    ("workflow.failed", json!({"workflow_id": self.id(), "progress": progress.round(), "error": error}))
                } else if self.progress.is_none() {
                    ("workflow.completed", json!({"workflow_id": self.id(), "progress": 100, "step": step}))
                } else {
                    ("workflow.progress", json!({"workflow_id": self.id(), "progress": progress.round(), "step": step}))
                }
            }
            _ => return,
        };
        if self.progress.is_none() {
            self.rests.restart();
        }
        events.push(Event { to: To::Room(format!("workflow:{}", self.project)), kind, data });
    }

    fn id(&self) -> String {
        format!("{}-{}", self.project, self.run)
    }
}

fn issue(number: u32, title: &str, label: &str) -> Value {
    json!({"number": number, "title": title, "labels": [label]})
}

fn transcript(chance: &mut Rng) -> Event {
    const WORDS: [&str; 8] = ["read", "the", "log", "again,", "compare", "both", "runs,", "decide."];
    let mut text = String::with_capacity(TRANSCRIPT + 16);
    while text.len() < TRANSCRIPT {
        text.push_str(WORDS[chance.usize(0..WORDS.len())]);
        text.push(' ');
    }
    let data = json!({"summary": "a transcript, in full", "confidence": share(chance), "transcript": text});
    Event { to: To::Room(ARCHIVE.to_owned()), kind: "ai.analysis_complete", data }
}

fn pick(numbers: &[u32], chance: &mut Rng) -> Option<u32> {
    if numbers.is_empty() { None } else { numbers.get(chance.usize(0..numbers.len())).copied() }
}

fn share(chance: &mut Rng) -> f64 {
    (chance.f64() * 100.0).round() / 100.0
}

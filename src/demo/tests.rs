//! What the demo tells, without a hub.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::member::Say;
use super::*;
use crate::hub::schema;
use crate::load::message::Envelope;

const MINUTES_MS: u64 = 10 * 60_000;

/// The event that a command publishes.
fn published(command: &Value) -> Option<(String, String, Value)> {
    let data = (command["type"] == "publish").then(|| &command["data"])?;
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    Some((text(&data["room"]), text(&data["type"]), data["data"].clone()))
}

#[test]
fn the_story_has_every_type_of_the_protocol_and_each_in_its_shape() {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let mut rooms = BTreeSet::new();
    let mut tell = |room: String, kind: &str, data: &Value| {
        let text = serde_json::to_vec(data).expect("JSON");
        schema::check(kind, &text, true, 32).unwrap_or_else(|refused| panic!("{kind}: {refused:?}"));
        *counts.entry(kind.to_owned()).or_default() += 1;
        rooms.insert(room);
    };
    let mut world = World::new(fastrand::Rng::with_seed(SEED));
    let mut agents: Vec<Agent> = AGENTS.iter().zip(0..).map(|(one, seed)| Agent::new(one, seed)).collect();
    let mut pricing = Pricing::default();
    let mut editor = Editor::new("anna", 1);
    let mut say = Say::default();
    agents.iter_mut().for_each(|agent| agent.began(1, &mut say));
    editor.began(1, &mut say);
    for now_ms in (1..MINUTES_MS).step_by(50) {
        for event in world.step(now_ms) {
            let room = match event.to {
                To::Room(room) => room,
                To::User(user) => format!("user:{user}"),
                To::Everyone => "global".to_owned(),
            };
            tell(room, event.kind, &event.data);
        }
        agents.iter_mut().for_each(|agent| agent.step(now_ms, &mut say));
        editor.step(now_ms, &mut say);
        pricing.step(now_ms, &mut say);
        for command in say.said() {
            if command["type"] == "lock.acquire" {
                let granted = r#"{"type":"lock.acquired","ref":"lock","data":{"token":7}}"#;
                editor.heard(&Envelope::parse(granted).expect("a message"), now_ms, &mut say);
            }
            let Some((room, kind, data)) = published(&command) else { continue };
            let heard = serde_json::json!({"type": kind, "room": room, "seq": 1, "data": data}).to_string();
            pricing.heard(&Envelope::parse(&heard).expect("a message"), now_ms, &mut say);
            tell(room, &kind, &data);
        }
    }
    const TYPES: [&str; 28] = [
        "project.updated",
        "project.deleted",
        "agent.status_changed",
        "agent.connected",
        "agent.disconnected",
        "workflow.started",
        "workflow.progress",
        "workflow.completed",
        "workflow.failed",
        "pr.created",
        "pr.updated",
        "pr.closed",
        "issue.created",
        "issue.updated",
        "issue.closed",
        "ai.suggestion",
        "ai.analysis_complete",
        "connection.established",
        "connection.error",
        "epistemic_update",
        "pattern_alert",
        "prediction_update",
        "system_alert",
        "quote.updated",
        "quote.premium_calculated",
        "quote.field_edited",
        "analytics.snapshot",
        "notification.created",
    ];
    let missing: Vec<&str> = TYPES.into_iter().filter(|kind| !counts.contains_key(*kind)).collect();
    assert_eq!(missing, [""; 0], "{counts:?}");
    assert!(rooms.len() < 25, "bounded, however long it goes on: {rooms:?}");
}

#[test]
fn an_editor_types_only_while_the_field_is_locked() {
    let mut editor = Editor::new("ben", 2);
    let mut say = Say::default();
    editor.began(1, &mut say);
    let hear = |editor: &mut Editor, text: &str, say: &mut Say| {
        editor.heard(&Envelope::parse(text).expect("a message"), 0, say);
    };
    say.said();
    let until = |editor: &mut Editor, now_ms: &mut u64, kind: &str, say: &mut Say| -> Vec<String> {
        let mut kinds = Vec::new();
        while kinds.last().is_none_or(|last| last != kind) {
            *now_ms += 50;
            assert!(*now_ms < 1_000_000, "{kind} never comes: {kinds:?}");
            editor.step(*now_ms, say);
            kinds.extend(say.said().iter().map(|command| command["type"].as_str().expect("a type").to_owned()));
        }
        kinds
    };
    let mut now_ms = 1;
    assert_eq!(until(&mut editor, &mut now_ms, "lock.acquire", &mut say), ["lock.acquire"]);
    hear(&mut editor, r#"{"type":"error","ref":"lock","data":{"code":"lock_held"}}"#, &mut say);
    assert_eq!(until(&mut editor, &mut now_ms, "lock.acquire", &mut say), ["lock.acquire"], "it asks again");
    hear(&mut editor, r#"{"type":"lock.acquired","ref":"lock","data":{"token":9}}"#, &mut say);
    let typed = until(&mut editor, &mut now_ms, "lock.release", &mut say);
    assert!(typed.len() > 3 && typed[..typed.len() - 1].iter().all(|kind| kind == "publish"), "{typed:?}");
    until(&mut editor, &mut now_ms, "lock.acquire", &mut say);
    hear(&mut editor, r#"{"type":"lock.acquired","ref":"lock","data":{"token":10}}"#, &mut say);
    until(&mut editor, &mut now_ms, "publish", &mut say);
    hear(&mut editor, r#"{"type":"lock.released","room":"quote:Q-1001","seq":5,"data":{"token":10}}"#, &mut say);
    assert_eq!(until(&mut editor, &mut now_ms, "lock.acquire", &mut say), ["lock.acquire"], "it types no more");
}

#[test]
fn a_listener_on_every_address_is_reached_by_loopback() {
    let text = |address: &str| reachable(address.parse().expect("an address")).to_string();
    assert_eq!(text("0.0.0.0:8000"), "127.0.0.1:8000");
    assert_eq!(text("[::]:8000"), "[::1]:8000");
    assert_eq!(text("10.1.2.3:8000"), "10.1.2.3:8000");
}

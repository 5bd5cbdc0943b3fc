//! A service that is a client: it hears what is edited, and tells what the quote costs now.

use serde_json::{Value, json};

use super::editor::{QUOTE, ROOM};
use super::member::{Actor, Identity, Say};
use crate::load::message::Envelope;

/// How long it takes to calculate.
const CALCULATES_MS: u64 = 300;

/// The service.
#[derive(Default)]
pub(super) struct Pricing {
    due_ms: Option<u64>,
    version: u64,
    premium: f64,
}

impl Actor for Pricing {
    fn identity(&self) -> Identity {
        let granted =
            ["websocket:connect", "websocket:subscribe", "websocket:publish", "quote:*:read", "quote:*:write"];
        Identity {
            client_id: "demo-pricing".to_owned(),
            user: "pricing".to_owned(),
            name: "Pricing service".to_owned(),
            permissions: granted.map(str::to_owned).to_vec(),
        }
    }

    fn began(&mut self, _now_ms: u64, say: &mut Say) {
        say.command("metadata", None, &json!({"set": {"app": "demo", "kind": "service"}}));
        say.command("subscribe", None, &json!({"room": ROOM, "types": ["quote.field_edited"]}));
    }

    fn heard(&mut self, message: &Envelope<'_>, now_ms: u64, _say: &mut Say) {
        if message.kind != "quote.field_edited" {
            return;
        }
        let edited: Option<Value> = message.data.and_then(|data| serde_json::from_str(data.get()).ok());
        let value = edited.and_then(|data| data["value"].as_f64()).unwrap_or(100.0);
        self.premium = 240.0 + value * 0.37;
        self.due_ms.get_or_insert(now_ms + CALCULATES_MS);
    }

    fn step(&mut self, now_ms: u64, say: &mut Say) {
        if self.due_ms.is_none_or(|due_ms| now_ms < due_ms) {
            return;
        }
        self.due_ms = None;
        self.version += 1;
        let premium = (self.premium * 100.0).round() / 100.0;
        say.publish(
            ROOM,
            "quote.premium_calculated",
            &json!({"quote_id": QUOTE, "premium": premium, "currency": "EUR"}),
        );
        say.publish(ROOM, "quote.updated", &json!({"quote_id": QUOTE, "status": "draft", "version": self.version}));
    }
}

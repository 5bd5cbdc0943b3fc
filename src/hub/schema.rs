//! The event types with a known shape (PROTOCOL §6): their data is checked when they are published.
//!
//! The protocol names the types, and what it says of their data is that it is an object; the fields below are those that
//! the systems which use them have in common. A field may be missing, but one that is there has its type. Fields that are
//! not listed are kept as they are.

use crate::wire::codes::ErrorCode;
use crate::wire::json::{Scratch, Value};
use crate::wire::native::Refused;

/// What a field has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Text,
    Number,
    /// From 0 to 1.
    Share,
    /// From 0 to 100.
    Percent,
    List,
    /// A text or a number, as ids are.
    Id,
}

/// The types and their fields.
const KNOWN: &[(&str, &[(&str, Shape)])] = &[
    ("project.updated", &[("project_id", Shape::Id), ("name", Shape::Text), ("status", Shape::Text)]),
    ("project.deleted", &[("project_id", Shape::Id)]),
    ("agent.status_changed", AGENT),
    ("agent.connected", AGENT),
    ("agent.disconnected", AGENT),
    ("workflow.started", WORKFLOW),
    ("workflow.progress", WORKFLOW),
    ("workflow.completed", WORKFLOW),
    ("workflow.failed", WORKFLOW),
    ("pr.created", PULL_REQUEST),
    ("pr.updated", PULL_REQUEST),
    ("pr.closed", PULL_REQUEST),
    ("issue.created", ISSUE),
    ("issue.updated", ISSUE),
    ("issue.closed", ISSUE),
    ("ai.suggestion", AI),
    ("ai.analysis_complete", AI),
    ("connection.established", &[("client_id", Shape::Text)]),
    ("connection.error", &[("code", Shape::Id), ("message", Shape::Text)]),
    ("epistemic_update", COGNITION),
    ("pattern_alert", COGNITION),
    ("prediction_update", COGNITION),
    ("system_alert", &[("severity", Shape::Text), ("message", Shape::Text)]),
    ("quote.updated", QUOTE),
    ("quote.premium_calculated", QUOTE),
    ("quote.field_edited", QUOTE),
    ("analytics.snapshot", &[]),
    ("notification.created", &[("title", Shape::Text), ("message", Shape::Text)]),
];

const AGENT: &[(&str, Shape)] = &[("agent_id", Shape::Id), ("status", Shape::Text), ("name", Shape::Text)];
const WORKFLOW: &[(&str, Shape)] =
    &[("workflow_id", Shape::Id), ("progress", Shape::Percent), ("step", Shape::Id), ("error", Shape::Text)];
const PULL_REQUEST: &[(&str, Shape)] =
    &[("number", Shape::Number), ("title", Shape::Text), ("url", Shape::Text), ("author", Shape::Text)];
const ISSUE: &[(&str, Shape)] =
    &[("number", Shape::Number), ("title", Shape::Text), ("url", Shape::Text), ("labels", Shape::List)];
const AI: &[(&str, Shape)] = &[("confidence", Shape::Share), ("summary", Shape::Text)];
const COGNITION: &[(&str, Shape)] = &[
    ("agent_id", Shape::Id),
    ("confidence_level", Shape::Share),
    ("severity", Shape::Text),
    ("patterns", Shape::List),
];
const QUOTE: &[(&str, Shape)] = &[("quote_id", Shape::Id), ("premium", Shape::Number), ("field", Shape::Text)];

/// What the hub itself tells members of a room (PROTOCOL §4); nobody else may.
const OWN: &[&str] = &["presence.joined", "presence.left", "lock.acquired", "lock.released", "lock.expired"];

/// Checks an event. `strict` refuses types that the protocol does not know.
pub fn check(kind: &str, data: &[u8], strict: bool, depth_max: usize) -> Result<(), Refused> {
    if OWN.contains(&kind) {
        return Err(Refused::because(ErrorCode::Forbidden, format!("{kind} is published by the hub only")));
    }
    let Some((_, fields)) = KNOWN.iter().find(|(known, _)| *known == kind) else {
        if strict {
            return Err(Refused::because(
                ErrorCode::UnknownType,
                format!("{kind} is not an event type of the protocol"),
            ));
        }
        return Ok(());
    };
    if data.first() != Some(&b'{') {
        return Err(Refused::because(ErrorCode::BadCommand, format!("the data of {kind} has to be an object")));
    }
    if fields.is_empty() {
        return Ok(());
    }
    let mut text = data.to_vec();
    let mut scratch = Scratch::new(depth_max);
    let document = scratch
        .parse(&mut text)
        .map_err(|_| Refused::because(ErrorCode::BadJson, format!("the data of {kind} is not valid JSON")))?;
    for field in document.root().fields() {
        let Some((name, shape)) = fields.iter().find(|(name, _)| *name == field.key) else { continue };
        if !field.value.is_null() && !shape.fits(field.value) {
            let message = format!("data.{name} of {kind} has to be {}", shape.words());
            return Err(Refused::because(ErrorCode::BadCommand, message));
        }
    }
    Ok(())
}

impl Shape {
    fn fits(self, value: Value<'_, '_>) -> bool {
        match self {
            Shape::Text => value.as_str().is_some(),
            Shape::Number => value.as_f64().is_some(),
            Shape::Share => value.as_f64().is_some_and(|number| (0.0..=1.0).contains(&number)),
            Shape::Percent => value.as_f64().is_some_and(|number| (0.0..=100.0).contains(&number)),
            Shape::List => value.is_array(),
            Shape::Id => value.as_str().is_some() || value.as_f64().is_some(),
        }
    }

    fn words(self) -> &'static str {
        match self {
            Shape::Text => "a string",
            Shape::Number => "a number",
            Shape::Share => "a number from 0 to 1",
            Shape::Percent => "a number from 0 to 100",
            Shape::List => "a list",
            Shape::Id => "a string or a number",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(kind: &str, data: &str, strict: bool) -> Option<ErrorCode> {
        check(kind, data.as_bytes(), strict, 64).err().map(|refused| refused.code)
    }

    #[test]
    fn known_types_have_objects_whose_known_fields_have_their_types() {
        assert_eq!(code("project.updated", r#"{"body":"x","more":[1]}"#, true), None);
        assert_eq!(code("project.updated", r#"{"name":5}"#, false), Some(ErrorCode::BadCommand));
        assert_eq!(code("project.updated", "[]", false), Some(ErrorCode::BadCommand));
        assert_eq!(code("epistemic_update", r#"{"confidence_level":0.8}"#, false), None);
        assert_eq!(code("epistemic_update", r#"{"confidence_level":1.8}"#, false), Some(ErrorCode::BadCommand));
        assert_eq!(code("workflow.progress", r#"{"progress":100,"step":2}"#, false), None);
        assert_eq!(code("workflow.progress", r#"{"progress":null}"#, false), None);
        assert_eq!(code("analytics.snapshot", "{}", true), None);
    }

    #[test]
    fn other_types_are_free_unless_strict() {
        assert_eq!(code("my.own", "5", false), None);
        assert_eq!(code("my.own", "{}", true), Some(ErrorCode::UnknownType));
    }

    #[test]
    fn what_the_hub_itself_tells_nobody_else_may() {
        assert_eq!(code("presence.left", "{}", false), Some(ErrorCode::Forbidden));
        assert_eq!(code("lock.acquired", "{}", false), Some(ErrorCode::Forbidden));
        assert_eq!(code("lock.mine", "{}", false), None);
    }
}

//! What a worker sends: who to where, in which envelope, and when.

use super::message;
use super::plan::{EchoVia, Mode, Pace, Plan};
use super::run::Window;
use super::schedule::{Schedule, Timetable, shares};

/// Who sends to where: a publisher into a room, or an echo client.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lane {
    pub(crate) connection: usize,
    pub(crate) room: Option<usize>,
}

/// What a worker sends, and when.
pub(crate) enum Traffic {
    /// The measured time isn't fixed yet.
    Waiting,
    Open {
        lanes: Vec<Lane>,
        table: Timetable,
    },
    Closed {
        lanes: Vec<Lane>,
        window: u32,
    },
}

/// The text around a body.
pub(crate) struct Template {
    pub(crate) head: String,
    pub(crate) tail: String,
}

impl Traffic {
    /// Fixes who sends what when. `numbers` are those of the worker's connections in the whole run.
    pub(crate) fn plan(plan: &Plan, numbers: &[usize], window: Window) -> Traffic {
        let mut lanes = Vec::new();
        let mut schedules = Vec::new();
        let mut add = |lane: Lane, rate: f64, phase: f64| {
            lanes.push(lane);
            if rate > 0.0 {
                schedules.push(Schedule::new(window.start_ns, rate, phase));
            }
        };
        let rate = if let Pace::Rate(rate) = plan.pace { rate } else { 0.0 };
        match plan.mode {
            Mode::Fanout | Mode::Reconnect => {
                let shares = shares(plan.rooms, plan.skewed);
                for lane in 0..plan.lanes() {
                    let (room, publisher) = (lane % plan.rooms, plan.connections + lane % plan.publishers);
                    let Some(connection) = numbers.iter().position(|n| *n == publisher) else { continue };
                    let rate = rate * shares[room] / plan.lanes_of_room(room) as f64;
                    add(Lane { connection, room: Some(room) }, rate, lane as f64 / plan.lanes() as f64);
                }
            }
            Mode::Echo => {
                let count = plan.connections as f64;
                for (connection, number) in numbers.iter().enumerate() {
                    add(Lane { connection, room: None }, rate / count, *number as f64 / count);
                }
            }
            Mode::Idle | Mode::Churn => {}
        }
        match plan.pace {
            Pace::Rate(_) => Traffic::Open { lanes, table: Timetable::new(schedules) },
            Pace::Window(window) => Traffic::Closed { lanes, window },
        }
    }
}

impl Template {
    /// The templates of a run: one per room, or the echo's.
    pub(crate) fn all(plan: &Plan) -> Vec<Template> {
        match (plan.mode, plan.echo) {
            (Mode::Echo, EchoVia::Path) => vec![Template { head: String::new(), tail: String::new() }],
            (Mode::Echo, EchoVia::Ping) => vec![Template::around(message::ping)],
            _ => (0..plan.rooms).map(|room| Template::publish(&plan.room(room), &plan.event_type)).collect(),
        }
    }

    fn publish(room: &str, event_type: &str) -> Template {
        #[derive(serde::Serialize)]
        struct Body<'a> {
            body: &'a str,
        }
        Template::around(|body| {
            let data = serde_json::value::to_raw_value(&Body { body }).unwrap_or_default();
            message::publish(None, &message::Publish { room, r#type: event_type, data: &data, key: None })
        })
    }

    /// Splits the text that `write` makes of a body into what stands before and after it.
    fn around(write: impl Fn(&str) -> String) -> Template {
        const MARK: &str = "\u{1f}body\u{1f}";
        let escaped = "\\u001fbody\\u001f";
        let text = write(MARK);
        let (head, tail) = text.split_once(escaped).unwrap_or((&text, ""));
        Template { head: head.into(), tail: tail.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_the_command_around_the_body() {
        let t = Template::publish("project:bench-0", "bench.event");
        assert_eq!(
            format!("{}BODY{}", t.head, t.tail),
            r#"{"type":"publish","data":{"room":"project:bench-0","type":"bench.event","data":{"body":"BODY"}}}"#
        );
        let t = Template::around(message::ping);
        assert_eq!(format!("{}B{}", t.head, t.tail), r#"{"type":"ping","id":"p","data":{"body":"B"}}"#);
    }
}

//! `ringhub explain`: what became of an event for a client.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use super::failure::Failure;
use super::target::{HubArgs, Target};
use super::text::plain;

/// Time for the connection, and for the answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Say what became of an event for a client: not subscribed, filtered, skipped, queued or written.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The client's id; of one that has left too, for some minutes
    client: String,
    /// The event's id
    event: String,
    /// The hub; its HTTP API is asked, with an administrator's token
    #[command(flatten)]
    hub: HubArgs,
    /// Print the whole answer as JSON
    #[arg(long)]
    json: bool,
}

/// Asks the hub and prints its answer. Exit code 1: no answer; 2: wrong use.
pub fn run(args: Args) -> ExitCode {
    let path = format!("/api/v1/connections/{}/explain?event={}", encoded(&args.client), encoded(&args.event));
    let target = match args.hub.target().and_then(|target| target.with_path(&path)) {
        Ok(target) => target,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    match ask(&target) {
        Ok(answer) => {
            let text = if args.json { format!("{answer:#}\n") } else { text(&answer) };
            match io::stdout().write_all(text.as_bytes()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("error: output: {error}");
                    ExitCode::FAILURE
                }
            }
        }
        Err(failure) => {
            eprintln!("error: {failure}");
            if let Some(hint) = failure.hint() {
                eprintln!("hint: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}

fn ask(target: &Target) -> Result<serde_json::Value, Failure> {
    let body = target.get(PATIENCE)?;
    serde_json::from_slice(&body).map_err(|_| Failure::Protocol("the answer is no JSON".to_owned()))
}

/// The outcome in one line, what is known of it in the next, and what it is about below.
fn text(answer: &serde_json::Value) -> String {
    let field = |name: &str| match answer.get(name)? {
        serde_json::Value::String(text) => Some(plain(text).into_owned()),
        serde_json::Value::Null => None,
        other => Some(other.to_string()),
    };
    let outcome = field("outcome").unwrap_or_default().replace('_', " ");
    let mut text = format!("{outcome}\n{}\n", field("detail").unwrap_or_default());
    const ABOUT: [(&str, &str); 8] = [
        ("room", "room"),
        ("seq", "seq"),
        ("type", "type"),
        ("published", "published_at"),
        ("written", "written_at"),
        ("filter", "filter"),
        ("connected", "connected_at"),
        ("closed", "closed_at"),
    ];
    for (label, name) in ABOUT {
        if let Some(value) = field(name) {
            text.push_str(&format!("  {label:<10} {value}\n"));
        }
    }
    text
}

/// Percent-encoded, so that it stands in a path or query whatever it is.
fn encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_encoded_for_a_path() {
        assert_eq!(encoded("a:b/c d~1"), "a%3Ab%2Fc%20d~1");
    }

    #[test]
    fn an_answer_is_told_with_what_there_is() {
        let answer = serde_json::json!({
            "outcome": "not_subscribed", "detail": "It was not.\u{1b}[2J", "room": "project:x", "seq": 4, "closed_at": null,
        });
        let expected = "not subscribed\nIt was not.\u{fffd}[2J\n  room       project:x\n  seq        4\n";
        assert_eq!(text(&answer), expected);
    }
}

//! `ringhub publish`: publishes one event, or one per line of the standard input.

use std::io::{self, BufRead, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::value::RawValue;
use tungstenite::{Message, WebSocket};

use super::client::closed;
use super::failure::Failure;
use super::message::{self, Envelope};
use super::target::{HubArgs, Target};
use super::text::plain;

/// Longest line of the standard input; a hub's messages are at most some MiB.
const LINE_MAX: u64 = 64 << 20;
/// While no line comes, the hub's pings are answered this often.
const SERVICE: Duration = Duration::from_secs(1);
/// Wait after `rate_limited` when the answer doesn't tell one, and the longest one followed.
const RETRY: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// Publish events into a room.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The room, such as project:alpha
    room: String,
    /// The event's type, such as build.done
    r#type: String,
    /// The event's data as JSON; `-` takes one event per line from the standard input
    data: String,
    /// Idempotency key: published once within five minutes; with `-`, the line's number is appended
    #[arg(long)]
    key: Option<String>,
    /// The hub.
    #[command(flatten)]
    hub: HubArgs,
    /// How long an answer is waited for, `rate_limited` waits included
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
}

/// Publishes and prints room, seq and id of each event. Exit code 1: something was refused or lost; 2: wrong use.
pub fn run(args: Args) -> ExitCode {
    let timeout = Duration::from_secs(args.timeout);
    let target = match args.hub.target() {
        Ok(target) => target,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    let single = if args.data == "-" {
        None
    } else {
        match serde_json::from_str::<Box<RawValue>>(&args.data) {
            Ok(data) => Some(data),
            Err(error) => {
                eprintln!("error: DATA is no JSON: {error} (a text needs its quotes: '\"text\"')");
                return ExitCode::from(2);
            }
        }
    };
    let mut publisher = match Publisher::connect(&target, &args.room, &args.r#type, timeout) {
        Ok(publisher) => publisher,
        Err(failure) => return refused(&failure),
    };
    match single {
        Some(data) => match publisher.publish(&data, args.key.as_deref()) {
            Ok(published) => {
                print(&mut io::stdout(), &args.room, &published).map_or_else(lost_output, |()| ExitCode::SUCCESS)
            }
            Err(failure) => refused(&failure),
        },
        None => {
            let lines = read_lines(io::stdin());
            match publisher.publish_lines(&lines, args.key.as_deref(), &mut io::stdout()) {
                Ok(counts) => {
                    eprintln!(
                        "{} published, {} duplicate, {} refused",
                        counts.published, counts.duplicate, counts.refused
                    );
                    if counts.refused == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
                }
                Err(Stop::Failure(failure)) => refused(&failure),
                Err(Stop::Input(error)) => {
                    eprintln!("error: input: {error}");
                    ExitCode::FAILURE
                }
                Err(Stop::Output(error)) => lost_output(error),
            }
        }
    }
}

/// The hub's answer.
#[derive(Debug, PartialEq, Eq)]
struct Published {
    id: String,
    seq: Option<u64>,
    duplicate: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    published: u64,
    duplicate: u64,
    refused: u64,
}

/// Why a series of events ended before its end.
#[derive(Debug)]
enum Stop {
    Failure(Failure),
    Input(io::Error),
    Output(io::Error),
}

/// A connection that publishes one event at a time: the next is sent when the one before is answered, so that a refusal
/// in between can't change the order.
struct Publisher<'a> {
    socket: WebSocket<TcpStream>,
    room: &'a str,
    event_type: &'a str,
    timeout: Duration,
    next_id: u64,
}

impl<'a> Publisher<'a> {
    fn connect(
        target: &Target,
        room: &'a str,
        event_type: &'a str,
        timeout: Duration,
    ) -> Result<Publisher<'a>, Failure> {
        Ok(Publisher { socket: target.open(timeout)?, room, event_type, timeout, next_id: 1 })
    }

    /// Publishes one event and waits for its answer; when the hub is at a rate limit, waits as it asks and tries again.
    fn publish(&mut self, data: &RawValue, key: Option<&str>) -> Result<Published, Failure> {
        let deadline = Instant::now() + self.timeout;
        loop {
            let id = self.next_id.to_string();
            self.next_id += 1;
            let event = message::Publish { room: self.room, r#type: self.event_type, data, key };
            self.socket.send(Message::text(message::publish(Some(&id), &event)))?;
            let (failure, wait) = match self.answer(&id, deadline)? {
                Ok(published) => return Ok(published),
                Err(refusal) => refusal,
            };
            let limited = matches!(&failure, Failure::Command { code, .. } if code == "rate_limited");
            if !limited || Instant::now() + wait >= deadline {
                return Err(failure);
            }
            thread::sleep(wait);
        }
    }

    /// Waits for the answer to a command: what was published, or the refusal and how long it asks to wait.
    fn answer(&mut self, id: &str, deadline: Instant) -> Result<Result<Published, (Failure, Duration)>, Failure> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.await_at_most(left)?;
            let Some(text) = self.read()? else {
                if Instant::now() >= deadline {
                    return Err(Failure::Timeout("answer to publish"));
                }
                continue;
            };
            let Some(envelope) = Envelope::parse(&text).filter(|e| e.answers(id)) else { continue };
            let detail = envelope.detail();
            match envelope.kind.as_str() {
                "published" => {
                    return Ok(Ok(Published {
                        id: detail.id.or(envelope.id).unwrap_or_default(),
                        seq: detail.seq.or(envelope.seq),
                        duplicate: detail.duplicate,
                    }));
                }
                "error" => {
                    let wait = detail.retry_after_ms().map_or(RETRY, Duration::from_millis).min(RETRY_MAX);
                    return Ok(Err((detail.failure(), wait)));
                }
                _ => {}
            }
        }
    }

    /// Publishes line by line. What is refused is told and counted; only a lost connection ends it.
    fn publish_lines(
        &mut self,
        lines: &Receiver<io::Result<String>>,
        key: Option<&str>,
        out: &mut impl Write,
    ) -> Result<Counts, Stop> {
        let mut counts = Counts::default();
        let mut number = 0u64;
        loop {
            let line = match lines.recv_timeout(SERVICE) {
                Ok(line) => line.map_err(Stop::Input)?,
                Err(RecvTimeoutError::Timeout) => {
                    self.serve().map_err(Stop::Failure)?;
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(counts),
            };
            number += 1;
            if line.trim().is_empty() {
                continue;
            }
            let key = key.map(|key| format!("{key}:{number}"));
            let data = match serde_json::from_str::<Box<RawValue>>(&line) {
                Ok(data) => data,
                Err(error) => {
                    counts.refused += 1;
                    eprintln!("line {number}: no JSON: {error}");
                    continue;
                }
            };
            match self.publish(&data, key.as_deref()) {
                Ok(published) => {
                    if published.duplicate {
                        counts.duplicate += 1
                    } else {
                        counts.published += 1
                    }
                    print(out, self.room, &published).map_err(Stop::Output)?;
                }
                Err(failure @ Failure::Command { .. }) => {
                    counts.refused += 1;
                    eprintln!("line {number}: {failure}");
                }
                Err(failure) => return Err(Stop::Failure(failure)),
            }
        }
    }

    /// Answers pings and notices a close while there is nothing to publish.
    fn serve(&mut self) -> Result<(), Failure> {
        self.await_at_most(Duration::from_millis(1))?;
        while self.read()?.is_some() {}
        Ok(())
    }

    /// The next text message; `None` when none came in time.
    fn read(&mut self) -> Result<Option<String>, Failure> {
        loop {
            match self.socket.read() {
                Ok(Message::Text(text)) => return Ok(Some(text.as_str().to_string())),
                Ok(Message::Close(frame)) => return Err(closed(frame)),
                Ok(_) => {}
                Err(tungstenite::Error::Io(e)) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Ok(None);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn await_at_most(&self, time: Duration) -> Result<(), Failure> {
        self.socket.get_ref().set_read_timeout(Some(time)).map_err(|e| Failure::from_io(&e))
    }
}

/// Reads lines in a thread of its own, one ahead: the connection has to be served while none comes.
fn read_lines(input: impl Read + Send + 'static) -> Receiver<io::Result<String>> {
    let (sender, receiver) = sync_channel(1);
    thread::spawn(move || {
        let mut input = io::BufReader::new(input);
        loop {
            let mut line = Vec::new();
            let read = input.by_ref().take(LINE_MAX).read_until(b'\n', &mut line);
            let line = match read {
                Ok(0) => return,
                Ok(n) if n as u64 >= LINE_MAX => Err(io::Error::new(ErrorKind::InvalidData, "a line is too long")),
                Ok(_) => String::from_utf8(line).map_err(|e| io::Error::new(ErrorKind::InvalidData, e)),
                Err(error) => Err(error),
            };
            let last = line.is_err();
            // A receiver that is gone wants no more lines.
            if sender.send(line).is_err() || last {
                return;
            }
        }
    });
    receiver
}

fn print(out: &mut impl Write, room: &str, published: &Published) -> io::Result<()> {
    let seq = published.seq.map_or("-".to_string(), |seq| format!("#{seq}"));
    let duplicate = if published.duplicate { " duplicate" } else { "" };
    writeln!(out, "{} {seq} {}{duplicate}", plain(room), plain(&published.id))
}

fn refused(failure: &Failure) -> ExitCode {
    eprintln!("error: {failure}");
    if let Some(hint) = failure.hint() {
        eprintln!("hint: {hint}");
    }
    ExitCode::FAILURE
}

/// A reader of the output that is gone is no failure of the publishing.
fn lost_output(error: io::Error) -> ExitCode {
    if error.kind() == ErrorKind::BrokenPipe {
        return ExitCode::SUCCESS;
    }
    eprintln!("error: output: {error}");
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::standin::StandIn;

    const TIMEOUT: Duration = Duration::from_secs(10);

    fn target(hub: &StandIn, token: Option<&str>) -> Target {
        let token: Option<crate::load::target::Token> = token.map(|t| t.parse().unwrap());
        Target::new(&hub.url("/ws"), token.as_ref()).unwrap()
    }

    fn data(json: &str) -> Box<RawValue> {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn an_event_is_published_with_its_data_as_written_and_answered_with_its_number() {
        let hub = StandIn::start();
        let target = target(&hub, Some("a.b.c"));
        let mut publisher = Publisher::connect(&target, "project:a", "t", TIMEOUT).unwrap();
        let published = publisher.publish(&data(r#"{"n":1}"#), Some("k")).unwrap();
        assert_eq!(published, Published { id: "e1".into(), seq: Some(1), duplicate: false });
        assert_eq!(hub.requests()[0]["data"]["key"], "k");
        assert_eq!(hub.authorization(), ["Bearer a.b.c"]);
        let mut out = Vec::new();
        print(&mut out, "project:a", &published).unwrap();
        assert_eq!(out, b"project:a #1 e1\n");
    }

    #[test]
    fn a_rate_limit_is_waited_out_and_a_refusal_is_not() {
        let hub = StandIn::start();
        let target = target(&hub, None);
        hub.limit_publishes(3);
        let mut publisher = Publisher::connect(&target, "project:a", "t", TIMEOUT).unwrap();
        assert_eq!(publisher.publish(&data("1"), None).unwrap().seq, Some(1));
        assert_eq!(hub.requests().len(), 4);
        let mut publisher = Publisher::connect(&target, "secret:a", "t", TIMEOUT).unwrap();
        assert_eq!(publisher.publish(&data("1"), None).unwrap_err().label(), "error forbidden");
    }

    #[test]
    fn lines_are_published_in_order_and_what_is_no_json_is_counted() {
        let hub = StandIn::start();
        let target = target(&hub, None);
        let mut publisher = Publisher::connect(&target, "project:a", "t", TIMEOUT).unwrap();
        let lines = read_lines(io::Cursor::new("{\"n\":1}\n\nnonsense\n2"));
        let mut out = Vec::new();
        let counts = publisher.publish_lines(&lines, Some("run7"), &mut out).unwrap();
        assert_eq!(counts, Counts { published: 2, duplicate: 0, refused: 1 });
        assert_eq!(String::from_utf8(out).unwrap(), "project:a #1 e1\nproject:a #2 e2\n");
        let keys: Vec<_> = hub.requests().iter().map(|r| r["data"]["key"].clone()).collect();
        assert_eq!(keys, ["run7:1", "run7:4"]);
    }

    #[test]
    fn a_connection_lost_while_waiting_for_lines_is_noticed() {
        let hub = StandIn::start();
        let target = target(&hub, None);
        let mut publisher = Publisher::connect(&target, "project:a", "t", TIMEOUT).unwrap();
        publisher.publish(&data("1"), None).unwrap();
        hub.kick_all();
        let (sender, lines) = sync_channel(1);
        let end = publisher.publish_lines(&lines, None, &mut Vec::new());
        drop(sender);
        assert!(matches!(end, Err(Stop::Failure(Failure::Lost))), "{end:?}");
    }
}

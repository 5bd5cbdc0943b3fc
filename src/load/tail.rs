//! `ringhub tail`: prints the events of rooms as they come, across reconnects.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::Duration;

use tungstenite::{Message, WebSocket};

use super::client::closed;
use super::failure::Failure;
use super::message::{self, Detail, Envelope, Since};
use super::target::{HubArgs, Target};
use super::text::{one_line, painted, plain};

/// How long connecting and subscribing may take.
const SETUP: Duration = Duration::from_secs(10);
/// Silence after which a hub that told no heartbeat is taken for gone.
const SILENCE: Duration = Duration::from_secs(90);
/// First and longest wait before connecting again.
const WAIT_MIN: Duration = Duration::from_millis(250);
const WAIT_MAX: Duration = Duration::from_secs(15);
/// Rooms of one connection, as many as a hub allows.
const ROOMS_MAX: usize = 1000;
/// Subscriptions that are asked for at a time: fewer than a hub takes at once.
const ASKED_MAX: usize = 64;
/// The wait after `rate_limited` where the hub names none.
const LIMITED_WAIT: Duration = Duration::from_millis(100);

/// Print the events of rooms as they come.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Rooms, such as project:alpha
    #[arg(required = true, value_name = "ROOM")]
    rooms: Vec<String>,
    /// The hub.
    #[command(flatten)]
    hub: HubArgs,
    /// Begin with what is past: N (after this seq), last:N (events) or seconds:N
    #[arg(long, value_name = "SINCE", value_parser = since)]
    since: Option<Since>,
    /// End after so many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Print each event as the JSON that came, one per line
    #[arg(long)]
    json: bool,
    /// No colours (also with NO_COLOR set, and where the output is no terminal)
    #[arg(long)]
    no_color: bool,
}

/// Runs until enough events came, the reader of the output is gone, or the hub refuses. Exit code 1: refused or lost
/// for good; 2: wrong use.
pub fn run(args: Args) -> ExitCode {
    let target = match args.hub.target() {
        Ok(target) if args.rooms.len() <= ROOMS_MAX => target,
        Ok(_) => {
            eprintln!("error: more than {ROOMS_MAX} rooms");
            return ExitCode::from(2);
        }
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    let colours =
        !args.no_color && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()) && io::stdout().is_terminal();
    let style = match (args.json, colours) {
        (true, _) => Style::Json,
        (false, colours) => Style::Pretty { colours },
    };
    let mut tail = Tail::new(target, &args.rooms, args.since, args.count, style, io::stdout());
    match tail.follow() {
        Ok(()) => ExitCode::SUCCESS,
        Err(End::Output(error)) => {
            eprintln!("error: output: {error}");
            ExitCode::FAILURE
        }
        Err(End::Failure(failure)) => {
            eprintln!("error: {failure}");
            if let Some(hint) = failure.hint() {
                eprintln!("hint: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Json,
    Pretty { colours: bool },
}

/// A room that is followed.
struct Room {
    name: String,
    /// The last event that was printed, or where the subscription began.
    seq: Option<u64>,
    epoch: Option<String>,
}

struct Tail<W> {
    target: Target,
    rooms: Vec<Room>,
    since: Option<Since>,
    left: Option<u64>,
    style: Style,
    out: W,
    /// Some connection has got as far as its subscriptions.
    subscribed: bool,
    /// How long the hub asked to wait before connecting again.
    asked_wait: Option<Duration>,
    wait: Duration,
}

/// Why following ended, other than by having printed enough.
#[derive(Debug)]
enum End {
    Failure(Failure),
    Output(io::Error),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> End {
        End::Failure(failure)
    }
}

impl<W: Write> Tail<W> {
    fn new(
        target: Target,
        rooms: &[String],
        since: Option<Since>,
        count: Option<u64>,
        style: Style,
        out: W,
    ) -> Tail<W> {
        let rooms = rooms.iter().map(|name| Room { name: name.clone(), seq: None, epoch: None }).collect();
        Tail { target, rooms, since, left: count, style, out, subscribed: false, asked_wait: None, wait: WAIT_MIN }
    }

    /// Prints events until there are enough, over as many connections as it takes.
    fn follow(&mut self) -> Result<(), End> {
        loop {
            let failure = match self.session() {
                Ok(()) => return Ok(()),
                // The reader has seen enough: `ringhub tail … | head`.
                Err(End::Output(error)) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
                Err(End::Failure(failure)) if self.subscribed && !failure.is_permanent() => failure,
                Err(end) => return Err(end),
            };
            let wait = self.next_wait();
            eprintln!("{failure}; connecting again in {:.1} s", wait.as_secs_f64());
            std::thread::sleep(wait);
        }
    }

    /// One connection, until enough events came.
    fn session(&mut self) -> Result<(), End> {
        let mut socket = self.target.open(SETUP)?;
        let mut asked = self.rooms.len().min(ASKED_MAX);
        for index in 0..asked {
            self.ask(&mut socket, index)?;
        }
        let mut awaited = self.rooms.len();
        let mut silence = SILENCE;
        loop {
            let text = match socket.read() {
                Ok(Message::Text(text)) => text,
                Ok(Message::Close(frame)) => {
                    let failure = closed(frame);
                    if let Failure::Closed { code: 1001, reason } = &failure {
                        self.asked_wait = reason.parse().ok().map(Duration::from_millis).or(self.asked_wait);
                    }
                    return Err(failure.into());
                }
                Ok(_) => continue,
                Err(tungstenite::Error::Io(e)) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    let what = if awaited > 0 { "answer to subscribe" } else { "sign of life from the hub" };
                    return Err(Failure::Timeout(what).into());
                }
                Err(error) => return Err(Failure::from(error).into()),
            };
            let Some(envelope) = Envelope::parse(text.as_str()) else { continue };
            if let Some(index) = self.answered(&envelope) {
                let detail = envelope.detail();
                if detail.code.as_deref() == Some("rate_limited") {
                    std::thread::sleep(detail.retry_after_ms().map_or(LIMITED_WAIT, Duration::from_millis).min(SETUP));
                    self.ask(&mut socket, index)?;
                    continue;
                }
                self.answer(index, &envelope)?;
                awaited = awaited.saturating_sub(1);
                if asked < self.rooms.len() {
                    self.ask(&mut socket, asked)?;
                    asked += 1;
                }
                if awaited == 0 {
                    self.subscribed = true;
                    self.wait = WAIT_MIN;
                    await_at_most(&socket, silence)?;
                }
            } else if self.event(&envelope, text.as_str())? {
                return Ok(());
            } else if let Some(heartbeat) = envelope.detail().heartbeat.filter(|h| h.interval_s > 0) {
                // Two heartbeats may go missing before the hub is given up.
                let round = heartbeat.interval_s.saturating_add(heartbeat.timeout_s);
                silence = Duration::from_secs(round.saturating_mul(2).clamp(5, 3600));
            }
        }
    }

    /// Asks for a room's events: those behind the last one that is known, if there is one.
    fn ask(&self, socket: &mut WebSocket<TcpStream>, index: usize) -> Result<(), Failure> {
        let Some(room) = self.rooms.get(index) else { return Ok(()) };
        let since = match (room.seq, &self.since) {
            (Some(seq), _) => Some(Since::Seq { seq, epoch: room.epoch.clone() }),
            (None, since) => since.clone(),
        };
        let command = message::subscribe(&index.to_string(), &room.name, since.as_ref());
        socket.send(Message::text(command)).map_err(Failure::from)
    }

    /// Which room's subscription this answers.
    fn answered(&self, envelope: &Envelope<'_>) -> Option<usize> {
        matches!(envelope.kind.as_str(), "subscribed" | "error").then_some(())?;
        (0..self.rooms.len()).find(|index| envelope.answers(&index.to_string()))
    }

    fn answer(&mut self, index: usize, envelope: &Envelope<'_>) -> Result<(), End> {
        let detail = envelope.detail();
        if envelope.kind == "error" {
            return Err(detail.failure().into());
        }
        let Some(room) = self.rooms.get_mut(index) else { return Ok(()) };
        let resumed = room.seq.is_some();
        let is_behind = resumed || matches!(self.since, Some(Since::Seq { .. }));
        if is_behind && detail.recovered == Some(false) {
            let missed = detail.missed.map_or("some".to_string(), |n| n.to_string());
            eprintln!("{}: {missed} events could not be recovered", plain(&room.name));
        }
        let same_log = resumed && (room.epoch.is_none() || room.epoch == detail.epoch);
        if !same_log {
            // What is replayed ends at the room's last event: what was before it is not to come any more, and what comes is
            // known to be missing where the connection is lost before.
            room.seq = detail.seq.map(|seq| seq.saturating_sub(detail.replayed.unwrap_or(0)));
        }
        room.epoch = detail.epoch;
        Ok(())
    }

    /// Prints an event of a followed room, or tells of a notice. True when that was the last one wanted.
    fn event(&mut self, envelope: &Envelope<'_>, text: &str) -> Result<bool, End> {
        let room = envelope.room.as_ref().and_then(|name| self.rooms.iter_mut().find(|room| room.name == *name));
        match (room, envelope.seq, envelope.kind.as_str()) {
            (Some(room), Some(seq), _) => {
                if envelope.epoch.is_some() && room.epoch.is_some() && envelope.epoch != room.epoch {
                    room.seq = None;
                    room.epoch.clone_from(&envelope.epoch);
                }
                if room.seq.is_some_and(|last| seq <= last) {
                    return Ok(false);
                }
                room.seq = Some(seq);
                let line = match self.style {
                    Style::Json if text.contains(['\n', '\r']) => one_line(text).into_owned(),
                    Style::Json => text.to_string(),
                    Style::Pretty { colours } => pretty(envelope, seq, colours),
                };
                writeln!(self.out, "{line}").and_then(|()| self.out.flush()).map_err(End::Output)?;
                self.left = self.left.map(|left| left.saturating_sub(1));
            }
            (_, _, "gap") => {
                let Detail { room, from_seq, to_seq, reason, .. } = envelope.detail();
                let name = room.as_deref().or(envelope.room.as_deref()).unwrap_or("?");
                // It is told once, also where the connection is lost before the next event.
                if let (Some(room), Some(to)) = (self.rooms.iter_mut().find(|room| room.name == name), to_seq) {
                    room.seq = room.seq.max(Some(to));
                }
                let number = |n: Option<u64>| n.map_or("?".to_string(), |n| n.to_string());
                eprintln!(
                    "{}: events {} to {} were skipped: {}",
                    plain(name),
                    number(from_seq),
                    number(to_seq),
                    plain(reason.as_deref().unwrap_or("no reason given"))
                );
            }
            (_, _, "draining") => {
                self.asked_wait = envelope.detail().reconnect_after_ms.map(Duration::from_millis);
            }
            (_, _, "error") => eprintln!("{}", envelope.detail().failure()),
            _ => {}
        }
        Ok(self.left == Some(0))
    }

    /// What the hub asked for, else a doubling time; spread out, so that the clients of a hub don't come back at once.
    fn next_wait(&mut self) -> Duration {
        if let Some(wait) = self.asked_wait.take() {
            return wait.min(WAIT_MAX.saturating_mul(4));
        }
        let wait = self.wait;
        self.wait = (wait * 2).min(WAIT_MAX);
        wait.mul_f64(0.5 + 0.5 * fastrand::f64())
    }
}

fn await_at_most(socket: &WebSocket<TcpStream>, time: Duration) -> Result<(), Failure> {
    socket.get_ref().set_read_timeout(Some(time)).map_err(|e| Failure::from_io(&e))
}

/// `12:34:56.789 project:alpha #42 build.done {"ok":true}`
fn pretty(envelope: &Envelope<'_>, seq: u64, colours: bool) -> String {
    let paint = |code: &str, text: &str| if colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() };
    // The part of an RFC 3339 time between T and the zone.
    let time = envelope.timestamp.as_deref().and_then(|t| t.get(11..23)).unwrap_or("--:--:--.---");
    let data = envelope.data.map(|d| one_line(d.get())).unwrap_or_default();
    let data = if colours { painted(&data) } else { data.into_owned() };
    format!(
        "{} {} {} {} {data}",
        paint("2", &plain(time)),
        paint("36", &plain(envelope.room.as_deref().unwrap_or_default())),
        paint("33", &format!("#{seq}")),
        paint("1;32", &plain(&envelope.kind)),
    )
}

fn since(text: &str) -> Result<Since, String> {
    let number = |digits: &str| digits.parse::<u64>().map_err(|_| "N, last:N or seconds:N".to_string());
    match text.split_once(':') {
        None => Ok(Since::Seq { seq: number(text)?, epoch: None }),
        Some(("last", n)) => Ok(Since::Last { last: number(n)? }),
        Some(("seconds", n)) => Ok(Since::Seconds { seconds: number(n)? }),
        Some(_) => Err("N, last:N or seconds:N".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::thread;

    use serde_json::json;

    use super::*;
    use crate::load::standin::StandIn;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Shared {
        fn lines(&self) -> Vec<String> {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap().lines().map(str::to_string).collect()
        }
    }

    const PLAIN: Style = Style::Pretty { colours: false };

    fn tail(hub: &StandIn, since: Option<Since>, count: u64, style: Style) -> (Shared, Tail<Shared>) {
        let out = Shared::default();
        let target = Target::new(&hub.url("/ws"), None).unwrap();
        (out.clone(), Tail::new(target, &["project:a".into(), "project:b".into()], since, Some(count), style, out))
    }

    fn eventually(mut what: impl FnMut() -> bool) {
        let begin = std::time::Instant::now();
        while !what() {
            assert!(begin.elapsed() < Duration::from_secs(20));
            thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn events_of_the_rooms_are_printed_one_per_line() {
        let hub = StandIn::start();
        let (out, mut tail) = tail(&hub, None, 2, PLAIN);
        let thread = thread::spawn(move || tail.follow());
        eventually(|| hub.members("project:b") == 1);
        hub.publish("project:c", "not.ours", json!(0));
        hub.publish("project:a", "build.done", json!({"ok": true, "text": "a b"}));
        hub.publish("project:b", "t", json!([1]));
        thread.join().unwrap().unwrap();
        let mut lines = out.lines();
        lines.sort();
        assert_eq!(
            lines,
            [r##"03:04:05.678 project:a #1 build.done {"ok":true,"text":"a b"}"##, "03:04:05.678 project:b #1 t [1]"]
        );
    }

    #[test]
    fn a_lost_connection_is_taken_up_where_it_ended() {
        let hub = StandIn::start();
        let (out, mut tail) = tail(&hub, None, 3, PLAIN);
        let thread = thread::spawn(move || tail.follow());
        eventually(|| hub.members("project:b") == 1);
        hub.publish("project:a", "one", json!(1));
        eventually(|| out.lines().len() == 1);
        hub.kick_all();
        eventually(|| hub.members("project:a") == 0);
        hub.publish("project:a", "two", json!(2));
        eventually(|| hub.members("project:a") == 1);
        hub.publish("project:a", "three", json!(3));
        thread.join().unwrap().unwrap();
        assert_eq!(
            out.lines(),
            ["03:04:05.678 project:a #1 one 1", "03:04:05.678 project:a #2 two 2", "03:04:05.678 project:a #3 three 3"]
        );
        let resumed = hub.requests().into_iter().find(|r| r["data"]["since"]["seq"] == 1);
        assert_eq!(resumed.unwrap()["data"]["since"], json!({"seq": 1, "epoch": "e"}));
    }

    #[test]
    fn what_is_past_comes_first_when_asked_for_and_json_is_as_it_came() {
        let hub = StandIn::start();
        (1..=5).for_each(|n| hub.publish("project:a", "t", json!(n)));
        let (out, mut tail) = tail(&hub, Some(Since::Last { last: 2 }), 2, Style::Json);
        tail.follow().unwrap();
        let events: Vec<serde_json::Value> = out.lines().iter().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(events.iter().map(|e| e["seq"].as_u64().unwrap()).collect::<Vec<_>>(), [4, 5]);
    }

    #[test]
    fn what_came_while_away_is_not_lost_where_nothing_had_come_before() {
        let hub = StandIn::start();
        let (out, mut tail) = tail(&hub, Some(Since::Last { last: 1 }), 3, PLAIN);
        let thread = thread::spawn(move || tail.follow());
        eventually(|| hub.members("project:b") == 1);
        hub.kick_all();
        eventually(|| hub.members("project:b") == 0);
        (1..=3).for_each(|n| hub.publish("project:a", "t", json!(n)));
        thread.join().unwrap().unwrap();
        assert_eq!(out.lines(), (1..=3).map(|n| format!("03:04:05.678 project:a #{n} t {n}")).collect::<Vec<_>>());
    }

    #[test]
    fn as_many_rooms_are_asked_for_as_the_hub_takes_and_the_others_later() {
        let hub = StandIn::start();
        hub.limit_subscribes(70);
        let rooms: Vec<String> = (0..200).map(|n| format!("project:{n}")).collect();
        let out = Shared::default();
        let target = Target::new(&hub.url("/ws"), None).unwrap();
        let mut tail = Tail::new(target, &rooms, None, Some(200), PLAIN, out.clone());
        let thread = thread::spawn(move || tail.follow());
        eventually(|| rooms.iter().all(|room| hub.members(room) == 1));
        rooms.iter().for_each(|room| hub.publish(room, "t", json!(0)));
        thread.join().unwrap().unwrap();
        assert_eq!(out.lines().len(), 200);
        assert_eq!(hub.requests().len(), 270);
    }

    #[test]
    fn a_forbidden_room_ends_it_with_the_hub_s_code() {
        let hub = StandIn::start();
        let target = Target::new(&hub.url("/ws"), None).unwrap();
        let end = Tail::new(target, &["secret:x".into()], None, None, PLAIN, io::sink()).follow().unwrap_err();
        assert!(matches!(end, End::Failure(Failure::Command { code, .. }) if code == "forbidden"));
    }

    #[test]
    fn a_closed_output_is_a_quiet_end() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let hub = StandIn::start();
        hub.publish("project:a", "t", json!(1));
        let target = Target::new(&hub.url("/ws"), None).unwrap();
        let since = Some(Since::Seq { seq: 0, epoch: None });
        Tail::new(target, &["project:a".into()], since, None, PLAIN, Closed).follow().unwrap();
    }

    #[test]
    fn waits_double_up_to_a_limit_and_follow_what_the_hub_asks() {
        let target = Target::new("ws://127.0.0.1:1/ws", None).unwrap();
        let mut tail = Tail::new(target, &[], None, None, PLAIN, io::sink());
        let waits: Vec<Duration> = (0..10).map(|_| tail.next_wait()).collect();
        assert!(waits[0] <= WAIT_MIN && waits[9] >= WAIT_MAX / 2 && waits[9] <= WAIT_MAX);
        tail.asked_wait = Some(Duration::from_millis(7));
        assert_eq!(tail.next_wait(), Duration::from_millis(7));
    }

    #[test]
    fn data_and_names_can_not_act_on_the_terminal() {
        let text = "{\"type\":\"a\\u001b[2J\",\"room\":\"project:a\",\"seq\":1,\"data\":{\n \"x\":\"\u{9b}\"}}";
        let line = pretty(&Envelope::parse(text).unwrap(), 1, false);
        assert_eq!(line, "--:--:--.--- project:a #1 a\u{fffd}[2J {\"x\":\"\\u009b\"}");
        assert!(pretty(&Envelope::parse(text).unwrap(), 1, true).starts_with("\x1b[2m"));
    }

    #[test]
    fn since_is_a_number_or_a_count_of_events_or_seconds() {
        assert_eq!(since("7"), Ok(Since::Seq { seq: 7, epoch: None }));
        assert_eq!(since("last:3"), Ok(Since::Last { last: 3 }));
        assert_eq!(since("seconds:60"), Ok(Since::Seconds { seconds: 60 }));
        assert!(since("yesterday").is_err() && since("last:x").is_err() && since("first:1").is_err());
    }
}

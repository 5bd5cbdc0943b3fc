//! `ringhub doctor --through URL`: what stands between clients and the hub, looked at from where the clients are.
//!
//! A proxy that is set up badly lets the first test pass and fails later: connections are cut when they are quiet, all
//! clients count as one, streamed answers come in one piece. Each of these is provoked here on purpose, over the URL that
//! clients use, and reported with the line of the proxy's configuration that puts it right.

mod fix;
mod http2;
mod judge;
mod link;
mod socket;

use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;

use self::fix::{Proxy, Topic};
use self::link::{Answer, HTTP_1, HTTP_2, Link, PATIENCE};
use self::socket::{Heard, NoSocket, Socket};
use crate::config::Config;
use crate::config::finding::Finding;

/// A message that fits no proxy's buffer, and any hub's limit.
const LARGE_BYTES: usize = 200 << 10;
/// How long an event may take to come out of a stream of events.
const STREAM_PATIENCE: Duration = Duration::from_secs(3);
/// What an administrator's close carries here, to be found again at this end.
const FAREWELL: (u16, &str) = (4000, "doctor");
/// How long a token is good that is made for this look.
const TOKEN_S: u64 = 600;

/// Flags of `ringhub doctor` for the way to the hub.
#[derive(Args, Clone, Debug)]
pub struct ThroughArgs {
    /// Probe the way through a proxy instead of this machine: the URL that clients use (ws, wss, http or https).
    #[arg(long, value_name = "URL")]
    pub through: Option<String>,
    /// JWT to connect with; best an administrator's. With --config, one is made with the hub's secret.
    #[arg(long, env = "RINGHUB_TOKEN", hide_env_values = true, requires = "through")]
    pub token: Option<String>,
    /// Certificates (PEM) to trust beside those that browsers trust.
    #[arg(long, value_name = "FILE", requires = "through")]
    pub ca: Option<PathBuf>,
    /// How long to be silent at most, to find the proxy's idle timeout; 0 does not try.
    #[arg(long, value_name = "SECONDS", default_value_t = 45, requires = "through")]
    pub silence_s: u64,
}

/// Looks at the way to the hub. The error is one of usage: a URL or a file that can't be read.
pub(super) fn findings(url: &str, args: &ThroughArgs, config: &Config) -> Result<Vec<Finding>, String> {
    let link = Link::new(url, args.ca.as_deref())?;
    let token = match &args.token {
        Some(token) => Some(token.trim().to_owned()),
        None => super::serve::admin_token(config, "ringhub-doctor", TOKEN_S),
    };
    let mut probe = Probe {
        link,
        token,
        silence: Duration::from_secs(args.silence_s),
        proxy: Proxy::default(),
        findings: Vec::new(),
    };
    probe.look();
    Ok(probe.findings)
}

struct Probe {
    link: Link,
    token: Option<String>,
    silence: Duration,
    proxy: Proxy,
    findings: Vec<Finding>,
}

impl Probe {
    fn look(&mut self) {
        if !self.reach() {
            return;
        }
        if let Some(answer) = self.get("ready", "/ready") {
            self.proxy = Proxy::of(&answer);
            self.findings.push(judge::ready(&answer, self.proxy));
        }
        if let Some(answer) = self.get("metrics", "/metrics") {
            self.findings.push(judge::metrics(&answer, self.proxy));
        }
        if let Some(mut socket) = self.upgrade() {
            if let Some(greeting) = self.greeting(&mut socket) {
                self.large_message(&mut socket, &greeting);
                self.address(&socket, &greeting);
                self.silence(&mut socket, &greeting);
                self.close(socket, &greeting);
            }
            self.streams();
        }
        self.http2();
    }

    /// Connection and TLS.
    fn reach(&mut self) -> bool {
        let check = if self.link.is_secure() { "TLS" } else { "connection" };
        let error = match self.link.connect(&[HTTP_1]) {
            Ok(_) if self.link.is_secure() => {
                self.findings.push(Finding::ok(check, "the certificate is trusted"));
                return true;
            }
            Ok(_) => {
                let what = "no TLS on this way";
                self.findings.push(Finding::warn(
                    check,
                    what,
                    "whoever is on the way reads tokens and messages; fine on one's own machine only",
                    "--through wss://…, with a proxy that ends TLS",
                ));
                return true;
            }
            Err(error) => error,
        };
        let why = match error.kind() {
            std::io::ErrorKind::InvalidData => {
                "what is at that address, or its certificate, is not what clients accept"
            }
            _ => "nothing listens there, or something drops what is sent there",
        };
        let fix = match error.kind() {
            std::io::ErrorKind::InvalidData => {
                "--ca FILE for an authority of your own; the proxy's full chain of certificates"
            }
            _ => "ss -ltn, where the proxy runs; the firewall's rules",
        };
        self.findings.push(Finding::fail(check, error.to_string(), why, fix));
        false
    }

    fn get(&mut self, check: &'static str, path: &str) -> Option<Answer> {
        match self.link.http("GET", path, &[], "") {
            Ok(answer) => Some(answer),
            Err(error) => {
                let why = "the proxy takes connections and does not answer requests";
                self.findings.push(Finding::fail(check, format!("{path}: {error}"), why, self.proxy.fix(Topic::Hub)));
                None
            }
        }
    }

    /// A WebSocket with a subprotocol; without one, if it is the subprotocol that gets lost.
    fn upgrade(&mut self) -> Option<Socket> {
        let refused = match Socket::open(&self.link, self.token.as_deref(), true) {
            Ok((socket, answer)) => {
                self.findings.push(judge::granted(&answer, self.proxy));
                return Some(socket);
            }
            Err(NoSocket::SubprotocolLost) => {
                self.findings.push(Finding::fail(
                    "subprotocol",
                    "the hub's choice of ringhub.v1.json does not arrive",
                    "browsers that offer a subprotocol fail a connection without a choice",
                    self.proxy.fix(Topic::Headers),
                ));
                Socket::open(&self.link, self.token.as_deref(), false)
            }
            Err(refused) => Err(refused),
        };
        let finding = match refused {
            Ok((socket, _)) => return Some(socket),
            Err(NoSocket::Refused(answer)) => {
                self.proxy = if self.proxy == Proxy::Unknown { Proxy::of(&answer) } else { self.proxy };
                judge::refused(&answer, self.proxy, self.token.is_some())
            }
            Err(NoSocket::SubprotocolLost) => return None,
            Err(NoSocket::Failed(error)) => {
                let why = "requests are answered, and upgrades are not";
                Finding::fail("upgrade", error, why, self.proxy.fix(Topic::Upgrade))
            }
        };
        self.findings.push(finding);
        None
    }

    fn greeting(&mut self, socket: &mut Socket) -> Option<Greeting> {
        let check = "first message";
        match socket.heard(Instant::now() + PATIENCE) {
            Heard::Message(message) if message.get("type").is_some_and(|kind| kind == "connection_established") => {
                let text = |name: &str| message.pointer(name).and_then(|value| value.as_str()).map(str::to_owned);
                let number = |name: &str| message.pointer(name).and_then(serde_json::Value::as_u64);
                self.findings.push(Finding::ok(check, "the greeting comes by itself"));
                Some(Greeting {
                    client_id: text("/data/client_id")?,
                    interval: Duration::from_secs(number("/data/heartbeat/interval_s")?),
                    message_bytes_max: usize::try_from(number("/data/limits/message_bytes_max")?).ok()?,
                })
            }
            other => {
                let what = format!("instead of the greeting came {}", other.words());
                let why = "this is another service, or what the hub sends is held back";
                self.findings.push(Finding::fail(check, what, why, self.proxy.fix(Topic::Buffering)));
                None
            }
        }
    }

    /// A message there and back that no buffer on the way holds.
    fn large_message(&mut self, socket: &mut Socket, greeting: &Greeting) {
        let check = "large messages";
        let bytes = LARGE_BYTES.min(greeting.message_bytes_max / 2);
        let started = Instant::now();
        match socket.ping(bytes) {
            Ok(()) => {
                let ms = started.elapsed().as_millis();
                self.findings.push(Finding::ok(check, format!("{} KiB there and back in {ms} ms", bytes >> 10)));
            }
            Err(error) => {
                let why = format!("a message of {} KiB does not come back", bytes >> 10);
                self.findings.push(Finding::fail(check, error, why, self.proxy.fix(Topic::Buffering)));
            }
        }
    }

    fn address(&mut self, socket: &Socket, greeting: &Greeting) {
        let check = "client address";
        let Some(own) = socket.own_address() else { return };
        let path = format!("/api/v1/connections/{}", greeting.client_id);
        let finding = match self.api("GET", &path, "") {
            Ok(answer) if answer.status == 200 => {
                let view = answer.json();
                judge::address(view.get("address").and_then(|address| address.as_str()), own, self.proxy)
            }
            Ok(answer) => Finding::skipped(check, format!("{path} answers {}; {NEEDS_ADMINISTRATOR}", answer.status)),
            Err(error) => Finding::skipped(check, format!("{error}; {NEEDS_ADMINISTRATOR}")),
        };
        self.findings.push(finding);
    }

    fn silence(&mut self, socket: &mut Socket, greeting: &Greeting) {
        if self.silence.is_zero() {
            self.findings.push(Finding::skipped("idle timeout", "--silence-s 0"));
            return;
        }
        let finding = judge::silence(&socket.silence(self.silence), greeting.interval, self.proxy);
        self.findings.push(finding);
    }

    /// A close code, from the hub's side where this token may have it sent.
    fn close(&mut self, mut socket: Socket, greeting: &Greeting) {
        let check = "close codes";
        let (code, reason) = FAREWELL;
        let path = format!("/api/v1/connections/{}?code={code}&reason={reason}", greeting.client_id);
        if !matches!(self.api("DELETE", &path, ""), Ok(answer) if answer.status == 200) {
            self.findings.push(Finding::skipped(check, NEEDS_ADMINISTRATOR));
            return;
        }
        let deadline = Instant::now() + PATIENCE;
        let heard = loop {
            match socket.heard(deadline) {
                Heard::Message(_) | Heard::Ping => {}
                end => break end,
            }
        };
        self.findings.push(match heard {
            Heard::Closed(Some((found, text))) if (found, text.as_str()) == FAREWELL => {
                Finding::ok(check, "code and reason of a close arrive")
            }
            other => Finding::fail(
                check,
                format!("instead of a close with {code} came {}", other.words()),
                "clients can't tell a draining hub or an expired token from a broken line",
                "the proxy has to pass WebSocket frames as they are",
            ),
        });
    }

    /// Whether a stream of events arrives event by event.
    fn streams(&mut self) {
        let check = "streamed answers";
        let room = format!("project:doctor-{}", fastrand::u64(..));
        let outcome = self.stream(&room);
        self.findings.push(outcome.unwrap_or_else(|error| {
            Finding::fail(check, error, "a stream of events does not pass", self.proxy.fix(Topic::Buffering))
        }));
    }

    fn stream(&self, room: &str) -> Result<Finding, String> {
        let check = "streamed answers";
        let text = |error: std::io::Error| error.to_string();
        let bearer = self.bearer();
        let mut headers = vec![("Accept", "text/event-stream"), ("Accept-Encoding", "gzip"), ("Connection", "close")];
        headers.extend(bearer.as_ref().map(|bearer| ("Authorization", bearer.as_str())));
        let (mut stream, _) = self.link.connect(&[HTTP_1]).map_err(text)?;
        self.link.request(&mut stream, "GET", &format!("/events?room={room}"), &headers, "").map_err(text)?;
        let mut bytes = Vec::new();
        let mut chunk = [0; 4096];
        let mut more = |bytes: &mut Vec<u8>| match stream.read(&mut chunk) {
            Ok(0) => Err("the stream ended".to_owned()),
            Ok(length) => {
                bytes.extend_from_slice(chunk.get(..length).unwrap_or_default());
                if bytes.len() > 64 << 10 { Err("more came than was asked for".to_owned()) } else { Ok(()) }
            }
            Err(error) => Err(error.to_string()),
        };
        let answer = loop {
            match Answer::parse_head(&bytes) {
                Some((answer, _)) => break answer,
                None => more(&mut bytes).map_err(|error| format!("no answer on /events: {error}"))?,
            }
        };
        let is_stream = answer.header("content-type").is_some_and(|kind| kind.starts_with("text/event-stream"));
        if answer.status != 200 || !is_stream {
            return Ok(Finding::skipped(check, format!("the hub serves no /events on this way ({})", answer.status)));
        }
        if let Some(encoding) = answer.header("content-encoding") {
            let what = format!("a stream of events is compressed ({encoding}) on the way");
            let why = "events wait in the compressor until a block is full";
            return Ok(Finding::fail(check, what, why, self.proxy.fix(Topic::Buffering)));
        }
        let event = format!("{{\"room\":\"{room}\",\"type\":\"doctor.probe\",\"data\":{{}}}}");
        match self.api("POST", "/api/v1/publish", &event) {
            Ok(answer) if answer.status == 200 => {}
            _ => return Ok(Finding::skipped(check, NEEDS_ADMINISTRATOR)),
        }
        let published = Instant::now();
        while !bytes.windows(12).any(|window| window == b"doctor.probe") {
            let waited = published.elapsed() > STREAM_PATIENCE;
            if waited || more(&mut bytes).is_err() {
                let what = format!("an event did not come out of the stream within {} s", STREAM_PATIENCE.as_secs());
                let why = "the proxy collects the answer before it passes it on";
                return Ok(Finding::fail(check, what, why, self.proxy.fix(Topic::Buffering)));
            }
        }
        Ok(Finding::ok(check, "events come out of a stream one by one"))
    }

    /// Whether WebSockets work over HTTP/2, if browsers would use it.
    fn http2(&mut self) {
        let check = "HTTP/2";
        if !self.link.is_secure() {
            return;
        }
        let connected = self.link.connect(&[HTTP_2, HTTP_1]);
        let finding = match connected {
            Ok((stream, Some(chosen))) if chosen == HTTP_2 => {
                match http2::probe(&self.link, stream, self.token.as_deref()) {
                    Ok(http2::Outcome::NotAnnounced) => {
                        Finding::ok(check, "offered; browsers open WebSockets over HTTP/1.1 beside it")
                    }
                    Ok(http2::Outcome::Works) => Finding::ok(check, "offered, WebSockets included, and they open"),
                    Ok(http2::Outcome::Broken(how)) if self.token.is_none() => {
                        Finding::skipped(check, format!("WebSockets are announced; {how}, and there is no token"))
                    }
                    Ok(http2::Outcome::Broken(how)) => Finding::fail(
                        check,
                        format!("the proxy announces WebSockets over HTTP/2; {how}"),
                        "browsers that have a connection over HTTP/2 use it, and fail",
                        "h2-workaround-bogus-websocket-clients in HAProxy's global section; elsewhere HTTP/1.1 only",
                    ),
                    Err(error) => Finding::skipped(check, format!("not understood: {error}")),
                }
            }
            Ok(_) => Finding::ok(check, "not offered; WebSockets need no more than HTTP/1.1"),
            Err(error) => Finding::fail(
                check,
                format!("a client that offers HTTP/2 is refused: {error}"),
                "browsers always offer it",
                "let the proxy choose http/1.1 (ALPN) where it does not speak HTTP/2",
            ),
        };
        self.findings.push(finding);
    }

    fn bearer(&self) -> Option<String> {
        self.token.as_ref().map(|token| format!("Bearer {token}"))
    }

    fn api(&self, method: &str, path: &str, body: &str) -> Result<Answer, String> {
        let bearer = self.bearer();
        let headers: Vec<_> = bearer.iter().map(|bearer| ("Authorization", bearer.as_str())).collect();
        self.link.http(method, path, &headers, body)
    }
}

const NEEDS_ADMINISTRATOR: &str = "this needs the HTTP API on this way, and an administrator's token";

/// What is needed of the hub's first message.
struct Greeting {
    client_id: String,
    interval: Duration,
    message_bytes_max: usize,
}

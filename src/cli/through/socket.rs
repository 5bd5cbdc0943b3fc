//! A client's WebSocket on the way to the hub.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tungstenite::handshake::client::generate_key;
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::Role;
use tungstenite::{Error, Message, WebSocket};

use super::judge::{CLAIMED, Silence};
use super::link::{self, Answer, HTTP_1, Link, PATIENCE, Stream};
use crate::wire::upgrade::PROTOCOL_JSON;

/// An open WebSocket.
pub(super) struct Socket(WebSocket<Stream>);

/// Why there is none.
#[derive(Debug)]
pub(super) enum NoSocket {
    /// Another answer than 101.
    Refused(Answer),
    /// The upgrade was granted without the subprotocol that was offered.
    SubprotocolLost,
    /// No answer, or none that makes sense.
    Failed(String),
}

/// What came next.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Heard {
    /// A message; null where it is no JSON.
    Message(Value),
    /// A ping, which is answered.
    Ping,
    /// The end, with the close's code and reason.
    Closed(Option<(u16, String)>),
    /// The end without a close.
    Lost(String),
    /// Nothing in the time given.
    Nothing,
}

impl Heard {
    /// For a report.
    pub(super) fn words(&self) -> String {
        match self {
            Heard::Message(_) => "another message".to_owned(),
            Heard::Ping => "a ping".to_owned(),
            Heard::Closed(Some((code, reason))) => format!("a close with {code} {reason}").trim_end().to_owned(),
            Heard::Closed(None) => "a close without a code".to_owned(),
            Heard::Lost(how) => format!("the end of the connection ({how})"),
            Heard::Nothing => "nothing".to_owned(),
        }
    }
}

impl Socket {
    /// Opens one. The request claims another address, as anybody's may.
    pub(super) fn open(link: &Link, token: Option<&str>, subprotocol: bool) -> Result<(Socket, Answer), NoSocket> {
        let failed = |error: std::io::Error| NoSocket::Failed(error.to_string());
        let key = generate_key();
        let bearer = token.map(|token| format!("Bearer {token}"));
        let mut headers = vec![
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", &key),
            ("X-Forwarded-For", CLAIMED),
        ];
        headers.extend(subprotocol.then_some(("Sec-WebSocket-Protocol", PROTOCOL_JSON)));
        headers.extend(bearer.as_ref().map(|bearer| ("Authorization", bearer.as_str())));
        let (mut stream, _) = link.connect(&[HTTP_1]).map_err(failed)?;
        link.request(&mut stream, "GET", &link.websocket_path(), &headers, "").map_err(failed)?;
        let (answer, frames) = link::answer(&mut stream).map_err(NoSocket::Failed)?;
        if answer.status != 101 {
            return Err(NoSocket::Refused(answer));
        }
        if answer.header("sec-websocket-accept") != Some(&derive_accept_key(key.as_bytes())) {
            return Err(NoSocket::Failed("the answer is not one to this upgrade (Sec-WebSocket-Accept)".to_owned()));
        }
        if subprotocol && answer.header("sec-websocket-protocol") != Some(PROTOCOL_JSON) {
            return Err(NoSocket::SubprotocolLost);
        }
        Ok((Socket(WebSocket::from_partially_read(stream, frames, Role::Client, None)), answer))
    }

    /// The address that this connection comes from, as this machine knows it.
    pub(super) fn own_address(&self) -> Option<IpAddr> {
        self.0.get_ref().socket().local_addr().ok().map(|address| address.ip())
    }

    /// The next that comes up to the deadline.
    pub(super) fn heard(&mut self, deadline: Instant) -> Heard {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        if let Err(error) = self.0.get_ref().socket().set_read_timeout(Some(left)) {
            return Heard::Lost(error.to_string());
        }
        match self.0.read() {
            Ok(Message::Text(text)) => Heard::Message(serde_json::from_str(&text).unwrap_or_default()),
            Ok(Message::Ping(_)) => match self.0.flush() {
                Ok(()) => Heard::Ping,
                Err(error) => Heard::Lost(error.to_string()),
            },
            Ok(Message::Close(frame)) => {
                // The answer to the close is a courtesy.
                drop(self.0.flush());
                Heard::Closed(frame.map(|frame| (frame.code.into(), frame.reason.as_str().to_owned())))
            }
            Ok(_) => Heard::Message(Value::Null),
            Err(Error::Io(error)) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Heard::Nothing
            }
            Err(error) => Heard::Lost(error.to_string()),
        }
    }

    /// The command `ping` with so many bytes, and all of them back.
    pub(super) fn ping(&mut self, bytes: usize) -> Result<(), String> {
        let load = "x".repeat(bytes);
        let command = json!({"type": "ping", "id": "doctor", "data": load});
        self.0.send(Message::text(command.to_string())).map_err(|error| error.to_string())?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.heard(deadline) {
                Heard::Message(message) if message.get("ref").is_some_and(|answer| answer == "doctor") => {
                    return match message.get("data").and_then(Value::as_str) == Some(&load) {
                        true => Ok(()),
                        false => Err("another answer than the hub's".to_owned()),
                    };
                }
                Heard::Message(_) | Heard::Ping => {}
                other => return Err(other.words()),
            }
        }
    }

    /// Says nothing until the hub's ping comes, for so long at most. Events for everyone break the silence, which then
    /// begins anew.
    pub(super) fn silence(&mut self, at_most: Duration) -> Silence {
        let deadline = Instant::now() + at_most;
        let mut since = Instant::now();
        let mut longest = Duration::ZERO;
        loop {
            let heard = self.heard(deadline);
            let silent = since.elapsed();
            match heard {
                Heard::Message(_) => {
                    longest = longest.max(silent);
                    since = Instant::now();
                }
                Heard::Ping => {
                    return match self.ping(0) {
                        Ok(()) => Silence::Pinged(silent),
                        Err(error) => Silence::Cut(silent, error),
                    };
                }
                Heard::Nothing => {
                    let longest = longest.max(silent);
                    return match self.ping(0) {
                        Ok(()) => Silence::Held(longest),
                        Err(error) => Silence::Cut(longest, error),
                    };
                }
                Heard::Closed(_) | Heard::Lost(_) => return Silence::Cut(silent, heard.words()),
            }
        }
    }
}

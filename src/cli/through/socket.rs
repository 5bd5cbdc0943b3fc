//! A client's WebSocket on the way to the hub.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tungstenite::error::{ProtocolError, SubProtocolError};
use tungstenite::handshake::HandshakeError;
use tungstenite::handshake::client::{Request, generate_key};
use tungstenite::{Error, Message, WebSocket, client::client_with_config};

use super::judge::{CLAIMED, Silence};
use super::link::{Answer, HTTP_1, Link, PATIENCE, Stream};
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
        let failed = |error: &dyn std::fmt::Display| NoSocket::Failed(error.to_string());
        let mut request = Request::builder()
            .uri(link.websocket_uri())
            .header("Host", link.authority())
            .header("Connection", "Upgrade")
            .header("Upgrade", "websocket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", generate_key())
            .header("X-Forwarded-For", CLAIMED)
            .header("User-Agent", "ringhub-doctor");
        if subprotocol {
            request = request.header("Sec-WebSocket-Protocol", PROTOCOL_JSON);
        }
        if let Some(token) = token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let request = request.body(()).map_err(|error| failed(&error))?;
        let (stream, _) = link.connect(&[HTTP_1]).map_err(|error| failed(&error))?;
        match client_with_config(request, stream, None) {
            Ok((socket, response)) => Ok((Socket(socket), Answer::of_upgrade(&response, &[]))),
            Err(HandshakeError::Failure(Error::Http(response))) => {
                let body = response.body().clone().unwrap_or_default();
                Err(NoSocket::Refused(Answer::of_upgrade(&response, &body)))
            }
            Err(HandshakeError::Failure(Error::Protocol(ProtocolError::SecWebSocketSubProtocolError(
                SubProtocolError::NoSubProtocol,
            )))) => Err(NoSocket::SubprotocolLost),
            Err(HandshakeError::Failure(error)) => Err(failed(&error)),
            Err(HandshakeError::Interrupted(_)) => Err(NoSocket::Failed("no answer to the upgrade in time".to_owned())),
        }
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

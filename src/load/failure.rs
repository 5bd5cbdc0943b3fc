//! What can go wrong on a client's connection, in the categories that a report counts.

use std::io;

use tungstenite::error::ProtocolError;

/// Longest text of a peer's making that is kept for a report.
const PEER_TEXT_MAX: usize = 200;

/// Why a connection, a command or an event failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    #[error("connection refused")]
    Refused,
    #[error("no free local port")]
    NoLocalPort,
    #[error("out of file descriptors")]
    NoDescriptor,
    #[error("connect: {0}")]
    Connect(String),
    #[error("no {0} in time")]
    Timeout(&'static str),
    /// An HTTP answer instead of the upgrade.
    #[error("HTTP {status} {code}: {message}")]
    Http { status: u16, code: String, message: String },
    /// A close frame of the hub.
    #[error("closed by the hub with {code}: {reason}")]
    Closed { code: u16, reason: String },
    #[error("connection lost without a close frame")]
    Lost,
    #[error("protocol: {0}")]
    Protocol(String),
    /// An `error` message of the hub.
    #[error("error {code}: {message}")]
    Command { code: String, message: String },
    #[error("send buffer full: the hub reads too slowly")]
    SendBufferFull,
    #[error("event not sent: its publisher is gone")]
    NotSent,
    #[error("window stalled: not everything in flight was delivered")]
    Stalled,
    #[error("an echo differs from what was sent")]
    EchoDiffers,
    #[error("the process given with --pid can't be read: {0}")]
    Process(String),
}

impl Failure {
    /// The category it counts under: without the texts that differ from case to case.
    pub(crate) fn label(&self) -> String {
        match self {
            Failure::Http { status, code, .. } => format!("HTTP {status} {code}"),
            Failure::Closed { code, .. } => format!("closed by the hub with {code}"),
            Failure::Command { code, .. } => format!("error {code}"),
            other => other.to_string(),
        }
    }

    /// What the operator of the generator can do about it, where that is known.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Failure::Refused => {
                Some("nothing listens there, or the listener's backlog is full: check --url, lower --connect-rate")
            }
            Failure::NoLocalPort => {
                Some("one address has no more than the ports of net.ipv4.ip_local_port_range: add --sources 8")
            }
            Failure::NoDescriptor => Some("raise the hard limit RLIMIT_NOFILE (ulimit -Hn)"),
            Failure::Http { status: 401, .. } => Some("pass --token or set RINGHUB_TOKEN"),
            Failure::Http { status: 404, .. } => Some("the path is not served; /echo needs `ringhub serve --echo`"),
            Failure::Http { status: 429, .. } => {
                Some("a limit of the hub: lower --connect-rate, add --sources, or raise limits.*")
            }
            Failure::Command { code, .. } if code == "rate_limited" => {
                Some("a connection may send limits.messages_per_s: add --publishers or raise the limit")
            }
            _ => None,
        }
    }

    /// Whether trying the same again can't help.
    pub(crate) fn is_permanent(&self) -> bool {
        match self {
            Failure::Http { status, .. } => matches!(status, 400..=428),
            // Token expired, permission withdrawn, session taken over, closed by an administrator.
            Failure::Closed { code, .. } => matches!(code, 4401 | 4403 | 4409 | 4500),
            Failure::Command { code, .. } => !matches!(code.as_str(), "rate_limited" | "unavailable" | "internal"),
            Failure::Protocol(_) => true,
            _ => false,
        }
    }

    /// An HTTP answer that is a refusal.
    pub(crate) fn http(status: u16, body: &[u8]) -> Failure {
        let (code, message) = refusal(body);
        Failure::Http { status, code, message }
    }

    /// Sorts an error of the socket.
    pub(crate) fn from_io(error: &io::Error) -> Failure {
        match error.raw_os_error() {
            Some(libc::EADDRNOTAVAIL) => return Failure::NoLocalPort,
            Some(libc::EMFILE | libc::ENFILE) => return Failure::NoDescriptor,
            _ => {}
        }
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Failure::Refused,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => Failure::Lost,
            io::ErrorKind::TimedOut => Failure::Timeout("connection"),
            _ => Failure::Connect(error.to_string()),
        }
    }
}

impl From<tungstenite::Error> for Failure {
    fn from(error: tungstenite::Error) -> Failure {
        use tungstenite::Error;
        match error {
            Error::Io(e) => Failure::from_io(&e),
            Error::ConnectionClosed | Error::AlreadyClosed => Failure::Lost,
            Error::Protocol(ProtocolError::ResetWithoutClosingHandshake | ProtocolError::HandshakeIncomplete) => {
                Failure::Lost
            }
            Error::WriteBufferFull(_) => Failure::SendBufferFull,
            Error::Http(response) => {
                Failure::http(response.status().as_u16(), response.body().as_deref().unwrap_or_default())
            }
            other => Failure::Protocol(peer_text(&other.to_string())),
        }
    }
}

/// Text of a peer's making, cut to a bounded length and without control characters.
pub(crate) fn peer_text(text: &str) -> String {
    text.chars().take(PEER_TEXT_MAX).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Code and message of the JSON body of a refusal; empty where it has none.
fn refusal(body: &[u8]) -> (String, String) {
    #[derive(serde::Deserialize)]
    struct Body {
        error: Detail,
    }
    #[derive(serde::Deserialize)]
    struct Detail {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    match serde_json::from_slice::<Body>(body) {
        Ok(Body { error }) => (peer_text(&error.code), peer_text(&error.message)),
        Err(_) => (String::new(), String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_counted_by_status_and_code_and_keeps_its_message() {
        let body = br#"{"error":{"code":"rate_limited","message":"too many\u001b[2J connects"}}"#.to_vec();
        let response = tungstenite::http::Response::builder().status(429).body(Some(body)).unwrap();
        let failure = Failure::from(tungstenite::Error::Http(Box::new(response)));
        assert_eq!(failure.label(), "HTTP 429 rate_limited");
        assert!(failure.hint().is_some());
        assert!(!failure.is_permanent());
        assert!(!failure.to_string().contains('\u{1b}'), "a peer can't move the cursor");
    }

    #[test]
    fn a_refusal_without_json_still_has_its_status() {
        let response = tungstenite::http::Response::builder().status(503).body(None).unwrap();
        assert_eq!(Failure::from(tungstenite::Error::Http(Box::new(response))).label(), "HTTP 503 ");
    }

    #[test]
    fn closes_are_counted_by_code_whatever_their_reason() {
        let one = Failure::Closed { code: 1001, reason: "120".into() };
        let two = Failure::Closed { code: 1001, reason: "480".into() };
        assert_eq!(one.label(), two.label());
        assert!(!one.is_permanent());
        assert!(Failure::Closed { code: 4401, reason: String::new() }.is_permanent());
    }
}

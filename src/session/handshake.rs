//! Who is let in: from a request's head to an admission, a refusal, or the control plane (PROTOCOL §1).

use std::sync::Arc;

use crate::auth::{Identity, Verifier, origin_allowed};
use crate::config::Config;
use crate::ring::Now;
use crate::wire::http::Head;
use crate::wire::native::is_client_id;
use crate::wire::refusal::Refusal;
use crate::wire::upgrade::{Upgrade, bearer_token};

use super::stream::StreamAsked;

/// The subprotocol of the native protocol.
pub const SUBPROTOCOL: &str = "ringhub.v1.json";

/// What a request on the public listener is.
#[derive(Debug)]
pub enum Request {
    /// What may be granted, if the directories have no objection.
    Admit(Box<Admit>),
    /// Neither a WebSocket nor a stream of events: the control plane's.
    HandOver,
}

/// A WebSocket or a stream that may be granted.
#[derive(Debug)]
pub struct Admit {
    /// What is asked for.
    pub endpoint: Endpoint,
    /// For whom.
    pub identity: Arc<Identity>,
    /// The id the client wants to have, if it named one.
    pub client_id: Option<Box<str>>,
    /// The session it names, if it named one.
    pub session_id: Option<Box<str>>,
    /// `Sec-WebSocket-Key`; empty for a stream.
    pub key: Box<str>,
    /// Whether the subprotocol is to be echoed.
    pub subprotocol: bool,
    /// What the stream is to be, for [`Endpoint::Events`].
    pub stream: Option<Box<StreamAsked>>,
}

/// The endpoints that are a shard's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// `/ws` and `/ws/monitor/{session_id}`.
    Native,
    /// `/echo`.
    Echo,
    /// `/events`.
    Events,
}

/// Who may connect, as configured.
pub struct Gate<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// Checks tokens.
    pub verifier: &'a Verifier,
    /// Whom everybody is where authentication is off.
    pub anonymous: &'a Arc<Identity>,
}

impl Gate<'_> {
    /// Decides on a request by its head alone.
    pub fn decide(&self, head: &Head<'_>, now: Now) -> Result<Request, Refusal> {
        let (endpoint, path_session) = match head.path {
            "/events" => return self.decide_stream(head, now),
            "/ws" => (Endpoint::Native, None),
            "/echo" if self.config.endpoints.echo => (Endpoint::Echo, None),
            path => match path.strip_prefix("/ws/monitor/") {
                Some(session_id) => (Endpoint::Native, Some(session_id)),
                None if head.wants_websocket() => return Err(Refusal::not_found()),
                None => return Ok(Request::HandOver),
            },
        };
        // A preflight or a page that is no handshake at all is the control plane's to answer.
        if !head.wants_websocket() && head.method != "GET" {
            return Ok(Request::HandOver);
        }
        let upgrade = head.upgrade()?;
        if !origin_allowed(&self.config.auth.origins, head.header("origin")) {
            return Err(Refusal::forbidden("this Origin may not connect"));
        }
        let identity = self.identify(head, Some(&upgrade), now)?;
        let client_id = id_parameter(head, "client_id")?;
        let session_id = match path_session {
            Some(session_id) if is_client_id(session_id) => Some(session_id.into()),
            Some(_) => return Err(Refusal::bad_upgrade("the session id in the path is malformed")),
            None => id_parameter(head, "session_id")?,
        };
        Ok(Request::Admit(Box::new(Admit {
            endpoint,
            identity,
            client_id,
            session_id,
            key: upgrade.key.into(),
            subprotocol: upgrade.offers(SUBPROTOCOL),
            stream: None,
        })))
    }

    /// Decides on a request for a stream of events. A browser's question whether its page may ask is the control plane's
    /// to answer, and so is HEAD, whose answers have no body.
    fn decide_stream(&self, head: &Head<'_>, now: Now) -> Result<Request, Refusal> {
        match head.method {
            "GET" => {}
            "OPTIONS" | "HEAD" => return Ok(Request::HandOver),
            _ => return Err(Refusal::only_get()),
        }
        if head.wants_websocket() {
            return Err(Refusal::not_found());
        }
        if head.body_expected() {
            return Err(Refusal::bad_request("a request for a stream has no body"));
        }
        if !origin_allowed(&self.config.auth.origins, head.header("origin")) {
            return Err(Refusal::forbidden("this Origin may not connect"));
        }
        let identity = self.identify(head, None, now)?;
        Ok(Request::Admit(Box::new(Admit {
            endpoint: Endpoint::Events,
            identity,
            client_id: None,
            session_id: None,
            key: Box::default(),
            subprotocol: false,
            stream: Some(Box::new(StreamAsked::read(head, self.config)?)),
        })))
    }

    fn identify<'h>(&self, head: &Head<'h>, upgrade: Option<&Upgrade<'h>>, now: Now) -> Result<Arc<Identity>, Refusal> {
        if !self.config.auth.enabled {
            return Ok(self.anonymous.clone());
        }
        let token = bearer_token(head, upgrade, self.config.auth.cookie.as_deref())?
            .ok_or_else(|| Refusal::unauthorized("a token is needed to connect"))?;
        let identity = self.check_token(&token, now)?;
        if !identity.permissions.may_connect() {
            return Err(Refusal::forbidden("websocket:connect is needed to connect"));
        }
        Ok(Arc::new(identity))
    }

    /// The identity that a token stands for.
    pub fn check_token(&self, token: &str, now: Now) -> Result<Identity, Refusal> {
        let identity = self
            .verifier
            .verify(token, now.unix_ms / 1000)
            .map_err(|error| Refusal::unauthorized(error.to_string()))?;
        // The user's room is named by it, and rooms' names stand in JSON as they are.
        let user_id = &identity.user_id;
        let is_odd = user_id.is_empty() || user_id.chars().any(|c| c.is_control() || c == '"' || c == '\\');
        if is_odd || user_id.len() + "user:".len() > self.config.limits.room_name_bytes_max {
            let message =
                "the token's sub can't name a room: it is empty, too long, or has control characters or quotes";
            return Err(Refusal::unauthorized(message));
        }
        Ok(identity)
    }
}

fn id_parameter(head: &Head<'_>, name: &'static str) -> Result<Option<Box<str>>, Refusal> {
    match head.query_param(name)? {
        None => Ok(None),
        Some(id) if is_client_id(&id) => Ok(Some(id.into())),
        Some(_) => Err(Refusal::bad_upgrade(format!("{name} has to be 1 to 64 of A-Z a-z 0-9 . _ : -"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{Claims, mint};
    use crate::config::Secret;
    use crate::wire::http::parse_head;

    const NOW: Now = Now { monotonic_us: 0, unix_ms: 1_000_000_000_000 };

    fn request(path: &str, headers: &str) -> String {
        format!(
            "GET {path} HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{headers}\r\n"
        )
    }

    fn decide(config: &Config, text: &str) -> Result<Request, Refusal> {
        let verifier = Verifier::new(config).expect("keys");
        let anonymous = Arc::new(Identity::anonymous("anonymous".to_owned()));
        let head = parse_head(text.as_bytes(), 16_384)?.expect("whole");
        Gate { config, verifier: &verifier, anonymous: &anonymous }.decide(&head, NOW)
    }

    fn with_secret() -> Config {
        let mut config = Config::default();
        config.auth.secret = vec![Secret { kid: None, secret: "a secret of thirty-two bytes or so".to_owned() }];
        config
    }

    fn token(config: &Config, sub: &str, permissions: &[&str], exp: u64) -> String {
        let permissions = permissions.iter().map(|&one| one.to_owned()).collect();
        let claims = Claims { sub: sub.to_owned(), permissions, exp: Some(exp), ..Claims::default() };
        mint(&config.auth.secret[0], config.auth.algorithm, &claims).expect("signs")
    }

    fn admitted(result: Result<Request, Refusal>) -> Box<Admit> {
        match result {
            Ok(Request::Admit(admit)) => admit,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_token_with_permission_is_let_in_with_its_names() {
        let config = with_secret();
        let token = token(&config, "alice", &["websocket:connect"], 1_000_000_100);
        let text = request(
            &format!("/ws?token={token}&client_id=c-1&session_id=s.1"),
            "Sec-WebSocket-Protocol: ringhub.v1.json\r\n",
        );
        let admit = admitted(decide(&config, &text));
        assert_eq!(admit.identity.user_id, "alice");
        assert_eq!(admit.client_id.as_deref(), Some("c-1"));
        assert_eq!(admit.session_id.as_deref(), Some("s.1"));
        assert!(admit.subprotocol);
        let text = request("/ws/monitor/abc", &format!("Authorization: Bearer {token}\r\n"));
        assert_eq!(admitted(decide(&config, &text)).session_id.as_deref(), Some("abc"));
    }

    #[test]
    fn refusals_have_their_status() {
        let mut config = with_secret();
        let status = |config: &Config, text: &str| decide(config, text).expect_err("refused").status;
        assert_eq!(status(&config, &request("/ws", "")), 401);
        assert_eq!(status(&config, &request("/ws?token=x.y.z", "")), 401);
        let expired = token(&config, "alice", &["websocket:connect"], 999_999_000);
        assert_eq!(status(&config, &request(&format!("/ws?token={expired}"), "")), 401);
        let weak = token(&config, "alice", &["websocket:subscribe"], 1_000_000_100);
        assert_eq!(status(&config, &request(&format!("/ws?token={weak}"), "")), 403);
        for odd in ["al\"ice", "al\nice", "\u{7f}", "al\\ice"] {
            let odd = token(&config, odd, &["websocket:connect"], 1_000_000_100);
            assert_eq!(status(&config, &request(&format!("/ws?token={odd}"), "")), 401);
        }
        config.auth.enabled = false;
        assert_eq!(status(&config, &request("/nothing", "")), 404);
        assert_eq!(status(&config, &request("/echo", "")), 404);
        assert_eq!(status(&config, &request("/ws?client_id=a%20b", "")), 400);
        assert_eq!(status(&config, &request("/ws/monitor/a%20b", "")), 400);
        config.auth.origins = vec!["https://app.example.com".to_owned()];
        assert_eq!(status(&config, &request("/ws", "Origin: https://evil.example.com\r\n")), 403);
        assert!(decide(&config, &request("/ws", "Origin: https://app.example.com\r\n")).is_ok());
        assert_eq!(status(&config, "GET /ws HTTP/1.1\r\nHost: h\r\n\r\n"), 400);
    }

    #[test]
    fn a_stream_is_a_get_with_the_credentials_of_a_websocket() {
        let mut config = with_secret();
        config.auth.cookie = Some("auth".to_owned());
        let token = token(&config, "alice", &["websocket:connect"], 1_000_000_100);
        let get = |query: &str, headers: &str| format!("GET /events?{query} HTTP/1.1\r\nHost: h\r\n{headers}\r\n");
        for text in [
            get("room=a", &format!("Authorization: Bearer {token}\r\n")),
            get(&format!("room=a&token={token}"), ""),
            get("room=a", &format!("Cookie: auth={token}\r\n")),
            get(&format!("room=a&token={token}"), "").replace("HTTP/1.1", "HTTP/1.0"),
        ] {
            let admit = admitted(decide(&config, &text));
            assert_eq!((admit.endpoint, &*admit.identity.user_id), (Endpoint::Events, "alice"));
            assert_eq!(admit.stream.expect("a stream").rooms, ["a".into()]);
        }
        let status = |config: &Config, text: &str| decide(config, text).expect_err("refused").status;
        assert_eq!(status(&config, &get("room=a", "")), 401);
        assert_eq!(status(&config, &get(&format!("room=a&token={token}"), "Content-Length: 1\r\n")), 400);
        assert_eq!(status(&config, &request(&format!("/events?room=a&token={token}"), "")), 404);
        assert_eq!(status(&config, &get("", "").replace("GET", "POST")), 405);
        config.auth.origins = vec!["https://app.example.com".to_owned()];
        let evil = get(&format!("room=a&token={token}"), "Origin: https://evil.example.com\r\n");
        assert_eq!(status(&config, &evil), 403);
        for method in ["OPTIONS", "HEAD"] {
            let text = get("room=a", "").replace("GET", method);
            assert!(matches!(decide(&config, &text), Ok(Request::HandOver)), "{method}");
        }
    }

    #[test]
    fn what_is_no_upgrade_goes_to_the_control_plane() {
        let config = with_secret();
        for text in [
            "GET /live HTTP/1.1\r\nHost: h\r\n\r\n",
            "POST /api/v1/publish HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n",
            "GET /ws/health HTTP/1.1\r\nHost: h\r\n\r\n",
        ] {
            assert!(matches!(decide(&config, text), Ok(Request::HandOver)), "{text}");
        }
    }
}

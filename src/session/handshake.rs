//! Who is let in: from a request's head to an admission, a refusal, or the control plane (PROTOCOL §1).

use std::sync::Arc;

use crate::auth::{Identity, Verifier, origin_allowed};
use crate::config::Config;
use crate::ring::Now;
use crate::wire::engineio::{self, RequestError, Transport};
use crate::wire::extensions::{Deflate, DeflateTerms, WINDOW_BITS_MAX};
use crate::wire::http::Head;
use crate::wire::native::is_client_id;
use crate::wire::refusal::Refusal;
use crate::wire::upgrade::{Upgrade, bearer_token};
use crate::wire::variant::Subprotocol;

use super::socketio::Space;
use super::stream::StreamAsked;

/// What a request on the public listener is.
#[derive(Debug)]
pub enum Request {
    /// What may be granted, if the directories have no objection.
    Admit(Box<Admit>),
    /// A session of Engine.IO, opened on a WebSocket.
    Engine(Box<EngineAsked>),
    /// A WebSocket that is to become the transport of a session of Engine.IO, which may be another shard's.
    Probe(ProbeAsked),
    /// A WebSocket at Engine.IO's path that can't be granted.
    EngineRefused(RequestError),
    /// Neither a WebSocket nor a stream of events: the control plane's.
    HandOver,
}

/// A session of Engine.IO that is to be opened.
#[derive(Debug)]
pub struct EngineAsked {
    /// Which of the paths it was asked for at.
    pub path: EnginePath,
    /// `Sec-WebSocket-Key`; empty where the client polls.
    pub key: Box<str>,
    /// Binary messages go as base64 in text frames.
    pub base64: bool,
    /// What is agreed on compression.
    pub deflate: Option<Deflate>,
    /// Who the request says that the client is.
    pub offered: Offered,
    /// The id the client wants to have, if it named one.
    pub client_id: Option<Box<str>>,
    /// The session it names, if it named one.
    pub session_id: Option<Box<str>>,
}

/// The paths at which sessions of Engine.IO are opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnginePath {
    /// That of Socket.IO.
    SocketIo,
    /// That of an embedding program, whose messages are its own.
    Messages,
}

/// A WebSocket for a session that polls.
#[derive(Debug)]
pub struct ProbeAsked {
    /// At which path it was asked for.
    pub path: EnginePath,
    /// The session's id.
    pub sid: Box<str>,
    /// `Sec-WebSocket-Key`.
    pub key: Box<str>,
    /// Binary messages go as base64 in text frames.
    pub base64: bool,
    /// What is agreed on compression.
    pub deflate: Option<Deflate>,
}

/// Who the request that opens a session of Engine.IO says that the client is. The token may also come later, with the first
/// packet: so nothing is refused here.
#[derive(Debug, Clone)]
pub enum Offered {
    /// It says nothing of it.
    Nothing,
    /// The owner of a good token, or whoever where nobody is asked for one.
    Identity(Arc<Identity>),
    /// There is a token, and it is not good.
    Refused(Refusal),
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
    /// The subprotocol that was chosen, of those that were offered.
    pub subprotocol: Option<Subprotocol>,
    /// What is agreed on compression.
    pub deflate: Option<Deflate>,
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
    /// A namespace of Socket.IO.
    SocketIo(Space),
    /// A namespace of Socket.IO that an embedding program serves.
    Handled(Space),
}

impl Endpoint {
    /// Whether its clients have names and a session, and are in rooms.
    pub const fn has_client(self) -> bool {
        matches!(self, Endpoint::Native | Endpoint::Events | Endpoint::SocketIo(_))
    }
}

/// Who may connect, as configured.
pub struct Gate<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// Checks tokens.
    pub verifier: &'a Verifier,
    /// Whom everybody is where authentication is off.
    pub anonymous: &'a Arc<Identity>,
    /// The path at which an embedding program has sessions of Engine.IO, if it does.
    pub messages_path: Option<&'a str>,
}

impl Gate<'_> {
    /// Decides on a request by its head alone.
    pub fn decide(&self, head: &Head<'_>, now: Now) -> Result<Request, Refusal> {
        if let Some(path) = self.engine_path(head.path) {
            return self.decide_engine(path, head, now);
        }
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
            subprotocol: Subprotocol::choose(&upgrade.protocols, endpoint == Endpoint::Native),
            deflate: upgrade.deflate(self.deflate_terms(head)?)?,
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
            subprotocol: None,
            deflate: None,
            stream: Some(Box::new(StreamAsked::read(head, self.config)?)),
        })))
    }

    /// Which of Engine.IO's paths that is, if it is one.
    pub fn engine_path(&self, path: &str) -> Option<EnginePath> {
        let is = |known: &str| path.trim_end_matches('/') == known.trim_end_matches('/');
        if self.config.socketio.path.as_deref().is_some_and(is) {
            Some(EnginePath::SocketIo)
        } else {
            self.messages_path.is_some_and(is).then_some(EnginePath::Messages)
        }
    }

    /// Decides on a request at Engine.IO's path. Those that are no WebSocket are the control plane's, which knows their
    /// bodies.
    fn decide_engine(&self, path: EnginePath, head: &Head<'_>, now: Now) -> Result<Request, Refusal> {
        if !head.wants_websocket() {
            return Ok(Request::HandOver);
        }
        let upgrade = head.upgrade()?;
        let asked = match engineio::Request::parse(head.method, head.query, true) {
            Ok(request) => request,
            Err(error) => return Ok(Request::EngineRefused(error)),
        };
        if !origin_allowed(&self.config.auth.origins, head.header("origin")) {
            return Ok(Request::EngineRefused(RequestError::Forbidden));
        }
        let Ok(deflate) = self.deflate_terms(head).and_then(|terms| upgrade.deflate(terms)) else {
            return Ok(Request::EngineRefused(RequestError::BadRequest));
        };
        let (key, base64) = (upgrade.key.into(), asked.base64);
        Ok(match asked.asked {
            engineio::Asked::Upgrade { sid } => {
                Request::Probe(ProbeAsked { path, sid: sid.into(), key, base64, deflate })
            }
            engineio::Asked::Open(Transport::WebSocket) => {
                let engine = self.engine_asked(path, head, Some(&upgrade), now);
                match engine {
                    Ok(engine) => Request::Engine(Box::new(EngineAsked { key, base64, deflate, ..engine })),
                    Err(error) => Request::EngineRefused(error),
                }
            }
            _ => Request::EngineRefused(RequestError::BadRequest),
        })
    }

    /// What the request for a session of Engine.IO says of its client.
    pub fn engine_asked<'h>(
        &self,
        path: EnginePath,
        head: &Head<'h>,
        upgrade: Option<&Upgrade<'h>>,
        now: Now,
    ) -> Result<EngineAsked, RequestError> {
        if !origin_allowed(&self.config.auth.origins, head.header("origin")) {
            return Err(RequestError::Forbidden);
        }
        let offered = if self.config.auth.enabled {
            match bearer_token(head, upgrade, self.config.auth.cookie.as_deref()) {
                Ok(None) => Offered::Nothing,
                Ok(Some(token)) => match self.connecting(&token, now) {
                    Ok(identity) => Offered::Identity(identity),
                    Err(refusal) => Offered::Refused(refusal),
                },
                Err(refusal) => Offered::Refused(refusal),
            }
        } else {
            Offered::Identity(self.anonymous.clone())
        };
        let id = |name| id_parameter(head, name).map_err(|_| RequestError::BadRequest);
        let (client_id, session_id) = (id("client_id")?, id("session_id")?);
        Ok(EngineAsked { path, key: Box::default(), base64: false, deflate: None, offered, client_id, session_id })
    }

    /// What may be agreed on compression; nothing where it is off, here or at the client's wish: browsers offer it whether
    /// their page wants it or not.
    fn deflate_terms(&self, head: &Head<'_>) -> Result<Option<DeflateTerms>, Refusal> {
        let options = &self.config.compression;
        if !options.enabled || head.query_param("compression")?.as_deref() == Some("off") {
            return Ok(None);
        }
        let bits = |option: u32| u8::try_from(option).unwrap_or(WINDOW_BITS_MAX);
        let (window_bits, client_window_bits) = (bits(options.window_bits), bits(options.client_window_bits));
        Ok(Some(DeflateTerms { window_bits, client_window_bits }))
    }

    fn identify<'h>(&self, head: &Head<'h>, upgrade: Option<&Upgrade<'h>>, now: Now) -> Result<Arc<Identity>, Refusal> {
        if !self.config.auth.enabled {
            return Ok(self.anonymous.clone());
        }
        let token = bearer_token(head, upgrade, self.config.auth.cookie.as_deref())?
            .ok_or_else(|| Refusal::unauthorized(TOKEN_NEEDED))?;
        self.connecting(&token, now)
    }

    /// The identity that a token stands for, which may connect.
    pub fn connecting(&self, token: &str, now: Now) -> Result<Arc<Identity>, Refusal> {
        let identity = self.check_token(token, now)?;
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

/// What is told to those who connect without credentials.
pub const TOKEN_NEEDED: &str = "a token is needed to connect";

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
        let head = parse_head(text.as_bytes(), 16_384)?.expect("whole");
        with_gate(config, |gate| gate.decide(&head, NOW))
    }

    fn with_gate<R>(config: &Config, then: impl FnOnce(&Gate<'_>) -> R) -> R {
        let verifier = Verifier::new(config).expect("keys");
        let anonymous = Arc::new(Identity::anonymous("anonymous".to_owned()));
        then(&Gate { config, verifier: &verifier, anonymous: &anonymous, messages_path: Some("/mine/") })
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
        assert_eq!(admit.subprotocol.map(|chosen| chosen.name), Some("ringhub.v1.json"));
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
            assert_eq!(admit.stream.expect("a stream").rooms, [Box::<str>::from("a")]);
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
    fn a_websocket_at_a_path_of_engineio_opens_a_session_or_goes_on_with_one() {
        let config = with_secret();
        for (path, of) in [
            ("/socket.io/", EnginePath::SocketIo),
            ("/socket.io", EnginePath::SocketIo),
            ("/mine/", EnginePath::Messages),
            ("/mine", EnginePath::Messages),
        ] {
            match decide(&config, &request(&format!("{path}?EIO=4&transport=websocket&client_id=c&session_id=s"), "")) {
                Ok(Request::Engine(asked)) => {
                    assert_eq!((asked.path, &*asked.key, asked.base64), (of, "dGhlIHNhbXBsZSBub25jZQ==", false));
                    assert_eq!((asked.client_id.as_deref(), asked.session_id.as_deref()), (Some("c"), Some("s")));
                    assert!(matches!(asked.offered, Offered::Nothing), "a token may come with the CONNECT");
                }
                other => panic!("{path}: {other:?}"),
            }
            match decide(&config, &request(&format!("{path}?EIO=4&transport=websocket&sid=abc&b64=1"), "")) {
                Ok(Request::Probe(asked)) => {
                    assert_eq!((asked.path, &*asked.sid, asked.base64), (of, "abc", true));
                    assert_eq!(&*asked.key, "dGhlIHNhbXBsZSBub25jZQ==");
                }
                other => panic!("{path}: {other:?}"),
            }
        }
        // The control plane has the bodies of polls, and tells what is wrong with the others.
        for text in
            ["GET /socket.io/?EIO=4&transport=polling", "POST /mine/?EIO=4&transport=polling&sid=a", "PUT /mine"]
        {
            let decided = decide(&config, &format!("{text} HTTP/1.1\r\nHost: h\r\n\r\n"));
            assert!(matches!(decided, Ok(Request::HandOver)), "{text}");
        }
        let mut without = with_secret();
        without.socketio.path = None;
        let refusal =
            decide(&without, &request("/socket.io/?EIO=4&transport=websocket", "")).expect_err("no such path");
        assert_eq!(refusal.status, 404);
        for path in ["/socket.io/x", "/socket", "/", "/mine.io"] {
            assert!(decide(&config, &request(&format!("{path}?EIO=4&transport=websocket"), "")).is_err(), "{path}");
        }
    }

    #[test]
    fn what_can_be_no_session_is_refused_as_the_reference_server_does() {
        let mut config = with_secret();
        config.auth.origins = vec!["https://app.example.com".to_owned()];
        let refused =
            |query: &str, headers: &str| match decide(&config, &request(&format!("/socket.io/?{query}"), headers)) {
                Ok(Request::EngineRefused(error)) => error,
                other => panic!("{query}: {other:?}"),
            };
        let (good, evil) = ("Origin: https://app.example.com\r\n", "Origin: https://evil.example.com\r\n");
        let open = "EIO=4&transport=websocket";
        assert_eq!(refused("", good), RequestError::TransportUnknown);
        assert_eq!(refused("EIO=3&transport=websocket", good), RequestError::UnsupportedVersion);
        assert_eq!(refused("EIO=4&transport=polling", good), RequestError::BadRequest);
        assert_eq!(refused("EIO=4&transport=websocket&sid=a/b", good), RequestError::SessionUnknown);
        assert_eq!(refused(open, evil), RequestError::Forbidden);
        assert_eq!(refused(&format!("{open}&sid=abc"), evil), RequestError::Forbidden, "nor does it take one over");
        for name in ["client_id", "session_id"] {
            assert_eq!(refused(&format!("{open}&{name}=a%20b"), good), RequestError::BadRequest);
        }
        // A handshake that is none is answered as it is everywhere.
        let text = request(&format!("/socket.io/?{open}"), good).replace("Version: 13", "Version: 12");
        assert_eq!(decide(&config, &text).expect_err("refused").status, 426);
    }

    #[test]
    fn a_request_for_a_session_says_who_the_client_is_and_is_not_refused_for_it() {
        let mut config = with_secret();
        config.auth.cookie = Some("auth".to_owned());
        let good = token(&config, "alice", &["websocket:connect"], 1_000_000_100);
        let expired = token(&config, "alice", &["websocket:connect"], 999_999_000);
        let weak = token(&config, "alice", &["websocket:subscribe"], 1_000_000_100);
        let offered = |config: &Config, query: &str, headers: &str| {
            let text = format!("GET /socket.io/?EIO=4&transport=polling{query} HTTP/1.1\r\nHost: h\r\n{headers}\r\n");
            let head = parse_head(text.as_bytes(), 16_384).expect("well-formed").expect("whole");
            let asked = with_gate(config, |gate| gate.engine_asked(EnginePath::SocketIo, &head, None, NOW));
            let asked = asked.expect("never refused for its token");
            assert_eq!((&*asked.key, asked.base64), ("", false));
            match asked.offered {
                Offered::Nothing => "nothing".to_owned(),
                Offered::Identity(identity) => identity.user_id.clone(),
                Offered::Refused(refusal) => refusal.status.to_string(),
            }
        };
        assert_eq!(offered(&config, "", ""), "nothing");
        for (query, headers) in [
            ("", format!("Authorization: Bearer {good}\r\n")),
            (&*format!("&token={good}"), String::new()),
            ("", format!("Cookie: auth={good}\r\n")),
        ] {
            assert_eq!(offered(&config, query, &headers), "alice");
        }
        assert_eq!(offered(&config, &format!("&token={expired}"), ""), "401");
        assert_eq!(offered(&config, &format!("&token={weak}"), ""), "403");
        assert_eq!(offered(&config, "&token=x", ""), "401");
        config.auth.enabled = false;
        assert_eq!(offered(&config, "&token=x", ""), "anonymous", "nobody is asked");
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

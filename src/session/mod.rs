//! One client's state machine: how it is let in, what it may do, how much it may send, and whether it still lives.
//!
//! Pure: received heads and messages come in with the time, decisions come out.

mod emitted;
pub mod greeting;
pub mod handler;
pub mod handshake;
pub mod heartbeat;
pub mod limits;
mod session_id;
pub mod socketio;
pub mod stream;

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::auth::{Identity, Withdrawal, Withdrawn, withdrawal};
use crate::config::{Config, KindConfig};
use crate::ring::Now;
use crate::wire::codes::ErrorCode;
use crate::wire::native::Refused;
pub use session_id::SessionId;

use limits::{BadMessages, TokenBucket};

/// A client's id. One that a hub gives takes no memory beside this, nor does any other of up to 23 bytes.
pub type ClientId = smol_str::SmolStr;

/// A client that was let in.
#[derive(Debug)]
pub struct Session {
    /// This connection's id.
    pub client_id: ClientId,
    /// The session it holds.
    pub session_id: SessionId,
    /// Whom it acts for.
    pub identity: Arc<Identity>,
    metadata: Option<Box<Map<String, Value>>>,
    rate: TokenBucket,
    bad: BadMessages,
    /// Since when it has been beyond its rate, in milliseconds of the monotonic clock that wrap; 0 while it is not.
    flooding_since_ms: u32,
    expiry_told: bool,
    /// Until when it has to show a valid token, because that was asked for, in seconds since 1970; 0 while it was not.
    prove_by_s: u32,
}

/// What becomes of a message that came too soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverRate {
    /// It is refused; the next may come after so many milliseconds.
    Refuse(u64),
    /// It has gone on for too long: the connection is closed.
    Flood,
}

/// What is due about a token's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    /// The token has no end.
    Never,
    /// Nothing until then (milliseconds since 1970).
    At(u64),
    /// The client is to be told now.
    Tell,
    /// The connection is to be closed.
    Expired,
    /// Likewise, because no token was shown when one was asked for.
    Unproven,
}

impl Session {
    /// A session as it begins.
    pub fn new(
        client_id: ClientId,
        session_id: SessionId,
        identity: Arc<Identity>,
        config: &Config,
        now: Now,
    ) -> Session {
        Session {
            client_id,
            session_id,
            identity,
            metadata: None,
            rate: TokenBucket::full(config.limits.messages_burst, now),
            bad: BadMessages::default(),
            flooding_since_ms: 0,
            expiry_told: false,
            prove_by_s: 0,
        }
    }

    /// Counts a message against the rate.
    pub fn take_message(&mut self, config: &Config, now: Now) -> Result<(), OverRate> {
        let limits = &config.limits;
        if limits.messages_per_s == 0 {
            return Ok(());
        }
        let now_ms = limits::millis(now).max(1);
        match self.rate.take(limits.messages_per_s, limits.messages_burst, now) {
            Ok(()) => {
                // A flood is over when the client has been quiet enough for half the burst to come back.
                if self.flooding_since_ms != 0 && self.rate.tokens() >= limits.messages_burst / 2 {
                    self.flooding_since_ms = 0;
                }
                Ok(())
            }
            Err(retry_after_ms) => {
                if self.flooding_since_ms == 0 {
                    self.flooding_since_ms = now_ms;
                }
                if u64::from(now_ms.wrapping_sub(self.flooding_since_ms)) >= limits.flood_s * 1000 {
                    return Err(OverRate::Flood);
                }
                Err(OverRate::Refuse(retry_after_ms))
            }
        }
    }

    /// Counts a bad message; true when there were too many.
    pub fn count_bad(&mut self, config: &Config, now: Now) -> bool {
        self.bad.count(config.limits.bad_messages_per_minute_max, now)
    }

    /// Whether this client may be in a room.
    pub fn may_join(&self, kind: &KindConfig, name: &str) -> Result<(), Refused> {
        let permissions = &self.identity.permissions;
        if permissions.was_put_into(&kind.name, name) {
            return Ok(());
        }
        if !permissions.may_subscribe() {
            return Err(Refused::new(ErrorCode::Forbidden, "websocket:subscribe is needed to subscribe"));
        }
        if !permissions.may_join(kind, name, &self.identity.user_id, &self.session_id) {
            return Err(Refused::new(ErrorCode::Forbidden, "a permission for this room is missing"));
        }
        Ok(())
    }

    /// Whether this client may publish into a room.
    pub fn may_publish(&self, kind: &str, name: &str) -> Result<(), Refused> {
        if self.identity.permissions.may_publish(kind, name) {
            return Ok(());
        }
        let needed = match name {
            "" => format!("websocket:publish and {kind}:write are needed to publish into this room"),
            _ => format!("websocket:publish and {kind}:{name}:write are needed to publish into this room"),
        };
        Err(Refused::because(ErrorCode::Forbidden, needed))
    }

    /// The metadata.
    pub fn metadata(&self) -> Value {
        Value::Object(self.metadata_object())
    }

    /// The metadata as a map.
    pub fn metadata_object(&self) -> Map<String, Value> {
        self.metadata.as_deref().cloned().unwrap_or_default()
    }

    /// Merges an object into the metadata: null removes a key. Refused where the whole would be larger than allowed.
    pub fn merge_metadata(&mut self, set: Map<String, Value>, config: &Config) -> Result<(), Refused> {
        let mut merged = self.metadata.as_deref().cloned().unwrap_or_default();
        for (key, value) in set {
            if value.is_null() {
                merged.remove(&key);
            } else {
                merged.insert(key, value);
            }
        }
        let bytes_max = config.limits.metadata_bytes_max;
        if serde_json::to_vec(&merged).map_or(true, |text| text.len() > bytes_max) {
            return Err(Refused::because(ErrorCode::TooLarge, format!("metadata has at most {bytes_max} bytes")));
        }
        self.metadata = (!merged.is_empty()).then(|| Box::new(merged));
        Ok(())
    }

    /// Replaces the identity by that of a new token, which has to be the same user's. What a backend has added stays.
    pub fn refresh(&mut self, identity: Arc<Identity>) -> Result<(), Refused> {
        if identity.user_id != self.identity.user_id {
            return Err(Refused::new(ErrorCode::Forbidden, "the token is another user's"));
        }
        let permissions = identity.permissions.in_place_of(&self.identity.permissions);
        let identity = Identity { permissions, ..Identity::clone(&identity) };
        self.identity = Arc::new(match self.identity.permissions.withdrawn() {
            Some(withdrawn) => identity.without(withdrawn),
            None => identity,
        });
        self.expiry_told = false;
        self.prove_by_s = 0;
        Ok(())
    }

    /// Takes permissions away from whoever holds this session now. What the session's home has to know of it.
    pub fn withdraw(&mut self, permissions: &[Box<str>], now: Now) -> Withdrawn {
        let withdrawn = withdrawal::withdrawn(permissions, now.unix_ms / 1000, self.identity.mark);
        self.inherit_withdrawn(&withdrawn);
        withdrawn
    }

    /// Goes without what was withdrawn from the session before this connection took it up, as far as that binds its token.
    pub fn inherit_withdrawn(&mut self, withdrawn: &[Withdrawal]) {
        self.identity = Arc::new(self.identity.without(withdrawn));
    }

    /// Wants a valid token within so many seconds; what was asked for before is not put off. Until when it has to come is
    /// said by [`Session::expires_at`].
    pub fn ask_for_proof(&mut self, grace_s: u32, now: Now) {
        let until_s = now.unix_ms.div_ceil(1000).saturating_add(grace_s.into());
        let until_s = u32::try_from(until_s).unwrap_or(u32::MAX);
        self.prove_by_s = if self.prove_by_s == 0 { until_s } else { until_s.min(self.prove_by_s) };
    }

    /// When the connection ends unless a new token comes, in seconds since 1970; none where it does not.
    pub fn expires_at(&self) -> Option<u64> {
        let prove_by_s = Some(u64::from(self.prove_by_s)).filter(|prove_by_s| *prove_by_s > 0);
        self.identity.expires_at.into_iter().chain(prove_by_s).min()
    }

    /// What is due about the token's end, and about a new one that was asked for. [`Expiry::Tell`] is said once per token.
    pub fn expiry(&mut self, config: &Config, now: Now) -> Expiry {
        let of_token = self.token_expiry(config, now);
        if self.prove_by_s == 0 {
            return of_token;
        }
        let prove_by_ms = u64::from(self.prove_by_s) * 1000;
        match of_token {
            Expiry::Expired => Expiry::Expired,
            _ if now.unix_ms >= prove_by_ms => Expiry::Unproven,
            Expiry::At(unix_ms) => Expiry::At(unix_ms.min(prove_by_ms)),
            Expiry::Never => Expiry::At(prove_by_ms),
            other => other,
        }
    }

    fn token_expiry(&mut self, config: &Config, now: Now) -> Expiry {
        let Some(expires_at) = self.identity.expires_at else { return Expiry::Never };
        let end_ms = expires_at.saturating_mul(1000);
        // The same leeway as at connect: who may still connect may still stay.
        let close_ms = end_ms.saturating_add(config.auth.leeway_s * 1000);
        if now.unix_ms >= close_ms {
            return Expiry::Expired;
        }
        let tell_ms = end_ms.saturating_sub(config.auth.expiring_s * 1000);
        if self.expiry_told || config.auth.expiring_s == 0 {
            return Expiry::At(close_ms);
        }
        if now.unix_ms >= tell_ms {
            self.expiry_told = true;
            return Expiry::Tell;
        }
        Expiry::At(tell_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(config: &Config) -> Session {
        let identity = Arc::new(Identity::anonymous("alice".to_owned()));
        Session::new("c".into(), "s".into(), identity, config, at(0))
    }

    fn at(ms: u64) -> Now {
        Now { monotonic_us: ms * 1000, unix_ms: ms }
    }

    #[test]
    fn a_client_beyond_its_rate_is_told_when_to_go_on_and_closed_when_it_does_not_listen() {
        let mut config = Config::default();
        config.limits.messages_per_s = 10;
        config.limits.messages_burst = 20;
        config.limits.flood_s = 2;
        let mut session = session(&config);
        for _ in 0..20 {
            assert_eq!(session.take_message(&config, at(0)), Ok(()));
        }
        assert_eq!(session.take_message(&config, at(0)), Err(OverRate::Refuse(100)));
        assert_eq!(session.take_message(&config, at(100)), Ok(()));
        assert_eq!(session.take_message(&config, at(1900)).and(Ok(())), Ok(()));
        // Twice the rate for long enough.
        let mut last = Ok(());
        for step in 0..200 {
            last = session.take_message(&config, at(2000 + step * 50));
            if last == Err(OverRate::Flood) {
                break;
            }
        }
        assert_eq!(last, Err(OverRate::Flood));
    }

    #[test]
    fn a_short_burst_is_forgiven_after_a_quiet_time() {
        let mut config = Config::default();
        config.limits.messages_per_s = 10;
        config.limits.messages_burst = 20;
        config.limits.flood_s = 2;
        let mut session = session(&config);
        for minute in 0..5 {
            for _ in 0..20 {
                assert_eq!(session.take_message(&config, at(minute * 60_000)), Ok(()));
            }
            assert!(matches!(session.take_message(&config, at(minute * 60_000)), Err(OverRate::Refuse(_))));
        }
    }

    #[test]
    fn metadata_is_merged_and_null_removes() {
        let config = Config::default();
        let mut session = session(&config);
        let object = |text: &str| serde_json::from_str::<Map<String, Value>>(text).expect("object");
        assert_eq!(session.merge_metadata(object(r#"{"a":1,"b":2}"#), &config), Ok(()));
        assert_eq!(session.merge_metadata(object(r#"{"a":null,"c":{"d":3}}"#), &config), Ok(()));
        assert_eq!(session.metadata(), serde_json::json!({"b": 2, "c": {"d": 3}}));
        let large = Map::from_iter([("x".to_owned(), Value::String("y".repeat(5000)))]);
        assert_eq!(session.merge_metadata(large, &config).expect_err("too large").code, ErrorCode::TooLarge);
        assert_eq!(session.metadata(), serde_json::json!({"b": 2, "c": {"d": 3}}), "a refusal changes nothing");
    }

    #[test]
    fn the_end_of_a_token_is_told_once_and_then_it_ends() {
        let mut config = Config::default();
        config.auth.leeway_s = 5;
        let mut session = session(&config);
        assert_eq!(session.expiry(&config, at(0)), Expiry::Never);
        let mut identity = Identity::anonymous("alice".to_owned());
        identity.expires_at = Some(100);
        assert_eq!(session.refresh(Arc::new(identity.clone())), Ok(()));
        assert_eq!(session.expiry(&config, at(39_000)), Expiry::At(40_000));
        assert_eq!(session.expiry(&config, at(40_000)), Expiry::Tell);
        assert_eq!(session.expiry(&config, at(41_000)), Expiry::At(105_000));
        assert_eq!(session.expiry(&config, at(105_000)), Expiry::Expired);
        identity.user_id = "bob".to_owned();
        assert!(session.refresh(Arc::new(identity)).is_err());
    }

    #[test]
    fn a_token_that_is_asked_for_has_to_come_in_time_and_an_earlier_question_stands() {
        let config = Config::default();
        let mut session = session(&config);
        session.ask_for_proof(30, at(1500));
        assert_eq!(session.expires_at(), Some(32));
        session.ask_for_proof(60, at(2000));
        assert_eq!((session.expires_at(), session.expiry(&config, at(2000))), (Some(32), Expiry::At(32_000)));
        assert_eq!(session.expiry(&config, at(32_000)), Expiry::Unproven);
        let identity = Identity::anonymous("alice".to_owned());
        assert_eq!(session.refresh(Arc::new(identity.clone())), Ok(()));
        assert_eq!((session.expires_at(), session.expiry(&config, at(32_000))), (None, Expiry::Never));
        // The token's own end comes first, and the question before it.
        assert_eq!(session.refresh(Arc::new(Identity { expires_at: Some(100), ..identity })), Ok(()));
        session.ask_for_proof(3600, at(33_000));
        assert_eq!(session.expires_at(), Some(100));
        assert_eq!(session.expiry(&config, at(40_000)), Expiry::Tell);
        assert_eq!(session.expiry(&config, at(40_001)), Expiry::At(110_000));
        assert_eq!(session.expiry(&config, at(110_000)), Expiry::Expired);
    }

    #[test]
    fn what_is_withdrawn_comes_back_with_a_newer_token_only() {
        use crate::auth::{Permissions, TokenMark};
        let config = Config::default();
        let mut session = session(&config);
        let identity = |issued_s, signature: &str| {
            let permissions = Permissions::new(["websocket:connect", "project:1:read"]);
            let mark = TokenMark::new(Some(issued_s), signature);
            Arc::new(Identity { permissions, mark, ..Identity::anonymous("alice".to_owned()) })
        };
        let reads = |session: &Session| session.identity.permissions.allows("project:1:read");
        assert_eq!(session.refresh(identity(10, "a")), Ok(()));
        let withdrawn = session.withdraw(&["project:*:read".into()], at(20_900));
        assert!(!reads(&session) && session.identity.permissions.may_connect());
        for (issued_s, signature, expected) in [(10, "a", false), (19, "b", false), (20, "c", true), (19, "b", false)] {
            assert_eq!(session.refresh(identity(issued_s, signature)), Ok(()));
            assert_eq!(reads(&session), expected, "{issued_s} {signature}");
        }
        let mut next = self::session(&config);
        assert_eq!(next.refresh(identity(10, "a")), Ok(()));
        assert!(reads(&next));
        next.inherit_withdrawn(&withdrawn);
        assert!(!reads(&next), "another connection that takes the session up with the old token");
    }
}

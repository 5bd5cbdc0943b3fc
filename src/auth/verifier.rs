//! From a token to an identity.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use jsonwebtoken::Header;
use jsonwebtoken::dangerous::insecure_decode_claims;
use serde::Deserialize;
use serde_json::Value;

use super::keys::{self, AuthSetupError, Key};
use super::{Identity, Permissions, TokenMark, USER_ID_BYTES_MAX};
use crate::config::Config;

/// Longest token that is looked at. The header block bounds it first on a connect; a refresh comes in a message.
pub const TOKEN_BYTES_MAX: usize = 32 << 10;

/// Longest name for people to read.
const NAME_BYTES_MAX: usize = 256;

/// Sets of permissions kept for sharing. Real deployments have a handful of roles; tokens with permissions of their own
/// for each user gain nothing from sharing, and must not grow the table without end.
pub(super) const SHARED_SETS_MAX: usize = 1024;

/// Why a token was refused. No text of it has any part of the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// Not a signed JWT.
    #[error("the token is malformed")]
    Malformed,
    /// Longer than any token may be.
    #[error("the token is too long")]
    TooLong,
    /// It names a `kid` that no key has.
    #[error("the token was signed with an unknown key")]
    UnknownKey,
    /// No key is used with its algorithm.
    #[error("the token's algorithm is not accepted")]
    WrongAlgorithm,
    /// No key confirms the signature.
    #[error("the token's signature is wrong")]
    BadSignature,
    /// Its end has passed.
    #[error("the token has expired")]
    Expired,
    /// Its start has not come.
    #[error("the token is not valid yet")]
    NotYet,
    /// It is for someone else.
    #[error("the token is for another audience")]
    WrongAudience,
    /// It is from someone else.
    #[error("the token is from another issuer")]
    WrongIssuer,
    /// A required claim is not there.
    #[error("the token has no claim {0}")]
    MissingClaim(&'static str),
    /// A claim has the wrong type or size.
    #[error("the token's claim {0} is malformed")]
    BadClaim(&'static str),
}

impl AuthError {
    /// A word for metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            AuthError::Malformed => "malformed",
            AuthError::TooLong => "too_long",
            AuthError::UnknownKey => "unknown_key",
            AuthError::WrongAlgorithm => "wrong_algorithm",
            AuthError::BadSignature => "bad_signature",
            AuthError::Expired => "expired",
            AuthError::NotYet => "not_yet",
            AuthError::WrongAudience => "wrong_audience",
            AuthError::WrongIssuer => "wrong_issuer",
            AuthError::MissingClaim(_) => "missing_claim",
            AuthError::BadClaim(_) => "bad_claim",
        }
    }
}

/// Checks tokens as one configuration says; threads may share it.
pub struct Verifier {
    keys: Vec<Key>,
    audience: Vec<String>,
    issuer: Vec<String>,
    leeway_s: u64,
    require_exp: bool,
    roles: BTreeMap<String, Vec<String>>,
    shared: Mutex<HashMap<Grant, Granted>>,
}

/// What two tokens must have in common to share one set of permissions.
#[derive(PartialEq, Eq, Hash)]
struct Grant {
    roles: Vec<String>,
    permissions: Vec<String>,
}

/// A token's roles, and what they and its own permissions allow.
type Granted = (Arc<[String]>, Permissions);

impl Verifier {
    /// A verifier with the keys of `config`, key files read now.
    pub fn new(config: &Config) -> Result<Self, AuthSetupError> {
        Ok(Self {
            keys: keys::load(config)?,
            audience: config.auth.audience.clone(),
            issuer: config.auth.issuer.clone(),
            leeway_s: config.auth.leeway_s,
            require_exp: config.auth.require_exp,
            roles: config.roles.clone(),
            shared: Mutex::default(),
        })
    }

    /// Who the token is for, at the time `unix_s` (seconds since 1970).
    pub fn verify(&self, token: &str, unix_s: u64) -> Result<Identity, AuthError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(AuthError::TooLong);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| AuthError::Malformed)?;
        // RFC 7515 §4.1.11: extensions that must be understood, and none of which is.
        if header.crit.is_some() {
            return Err(AuthError::Malformed);
        }
        let claims = self.signed_claims(token, &header)?;
        let expires_at = self.check_time(&claims, unix_s)?;
        self.check_parties(&claims)?;

        let user_id = text("sub", &claims.sub, USER_ID_BYTES_MAX)?.ok_or(AuthError::MissingClaim("sub"))?;
        let name = match &claims.name {
            // Some issuers send an empty name for users who gave none.
            Some(Value::String(name)) if name.is_empty() => None,
            name => text("name", name, NAME_BYTES_MAX)?,
        };
        let roles = texts("roles", &claims.roles)?;
        let permissions = texts("permissions", &claims.permissions)?;
        let (roles, permissions) = self.share(Grant { roles, permissions });
        let signature = token.rsplit_once('.').map_or("", |(_, signature)| signature);
        // Nothing is granted by it, so that one which can't be read is like none.
        let mark = TokenMark::new(numeric_date("iat", &claims.iat).ok().flatten(), signature);
        Ok(Identity { user_id, name: name.map(Into::into), roles, permissions, expires_at, mark })
    }

    /// The claims, once a key has confirmed them.
    fn signed_claims(&self, token: &str, header: &Header) -> Result<RawClaims, AuthError> {
        let (message, signature) = token.rsplit_once('.').ok_or(AuthError::Malformed)?;
        // Keys without an id are tried for every token: the issuer may name one that was not configured.
        let named = |key: &&Key| match (&header.kid, &key.kid) {
            (Some(wanted), Some(kid)) => wanted == kid,
            _ => true,
        };
        let mut refusal = AuthError::UnknownKey;
        for key in self.keys.iter().filter(named) {
            if key.algorithm != header.alg {
                if refusal == AuthError::UnknownKey {
                    refusal = AuthError::WrongAlgorithm;
                }
                continue;
            }
            match jsonwebtoken::crypto::verify(signature, message.as_bytes(), &key.key, key.algorithm) {
                // "Insecure" because it checks nothing itself: the signature has just been, the claims come next.
                Ok(true) => return insecure_decode_claims(token).map_err(|_| AuthError::Malformed),
                Ok(false) => refusal = AuthError::BadSignature,
                Err(_) => return Err(AuthError::Malformed),
            }
        }
        Err(refusal)
    }

    /// RFC 7519 §4.1.4 and §4.1.5; the token's end, when it has one.
    fn check_time(&self, claims: &RawClaims, unix_s: u64) -> Result<Option<u64>, AuthError> {
        let expires_at = numeric_date("exp", &claims.exp)?;
        match expires_at {
            Some(exp) if unix_s >= exp.saturating_add(self.leeway_s) => return Err(AuthError::Expired),
            None if self.require_exp => return Err(AuthError::MissingClaim("exp")),
            _ => {}
        }
        match numeric_date("nbf", &claims.nbf)? {
            Some(nbf) if unix_s.saturating_add(self.leeway_s) < nbf => Err(AuthError::NotYet),
            _ => Ok(expires_at),
        }
    }

    /// RFC 7519 §4.1.1 and §4.1.3.
    fn check_parties(&self, claims: &RawClaims) -> Result<(), AuthError> {
        if !self.issuer.is_empty() {
            let issuer = match &claims.iss {
                None | Some(Value::Null) => return Err(AuthError::MissingClaim("iss")),
                Some(Value::String(issuer)) => issuer,
                Some(_) => return Err(AuthError::BadClaim("iss")),
            };
            if !self.issuer.contains(issuer) {
                return Err(AuthError::WrongIssuer);
            }
        }
        if !self.audience.is_empty() {
            let audience = texts("aud", &claims.aud)?;
            if audience.is_empty() {
                return Err(AuthError::MissingClaim("aud"));
            }
            if !audience.iter().any(|audience| self.audience.contains(audience)) {
                return Err(AuthError::WrongAudience);
            }
        }
        Ok(())
    }

    /// The roles and permissions of a grant, shared with other identities that have the same.
    fn share(&self, grant: Grant) -> Granted {
        // The table is only a cache: what a thread that panicked left in it is still right.
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = shared.get(&grant) {
            return known.clone();
        }
        let of_roles = grant.roles.iter().filter_map(|role| self.roles.get(role)).flatten();
        let permissions = Permissions::new(of_roles.chain(&grant.permissions).map(String::as_str));
        let made = (Arc::from(grant.roles.clone()), permissions);
        if shared.len() >= SHARED_SETS_MAX {
            shared.retain(|_, (roles, _)| Arc::strong_count(roles) > 1);
        }
        if shared.len() < SHARED_SETS_MAX {
            shared.insert(grant, made.clone());
        }
        made
    }

    #[cfg(test)]
    pub(super) fn shared_sets(&self) -> usize {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

/// The claims as the token has them, whatever their types.
#[derive(Deserialize)]
struct RawClaims {
    sub: Option<Value>,
    name: Option<Value>,
    exp: Option<Value>,
    nbf: Option<Value>,
    iat: Option<Value>,
    iss: Option<Value>,
    aud: Option<Value>,
    roles: Option<Value>,
    permissions: Option<Value>,
}

/// A claim that is a short text without control characters.
fn text(name: &'static str, claim: &Option<Value>, bytes_max: usize) -> Result<Option<String>, AuthError> {
    match claim {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if (1..=bytes_max).contains(&text.len()) && !text.chars().any(char::is_control) => {
            Ok(Some(text.clone()))
        }
        Some(_) => Err(AuthError::BadClaim(name)),
    }
}

/// A claim that is a list of texts, or a single one.
fn texts(name: &'static str, claim: &Option<Value>) -> Result<Vec<String>, AuthError> {
    match claim {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(text)) => Ok(vec![text.clone()]),
        Some(Value::Array(items)) => {
            items.iter().map(|item| item.as_str().map(str::to_owned).ok_or(AuthError::BadClaim(name))).collect()
        }
        Some(_) => Err(AuthError::BadClaim(name)),
    }
}

/// A NumericDate (RFC 7519 §2): seconds since 1970, perhaps with a fraction, which is cut off.
fn numeric_date(name: &'static str, claim: &Option<Value>) -> Result<Option<u64>, AuthError> {
    match claim {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Number(number)) => match (number.as_u64(), number.as_f64()) {
            (Some(seconds), _) => Ok(Some(seconds)),
            // `as` saturates: before 1970 becomes 0, beyond all time the end of it.
            (None, Some(seconds)) => Ok(Some(seconds as u64)),
            (None, None) => Err(AuthError::BadClaim(name)),
        },
        Some(_) => Err(AuthError::BadClaim(name)),
    }
}

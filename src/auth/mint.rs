//! Signs tokens, for `ringhub token` and for the first run of a hub without a configured secret.

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;

use crate::config::Secret;

/// What a token says.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Claims {
    /// The user id.
    pub sub: String,
    /// A name for people to read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Roles, which the hub's configuration turns into permissions.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<String>,
    /// Permissions beyond those of the roles.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub permissions: Vec<String>,
    /// When the token was made, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iat: Option<u64>,
    /// When the token ends, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exp: Option<u64>,
    /// When the token starts to hold, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nbf: Option<u64>,
    /// Who made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iss: Option<String>,
    /// Whom it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aud: Option<String>,
}

/// Why a token could not be signed.
#[derive(Debug, thiserror::Error)]
#[error("cannot sign a token with {algorithm:?}: {source}")]
pub struct MintError {
    algorithm: Algorithm,
    source: jsonwebtoken::errors::Error,
}

/// Signs `claims` with a shared secret; the token names the secret's `kid`, if it has one.
pub fn mint(secret: &Secret, algorithm: Algorithm, claims: &Claims) -> Result<String, MintError> {
    let header = Header { kid: secret.kid.clone(), ..Header::new(algorithm) };
    let key = EncodingKey::from_secret(secret.secret.as_bytes());
    jsonwebtoken::encode(&header, claims, &key).map_err(|source| MintError { algorithm, source })
}

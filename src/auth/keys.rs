//! The keys that tokens are checked with, each bound to the one algorithm it is used with.
//!
//! That binding is what keeps a token from choosing how it is checked: a public key offered as an HMAC secret, an RSA
//! key under another padding, or `none` find no key to be checked with.

use std::path::{Path, PathBuf};

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};

use crate::config::{Config, KeySource, PublicKey};

/// A key, its id and its algorithm.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) kid: Option<String>,
    pub(super) algorithm: Algorithm,
    pub(super) key: DecodingKey,
}

/// Why no verifier could be made of the configuration.
#[derive(Debug, thiserror::Error)]
pub enum AuthSetupError {
    /// A key file can't be read.
    #[error("{key}: cannot read {}: {source}", path.display())]
    Unreadable {
        /// The option that names the file.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A key is not what its algorithm needs.
    #[error("auth.keys: {name}: {reason}")]
    BadKey {
        /// Which key: its id, file or place in the list.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A JWKS file has no usable key, or is none.
    #[error("auth.jwks: {}: {reason}", path.display())]
    BadJwks {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// All keys of a configuration, files read.
pub(super) fn load(config: &Config) -> Result<Vec<Key>, AuthSetupError> {
    let auth = &config.auth;
    let mut keys: Vec<Key> = auth
        .secret
        .iter()
        .map(|secret| Key {
            kid: secret.kid.clone(),
            algorithm: auth.algorithm,
            key: DecodingKey::from_secret(secret.secret.as_bytes()),
        })
        .collect();
    for (index, key) in auth.keys.iter().enumerate() {
        keys.push(public_key(index, key)?);
    }
    if let Some(path) = &auth.jwks {
        keys.extend(jwks(path)?);
    }
    Ok(keys)
}

fn public_key(index: usize, key: &PublicKey) -> Result<Key, AuthSetupError> {
    let (name, pem) = match &key.source {
        KeySource::Pem(pem) => (key.kid.clone().unwrap_or_else(|| format!("key {}", index + 1)), pem.clone()),
        KeySource::File(path) => (path.display().to_string(), read("auth.keys", path)?),
    };
    let bad = |reason: String| AuthSetupError::BadKey { name: name.clone(), reason };
    if pem.contains("PRIVATE KEY") {
        return Err(bad("is a private key; the hub needs the public one only".to_owned()));
    }
    let parsed = match key.algorithm.family() {
        AlgorithmFamily::Rsa => DecodingKey::from_rsa_pem(pem.as_bytes()),
        AlgorithmFamily::Ec => DecodingKey::from_ec_pem(pem.as_bytes()),
        AlgorithmFamily::Ed => DecodingKey::from_ed_pem(pem.as_bytes()),
        AlgorithmFamily::Hmac => return Err(bad("HMAC algorithms take a secret: see auth.secret".to_owned())),
    };
    let parsed = parsed.map_err(|_| bad(format!("is no public key for {:?} in PEM format", key.algorithm)))?;
    check_length(key.algorithm, &parsed).map_err(bad)?;
    Ok(Key { kid: key.kid.clone(), algorithm: key.algorithm, key: parsed })
}

/// Refuses a key on another curve than its algorithm's at start, instead of every token later.
fn check_length(algorithm: Algorithm, key: &DecodingKey) -> Result<(), String> {
    let expected = match algorithm {
        // An uncompressed point: one byte of mark and two coordinates.
        Algorithm::ES256 => 1 + 2 * 32,
        Algorithm::ES384 => 1 + 2 * 48,
        Algorithm::EdDSA => 32,
        _ => return Ok(()),
    };
    match key.try_get_as_bytes() {
        Ok(bytes) if bytes.len() == expected => Ok(()),
        _ => Err(format!("is on another curve than {algorithm:?} uses")),
    }
}

fn jwks(path: &Path) -> Result<Vec<Key>, AuthSetupError> {
    let bad = |reason: String| AuthSetupError::BadJwks { path: path.to_owned(), reason };
    let text = read("auth.jwks", path)?;
    let set: JwkSet = serde_json::from_str(&text).map_err(|error| bad(format!("is no JWKS: {error}")))?;
    let mut keys = Vec::new();
    for jwk in &set.keys {
        let name = jwk.common.key_id.as_deref().unwrap_or("without kid");
        // RFC 7517 §5: keys of other types or for other uses are passed over.
        let for_signatures = matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature));
        let Some(algorithm) = jwk_algorithm(jwk).filter(|_| for_signatures) else { continue };
        if algorithm.family() == AlgorithmFamily::Hmac {
            return Err(bad(format!("key {name} is a secret; secrets belong into auth.secret")));
        }
        let key = DecodingKey::from_jwk(jwk).map_err(|error| bad(format!("key {name}: {error}")))?;
        check_length(algorithm, &key).map_err(|reason| bad(format!("key {name} {reason}")))?;
        keys.push(Key { kid: jwk.common.key_id.clone(), algorithm, key });
    }
    if keys.is_empty() { Err(bad("has no key that signatures can be checked with".to_owned())) } else { Ok(keys) }
}

/// The one algorithm a JWK is used with: the one it names if that fits its type, else the usual one for its type.
fn jwk_algorithm(jwk: &Jwk) -> Option<Algorithm> {
    let named = match jwk.common.key_algorithm {
        None => None,
        Some(KeyAlgorithm::HS256) => Some(Algorithm::HS256),
        Some(KeyAlgorithm::HS384) => Some(Algorithm::HS384),
        Some(KeyAlgorithm::HS512) => Some(Algorithm::HS512),
        Some(KeyAlgorithm::ES256) => Some(Algorithm::ES256),
        Some(KeyAlgorithm::ES384) => Some(Algorithm::ES384),
        Some(KeyAlgorithm::RS256) => Some(Algorithm::RS256),
        Some(KeyAlgorithm::RS384) => Some(Algorithm::RS384),
        Some(KeyAlgorithm::RS512) => Some(Algorithm::RS512),
        Some(KeyAlgorithm::PS256) => Some(Algorithm::PS256),
        Some(KeyAlgorithm::PS384) => Some(Algorithm::PS384),
        Some(KeyAlgorithm::PS512) => Some(Algorithm::PS512),
        Some(KeyAlgorithm::EdDSA) => Some(Algorithm::EdDSA),
        // Encryption, or an algorithm that is not supported.
        Some(_) => return None,
    };
    let usual = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        AlgorithmParameters::EllipticCurve(ec) if ec.curve == EllipticCurve::P256 => Algorithm::ES256,
        AlgorithmParameters::EllipticCurve(ec) if ec.curve == EllipticCurve::P384 => Algorithm::ES384,
        AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => Algorithm::EdDSA,
        AlgorithmParameters::OctetKey(_) => Algorithm::HS256,
        _ => return None,
    };
    let algorithm = named.unwrap_or(usual);
    (algorithm.family() == usual.family()).then_some(algorithm)
}

fn read(key: &'static str, path: &Path) -> Result<String, AuthSetupError> {
    std::fs::read_to_string(path).map_err(|source| AuthSetupError::Unreadable { key, path: path.to_owned(), source })
}

//! Tokens against verifiers: every algorithm, attacks on the choice of algorithm, rotation, time, claims.

use std::path::PathBuf;

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use super::{AuthError, AuthSetupError, Identity, Verifier};
use crate::config::{Config, KeySource, PublicKey, Secret};

const RSA_PRIVATE: &str = include_str!("../../tests/keys/rsa.private.pem");
const RSA_PUBLIC: &str = include_str!("../../tests/keys/rsa.public.pem");
const P256_PRIVATE: &str = include_str!("../../tests/keys/p256.private.pem");
const P256_PUBLIC: &str = include_str!("../../tests/keys/p256.public.pem");
const P384_PRIVATE: &str = include_str!("../../tests/keys/p384.private.pem");
const P384_PUBLIC: &str = include_str!("../../tests/keys/p384.public.pem");
const ED_PRIVATE: &str = include_str!("../../tests/keys/ed25519.private.pem");
const ED_PUBLIC: &str = include_str!("../../tests/keys/ed25519.public.pem");

const NOW: u64 = 1_700_000_000;

fn secret(kid: Option<&str>, secret: &str) -> Secret {
    Secret { kid: kid.map(str::to_owned), secret: secret.to_owned() }
}

fn with_secret() -> Config {
    let mut config = Config::default();
    config.auth.secret = vec![secret(None, "top secret")];
    config
}

fn with_key(algorithm: Algorithm, pem: &str) -> Config {
    let mut config = Config::default();
    config.auth.keys = vec![PublicKey { kid: None, algorithm, source: KeySource::Pem(pem.to_owned()) }];
    config
}

fn claims() -> Value {
    json!({"sub": "alice", "exp": NOW + 60})
}

fn sign(algorithm: Algorithm, kid: Option<&str>, key: &EncodingKey, claims: &Value) -> String {
    let header = Header { kid: kid.map(str::to_owned), ..Header::new(algorithm) };
    jsonwebtoken::encode(&header, claims, key).expect("signed")
}

fn hs256(text: &str, claims: &Value) -> String {
    sign(Algorithm::HS256, None, &EncodingKey::from_secret(text.as_bytes()), claims)
}

/// What the configuration makes of a token with these claims, at `NOW`.
fn check(config: &Config, claims: &Value) -> Result<Identity, AuthError> {
    verifier(config).verify(&hs256("top secret", claims), NOW)
}

fn verifier(config: &Config) -> Verifier {
    Verifier::new(config).expect("verifier")
}

fn private_key(algorithm: Algorithm) -> EncodingKey {
    match algorithm {
        Algorithm::ES256 => EncodingKey::from_ec_pem(P256_PRIVATE.as_bytes()),
        Algorithm::ES384 => EncodingKey::from_ec_pem(P384_PRIVATE.as_bytes()),
        Algorithm::EdDSA => EncodingKey::from_ed_pem(ED_PRIVATE.as_bytes()),
        _ => EncodingKey::from_rsa_pem(RSA_PRIVATE.as_bytes()),
    }
    .expect("a private key")
}

const PUBLIC_KEY_ALGORITHMS: [(Algorithm, &str); 9] = [
    (Algorithm::RS256, RSA_PUBLIC),
    (Algorithm::RS384, RSA_PUBLIC),
    (Algorithm::RS512, RSA_PUBLIC),
    (Algorithm::PS256, RSA_PUBLIC),
    (Algorithm::PS384, RSA_PUBLIC),
    (Algorithm::PS512, RSA_PUBLIC),
    (Algorithm::ES256, P256_PUBLIC),
    (Algorithm::ES384, P384_PUBLIC),
    (Algorithm::EdDSA, ED_PUBLIC),
];

/// A file of this test's own, gone when dropped.
struct TempFile(PathBuf);

impl TempFile {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ringhub-{name}-{}", std::process::id()));
        std::fs::write(&path, text).expect("a temporary file");
        Self(path)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).expect("remove it");
    }
}

fn jwk(algorithm: Algorithm, kid: &str) -> Value {
    let mut jwk = Jwk::from_encoding_key(&private_key(algorithm), algorithm).expect("a JWK");
    jwk.common.key_id = Some(kid.to_owned());
    serde_json::to_value(&jwk).expect("JSON")
}

fn with_jwks(file: &TempFile) -> Config {
    let mut config = Config::default();
    config.auth.jwks = Some(file.0.clone());
    config
}

#[test]
fn secrets_verify_tokens_of_their_own_algorithm_only() {
    let algorithms = [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];
    for signed in algorithms {
        for accepted in algorithms {
            let mut config = with_secret();
            config.auth.algorithm = accepted;
            let token = sign(signed, None, &EncodingKey::from_secret(b"top secret"), &claims());
            let result = verifier(&config).verify(&token, NOW).map(|identity| identity.user_id);
            let expected = if signed == accepted { Ok("alice".to_owned()) } else { Err(AuthError::WrongAlgorithm) };
            assert_eq!(result, expected, "{signed:?} against {accepted:?}");
        }
    }
}

#[test]
fn public_keys_verify_tokens_of_their_own_algorithm_only() {
    for (signed, _) in PUBLIC_KEY_ALGORITHMS {
        let token = sign(signed, None, &private_key(signed), &claims());
        for (accepted, pem) in PUBLIC_KEY_ALGORITHMS {
            let result = verifier(&with_key(accepted, pem)).verify(&token, NOW).map(|identity| identity.user_id);
            let expected = if signed == accepted { Ok("alice".to_owned()) } else { Err(AuthError::WrongAlgorithm) };
            assert_eq!(result, expected, "{signed:?} against {accepted:?}");
        }
    }
}

#[test]
fn a_public_key_cannot_be_used_as_a_secret() {
    for (algorithm, pem) in PUBLIC_KEY_ALGORITHMS {
        let verifier = verifier(&with_key(algorithm, pem));
        for forged in [pem.as_bytes(), pem.trim().as_bytes()] {
            let token = sign(Algorithm::HS256, None, &EncodingKey::from_secret(forged), &claims());
            assert_eq!(verifier.verify(&token, NOW).map(drop), Err(AuthError::WrongAlgorithm), "{algorithm:?}");
        }
    }
}

#[test]
fn tokens_without_a_signature_are_refused() {
    let token = hs256("top secret", &claims());
    let parts: Vec<&str> = token.split('.').collect();
    // {"alg":"none","typ":"JWT"}, {"alg":"None","typ":"JWT"}, {"alg":"","typ":"JWT"}
    let none = [
        "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0",
        "eyJhbGciOiJOb25lIiwidHlwIjoiSldUIn0",
        "eyJhbGciOiIiLCJ0eXAiOiJKV1QifQ",
    ];
    let verifier = verifier(&with_secret());
    for header in none {
        for signature in ["", parts[2]] {
            let forged = format!("{header}.{}.{signature}", parts[1]);
            assert_eq!(verifier.verify(&forged, NOW).map(drop), Err(AuthError::Malformed));
        }
    }
    let stripped = format!("{}.{}.", parts[0], parts[1]);
    assert_eq!(verifier.verify(&stripped, NOW).map(drop), Err(AuthError::BadSignature));
}

#[test]
fn a_changed_token_is_refused_wherever_it_was_changed() {
    let verifier = verifier(&with_secret());
    let token = hs256("top secret", &claims());
    for index in 0..token.len() {
        let mut bytes = token.clone().into_bytes();
        bytes[index] = if bytes[index] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(bytes).expect("ASCII");
        // The last letter has bits that belong to no byte; a decoder may refuse or pass over them.
        if index + 1 < token.len() {
            assert!(verifier.verify(&changed, NOW).is_err(), "changed at {index}");
        }
        assert!(verifier.verify(&token[..index], NOW).is_err(), "cut at {index}");
    }
}

#[test]
fn what_is_no_token_is_refused_without_panic() {
    let verifier = verifier(&with_secret());
    for text in [
        "",
        ".",
        "..",
        "...",
        "a.b.c",
        "e30.e30.e30",
        "\u{1F600}.\u{1F600}.\u{1F600}",
        "eyJhbGciOiJIUzI1NiJ9..",
        "=.=.=",
    ] {
        assert!(verifier.verify(text, NOW).is_err(), "{text:?}");
    }
    assert_eq!(verifier.verify(&"a".repeat(1 << 20), NOW).map(drop), Err(AuthError::TooLong));
}

#[test]
fn critical_extensions_are_refused() {
    let header = Header { crit: Some(vec!["exp".to_owned()]), ..Header::new(Algorithm::HS256) };
    let token = jsonwebtoken::encode(&header, &claims(), &EncodingKey::from_secret(b"top secret")).expect("signed");
    assert_eq!(verifier(&with_secret()).verify(&token, NOW).map(drop), Err(AuthError::Malformed));
}

#[test]
fn secrets_are_rotated_by_kid() {
    let mut config = Config::default();
    config.auth.secret = vec![secret(Some("new"), "b"), secret(Some("old"), "a")];
    let verifier = verifier(&config);
    let token = |kid, text: &str| sign(Algorithm::HS256, kid, &EncodingKey::from_secret(text.as_bytes()), &claims());
    let verify = |token: String| verifier.verify(&token, NOW).map(drop);
    assert_eq!(verify(token(Some("old"), "a")), Ok(()));
    assert_eq!(verify(token(Some("new"), "b")), Ok(()));
    assert_eq!(verify(token(Some("new"), "a")), Err(AuthError::BadSignature), "the kid binds");
    assert_eq!(verify(token(Some("other"), "a")), Err(AuthError::UnknownKey));
    assert_eq!(verify(token(None, "a")), Ok(()), "without a kid each is tried");
    assert_eq!(verify(token(None, "c")), Err(AuthError::BadSignature));

    config.auth.secret.pop();
    let rotated = Verifier::new(&config).expect("verifier");
    assert_eq!(rotated.verify(&token(Some("old"), "a"), NOW).map(drop), Err(AuthError::UnknownKey));
}

#[test]
fn a_hub_without_keys_accepts_no_token() {
    let verifier = verifier(&Config::default());
    assert_eq!(verifier.verify(&hs256("", &claims()), NOW).map(drop), Err(AuthError::UnknownKey));
}

#[test]
fn expiry_and_start_are_checked_with_leeway_against_the_time_given() {
    let token = hs256("top secret", &json!({"sub": "alice", "exp": 1000, "nbf": 500}));
    let verify = |leeway_s, unix_s| {
        let mut config = with_secret();
        config.auth.leeway_s = leeway_s;
        verifier(&config).verify(&token, unix_s).map(|identity| identity.expires_at)
    };
    assert_eq!(verify(0, 999), Ok(Some(1000)));
    assert_eq!(verify(0, 1000), Err(AuthError::Expired));
    assert_eq!(verify(10, 1009), Ok(Some(1000)));
    assert_eq!(verify(10, 1010), Err(AuthError::Expired));
    assert_eq!(verify(0, 500), Ok(Some(1000)));
    assert_eq!(verify(0, 499), Err(AuthError::NotYet));
    assert_eq!(verify(10, 490), Ok(Some(1000)));
    assert_eq!(verify(10, 489), Err(AuthError::NotYet));
}

#[test]
fn dates_may_have_fractions_and_extremes() {
    let config = with_secret();
    let exp = |exp: Value| check(&config, &json!({"sub": "alice", "exp": exp})).map(|identity| identity.expires_at);
    assert_eq!(exp(json!(NOW as f64 + 60.5)), Ok(Some(NOW + 60)));
    assert_eq!(exp(json!(u64::MAX)), Ok(Some(u64::MAX)));
    assert_eq!(exp(json!(1e300)), Ok(Some(u64::MAX)));
    assert_eq!(exp(json!(-5)), Err(AuthError::Expired));
    assert_eq!(exp(json!("1700000060")), Err(AuthError::BadClaim("exp")));
    assert_eq!(exp(json!(null)), Err(AuthError::MissingClaim("exp")));
}

#[test]
fn tokens_without_end_are_accepted_only_when_configured() {
    let mut config = with_secret();
    let endless = json!({"sub": "alice"});
    assert_eq!(check(&config, &endless).map(drop), Err(AuthError::MissingClaim("exp")));
    config.auth.require_exp = false;
    assert_eq!(check(&config, &endless).map(|identity| identity.expires_at), Ok(None));
    let ended = json!({"sub": "alice", "exp": NOW - 60});
    assert_eq!(check(&config, &ended).map(drop), Err(AuthError::Expired), "an end that is there still counts");
}

#[test]
fn audience_and_issuer_are_checked_when_configured() {
    let mut config = with_secret();
    let with = |name: &str, value: Value| {
        let mut claims = claims();
        claims[name] = value;
        claims
    };
    assert!(check(&config, &with("aud", json!("anyone"))).is_ok());
    config.auth.audience = vec!["hub".to_owned(), "spare".to_owned()];
    assert!(check(&config, &with("aud", json!("hub"))).is_ok());
    assert!(check(&config, &with("aud", json!(["other", "spare"]))).is_ok());
    assert_eq!(check(&config, &with("aud", json!(["other"]))).map(drop), Err(AuthError::WrongAudience));
    assert_eq!(check(&config, &with("aud", json!([]))).map(drop), Err(AuthError::MissingClaim("aud")));
    assert_eq!(check(&config, &with("aud", json!(7))).map(drop), Err(AuthError::BadClaim("aud")));
    assert_eq!(check(&config, &claims()).map(drop), Err(AuthError::MissingClaim("aud")));

    let mut config = with_secret();
    config.auth.issuer = vec!["https://id.example".to_owned()];
    assert!(check(&config, &with("iss", json!("https://id.example"))).is_ok());
    assert_eq!(check(&config, &with("iss", json!("https://id.example/"))).map(drop), Err(AuthError::WrongIssuer));
    assert_eq!(check(&config, &with("iss", json!(["https://id.example"]))).map(drop), Err(AuthError::BadClaim("iss")));
    assert_eq!(check(&config, &claims()).map(drop), Err(AuthError::MissingClaim("iss")));
}

#[test]
fn the_user_id_is_a_short_text_without_control_characters() {
    let config = with_secret();
    let sub = |sub: Value| check(&config, &json!({"sub": sub, "exp": NOW + 60})).map(|identity| identity.user_id);
    assert_eq!(sub(json!("a".repeat(128))), Ok("a".repeat(128)));
    for wrong in [json!(""), json!("a".repeat(129)), json!("a\nb"), json!("a\u{0}"), json!(7), json!(["a"])] {
        assert_eq!(sub(wrong), Err(AuthError::BadClaim("sub")));
    }
    assert_eq!(sub(json!(null)), Err(AuthError::MissingClaim("sub")));
    assert_eq!(check(&config, &json!({"exp": NOW + 60})).map(drop), Err(AuthError::MissingClaim("sub")));
}

#[test]
fn roles_and_permissions_make_up_what_is_allowed() {
    let mut config = with_secret();
    config.roles.insert("reader".to_owned(), vec!["websocket:connect".to_owned(), "project:*:read".to_owned()]);
    let identity = |roles: Value, permissions: Value| {
        let claims =
            json!({"sub": "alice", "exp": NOW + 60, "name": "Alice", "roles": roles, "permissions": permissions});
        check(&config, &claims)
    };
    let alice = identity(json!(["reader", "unknown"]), json!(["project:42:write"])).expect("identity");
    assert_eq!(alice.name.as_deref(), Some("Alice"));
    assert_eq!(*alice.roles, ["reader".to_owned(), "unknown".to_owned()]);
    assert!(alice.permissions.may_connect());
    assert!(alice.permissions.allows("project:7:read") && alice.permissions.allows("project:42:write"));
    assert!(!alice.permissions.allows("project:7:write") && !alice.permissions.is_admin());
    assert!(identity(json!("reader"), json!(null)).expect("one role as text").permissions.may_connect());
    assert!(identity(json!("admin"), json!(null)).expect("built in").permissions.is_admin());
    assert!(!identity(json!(null), json!(null)).expect("nothing granted").permissions.may_connect());
    assert_eq!(identity(json!([1]), json!(null)).map(drop), Err(AuthError::BadClaim("roles")));
    assert_eq!(identity(json!(null), json!({"a": 1})).map(drop), Err(AuthError::BadClaim("permissions")));
}

#[test]
fn equal_grants_share_their_memory_and_the_table_of_them_stays_small() {
    let verifier = verifier(&with_secret());
    let identity = |permission: &str| {
        let claims = json!({"sub": "alice", "exp": NOW + 60, "roles": ["operator"], "permissions": [permission]});
        verifier.verify(&hs256("top secret", &claims), NOW).expect("identity")
    };
    let (one, two) = (identity("a:b"), identity("a:b"));
    assert!(std::sync::Arc::ptr_eq(&one.roles, &two.roles));
    for number in 0..3000 {
        assert!(identity(&format!("project:{number}:read")).permissions.allows(&format!("project:{number}:read")));
    }
    assert!(verifier.shared_sets() <= super::verifier::SHARED_SETS_MAX);
    assert!(std::sync::Arc::ptr_eq(&one.roles, &identity("a:b").roles), "sets in use are kept");
}

#[test]
fn a_jwks_file_gives_keys_by_kid_and_is_read_again_by_a_new_verifier() {
    let set = |keys: Vec<Value>| json!({"keys": keys}).to_string();
    let file = TempFile::new("jwks-rotation", &set(vec![jwk(Algorithm::RS256, "r"), jwk(Algorithm::ES256, "e")]));
    let config = with_jwks(&file);
    let token = |algorithm, kid| sign(algorithm, Some(kid), &private_key(algorithm), &claims());
    let verify = |token: &str| verifier(&config).verify(token, NOW).map(drop);
    assert_eq!(verify(&token(Algorithm::RS256, "r")), Ok(()));
    assert_eq!(verify(&token(Algorithm::ES256, "e")), Ok(()));
    assert_eq!(verify(&token(Algorithm::PS256, "r")), Err(AuthError::WrongAlgorithm));
    assert_eq!(verify(&token(Algorithm::ES256, "r")), Err(AuthError::WrongAlgorithm));
    assert_eq!(verify(&token(Algorithm::EdDSA, "d")), Err(AuthError::UnknownKey));

    std::fs::write(&file.0, set(vec![jwk(Algorithm::EdDSA, "d"), jwk(Algorithm::ES384, "e")])).expect("rewritten");
    assert_eq!(verify(&token(Algorithm::EdDSA, "d")), Ok(()));
    assert_eq!(verify(&token(Algorithm::ES384, "e")), Ok(()));
    assert_eq!(verify(&token(Algorithm::RS256, "r")), Err(AuthError::UnknownKey));
}

#[test]
fn jwks_keys_without_an_algorithm_get_the_usual_one_and_others_are_passed_over() {
    let mut unnamed = jwk(Algorithm::RS256, "r");
    unnamed.as_object_mut().expect("object").remove("alg");
    let mut encryption = jwk(Algorithm::ES256, "e");
    encryption["use"] = json!("enc");
    let unknown = json!({"kty": "XYZ", "kid": "x", "alg": "XY1"});
    let file = TempFile::new("jwks-usual", &json!({"keys": [unnamed, encryption, unknown]}).to_string());
    let verifier = verifier(&with_jwks(&file));
    let verify = |algorithm, kid| {
        verifier.verify(&sign(algorithm, Some(kid), &private_key(algorithm), &claims()), NOW).map(drop)
    };
    assert_eq!(verify(Algorithm::RS256, "r"), Ok(()));
    assert_eq!(verify(Algorithm::RS512, "r"), Err(AuthError::WrongAlgorithm));
    assert_eq!(verify(Algorithm::ES256, "e"), Err(AuthError::UnknownKey));
}

#[test]
fn unusable_keys_are_refused_at_start_with_their_reason() {
    let refusal = |config: &Config| Verifier::new(config).map(drop).expect_err("refused").to_string();
    let cases = [
        (Algorithm::RS256, RSA_PRIVATE, "private key"),
        (Algorithm::RS256, P256_PUBLIC, "no public key for RS256"),
        (Algorithm::ES256, P384_PUBLIC, "another curve"),
        (Algorithm::ES384, P256_PUBLIC, "another curve"),
        (Algorithm::EdDSA, RSA_PUBLIC, "no public key for EdDSA"),
        (Algorithm::ES256, "nonsense", "no public key"),
    ];
    for (algorithm, pem, expected) in cases {
        let refusal = refusal(&with_key(algorithm, pem));
        assert!(refusal.contains(expected), "{refusal}");
    }
    let oct = json!({"keys": [{"kty": "oct", "kid": "o", "alg": "HS256", "k": "c2VjcmV0"}]}).to_string();
    let (oct, empty, bad) = (
        TempFile::new("jwks-oct", &oct),
        TempFile::new("jwks-none", r#"{"keys":[]}"#),
        TempFile::new("jwks-bad", "[]"),
    );
    assert!(refusal(&with_jwks(&oct)).contains("auth.secret"));
    assert!(refusal(&with_jwks(&empty)).contains("no key"));
    assert!(refusal(&with_jwks(&bad)).contains("no JWKS"));
    let mut missing = Config::default();
    missing.auth.jwks = Some("/no/such/file".into());
    assert!(matches!(Verifier::new(&missing), Err(AuthSetupError::Unreadable { key: "auth.jwks", .. })));
}

#[test]
fn errors_say_nothing_of_the_token() {
    let token = hs256("another", &json!({"sub": "hunter2", "exp": NOW + 60}));
    let error = verifier(&with_secret()).verify(&token, NOW).expect_err("refused");
    let text = format!("{error} {error:?} {}", error.label());
    assert!(!text.contains("hunter2") && !token.split('.').any(|part| text.contains(part)), "{text}");
}

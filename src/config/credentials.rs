//! Secrets and public keys in the configuration.

use std::fmt;
use std::path::PathBuf;

use jsonwebtoken::Algorithm;

use super::value::{Input, OptionValue, article, is_bracketed, toml_array};

/// A shared secret, with the `kid` that tokens name it by.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    /// The key id, when there is one.
    pub kid: Option<String>,
    /// The secret itself.
    pub secret: String,
}

/// What stands where a secret would be shown.
pub const REDACTED: &str = "(set)";

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").field("kid", &self.kid).field("secret", &REDACTED).finish()
    }
}

/// A public key that tokens may be signed for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    /// The key id, when there is one.
    pub kid: Option<String>,
    /// The one algorithm this key is used with.
    pub algorithm: Algorithm,
    /// Where the key is.
    pub source: KeySource,
}

/// Where a public key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// In the configuration, as PEM.
    Pem(String),
    /// In a file, as PEM; read at start and on reload.
    File(PathBuf),
}

impl OptionValue for Vec<Secret> {
    const KIND: &'static str = "secret or list of secrets";

    fn read(input: Input<'_>, _unit: &str) -> Result<Self, String> {
        // A plain string is one secret, whatever is in it: a comma or a colon may belong to it.
        let items = match input {
            Input::Text("") => Vec::new(),
            Input::Toml(toml::Value::String(text)) if text.is_empty() => Vec::new(),
            Input::Text(text) if is_bracketed(text) => toml_array(text)?,
            Input::Text(text) => vec![toml::Value::String(text.to_owned())],
            Input::Toml(toml::Value::Array(items)) => items.clone(),
            Input::Toml(other) => vec![other.clone()],
        };
        let secrets: Vec<Secret> = items.into_iter().map(secret).collect::<Result<_, _>>()?;
        unique_kids(secrets.iter().filter_map(|secret| secret.kid.as_deref()))?;
        Ok(secrets)
    }

    fn show(&self) -> toml::Value {
        match self.as_slice() {
            [] => toml::Value::String(String::new()),
            secrets => {
                let shown = secrets.iter().map(|secret| match &secret.kid {
                    Some(kid) => toml::Value::Table(toml::Table::from_iter([
                        ("kid".to_owned(), toml::Value::String(kid.clone())),
                        ("secret".to_owned(), toml::Value::String(REDACTED.to_owned())),
                    ])),
                    None => toml::Value::String(REDACTED.to_owned()),
                });
                toml::Value::Array(shown.collect())
            }
        }
    }
}

impl OptionValue for Algorithm {
    const KIND: &'static str = "HS256, HS384 or HS512";

    fn read(input: Input<'_>, _unit: &str) -> Result<Self, String> {
        let text = input.text()?;
        match text.parse() {
            Ok(algorithm @ (Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512)) => Ok(algorithm),
            _ => Err(format!("{text:?}: expected {}", Self::KIND)),
        }
    }

    fn show(&self) -> toml::Value {
        toml::Value::String(format!("{self:?}"))
    }
}

impl OptionValue for Vec<PublicKey> {
    const KIND: &'static str = "list of keys";

    fn read(input: Input<'_>, _unit: &str) -> Result<Self, String> {
        let items = match input {
            Input::Toml(toml::Value::Array(items)) => items.clone(),
            Input::Text(text) if text.trim().is_empty() => Vec::new(),
            Input::Text(text) => toml_array(text)?,
            Input::Toml(other) => return Err(format!("expected a list of keys, found {}", article(other.type_str()))),
        };
        let keys: Self = items.into_iter().map(public_key).collect::<Result<_, _>>()?;
        unique_kids(keys.iter().filter_map(|key| key.kid.as_deref()))?;
        Ok(keys)
    }

    fn show(&self) -> toml::Value {
        let shown = self.iter().map(|key| {
            let mut table = toml::Table::new();
            if let Some(kid) = &key.kid {
                table.insert("kid".to_owned(), toml::Value::String(kid.clone()));
            }
            table.insert("algorithm".to_owned(), toml::Value::String(format!("{:?}", key.algorithm)));
            match &key.source {
                KeySource::Pem(pem) => table.insert("pem".to_owned(), toml::Value::String(pem.clone())),
                KeySource::File(path) => {
                    table.insert("pem_file".to_owned(), toml::Value::String(path.to_string_lossy().into_owned()))
                }
            };
            toml::Value::Table(table)
        });
        toml::Value::Array(shown.collect())
    }
}

/// One entry of `auth.secret`.
fn secret(value: toml::Value) -> Result<Secret, String> {
    let (kid, secret) = match value {
        toml::Value::String(secret) => (None, secret),
        toml::Value::Table(table) => {
            let [kid, secret] = fields(table, ["kid", "secret"])?;
            (kid, secret.ok_or("an entry with a kid needs a secret too")?)
        }
        other => {
            return Err(format!(
                "expected a string or a table with kid and secret, found {}",
                article(other.type_str())
            ));
        }
    };
    if secret.is_empty() {
        return Err("a secret in the list is empty".to_owned());
    }
    Ok(Secret { kid, secret })
}

/// One entry of `auth.keys`.
fn public_key(value: toml::Value) -> Result<PublicKey, String> {
    let toml::Value::Table(table) = value else {
        return Err(format!(
            "expected a table with algorithm and pem or pem_file, found {}",
            article(value.type_str())
        ));
    };
    let [kid, algorithm, pem, pem_file] = fields(table, ["kid", "algorithm", "pem", "pem_file"])?;
    let algorithm = algorithm.ok_or("a key needs an algorithm")?;
    let algorithm = match algorithm.parse() {
        Ok(Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512) => {
            return Err(format!("{algorithm} needs a secret, not a key: see auth.secret"));
        }
        Ok(algorithm) => algorithm,
        Err(_) => {
            return Err(format!(
                "{algorithm:?} is no algorithm: expected RS256 to RS512, PS256 to PS512, ES256, ES384 or EdDSA"
            ));
        }
    };
    let source = match (pem, pem_file) {
        (Some(pem), None) => KeySource::Pem(pem),
        (None, Some(path)) => KeySource::File(PathBuf::from(path)),
        _ => return Err("a key needs either pem or pem_file".to_owned()),
    };
    Ok(PublicKey { kid, algorithm, source })
}

/// Takes the named string fields out of a table; any other field is an error.
fn fields<const N: usize>(mut table: toml::Table, names: [&str; N]) -> Result<[Option<String>; N], String> {
    let mut found = [const { None }; N];
    for (slot, name) in found.iter_mut().zip(names) {
        *slot = match table.remove(name) {
            None => None,
            Some(toml::Value::String(text)) => Some(text),
            Some(other) => return Err(format!("{name}: expected a string, found {}", article(other.type_str()))),
        };
    }
    match table.keys().next() {
        Some(unknown) => Err(format!("unknown field {unknown:?}: expected {}", names.join(", "))),
        None => Ok(found),
    }
}

fn unique_kids<'a>(kids: impl Iterator<Item = &'a str>) -> Result<(), String> {
    let mut seen = std::collections::BTreeSet::new();
    for kid in kids {
        if !seen.insert(kid) {
            return Err(format!("kid {kid:?} is given twice"));
        }
    }
    Ok(())
}

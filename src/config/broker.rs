//! What the options of the broker accept.

use std::fmt;
use std::str::FromStr;

use hyper::Uri;

use super::credentials::REDACTED;
use super::log::word_values;
use super::value::{Input, OptionValue};

/// What carries rooms between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokerKind {
    /// Nothing: there is one node.
    Memory,
    /// Redis or Valkey.
    Redis,
}

/// How several addresses of Redis belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedisMode {
    /// They don't: each is a server with rooms of its own.
    Single,
    /// They are sentinels, which tell where the server is.
    Sentinel,
    /// They are nodes of one cluster.
    Cluster,
}

word_values!(BrokerKind, "memory or redis", Memory = "memory", Redis = "redis");
word_values!(RedisMode, "single, sentinel or cluster", Single = "single", Sentinel = "sentinel", Cluster = "cluster");

/// The address of a Redis server, without credentials.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RedisUrl(String);

impl RedisUrl {
    /// The URL.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the connection is encrypted.
    pub fn is_tls(&self) -> bool {
        self.0.starts_with("rediss://")
    }

    /// Whether it is a socket of this machine.
    pub fn is_unix(&self) -> bool {
        self.0.starts_with("unix://")
    }

    /// Whether it names a database other than the first.
    pub fn has_database(&self) -> bool {
        !self.is_unix() && self.0.splitn(4, '/').nth(3).is_some_and(|database| !matches!(database, "" | "0"))
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for RedisUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // What was meant to be secret is not repeated.
        if text.contains('@') {
            return Err(
                "a URL with a user or password, which would be shown wherever the option is; they have options \
                        of their own, broker.redis.username and broker.redis.password"
                    .to_owned(),
            );
        }
        let expected =
            || format!("{text:?}: expected redis://HOST[:PORT][/DATABASE], rediss://… for TLS, or unix:///PATH");
        if let Some(path) = text.strip_prefix("unix://") {
            let is_path = path.starts_with('/') && !path.contains(['?', '#']);
            return if is_path { Ok(RedisUrl(text.to_owned())) } else { Err(expected()) };
        }
        let uri: Uri = text.parse().map_err(|_| expected())?;
        let scheme_fits = matches!(uri.scheme_str(), Some("redis" | "rediss"));
        let host_fits = uri.host().is_some_and(|host| !host.is_empty());
        let database = uri.path().trim_start_matches('/');
        let database_fits = database.is_empty() || database.parse::<u16>().is_ok();
        if !scheme_fits || !host_fits || !database_fits || uri.query().is_some() || text.contains('#') {
            return Err(expected());
        }
        Ok(RedisUrl(text.to_owned()))
    }
}

impl OptionValue for Vec<RedisUrl> {
    const KIND: &'static str = "URL or list of URLs";

    fn read(input: Input<'_>, unit: &str) -> Result<Self, String> {
        let urls = Vec::<String>::read(input, unit)?;
        let urls = urls.iter().map(|url| url.parse()).collect::<Result<Vec<RedisUrl>, String>>()?;
        match urls.iter().enumerate().find(|(at, url)| urls[..*at].contains(url)) {
            Some((_, url)) => Err(format!("{url} is in the list twice")),
            None => Ok(urls),
        }
    }

    fn show(&self) -> toml::Value {
        toml::Value::Array(self.iter().map(|url| toml::Value::String(url.0.clone())).collect())
    }
}

/// A password that is shown to nobody.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// The password.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(REDACTED)
    }
}

impl OptionValue for Option<Password> {
    const KIND: &'static str = "secret";

    fn read(input: Input<'_>, _unit: &str) -> Result<Self, String> {
        // Spaces at its ends may belong to it.
        let text = match input {
            Input::Text(text) => text,
            Input::Toml(toml::Value::String(text)) => text,
            Input::Toml(_) => return Err("expected a string".to_owned()),
        };
        Ok((!text.is_empty()).then(|| Password(text.to_owned())))
    }

    fn show(&self) -> toml::Value {
        toml::Value::String(self.as_ref().map(|_| REDACTED.to_owned()).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_servers_and_carry_no_credentials() {
        for good in [
            "redis://127.0.0.1",
            "redis://redis:6380/3",
            "rediss://redis.example.com",
            "redis://[::1]:6379/",
            "unix:///run/redis/redis.sock",
        ] {
            assert_eq!(good.parse::<RedisUrl>().map(|url| url.to_string()).as_deref(), Ok(good));
        }
        for bad in [
            "",
            "redis",
            "redis://",
            "http://redis",
            "redis://h/x",
            "redis://h?protocol=resp3",
            "redis://h/0#insecure",
            "unix://run/redis.sock",
        ] {
            assert!(bad.parse::<RedisUrl>().is_err(), "{bad}");
        }
        let complaint = "redis://me:hunter2@redis".parse::<RedisUrl>().unwrap_err();
        assert!(complaint.contains("broker.redis.password") && !complaint.contains("hunter2"), "{complaint}");
    }

    #[test]
    fn a_database_is_told_from_none() {
        let url = |text: &str| text.parse::<RedisUrl>().expect("a URL");
        assert!(url("redis://h:1/3").has_database() && !url("redis://h:1/0").has_database());
        assert!(!url("redis://h").has_database() && !url("redis://h/").has_database());
        assert!(!url("unix:///a/b/c").has_database() && url("unix:///a").is_unix());
        assert!(url("rediss://h").is_tls() && !url("redis://h").is_tls());
    }

    #[test]
    fn a_password_is_shown_to_nobody() {
        let password = Option::<Password>::read(Input::Text(" hunter2 "), "").expect("any text");
        assert_eq!(password.as_ref().map(Password::reveal), Some(" hunter2 "));
        assert_eq!(password.show().as_str(), Some(REDACTED));
        assert!(!format!("{password:?}").contains("hunter2"));
        assert_eq!(Option::<Password>::read(Input::Text(""), ""), Ok(None));
    }
}

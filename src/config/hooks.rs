//! What the options of hooks accept: URLs, kinds of events, and what happens where nobody answers.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use hyper::Uri;

use super::log::word_values;
use super::value::{Input, OptionValue};

/// A URL that the hub calls: `http` or `https`, a host, and no credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookUrl(String);

/// The longest URL.
const URL_BYTES_MAX: usize = 2000;

impl HookUrl {
    /// The URL.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether what is sent there could be read on its way by others: plain HTTP to an address that is not this machine's
    /// or a private network's. A name without a dot is one of a private network.
    pub fn is_exposed(&self) -> bool {
        let Ok(uri) = self.0.parse::<Uri>() else { return false };
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let is_private = match host.parse::<IpAddr>().map(|address| address.to_canonical()) {
            Ok(IpAddr::V4(address)) => address.is_loopback() || address.is_private() || address.is_link_local(),
            Ok(IpAddr::V6(address)) => address.is_loopback() || (address.segments()[0] & 0xfe00) == 0xfc00,
            Err(_) => !host.contains('.') || host.ends_with(".internal") || host.ends_with(".local"),
        };
        uri.scheme_str() == Some("http") && !is_private
    }
}

impl fmt::Display for HookUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for HookUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // What was meant to be secret is not repeated.
        if text.split('/').nth(2).is_some_and(|authority| authority.contains('@')) {
            return Err("a URL with a user or password, which would be shown wherever the option is".to_owned());
        }
        let expected = || format!("{text:?}: expected http://HOST[:PORT]/PATH or https://HOST[:PORT]/PATH");
        let uri: Uri = text.parse().map_err(|_| expected())?;
        let scheme_fits = matches!(uri.scheme_str(), Some("http" | "https"));
        let host_fits = uri.host().is_some_and(|host| !host.is_empty());
        if !scheme_fits || !host_fits || text.len() > URL_BYTES_MAX || text.contains('#') {
            return Err(expected());
        }
        Ok(HookUrl(text.to_owned()))
    }
}

impl OptionValue for Option<HookUrl> {
    const KIND: &'static str = "URL";

    fn read(input: Input<'_>, _unit: &str) -> Result<Self, String> {
        let text = input.text()?;
        if text.is_empty() { Ok(None) } else { text.parse().map(Some) }
    }

    fn show(&self) -> toml::Value {
        toml::Value::String(self.as_ref().map(HookUrl::to_string).unwrap_or_default())
    }
}

/// What a backend can be told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookKind {
    /// A client was let in.
    Connect,
    /// It is gone.
    Disconnect,
    /// It sent a `message`.
    Message,
    /// A room has its first member.
    Occupied,
    /// The last member has gone.
    Vacated,
}

word_values!(
    HookKind,
    "connect, disconnect, message, occupied or vacated",
    Connect = "connect",
    Disconnect = "disconnect",
    Message = "message",
    Occupied = "occupied",
    Vacated = "vacated"
);

impl OptionValue for Vec<HookKind> {
    const KIND: &'static str = "list of connect, disconnect, message, occupied, vacated";

    fn read(input: Input<'_>, unit: &str) -> Result<Self, String> {
        let words = Vec::<String>::read(input, unit)?;
        words.iter().map(|word| HookKind::read(Input::Text(word), unit)).collect()
    }

    fn show(&self) -> toml::Value {
        toml::Value::Array(self.iter().map(HookKind::show).collect())
    }
}

/// What happens to a client where the backend that is to decide does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookFail {
    /// It is refused.
    Closed,
    /// It is let in.
    Open,
}

word_values!(HookFail, "closed or open", Closed = "closed", Open = "open");

/// Headers that carry credentials, or may.
pub(super) const CREDENTIAL_HEADERS: [&str; 5] =
    ["authorization", "cookie", "proxy-authorization", "sec-websocket-protocol", "sec-websocket-key"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_a_scheme_and_a_host_and_no_credentials() {
        for good in ["http://127.0.0.1:9000/hooks", "https://app.example.com/hooks?tenant=1", "http://[::1]:1/"] {
            assert_eq!(good.parse::<HookUrl>().map(|url| url.to_string()), Ok(good.to_owned()));
        }
        for bad in ["", "/hooks", "app:9000", "ftp://host/", "http://", "http:///x", "http://host/#part", "http://a b/"]
        {
            assert!(bad.parse::<HookUrl>().is_err(), "{bad}");
        }
        let error = "https://user:hunter2@host/".parse::<HookUrl>().expect_err("credentials");
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn plain_http_is_exposed_beyond_private_networks() {
        let exposed = |text: &str| text.parse::<HookUrl>().expect("a URL").is_exposed();
        for private in
            ["http://127.0.0.1/", "http://[::1]/", "http://10.1.2.3/", "http://[fd00::1]/", "http://backend:80/"]
        {
            assert!(!exposed(private), "{private}");
        }
        assert!(exposed("http://example.com/") && exposed("http://8.8.8.8/"));
        assert!(!exposed("https://example.com/"));
    }

    #[test]
    fn kinds_of_events_are_words() {
        let kinds = Vec::<HookKind>::read(Input::Text("connect, vacated"), "");
        assert_eq!(kinds, Ok(vec![HookKind::Connect, HookKind::Vacated]));
        assert!(Vec::<HookKind>::read(Input::Text("connect,other"), "").is_err());
    }
}

//! The WebSocket handshake (RFC 6455 §4.2) on a parsed head, and where it may carry its credentials.

use std::borrow::Cow;

use smallvec::SmallVec;

use super::{
    extensions::{self, Deflate, DeflateTerms},
    http::Head,
    refusal::Refusal,
};

/// The subprotocol of the native JSON protocol.
pub const PROTOCOL_JSON: &str = "ringhub.v1.json";

/// An offered subprotocol with this prefix is a credential: browsers can't set headers on a WebSocket.
const BEARER_PREFIX: &str = "bearer.";

/// Bounds the comparison of each offer with each; clients make two or three.
const PROTOCOLS_MAX: usize = 32;

/// A handshake that may be granted.
#[derive(Debug, Clone)]
pub struct Upgrade<'a> {
    /// `Sec-WebSocket-Key`, for [`switching_protocols`].
    pub key: &'a str,
    /// The offered subprotocols, the most wanted first. Names are case-sensitive.
    pub protocols: SmallVec<[&'a str; 4]>,
    /// The `Sec-WebSocket-Extensions` lines as sent.
    pub extensions: SmallVec<[&'a str; 1]>,
}

impl<'a> Head<'a> {
    /// Judges this head as an opening handshake.
    pub fn upgrade(&self) -> Result<Upgrade<'a>, Refusal> {
        // §4.2.1 item 1
        if self.method != "GET" || !self.http_1_1 {
            return Err(Refusal::bad_upgrade("a WebSocket handshake is a GET in HTTP/1.1"));
        }
        // Items 3 and 4; item 2, the Host, is checked for every request.
        if !self.wants_websocket() {
            return Err(Refusal::bad_upgrade(
                "the headers \"Upgrade: websocket\" and \"Connection: Upgrade\" are needed",
            ));
        }
        if self.body_expected() {
            return Err(Refusal::bad_upgrade("a WebSocket handshake has no body"));
        }
        // Item 6, before the key: another version may have another kind of key.
        match self.only("sec-websocket-version")? {
            None => return Err(Refusal::bad_upgrade("the header Sec-WebSocket-Version is missing")),
            Some("13") => {}
            Some(_) => return Err(Refusal::websocket_version()),
        }
        // Item 5
        let key = match self.only("sec-websocket-key")? {
            None => return Err(Refusal::bad_upgrade("the header Sec-WebSocket-Key is missing")),
            Some(key) if is_key(key) => key,
            Some(_) => return Err(Refusal::bad_upgrade("Sec-WebSocket-Key is not the base64 of 16 bytes")),
        };
        Ok(Upgrade {
            key,
            protocols: self.protocols()?,
            extensions: self.headers_all("sec-websocket-extensions").collect(),
        })
    }

    /// The one field of that name; several are a smuggling shape.
    fn only(&self, name: &str) -> Result<Option<&'a str>, Refusal> {
        let mut fields = self.fields(name);
        match (fields.next(), fields.next()) {
            (None, _) => Ok(None),
            (Some(value), None) => match std::str::from_utf8(value) {
                Ok(value) => Ok(Some(value)),
                Err(_) => Err(Refusal::bad_upgrade(format!("the header {name} is malformed"))),
            },
            (Some(_), Some(_)) => Err(Refusal::bad_upgrade(format!("the header {name} is there more than once"))),
        }
    }

    /// Item 8 with §4.1 item 10: tokens, none twice. Several lines are one list.
    fn protocols(&self) -> Result<SmallVec<[&'a str; 4]>, Refusal> {
        let mut protocols = SmallVec::new();
        for line in self.fields("sec-websocket-protocol") {
            for item in line.split(|byte| *byte == b',') {
                // RFC 9110 §5.6.1.2: empty list elements are to be ignored.
                match std::str::from_utf8(item.trim_ascii()) {
                    Ok("") => {}
                    Ok(token) if token.bytes().all(is_token_byte) && !protocols.contains(&token) => {
                        if protocols.len() == PROTOCOLS_MAX {
                            return Err(Refusal::bad_upgrade("too many subprotocols are offered"));
                        }
                        protocols.push(token);
                    }
                    _ => return Err(Refusal::bad_upgrade("the header Sec-WebSocket-Protocol is malformed")),
                }
            }
        }
        Ok(protocols)
    }
}

impl<'a> Upgrade<'a> {
    /// What is agreed on compression: nothing where there are no `terms`, or no offer that meets them.
    pub fn deflate(&self, terms: Option<DeflateTerms>) -> Result<Option<Deflate>, Refusal> {
        let Some(terms) = terms else { return Ok(None) };
        extensions::agree(self.extensions.iter().copied(), terms)
            .map_err(|_| Refusal::bad_upgrade("the header Sec-WebSocket-Extensions is malformed"))
    }

    /// The token of an offered `bearer.…`. It is never to be echoed as the chosen subprotocol.
    pub fn bearer(&self) -> Option<&'a str> {
        self.protocols.iter().find_map(|offered| offered.strip_prefix(BEARER_PREFIX)).filter(|token| !token.is_empty())
    }
}

/// The token of a request: the first of `Authorization: Bearer`, `?token=`, a subprotocol `bearer.…` and the cookie.
///
/// Nothing is said about its being valid. An error means that the query is not decodable.
pub fn bearer_token<'a>(
    head: &Head<'a>,
    upgrade: Option<&Upgrade<'a>>,
    cookie_name: Option<&str>,
) -> Result<Option<Cow<'a, str>>, Refusal> {
    if let Some(token) = head.headers_all("authorization").find_map(authorization_bearer) {
        return Ok(Some(Cow::Borrowed(token)));
    }
    if let Some(token) = head.query_param("token")?.filter(|token| !token.is_empty()) {
        return Ok(Some(token));
    }
    let token = upgrade.and_then(Upgrade::bearer).or_else(|| cookie_name.and_then(|name| head.cookie(name)));
    Ok(token.filter(|token| !token.is_empty()).map(Cow::Borrowed))
}

/// RFC 6750 §2.1; schemes are case-insensitive.
fn authorization_bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// Appends the answer that grants a handshake (§4.2.2); frames may follow it at once.
pub fn switching_protocols(key: &str, protocol: Option<&str>, deflate: Option<Deflate>, out: &mut Vec<u8>) {
    out.extend_from_slice(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ",
    );
    out.extend_from_slice(tungstenite::handshake::derive_accept_key(key.as_bytes()).as_bytes());
    if let Some(protocol) = protocol {
        out.extend_from_slice(b"\r\nSec-WebSocket-Protocol: ");
        out.extend_from_slice(protocol.as_bytes());
    }
    if let Some(deflate) = deflate {
        out.extend_from_slice(b"\r\nSec-WebSocket-Extensions: ");
        deflate.write(out);
    }
    out.extend_from_slice(b"\r\n\r\n");
}

/// Whether this is base64 of 16 bytes: 22 digits and two pads. The low bits of the last digit may be anything: the key
/// is only echoed in a hash, and some clients draw its digits rather than its bytes.
fn is_key(key: &str) -> bool {
    key.len() == 24
        && key.strip_suffix("==").is_some_and(|digits| {
            digits.bytes().all(|digit| digit.is_ascii_alphanumeric() || matches!(digit, b'+' | b'/'))
        })
}

/// RFC 9110 §5.6.2
pub(super) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::http::parse_head;

    /// The lines of RFC 6455 §1.3.
    const LINES: [&str; 6] = [
        "GET /chat HTTP/1.1",
        "Host: server.example.com",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
    ];

    fn head(lines: &[&str]) -> Head<'static> {
        let text = format!("{}\r\n\r\n", lines.join("\r\n")).leak();
        parse_head(text.as_bytes(), 16 * 1024).unwrap().unwrap()
    }

    /// The handshake of the RFC with the line that starts like `instead` replaced, or `instead` added.
    fn changed(instead: &str) -> Head<'static> {
        let name = instead.split([':', ' ']).next().unwrap();
        let mut lines: Vec<&str> = LINES.iter().copied().filter(|line| !line.starts_with(name)).collect();
        if instead.starts_with("GET") || instead.starts_with("POST") {
            lines.retain(|line| !line.starts_with("GET"));
            lines.insert(0, instead);
        } else if !instead.ends_with(": -") {
            lines.push(instead);
        }
        head(&lines)
    }

    #[test]
    fn the_handshake_of_the_rfc_gets_the_answer_of_the_rfc() {
        let upgrade = head(&LINES).upgrade().unwrap();
        let mut out = Vec::new();
        switching_protocols(upgrade.key, Some("chat"), None, &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: chat\r\n\r\n"
        );
        let mut out = Vec::new();
        switching_protocols(upgrade.key, None, None, &mut out);
        assert!(out.ends_with(b"xOo=\r\n\r\n"));
    }

    #[test]
    fn what_browsers_and_proxies_vary_is_accepted() {
        for line in [
            "Upgrade: WebSocket",
            "Upgrade: h2c, websocket",
            "Connection: keep-alive, upgrade",
            "Content-Length: 0",
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAB==",
        ] {
            assert!(changed(line).upgrade().is_ok(), "{line}");
        }
    }

    #[test]
    fn a_handshake_that_breaks_the_rfc_is_refused_with_400() {
        for line in [
            "POST /chat HTTP/1.1",
            "GET /chat HTTP/1.0",
            "Upgrade: -",
            "Upgrade: h2c",
            "Upgrade: websocket2",
            "Connection: -",
            "Connection: close",
            "Sec-WebSocket-Key: -",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQAA",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25!ZQ==",
            "Sec-WebSocket-Version: -",
            "Content-Length: 3",
            "Transfer-Encoding: chunked",
            "Sec-WebSocket-Protocol: a b",
            "Sec-WebSocket-Protocol: a, a",
            "Sec-WebSocket-Protocol: \"a\"",
        ] {
            let refusal = changed(line).upgrade().unwrap_err();
            assert_eq!((refusal.status, refusal.code), (400, "bad_upgrade"), "{line}");
        }
        for line in [LINES[4], LINES[5]] {
            let doubled: Vec<&str> = LINES.iter().copied().chain([line]).collect();
            assert_eq!(head(&doubled).upgrade().unwrap_err().status, 400, "{line} twice");
        }
    }

    #[test]
    fn another_version_is_told_the_right_one() {
        for version in ["8", "14", "013", "13, 8"] {
            assert_eq!(changed(&format!("Sec-WebSocket-Version: {version}")).upgrade().unwrap_err().status, 426);
        }
    }

    #[test]
    fn subprotocols_are_one_list_over_all_lines_in_the_client_s_order() {
        let mut lines = LINES.to_vec();
        lines.extend(["Sec-WebSocket-Protocol: bearer.aa.bb.cc,, ringhub.v1.json", "Sec-WebSocket-Protocol: other"]);
        let upgrade = head(&lines).upgrade().unwrap();
        assert_eq!(upgrade.protocols.as_slice(), ["bearer.aa.bb.cc", "ringhub.v1.json", "other"]);
        assert_eq!(upgrade.bearer(), Some("aa.bb.cc"));
    }

    #[test]
    fn compression_is_agreed_on_over_all_lines_and_told_in_the_answer() {
        let terms = Some(DeflateTerms { window_bits: 15, client_window_bits: 0 });
        let mut lines = LINES.to_vec();
        lines.extend([
            "Sec-WebSocket-Extensions: x-other",
            "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=10",
        ]);
        let head = head(&lines);
        let upgrade = head.upgrade().unwrap();
        assert_eq!(upgrade.deflate(None), Ok(None), "where it is off, nothing is looked at");
        let mut out = Vec::new();
        switching_protocols(upgrade.key, Some("chat"), upgrade.deflate(terms).unwrap(), &mut out);
        let answer = "Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; \
                      client_no_context_takeover; server_max_window_bits=10\r\n\r\n";
        assert!(out.ends_with(answer.as_bytes()), "{}", String::from_utf8_lossy(&out));
        let head = changed("Sec-WebSocket-Extensions: permessage-deflate; =");
        let upgrade = head.upgrade().unwrap();
        assert_eq!(upgrade.deflate(terms).unwrap_err().status, 400);
        assert_eq!(upgrade.deflate(None), Ok(None));
    }

    #[test]
    fn more_subprotocols_than_any_client_has_are_refused() {
        let offers: Vec<String> = (0..=PROTOCOLS_MAX).map(|n| format!("p{n}")).collect();
        let line = format!("Sec-WebSocket-Protocol: {}", offers[..PROTOCOLS_MAX].join(","));
        assert_eq!(changed(&line).upgrade().unwrap().protocols.len(), PROTOCOLS_MAX);
        let line = format!("Sec-WebSocket-Protocol: {}", offers.join(","));
        assert_eq!(changed(&line).upgrade().unwrap_err().status, 400);
    }

    #[test]
    fn the_first_credential_in_the_documented_order_counts() {
        let sources = [
            "Authorization: bearer  header",
            "GET /ws?x=1&token=query HTTP/1.1",
            "Sec-WebSocket-Protocol: bearer.protocol",
            "Cookie: x=1; auth=cookie",
        ];
        let expected = [Some("header"), Some("query"), Some("protocol"), Some("cookie"), None];
        for (from, expected) in expected.into_iter().enumerate() {
            let mut lines = LINES.to_vec();
            for source in &sources[from..] {
                if source.starts_with("GET") { lines[0] = source } else { lines.push(source) }
            }
            let head = head(&lines);
            let upgrade = head.upgrade().unwrap();
            assert_eq!(bearer_token(&head, Some(&upgrade), Some("auth")).unwrap().as_deref(), expected);
        }
    }

    #[test]
    fn other_schemes_and_empty_values_are_no_credentials() {
        for line in ["Authorization: Basic abc", "Authorization: Bearer", "GET /?token= HTTP/1.1", "Cookie: auth="] {
            assert_eq!(bearer_token(&changed(line), None, Some("auth")), Ok(None), "{line}");
        }
        assert_eq!(bearer_token(&changed("Cookie: auth=a"), None, None), Ok(None));
        assert_eq!(bearer_token(&changed("GET /?token=%f HTTP/1.1"), None, None).unwrap_err().status, 400);
    }
}

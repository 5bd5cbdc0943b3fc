//! The head of an HTTP/1.1 request, strictly.
//!
//! `httparse` reads the fields. What it lets pass for compatibility is checked here, because a proxy in front may read
//! the same bytes differently, and a difference is what request smuggling needs (RFC 9112 §11.2).
//! [`super::upgrade`] judges whether a head is a WebSocket handshake; [`super::refusal`] answers one that is not.

use std::borrow::Cow;

use smallvec::SmallVec;

use super::refusal::Refusal;

/// More header fields than this are refused: browsers behind several proxies send about thirty.
pub const HEADERS_MAX: usize = 64;

/// A method of this length or more is no HTTP; the longest registered one has 17 letters (`UPDATEREDIRECTREF`).
const METHOD_BYTES_END: usize = 32;

/// A request's head, borrowed from the receive buffer.
#[derive(Debug, Clone)]
pub struct Head<'a> {
    /// As sent; methods are case-sensitive.
    pub method: &'a str,
    /// The target's path, as sent (not percent-decoded); `*` for `OPTIONS *`.
    pub path: &'a str,
    /// What follows the path's `?`.
    pub query: Option<&'a str>,
    /// The fields in the order sent.
    pub headers: SmallVec<[httparse::Header<'a>; 16]>,
    /// The length of the head with its blank line: the body, if any, begins there.
    pub bytes: usize,
    /// HTTP/1.1, not 1.0.
    pub http_1_1: bool,
}

/// Reads a head from the first bytes of a connection; `None` while it is unfinished.
///
/// `limit` is the most bytes a head may have. Bytes that can't become a request are refused at once, however few.
pub fn parse_head(bytes: &[u8], limit: usize) -> Result<Option<Head<'_>>, Refusal> {
    // RFC 9112 §2.2: an empty line in front of the request line is to be ignored; older clients end bodies with one.
    let skipped = if bytes.starts_with(b"\r\n") { 2 } else { 0 };
    let request = bytes.get(skipped..).unwrap_or_default();
    let Some(end) = find_end(request, limit)? else {
        if bytes != b"\r" {
            refuse_early(request)?;
        }
        return Ok(None);
    };
    let head = request.get(..end).unwrap_or_default();
    check_method(head)?;
    let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut fields);
    match parsed.parse(head).map_err(refusal_of)? {
        httparse::Status::Complete(length) if length == head.len() => {}
        _ => return Err(Refusal::bad_request("the request head is malformed")),
    }
    let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(Refusal::bad_request("the request line is incomplete"));
    };
    let (path, query) = split_target(method, target)?;
    let head = Head {
        method,
        path,
        query,
        headers: SmallVec::from_slice(parsed.headers),
        bytes: skipped + end,
        http_1_1: version == 1,
    };
    head.check_host()?;
    head.check_framing()?;
    Ok(Some(head))
}

impl<'a> Head<'a> {
    /// The first field of that name, whatever its case, if it is UTF-8.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        self.headers_all(name).next()
    }

    /// All fields of that name, whatever its case, that are UTF-8.
    pub fn headers_all<'n>(&'n self, name: &'n str) -> impl Iterator<Item = &'a str> + 'n {
        self.fields(name).filter_map(|value| std::str::from_utf8(value).ok())
    }

    /// The value of a cookie (RFC 6265 §5.4), without the quotes it may stand in.
    pub fn cookie(&self, name: &str) -> Option<&'a str> {
        self.headers_all("cookie").flat_map(|line| line.split(';')).find_map(|pair| {
            let (key, value) = pair.split_once('=')?;
            let value = value.trim();
            let unquoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
            (key.trim() == name).then(|| unquoted.unwrap_or(value))
        })
    }

    /// The first query parameter of that name, decoded; an error if it is not decodable.
    pub fn query_param(&self, name: &str) -> Result<Option<Cow<'a, str>>, Refusal> {
        self.query_params(name).next().transpose()
    }

    /// All query parameters of that name, decoded.
    pub fn query_params<'n>(&self, name: &'n str) -> impl Iterator<Item = Result<Cow<'a, str>, Refusal>> + 'n
    where
        'a: 'n,
    {
        self.query.unwrap_or_default().split('&').filter_map(move |pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            if decode_form(key).is_none_or(|key| key != name) {
                return None;
            }
            let refusal = || Refusal::bad_request(format!("the query parameter {name} is not percent-encoded UTF-8"));
            Some(decode_form(value).ok_or_else(refusal))
        })
    }

    /// Whether this asks to become a WebSocket, rightly or not: then it is [`super::upgrade::Upgrade`]'s to judge.
    pub fn wants_websocket(&self) -> bool {
        self.has_token("connection", "upgrade") && self.has_token("upgrade", "websocket")
    }

    /// Whether a body follows the head.
    pub fn body_expected(&self) -> bool {
        self.fields("transfer-encoding").next().is_some()
            || self.fields("content-length").any(|value| value.iter().any(|digit| *digit != b'0'))
    }

    /// Whether a comma-separated list field has an element, whatever its case.
    pub fn has_token(&self, name: &str, token: &str) -> bool {
        self.headers_all(name).flat_map(|line| line.split(',')).any(|item| item.trim().eq_ignore_ascii_case(token))
    }

    /// The raw values of all fields of that name.
    pub(super) fn fields<'n>(&'n self, name: &'n str) -> impl Iterator<Item = &'a [u8]> + 'n {
        self.headers.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    }

    /// RFC 9112 §3.2: exactly one Host in HTTP/1.1, never several, and nothing in it that no host has.
    fn check_host(&self) -> Result<(), Refusal> {
        let mut hosts = self.fields("host");
        match (hosts.next(), hosts.next()) {
            (_, Some(_)) => Err(Refusal::bad_request("more than one Host header")),
            (None, None) if self.http_1_1 => Err(Refusal::bad_request("the Host header is missing")),
            (Some(host), None) if !host.iter().all(|byte| is_host_byte(*byte)) => {
                Err(Refusal::bad_request("the Host header is malformed"))
            }
            _ => Ok(()),
        }
    }

    /// RFC 9112 §6: where the body ends must be beyond doubt.
    fn check_framing(&self) -> Result<(), Refusal> {
        let mut lengths = self.fields("content-length");
        let mut codings = self.fields("transfer-encoding");
        let (length, coding) = (lengths.next(), codings.next());
        if length.is_some() && coding.is_some() {
            return Err(Refusal::bad_request("both Content-Length and Transfer-Encoding"));
        }
        if lengths.next().is_some() || codings.next().is_some() {
            return Err(Refusal::bad_request("more than one Content-Length or Transfer-Encoding header"));
        }
        if let Some(length) = length
            && (length.is_empty() || length.len() > 18 || !length.iter().all(u8::is_ascii_digit))
        {
            return Err(Refusal::bad_request("the Content-Length header is malformed"));
        }
        if let Some(coding) = coding
            && !(self.http_1_1 && coding.eq_ignore_ascii_case(b"chunked"))
        {
            return Err(Refusal::bad_request("the Transfer-Encoding header has a coding other than chunked"));
        }
        Ok(())
    }
}

/// Finds the blank line, and refuses what `httparse` would let pass on the way: line ends other than CR LF, NUL, and
/// lines that continue the one before.
///
/// It starts over with every arrival. That is quadratic in the number of pieces, but bounded by `limit`, and a sender of
/// single bytes costs far more in system calls.
fn find_end(request: &[u8], limit: usize) -> Result<Option<usize>, Refusal> {
    let window = request.get(..limit).unwrap_or(request);
    let mut line_start = 0;
    for at in memchr::memchr3_iter(b'\r', b'\n', 0, window) {
        match (window.get(at), window.get(at + 1)) {
            (Some(b'\r'), Some(b'\n') | None) => {}
            (Some(b'\r'), Some(_)) => return Err(Refusal::bad_request("carriage return inside a line")),
            (Some(b'\n'), next) => {
                if at == 0 || window.get(at - 1) != Some(&b'\r') {
                    return Err(Refusal::bad_request("line feed without carriage return"));
                }
                if at == line_start + 1 {
                    return Ok(Some(at + 1));
                }
                if let Some(b' ' | b'\t') = next {
                    return Err(Refusal::bad_request("folded header line"));
                }
                line_start = at + 1;
            }
            _ => return Err(Refusal::bad_request("NUL in the request head")),
        }
    }
    if request.len() >= limit { Err(Refusal::head_too_large(limit)) } else { Ok(None) }
}

/// Refuses the beginning of a head that no continuation can make right.
fn refuse_early(request: &[u8]) -> Result<(), Refusal> {
    let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
    httparse::Request::new(&mut fields).parse(request).map_err(refusal_of)?;
    check_method(request)
}

/// Without it, a stream that is no HTTP would be read up to the limit if it happened to consist of letters.
fn check_method(request: &[u8]) -> Result<(), Refusal> {
    match request.get(..METHOD_BYTES_END) {
        Some(start) if !start.contains(&b' ') => Err(Refusal::bad_request("this is no HTTP request")),
        _ => Ok(()),
    }
}

fn refusal_of(error: httparse::Error) -> Refusal {
    Refusal::bad_request(match error {
        httparse::Error::TooManyHeaders => return Refusal::too_many_headers(HEADERS_MAX),
        httparse::Error::HeaderName => "malformed header name",
        httparse::Error::HeaderValue => "malformed header value",
        httparse::Error::Version => "the HTTP version is neither 1.0 nor 1.1",
        httparse::Error::Token => "malformed request line",
        httparse::Error::NewLine | httparse::Error::Status => "malformed line end",
    })
}

/// Path and query of a request target (RFC 9112 §3.2); an absolute one loses its scheme and authority.
fn split_target<'a>(method: &str, target: &'a str) -> Result<(&'a str, Option<&'a str>), Refusal> {
    let refusal = || Refusal::bad_request("malformed request target");
    if !target.bytes().all(|byte| matches!(byte, b'!'..=b'~') && byte != b'#') {
        return Err(refusal());
    }
    if target == "*" && method == "OPTIONS" {
        return Ok((target, None));
    }
    let origin_form = if target.starts_with('/') {
        target
    } else {
        let (scheme, rest) = target.split_once("://").ok_or_else(refusal)?;
        if !["http", "https", "ws", "wss"].iter().any(|known| known.eq_ignore_ascii_case(scheme)) {
            return Err(refusal());
        }
        let authority_bytes = rest.find(['/', '?']).unwrap_or(rest.len());
        if authority_bytes == 0 {
            return Err(refusal());
        }
        rest.get(authority_bytes..).unwrap_or_default()
    };
    let (path, query) = match origin_form.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (origin_form, None),
    };
    Ok((if path.is_empty() { "/" } else { path }, query))
}

/// The characters of `uri-host [":" port]` (RFC 3986 §3.2.2).
fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~:[]%!$&'()*+,;=".contains(&byte)
}

/// Decodes one key or value as browsers encode it (`application/x-www-form-urlencoded`).
pub(super) fn decode_form(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains(['%', '+']) {
        return Some(Cow::Borrowed(text));
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => hex_digit(bytes.next()?)? << 4 | hex_digit(bytes.next()?)?,
            other => other,
        });
    }
    String::from_utf8(decoded).ok().map(Cow::Owned)
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 16 * 1024;

    /// What the upgrade of a browser behind nginx looks like.
    const BROWSER: &str = "GET /ws?token=a%2Bb&room=agent%3A1&room=b+c&flag HTTP/1.1\r\nHost: hub.example:8443\r\n\
        Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nCookie: a=1; session=\"s3cret\"; b=\r\n\
        X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-For: 5.6.7.8\r\n\r\n";

    fn parse(text: &str) -> Head<'_> {
        parse_head(text.as_bytes(), LIMIT).unwrap().unwrap()
    }

    fn status(text: impl AsRef<[u8]>) -> u16 {
        parse_head(text.as_ref(), LIMIT).unwrap_err().status
    }

    /// A request with more header lines.
    fn with(lines: &str) -> String {
        format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n")
    }

    #[test]
    fn a_head_is_read_with_its_path_query_cookies_and_lists() {
        let text = format!("{BROWSER}more");
        let head = parse(&text);
        assert_eq!((head.method, head.path, head.http_1_1, head.bytes), ("GET", "/ws", true, BROWSER.len()));
        assert_eq!(head.header("HOST"), Some("hub.example:8443"));
        assert_eq!(head.headers_all("x-forwarded-for").collect::<Vec<_>>(), ["1.2.3.4", "5.6.7.8"]);
        assert_eq!(head.cookie("session"), Some("s3cret"));
        assert_eq!(head.cookie("b"), Some(""));
        assert_eq!(head.cookie("c"), None);
        assert_eq!(head.query_param("token").unwrap().unwrap(), "a+b");
        assert_eq!(head.query_params("room").map(Result::unwrap).collect::<Vec<_>>(), ["agent:1", "b c"]);
        assert_eq!(head.query_param("flag").unwrap().unwrap(), "");
        assert_eq!(head.query_param("none"), Ok(None));
        assert!(head.wants_websocket());
        assert!(!head.body_expected());
    }

    #[test]
    fn a_head_is_unfinished_until_its_last_byte() {
        for text in [BROWSER, "\r\nGET / HTTP/1.0\r\n\r\n"] {
            for cut in 0..text.len() {
                assert!(parse_head(&text.as_bytes()[..cut], LIMIT).unwrap().is_none(), "cut at {cut}");
            }
            assert_eq!(parse(text).bytes, text.len());
        }
    }

    #[test]
    fn a_query_that_is_not_percent_encoded_utf8_is_an_error_only_for_who_asks() {
        let head = parse("GET /?a=%zz&b=%ff&c=%4&d=1 HTTP/1.1\r\nHost: a\r\n\r\n");
        for name in ["a", "b", "c"] {
            assert_eq!(head.query_param(name).unwrap_err().status, 400);
        }
        assert_eq!(head.query_param("d").unwrap().unwrap(), "1");
    }

    #[test]
    fn targets_are_taken_in_origin_and_absolute_form() {
        for (line, path, query) in [
            ("GET /a?b?c", "/a", Some("b?c")),
            ("GET http://hub.example/ws?x=1", "/ws", Some("x=1")),
            ("GET ws://hub.example", "/", None),
            ("GET http://hub.example?x=1", "/", Some("x=1")),
            ("OPTIONS *", "*", None),
        ] {
            let text = format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n");
            assert_eq!((parse(&text).path, parse(&text).query), (path, query), "{line}");
        }
        for line in ["GET *", "CONNECT a:80", "GET a", "GET ftp://a/", "GET http:///a", "GET /a#b", "GET /\u{e9}"] {
            assert_eq!(status(format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n")), 400, "{line}");
        }
    }

    #[test]
    fn smuggling_shapes_are_refused() {
        for lines in [
            "Content-Length: 1\r\nTransfer-Encoding: chunked",
            "Content-Length: 1\r\nContent-Length: 1",
            "Content-Length: +1",
            "Content-Length: 1, 1",
            "Content-Length:",
            "Content-Length: 99999999999999999999",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: xchunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "X: a\r\n folded",
            "X: a\r\n\tfolded",
            "X : a",
            "X\t: a",
            ": a",
            "X",
            "X: a\nY: b",
            "X: a\rY: b",
            "X: a\0",
            "X: \u{1}",
            "X\0: a",
            "Host: a",
            "host: b",
        ] {
            assert_eq!(status(with(lines)), 400, "{lines:?}");
        }
        assert_eq!(status("GET / HTTP/1.1\r\n folded\r\nHost: a\r\n\r\n"), 400);
        assert_eq!(status("GET / HTTP/1.1\nHost: a\n\n"), 400);
        assert_eq!(status("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), 400);
        assert_eq!(status("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), 400);
    }

    #[test]
    fn a_request_needs_one_proper_host() {
        assert_eq!(status("GET / HTTP/1.1\r\n\r\n"), 400);
        assert_eq!(status("GET / HTTP/1.1\r\nHost: a b\r\n\r\n"), 400);
        assert_eq!(status("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"), 400);
        assert!(!parse("GET / HTTP/1.0\r\n\r\n").http_1_1);
        assert_eq!(parse("GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n").header("host"), Some("[::1]:80"));
    }

    #[test]
    fn bodies_are_announced_by_length_or_coding() {
        assert!(parse(&with("Content-Length: 5")).body_expected());
        assert!(!parse(&with("Content-Length: 0")).body_expected());
        assert!(parse(&with("Transfer-Encoding: Chunked")).body_expected());
    }

    #[test]
    fn what_is_no_http_is_refused_at_once() {
        for garbage in [
            &b"\x16\x03"[..],
            b"\x16",
            b"\0",
            b"GET /\r\n",
            b"GET / HTTP/2",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\r\n\r\n",
            b"\rG",
            b"SSH-2.0-OpenSSH_9.9\r\n",
            b"{\"type\"",
            b"\x82\x85abcd",
            b"GETGETGETGETGETGETGETGETGETGETGE",
            b"GETGETGETGETGETGETGETGETGETGETGE / HTTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            assert_eq!(status(garbage), 400, "{}", garbage.escape_ascii());
        }
    }

    #[test]
    fn a_head_beyond_its_limits_is_refused_with_431() {
        let text = with(&format!("X: {}", "a".repeat(100)));
        assert!(parse_head(text.as_bytes(), text.len()).unwrap().is_some());
        assert_eq!(parse_head(text.as_bytes(), text.len() - 1).unwrap_err().status, 431);
        assert!(parse_head(&text.as_bytes()[..99], 100).unwrap().is_none());
        assert_eq!(parse_head(&text.as_bytes()[..100], 100).unwrap_err().status, 431);

        let lines = vec!["X: a"; HEADERS_MAX - 1].join("\r\n");
        assert_eq!(parse(&with(&lines)).headers.len(), HEADERS_MAX);
        assert_eq!(status(with(&format!("{lines}\r\nX: a"))), 431);
    }
}

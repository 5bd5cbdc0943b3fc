//! HTTP answers to handshakes that are not granted.
//!
//! The same shape as the HTTP API's errors: a status, and `{"error":{"code":"…","message":"…"}}`.

use std::borrow::Cow;

use super::codes::ErrorCode;
use super::json::write_string;

/// Why a request gets no WebSocket: its answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{status} {code}: {message}")]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// The machine-readable code, also the metric's label.
    pub code: &'static str,
    /// For people. It must not contain credentials.
    pub message: Cow<'static, str>,
    /// When to come back, with 429 and 503.
    pub retry_after_s: Option<u32>,
}

impl Refusal {
    fn new(status: u16, code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self { status, code, message: message.into(), retry_after_s: None }
    }

    /// 400: this is no proper HTTP request.
    pub fn bad_request(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(400, "bad_request", message)
    }

    /// 400, 403, 429…: for a reason that commands are refused for as well, by its code.
    pub fn of_command(status: u16, code: ErrorCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(status, code.as_str(), message)
    }

    /// 400: HTTP, but no proper WebSocket handshake.
    pub fn bad_upgrade(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(400, "bad_upgrade", message)
    }

    /// 401: no credentials, or they are not accepted.
    pub fn unauthorized(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(401, "unauthorized", message)
    }

    /// 403: a missing permission, or an Origin that is not allowed.
    pub fn forbidden(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(403, "forbidden", message)
    }

    /// 404: nothing is served at this path.
    pub fn not_found() -> Self {
        Self::new(404, "not_found", "nothing is served at this path")
    }

    /// 405: this path is there for GET only.
    pub fn only_get() -> Self {
        Self::new(405, "bad_method", "this path takes GET only")
    }

    /// 408: the head did not arrive in time.
    pub fn handshake_timeout() -> Self {
        Self::new(408, "timeout", "the request did not arrive in time")
    }

    /// 409: another connection holds the `client_id`.
    pub fn client_id_taken() -> Self {
        Self::new(409, "conflict", "this client_id is in use by another connection")
    }

    /// 409: a newer connection took the session over before this one was let in.
    pub fn session_taken_over() -> Self {
        Self::new(409, "conflict", "a newer connection took this session over")
    }

    /// 426: another version of the WebSocket protocol than 13.
    pub fn websocket_version() -> Self {
        Self::new(426, "bad_version", "the WebSocket version must be 13")
    }

    /// 429: too many connections or too fast.
    pub fn rate_limited(message: impl Into<Cow<'static, str>>, retry_after_s: u32) -> Self {
        Self { retry_after_s: Some(retry_after_s), ..Self::new(429, "rate_limited", message) }
    }

    /// 431: the head has more bytes than allowed.
    pub fn head_too_large(limit: usize) -> Self {
        Self::new(431, "too_large", format!("the request head is longer than {limit} bytes"))
    }

    /// 431: the head has more fields than allowed.
    pub fn too_many_headers(limit: usize) -> Self {
        Self::new(431, "too_large", format!("the request has more than {limit} headers"))
    }

    /// 500: the hub failed, not the client.
    pub fn internal() -> Self {
        Self::new(500, "internal", "internal error")
    }

    /// 503: at capacity or draining.
    pub fn unavailable(message: impl Into<Cow<'static, str>>, retry_after_s: u32) -> Self {
        Self { retry_after_s: Some(retry_after_s), ..Self::new(503, "unavailable", message) }
    }

    /// Appends the whole answer; the connection is to be closed after it.
    pub fn response(&self, out: &mut Vec<u8>) {
        let mut body = Vec::with_capacity(48 + self.code.len() + self.message.len());
        body.extend_from_slice(b"{\"error\":{\"code\":");
        write_string(&mut body, self.code);
        body.extend_from_slice(b",\"message\":");
        // It may quote the client.
        write_string(&mut body, &self.message);
        body.extend_from_slice(b"}}");

        begin_answer(out, self.status, body.len());
        let mut field = |name: &str, value: &str| {
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(value.as_bytes());
            out.extend_from_slice(b"\r\n");
        };
        match self.status {
            // RFC 6750 §3
            401 => field("WWW-Authenticate: ", "Bearer"),
            // RFC 9110 §15.5.6
            405 => field("Allow: ", "GET"),
            // RFC 9110 §15.5.22, RFC 6455 §4.2.2
            426 => {
                field("Upgrade: ", "websocket");
                field("Sec-WebSocket-Version: ", "13");
            }
            _ => {}
        }
        if let Some(seconds) = self.retry_after_s {
            field("Retry-After: ", itoa::Buffer::new().format(seconds));
        }
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(&body);
    }
}

/// Appends the head of an answer with a JSON body of that length, after which the connection is closed. Further fields and
/// the blank line are to follow.
pub(super) fn begin_answer(out: &mut Vec<u8>, status: u16, body_bytes: usize) {
    for part in [
        "HTTP/1.1 ",
        status_line(status),
        "\r\nContent-Type: application/json\r\nContent-Length: ",
        itoa::Buffer::new().format(body_bytes),
        // A refusal depends on credentials and on the moment.
        "\r\nConnection: close\r\nCache-Control: no-store\r\n",
    ] {
        out.extend_from_slice(part.as_bytes());
    }
}

fn status_line(status: u16) -> &'static str {
    match status {
        400 => "400 Bad Request",
        401 => "401 Unauthorized",
        403 => "403 Forbidden",
        404 => "404 Not Found",
        405 => "405 Method Not Allowed",
        408 => "408 Request Timeout",
        409 => "409 Conflict",
        426 => "426 Upgrade Required",
        429 => "429 Too Many Requests",
        431 => "431 Request Header Fields Too Large",
        503 => "503 Service Unavailable",
        _ => "500 Internal Server Error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(refusal: &Refusal) -> String {
        let mut out = Vec::new();
        refusal.response(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_refusal_is_a_whole_http_answer() {
        assert_eq!(
            response(&Refusal::not_found()),
            "HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 73\r\nConnection: close\r\n\
             Cache-Control: no-store\r\n\r\n\
             {\"error\":{\"code\":\"not_found\",\"message\":\"nothing is served at this path\"}}"
        );
    }

    #[test]
    fn each_status_brings_the_headers_its_rfc_asks_for() {
        assert!(response(&Refusal::unauthorized("no token")).contains("\r\nWWW-Authenticate: Bearer\r\n"));
        assert!(response(&Refusal::websocket_version()).contains("\r\nSec-WebSocket-Version: 13\r\n"));
        assert!(response(&Refusal::rate_limited("too fast", 3)).contains("\r\nRetry-After: 3\r\n"));
        assert!(response(&Refusal::unavailable("draining", 15)).contains("\r\nRetry-After: 15\r\n"));
    }

    #[test]
    fn every_constructor_has_its_own_status_line_and_a_correct_length() {
        let refusals = [
            Refusal::bad_request("a"),
            Refusal::bad_upgrade("b"),
            Refusal::unauthorized("c"),
            Refusal::forbidden("d"),
            Refusal::not_found(),
            Refusal::only_get(),
            Refusal::handshake_timeout(),
            Refusal::client_id_taken(),
            Refusal::websocket_version(),
            Refusal::rate_limited("e", 1),
            Refusal::head_too_large(16384),
            Refusal::too_many_headers(64),
            Refusal::internal(),
            Refusal::unavailable("f", 1),
        ];
        for refusal in refusals {
            let text = response(&refusal);
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {} ", refusal.status)), "{head}");
            assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())), "{head}");
            let body: serde_json::Value = serde_json::from_str(body).unwrap();
            assert_eq!(body["error"]["code"], refusal.code);
        }
    }

    #[test]
    fn a_message_that_quotes_the_client_stays_one_json_string() {
        let quoted = "say \"hi\"\\ \r\n\0\u{1f} κ";
        let text = response(&Refusal::bad_request(quoted));
        let (_, body) = text.split_once("\r\n\r\n").unwrap();
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["error"]["message"], quoted);
    }
}

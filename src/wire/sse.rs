//! Server-sent events (HTML standard, section 9.2): the answer's head, the framing of events, and the cursor in `id`.
//!
//! ```text
//! id: 5KvZc81Pm2W~2g.9hQw0~7        an event of a room: its id names a place in every room of the stream,
//! data: {"type":"pr.created",…}     its data is the JSON that native clients get
//!
//! event: gap                        what the hub itself says has a name, so that `onmessage` sees events only
//! id: 5KvZc81Pm2W~3x.9hQw0~7
//! data: {"type":"gap",…}
//!
//! :                                 a comment, so that nobody between takes the connection for dead
//! ```
//!
//! The cursor has for each room, in the order of the request, its epoch and the number of the last event given, in digits
//! of base 64 that need no escaping in headers and URLs.

/// A comment and nothing else. No blank line follows: some clients take one for the end of an event without data.
pub const COMMENT: &[u8] = b":\n";

/// A place in one room's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The log's epoch.
    pub epoch: u64,
    /// The last event given.
    pub seq: u64,
}

/// What the id of a room's events has around their number: the rest of the cursor. Written once for many events.
#[derive(Debug, PartialEq, Eq)]
pub struct AroundSeq {
    before: Vec<u8>,
    after: Vec<u8>,
}

/// Which page may read the answer (Fetch standard, section 3.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reader {
    /// Its origin.
    pub origin: Box<str>,
    /// Whether it may also have sent cookies.
    pub credentials: bool,
}

/// Appends the answer's head. `varies` where the answer depends on the page that asks. The body has no length: it ends
/// with the connection.
pub fn write_head(out: &mut Vec<u8>, varies: bool, reader: Option<&Reader>) {
    out.extend_from_slice(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store, no-transform\r\n\
          X-Accel-Buffering: no\r\nConnection: close\r\n",
    );
    if varies {
        out.extend_from_slice(b"Vary: origin\r\n");
    }
    if let Some(reader) = reader {
        out.extend_from_slice(b"Access-Control-Allow-Origin: ");
        out.extend_from_slice(reader.origin.as_bytes());
        out.extend_from_slice(b"\r\n");
        if reader.credentials {
            out.extend_from_slice(b"Access-Control-Allow-Credentials: true\r\n");
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends the time after which a client that lost the stream comes back. A line only: an event or a blank line follows.
pub fn write_retry(out: &mut Vec<u8>, retry_ms: u64) {
    out.extend_from_slice(b"retry: ");
    out.extend_from_slice(itoa::Buffer::new().format(retry_ms).as_bytes());
    out.push(b'\n');
}

/// Appends the line that names a place in all rooms. A line only.
pub fn write_id(out: &mut Vec<u8>, marks: impl IntoIterator<Item = Mark>) {
    out.extend_from_slice(b"id: ");
    write_marks(out, marks);
    out.push(b'\n');
}

/// Appends an event of a room.
pub fn write_event(out: &mut Vec<u8>, around: &AroundSeq, seq: u64, json: &[u8]) {
    out.extend_from_slice(&around.before);
    write_digits(out, seq);
    out.extend_from_slice(&around.after);
    write_data(out, json);
    out.push(b'\n');
}

/// Appends an event that no id stands for.
pub fn write_unmarked(out: &mut Vec<u8>, json: &[u8]) {
    write_data(out, json);
    out.push(b'\n');
}

/// Appends something that the hub itself says, under a name. An id may stand before it.
pub fn write_notice(out: &mut Vec<u8>, name: &str, json: &[u8]) {
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(name.as_bytes());
    out.push(b'\n');
    write_data(out, json);
    out.push(b'\n');
}

/// Appends the end of a stream: a `close` event with the code and reason that a WebSocket would be closed with.
pub fn write_close(out: &mut Vec<u8>, code: u16, reason: &str) {
    let mut json = Vec::with_capacity(32 + reason.len());
    json.extend_from_slice(b"{\"code\":");
    super::json::write_u64(&mut json, u64::from(code));
    json.extend_from_slice(b",\"reason\":");
    super::json::write_string(&mut json, reason);
    json.push(b'}');
    write_notice(out, "close", &json);
}

/// JSON may have line ends between its tokens, and those end a field here: each of its lines is a field of its own. The
/// client puts a line feed between them, which means the same.
fn write_data(out: &mut Vec<u8>, json: &[u8]) {
    const DATA: &[u8] = b"data: ";
    let mut rest = json;
    while let Some(end) = memchr::memchr2(b'\n', b'\r', rest) {
        let (line, behind) = rest.split_at(end);
        out.extend_from_slice(DATA);
        out.extend_from_slice(line);
        out.push(b'\n');
        rest = behind.strip_prefix(b"\r\n").or(behind.get(1..)).unwrap_or_default();
    }
    out.extend_from_slice(DATA);
    out.extend_from_slice(rest);
    out.push(b'\n');
}

impl AroundSeq {
    /// For the events of the room at that place among all.
    pub fn new(marks: impl IntoIterator<Item = Mark>, place: usize) -> AroundSeq {
        let (mut before, mut after) = (b"id: ".to_vec(), Vec::new());
        for (at, mark) in marks.into_iter().enumerate() {
            let out = if at <= place { &mut before } else { &mut after };
            if at > 0 {
                out.push(b'.');
            }
            write_digits(out, mark.epoch);
            out.push(b'~');
            if at != place {
                write_digits(out, mark.seq);
            }
        }
        after.push(b'\n');
        AroundSeq { before, after }
    }

    /// About how many bytes an event takes besides its JSON.
    pub fn bytes(&self) -> usize {
        self.before.len() + self.after.len() + DIGITS_MAX + "data: \n\n".len()
    }
}

/// Reads a cursor of `rooms` rooms; none where it is not one.
pub fn parse_cursor(text: &str, rooms: usize) -> Option<Vec<Mark>> {
    let mut marks = Vec::with_capacity(rooms.min(text.len()));
    for mark in text.split('.') {
        if marks.len() == rooms {
            return None;
        }
        let (epoch, seq) = mark.split_once('~')?;
        marks.push(Mark { epoch: parse_digits(epoch)?, seq: parse_digits(seq)? });
    }
    (marks.len() == rooms).then_some(marks)
}

fn write_marks(out: &mut Vec<u8>, marks: impl IntoIterator<Item = Mark>) {
    for (place, mark) in marks.into_iter().enumerate() {
        if place > 0 {
            out.push(b'.');
        }
        write_digits(out, mark.epoch);
        out.push(b'~');
        write_digits(out, mark.seq);
    }
}

/// 64 bits in digits of 6.
const DIGITS_MAX: usize = 11;
const DIGITS: &[u8; 64] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_";

/// The highest digit first; a zero is one digit.
fn write_digits(out: &mut Vec<u8>, number: u64) {
    let places = (64 - number.leading_zeros()).div_ceil(6).max(1);
    for place in (0..places).rev() {
        out.push(DIGITS[((number >> (6 * place)) & 63) as usize]);
    }
}

/// As they are written: no zeros in front, so that every number has one text.
fn parse_digits(text: &str) -> Option<u64> {
    if text.is_empty() || text.len() > DIGITS_MAX || (text.len() > 1 && text.starts_with('0')) {
        return None;
    }
    text.bytes().try_fold(0u64, |number, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'A'..=b'Z' => digit - b'A' + 10,
            b'a'..=b'z' => digit - b'a' + 36,
            b'-' => 62,
            b'_' => 63,
            _ => return None,
        };
        Some(number.checked_mul(64)? + u64::from(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(epoch: u64, seq: u64) -> Mark {
        Mark { epoch, seq }
    }

    fn data(json: &str) -> String {
        let mut out = Vec::new();
        write_data(&mut out, json.as_bytes());
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn a_cursor_is_read_as_it_was_written() {
        let numbers = [0, 1, 63, 64, 4095, 4096, u64::from(u32::MAX), u64::MAX - 1, u64::MAX];
        for (place, number) in numbers.into_iter().enumerate() {
            let marks: Vec<Mark> = numbers.iter().map(|other| mark(*other, number)).collect();
            let mut out = Vec::new();
            write_id(&mut out, marks.iter().copied());
            let text = String::from_utf8(out).expect("text");
            let text = text.strip_prefix("id: ").and_then(|text| text.strip_suffix('\n')).expect("a line");
            assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte)), "{text}");
            assert_eq!(parse_cursor(text, numbers.len()), Some(marks.clone()));
            assert_eq!(parse_cursor(text, numbers.len() + 1), None);
            assert_eq!(parse_cursor(text, numbers.len() - 1), None);
            // An event's id is the cursor with its own number in it.
            let (mut event, mut whole) = (Vec::new(), Vec::new());
            write_event(&mut event, &AroundSeq::new(marks.iter().copied(), place), 77, b"{}");
            let moved = marks.iter().enumerate().map(|(at, one)| if at == place { mark(one.epoch, 77) } else { *one });
            write_id(&mut whole, moved);
            whole.extend_from_slice(b"data: {}\n\n");
            assert_eq!(event, whole);
        }
    }

    #[test]
    fn what_is_no_cursor_is_not_read() {
        for text in ["", "~", "1~", "~1", "1", "1~2.", ".1~2", "1~2~3", "01~2", "1~02", "1~é", "1~2 ", "1~+2", "*~1"] {
            for rooms in 0..3 {
                assert_eq!(parse_cursor(text, rooms), None, "{text}");
            }
        }
        assert_eq!(parse_cursor("F__________~1", 1), Some(vec![mark(u64::MAX, 1)]));
        for beyond in ["G0000000000~1", "___________~1", "100000000000~1"] {
            assert_eq!(parse_cursor(beyond, 1), None, "more than 64 bits");
        }
        assert_eq!(parse_cursor(&"1~1.".repeat(100_000), 3), None);
    }

    #[test]
    fn line_ends_between_tokens_make_lines_of_their_own() {
        assert_eq!(data("{\"a\":1}"), "data: {\"a\":1}\n");
        assert_eq!(data("{\n\"a\":\r\n1\r}"), "data: {\ndata: \"a\":\ndata: 1\ndata: }\n");
        assert_eq!(data("[\r\r\n\n1]"), "data: [\ndata: \ndata: \ndata: 1]\n");
        assert_eq!(data(""), "data: \n");
    }

    #[test]
    fn a_close_says_what_a_close_frame_would() {
        let mut out = Vec::new();
        write_close(&mut out, 4401, "the \"token\"\nexpired");
        assert_eq!(
            String::from_utf8(out).expect("text"),
            "event: close\ndata: {\"code\":4401,\"reason\":\"the \\\"token\\\"\\nexpired\"}\n\n"
        );
    }

    #[test]
    fn the_head_lets_a_known_page_read_the_answer() {
        let head = |varies, reader: Option<&Reader>| {
            let mut out = Vec::new();
            write_head(&mut out, varies, reader);
            String::from_utf8(out).expect("text")
        };
        let plain = head(false, None);
        assert!(plain.starts_with("HTTP/1.1 200 OK\r\n") && plain.ends_with("\r\n\r\n") && !plain.contains("Vary"));
        assert!(!plain.contains("Content-Length"), "it ends with the connection");
        let mut reader = Reader { origin: "https://a.example".into(), credentials: true };
        assert!(head(true, Some(&reader)).contains(
            "Vary: origin\r\nAccess-Control-Allow-Origin: https://a.example\r\nAccess-Control-Allow-Credentials: true\r\n"
        ));
        reader.credentials = false;
        assert!(!head(true, Some(&reader)).contains("Credentials"));
    }
}

//! WebSockets over HTTP/2 (RFC 8441): whether a proxy announces them, and whether they work then.
//!
//! Browsers use an HTTP/2 connection that they have for WebSockets as well once its server has announced that it takes
//! them; a proxy that announces what it can't pass on breaks every page that has loaded anything before. Only what that
//! question needs of HTTP/2 is here: one request, none of whose fields is compressed, and the status of its answer.
//!
//! ```text
//! frame: length (24) | type (8) | flags (8) | reserved (1), stream (31) | payload
//! ```

use std::io::{self, ErrorKind, Read, Write};
use std::time::Instant;

use super::link::{Link, PATIENCE, Stream};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The size of frames that holds until another was agreed on (RFC 9113 §4.2).
const FRAME_BYTES_MAX: usize = 16 << 10;

const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const GO_AWAY: u8 = 7;
const FLAG_ACK: u8 = 1;
const FLAG_END_HEADERS: u8 = 4;
/// SETTINGS_ENABLE_CONNECT_PROTOCOL (RFC 8441 §3).
const ENABLE_CONNECT: u16 = 8;
/// The one request.
const STREAM: u32 = 1;

/// What became of WebSockets over HTTP/2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// They are not announced: browsers open an HTTP/1.1 connection for each WebSocket.
    NotAnnounced,
    /// They are announced, and one was opened.
    Works,
    /// They are announced, and this is what came of one.
    Broken(String),
}

/// Asks for a WebSocket over a connection on which HTTP/2 was chosen.
pub(super) fn probe(link: &Link, mut stream: Stream, token: Option<&str>) -> io::Result<Outcome> {
    let mut hello = PREFACE.to_vec();
    frame(&mut hello, SETTINGS, 0, 0, &[]);
    stream.write_all(&hello)?;
    stream.flush()?;
    let deadline = Instant::now() + PATIENCE;
    let mut announced = None;
    while Instant::now() < deadline {
        let frame = read_frame(&mut stream)?;
        match (frame.kind, announced) {
            // The server's first frame.
            (SETTINGS, None) if frame.flags & FLAG_ACK == 0 => {
                if !enables_connect(&frame.payload) {
                    return Ok(Outcome::NotAnnounced);
                }
                announced = Some(());
                let mut request = Vec::new();
                self::frame(&mut request, SETTINGS, FLAG_ACK, 0, &[]);
                self::frame(&mut request, HEADERS, FLAG_END_HEADERS, STREAM, &connect_fields(link, token));
                stream.write_all(&request)?;
                stream.flush()?;
            }
            (HEADERS, Some(())) if frame.stream == STREAM => {
                return Ok(match is_status_200(&frame.payload) {
                    true => Outcome::Works,
                    false => Outcome::Broken("it was refused".to_owned()),
                });
            }
            (RESET, Some(())) if frame.stream == STREAM => return Ok(Outcome::Broken("it was reset".to_owned())),
            (GO_AWAY, _) => return Ok(Outcome::Broken("the proxy ended the connection".to_owned())),
            _ => {}
        }
    }
    Err(ErrorKind::TimedOut.into())
}

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

fn read_frame(stream: &mut Stream) -> io::Result<Frame> {
    let mut head = [0; 9];
    stream.read_exact(&mut head)?;
    let [a, b, c, kind, flags, s, t, u, v] = head;
    let length = u32::from_be_bytes([0, a, b, c]) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(io::Error::new(ErrorKind::InvalidData, "a frame is longer than was agreed on"));
    }
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload)?;
    Ok(Frame { kind, flags, stream: u32::from_be_bytes([s & 0x7f, t, u, v]), payload })
}

fn enables_connect(settings: &[u8]) -> bool {
    let (entries, _) = settings.as_chunks::<6>();
    entries.iter().any(|[a, b, rest @ ..]| u16::from_be_bytes([*a, *b]) == ENABLE_CONNECT && *rest == [0, 0, 0, 1])
}

/// The fields of an extended CONNECT (RFC 8441 §4), each a literal that is not to be indexed (RFC 7541 §6.2.2).
fn connect_fields(link: &Link, token: Option<&str>) -> Vec<u8> {
    let mut out = Vec::new();
    let path = link.path("/ws");
    let scheme = "https";
    let bearer = token.map(|token| format!("Bearer {token}"));
    let fields = [
        (":method", Some("CONNECT")),
        (":protocol", Some("websocket")),
        (":scheme", Some(scheme)),
        (":path", Some(path.as_str())),
        (":authority", Some(link.authority())),
        ("sec-websocket-version", Some("13")),
        ("authorization", bearer.as_deref()),
    ];
    for (name, value) in fields {
        if let Some(value) = value {
            out.push(0);
            text(&mut out, name);
            text(&mut out, value);
        }
    }
    out
}

/// A string that is not Huffman-coded (RFC 7541 §5.2), its length as an integer with a prefix of seven bits (§5.1).
fn text(out: &mut Vec<u8>, text: &str) {
    const PREFIX: usize = 127;
    match text.len().checked_sub(PREFIX) {
        None => out.push(text.len() as u8),
        Some(mut rest) => {
            out.push(PREFIX as u8);
            while rest >= 128 {
                out.push((rest % 128) as u8 | 128);
                rest /= 128;
            }
            out.push(rest as u8);
        }
    }
    out.extend_from_slice(text.as_bytes());
}

/// Whether the first field is `:status: 200`, which is the eighth of the static table (RFC 7541, appendix A). Changes of
/// the dynamic table's size may stand before it.
fn is_status_200(fields: &[u8]) -> bool {
    fields.iter().find(|byte| **byte & 0b1110_0000 != 0b0010_0000) == Some(&0x88)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_announcement_is_found_among_other_settings() {
        assert!(!enables_connect(&[]));
        assert!(!enables_connect(&[0, 3, 0, 0, 0, 100, 0, 8, 0, 0, 0, 0]));
        assert!(enables_connect(&[0, 3, 0, 0, 0, 100, 0, 8, 0, 0, 0, 1]));
        assert!(!enables_connect(&[0, 8, 0, 0, 0]), "cut short");
    }

    #[test]
    fn long_fields_have_their_length_in_several_bytes() {
        let mut out = Vec::new();
        text(&mut out, &"a".repeat(1337 - 31 + 127));
        assert_eq!(out[..3], [127, 0b1001_1010, 0b0000_1010], "RFC 7541, C.1.2, with a longer prefix");
        let mut out = Vec::new();
        text(&mut out, &"a".repeat(127));
        assert_eq!(out[..2], [127, 0]);
    }

    #[test]
    fn a_status_is_found_behind_changes_of_the_table() {
        assert!(is_status_200(&[0x88]));
        assert!(is_status_200(&[0x20, 0x88]));
        assert!(!is_status_200(&[0x8d]));
        assert!(!is_status_200(&[]));
    }
}

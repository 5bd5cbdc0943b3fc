//! The native protocol, hub to client: the envelope `{"type","id","timestamp",…,"data"}` and its frame.

use super::codes::ErrorCode;
use super::json::{write_string, write_u64};
use super::native::Reference;
use super::ws::{self, Opcode};

/// What identifies one message of the hub: its id and when it was made, as text.
#[derive(Clone, Copy)]
pub struct Stamp {
    /// UUIDv7, 36 characters.
    pub id: [u8; 36],
    /// RFC 3339 UTC with milliseconds, 24 characters.
    pub timestamp: [u8; 24],
}

/// An event about to become a frame.
pub struct Event<'a> {
    /// The room's name; has no character that needs escaping.
    pub room: &'a str,
    /// Its type; likewise.
    pub kind: &'a str,
    /// Its number in the room.
    pub seq: u64,
    /// The publisher's data, spliced as it is.
    pub data: &'a [u8],
}

/// Where an event's data stands within what [`write_event`] appended.
pub struct Spliced {
    /// Of the frame, from its first byte.
    pub frame_bytes: usize,
    /// Of the data within the frame.
    pub data_at: usize,
}

/// Where an event's type begins in its payload.
pub const KIND_AT: usize = HEAD.len();
/// How far behind the end of an event's type its id begins.
pub const ID_BEHIND_KIND: usize = ID.len();

/// What every message of the hub begins with.
pub const HEAD: &[u8] = br#"{"type":""#;
const ID: &[u8] = br#"","id":""#;
const TIMESTAMP: &[u8] = br#"","timestamp":""#;
const ROOM: &[u8] = br#"","room":""#;
const SEQ: &[u8] = br#"","seq":"#;
const DATA: &[u8] = br#","data":"#;
const GAP_ROOM: &[u8] = br#"{"room":"#;
const GAP_FROM: &[u8] = br#","from_seq":"#;
const GAP_EPOCH: &[u8] = b",\"epoch\":";

/// Appends an event as a whole text frame; every native subscriber gets these bytes.
pub fn write_event(out: &mut Vec<u8>, stamp: &Stamp, event: &Event<'_>) -> Spliced {
    let mut digits = itoa::Buffer::new();
    let seq = digits.format(event.seq).as_bytes();
    let payload = payload_bytes(event);
    let before = payload - event.data.len() - 1;
    let start = out.len();
    out.reserve(payload + 10);
    ws::write_header(out, Opcode::Text, payload);
    let data_at = out.len() - start + before;
    for part in [
        HEAD,
        event.kind.as_bytes(),
        ID,
        &stamp.id,
        TIMESTAMP,
        &stamp.timestamp,
        ROOM,
        event.room.as_bytes(),
        SEQ,
        seq,
        DATA,
        event.data,
        b"}",
    ] {
        out.extend_from_slice(part);
    }
    Spliced { frame_bytes: out.len() - start, data_at }
}

/// The room and number of an event, by its payload as [`write_event`] writes it; none for anything else.
pub fn place_of(payload: &[u8]) -> Option<(&str, u64)> {
    let rest = payload.strip_prefix(HEAD)?;
    let rest = rest.get(memchr::memchr(b'"', rest)?..)?.strip_prefix(ID)?.get(36..)?;
    let rest = rest.strip_prefix(TIMESTAMP)?.get(24..)?.strip_prefix(ROOM)?;
    let (room, rest) = rest.split_at_checked(memchr::memchr(b'"', rest)?)?;
    let rest = rest.strip_prefix(SEQ)?;
    let (seq, _) = rest.split_at_checked(memchr::memchr(b',', rest)?)?;
    Some((std::str::from_utf8(room).ok()?, std::str::from_utf8(seq).ok()?.parse().ok()?))
}

/// Appends what `gap` says. A number is null where it can't be known.
///
/// Where the log is `another` one than before, its epoch is told, and its events from `from_seq` to `to_seq` are missing: none
/// of them where the latter is smaller.
pub fn write_gap(
    payload: &mut Vec<u8>,
    room: &str,
    (from_seq, to_seq): (Option<u64>, Option<u64>),
    reason: &str,
    another: Option<&str>,
) {
    let write_seq = |payload: &mut Vec<u8>, seq: Option<u64>| match seq {
        Some(seq) => write_u64(payload, seq),
        None => payload.extend_from_slice(b"null"),
    };
    payload.extend_from_slice(GAP_ROOM);
    write_string(payload, room);
    payload.extend_from_slice(GAP_FROM);
    write_seq(payload, from_seq);
    payload.extend_from_slice(b",\"to_seq\":");
    write_seq(payload, to_seq);
    payload.extend_from_slice(b",\"reason\":");
    write_string(payload, reason);
    if let Some(epoch) = another {
        payload.extend_from_slice(GAP_EPOCH);
        write_string(payload, epoch);
    }
    payload.push(b'}');
}

/// The room of a gap and the first event that is missing, none where the log is another one from there on, by its payload as
/// [`begin`] and [`write_gap`] write it; none for anything else, and where the event can't be known.
pub fn gap_of(payload: &[u8]) -> Option<(&str, Option<u64>)> {
    let rest = payload.strip_prefix(HEAD)?.strip_prefix(b"gap")?.strip_prefix(ID)?.get(36..)?;
    let rest = rest.strip_prefix(TIMESTAMP)?.get(24..)?.strip_prefix(b"\"")?.strip_prefix(DATA)?;
    let rest = rest.strip_prefix(GAP_ROOM)?.strip_prefix(b"\"")?;
    let (room, rest) = rest.split_at_checked(memchr::memchr(b'"', rest)?)?;
    let rest = rest.strip_prefix(b"\"")?.strip_prefix(GAP_FROM)?;
    let (seq, rest) = rest.split_at_checked(memchr::memchr(b',', rest)?)?;
    let seq = std::str::from_utf8(seq).ok()?.parse().ok()?;
    let is_another = memchr::memmem::find(rest, GAP_EPOCH).is_some();
    Some((std::str::from_utf8(room).ok()?, (!is_another).then_some(seq)))
}

/// The length of an event's payload, header not counted.
pub fn payload_bytes(event: &Event<'_>) -> usize {
    let fixed = HEAD.len() + ID.len() + 36 + TIMESTAMP.len() + 24 + ROOM.len() + SEQ.len() + DATA.len() + 1;
    let digits = event.seq.checked_ilog10().unwrap_or(0) as usize + 1;
    fixed + event.kind.len() + event.room.len() + digits + event.data.len()
}

/// Begins an answer's payload: `{"type":…,"id":…,"timestamp":…,"ref":…,"data":`; the caller appends the data and [`finish`].
pub fn begin(payload: &mut Vec<u8>, kind: &str, stamp: &Stamp, reference: Option<&Reference>) {
    payload.clear();
    for part in [HEAD, kind.as_bytes(), ID, &stamp.id, TIMESTAMP, &stamp.timestamp, b"\""] {
        payload.extend_from_slice(part);
    }
    if let Some(reference) = reference {
        payload.extend_from_slice(b",\"ref\":");
        write_reference(payload, reference);
    }
    payload.extend_from_slice(DATA);
}

/// Ends the payload that [`begin`] began and appends it to `out` as a text frame.
pub fn finish(payload: &mut Vec<u8>, out: &mut Vec<u8>) {
    payload.push(b'}');
    ws::write_header(out, Opcode::Text, payload.len());
    out.extend_from_slice(payload);
}

/// Appends `{"code":…,"message":…,"details":…}`; `retry_after_ms` is given with rate limits.
pub fn write_error_data(payload: &mut Vec<u8>, code: ErrorCode, message: &str, retry_after_ms: Option<u64>) {
    let write = |payload: &mut Vec<u8>| {
        if let Some(ms) = retry_after_ms {
            payload.extend_from_slice(b"\"retry_after_ms\":");
            write_u64(payload, ms);
        }
    };
    write_error_details(payload, code, message, write);
    if retry_after_ms.is_some() {
        payload.pop();
        payload.push(b',');
        write(payload);
        payload.push(b'}');
    }
}

/// Appends `{"code":…,"message":…,"details":{…}}`; `write` appends the members of the details.
pub fn write_error_details(payload: &mut Vec<u8>, code: ErrorCode, message: &str, write: impl FnOnce(&mut Vec<u8>)) {
    payload.extend_from_slice(b"{\"code\":\"");
    payload.extend_from_slice(code.as_str().as_bytes());
    payload.extend_from_slice(b"\",\"message\":");
    write_string(payload, message);
    payload.extend_from_slice(b",\"details\":{");
    write(payload);
    payload.extend_from_slice(b"}}");
}

fn write_reference(out: &mut Vec<u8>, reference: &Reference) {
    match reference {
        Reference::Text(text) => write_string(out, text),
        Reference::Number(number) => out.extend_from_slice(itoa::Buffer::new().format(*number).as_bytes()),
    }
}

/// Formats milliseconds since 1970 as `2026-01-02T03:04:05.678Z`; years after 9999 stay at its end.
pub fn rfc3339(unix_ms: u64) -> [u8; 24] {
    const LAST_MS: u64 = 253_402_300_799_999;
    let unix_ms = unix_ms.min(LAST_MS);
    let (days, in_day) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    // Days to civil date after Howard Hinnant's chrono paper: eras of 400 years beginning in March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let mut text = *b"0000-00-00T00:00:00.000Z";
    let mut put = |at: usize, digits: usize, mut number: u64| {
        for place in text.iter_mut().skip(at).take(digits).rev() {
            *place = b'0' + (number % 10) as u8;
            number /= 10;
        }
    };
    put(0, 4, year);
    put(5, 2, month);
    put(8, 2, day);
    put(11, 2, in_day / 3_600_000);
    put(14, 2, in_day / 60_000 % 60);
    put(17, 2, in_day / 1_000 % 60);
    put(20, 3, in_day % 1_000);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_the_calendars() {
        use time::format_description::well_known::Rfc3339;
        for unix_ms in [
            0,
            1,
            951_782_399_999,
            951_782_400_000,
            1_709_210_096_789,
            1_767_225_599_999,
            4_107_542_400_000,
            253_402_300_799_999,
        ] {
            let nanos = i128::from(unix_ms) * 1_000_000;
            let expected = time::OffsetDateTime::from_unix_timestamp_nanos(nanos).expect("in range");
            let text = rfc3339(unix_ms);
            let text = std::str::from_utf8(&text).expect("ascii");
            assert_eq!(time::OffsetDateTime::parse(text, &Rfc3339).expect("valid"), expected, "{text}");
        }
    }

    #[test]
    fn an_event_is_one_frame_with_its_data_spliced() {
        let stamp = Stamp { id: [b'i'; 36], timestamp: rfc3339(0) };
        let data = br#"{"x":"\u0041"}"#;
        let mut out = b"before".to_vec();
        let event = Event { room: "project:1", kind: "a.b", seq: 42, data };
        let spliced = write_event(&mut out, &stamp, &event);
        assert_eq!(out.len(), 6 + spliced.frame_bytes);
        assert_eq!(&out[6 + spliced.data_at..][..data.len()], data);
        assert_eq!(&out[6..10], [0x81, 126, 0, (spliced.frame_bytes - 4) as u8]);
        let value: serde_json::Value = serde_json::from_slice(&out[10..]).expect("json");
        assert_eq!(value["seq"], 42);
        assert_eq!(value["room"], "project:1");
        assert_eq!(value["data"]["x"], "A");
    }

    #[test]
    fn an_answer_carries_its_reference_escaped() {
        let stamp = Stamp { id: [b'i'; 36], timestamp: rfc3339(0) };
        let (mut payload, mut out) = (Vec::new(), Vec::new());
        begin(&mut payload, "error", &stamp, Some(&Reference::Text("a\"b".into())));
        write_error_data(&mut payload, ErrorCode::RateLimited, "slow\ndown", Some(20));
        finish(&mut payload, &mut out);
        let value: serde_json::Value = serde_json::from_slice(&payload).expect("json");
        assert_eq!(value["ref"], "a\"b");
        assert_eq!(value["data"]["retry_after_ms"], 20);
        assert_eq!(out.len(), payload.len() + 4);
    }

    #[test]
    fn a_room_and_number_are_read_from_events_and_gaps_and_from_nothing_else() {
        let stamp = Stamp { id: [b'i'; 36], timestamp: rfc3339(0) };
        let payload = |room: &str, kind: &str, seq, data: &str| {
            let mut out = Vec::new();
            write_event(&mut out, &stamp, &Event { room, kind, seq, data: data.as_bytes() });
            out.split_off(ws::header_bytes_of(&out))
        };
        for (room, kind, seq) in [("a:1", "a.b", 1), ("a", "gap", 9_007_199_254_740_991), ("a:b:c", "x", u64::MAX)] {
            let event = payload(room, kind, seq, "{\"seq\":3}");
            assert_eq!((place_of(&event), gap_of(&event)), (Some((room, seq)), None));
            assert_eq!(place_of(&event[1..]), None);
        }
        let gap = |from_seq, another| {
            let mut out = Vec::new();
            begin(&mut out, "gap", &stamp, None);
            write_gap(&mut out, "a:1", (from_seq, None), "slow", another);
            [&out[..], b"}"].concat()
        };
        assert_eq!((gap_of(&gap(Some(40), None)), place_of(&gap(Some(40), None))), (Some(("a:1", Some(40))), None));
        assert_eq!(gap_of(&gap(Some(1), Some("e"))), Some(("a:1", None)), "nothing before it says where to go on");
        assert_eq!(gap_of(&gap(None, None)), None, "from where on is not known");
        // What answers a command is no event, whatever its data looks like.
        for kind in ["subscribed", "gap"] {
            let mut answer = Vec::new();
            begin(&mut answer, kind, &stamp, Some(&Reference::Number(1)));
            write_gap(&mut answer, "a:1", (Some(1), Some(2)), "slow", None);
            assert_eq!((place_of(&answer), gap_of(&answer)), (None, None));
        }
        let whole = [payload("a:1", "a.b", 12, "{}"), gap(Some(40), None)];
        for cut in whole.iter().flat_map(|whole| (0..whole.len()).map(|end| &whole[..end])) {
            let _ = (place_of(cut), gap_of(cut));
        }
        assert_eq!((place_of(b""), gap_of(b"")), (None, None));
    }
}

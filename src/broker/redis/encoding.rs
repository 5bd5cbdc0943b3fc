//! Events and messages as they are in Redis.
//!
//! ```text
//! message   EPOCH FIRST COUNT PREVIOUS event event …       PREVIOUS: the id of the event before FIRST, or -
//! event     36:ID,13:UNIX_MS,4:TYPE,3:KEY,0:,7:{"a":1},    netstrings; the fifth: NODE SHARD SLOT GENERATION, or nothing
//! ```
//!
//! Netstrings need no escaping and can be written by hand in any language; the data is never looked into on its way. What
//! is read may come from any program, so that it is checked as what clients send is: an event that can't be passed on keeps
//! its number and goes as [`UNREADABLE`].

use std::io::Write as _;

use bytes::Bytes;

use crate::hub::batch::Address;
use crate::hub::brokered::{BrokeredEvent, EventKey, Numbered, Numbers, Origin};
use crate::hub::name::ShardId;
use crate::ring::ConnKey;
use crate::wire::json::Scratch;

/// The type of an event whose bytes are none that could be passed on; its data is `null`.
pub const UNREADABLE: &str = "broker.unreadable";

/// An id: a UUID as text.
pub type EventId = [u8; 36];

/// The id of no event.
pub const NO_ID: EventId = [0; 36];

/// What an event's fields have around them: six lengths, colons and commas. None has fewer bytes.
const EVENT_BYTES_MIN: usize = 6 * 3;

/// The longest type of an event.
const KIND_BYTES_MAX: usize = 256;

/// What is published in a room's channel, and is an entry of its log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The log's epoch when it was published.
    pub epoch: u64,
    /// The number of the first event. Where there are none: the first number that was not cleared.
    pub first_seq: u64,
    /// The id of the event before; [`NO_ID`] where there is none.
    pub previous: EventId,
    /// The events.
    pub events: Vec<BrokeredEvent>,
}

/// Reads what is in Redis.
pub struct Reader {
    scratch: Scratch,
    copy: Vec<u8>,
    unreadable: u64,
}

impl Message {
    /// The number of the last event; that before the first where there are none.
    pub fn last_seq(&self) -> u64 {
        self.first_seq + self.events.len() as u64 - 1
    }

    /// The id of the last event.
    pub fn last_id(&self) -> EventId {
        self.events.last().map_or(self.previous, |event| event.id)
    }
}

/// Writes an event.
pub fn write_event(out: &mut Vec<u8>, event: &BrokeredEvent) {
    netstring(out, &event.id);
    let mut digits = itoa::Buffer::new();
    netstring(out, digits.format(event.unix_ms).as_bytes());
    netstring(out, event.kind.as_bytes());
    netstring(out, given_key(event).unwrap_or_default().as_bytes());
    match event.exclude {
        None => netstring(out, b""),
        Some(Origin { node, address: Address { shard, conn } }) => {
            netstring(out, format!("{node} {} {} {}", shard.0, conn.slot, conn.generation).as_bytes());
        }
    }
    netstring(out, &event.data);
}

/// About how many bytes an event is.
pub fn event_bytes(event: &BrokeredEvent) -> usize {
    EVENT_BYTES_MIN + 96 + event.kind.len() + given_key(event).map_or(0, str::len) + event.data.len()
}

/// The key that its publisher gave it; one of the hub's own means nothing to those who get the event.
fn given_key(event: &BrokeredEvent) -> Option<&str> {
    match &event.key {
        Some(EventKey::Given(key)) => Some(key),
        Some(EventKey::OfHub(_)) | None => None,
    }
}

fn netstring(out: &mut Vec<u8>, bytes: &[u8]) {
    let mut digits = itoa::Buffer::new();
    out.extend_from_slice(digits.format(bytes.len()).as_bytes());
    out.push(b':');
    out.extend_from_slice(bytes);
    out.push(b',');
}

/// An id from Redis. What is no id becomes one, always the same, so that it can be compared with what it became before.
pub fn id(bytes: &[u8]) -> EventId {
    if bytes == b"-" || bytes.is_empty() {
        return NO_ID;
    }
    let mut id = [b'0'; 36];
    for (place, byte) in id.iter_mut().zip(bytes) {
        *place = if byte.is_ascii_alphanumeric() || *byte == b'-' { *byte } else { b'0' };
    }
    id
}

/// The numbers that a submission of so many events got, from the answer of the script.
pub fn numbers(answer: &[u8], events: usize, nodes: u32) -> Option<Numbers> {
    let answer = std::str::from_utf8(answer).ok()?;
    let mut words = answer.split(' ');
    let epoch = words.next()?.parse().ok()?;
    let first: u64 = words.next()?.parse().ok()?;
    let count: u64 = words.next()?.parse().ok()?;
    let mut next = first;
    let mut numbered = Vec::with_capacity(events);
    while let Some(index) = words.next() {
        let index: usize = index.parse().ok()?;
        let seq = words.next()?.parse().ok()?;
        let duplicate_of = id(words.next()?.as_bytes());
        if index < numbered.len() || index >= events {
            return None;
        }
        fill(&mut numbered, index, &mut next);
        numbered.push(Numbered { seq, duplicate_of: Some(duplicate_of) });
    }
    fill(&mut numbered, events, &mut next);
    (next - first == count).then_some(Numbers { epoch, events: numbered, nodes })
}

fn fill(numbered: &mut Vec<Numbered>, up_to: usize, next: &mut u64) {
    while numbered.len() < up_to {
        numbered.push(Numbered { seq: *next, duplicate_of: None });
        *next += 1;
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Reader").field("unreadable", &self.unreadable).finish_non_exhaustive()
    }
}

impl Reader {
    /// A reader of data that is nested at most `depth_max` deep.
    pub fn new(depth_max: usize) -> Reader {
        Reader { scratch: Scratch::new(depth_max), copy: Vec::new(), unreadable: 0 }
    }

    /// Events and messages that could not be read since this was asked last.
    pub fn take_unreadable(&mut self) -> u64 {
        std::mem::take(&mut self.unreadable)
    }

    /// A message. None where its head can't be read, or it has not as many events as it says.
    pub fn message(&mut self, bytes: &Bytes) -> Option<Message> {
        let message = self.parse(bytes);
        if message.is_none() {
            self.unreadable += 1;
        }
        message
    }

    fn parse(&mut self, bytes: &Bytes) -> Option<Message> {
        let mut at = 0;
        let epoch = word(bytes, &mut at).and_then(number)?;
        let first_seq = word(bytes, &mut at).and_then(seq).filter(|seq| *seq > 0)?;
        let count = word(bytes, &mut at).and_then(number)?;
        let previous = id(word(bytes, &mut at)?);
        let rest = bytes.len() - at;
        if count > (rest / EVENT_BYTES_MIN) as u64 {
            return None;
        }
        let mut events = Vec::with_capacity(count as usize);
        for _ in 0..count {
            events.push(self.event(bytes, &mut at)?);
        }
        (at == bytes.len()).then_some(Message { epoch, first_seq, previous, events })
    }

    /// The next event. None where its fields have no end; one whose fields make no event is replaced.
    fn event(&mut self, bytes: &Bytes, at: &mut usize) -> Option<BrokeredEvent> {
        let mut fields: [Bytes; 6] = Default::default();
        for field in &mut fields {
            *field = read_netstring(bytes, at)?;
        }
        let id = id(&fields[0]);
        let unix_ms = number(&fields[1]).unwrap_or(0);
        match self.checked(id, unix_ms, &fields) {
            Some(event) => Some(event),
            None => {
                self.unreadable += 1;
                let data = Bytes::from_static(b"null");
                Some(BrokeredEvent { id, unix_ms, kind: UNREADABLE.into(), data, key: None, exclude: None })
            }
        }
    }

    fn checked(&mut self, id: EventId, unix_ms: u64, fields: &[Bytes; 6]) -> Option<BrokeredEvent> {
        let [raw_id, raw_ms, kind, key, exclude, data] = fields;
        let kind = std::str::from_utf8(kind).ok()?;
        let plain = |c: char| !c.is_control() && c != '"' && c != '\\';
        if raw_id[..] != id || number(raw_ms).is_none() || kind.is_empty() || kind.len() > KIND_BYTES_MAX {
            return None;
        }
        if !kind.chars().all(plain) || !self.is_json(data) {
            return None;
        }
        let key = std::str::from_utf8(key).ok()?;
        let key = (!key.is_empty()).then(|| EventKey::Given(key.into()));
        let exclude = if exclude.is_empty() { None } else { Some(origin(exclude)?) };
        Some(BrokeredEvent { id, unix_ms, kind: kind.into(), data: data.clone(), key, exclude })
    }

    fn is_json(&mut self, data: &[u8]) -> bool {
        self.copy.clear();
        self.copy.extend_from_slice(data);
        self.scratch.parse(&mut self.copy).is_ok()
    }
}

fn word<'a>(bytes: &'a [u8], at: &mut usize) -> Option<&'a [u8]> {
    let rest = &bytes[*at..];
    let end = memchr::memchr(b' ', rest)?;
    *at += end + 1;
    Some(&rest[..end])
}

fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 20 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// An epoch as a script writes it.
pub fn epoch(digits: &[u8]) -> Option<u64> {
    number(digits)
}

/// An event's number as a script writes it: scripts count exactly up to 2^53.
pub fn seq(digits: &[u8]) -> Option<u64> {
    number(digits).filter(|seq| *seq < 1 << 53)
}

fn read_netstring(bytes: &Bytes, at: &mut usize) -> Option<Bytes> {
    let rest = &bytes[*at..];
    // Ten digits are more than Redis lets a string be.
    let colon = rest.iter().take(11).position(|byte| *byte == b':')?;
    let length = number(&rest[..colon])? as usize;
    let start = *at + colon + 1;
    let end = start.checked_add(length)?;
    if bytes.get(end) != Some(&b',') {
        return None;
    }
    *at = end + 1;
    Some(bytes.slice(start..end))
}

fn origin(bytes: &[u8]) -> Option<Origin> {
    let mut words = bytes.split(|byte| *byte == b' ').map(number);
    let node = words.next()??;
    let shard = ShardId(u16::try_from(words.next()??).ok()?);
    let slot = u32::try_from(words.next()??).ok()?;
    let generation = u32::try_from(words.next()??).ok()?;
    words.next().is_none().then_some(Origin { node, address: Address { shard, conn: ConnKey { slot, generation } } })
}

/// Writes a message, as the script does.
pub fn write_message(out: &mut Vec<u8>, message: &Message) {
    let Message { epoch, first_seq, previous, events } = message;
    // Writing into memory can't fail.
    drop(write!(out, "{epoch} {first_seq} {} ", events.len()));
    if *previous == NO_ID {
        out.push(b'-');
    } else {
        out.extend_from_slice(previous);
    }
    out.push(b' ');
    for event in events {
        write_event(out, event);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An event whose id tells it apart.
    pub(in super::super) fn event(tag: u64) -> BrokeredEvent {
        let mut id = [b'0'; 36];
        id.copy_from_slice(format!("{tag:036}").as_bytes());
        let data = Bytes::from(format!("{{\"tag\":{tag}}}"));
        BrokeredEvent {
            id,
            unix_ms: 1_700_000_000_000 + tag,
            kind: "quote.updated".into(),
            data,
            key: None,
            exclude: None,
        }
    }

    fn written(message: &Message) -> Bytes {
        let mut out = Vec::new();
        write_message(&mut out, message);
        out.into()
    }

    fn sample() -> Message {
        let address = Address { shard: ShardId(3), conn: ConnKey { slot: 70_000, generation: 9 } };
        let events = vec![
            event(1),
            BrokeredEvent { key: Some(EventKey::Given("order ü:7,".into())), ..event(2) },
            BrokeredEvent { exclude: Some(Origin { node: u64::MAX, address }), ..event(3) },
            BrokeredEvent { data: Bytes::from_static(b"\"5:a,\""), ..event(4) },
        ];
        Message { epoch: u64::MAX, first_seq: 41, previous: event(9).id, events }
    }

    #[test]
    fn an_event_is_six_netstrings() {
        let mut out = Vec::new();
        write_event(&mut out, &BrokeredEvent { key: Some(EventKey::Given("k".into())), ..event(7) });
        let text = String::from_utf8(out).unwrap();
        let expected =
            "36:000000000000000000000000000000000007,13:1700000000007,13:quote.updated,1:k,0:,9:{\"tag\":7},";
        assert_eq!(text, expected);
    }

    #[test]
    fn what_is_written_is_read_again() {
        let mut reader = Reader::new(64);
        assert_eq!(reader.message(&written(&sample())), Some(sample()));
        let cleared = Message { events: Vec::new(), previous: NO_ID, ..sample() };
        assert_eq!(reader.message(&written(&cleared)), Some(cleared));
        assert_eq!(reader.take_unreadable(), 0);
    }

    #[test]
    fn a_message_cut_anywhere_is_none() {
        let whole = written(&sample());
        let mut reader = Reader::new(64);
        for end in 0..whole.len() {
            assert_eq!(reader.message(&whole.slice(..end)), None, "cut at {end}");
        }
        let mut longer = whole.to_vec();
        longer.push(b' ');
        assert_eq!(reader.message(&longer.into()), None);
        assert_eq!(reader.take_unreadable(), whole.len() as u64 + 1);
    }

    #[test]
    fn an_event_that_can_not_be_passed_on_keeps_its_number_and_its_id() {
        let mut reader = Reader::new(4);
        let bad = [
            BrokeredEvent { data: Bytes::from_static(b"{\"a\":"), ..event(1) },
            BrokeredEvent { data: Bytes::from_static(b"1,\"type\":\"x\""), ..event(1) },
            BrokeredEvent { data: Bytes::from_static(b""), ..event(1) },
            BrokeredEvent { data: Bytes::from_static(b"[[[[[[[[1]]]]]]]]"), ..event(1) },
            BrokeredEvent { data: Bytes::from_static(b"\"\xff\""), ..event(1) },
            BrokeredEvent { kind: "".into(), ..event(1) },
            BrokeredEvent { kind: "a\"b".into(), ..event(1) },
            BrokeredEvent { kind: "a\nb".into(), ..event(1) },
        ];
        for bad in bad {
            let message = Message { epoch: 1, first_seq: 5, previous: NO_ID, events: vec![bad.clone(), event(2)] };
            let read = reader.message(&written(&message)).expect("the others can be read");
            assert_eq!(read.events[1], event(2));
            assert_eq!(&*read.events[0].kind, UNREADABLE, "{bad:?}");
            assert_eq!(read.events[0].data[..], *b"null");
            assert_eq!(read.events[0].id, bad.id);
        }
        assert_eq!(reader.take_unreadable(), 8);
    }

    #[test]
    fn counts_and_lengths_beyond_the_message_are_refused_without_memory_for_them() {
        let mut reader = Reader::new(64);
        for text in [
            "1 1 18446744073709551615 - ",
            "1 9007199254740992 1 - 36:000000000000000000000000000000000007,1:1,1:a,0:,0:,1:1,",
            "1 1 1 - 99999999999999999999:",
            "1 1 1 - 36:000000000000000000000000000000000007,1:1,1:a,0:,0:,9999999999:1,",
            "1 0 1 - 36:000000000000000000000000000000000007,1:1,1:a,0:,0:,1:1,",
            "-1 1 0 - ",
            "1 1 0  x",
        ] {
            assert_eq!(reader.message(&Bytes::from_static(text.as_bytes())), None, "{text}");
        }
    }

    #[test]
    fn an_id_that_is_none_is_always_replaced_by_the_same() {
        assert_eq!(id(b"-"), NO_ID);
        assert_eq!(id(b""), NO_ID);
        let short = id(b"a\"b");
        assert_eq!(&short[..4], b"a0b0");
        assert_eq!(id(&short), short);
        assert_eq!(id(&event(5).id), event(5).id);
    }

    #[test]
    fn an_answer_gives_every_event_its_number() {
        let dup = String::from_utf8(event(9).id.to_vec()).unwrap();
        let answer = format!("77 11 2 1 4 {dup} 2 5 {dup}");
        let numbers = numbers(answer.as_bytes(), 4, 3).expect("an answer");
        assert_eq!((numbers.epoch, numbers.nodes), (77, 3));
        let seqs: Vec<_> = numbers.events.iter().map(|event| (event.seq, event.duplicate_of.is_some())).collect();
        assert_eq!(seqs, [(11, false), (4, true), (5, true), (12, false)]);
    }

    #[test]
    fn an_answer_that_does_not_fit_its_submission_is_none() {
        let dup = "0".repeat(36);
        for answer in ["", "1", "1 1", "1 1 3", "x 1 2", "1 1 1 2 1 00", "1 1 1 0 1"] {
            assert_eq!(numbers(answer.as_bytes(), 2, 1), None, "{answer}");
        }
        assert_eq!(numbers(format!("1 1 1 1 1 {dup} 0 1 {dup}").as_bytes(), 2, 1), None);
        assert!(numbers(b"1 1 2", 2, 1).is_some());
    }
}

//! Ids of messages, clients, sessions and epochs, from a seed that the shard was given.

use crate::session::{ClientId, SessionId};
use crate::wire::envelope::{Stamp, rfc3339};

/// A source of ids. Deterministic: the same seed and times give the same ids.
#[derive(Debug, Clone)]
pub struct Ids {
    state: u64,
    node: u64,
    last_ms: u64,
    counter: u64,
    timestamp_ms: u64,
    timestamp: [u8; 24],
}

impl Ids {
    /// A source whose ids differ from those of every other seed.
    pub fn new(seed: [u64; 2]) -> Ids {
        Ids { state: seed[0], node: seed[1], last_ms: 0, counter: 0, timestamp_ms: 0, timestamp: rfc3339(0) }
    }

    /// A UUIDv7 (RFC 9562 §5.7) and the time it stands for, as text. Ids of one source grow, also within a millisecond:
    /// the 12 bits behind the time and the 14 behind the variant count (§6.2, method 1), the rest is random.
    pub fn stamp(&mut self, unix_ms: u64) -> Stamp {
        if unix_ms > self.last_ms {
            self.last_ms = unix_ms;
            self.counter = self.next() & 0xff_ffff;
        } else {
            self.counter += 1;
            if self.counter > 0x3ff_ffff {
                self.last_ms += 1;
                self.counter = 0;
            }
        }
        let random = self.next() ^ self.node;
        let high = (self.last_ms << 16) | 0x7000 | (self.counter >> 14);
        let low = (0b10 << 62) | ((self.counter & 0x3fff) << 48) | (random & 0xffff_ffff_ffff);
        if self.timestamp_ms != unix_ms {
            self.timestamp_ms = unix_ms;
            self.timestamp = rfc3339(unix_ms);
        }
        let mut id = [0u8; 36];
        uuid::Uuid::from_u64_pair(high, low).hyphenated().encode_lower(&mut id);
        Stamp { id, timestamp: self.timestamp }
    }

    /// For a client: 100 random bits, 20 characters.
    pub fn client(&mut self) -> ClientId {
        ClientId::from(self.short(20))
    }

    /// For a session: 80 random bits, more than tell UUIDs of version 7 apart, 16 characters. With four more, the name of its
    /// room would take a third more memory, which every connection has.
    pub fn session(&mut self) -> SessionId {
        SessionId::from(self.short(16).as_str())
    }

    /// Up to 20 characters of lower-case base 32, five random bits each.
    fn short(&mut self, characters: usize) -> String {
        const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
        let (mut high, mut low) = (self.next(), self.next() ^ self.node.rotate_left(17));
        let mut text = String::with_capacity(characters);
        for place in 0..characters {
            let bits = if place < 10 { &mut high } else { &mut low };
            text.push(char::from(DIGITS[(*bits & 31) as usize]));
            *bits >>= 5;
        }
        text
    }

    /// A room's epoch: never the same twice.
    pub fn epoch(&mut self) -> u64 {
        self.next() ^ self.node
    }

    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_version_7_unique_and_growing() {
        let mut ids = Ids::new([1, 2]);
        let mut last = String::new();
        for step in 0..100_000u64 {
            let stamp = ids.stamp(1_700_000_000_000 + step / 20_000);
            let text = std::str::from_utf8(&stamp.id).expect("ascii").to_owned();
            let uuid = uuid::Uuid::parse_str(&text).expect("valid");
            assert_eq!(uuid.get_version_num(), 7);
            assert_eq!(uuid.get_variant(), uuid::Variant::RFC4122);
            assert!(text > last, "{text} after {last}");
            last = text;
        }
    }

    #[test]
    fn short_ids_differ_between_seeds() {
        let (mut one, mut two) = (Ids::new([1, 2]), Ids::new([1, 3]));
        let id = one.client();
        assert_eq!(id.len(), 20);
        assert!(crate::wire::native::is_client_id(&id));
        assert_ne!(id, two.client());
        assert_ne!(id, one.client());
        let session_id = one.session();
        assert!(crate::wire::native::is_client_id(&session_id) && session_id.len() == 16);
        assert_ne!(session_id, one.session());
        assert_ne!(session_id, two.session());
        // What counts its references is two words; the allocator gives 40 bytes, or 56.
        assert!(session_id.room().len() + 16 <= 40, "the name of its room takes one piece of 48 bytes");
    }
}

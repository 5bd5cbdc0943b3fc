//! Base64 (RFC 4648 §4) as Engine.IO's polling carries binary packets in it.
//!
//! Decoding is done where the text stands, since its bytes become fewer; the crate that encodes asks for another buffer.

use ::base64::Engine;
use ::base64::engine::general_purpose::STANDARD;

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// What stands in [`VALUES`] for a byte that is no digit.
const NO_DIGIT: u8 = 0xff;

/// The value of each byte that is a digit.
const VALUES: [u8; 256] = {
    let mut values = [NO_DIGIT; 256];
    let mut value = 0;
    while value < DIGITS.len() {
        values[DIGITS[value] as usize] = value as u8;
        value += 1;
    }
    values
};

/// How long the text of so many bytes is.
pub const fn encoded_bytes(bytes: usize) -> usize {
    bytes.div_ceil(3) * 4
}

/// Appends the text of some bytes, with its pads.
pub fn encode(out: &mut Vec<u8>, bytes: &[u8]) {
    let start = out.len();
    out.resize(start + encoded_bytes(bytes.len()), 0);
    let written = STANDARD.encode_slice(bytes, out.get_mut(start..).unwrap_or_default());
    debug_assert_eq!(written, Ok(out.len() - start), "the room is as large as the text");
}

/// Decodes a text where it stands and gives the part of it that holds the bytes; none where it is no base64.
///
/// Pads may be left out, as some clients do. Bits behind the last byte may be anything.
pub fn decode_in_place(text: &mut [u8]) -> Option<&mut [u8]> {
    let digits = match &*text {
        [digits @ .., b'=', b'='] if digits.len() % 4 == 2 => digits.len(),
        [digits @ .., b'='] if digits.len() % 4 == 3 => digits.len(),
        digits if digits.len() % 4 != 1 => digits.len(),
        _ => return None,
    };
    let (mut from, mut to) = (0, 0);
    while from < digits {
        let group = text.get(from..digits.min(from + 4))?;
        let mut bits = 0u32;
        for digit in group {
            let value = VALUES[usize::from(*digit)];
            if value == NO_DIGIT {
                return None;
            }
            bits = bits << 6 | u32::from(value);
        }
        // Six bits a digit: of two or three of them, four or two are left over.
        let count = group.len() * 6 / 8;
        bits <<= 6 * (4 - group.len());
        text.get_mut(to..to + count)?.copy_from_slice(bits.to_be_bytes().get(1..=count)?);
        from += 4;
        to += count;
    }
    text.get_mut(..to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(bytes: &[u8]) -> String {
        let mut out = Vec::new();
        encode(&mut out, bytes);
        assert_eq!(out.len(), encoded_bytes(bytes.len()));
        String::from_utf8(out).expect("digits")
    }

    fn decoded(text: &str) -> Option<Vec<u8>> {
        decode_in_place(&mut text.as_bytes().to_vec()).map(|bytes| bytes.to_vec())
    }

    #[test]
    fn the_examples_of_the_rfc() {
        for (plain, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("fooba", "Zm9vYmE=")]
        {
            assert_eq!(encoded(plain.as_bytes()), text);
            assert_eq!(decoded(text).as_deref(), Some(plain.as_bytes()));
            assert_eq!(decoded(text.trim_end_matches('=')).as_deref(), Some(plain.as_bytes()), "without pads");
        }
        assert_eq!(decoded("+/+/"), Some(vec![0xfb, 0xff, 0xbf]));
    }

    #[test]
    fn what_is_no_base64_is_refused() {
        for text in ["Z", "=", "==", "Zg=", "Zm9v=", "Zm9v==", "Zm9vY", "Zg==Zg==", "Zm 9", "Zm-_", "Zm9\n", "Zé=="] {
            assert_eq!(decoded(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded_to_the_same(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(decoded(&encoded(&bytes)), Some(bytes));
        }

        #[test]
        fn any_text_is_decoded_or_refused(text in "[A-Za-z0-9+/=é ]{0,40}") {
            if let Some(bytes) = decoded(&text) {
                prop_assert_eq!(bytes.len(), text.trim_end_matches('=').len() * 6 / 8);
            } else {
                prop_assert!(STANDARD.decode(&text).is_err());
            }
            if let Ok(bytes) = STANDARD.decode(&text) {
                prop_assert_eq!(decoded(&text), Some(bytes));
            }
        }
    }
}

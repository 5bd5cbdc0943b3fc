//! UTF-8 checked as it arrives: text may be cut anywhere, also inside a character.
//!
//! RFC 6455 §8.1 asks for failing a connection on invalid text; this validator tells at the first byte that no
//! continuation could make valid, without keeping more than the three bytes of an unfinished character.

/// Text that is not UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("text is not valid UTF-8")]
pub struct InvalidUtf8;

/// The state between two pieces of one text.
///
/// Invariant: `pending[..pending_bytes]` is the beginning of a character that some continuation makes valid.
#[derive(Debug, Clone, Copy, Default)]
pub struct Validator {
    pending: [u8; 3],
    pending_bytes: u8,
}

impl Validator {
    /// A validator at the beginning of a text.
    pub const fn new() -> Self {
        Self { pending: [0; 3], pending_bytes: 0 }
    }

    /// Checks the next piece; an error is final for the whole text.
    pub fn push(&mut self, piece: &[u8]) -> Result<(), InvalidUtf8> {
        let rest = self.complete_pending(piece)?;
        if rest.is_empty() {
            return Ok(());
        }
        match simdutf8::compat::from_utf8(rest) {
            Ok(_) => Ok(()),
            Err(error) if error.error_len().is_some() => Err(InvalidUtf8),
            Err(error) => {
                self.keep(rest.get(error.valid_up_to()..).unwrap_or_default());
                Ok(())
            }
        }
    }

    /// Whether the text may end here, i.e. not inside a character.
    pub const fn is_complete(&self) -> bool {
        self.pending_bytes == 0
    }

    /// Adds bytes to the unfinished character until it is whole or `piece` is used up; returns what follows it.
    fn complete_pending<'a>(&mut self, mut piece: &'a [u8]) -> Result<&'a [u8], InvalidUtf8> {
        while self.pending_bytes > 0 {
            let Some((&byte, rest)) = piece.split_first() else { break };
            piece = rest;
            let pending_bytes = usize::from(self.pending_bytes);
            let [a, b, c] = self.pending;
            let mut character = [a, b, c, 0];
            character[pending_bytes] = byte;
            match std::str::from_utf8(&character[..=pending_bytes]) {
                Ok(_) => self.pending_bytes = 0,
                Err(error) if error.error_len().is_some() => return Err(InvalidUtf8),
                Err(_) => self.keep(&character[..=pending_bytes]),
            }
        }
        Ok(piece)
    }

    fn keep(&mut self, unfinished: &[u8]) {
        debug_assert!(unfinished.len() <= self.pending.len());
        for (to, from) in self.pending.iter_mut().zip(unfinished) {
            *to = *from;
        }
        self.pending_bytes = unfinished.len().min(self.pending.len()) as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The position after which `bytes`, given one by one, turns out invalid.
    fn fails_after(bytes: &[u8]) -> Option<usize> {
        let mut validator = Validator::new();
        bytes.iter().position(|byte| validator.push(&[*byte]).is_err()).map(|at| at + 1)
    }

    #[test]
    fn every_character_passes_byte_by_byte() {
        for character in (0..=u32::from(char::MAX)).filter_map(char::from_u32) {
            let mut buffer = [0; 4];
            let bytes = character.encode_utf8(&mut buffer).as_bytes();
            assert_eq!(fails_after(bytes), None, "{character:?}");
        }
    }

    #[test]
    fn an_impossible_byte_is_refused_as_soon_as_it_is_seen() {
        assert_eq!(fails_after(b"\xff"), Some(1));
        assert_eq!(fails_after(b"ok\x80"), Some(3));
        assert_eq!(fails_after(b"\xc0\xaf"), Some(1), "overlong of two");
        assert_eq!(fails_after(b"\xe0\x80\x80"), Some(2), "overlong of three");
        assert_eq!(fails_after(b"\xed\xa0\x80"), Some(2), "surrogate");
        assert_eq!(fails_after(b"\xf4\x90\x80\x80"), Some(2), "beyond U+10FFFF");
        assert_eq!(fails_after(b"\xce\xbaz\xe1\xbd\xff"), Some(6));
    }

    #[test]
    fn a_text_that_ends_inside_a_character_is_not_complete() {
        let mut validator = Validator::new();
        assert!(validator.is_complete());
        assert_eq!(validator.push("κό".as_bytes()), Ok(()));
        assert!(validator.is_complete());
        assert_eq!(validator.push(b"\xf0\x9f\xa6"), Ok(()));
        assert!(!validator.is_complete());
        assert_eq!(validator.push(b"\x80"), Ok(()));
        assert!(validator.is_complete());
    }

    proptest! {
        #[test]
        fn pieces_are_judged_as_the_whole(
            bytes in prop_oneof![any::<Vec<u8>>(), any::<String>().prop_map(String::into_bytes)],
            size in 1usize..9,
        ) {
            let mut validator = Validator::new();
            let pieces = bytes.chunks(size).try_for_each(|piece| validator.push(piece));
            prop_assert_eq!(pieces.is_ok() && validator.is_complete(), std::str::from_utf8(&bytes).is_ok());
        }
    }
}

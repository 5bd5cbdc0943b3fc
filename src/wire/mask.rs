//! The masking of client frames (RFC 6455 §5.3), undone in place.
//!
//! The kernel works on fixed chunks, which the compiler turns into vector instructions; it needs no unsafe code and no
//! alignment. `benches/wire.rs` measures it.

/// Bytes handled at once: two SSE2 or NEON registers, a multiple of the mask's length.
const CHUNK: usize = 32;

/// Undoes (or applies) the masking of a part of a frame's payload.
///
/// `phase` is the position of `payload[0]` in its frame's payload: a frame that arrives in pieces is unmasked piece by
/// piece, whatever their lengths.
#[inline]
pub fn unmask(payload: &mut [u8], mask: [u8; 4], phase: usize) {
    let word = rotate(mask, phase);
    let mut wide = [0; CHUNK];
    for (to, from) in wide.iter_mut().zip(word.iter().cycle()) {
        *to = *from;
    }
    let (chunks, rest) = payload.as_chunks_mut::<CHUNK>();
    for chunk in chunks {
        for (byte, mask) in chunk.iter_mut().zip(&wide) {
            *byte ^= mask;
        }
    }
    let mask = u32::from_ne_bytes(word);
    let (words, tail) = rest.as_chunks_mut::<4>();
    for word in words {
        *word = (u32::from_ne_bytes(*word) ^ mask).to_ne_bytes();
    }
    for (byte, mask) in tail.iter_mut().zip(word) {
        *byte ^= mask;
    }
}

/// The mask as it applies from `phase` on.
#[inline]
fn rotate(mask: [u8; 4], phase: usize) -> [u8; 4] {
    u32::from_le_bytes(mask).rotate_right(8 * (phase % 4) as u32).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 6455 §5.3, word for word.
    fn unmask_by_the_book(payload: &mut [u8], mask: [u8; 4], phase: usize) {
        for (i, byte) in payload.iter_mut().enumerate() {
            *byte ^= mask[(i + phase) % 4];
        }
    }

    #[test]
    fn the_masked_hello_of_the_rfc_is_unmasked() {
        let mut payload = [0x7f, 0x9f, 0x4d, 0x51, 0x58];
        unmask(&mut payload, [0x37, 0xfa, 0x21, 0x3d], 0);
        assert_eq!(&payload, b"Hello");
    }

    #[test]
    fn every_length_start_and_phase_agrees_with_the_book() {
        let mask = [0x12, 0x34, 0x56, 0x78];
        let bytes: Vec<u8> = (0..200u8).collect();
        for start in 0..9 {
            for length in 0..=(bytes.len() - start) {
                for phase in 0..5 {
                    let (mut ours, mut book) = (bytes.clone(), bytes.clone());
                    unmask(&mut ours[start..start + length], mask, phase);
                    unmask_by_the_book(&mut book[start..start + length], mask, phase);
                    assert_eq!(ours, book, "start {start}, length {length}, phase {phase}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn pieces_unmask_to_the_same_as_the_whole(payload: Vec<u8>, mask: [u8; 4], cut: prop::sample::Index) {
            let mut whole = payload.clone();
            unmask(&mut whole, mask, 0);
            let mut pieces = payload;
            let cut = cut.index(pieces.len() + 1);
            let (left, right) = pieces.split_at_mut(cut);
            unmask(left, mask, 0);
            unmask(right, mask, cut);
            prop_assert_eq!(whole, pieces);
        }
    }
}

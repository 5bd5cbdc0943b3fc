//! What a ring entry carries so that its completion finds its way back.
//!
//! ```text
//!  63        56 55                      32 31                             0
//! ┌────────────┬──────────────────────────┬────────────────────────────────┐
//! │ operation  │ generation (low 24 bits) │ slot, or a listener's index    │
//! └────────────┴──────────────────────────┴────────────────────────────────┘
//! ```

use super::ConnKey;

/// The bits of [`ConnKey::generation`] that a token has room for.
pub(super) const GENERATION_MASK: u32 = 0x00ff_ffff;

/// Which kind of entry a completion belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Send,
    Receive,
    Accept,
    Cancel,
    Close,
    Doorbell,
}

impl Operation {
    /// By number.
    const ALL: [Operation; 6] = [
        Operation::Send,
        Operation::Receive,
        Operation::Accept,
        Operation::Cancel,
        Operation::Close,
        Operation::Doorbell,
    ];
}

/// The `user_data` of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Token(pub(super) u64);

impl Token {
    /// For an operation of a connection.
    #[inline]
    pub(super) fn of_connection(operation: Operation, conn: ConnKey) -> Token {
        Token(
            u64::from(operation as u8) << 56
                | u64::from(conn.generation & GENERATION_MASK) << 32
                | u64::from(conn.slot),
        )
    }

    /// For an operation that belongs to no connection; `index` tells several of a kind apart.
    pub(super) fn of_index(operation: Operation, index: u32) -> Token {
        Token::of_connection(operation, ConnKey { slot: index, generation: 0 })
    }

    /// None for a value that no token has.
    #[inline]
    pub(super) fn operation(self) -> Option<Operation> {
        Operation::ALL.get((self.0 >> 56) as usize).copied()
    }

    /// The connection; its generation has the low 24 bits only.
    #[inline]
    pub(super) fn conn(self) -> ConnKey {
        ConnKey { slot: self.0 as u32, generation: (self.0 >> 32) as u32 & GENERATION_MASK }
    }

    /// What [`Token::of_index`] was given.
    pub(super) fn index(self) -> usize {
        self.0 as u32 as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_gives_back_what_was_put_in() {
        for operation in Operation::ALL {
            for slot in [0, 1, 0x1234_5678, u32::MAX - 1] {
                for generation in [0, 1, GENERATION_MASK] {
                    let conn = ConnKey { slot, generation };
                    let token = Token::of_connection(operation, conn);
                    assert_eq!(token.operation(), Some(operation));
                    assert_eq!(token.conn(), conn);
                }
            }
        }
    }

    #[test]
    fn a_generation_past_24_bits_does_not_reach_the_operation() {
        let token = Token::of_connection(Operation::Receive, ConnKey { slot: 7, generation: u32::MAX });
        assert_eq!(token.operation(), Some(Operation::Receive));
        assert_eq!(token.conn(), ConnKey { slot: 7, generation: GENERATION_MASK });
    }

    #[test]
    fn foreign_user_data_has_no_operation() {
        assert_eq!(Token(u64::MAX).operation(), None);
    }
}

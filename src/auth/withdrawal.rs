//! Permissions that are taken away while their holder is there.
//!
//! A token says what its holder may do until it ends, and nobody can change that. What an operator takes away meanwhile
//! stands beside it and goes before all that is granted, `websocket:admin` included. It stays with the session, and binds
//! every token that is shown for it, until one comes that was issued later.

use std::hash::Hasher;
use std::sync::Arc;

use rustc_hash::FxHasher;
use serde::{Deserialize, Serialize};

/// How much is remembered to be withdrawn from one session, which takes about 60 KB. Past it everything is: nothing may come
/// back by being forgotten.
pub const WITHDRAWN_MAX: usize = 1024;

/// Stands for every permission there is.
const EVERYTHING: &str = "**";

/// When a token was issued, and which of that second's it is: it tells whether a token is newer than a withdrawal without
/// keeping the token.
///
/// ```text
/// | seconds since 1970, 0 where the token doesn't say : 40 | a hash of its signature : 24 |
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenMark(u64);

impl TokenMark {
    const HASH_BITS: u32 = 24;

    /// The mark of a token with that `iat` and signature.
    pub fn new(issued_s: Option<u64>, signature: &str) -> TokenMark {
        let mut hasher = FxHasher::default();
        hasher.write(signature.as_bytes());
        let hash = hasher.finish() >> (64 - Self::HASH_BITS);
        let issued_s = issued_s.unwrap_or(0).min(u64::MAX >> Self::HASH_BITS);
        TokenMark(issued_s << Self::HASH_BITS | hash)
    }

    fn issued_s(self) -> Option<u64> {
        Some(self.0 >> Self::HASH_BITS).filter(|issued_s| *issued_s > 0)
    }
}

/// One permission that was withdrawn; `*` in it stands for one whole part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Withdrawal {
    permission: Box<str>,
    at_s: u64,
    /// The token that was shown for the session then.
    from: TokenMark,
}

/// What was withdrawn from a session, by permission.
pub type Withdrawn = Arc<[Withdrawal]>;

impl Withdrawal {
    /// Withdraws a permission at that time (seconds since 1970) from whoever showed that token.
    pub fn new(permission: &str, at_s: u64, from: TokenMark) -> Withdrawal {
        Withdrawal { permission: permission.into(), at_s, from }
    }

    /// Whether it holds for a token: for the one that was shown then, and for those that were issued before. Of a token
    /// that doesn't say when it was issued, only that it is another one can be known.
    pub fn binds(&self, mark: TokenMark) -> bool {
        mark == self.from || mark.issued_s().is_some_and(|issued_s| issued_s < self.at_s)
    }

    /// Whether it takes a permission away; `parts` and `whole` are the same, cut and uncut.
    pub(super) fn takes(&self, parts: &[&str], whole: &str) -> bool {
        *self.permission == *whole
            || super::permissions::matches(&self.permission, parts)
            || *self.permission == *EVERYTHING
    }
}

/// Withdraws permissions at that time (seconds since 1970) from whoever showed that token.
pub fn withdrawn(permissions: &[Box<str>], at_s: u64, from: TokenMark) -> Withdrawn {
    permissions.iter().map(|permission| Withdrawal::new(permission, at_s, from)).collect()
}

/// What two know to be withdrawn.
pub fn together(one: Option<&Withdrawn>, other: Option<&Withdrawn>) -> Option<Withdrawn> {
    match (one, other) {
        (Some(one), Some(other)) => Some(merge(one, other)),
        (one, other) => one.or(other).cloned(),
    }
}

/// What was withdrawn before, and what is now.
pub(super) fn merge(before: &[Withdrawal], more: &[Withdrawal]) -> Withdrawn {
    let mut all = before.to_vec();
    for withdrawal in more {
        let same = |one: &&mut Withdrawal| one.permission == withdrawal.permission && one.from == withdrawal.from;
        match all.iter_mut().find(same) {
            Some(one) => one.at_s = one.at_s.max(withdrawal.at_s),
            None => all.push(withdrawal.clone()),
        }
    }
    if all.len() > WITHDRAWN_MAX
        && let Some(newest) = all.iter().max_by_key(|one| one.at_s)
    {
        all = vec![Withdrawal { permission: EVERYTHING.into(), ..newest.clone() }];
    }
    all.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_withdrawal_binds_older_tokens_and_the_one_it_was_taken_from() {
        let held = TokenMark::new(Some(100), "a");
        let withdrawal = Withdrawal::new("a:b", 100, held);
        assert!(withdrawal.binds(held));
        assert!(withdrawal.binds(TokenMark::new(Some(99), "b")));
        assert!(!withdrawal.binds(TokenMark::new(Some(100), "b")), "issued in the same second, and another one");
        assert!(!withdrawal.binds(TokenMark::new(Some(101), "a")));
        // The issuer's clock is ahead of ours.
        let ahead = TokenMark::new(Some(500), "c");
        assert!(Withdrawal::new("a:b", 100, ahead).binds(ahead));
    }

    #[test]
    fn of_tokens_that_do_not_say_when_they_were_issued_the_same_one_is_bound() {
        let held = TokenMark::new(None, "a");
        let withdrawal = Withdrawal::new("a:b", 100, held);
        assert!(withdrawal.binds(held));
        assert!(!withdrawal.binds(TokenMark::new(None, "b")));
        assert!(!withdrawal.binds(TokenMark::new(Some(u64::MAX), "a")));
    }

    #[test]
    fn what_is_withdrawn_again_counts_as_it_was_last_and_too_much_is_everything() {
        let from = TokenMark::default();
        let list = merge(&[Withdrawal::new("a:b", 5, from)], &[Withdrawal::new("a:b", 9, from)]);
        assert_eq!(*list, [Withdrawal::new("a:b", 9, from)]);
        assert_eq!(*merge(&list, &[Withdrawal::new("a:b", 7, from)]), *list, "what comes late takes nothing back");
        let other = Withdrawal::new("a:b", 9, TokenMark::new(None, "b"));
        assert_eq!(merge(&list, std::slice::from_ref(&other)).len(), 2, "each binds the token it was taken from");
        let many: Vec<_> = (0..=WITHDRAWN_MAX).map(|n| Withdrawal::new(&format!("a:{n}"), n as u64, from)).collect();
        let all = merge(&[], &many);
        assert_eq!(all.len(), 1);
        assert!(all[0].takes(&["x", "y", "z"], "x:y:z") && all[0].at_s == WITHDRAWN_MAX as u64);
    }
}

//! Who a client is and what it may do: tokens in, identities and permissions out.
//!
//! A [`Verifier`] is built from the configuration, and again on every reload. Time is an argument; key files are read
//! only while a verifier is built.

pub mod keys;
pub mod mint;
pub mod origin;
pub mod permissions;
pub mod verifier;
pub mod withdrawal;

#[cfg(test)]
mod tests;

pub use keys::AuthSetupError;
pub use mint::{Claims, MintError, mint};
pub use origin::origin_allowed;
pub use permissions::{Added, Permissions};
pub use verifier::{AuthError, Verifier};
pub use withdrawal::{TokenMark, Withdrawal, Withdrawn};

use std::sync::Arc;

/// Longest user id, in bytes.
pub const USER_ID_BYTES_MAX: usize = 128;

/// Who a connection acts for.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The token's `sub`: 1 to [`USER_ID_BYTES_MAX`] bytes without control characters.
    pub user_id: String,
    /// The token's `name`, for people to read.
    pub name: Option<Box<str>>,
    /// The token's roles; shared by all identities with the same roles and permissions.
    pub roles: Arc<[String]>,
    /// What the roles and the token's own permissions allow.
    pub permissions: Permissions,
    /// The token's `exp` in seconds since 1970; none for a token without end.
    pub expires_at: Option<u64>,
    /// Which token it is; that of no token where there is none.
    pub mark: TokenMark,
}

impl Identity {
    /// The identity of a connection to a hub without authentication: may do everything, under a user id of its own.
    pub fn anonymous(user_id: String) -> Self {
        let permissions = Permissions::admin();
        let mark = TokenMark::default();
        Self { user_id, name: None, roles: Arc::from([]), permissions, expires_at: None, mark }
    }

    /// The same without what was withdrawn of it. A withdrawal that its token is newer than changes nothing, and is
    /// remembered all the same: the next token may be an older one.
    pub fn without(&self, withdrawn: &[Withdrawal]) -> Self {
        Self { permissions: self.permissions.without(withdrawn, self.mark), ..self.clone() }
    }

    /// The same one, with what a backend has added.
    pub fn with(&self, added: Added) -> Self {
        Self { permissions: self.permissions.with(Arc::new(added)), ..self.clone() }
    }
}

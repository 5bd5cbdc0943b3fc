//! Error codes and close codes of the protocol, in one place: what a peer is told, and the label a metric gets.

/// Why a command was refused. The text form is part of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ErrorCode {
    /// The text is not JSON, or nested too deep.
    BadJson,
    /// JSON, but not a command, or with fields that don't fit it.
    BadCommand,
    /// There is no such command, or (with strict events) no such event type.
    UnknownType,
    /// Credentials are missing or not valid.
    Unauthorized,
    /// A permission is missing.
    Forbidden,
    /// The addressee does not exist.
    NotFound,
    /// Something is larger than its limit.
    TooLarge,
    /// Too many messages; `retry_after_ms` tells when to go on.
    RateLimited,
    /// The connection is in as many rooms as it may be.
    RoomLimit,
    /// The room's name has no known kind or is malformed.
    BadRoom,
    /// A filter that can't be understood.
    BadFilter,
    /// Someone else holds the lock.
    LockHeld,
    /// The lock was lost meanwhile.
    LockLost,
    /// The state does not allow it.
    Conflict,
    /// Can't be done right now; try again.
    Unavailable,
    /// The hub's own fault.
    Internal,
}

impl ErrorCode {
    /// Every code, in the protocol's order.
    pub const ALL: [ErrorCode; 16] = [
        ErrorCode::BadJson,
        ErrorCode::BadCommand,
        ErrorCode::UnknownType,
        ErrorCode::Unauthorized,
        ErrorCode::Forbidden,
        ErrorCode::NotFound,
        ErrorCode::TooLarge,
        ErrorCode::RateLimited,
        ErrorCode::RoomLimit,
        ErrorCode::BadRoom,
        ErrorCode::BadFilter,
        ErrorCode::LockHeld,
        ErrorCode::LockLost,
        ErrorCode::Conflict,
        ErrorCode::Unavailable,
        ErrorCode::Internal,
    ];

    /// The code as peers and metrics see it.
    pub const fn as_str(self) -> &'static str {
        match self {
            ErrorCode::BadJson => "bad_json",
            ErrorCode::BadCommand => "bad_command",
            ErrorCode::UnknownType => "unknown_type",
            ErrorCode::Unauthorized => "unauthorized",
            ErrorCode::Forbidden => "forbidden",
            ErrorCode::NotFound => "not_found",
            ErrorCode::TooLarge => "too_large",
            ErrorCode::RateLimited => "rate_limited",
            ErrorCode::RoomLimit => "room_limit",
            ErrorCode::BadRoom => "bad_room",
            ErrorCode::BadFilter => "bad_filter",
            ErrorCode::LockHeld => "lock_held",
            ErrorCode::LockLost => "lock_lost",
            ErrorCode::Conflict => "conflict",
            ErrorCode::Unavailable => "unavailable",
            ErrorCode::Internal => "internal",
        }
    }

    /// Whether the peer's message itself was at fault, so that it counts towards the ten that close a connection.
    pub const fn is_bad_message(self) -> bool {
        matches!(self, ErrorCode::BadJson | ErrorCode::BadCommand | ErrorCode::UnknownType)
    }
}

/// Close codes of the protocol (RFC 6455 §7.4 and the hub's own from 4400 on).
pub mod close {
    /// From here on codes are the application's own (RFC 6455 §7.4.2).
    pub const APPLICATION: u16 = 4000;
    /// The peer is done.
    pub const NORMAL: u16 = 1000;
    /// The hub drains; the reason has the reconnect delay in milliseconds.
    pub const DRAINING: u16 = 1001;
    /// A violation of the WebSocket protocol.
    pub const PROTOCOL_ERROR: u16 = 1002;
    /// Binary where text is expected.
    pub const UNSUPPORTED: u16 = 1003;
    /// Text that is not UTF-8.
    pub const INVALID_UTF8: u16 = 1007;
    /// Too many bad messages.
    pub const POLICY: u16 = 1008;
    /// Message too large.
    pub const TOO_LARGE: u16 = 1009;
    /// The hub's own fault.
    pub const INTERNAL: u16 = 1011;
    /// The token expired and was not refreshed.
    pub const TOKEN_EXPIRED: u16 = 4401;
    /// A permission was withdrawn.
    pub const FORBIDDEN: u16 = 4403;
    /// Nothing came within the heartbeat's timeout.
    pub const NO_PONG: u16 = 4408;
    /// A newer connection took the session over.
    pub const TAKEN_OVER: u16 = 4409;
    /// Sent too much for too long.
    pub const FLOOD: u16 = 4429;
    /// Closed by an administrator.
    pub const BY_ADMIN: u16 = 4500;
    /// Too slow.
    pub const TOO_SLOW: u16 = 4508;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_own_text() {
        let mut texts: Vec<_> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), ErrorCode::ALL.len());
        for (place, code) in ErrorCode::ALL.iter().enumerate() {
            assert_eq!(*code as usize, place, "{code:?} stands where its number says");
        }
    }
}

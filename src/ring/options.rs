//! What a ring is made with.

/// Sizes of a ring, and how it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UringOptions {
    /// Entries of the submission queue; a power of two, else rounded up. What doesn't fit is submitted in the middle of a
    /// turn.
    pub entries: u32,
    /// Entries of the completion queue; a power of two, else rounded up. Should hold one send and one receive per
    /// connection; past it the kernel keeps completions aside, which is slower and loses none.
    pub completions: u32,
    /// Number of receive buffers: a power of two up to 32 768.
    pub buffers: u16,
    /// Size of a receive buffer. Longer messages arrive in several.
    pub buffer_bytes: u32,
    /// How long a turn looks for completions before it sleeps, in microseconds; 0 sleeps at once.
    pub busy_poll_us: u32,
    /// How long a turn that sleeps does so at least, in microseconds, unless many completions come; 0 ends it with the
    /// first one, as kernels before 6.12 always do.
    pub min_wait_us: u32,
}

impl UringOptions {
    /// Sizes of a ring that wakes with the first completion.
    pub const fn sized(entries: u32, completions: u32, buffers: u16, buffer_bytes: u32) -> UringOptions {
        UringOptions { entries, completions, buffers, buffer_bytes, busy_poll_us: 0, min_wait_us: 0 }
    }
}

impl Default for UringOptions {
    fn default() -> UringOptions {
        UringOptions::sized(4096, 65_536, 1024, 4096)
    }
}

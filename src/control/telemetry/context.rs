//! Which trace something belongs to (<https://www.w3.org/TR/trace-context/>), and whether it is told.
//!
//! ```text
//!     traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01
//!                  version      trace id                parent id     flags
//! ```

/// A span among others of its trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanContext {
    /// The trace.
    pub trace_id: u128,
    /// The span.
    pub span_id: u64,
}

/// What a caller says of its trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parent {
    pub context: SpanContext,
    pub is_sampled: bool,
}

impl SpanContext {
    /// The header for calls that are made within the span.
    pub fn traceparent(&self) -> String {
        format!("00-{:032x}-{:016x}-01", self.trace_id, self.span_id)
    }
}

impl Parent {
    /// Reads the header; none where it is malformed, which starts a trace anew.
    pub(super) fn parse(header: &str) -> Option<Parent> {
        let mut parts = header.trim().split('-');
        let version = hex(parts.next()?, 2)?;
        let (trace_id, span_id, flags) = (hex(parts.next()?, 32)?, hex(parts.next()?, 16)?, hex(parts.next()?, 2)?);
        // Later versions may add parts, this one has none.
        if version == 0xff || (version == 0 && parts.next().is_some()) || trace_id == 0 || span_id == 0 {
            return None;
        }
        let context = SpanContext { trace_id, span_id: span_id as u64 };
        Some(Parent { context, is_sampled: flags & 1 == 1 })
    }
}

/// Lower-case hexadecimal digits, exactly so many.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let fits = text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    fits.then(|| u128::from_str_radix(text, 16).ok())?
}

/// Whether something is told: as its caller does, and without one by chance (`drawn`, below 1000).
pub(super) fn is_sampled(parent: Option<&Parent>, drawn: u64, per_1000: u64) -> bool {
    parent.map_or(drawn < per_1000, |parent| parent.is_sampled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_of_the_specification_is_read_and_written() {
        let header = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let parent = Parent::parse(header).expect("well formed");
        assert!(parent.is_sampled);
        assert_eq!(parent.context.traceparent(), header);
        let later =
            Parent::parse("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00-more").expect("a later version");
        assert!(!later.is_sampled);
    }

    #[test]
    fn what_is_malformed_starts_a_trace_anew() {
        for header in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(Parent::parse(header), None, "{header}");
        }
    }

    #[test]
    fn the_caller_decides_and_chance_where_there_is_none() {
        let parent = |is_sampled| Parent { context: SpanContext { trace_id: 1, span_id: 1 }, is_sampled };
        assert!(is_sampled(Some(&parent(true)), 999, 0) && !is_sampled(Some(&parent(false)), 0, 1000));
        assert!(is_sampled(None, 9, 10) && !is_sampled(None, 10, 10) && !is_sampled(None, 0, 0));
    }
}

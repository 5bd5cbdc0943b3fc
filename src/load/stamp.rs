//! The mark that the generator puts into what it sends: which run it belongs to and when it was *meant* to be sent.
//!
//! ```text
//! @ 1f00c0de : 0000000001234567890 @ xxxxx…
//!   run, hex   ns since the run's start  padding up to the body's size
//! ```
//!
//! The mark is found in whatever envelope the hub wraps around the body, without parsing it: the generator's own cost
//! per delivery has to stay far below the hub's.

use memchr::memmem::Finder;

/// Bytes of a mark; a body can't be smaller.
pub(crate) const STAMP_BYTES: usize = 30;

const DIGITS: usize = 19;

/// Writes and finds the marks of one run.
#[derive(Debug, Clone)]
pub(crate) struct Stamp {
    prefix: String,
    finder: Finder<'static>,
}

impl Stamp {
    /// `run` tells this run's events from those of another that happen to be in the same room.
    pub(crate) fn new(run: u32) -> Stamp {
        let prefix = format!("@{run:08x}:");
        let finder = Finder::new(&prefix).into_owned();
        Stamp { prefix, finder }
    }

    /// Appends a body of `size` bytes, at least [`STAMP_BYTES`].
    pub(crate) fn write(&self, due_ns: u64, size: usize, out: &mut String) {
        let digits = format!("{due_ns:019}");
        let begin = out.len();
        out.push_str(&self.prefix);
        // More than nineteen digits would be three hundred years.
        out.push_str(digits.get(..DIGITS).unwrap_or(&digits));
        out.push('@');
        let written = out.len() - begin;
        out.extend(std::iter::repeat_n('x', size.saturating_sub(written)));
    }

    /// The time in the mark, if these bytes have one of this run.
    pub(crate) fn find(&self, bytes: &[u8]) -> Option<u64> {
        let at = self.finder.find(bytes)? + self.prefix.len();
        let digits = bytes.get(at..at + DIGITS)?;
        if bytes.get(at + DIGITS) != Some(&b'@') {
            return None;
        }
        number(digits)
    }
}

/// Finds the `seq` of an event without parsing the whole of it.
#[derive(Debug, Clone)]
pub(crate) struct SeqField(Finder<'static>);

impl SeqField {
    pub(crate) fn new() -> SeqField {
        SeqField(Finder::new("\"seq\":"))
    }

    /// The number of the first `seq` field. The generator's own bodies hold none, so it is the envelope's.
    pub(crate) fn find(&self, bytes: &[u8]) -> Option<u64> {
        let at = self.0.find(bytes)? + "\"seq\":".len();
        let rest = bytes.get(at..)?;
        let rest = &rest[rest.iter().take_while(|b| **b == b' ').count()..];
        let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
        number(rest.get(..digits).filter(|d| !d.is_empty())?)
    }
}

fn number(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0u64, |value, byte| {
        let digit = byte.checked_sub(b'0').filter(|d| *d <= 9)?;
        value.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_has_the_size_asked_for_and_its_time_is_found_in_any_envelope() {
        let stamp = Stamp::new(0xbeef);
        let mut body = String::new();
        stamp.write(1_234_567_890, 128, &mut body);
        assert_eq!(body.len(), 128);
        let event = format!(r#"{{"type":"t","room":"project:a","seq":42,"data":{{"body":"{body}"}}}}"#);
        assert_eq!(stamp.find(event.as_bytes()), Some(1_234_567_890));
        assert_eq!(SeqField::new().find(event.as_bytes()), Some(42));
    }

    #[test]
    fn the_smallest_body_is_the_mark_alone() {
        let mut body = String::new();
        Stamp::new(1).write(u64::MAX / 2, 0, &mut body);
        assert_eq!(body.len(), STAMP_BYTES);
        assert_eq!(Stamp::new(1).find(body.as_bytes()), Some(u64::MAX / 2));
    }

    #[test]
    fn marks_of_other_runs_and_cut_marks_are_not_found() {
        let mut body = String::new();
        Stamp::new(1).write(5, 40, &mut body);
        assert_eq!(Stamp::new(2).find(body.as_bytes()), None);
        for end in 0..STAMP_BYTES {
            assert_eq!(Stamp::new(1).find(&body.as_bytes()[..end]), None, "cut at {end}");
        }
        assert_eq!(SeqField::new().find(br#"{"seq":}"#), None);
        assert_eq!(SeqField::new().find(br#"{"seq":99999999999999999999999}"#), None);
    }
}

//! Text of other people's making, fit for a line of a terminal.

use std::borrow::Cow;
use std::fmt::Write;

/// JSON on one line: white space between tokens is dropped, and characters that a terminal acts on are escaped.
///
/// The input is valid JSON; numbers keep the digits they came with.
pub(crate) fn one_line(json: &str) -> Cow<'_, str> {
    let harmless = |c: char| !c.is_control() && !is_format(c);
    if json.chars().all(|c| harmless(c) && c != ' ') {
        return Cow::Borrowed(json);
    }
    let mut out = String::with_capacity(json.len());
    let (mut quoted, mut escaped) = (false, false);
    for c in json.chars() {
        if quoted {
            if harmless(c) {
                out.push(c)
            } else {
                escape(c, &mut out)
            }
            quoted = escaped || c != '"';
            escaped = !escaped && c == '\\';
        } else if !c.is_ascii_whitespace() {
            quoted = c == '"';
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// JSON on one line as [`one_line`] gives it, with colours: keys apart from texts, and both from numbers and words.
pub(crate) fn painted(line: &str) -> String {
    const KEY: &str = "\x1b[34m";
    const TEXT: &str = "\x1b[32m";
    const VALUE: &str = "\x1b[35m";
    const END: &str = "\x1b[0m";
    let mut out = String::with_capacity(line.len() * 2);
    let mut rest = line;
    while let Some(first) = rest.chars().next() {
        let (length, colour) = match first {
            '"' => {
                let length = quoted_length(rest);
                (length, if rest[length..].starts_with(':') { KEY } else { TEXT })
            }
            '{' | '}' | '[' | ']' | ',' | ':' => (1, ""),
            _ => (rest.find(['{', '}', '[', ']', ',', ':', '"']).unwrap_or(rest.len()), VALUE),
        };
        let (token, behind) = rest.split_at(length);
        rest = behind;
        out.push_str(colour);
        out.push_str(token);
        out.push_str(if colour.is_empty() { "" } else { END });
    }
    out
}

/// The length of the string that a text begins with, with its quotes.
fn quoted_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        if c == '"' && !escaped {
            return at + 1;
        }
        escaped = !escaped && c == '\\';
    }
    text.len()
}

/// Plain text without characters that a terminal acts on.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    if text.chars().all(|c| !c.is_control() && !is_format(c)) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().map(|c| if c.is_control() || is_format(c) { '\u{fffd}' } else { c }).collect())
}

/// Characters that turn the direction of text around: what is seen would not be what is there.
fn is_format(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn escape(c: char, out: &mut String) {
    let mut units = [0u16; 2];
    for unit in c.encode_utf16(&mut units) {
        // Writing to a String can't fail.
        write!(out, "\\u{unit:04x}").unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pretty_printed_json_becomes_one_line_with_the_same_meaning() {
        let json = "{\n  \"a b\": [1.00, \"x \\\" y\\\\\", null],\r\n\t\"c\": {}\n}";
        let line = one_line(json);
        assert_eq!(line, r#"{"a b":[1.00,"x \" y\\",null],"c":{}}"#);
        let value = |t: &str| serde_json::from_str::<serde_json::Value>(t).unwrap();
        assert_eq!(value(json), value(&line));
    }

    #[test]
    fn what_a_terminal_acts_on_is_escaped() {
        assert_eq!(one_line("\"a\u{9b}2Jb\u{7f}\u{202e}c\""), r#""a\u009b2Jb\u007f\u202ec""#);
        assert_eq!(plain("a\u{1b}[2J"), "a\u{fffd}[2J");
    }

    #[test]
    fn colours_tell_keys_texts_and_values_apart_and_change_nothing_else() {
        let line = r#"{"a":"b, \"c\": {","d":[1.5,true,{}],"é\\":"","n":null}"#;
        let colours = painted(line);
        assert!(colours.starts_with("{\x1b[34m\"a\"\x1b[0m:\x1b[32m\"b, \\\"c\\\": {\"\x1b[0m,"), "{colours:?}");
        assert!(colours.contains("\x1b[35m1.5\x1b[0m,\x1b[35mtrue\x1b[0m,{}]"), "{colours:?}");
        let stripped =
            ["34", "32", "35", "0"].iter().fold(colours, |text, code| text.replace(&format!("\x1b[{code}m"), ""));
        assert_eq!(stripped, line);
        assert_eq!(painted("\"open"), "\x1b[32m\"open\x1b[0m");
        assert_eq!(painted(""), "");
    }

    #[test]
    fn compact_json_is_not_copied() {
        assert!(matches!(one_line(r#"{"a":1}"#), Cow::Borrowed(_)));
    }
}

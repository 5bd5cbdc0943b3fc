//! `Sec-WebSocket-Extensions`: of the extensions the hub knows `permessage-deflate` (RFC 7692 §7.1), and this is how the two
//! sides agree on it.
//!
//! ```text
//! permessage-deflate; client_max_window_bits; server_max_window_bits=10, permessage-deflate
//! └─────────────────────── first offer ────────────────────────────────┘ └── second ──────┘
//! ```
//!
//! Offers are looked at in the client's order, and the first that can be met is. What an offer says that the hub does not
//! know, says twice or with a value that can't be, declines that offer and no other.

use std::borrow::Cow;

use super::upgrade::is_token_byte;

/// The extension's name.
const PERMESSAGE_DEFLATE: &str = "permessage-deflate";

/// Windows have 2^8 to 2^15 bytes (RFC 7692 §7.1.2).
const WINDOW_BITS: std::ops::RangeInclusive<u8> = 8..=WINDOW_BITS_MAX;

/// The largest window, which is what counts where nothing is said.
pub const WINDOW_BITS_MAX: u8 = 15;

/// The smallest window that the hub can compress with: zlib's algorithm has no smaller one, and takes 2^9 where it is told 2^8,
/// which a receiver with 2^8 could not follow. As a receiver the hub follows any.
pub const SERVER_WINDOW_BITS_MIN: u8 = 9;

/// What the hub agrees to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeflateTerms {
    /// The largest window that the hub compresses with, as a power of two: 9 to 15.
    pub window_bits: u8,
    /// The largest window that the hub keeps of what a client has sent, as a power of two; 0: none, so that the client
    /// compresses each message by itself.
    pub client_window_bits: u8,
}

/// What was agreed. The hub itself compresses each message by itself, always: so that one compressed event is right for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deflate {
    /// The window that the hub compresses with, as a power of two.
    pub window_bits: u8,
    /// The window that is to be kept of what the client sends, as a power of two; 0 where it compresses each message by itself.
    pub client_window_bits: u8,
    /// Whether the client has to be told its window.
    limits_client: bool,
    /// Whether the client has asked for a window of the hub's.
    limits_server: bool,
}

/// The header can't be read (RFC 6455 §9.1): the connection must fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MalformedExtensions;

/// What one offer of the extension asks for.
#[derive(Debug, Clone, Copy, Default)]
struct Offer {
    server_no_context_takeover: Said,
    client_no_context_takeover: Said,
    server_max_window_bits: Said,
    client_max_window_bits: Said,
    /// Something in it can't be met.
    is_declined: bool,
}

/// What an offer says about a parameter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Said {
    #[default]
    Nothing,
    /// It is there, without a value.
    Name,
    /// It is there with a number of bits.
    Bits(u8),
}

/// Agrees on the first offer that can be met; none where there is none. Several header lines are one list.
pub fn agree<'h>(
    lines: impl IntoIterator<Item = &'h str>,
    terms: DeflateTerms,
) -> Result<Option<Deflate>, MalformedExtensions> {
    let mut agreed = None;
    // Read to the end even where the first offer is met: what is malformed fails, wherever it stands.
    for line in lines {
        let mut list = Cursor { rest: line.as_bytes() };
        loop {
            list.skip_blanks();
            if list.rest.is_empty() {
                break;
            }
            // RFC 9110 §5.6.1.2: empty list elements are to be ignored.
            if list.take(b',') {
                continue;
            }
            let offer = list.extension()?;
            agreed = agreed.or_else(|| offer.and_then(|offer| offer.meet(terms)));
            list.skip_blanks();
            if !list.rest.is_empty() && !list.take(b',') {
                return Err(MalformedExtensions);
            }
        }
    }
    Ok(agreed)
}

impl Deflate {
    /// The same, but that the client compresses each message by itself.
    pub fn without_client_window(self) -> Deflate {
        Deflate { client_window_bits: 0, limits_client: false, ..self }
    }

    /// Appends the header's value that tells the client.
    pub fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(PERMESSAGE_DEFLATE.as_bytes());
        out.extend_from_slice(b"; server_no_context_takeover");
        if self.client_window_bits == 0 {
            // §7.1.1.2: every client has to follow this, whether it offered it or not.
            out.extend_from_slice(b"; client_no_context_takeover");
        }
        let mut write_bits = |name: &str, bits: u8| {
            out.extend_from_slice(b"; ");
            out.extend_from_slice(name.as_bytes());
            out.push(b'=');
            out.extend_from_slice(itoa::Buffer::new().format(bits).as_bytes());
        };
        if self.limits_server || self.window_bits < WINDOW_BITS_MAX {
            write_bits("server_max_window_bits", self.window_bits);
        }
        if self.limits_client {
            write_bits("client_max_window_bits", self.client_window_bits);
        }
    }
}

impl Offer {
    /// Notes a parameter.
    fn note(&mut self, name: &str, value: Option<&str>) {
        // §7: a parameter that the extension does not have, one that is there twice, and a value that it can't have.
        let (place, said) = match name {
            "server_no_context_takeover" => (&mut self.server_no_context_takeover, flag(value)),
            "client_no_context_takeover" => (&mut self.client_no_context_takeover, flag(value)),
            "server_max_window_bits" => (&mut self.server_max_window_bits, value.and_then(bits)),
            // A value is only a hint here, and need not be there (§7.1.2.2).
            "client_max_window_bits" => (
                &mut self.client_max_window_bits,
                match value {
                    None => Some(Said::Name),
                    Some(value) => bits(value),
                },
            ),
            _ => {
                self.is_declined = true;
                return;
            }
        };
        match said {
            Some(said) if *place == Said::Nothing => *place = said,
            _ => self.is_declined = true,
        }
    }

    fn meet(self, terms: DeflateTerms) -> Option<Deflate> {
        if self.is_declined {
            return None;
        }
        let wanted_bits = match self.server_max_window_bits {
            Said::Bits(bits) => Some(bits),
            Said::Name | Said::Nothing => None,
        };
        let window_bits = wanted_bits.map_or(terms.window_bits, |wanted| wanted.min(terms.window_bits));
        if window_bits < SERVER_WINDOW_BITS_MIN {
            return None;
        }
        let starts_afresh = self.client_no_context_takeover != Said::Nothing;
        let client_window_bits = match self.client_max_window_bits {
            _ if starts_afresh => 0,
            // §7.1.2.2: a client that does not offer it can't be told a window, and has the largest.
            Said::Nothing if terms.client_window_bits < WINDOW_BITS_MAX => 0,
            Said::Bits(bits) if terms.client_window_bits > 0 => bits.min(terms.client_window_bits),
            Said::Nothing | Said::Name | Said::Bits(_) => terms.client_window_bits,
        };
        let limits_client = client_window_bits > 0 && self.client_max_window_bits != Said::Nothing;
        Some(Deflate { window_bits, client_window_bits, limits_client, limits_server: wanted_bits.is_some() })
    }
}

fn flag(value: Option<&str>) -> Option<Said> {
    value.is_none().then_some(Said::Name)
}

/// §7.1.2: a decimal number from 8 to 15 without leading zeros.
fn bits(value: &str) -> Option<Said> {
    let is_number = !value.starts_with('0') && value.bytes().all(|byte| byte.is_ascii_digit());
    value.parse().ok().filter(|bits| is_number && WINDOW_BITS.contains(bits)).map(Said::Bits)
}

/// Reads what is left of a header line.
struct Cursor<'h> {
    rest: &'h [u8],
}

impl<'h> Cursor<'h> {
    /// An extension with its parameters; none where it is another one than the hub knows.
    fn extension(&mut self) -> Result<Option<Offer>, MalformedExtensions> {
        let is_known = self.token()? == PERMESSAGE_DEFLATE;
        let mut offer = Offer::default();
        loop {
            self.skip_blanks();
            if !self.take(b';') {
                return Ok(is_known.then_some(offer));
            }
            self.skip_blanks();
            let name = self.token()?;
            self.skip_blanks();
            if self.take(b'=') {
                self.skip_blanks();
                let value = self.value()?;
                offer.note(name, Some(&value));
            } else {
                offer.note(name, None);
            }
        }
    }

    fn skip_blanks(&mut self) {
        let blanks = self.rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        self.rest = self.rest.get(blanks..).unwrap_or_default();
    }

    fn take(&mut self, byte: u8) -> bool {
        let rest = self.rest.strip_prefix(&[byte]);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn token(&mut self) -> Result<&'h str, MalformedExtensions> {
        let length = self.rest.iter().take_while(|byte| is_token_byte(**byte)).count();
        let (token, rest) = self.rest.split_at_checked(length).ok_or(MalformedExtensions)?;
        self.rest = rest;
        std::str::from_utf8(token).ok().filter(|token| !token.is_empty()).ok_or(MalformedExtensions)
    }

    /// A token, as it is or in quotes. What stands in quotes must be a token as well (RFC 6455 §9.1).
    fn value(&mut self) -> Result<Cow<'h, str>, MalformedExtensions> {
        if !self.take(b'"') {
            return self.token().map(Cow::Borrowed);
        }
        let mut value = String::new();
        loop {
            let [byte, rest @ ..] = self.rest else { return Err(MalformedExtensions) };
            self.rest = rest;
            let byte = match byte {
                b'"' if value.is_empty() => return Err(MalformedExtensions),
                b'"' => return Ok(Cow::Owned(value)),
                b'\\' => {
                    let [escaped, rest @ ..] = self.rest else { return Err(MalformedExtensions) };
                    self.rest = rest;
                    *escaped
                }
                byte => *byte,
            };
            if !is_token_byte(byte) {
                return Err(MalformedExtensions);
            }
            value.push(char::from(byte));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DEFAULT: DeflateTerms = DeflateTerms { window_bits: 15, client_window_bits: 0 };
    const KEEPS_15: DeflateTerms = DeflateTerms { window_bits: 15, client_window_bits: 15 };
    const KEEPS_12: DeflateTerms = DeflateTerms { window_bits: 12, client_window_bits: 12 };

    fn answer(lines: &[&str], terms: DeflateTerms) -> Option<String> {
        let agreed = agree(lines.iter().copied(), terms).expect("well formed");
        agreed.map(|agreed| {
            let mut out = Vec::new();
            agreed.write(&mut out);
            String::from_utf8(out).expect("text")
        })
    }

    fn agreed(line: &str, terms: DeflateTerms) -> Option<Deflate> {
        agree([line], terms).expect("well formed")
    }

    const AFRESH: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

    #[test]
    fn what_browsers_offer_is_answered_exactly() {
        for (offer, response) in [
            ("permessage-deflate", AFRESH),
            // Chrome, Firefox; Safari.
            ("permessage-deflate; client_max_window_bits", AFRESH),
            ("x-webkit-deflate-frame, permessage-deflate; client_max_window_bits", AFRESH),
            ("permessage-deflate; client_no_context_takeover; server_no_context_takeover", AFRESH),
            ("permessage-deflate;client_max_window_bits=10", AFRESH),
        ] {
            assert_eq!(answer(&[offer], DEFAULT).as_deref(), Some(response), "{offer}");
        }
        let wanted = answer(&["permessage-deflate; server_max_window_bits=10"], DEFAULT);
        assert_eq!(wanted, Some(format!("{AFRESH}; server_max_window_bits=10")));
        let wanted = answer(&["permessage-deflate; server_max_window_bits=15"], DEFAULT);
        assert_eq!(wanted, Some(format!("{AFRESH}; server_max_window_bits=15")), "what is asked for is told");
        let smaller = DeflateTerms { window_bits: 11, ..DEFAULT };
        for offer in ["permessage-deflate", "permessage-deflate; server_max_window_bits=13"] {
            assert_eq!(answer(&[offer], smaller), Some(format!("{AFRESH}; server_max_window_bits=11")));
        }
    }

    #[test]
    fn a_client_keeps_its_context_where_the_hub_keeps_its_window() {
        let head = "permessage-deflate; server_no_context_takeover";
        for (terms, offer, response) in [
            (KEEPS_15, "", String::from(head)),
            (KEEPS_15, "; client_max_window_bits", format!("{head}; client_max_window_bits=15")),
            (KEEPS_15, "; client_max_window_bits=9", format!("{head}; client_max_window_bits=9")),
            (KEEPS_15, "; client_no_context_takeover; client_max_window_bits", String::from(AFRESH)),
            (
                KEEPS_12,
                "; client_max_window_bits",
                format!("{head}; server_max_window_bits=12; client_max_window_bits=12"),
            ),
            (
                KEEPS_12,
                "; client_max_window_bits=8",
                format!("{head}; server_max_window_bits=12; client_max_window_bits=8"),
            ),
            // It could not be told that its window has to be smaller.
            (KEEPS_12, "", format!("{AFRESH}; server_max_window_bits=12")),
        ] {
            assert_eq!(answer(&[&format!("permessage-deflate{offer}")], terms), Some(response), "{terms:?} {offer}");
        }
        assert_eq!(
            agreed("permessage-deflate; client_max_window_bits=9", KEEPS_15).map(|it| it.client_window_bits),
            Some(9)
        );
        assert_eq!(agreed("permessage-deflate", DEFAULT).map(|it| it.client_window_bits), Some(0));
    }

    #[test]
    fn an_offer_that_can_t_be_met_declines_itself_only() {
        for parameters in [
            "unknown",
            "server_no_context_takeover=1",
            "client_no_context_takeover=\"true\"",
            "server_no_context_takeover; server_no_context_takeover",
            "client_max_window_bits; client_max_window_bits=10",
            "server_max_window_bits",
            "server_max_window_bits=8",
            "server_max_window_bits=7",
            "server_max_window_bits=16",
            "server_max_window_bits=010",
            "server_max_window_bits=+9",
            "server_max_window_bits=1000000000000000000000",
            "client_max_window_bits=7",
            "client_max_window_bits=0",
            "client_max_window_bits=a",
            "Client_Max_Window_Bits=10",
        ] {
            let offer = format!("permessage-deflate; {parameters}");
            assert_eq!(answer(&[&offer], DEFAULT), None, "{offer}");
            let followed = format!("{offer}, permessage-deflate; server_max_window_bits=12, permessage-deflate");
            assert_eq!(answer(&[&followed], DEFAULT), Some(format!("{AFRESH}; server_max_window_bits=12")), "{offer}");
        }
        assert_eq!(answer(&[], DEFAULT), None);
        assert_eq!(answer(&["permessage-bzip2; a=1", "Permessage-Deflate, , x; y=\"z\""], DEFAULT), None);
    }

    #[test]
    fn several_lines_are_one_list_and_values_may_be_quoted() {
        let lines = [
            "foo; bar=\"a\\b\", permessage-deflate; server_max_window_bits=\"7\"",
            ",,",
            "permessage-deflate ;\tserver_max_window_bits = \"1\\0\" ,",
        ];
        assert_eq!(answer(&lines, DEFAULT), Some(format!("{AFRESH}; server_max_window_bits=10")));
    }

    #[test]
    fn a_header_that_can_t_be_read_is_an_error_wherever_that_is() {
        for line in [
            "permessage-deflate;",
            "permessage-deflate; ; x",
            "permessage-deflate; x=",
            "permessage-deflate; x=\"\"",
            "permessage-deflate; x=\"a",
            "permessage-deflate; x=\"a\\",
            "permessage-deflate; x=\"a b\"",
            "permessage-deflate x",
            "permessage-deflate, =1",
            "a/b",
            "é",
        ] {
            assert_eq!(agree([line], DEFAULT), Err(MalformedExtensions), "{line}");
            assert_eq!(agree(["permessage-deflate", line], DEFAULT), Err(MalformedExtensions), "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_header_is_read_or_refused_and_what_is_agreed_is_within_the_terms(
            line in "(permessage-deflate|x)(; ?(server|client)_(max_window_bits|no_context_takeover)(=(\"?[0-9]{1,2}\"?))?){0,3}[,; =\"\\\\]{0,2}",
            window_bits in 9u8..=15,
            client_window_bits in prop::sample::select(vec![0u8, 8, 9, 12, 15]),
        ) {
            let terms = DeflateTerms { window_bits, client_window_bits };
            if let Ok(Some(agreed)) = agree([&*line], terms) {
                prop_assert!((9..=window_bits).contains(&agreed.window_bits));
                prop_assert!(agreed.client_window_bits <= client_window_bits);
                let mut out = Vec::new();
                agreed.write(&mut out);
                prop_assert!(out.starts_with(b"permessage-deflate; server_no_context_takeover"));
            }
        }
    }
}

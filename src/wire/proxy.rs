//! The PROXY protocol, versions 1 and 2: a trusted proxy tells the client's address ahead of the first byte.
//!
//! Source: HAProxy's `doc/proxy-protocol.txt`. Only connections from `listen.trusted_proxies` are asked for a header.
//!
//! ```text
//! v1   PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n        at most 107 bytes
//! v2   signature 12 | version 4, command 4 | family 4, transport 4 | length 16 | addresses, then TLVs: length bytes
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest header accepted. Version 2 can announce 64 KiB; addresses and the TLVs in use (authority, TLS versions,
/// cloud endpoint ids) stay below 1 KiB, a client certificate's subject included.
pub const PROXY_BYTES_MAX: usize = 4096;

/// The longest version 1 line with its CR LF.
const V1_BYTES_MAX: usize = 107;

const V1_START: &[u8] = b"PROXY ";
const V2_START: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// What the first bytes of a connection are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proxy {
    /// The beginning of a header: ask again with more.
    Incomplete,
    /// A whole header of `bytes` bytes; the client's own bytes follow.
    Header {
        /// The client's address; `None` when the proxy speaks for itself (LOCAL, a health check) or doesn't know
        /// (UNKNOWN, UNSPEC, unix sockets): then the connection's own address holds.
        source: Option<SocketAddr>,
        /// The header's length.
        bytes: usize,
    },
    /// No header, or a malformed one, and why. The connection is to be closed: guessing would let clients choose their
    /// address.
    Invalid(&'static str),
}

/// Reads a PROXY header from the first bytes of a connection.
pub fn parse(bytes: &[u8]) -> Proxy {
    if is_start_of(bytes, V2_START) {
        parse_v2(bytes)
    } else if is_start_of(bytes, V1_START) {
        parse_v1(bytes)
    } else {
        Proxy::Invalid("no PROXY header")
    }
}

/// Whether the two agree as far as both go.
fn is_start_of(bytes: &[u8], signature: &[u8]) -> bool {
    bytes.iter().zip(signature).all(|(a, b)| a == b)
}

fn parse_v1(bytes: &[u8]) -> Proxy {
    let window = bytes.get(..V1_BYTES_MAX).unwrap_or(bytes);
    let Some(end) = memchr::memchr(b'\n', window) else {
        return if window.len() == V1_BYTES_MAX { Proxy::Invalid("PROXY line too long") } else { Proxy::Incomplete };
    };
    let line = window.get(..end).and_then(|line| line.strip_suffix(b"\r")).and_then(|line| line.strip_prefix(V1_START));
    let Some(line) = line.and_then(|line| std::str::from_utf8(line).ok()) else {
        return Proxy::Invalid("PROXY line malformed");
    };
    // What follows UNKNOWN is to be ignored.
    let source = if line == "UNKNOWN" || line.starts_with("UNKNOWN ") {
        None
    } else {
        match v1_source(line) {
            Some(source) => Some(source),
            None => return Proxy::Invalid("PROXY line malformed"),
        }
    };
    Proxy::Header { source, bytes: end + 1 }
}

/// `TCP4 source destination source-port destination-port`, with single spaces.
fn v1_source(line: &str) -> Option<SocketAddr> {
    let mut fields = line.split(' ');
    let family = fields.next()?;
    let (source, destination): (IpAddr, IpAddr) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let (source_port, _) = (port(fields.next()?)?, port(fields.next()?)?);
    let right_family = match family {
        "TCP4" => source.is_ipv4() && destination.is_ipv4(),
        "TCP6" => source.is_ipv6() && destination.is_ipv6(),
        _ => false,
    };
    (right_family && fields.next().is_none()).then(|| SocketAddr::new(source.to_canonical(), source_port))
}

/// Decimal without a sign.
fn port(digits: &str) -> Option<u16> {
    digits.bytes().all(|digit| digit.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}

fn parse_v2(bytes: &[u8]) -> Proxy {
    let Some((&[version_command, family_transport, high, low], rest)) =
        bytes.get(V2_START.len()..).and_then(<[u8]>::split_first_chunk)
    else {
        return Proxy::Incomplete;
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    let header_bytes = V2_START.len() + 4 + length;
    if version_command >> 4 != 2 {
        return Proxy::Invalid("unknown PROXY version");
    }
    if header_bytes > PROXY_BYTES_MAX {
        return Proxy::Invalid("PROXY header too long");
    }
    let Some(body) = rest.get(..length) else { return Proxy::Incomplete };
    let source = match (version_command & 0xf, family_transport) {
        // LOCAL: the addresses, if any, are to be ignored.
        (0, _) => None,
        // TCP over IPv4: source, destination, source port, destination port.
        (1, 0x11) => match body {
            [a, b, c, d, _, _, _, _, high, low, _, _, ..] => {
                Some(SocketAddr::new(Ipv4Addr::new(*a, *b, *c, *d).into(), u16::from_be_bytes([*high, *low])))
            }
            _ => return Proxy::Invalid("PROXY addresses cut off"),
        },
        // TCP over IPv6
        (1, 0x21) => match (body.first_chunk::<16>(), body.get(32..36)) {
            (Some(address), Some(&[high, low, _, _])) => {
                let address = IpAddr::V6(Ipv6Addr::from(*address)).to_canonical();
                Some(SocketAddr::new(address, u16::from_be_bytes([high, low])))
            }
            _ => return Proxy::Invalid("PROXY addresses cut off"),
        },
        // UNSPEC, unix sockets, datagrams and combinations that are not assigned: the addresses are of no use here.
        (1, _) => None,
        _ => return Proxy::Invalid("unknown PROXY command"),
    };
    Proxy::Header { source, bytes: header_bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(source: &str, bytes: usize) -> Proxy {
        Proxy::Header { source: Some(source.parse().unwrap()), bytes }
    }

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = V2_START.to_vec();
        bytes.extend([0x20 | command, family]);
        bytes.extend((body.len() as u16).to_be_bytes());
        bytes.extend(body);
        bytes
    }

    const V4_BODY: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 1, 0xdc, 0x04, 0x01, 0xbb];

    #[test]
    fn version_1_tells_the_source() {
        let line = b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\nGET / HTTP/1.1\r\n";
        assert_eq!(parse(line), header("192.0.2.1:56324", 45));
        let line = b"PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\n";
        assert_eq!(parse(line), header("[2001:db8::1]:56324", line.len()));
        let line = b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n";
        assert_eq!(parse(line), header("192.0.2.1:1", line.len()));
    }

    #[test]
    fn version_2_tells_the_source_and_its_tlvs_are_skipped() {
        let mut body = V4_BODY.to_vec();
        assert_eq!(parse(&v2(1, 0x11, &body)), header("192.0.2.1:56324", 28));
        body.extend([0x04, 0, 3, 1, 2, 3]);
        let mut bytes = v2(1, 0x11, &body);
        bytes.extend(b"GET");
        assert_eq!(parse(&bytes), header("192.0.2.1:56324", 34));

        let mut body = Vec::new();
        body.extend("2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
        body.extend("2001:db8::2".parse::<Ipv6Addr>().unwrap().octets());
        body.extend([0xdc, 0x04, 0x01, 0xbb]);
        assert_eq!(parse(&v2(1, 0x21, &body)), header("[2001:db8::1]:56324", 52));
    }

    #[test]
    fn a_proxy_that_speaks_for_itself_names_no_source() {
        let none = |bytes| Proxy::Header { source: None, bytes };
        assert_eq!(parse(b"PROXY UNKNOWN\r\n"), none(15));
        assert_eq!(parse(b"PROXY UNKNOWN what ever\r\n"), none(25));
        assert_eq!(parse(&v2(0, 0x00, b"")), none(16));
        assert_eq!(parse(&v2(0, 0x11, &V4_BODY)), none(28), "LOCAL with addresses");
        assert_eq!(parse(&v2(1, 0x00, b"")), none(16), "UNSPEC");
        assert_eq!(parse(&v2(1, 0x31, &[0; 216])), none(232), "unix");
    }

    #[test]
    fn headers_are_incomplete_until_their_last_byte() {
        for bytes in [
            b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n".to_vec(),
            b"PROXY UNKNOWN\r\n".to_vec(),
            v2(1, 0x11, &V4_BODY),
            v2(0, 0, b""),
        ] {
            for cut in 0..bytes.len() {
                assert_eq!(parse(&bytes[..cut]), Proxy::Incomplete, "cut at {cut}");
            }
            assert!(matches!(parse(&bytes), Proxy::Header { .. }));
        }
    }

    #[test]
    fn anything_else_is_invalid_as_early_as_it_shows() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"P ",
            b"PROXX",
            b"\r\nGET",
            b"\x16\x03\x01",
            b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.1 56324\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443 1\r\n",
            b"PROXY TCP4 192.0.2.1  198.51.100.1 56324 443\r\n",
            b"PROXY TCP4 ::1 ::1 1 2\r\n",
            b"PROXY TCP6 192.0.2.1 192.0.2.1 1 2\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.1 65536 443\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.1 +1 443\r\n",
            b"PROXY UDP4 192.0.2.1 198.51.100.1 1 2\r\n",
            b"PROXY UNKNOWNX\r\n",
            b"PROXY \xff\r\n",
            &[b'P', b'R', b'O', b'X', b'Y', b' '].iter().copied().chain([b'a'; 101]).collect::<Vec<_>>(),
            &v2(2, 0x11, &V4_BODY),
            &v2(1, 0x11, &V4_BODY[..11]),
            &v2(1, 0x21, &[0; 35]),
            &v2(1, 0x11, &[0; PROXY_BYTES_MAX]),
            b"\r\n\r\n\0\r\nQUIT\n\x11\x11\0\0",
        ] {
            assert!(matches!(parse(bytes), Proxy::Invalid(_)), "{}", bytes.escape_ascii());
        }
    }
}

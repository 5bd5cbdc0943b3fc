//! The client's address behind HTTP proxies: `X-Forwarded-For` and `Forwarded` (RFC 7239).
//!
//! Each proxy appends the address it was reached from, so only the right end is written by someone known. The walk
//! goes from there to the left over trusted proxies and stops at the first address that is none.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use smallvec::SmallVec;

use super::http::Head;

/// The client's address: `peer`, the connection's own (or the PROXY protocol's), unless that is a trusted proxy and
/// tells another.
///
/// An element that is no address (`unknown`, obfuscated names, garbage) ends the walk at the last trusted proxy. When
/// both headers are there and disagree, one of them was passed through from the client and there is no telling which:
/// then `peer` it is.
pub fn client_address(head: &Head<'_>, peer: IpAddr, trusted: impl Fn(IpAddr) -> bool) -> IpAddr {
    let peer = peer.to_canonical();
    if !trusted(peer) {
        return peer;
    }
    let x_forwarded_for: Addresses = head.headers_all("x-forwarded-for").flat_map(x_forwarded_for).collect();
    let forwarded: Addresses = head.headers_all("forwarded").flat_map(forwarded).collect();
    match (x_forwarded_for.is_empty(), forwarded.is_empty()) {
        (true, true) => peer,
        (false, true) => walk(&x_forwarded_for, peer, trusted),
        (true, false) => walk(&forwarded, peer, trusted),
        (false, false) => {
            let client = walk(&x_forwarded_for, peer, &trusted);
            if client == walk(&forwarded, peer, &trusted) { client } else { peer }
        }
    }
}

/// The elements of a header, the client's end first; `None` where no address can be read. The head's own limit bounds
/// them.
type Addresses = SmallVec<[Option<IpAddr>; 4]>;

fn walk(addresses: &[Option<IpAddr>], peer: IpAddr, trusted: impl Fn(IpAddr) -> bool) -> IpAddr {
    let mut last = peer;
    for address in addresses.iter().rev() {
        match *address {
            None => return last,
            Some(address) if trusted(address) => last = address,
            Some(address) => return address,
        }
    }
    last
}

fn x_forwarded_for(line: &str) -> impl Iterator<Item = Option<IpAddr>> {
    line.split(',').map(|element| node(element.trim()))
}

/// `for=192.0.2.60;proto=http, for="[2001:db8::1]:4711"`: the `for` of each element.
fn forwarded(line: &str) -> impl Iterator<Item = Option<IpAddr>> {
    split_unquoted(line, b',').map(|element| {
        let value = split_unquoted(element, b';').find_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            name.trim().eq_ignore_ascii_case("for").then(|| value.trim())
        })?;
        // A quoted node has nothing to escape: a backslash makes it no address.
        let unquoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
        node(unquoted.unwrap_or(value))
    })
}

/// Splits at a separator, except inside double quotes (RFC 9110 §5.6.4).
fn split_unquoted(text: &str, separator: u8) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    let mut escaped = false;
    text.split(move |character: char| {
        if escaped {
            escaped = false;
        } else if quoted && character == '\\' {
            escaped = true;
        } else if character == '"' {
            quoted = !quoted;
        }
        !quoted && character == char::from(separator)
    })
}

/// An address with or without a port; IPv6 with a port, and in `Forwarded` always, stands in brackets.
fn node(text: &str) -> Option<IpAddr> {
    let address = text.parse::<IpAddr>().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|with| with.ip()));
    let address = address.or_else(|| {
        let bracketed = text.strip_prefix('[')?.strip_suffix(']')?;
        bracketed.parse::<Ipv6Addr>().ok().map(IpAddr::V6)
    });
    address.map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::http::parse_head;

    /// The address of a client whose connection comes from 10.0.0.1 with these header lines; 10.* is trusted.
    fn client(lines: &[&str]) -> String {
        client_of("10.0.0.1", lines)
    }

    fn client_of(peer: &str, lines: &[&str]) -> String {
        let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n\r\n", lines.join("\r\n"));
        let text = text.replace("\r\n\r\n\r\n", "\r\n\r\n");
        let head = parse_head(text.as_bytes(), 16 * 1024).unwrap().unwrap();
        let trusted = |address: IpAddr| matches!(address, IpAddr::V4(v4) if v4.octets()[0] == 10);
        client_address(&head, peer.parse().unwrap(), trusted).to_string()
    }

    #[test]
    fn without_headers_the_peer_is_the_client() {
        assert_eq!(client(&[]), "10.0.0.1");
        assert_eq!(client_of("::ffff:9.9.9.9", &[]), "9.9.9.9");
    }

    #[test]
    fn headers_of_a_peer_that_is_not_trusted_are_ignored() {
        assert_eq!(client_of("9.9.9.9", &["X-Forwarded-For: 1.1.1.1", "Forwarded: for=1.1.1.1"]), "9.9.9.9");
    }

    #[test]
    fn the_walk_stops_at_the_first_address_from_the_right_that_is_not_trusted() {
        assert_eq!(client(&["X-Forwarded-For: 1.1.1.1"]), "1.1.1.1");
        assert_eq!(client(&["X-Forwarded-For: 6.6.6.6, 1.1.1.1, 10.0.0.2"]), "1.1.1.1");
        assert_eq!(client(&["X-Forwarded-For: 6.6.6.6", "X-Forwarded-For: 1.1.1.1,10.0.0.2"]), "1.1.1.1");
        assert_eq!(client(&["X-Forwarded-For: 10.0.0.3, 10.0.0.2"]), "10.0.0.3");
        assert_eq!(client(&["Forwarded: for=6.6.6.6, for=1.1.1.1;proto=https, for=10.0.0.2"]), "1.1.1.1");
    }

    #[test]
    fn addresses_come_with_ports_and_brackets() {
        assert_eq!(client(&["X-Forwarded-For: 1.1.1.1:4711"]), "1.1.1.1");
        assert_eq!(client(&["X-Forwarded-For: 2001:db8::1"]), "2001:db8::1");
        assert_eq!(client(&["X-Forwarded-For: [2001:db8::1]:80"]), "2001:db8::1");
        assert_eq!(client(&["X-Forwarded-For: ::ffff:1.1.1.1"]), "1.1.1.1");
        assert_eq!(client(&["Forwarded: By=10.0.0.1;For=\"[2001:db8:cafe::17]:4711\""]), "2001:db8:cafe::17");
        assert_eq!(client(&["Forwarded: for=\"[2001:db8:cafe::17]\""]), "2001:db8:cafe::17");
        assert_eq!(client(&["Forwarded: for=192.0.2.43;by=\"a,for=6.6.6.6;\\\"\""]), "192.0.2.43");
    }

    #[test]
    fn garbage_ends_the_walk_at_the_last_trusted_proxy() {
        assert_eq!(client(&["X-Forwarded-For: 1.1.1.1, unknown, 10.0.0.2"]), "10.0.0.2");
        assert_eq!(client(&["X-Forwarded-For: 1.1.1.1,"]), "10.0.0.1");
        for value in ["", "for=_hidden", "for=unknown", "proto=http", "for=\"1.1.1.1", "for=1.1.1.1\\", "for=[::1"] {
            assert_eq!(client(&[&format!("Forwarded: {value}")]), "10.0.0.1", "{value}");
        }
    }

    #[test]
    fn two_headers_count_only_when_they_agree() {
        assert_eq!(client(&["X-Forwarded-For: 1.1.1.1", "Forwarded: for=1.1.1.1"]), "1.1.1.1");
        assert_eq!(client(&["X-Forwarded-For: 1.1.1.1", "Forwarded: for=6.6.6.6"]), "10.0.0.1");
    }
}

//! Addresses in the configuration: listeners, networks, trusted proxies.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use super::value::{Input, OptionValue};

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Listen {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A unix socket, by the path of its file.
    Unix(PathBuf),
}

impl Listen {
    /// Whether only this machine can reach the address.
    pub fn is_local(&self) -> bool {
        match self {
            Listen::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Listen::Unix(_) => true,
        }
    }
}

/// The longest path a unix socket can have (`sun_path` less its end mark).
const UNIX_PATH_BYTES_MAX: usize = 107;

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.len() {
                1..=UNIX_PATH_BYTES_MAX if path.starts_with('/') => Ok(Listen::Unix(PathBuf::from(path))),
                _ => {
                    Err(format!("{text:?}: expected unix: and an absolute path of at most {UNIX_PATH_BYTES_MAX} bytes"))
                }
            };
        }
        // The one name that means the same everywhere; others would need a resolver, and could mean several addresses.
        let address = match text.strip_prefix("localhost:") {
            Some(port) => format!("127.0.0.1:{port}"),
            None => text.to_owned(),
        };
        let address = address.parse::<SocketAddr>();
        address.map(Listen::Tcp).map_err(|_| format!("{text:?}: expected ADDRESS:PORT, [V6]:PORT or unix:/path"))
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Tcp(address) => write!(f, "{address}"),
            Listen::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl OptionValue for Vec<Listen> {
    const KIND: &'static str = "address or list of addresses";

    fn read(input: Input<'_>, unit: &str) -> Result<Self, String> {
        let listeners: Self =
            Vec::<String>::read(input, unit)?.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
        if listeners.is_empty() { Err("expected at least one address".to_owned()) } else { Ok(listeners) }
    }

    fn show(&self) -> toml::Value {
        toml::Value::Array(self.iter().map(|listen| toml::Value::String(listen.to_string())).collect())
    }
}

impl OptionValue for Option<Listen> {
    const KIND: &'static str = "address";

    fn read(input: Input<'_>, _unit: &str) -> Result<Self, String> {
        let text = input.text()?;
        if text.is_empty() { Ok(None) } else { text.parse().map(Some) }
    }

    fn show(&self) -> toml::Value {
        toml::Value::String(self.as_ref().map(Listen::to_string).unwrap_or_default())
    }
}

/// A network: an address and how many of its leading bits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpNet {
    base: IpAddr,
    bits: u8,
}

impl IpNet {
    /// Whether `address` is in the network; an IPv4 address mapped into IPv6 counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.base, address.to_canonical()) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0);
                base.to_bits() & mask == address.to_bits() & mask
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.bits)).unwrap_or(0);
                base.to_bits() & mask == address.to_bits() & mask
            }
            _ => false,
        }
    }
}

impl FromStr for IpNet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("{text:?}: expected an address, a network such as 10.0.0.0/8, or the word unix");
        let (base, bits) = match text.split_once('/') {
            Some((base, bits)) => (base, Some(bits.parse::<u8>().map_err(|_| expected())?)),
            None => (text, None),
        };
        let base: IpAddr = base.parse().map_err(|_| expected())?;
        let width = if base.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(width);
        if bits > width {
            return Err(expected());
        }
        // `::ffff:10.0.0.0/104` is a network of IPv4 addresses.
        match (base, base.to_canonical()) {
            (IpAddr::V6(_), canonical @ IpAddr::V4(_)) if bits >= 96 => Ok(Self { base: canonical, bits: bits - 96 }),
            _ => Ok(Self { base, bits }),
        }
    }
}

impl fmt::Display for IpNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.bits)
    }
}

/// The peers that are believed about a client's address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies {
    /// Networks of proxies that come over TCP.
    pub nets: Vec<IpNet>,
    /// Whether peers on unix sockets are proxies.
    pub unix: bool,
}

impl TrustedProxies {
    /// Whether the peer with this address (none for a unix socket) is a trusted proxy.
    pub fn trusts(&self, peer: Option<IpAddr>) -> bool {
        match peer {
            Some(address) => self.nets.iter().any(|net| net.contains(address)),
            None => self.unix,
        }
    }
}

impl OptionValue for TrustedProxies {
    const KIND: &'static str = "list of networks";

    fn read(input: Input<'_>, unit: &str) -> Result<Self, String> {
        let mut trusted = Self::default();
        for item in Vec::<String>::read(input, unit)? {
            if item == "unix" {
                trusted.unix = true;
            } else {
                trusted.nets.push(item.parse()?);
            }
        }
        Ok(trusted)
    }

    fn show(&self) -> toml::Value {
        let nets = self.nets.iter().map(IpNet::to_string);
        let unix = self.unix.then(|| "unix".to_owned());
        toml::Value::Array(nets.chain(unix).map(toml::Value::String).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(net: &str, address: &str) -> bool {
        net.parse::<IpNet>().expect("a network").contains(address.parse().expect("an address"))
    }

    #[test]
    fn a_network_holds_the_addresses_that_share_its_leading_bits() {
        assert!(contains("10.0.0.0/8", "10.255.0.1"));
        assert!(!contains("10.0.0.0/8", "11.0.0.1"));
        assert!(contains("10.1.2.3/8", "10.9.9.9"), "bits beyond the mask do not count");
        assert!(contains("192.0.2.7", "192.0.2.7"));
        assert!(!contains("192.0.2.7", "192.0.2.8"));
        assert!(contains("0.0.0.0/0", "203.0.113.9"));
        assert!(contains("2001:db8::/32", "2001:db8:1::1"));
        assert!(!contains("2001:db8::/32", "2001:db9::1"));
        assert!(contains("::/0", "2001:db8::1"));
    }

    #[test]
    fn mapped_addresses_count_as_ipv4() {
        assert!(contains("10.0.0.0/8", "::ffff:10.1.1.1"));
        assert!(contains("::ffff:10.0.0.0/104", "10.1.1.1"));
        assert!(!contains("::/0", "10.1.1.1"), "a network of IPv6 holds no IPv4");
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for wrong in ["", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/-1", "::/129", "proxy.example", "10.0.0.0/8/8"] {
            assert!(wrong.parse::<IpNet>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn unix_peers_are_trusted_only_by_the_word() {
        let trusted = |text: &str| TrustedProxies::read(Input::Text(text), "").expect("valid");
        assert!(!TrustedProxies::default().trusts(None));
        assert!(trusted("unix").trusts(None));
        assert!(!trusted("127.0.0.1").trusts(None));
        let both = trusted("127.0.0.1, unix");
        assert!(both.trusts(Some(IpAddr::from([127, 0, 0, 1]))) && both.trusts(None));
        assert!(!both.trusts(Some(IpAddr::from([127, 0, 0, 2]))));
    }
}

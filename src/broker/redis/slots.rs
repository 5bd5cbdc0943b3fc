//! The slots of a cluster: which primary has each, as one of its servers knows it. Pure.

use std::borrow::Cow;
use std::fmt;

use redis::Value;

/// Slots of a cluster.
pub const SLOTS: u16 = 16_384;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// Its host.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(formatter, "[{}]:{}", self.host, self.port),
            false => write!(formatter, "{}:{}", self.host, self.port),
        }
    }
}

/// What a server of a cluster knows.
#[derive(Debug, PartialEq, Eq)]
pub struct Topology {
    /// It serves its slots. Not so one that is parted from most of the others.
    pub is_ok: bool,
    /// Grows with every change that is agreed upon: who knows a greater one knows better.
    pub epoch: u64,
    /// Ranges of slots, both ends included, and who has them.
    pub ranges: Vec<(u16, u16, Address)>,
    /// All servers that it tells of, replicas too.
    pub servers: Vec<Address>,
}

impl Topology {
    /// Reads the answers to CLUSTER SLOTS and CLUSTER INFO of the server at `host`. None where one of them is none; who may
    /// not ask for the second is believed.
    pub fn read(host: &str, slots: &Value, info: Option<&str>) -> Option<Topology> {
        let epoch = info.and_then(|info| told(info, "cluster_current_epoch")?.parse().ok()).unwrap_or(0);
        let Value::Array(parts) = slots else { return None };
        let mut ranges = Vec::with_capacity(parts.len());
        let mut servers = Vec::new();
        for part in parts {
            let (first, last, told) = range(host, part)?;
            ranges.extend(told.first()?.clone().map(|primary| (first, last, primary)));
            servers.extend(told.into_iter().flatten());
        }
        Some(Topology { is_ok: info.is_none_or(is_serving), epoch, ranges, servers: distinct(servers) })
    }

    /// Who has a slot.
    pub fn owner(&self, slot: u16) -> Option<&Address> {
        let range = self.ranges.iter().find(|(first, last, _)| (*first..=*last).contains(&slot));
        range.map(|(.., owner)| owner)
    }

    /// All who have slots.
    pub fn primaries(&self) -> Vec<Address> {
        distinct(self.ranges.iter().map(|(.., primary)| primary.clone()).collect())
    }
}

fn distinct(mut servers: Vec<Address>) -> Vec<Address> {
    servers.sort_unstable();
    servers.dedup();
    servers
}

/// What several servers know together, each with where it is, if that is known; none where none of them serves its slots.
///
/// Those count that know the greatest epoch. It does not grow with each slot that moves, so that they may differ all the same:
/// then one is believed of the slots that it says are its own, and of those that others say are its, and are not.
pub fn agreed(views: Vec<(Option<Address>, Topology)>) -> Option<Topology> {
    let serving = || views.iter().filter(|(_, told)| told.is_ok);
    let epoch = serving().map(|(_, told)| told.epoch).max()?;
    let views: Vec<View<'_>> = serving().filter(|(_, told)| told.epoch == epoch).map(View::new).collect();
    let mut ranges: Vec<(u16, u16, Address)> = Vec::new();
    for slot in 0..SLOTS {
        let Some(owner) = owner(&views, slot) else { continue };
        match ranges.last_mut() {
            Some((_, last, of)) if *last + 1 == slot && of == owner => *last = slot,
            _ => ranges.push((slot, slot, owner.clone())),
        }
    }
    let servers = views.iter().flat_map(|view| view.servers).cloned().collect();
    Some(Topology { is_ok: true, epoch, ranges, servers: distinct(servers) })
}

/// Who has a slot.
fn owner<'a>(views: &[View<'a>], slot: u16) -> Option<&'a Address> {
    let its_own = views.iter().find(|view| view.at.is_some() && view.owner(slot) == view.at);
    if let Some(view) = its_own {
        return view.at;
    }
    let told = views.iter().find_map(|view| view.owner(slot))?;
    // It says that it is another's, or nobody's.
    views.iter().find(|view| view.at == Some(told)).map_or(Some(told), |view| view.owner(slot))
}

/// What one server knows.
struct View<'a> {
    at: Option<&'a Address>,
    owners: Vec<Option<&'a Address>>,
    servers: &'a [Address],
}

impl<'a> View<'a> {
    fn new((at, told): &'a (Option<Address>, Topology)) -> View<'a> {
        let mut owners = vec![None; usize::from(SLOTS)];
        for (first, last, address) in &told.ranges {
            if let Some(owners) = owners.get_mut(usize::from(*first)..=usize::from(*last).min(usize::from(SLOTS) - 1)) {
                owners.fill(Some(address));
            }
        }
        View { at: at.as_ref(), owners, servers: &told.servers }
    }

    fn owner(&self, slot: u16) -> Option<&'a Address> {
        self.owners.get(usize::from(slot)).copied().flatten()
    }
}

/// Whether a server serves its slots, as CLUSTER INFO tells.
pub fn is_serving(info: &str) -> bool {
    told(info, "cluster_state") == Some("ok")
}

/// What CLUSTER INFO tells of something.
fn told<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = info.lines().filter_map(|line| line.trim_end().split_once(':'));
    lines.find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// A range of slots, and where the primary and its replicas are, as far as that is told. None where it is none.
fn range(host: &str, range: &Value) -> Option<(u16, u16, Vec<Option<Address>>)> {
    let Value::Array(parts) = range else { return None };
    let [Value::Int(first), Value::Int(last), primary, replicas @ ..] = &parts[..] else { return None };
    let mut servers = vec![address(host, primary)?];
    // None of these is needed.
    servers.extend(replicas.iter().map(|replica| address(host, replica).flatten()));
    Some((u16::try_from(*first).ok()?, u16::try_from(*last).ok()?, servers))
}

/// Where a server is; nothing within where that is not told. None where it is no server.
#[allow(clippy::option_option)]
fn address(host: &str, server: &Value) -> Option<Option<Address>> {
    let Value::Array(parts) = server else { return None };
    let [told, Value::Int(port), ..] = &parts[..] else { return None };
    let told = match told {
        Value::BulkString(host) => String::from_utf8_lossy(host),
        _ => Cow::Borrowed(""),
    };
    // One that does not know its own name is where it was asked.
    let host = if told.is_empty() { host } else { &told };
    let port = u16::try_from(*port).ok()?;
    let is_known = !["?", "0.0.0.0", "::"].contains(&host) && port != 0;
    Some(is_known.then(|| Address { host: host.to_owned(), port }))
}

/// The slot of a key: CRC-16 (XMODEM) of what is in its first braces.
pub fn slot_of(key: &[u8]) -> u16 {
    let tagged = memchr::memchr(b'{', key).and_then(|open| {
        let rest = key.get(open + 1..)?;
        memchr::memchr(b'}', rest).filter(|close| *close > 0).map(|close| &rest[..close])
    });
    let step = |crc: u16, byte: &u8| (crc << 8) ^ CRC[usize::from((crc >> 8) as u8 ^ byte)];
    tagged.unwrap_or(key).iter().fold(0u16, step) % SLOTS
}

/// The CRC-16 (XMODEM) of each byte.
static CRC: [u16; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc << 1) ^ if crc & 0x8000 == 0 { 0 } else { 0x1021 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(ranges: &[(i64, i64, &str, i64)]) -> Value {
        let range = |&(first, last, host, port): &(i64, i64, &str, i64)| {
            let node = |port| {
                Value::Array(vec![Value::BulkString(host.into()), Value::Int(port), Value::BulkString("id".into())])
            };
            Value::Array(vec![Value::Int(first), Value::Int(last), node(port), node(port + 1)])
        };
        Value::Array(ranges.iter().map(range).collect())
    }

    fn at(host: &str, port: u16) -> Address {
        Address { host: host.to_owned(), port }
    }

    #[test]
    fn a_key_has_the_slot_that_redis_gives_it() {
        // As CLUSTER KEYSLOT tells.
        assert_eq!(slot_of(b"123456789"), 12_739);
        assert_eq!(slot_of(b"foo"), 12_182);
        assert_eq!(slot_of(b"app:{foo}:log"), 12_182);
        assert_eq!(slot_of(b"{}foo"), slot_of(b"{}foo"));
        assert_ne!(slot_of(b"{}foo"), slot_of(b"foo"));
    }

    #[test]
    fn a_server_tells_who_has_which_slots_and_how_well_it_knows() {
        let told = slots(&[(0, 8191, "10.0.0.1", 6379), (8192, 16_383, "", 6380)]);
        let info = "cluster_state:ok\r\ncluster_slots_assigned:16384\r\ncluster_current_epoch:17\r\n";
        let expected = Topology {
            is_ok: true,
            epoch: 17,
            ranges: vec![(0, 8191, at("10.0.0.1", 6379)), (8192, 16_383, at("asked", 6380))],
            servers: vec![at("10.0.0.1", 6379), at("10.0.0.1", 6380), at("asked", 6380), at("asked", 6381)],
        };
        assert_eq!(Topology::read("asked", &told, Some(info)), Some(expected));
        let parted = Topology::read("asked", &told, Some("cluster_state:fail\r\n")).expect("it is read");
        assert_eq!((parted.is_ok, parted.epoch), (false, 0));
        let believed = Topology::read("asked", &told, None).expect("it is read");
        assert!(believed.is_ok);
        assert_eq!(believed.primaries(), [at("10.0.0.1", 6379), at("asked", 6380)]);
        assert_eq!(
            [0, 8191, 8192, 16_383].map(|slot| believed.owner(slot).map(|owner| owner.port)),
            [6379, 6379, 6380, 6380].map(Some)
        );
    }

    #[test]
    fn what_has_no_address_is_nobodys_and_what_is_no_answer_is_none() {
        for (host, port) in [("?", 6379), ("0.0.0.0", 6379), ("::", 6379), ("10.0.0.1", 0)] {
            let told = Topology::read("asked", &slots(&[(0, 8191, host, port), (8192, 16_383, "a", 1)]), None);
            assert_eq!(told.map(|told| told.ranges), Some(vec![(8192, 16_383, at("a", 1))]), "{host}");
        }
        for wrong in [Value::Nil, Value::Array(vec![Value::Int(1)]), Value::Array(vec![Value::Array(vec![])])] {
            assert_eq!(Topology::read("asked", &wrong, None), None);
        }
        for wrong in [(-1, 5, "a", 1), (1, 70_000, "a", 1), (1, 5, "a", -1)] {
            assert_eq!(Topology::read("asked", &slots(&[wrong]), None), None, "{wrong:?}");
        }
    }

    #[test]
    fn of_several_views_the_latest_counts_and_each_is_believed_of_itself() {
        let (a, b, c) = (at("a", 1), at("b", 1), at("c", 1));
        let view = |at: Option<&Address>, epoch: u64, ranges: &[(u16, u16, &Address)]| {
            let ranges = ranges.iter().map(|(first, last, of)| (*first, *last, (*of).clone())).collect();
            (at.cloned(), Topology { is_ok: true, epoch, ranges, servers: at.into_iter().cloned().collect() })
        };
        let ranges = |views: Vec<(Option<Address>, Topology)>| agreed(views).expect("some serve").ranges;
        let known = |ranges: &[(u16, u16, &Address)]| -> Vec<(u16, u16, Address)> {
            ranges.iter().map(|(first, last, of)| (*first, *last, (*of).clone())).collect()
        };
        // One that was taken for dead knows an earlier epoch.
        let former = view(Some(&a), 5, &[(0, 8191, &a), (8192, 16_383, &b)]);
        let other = view(Some(&b), 6, &[(0, 8191, &c), (8192, 16_383, &b)]);
        assert_eq!(ranges(vec![former, other]), known(&[(0, 8191, &c), (8192, 16_383, &b)]));
        // Slot 9 goes from `b` to `c`, which say so; `a` has not heard of it.
        let stale = || view(Some(&a), 6, &[(0, 8, &a), (9, 16_383, &b)]);
        let giver = || view(Some(&b), 6, &[(0, 8, &a), (9, 9, &c), (10, 16_383, &b)]);
        let taker = || view(Some(&c), 6, &[(0, 8, &a), (9, 9, &c), (10, 16_383, &b)]);
        let expected = known(&[(0, 8, &a), (9, 9, &c), (10, 16_383, &b)]);
        for views in [vec![stale(), giver()], vec![stale(), taker()], vec![giver(), stale()], vec![taker(), stale()]] {
            assert_eq!(ranges(views), expected);
        }
        // What one does not know, another may.
        let unknown = view(Some(&b), 6, &[(9, 9, &c), (10, 16_383, &b)]);
        assert_eq!(ranges(vec![unknown, taker()]), expected);
        let seed = view(None, 6, &[(0, 16_383, &a)]);
        assert_eq!(ranges(vec![seed]), known(&[(0, 16_383, &a)]));
        let mut parted = view(Some(&a), 9, &[(0, 16_383, &a)]);
        parted.1.is_ok = false;
        assert_eq!(ranges(vec![parted, taker()]), expected);
        assert_eq!(agreed(vec![]), None);
    }

    #[test]
    fn an_address_is_written_as_urls_have_it() {
        assert_eq!(at("a.example", 6379).to_string(), "a.example:6379");
        assert_eq!(at("fe80::1", 6379).to_string(), "[fe80::1]:6379");
    }
}

//! Which server has a room, and whether there is a link to it. Pure.
//!
//! Of several servers, by rendezvous hashing, so that another server in the list moves only its own share: the server with
//! the largest score has the room. A score is the first eight bytes of the SHA-256 of the server's address as it is in the
//! configuration, a line feed, and the room's name, as a big-endian number: any program can find a room's server.
//!
//! In a cluster by slots, which go from one server to another.

use aws_lc_rs::digest::{SHA256, digest};

use super::slots::{SLOTS, slot_of};

/// A server, by its place in the list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct ServerId(pub u16);

impl ServerId {
    /// Its place in the list.
    pub fn place(self) -> usize {
        usize::from(self.0)
    }
}

/// In a cluster, the first stands for nobody: it has what no server has, and there is never a link to it.
pub const NOBODY: ServerId = ServerId(0);

/// Where rooms are, and where something can be sent.
#[derive(Debug)]
pub struct Routes {
    of: Of,
    /// Whether there is a link, of each server.
    up: Vec<bool>,
}

#[derive(Debug)]
enum Of {
    /// The servers' addresses.
    Hash(Vec<String>),
    /// Whose each slot is.
    Slots(Vec<ServerId>),
}

impl Routes {
    /// Servers with these addresses, which have a part of the rooms each. There are no links yet.
    pub fn hashed(addresses: Vec<String>) -> Routes {
        Routes { up: vec![false; addresses.len()], of: Of::Hash(addresses) }
    }

    /// A cluster of which nothing is known yet.
    pub fn slots() -> Routes {
        Routes { up: vec![false], of: Of::Slots(vec![NOBODY; usize::from(SLOTS)]) }
    }

    /// Who has a room.
    pub fn of(&self, room: &str) -> ServerId {
        match &self.of {
            Of::Hash(addresses) => hashed(room, addresses.iter().map(String::as_str)),
            // Its keys and channels have its name in braces.
            Of::Slots(slots) => owner(slots, room.split_once('}').map_or(room, |(tag, _)| tag)),
        }
    }

    /// Whether a server of a cluster has a slot. What is no cluster has none.
    pub fn has(&self, server: ServerId, slot: u16) -> bool {
        match &self.of {
            Of::Hash(_) => true,
            Of::Slots(slots) => slots.get(usize::from(slot)) == Some(&server),
        }
    }

    /// Takes who has which ranges of slots; what is in none is nobody's. Whether that is news.
    pub fn learn(&mut self, ranges: impl Iterator<Item = (u16, u16, ServerId)>) -> bool {
        let Of::Slots(slots) = &mut self.of else { return false };
        let mut learned = vec![NOBODY; usize::from(SLOTS)];
        for (first, last, server) in ranges {
            if let Some(slots) = learned.get_mut(usize::from(first)..=usize::from(last).min(usize::from(SLOTS) - 1)) {
                slots.fill(server);
            }
        }
        let is_news = *slots != learned;
        *slots = learned;
        is_news
    }

    /// How many slots nobody has.
    pub fn unowned(&self) -> usize {
        match &self.of {
            Of::Hash(_) => 0,
            Of::Slots(slots) => slots.iter().filter(|owner| **owner == NOBODY).count(),
        }
    }

    /// There is a link to a server, or not any more.
    pub fn set_up(&mut self, server: ServerId, is_up: bool) {
        if self.up.len() <= server.place() {
            self.up.resize(server.place() + 1, false);
        }
        self.up[server.place()] = is_up;
    }

    /// Whether there is a link to a server.
    pub fn is_up(&self, server: ServerId) -> bool {
        self.up.get(server.place()).copied().unwrap_or(false)
    }
}

fn owner(slots: &[ServerId], key: &str) -> ServerId {
    slots.get(usize::from(slot_of(key.as_bytes()))).copied().unwrap_or(NOBODY)
}

fn hashed<'a>(room: &str, servers: impl ExactSizeIterator<Item = &'a str>) -> ServerId {
    if servers.len() == 1 {
        return ServerId(0);
    }
    let scores = (0..).zip(servers).map(|(at, server)| (at, score(server, room)));
    scores.max_by_key(|(_, score)| *score).map_or(ServerId(0), |(at, _)| ServerId(at))
}

fn score(server: &str, room: &str) -> u64 {
    let digest = digest(&SHA256, format!("{server}\n{room}").as_bytes());
    digest.as_ref().iter().take(8).fold(0, |score, byte| (score << 8) | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVERS: [&str; 3] = ["redis://a:6379", "redis://b:6379", "redis://c:6379"];

    fn room(number: usize) -> String {
        format!("doc:{number}")
    }

    #[test]
    fn a_room_is_where_it_always_was() {
        // sha256("redis://a:6379\ndoc:1") begins with these; nodes of other versions must find the same.
        let scores = SERVERS.map(|server| score(server, "doc:1"));
        let largest = (0..).zip(scores).max_by_key(|(_, score)| *score).map(|(at, _)| ServerId(at));
        assert_eq!(Some(Routes::hashed(SERVERS.map(str::to_owned).to_vec()).of("doc:1")), largest);
        assert_eq!(score("redis://a:6379", "doc:1"), SCORE);
    }

    const SCORE: u64 = 0x9e59_eb70_ac31_9101;

    #[test]
    fn rooms_are_spread_evenly_and_another_server_takes_only_its_share() {
        let mut counts = [0; 3];
        let mut moved = 0;
        for number in 0..3000 {
            let of_two = hashed(&room(number), SERVERS[..2].iter().copied());
            let of_three = hashed(&room(number), SERVERS.into_iter());
            counts[of_three.place()] += 1;
            if of_two != of_three {
                assert_eq!(of_three, ServerId(2), "what moves, moves to the new one");
                moved += 1;
            }
        }
        assert!(counts.iter().all(|count| (900..1100).contains(count)), "{counts:?}");
        assert_eq!(moved, counts[2]);
    }

    #[test]
    fn the_order_of_the_list_means_nothing() {
        for number in 0..100 {
            let one = SERVERS[hashed(&room(number), SERVERS.into_iter()).place()];
            let mut turned = SERVERS;
            turned.reverse();
            assert_eq!(turned[hashed(&room(number), turned.into_iter()).place()], one);
        }
    }

    #[test]
    fn rooms_of_a_cluster_are_where_their_slots_are() {
        let (one, two, three) = (ServerId(1), ServerId(2), ServerId(3));
        let mut routes = Routes::slots();
        assert_eq!((routes.of("foo"), routes.is_up(routes.of("foo"))), (NOBODY, false), "nothing is known");
        // `foo` has slot 12 182, `bar` 5061.
        assert!(routes.learn([(0, 8191, one), (8192, 16_383, two)].into_iter()));
        assert!(!routes.learn([(8192, 16_383, two), (0, 8191, one)].into_iter()), "that was known");
        assert_eq!((routes.of("foo"), routes.of("bar")), (two, one));
        assert_eq!(routes.of("foo}bar"), two, "what is in the braces counts");
        let slot = slot_of(b"app:{foo}:1");
        assert!(routes.has(two, slot) && !routes.has(one, slot));
        routes.learn([(0, 8191, three), (12_183, 16_383, two)].into_iter());
        assert_eq!(routes.unowned(), 12_183 - 8192);
        assert_eq!(
            (routes.of("foo"), routes.of("bar")),
            (NOBODY, three),
            "another has taken over, and some are nobody's"
        );
        routes.learn([(16_000, 20_000, one), (9, 8, two), (20_000, 21_000, two)].into_iter());
        assert_eq!(routes.of("bar"), NOBODY, "slots that there are not are nobody's");
        routes.set_up(three, true);
        assert!(routes.is_up(three) && !routes.is_up(two) && !routes.is_up(ServerId(99)));
        routes.set_up(three, false);
        assert!(!routes.is_up(three));
    }
}

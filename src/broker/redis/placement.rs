//! Which of several servers has a room: rendezvous hashing, so that another server in the list moves only its own share.
//!
//! The server with the largest score has it. A score is the first eight bytes of the SHA-256 of the server's address as it is
//! in the configuration, a line feed, and the room's name, as a big-endian number: any program can find a room's server.

use aws_lc_rs::digest::{SHA256, digest};

/// The place in the list of the server that has a room.
pub fn server_of<'a>(room: &str, servers: impl ExactSizeIterator<Item = &'a str>) -> usize {
    if servers.len() == 1 {
        return 0;
    }
    let scores = servers.map(|server| score(server, room)).enumerate();
    scores.max_by_key(|(_, score)| *score).map_or(0, |(at, _)| at)
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
        let largest = scores.iter().enumerate().max_by_key(|(_, score)| **score).map(|(at, _)| at);
        assert_eq!(Some(server_of("doc:1", SERVERS.into_iter())), largest);
        assert_eq!(score("redis://a:6379", "doc:1"), SCORE);
    }

    const SCORE: u64 = 0x9e59_eb70_ac31_9101;

    #[test]
    fn rooms_are_spread_evenly_and_another_server_takes_only_its_share() {
        let mut counts = [0; 3];
        let mut moved = 0;
        for number in 0..3000 {
            let of_two = server_of(&room(number), SERVERS[..2].iter().copied());
            let of_three = server_of(&room(number), SERVERS.into_iter());
            counts[of_three] += 1;
            if of_two != of_three {
                assert_eq!(of_three, 2, "what moves, moves to the new one");
                moved += 1;
            }
        }
        assert!(counts.iter().all(|count| (900..1100).contains(count)), "{counts:?}");
        assert_eq!(moved, counts[2]);
    }

    #[test]
    fn the_order_of_the_list_means_nothing() {
        for number in 0..100 {
            let one = SERVERS[server_of(&room(number), SERVERS.into_iter())];
            let mut turned = SERVERS;
            turned.reverse();
            assert_eq!(turned[server_of(&room(number), turned.into_iter())], one);
        }
    }
}

//! Locks that nodes share: who has one, for how long, and with which number.

use std::time::Duration;

use ringhub::hub::brokered::{LockOwner, Locked, SharedLock};

use super::support::{Node, Redis, program};

fn owner(session: &str) -> LockOwner {
    LockOwner { client_id: "c\"1".into(), session_id: session.into(), user_id: "ü".into() }
}

fn acquire(session: &str, ttl_ms: u64) -> SharedLock {
    acquire_in_turn(session, ttl_ms, 1)
}

fn acquire_in_turn(session: &str, ttl_ms: u64, turn: u64) -> SharedLock {
    SharedLock::Acquire { ttl_ms, session: session.into(), holder: owner(session), turn }
}

#[track_caller]
fn granted(locked: Result<Locked, ringhub::wire::native::Refused>) -> u64 {
    match locked {
        Ok(Locked::Granted { token }) => token,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_lock_is_one_sessions_until_it_frees_it_or_its_time_is_over() {
    let Some(program) = program() else { return };
    let redis = Redis::start(&program, &[]);
    let (mut one, mut two) = (Node::start(&redis.url()), Node::start(&redis.url()));
    let first = granted(one.lock("quote:1", "price", acquire("s1", 60_000)));
    match two.lock("quote:1", "price", acquire("s2", 60_000)) {
        Ok(Locked::Held { left_ms, owner: of }) => {
            assert!((1..=60_000).contains(&left_ms), "{left_ms}");
            assert_eq!(of, owner("s1"));
        }
        other => panic!("{other:?}"),
    }
    let other = granted(two.lock("quote:1", "title", acquire("s2", 60_000)));
    assert!(other > first, "numbers grow in the whole room");
    let free = |token| SharedLock::Free { token };
    assert_eq!(two.lock("quote:1", "price", free(Some(other))), Ok(Locked::NotHeld), "that is another one's number");
    let freed = Locked::Freed { token: first, owner: owner("s1") };
    assert_eq!(one.lock("quote:1", "price", free(Some(first))), Ok(freed));
    assert_eq!(one.lock("quote:1", "price", free(None)), Ok(Locked::NotHeld));
    let second = granted(two.lock("quote:1", "price", acquire("s2", 100)));
    assert!(second > other);
    std::thread::sleep(Duration::from_millis(150));
    let renew = SharedLock::Renew { token: second, ttl_ms: 1000, turn: 1 };
    assert_eq!(two.lock("quote:1", "price", renew), Ok(Locked::NotHeld), "it is over");
    let third = granted(one.lock("quote:1", "price", acquire("s1", 1000)));
    assert!(third > second);
}

#[test]
fn a_renewed_lock_is_held_for_longer_and_never_for_less_long() {
    let Some(program) = program() else { return };
    let redis = Redis::start(&program, &[]);
    let mut node = Node::start(&redis.url());
    let left_ms = |node: &mut Node| match node.lock("quote:1", "price", acquire("another", 1)) {
        Ok(Locked::Held { left_ms, .. }) => left_ms,
        other => panic!("{other:?}"),
    };
    let token = granted(node.lock("quote:1", "price", acquire("s1", 5000)));
    let renew = |ttl_ms| SharedLock::Renew { token, ttl_ms, turn: 1 };
    assert_eq!(node.lock("quote:1", "price", renew(60_000)), Ok(Locked::Renewed { owner: owner("s1") }));
    assert!(left_ms(&mut node) > 50_000);
    assert_eq!(node.lock("quote:1", "price", renew(10)), Ok(Locked::Renewed { owner: owner("s1") }));
    assert!(left_ms(&mut node) > 50_000, "its holder was told that it has so long");
    // The answer was lost: the session asks again.
    let again = granted(node.lock("quote:1", "price", acquire("s1", 60_000)));
    assert!(again > token);
    assert_eq!(node.lock("quote:1", "price", renew(60_000)), Ok(Locked::NotHeld), "the number is another now");
}

#[test]
fn a_lock_that_went_to_another_node_with_its_session_is_not_freed_by_the_former_one() {
    let Some(program) = program() else { return };
    let redis = Redis::start(&program, &[]);
    let (mut one, mut two) = (Node::start(&redis.url()), Node::start(&redis.url()));
    let token = granted(one.lock("quote:1", "price", acquire("s1", 60_000)));
    let look = SharedLock::Look { token };
    assert!(matches!(one.lock("quote:1", "price", look.clone()), Ok(Locked::Held { left_ms: 50_000.., .. })));
    assert_eq!(two.lock("quote:1", "price", look.clone()), Ok(Locked::Elsewhere));
    let renewed = two.lock("quote:1", "price", SharedLock::Renew { token, ttl_ms: 1000, turn: 2 });
    assert_eq!(renewed, Ok(Locked::Renewed { owner: owner("s1") }));
    assert_eq!(one.lock("quote:1", "price", look.clone()), Ok(Locked::Elsewhere));
    assert_eq!(one.lock("quote:1", "price", SharedLock::Look { token: token + 1 }), Ok(Locked::NotHeld));
    let late = SharedLock::Renew { token, ttl_ms: 1000, turn: 1 };
    assert_eq!(one.lock("quote:1", "price", late), Ok(Locked::NotHeld), "it was asked before the session went");
    assert!(matches!(one.lock("quote:1", "price", acquire("s1", 1000)), Ok(Locked::Held { .. })));
    let free = SharedLock::Free { token: Some(token) };
    assert_eq!(one.lock("quote:1", "price", free.clone()), Ok(Locked::Elsewhere), "it is held through the other one");
    assert!(matches!(one.lock("quote:1", "price", acquire("s2", 1000)), Ok(Locked::Held { .. })));
    let freed = Locked::Freed { token, owner: owner("s1") };
    assert_eq!(two.lock("quote:1", "price", free), Ok(freed));
    assert_eq!(one.lock("quote:1", "price", look), Ok(Locked::NotHeld));
    // What it took there is its own again where it comes to next.
    granted(two.lock("quote:1", "price", acquire_in_turn("s1", 60_000, 3)));
    granted(one.lock("quote:1", "price", acquire_in_turn("s1", 60_000, 0x1_0000)));
}

#[test]
fn numbers_grow_where_the_server_has_lost_its_data() {
    let Some(program) = program() else { return };
    let redis = Redis::start(&program, &[]);
    let mut node = Node::start(&redis.url());
    let before = granted(node.lock("quote:1", "price", acquire("s1", 60_000)));
    let _: String = redis.command(&["FLUSHALL"]);
    let after = granted(node.lock("quote:1", "price", acquire("s2", 60_000)));
    assert!(after > before, "{after} after {before}");
    assert!(after < 1 << 53, "JSON carries it");
    // Nothing is left behind for good.
    for key in redis.command::<Vec<String>>(&["KEYS", "*"]) {
        assert!(redis.command::<i64>(&["PTTL", &key]) > 0, "{key} stays");
    }
}

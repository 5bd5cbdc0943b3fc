//! The store with real files.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::*;
use crate::auth::Identity;
use crate::ring::ConnKey;

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("ringhub-store-{}-{name}", std::process::id()));
        drop(std::fs::remove_dir_all(&path));
        std::fs::create_dir_all(&path).expect("a folder");
        Folder(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("history.db")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

fn options(path: PathBuf) -> StoreOptions {
    let config = StoreConfig { path: Some(path), ..StoreConfig::default() };
    StoreOptions { patience: Duration::from_millis(20), ..StoreOptions::new(&config).expect("a path") }
}

fn report(slot: u32, closed: Option<Closed>) -> ConnectionReport {
    ConnectionReport {
        shard: 1,
        conn: ConnKey { slot, generation: 7 },
        opened_ms: 1000 + u64::from(slot),
        client_id: format!("c{slot}").into(),
        session_id: "s".into(),
        identity: Arc::new(Identity::anonymous("alice".to_owned())),
        closed,
    }
}

fn closed(at_ms: u64) -> Option<Closed> {
    let reason = "bye".into();
    Some(Closed {
        at_ms,
        code: Some(1000),
        reason,
        by: ClosedBy::Client,
        messages_received: 3,
        bytes_received: 30,
        bytes_sent: 300,
    })
}

fn now_ms() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_millis() as u64
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn count(path: &Path, sql: &str) -> i64 {
    Connection::open(path).expect("opens").query_row(sql, [], |row| row.get(0)).expect("a number")
}

#[test]
fn a_connections_two_reports_become_one_row() {
    let folder = Folder::new("rows");
    let store = Store::start(options(folder.file())).expect("starts");
    let ledger = store.ledger();
    ledger.connection(report(1, None));
    let end_ms = now_ms();
    ledger.connection(report(1, closed(end_ms)));
    // The report of its beginning was lost.
    ledger.connection(report(2, closed(end_ms)));
    ledger.connection(ConnectionReport { opened_ms: now_ms(), ..report(3, None) });
    store.shutdown();
    assert_eq!((store.written().connections, store.lost().total()), (4, 0));
    let file = folder.file();
    assert_eq!(count(&file, "SELECT count(*) FROM connections"), 3);
    assert_eq!(count(&file, "SELECT closed_ms FROM connections WHERE slot = 1"), end_ms as i64);
    assert_eq!(count(&file, "SELECT opened_ms FROM connections WHERE slot = 2"), 1002);
    let full = "SELECT count(*) FROM connections WHERE user_id = 'alice' AND client_id = 'c1' AND close_code = 1000 AND \
                close_reason = 'bye' AND closed_by = 'client' AND messages_received = 3 AND bytes_sent = 300";
    assert_eq!(count(&file, full), 1);
    assert_eq!(count(&file, "SELECT count(*) FROM connections WHERE closed_ms IS NULL"), 1);

    // The next run says of what is left that its end is not known.
    let store = Store::start(options(folder.file())).expect("starts");
    store.shutdown();
    assert_eq!(count(&file, "SELECT count(*) FROM connections WHERE closed_by = 'unknown'"), 1);
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).expect("is there").permissions());
    assert_eq!(mode & 0o777, 0o600, "it names users");
}

#[test]
fn performance_is_put_together_by_the_minute_and_by_the_step_asked_for() {
    let folder = Folder::new("performance");
    let store = Store::start(options(folder.file())).expect("starts");
    let start_ms = now_ms() / 60_000 * 60_000 - 10 * 60_000;
    // Three minutes and a half, whose every sample has one connection more.
    for number in 0..21u32 {
        let figure = Some(f64::from(number));
        let sample = Sample {
            at_ms: start_ms + u64::from(number) * 10_000,
            samples: 1,
            connections: figure,
            connections_max: figure,
            deliveries: Some(10.0),
            latency_p99_ms: (number == 2).then_some(5.0),
            ..Sample::default()
        };
        store.ledger().sample(sample);
    }
    until("the samples are written", || store.written().samples == 21);

    let by_minute = store.performance(start_ms, 60_000).wait().expect("points");
    let figures: Vec<_> = by_minute.iter().map(|point| (point.samples, point.connections, point.deliveries)).collect();
    let minute = |mean| (6, Some(mean), Some(60.0));
    assert_eq!(figures, [minute(2.5), minute(8.5), minute(14.5), (3, Some(19.0), Some(30.0))]);
    assert_eq!(by_minute[0].connections_max, Some(5.0));
    assert_eq!((by_minute[0].latency_p99_ms, by_minute[1].latency_p99_ms), (Some(5.0), None));
    assert_eq!(count(&folder.file(), "SELECT count(*) FROM performance_minutes"), 3);

    let whole = store.performance(start_ms / 600_000 * 600_000, 1_200_000).wait().expect("points");
    let samples: u64 = whole.iter().map(|point| point.samples).sum();
    assert_eq!(samples, 21, "minutes and the samples after them count once");
    let fine = store.performance(start_ms + 100_000, 10_000).wait().expect("points");
    assert_eq!(fine.len(), 11);
    assert_eq!(fine[0].at_ms, start_ms + 100_000);
    store.shutdown();
}

#[test]
fn a_locked_file_loses_only_what_does_not_fit_and_the_count_is_right() {
    let folder = Folder::new("locked");
    let store = Store::start(StoreOptions { queue_max: 50, ..options(folder.file()) }).expect("starts");
    let other = Connection::open(folder.file()).expect("opens");
    other.execute_batch("BEGIN EXCLUSIVE").expect("locks");
    let mut slot = 0;
    // Until some are lost, and the breaker has opened.
    until("the breaker opens", || store.ledger().queued() == 0 || store.status().failures > 0 || slot == 0);
    while store.lost().connections < 20 {
        store.ledger().connection(report(slot, closed(now_ms())));
        slot += 1;
    }
    until("the breaker opens", || store.breaker() == BreakerState::Open);
    assert!(store.is_down());
    assert_eq!(store.status().trouble, Some("locked"));
    // Reading works all the same.
    assert_eq!(store.alerts(0, 10).wait().expect("no alerts"), []);
    other.execute_batch("ROLLBACK").expect("lets go");
    until("the store works again", || !store.is_down() && store.ledger().queued() == 0);
    until("all that fit is written", || store.written().connections + store.lost().connections == u64::from(slot));
    store.shutdown();
    let rows = count(&folder.file(), "SELECT count(*) FROM connections");
    assert_eq!(rows as u64, u64::from(slot) - store.lost().connections, "every report is a row, or counted as lost");
}

#[test]
fn a_file_that_is_taken_away_is_made_anew_and_nothing_in_hand_is_lost() {
    let folder = Folder::new("gone");
    let store = Store::start(options(folder.file())).expect("starts");
    store.ledger().connection(report(1, None));
    until("the first is written", || store.written().connections == 1);
    for suffix in ["", "-wal", "-shm"] {
        std::fs::remove_file(format!("{}{suffix}", folder.file().display())).expect("was there");
    }
    store.ledger().connection(report(2, None));
    until("the second is written", || store.written().connections == 2);
    assert_eq!(store.status().failures, 1);
    store.shutdown();
    assert_eq!(count(&folder.file(), "SELECT count(*) FROM connections WHERE slot = 2"), 1);
    assert_eq!(store.lost().total(), 0);
}

#[test]
fn near_its_bound_the_file_keeps_the_newest() {
    let folder = Folder::new("bound");
    let bounded = StoreOptions { bytes_max: 6 << 20, queue_max: 100_000, ..options(folder.file()) };
    let store = Store::start(bounded).expect("starts");
    for slot in 0..40_000 {
        store.ledger().connection(report(slot, closed(now_ms() + u64::from(slot))));
    }
    until("all is written", || store.written().connections == 40_000);
    assert_eq!(store.lost().total(), 0);
    store.shutdown();
    let newest = count(&folder.file(), "SELECT max(slot) FROM connections");
    assert_eq!(newest, 39_999);
    assert!(count(&folder.file(), "SELECT count(*) FROM connections") < 40_000, "the oldest gave way");
    let bytes = std::fs::metadata(folder.file()).expect("is there").len();
    assert!(bytes <= 6 << 20, "{bytes}");
}

#[test]
fn old_rows_go_with_time() {
    let folder = Folder::new("old");
    let store = Store::start(options(folder.file())).expect("starts");
    let day_ms = 86_400_000;
    for (slot, age_days) in [(1, 31), (2, 29)] {
        store.ledger().connection(report(slot, closed(now_ms() - age_days * day_ms)));
    }
    until("both are written", || store.written().connections == 2);
    store.shutdown();
    let store = Store::start(options(folder.file())).expect("starts");
    let left = || count(&folder.file(), "SELECT count(*) FROM connections");
    until("one is deleted", || left() == 1);
    store.shutdown();
}

#[test]
fn what_is_not_ours_is_refused_and_left_as_it_is() {
    let folder = Folder::new("refused");
    let refused = |store: Result<Store, StartError>| store.expect_err("is refused").to_string();

    let store = Store::start(options(folder.file())).expect("starts");
    store.shutdown();
    Connection::open(folder.file()).expect("opens").pragma_update(None, "user_version", 2).expect("is set");
    let message = refused(Store::start(options(folder.file())));
    assert!(message.contains("is of version 2") && message.contains("newer hub"), "{message}");

    let foreign = folder.0.join("foreign.db");
    Connection::open(&foreign).expect("opens").execute_batch("CREATE TABLE songs (name TEXT)").expect("a table");
    let message = refused(Store::start(options(foreign.clone())));
    assert!(message.contains("another program"), "{message}");
    assert_eq!(count(&foreign, "SELECT count(*) FROM sqlite_schema"), 1);

    let broken = folder.0.join("broken.db");
    std::fs::write(&broken, "no database at all, but text. ".repeat(100)).expect("is written");
    let message = refused(Store::start(options(broken.clone())));
    assert!(message.contains("no sound SQLite database"), "{message}");
    assert!(std::fs::read_to_string(&broken).expect("is there").starts_with("no database"));

    let message = refused(Store::start(options(folder.0.join("missing/history.db"))));
    assert!(message.contains("its folder has to exist"), "{message}");
}

#[test]
fn alerts_come_back_the_newest_first() {
    let folder = Folder::new("alerts");
    let store = Store::start(options(folder.file())).expect("starts");
    for at_ms in 1..=5u64 {
        store.ledger().alert(AlertRecord {
            at: "2026-01-01T00:00:00.000Z".to_owned(),
            at_ms: now_ms() + at_ms,
            alert: format!("a{at_ms}"),
            state: "raised".to_owned(),
            severity: "warning".to_owned(),
            message: "it happened".to_owned(),
            value: 2.0,
            threshold: 1.0,
        });
    }
    until("all are written", || store.written().alerts == 5);
    let alerts = store.alerts(0, 2).wait().expect("alerts");
    let names: Vec<_> = alerts.iter().map(|record| record.alert.as_str()).collect();
    assert_eq!(names, ["a5", "a4"]);
    store.shutdown();
    assert!(store.alerts(0, 2).wait().is_err(), "nobody waits for a store that has ended");
}

//! How the ring waits: looking for completions before it sleeps, and sleeping for a least time.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use ringhub::ring::host::knows_min_wait;
use ringhub::ring::uring::{Uring, UringOptions};
use ringhub::ring::{Completion, Driver as _};

const SMALL: UringOptions = UringOptions::sized(64, 1024, 16, 1024);

/// How often this thread has given up its processor by itself.
fn sleeps() -> u64 {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
    line.trim().parse().unwrap()
}

/// A ring whose bell was rung once, so that all of it is armed.
fn ring(options: UringOptions) -> Uring {
    let mut ring = Uring::new(options).unwrap();
    ring.doorbell().sleep();
    ring.doorbell().ring();
    assert_eq!(turn(&mut ring, None), [Completion::Doorbell]);
    ring
}

fn turn(ring: &mut Uring, wait: Option<Duration>) -> Vec<Completion> {
    let mut completions = Vec::new();
    ring.turn(wait, &mut completions).unwrap();
    completions
}

#[test]
fn a_ring_that_looks_hears_its_bell_without_sleeping() {
    let mut ring = ring(UringOptions { busy_poll_us: 10_000_000, ..SMALL });
    ring.doorbell().sleep();
    let bell = ring.doorbell();
    let (go, gone) = mpsc::channel();
    let ringer = thread::spawn(move || {
        gone.recv().unwrap();
        bell.ring();
    });
    go.send(()).unwrap();
    let before = sleeps();
    assert_eq!(turn(&mut ring, None), [Completion::Doorbell]);
    assert_eq!(sleeps(), before);
    ringer.join().unwrap();
}

#[test]
fn a_ring_that_has_looked_for_long_enough_sleeps_until_the_bell() {
    let mut ring = ring(UringOptions { busy_poll_us: 100, ..SMALL });
    ring.doorbell().sleep();
    let bell = ring.doorbell();
    let waiting = ring.figures().enters;
    let ringer = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        bell.ring();
    });
    assert_eq!(turn(&mut ring, None), [Completion::Doorbell]);
    assert!(ring.figures().enters > waiting, "it waited in the kernel");
    ringer.join().unwrap();
}

#[test]
fn looking_ends_when_the_wait_does() {
    let mut ring = ring(UringOptions { busy_poll_us: 60_000_000, ..SMALL });
    let began = Instant::now();
    assert!(turn(&mut ring, Some(Duration::from_millis(5))).is_empty());
    assert!(began.elapsed() < Duration::from_secs(30));
    assert!(ring.figures().idle_us >= 5000, "looking is waiting");
}

#[test]
fn a_ring_with_a_least_time_to_wait_gathers_meanwhile() {
    const LEAST: Duration = Duration::from_millis(30);
    let mut ring = ring(UringOptions { min_wait_us: LEAST.as_micros() as u32, ..SMALL });
    ring.doorbell().sleep();
    ring.doorbell().ring();
    let began = Instant::now();
    assert_eq!(turn(&mut ring, None), [Completion::Doorbell]);
    let waited = began.elapsed() >= LEAST;
    assert_eq!(waited, knows_min_wait(), "kernels before 6.12 wake with the first completion");
}

#[test]
fn a_least_time_to_wait_is_no_longer_than_the_wait() {
    let mut ring = ring(UringOptions { min_wait_us: 5_000, ..SMALL });
    let mut ring_long = Uring::new(UringOptions { min_wait_us: 60_000_000, ..SMALL }).unwrap();
    let began = Instant::now();
    assert!(turn(&mut ring, Some(Duration::from_millis(1))).is_empty());
    assert!(turn(&mut ring_long, Some(Duration::from_millis(1))).is_empty());
    assert!(began.elapsed() < Duration::from_secs(30));
}

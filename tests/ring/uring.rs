//! The driver on io_uring.

use std::io;

use ringhub::ring::Driver as _;
use ringhub::ring::uring::{Uring, UringOptions};

use crate::real::{self, Real};

const SMALL: UringOptions = UringOptions::sized(64, 4096, 16, 1024);

impl Real for Uring {
    const MODULE: &str = "uring";

    fn with(buffers: u16, buffer_bytes: u32) -> io::Result<Uring> {
        Uring::new(UringOptions { buffers, buffer_bytes, ..SMALL })
    }
}

real::suite!(Uring);

#[test]
fn every_byte_comes_back_when_both_queues_are_too_small() {
    let driver = Uring::new(UringOptions { entries: 8, completions: 16, ..SMALL }).unwrap();
    let server = real::echo(driver, 200, 3000);
    assert!(server.driver.figures().submission_full > 0);
}

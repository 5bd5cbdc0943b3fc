//! `RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir tests/fuzz variants`

#![no_main]

#[path = "../bodies.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::variants(data));

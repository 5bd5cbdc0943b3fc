//! The fuzz targets' bodies over the committed corpus, in an ordinary test run.

use std::{fs, panic, path::Path};

#[path = "fuzz/bodies.rs"]
mod bodies;

/// Runs `body` on every file of a target's corpus.
fn run(target: &str, body: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let mut files = 0;
    for entry in fs::read_dir(&folder).expect("the corpus is committed") {
        let path = entry.expect("a directory entry").path();
        let data = fs::read(&path).expect("a readable file");
        if panic::catch_unwind(|| body(&data)).is_err() {
            panic!("{} breaks an invariant of {target}", path.display());
        }
        files += 1;
    }
    assert!(files > 0, "{} is empty", folder.display());
}

#[test]
fn the_corpus_of_upgrade_breaks_no_invariant() {
    run("upgrade", bodies::upgrade);
}

#[test]
fn the_corpus_of_frames_breaks_no_invariant() {
    run("frames", bodies::frames);
}

#[test]
fn the_corpus_of_events_breaks_no_invariant() {
    run("events", bodies::events);
}

#[test]
fn the_corpus_of_commands_breaks_no_invariant() {
    run("commands", bodies::commands);
}

#[test]
fn the_corpus_of_engineio_breaks_no_invariant() {
    run("engineio", bodies::engineio);
}

#[test]
fn the_corpus_of_socketio_breaks_no_invariant() {
    run("socketio", bodies::socketio);
}

#[test]
fn the_corpus_of_variants_breaks_no_invariant() {
    run("variants", bodies::variants);
}

#[test]
fn the_corpus_of_deflate_breaks_no_invariant() {
    run("deflate", bodies::deflate);
}

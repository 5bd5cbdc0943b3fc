//! The comparison of `cargo bench -- --instructions`, which is a benchmark's own program and can't be tested there: what
//! fails, what does not, and what is said.

#[allow(dead_code)]
#[path = "../benches/instructions/baseline.rs"]
mod baseline;
#[path = "../benches/instructions/judge.rs"]
mod judge;

use std::path::Path;

use baseline::{Baseline, Counts, Made};

fn counts(of: &[(&str, u64)]) -> Counts {
    of.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

fn made() -> Made {
    Made {
        rustc: "1.95.0".to_owned(),
        processor: "x86_64 with avx2".to_owned(),
        libc: "glibc 2.36".to_owned(),
        valgrind: "valgrind-3.19.0".to_owned(),
    }
}

/// The line about a benchmark.
fn line(text: &str, name: &str) -> String {
    text.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("nothing of {name} in {text}")).to_owned()
}

#[test]
fn five_percent_more_instructions_are_borne_and_no_more_than_that() {
    let before = counts(&[("decode", 1000), ("encode", 1000)]);
    let same = judge::judge("wire", &before, &counts(&[("decode", 1050), ("encode", 1000)]));
    assert!(same.pass, "{}", same.text);
    assert!(line(&same.text, "wire/decode").starts_with("ok"));
    let more = judge::judge("wire", &before, &counts(&[("decode", 1051), ("encode", 1000)]));
    assert!(!more.pass);
    let said = line(&more.text, "wire/decode");
    assert!(said.starts_with("FAILED") && said.contains("1000 ->") && said.contains("+5.1 %"), "{said}");
    assert!(line(&more.text, "wire/encode").starts_with("ok"));
}

#[test]
fn fewer_instructions_are_no_failure_and_are_to_be_saved() {
    let verdict = judge::judge("wire", &counts(&[("decode", 1000)]), &counts(&[("decode", 900)]));
    assert!(verdict.pass && verdict.text.contains("save it"), "{}", verdict.text);
}

#[test]
fn a_benchmark_that_only_one_side_has_is_a_failure() {
    let one = counts(&[("decode", 1000)]);
    let new = judge::judge("wire", &Counts::new(), &one);
    assert!(!new.pass && new.text.contains("has no figure in the baseline"), "{}", new.text);
    let gone = judge::judge("wire", &one, &Counts::new());
    assert!(!gone.pass && gone.text.contains("no benchmark any more"), "{}", gone.text);
}

#[test]
fn figures_of_another_compiler_or_processor_are_not_compared_and_that_is_an_error() {
    let with = |change: fn(&mut Made)| {
        let mut here = made();
        change(&mut here);
        judge::comparable(&made(), &here)
    };
    assert_eq!(with(|_| ()), Ok(()));
    assert_eq!(with(|here| here.rustc = "1.95.3".to_owned()), Ok(()));
    let error = with(|here| here.rustc = "1.96.0".to_owned()).expect_err("another compiler");
    assert!(error.contains("rustc 1.95.0") && error.contains("1.96.0") && error.contains("=save"), "{error}");
    assert!(with(|here| here.processor = "aarch64".to_owned()).is_err());
}

#[test]
fn another_c_library_is_named_beside_a_failure() {
    let other = Made { libc: "glibc 2.41".to_owned(), ..made() };
    let advice = judge::advice(&made(), &other);
    assert!(advice.contains("glibc 2.36, here glibc 2.41") && !advice.contains("valgrind ("), "{advice}");
}

#[test]
fn a_baseline_is_read_as_it_was_written_and_is_of_one_compiler() {
    let path = std::env::temp_dir().join(format!("ringhub-baseline-{}.toml", std::process::id()));
    let mut baseline = Baseline::default();
    baseline.put(made(), "wire", counts(&[("decode/16x16", 4798)]));
    baseline.put(made(), "stages", counts(&[("fan_out/1 to 1000", 7)]));
    baseline.write(&path).expect("written");
    let mut read = Baseline::read(&path).expect("read");
    std::fs::remove_file(&path).expect("removed");
    assert_eq!(read.made, made());
    assert_eq!(read.counts("wire"), &counts(&[("decode/16x16", 4798)]));
    read.put(Made { rustc: "1.96.0".to_owned(), ..made() }, "wire", Counts::new());
    assert!(read.counts("stages").is_empty(), "figures of two compilers in one file");
}

#[test]
fn the_kept_baseline_has_figures_of_both_executables_by_the_compiler_that_ci_pins() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let baseline = Baseline::read(&root.join("benches/instructions.toml")).expect("it is there");
    assert!(!baseline.counts("wire").is_empty() && !baseline.counts("stages").is_empty());
    let ci = std::fs::read_to_string(root.join(".ci/run")).expect("it is there");
    let pinned = ci.lines().find_map(|line| line.strip_prefix("RUST=")).expect("a version");
    assert!(baseline.made.rustc.starts_with(&format!("{pinned}.")), "made by {}", baseline.made.rustc);
}

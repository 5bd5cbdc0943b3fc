//! Criterion's measurement in instructions: callgrind's counters are zeroed where criterion starts its clock, and written
//! to a file, which is read at once, where it stops it.

use std::cell::Cell;
use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::Duration;

use criterion::measurement::{Measurement, ValueFormatter};
use criterion::{Criterion, Throughput};

use super::baseline::Counts;

/// Callgrind knows the moments by the names of two functions, [`counted_from`] and [`counted_to`], which needs neither its
/// header files nor unsafe code.
pub fn callgrind_arguments(folder: &Path) -> Vec<String> {
    vec![
        "--tool=callgrind".to_owned(),
        format!("--callgrind-out-file={}", dumps(folder).display()),
        "--zero-before=*counted_from*".to_owned(),
        "--dump-before=*counted_to*".to_owned(),
    ]
}

fn dumps(folder: &Path) -> PathBuf {
    folder.join("callgrind")
}

#[inline(never)]
fn counted_from() {
    black_box(1);
}

#[inline(never)]
fn counted_to() {
    black_box(2);
}

/// Instructions of user space, all threads of the process.
pub struct Instructions {
    dumps: PathBuf,
    /// Files that callgrind has written.
    written: Cell<u64>,
}

impl Measurement for Instructions {
    type Intermediate = ();
    type Value = u64;

    fn start(&self) {
        counted_from();
    }

    fn end(&self, (): ()) -> u64 {
        counted_to();
        self.written.set(self.written.get() + 1);
        let dump = self.dumps.with_extension(self.written.get().to_string());
        let text = fs::read_to_string(&dump).unwrap_or_else(|error| panic!("{}: {error}", dump.display()));
        fs::remove_file(&dump).unwrap_or_else(|error| panic!("{}: {error}", dump.display()));
        total(&text).unwrap_or_else(|| panic!("{} has no total", dump.display()))
    }

    fn add(&self, one: &u64, other: &u64) -> u64 {
        one + other
    }

    fn zero(&self) -> u64 {
        0
    }

    fn to_f64(&self, value: &u64) -> f64 {
        *value as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        &Plain
    }
}

/// The line `totals: 1234` of a dump, or `summary: 1234` of older versions.
fn total(dump: &str) -> Option<u64> {
    let value = |name: &str| dump.lines().rev().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value("totals:").or_else(|| value("summary:"))
}

struct Plain;

impl ValueFormatter for Plain {
    fn scale_values(&self, _: f64, _: &mut [f64]) -> &'static str {
        "instructions"
    }

    fn scale_throughputs(&self, _: f64, throughput: &Throughput, values: &mut [f64]) -> &'static str {
        if let Throughput::Elements(count) | Throughput::Bytes(count) = throughput {
            for value in values {
                *value /= *count as f64;
            }
        }
        "instructions each"
    }

    fn scale_for_machines(&self, _: &mut [f64]) -> &'static str {
        "instructions"
    }
}

/// Settings that leave nothing to the clock: with a nanosecond for each, criterion takes the fewest iterations there are.
pub fn criterion(folder: &Path) -> Criterion<Instructions> {
    let shortest = Duration::from_nanos(1);
    Criterion::default()
        .with_measurement(Instructions { dumps: dumps(folder), written: Cell::new(0) })
        .warm_up_time(shortest)
        .measurement_time(shortest)
        .sample_size(10)
        .nresamples(1001)
        .without_plots()
        .output_directory(&folder.join("criterion"))
}

/// Instructions per iteration by the name of the benchmark, as criterion has left them in its folder.
pub fn estimates(folder: &Path) -> Result<Counts, String> {
    let mut counts = Counts::new();
    gather(&folder.join("criterion"), &mut counts)?;
    if counts.is_empty() { Err("callgrind ran, and no benchmark in it".to_owned()) } else { Ok(counts) }
}

fn gather(folder: &Path, counts: &mut Counts) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.ends_with("new") {
            let name = json(&path.join("benchmark.json"))?["full_id"].as_str().map(str::to_owned);
            let estimates = json(&path.join("estimates.json"))?;
            let figure = ["slope", "mean"].iter().find_map(|kind| estimates[kind]["point_estimate"].as_f64());
            let (Some(name), Some(figure)) = (name, figure) else {
                return Err(format!("{}: no estimate of criterion's", path.display()));
            };
            counts.insert(name, figure.round() as u64);
        } else if path.is_dir() {
            gather(&path, counts)?;
        }
    }
    Ok(())
}

fn json(path: &Path) -> Result<serde_json::Value, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
}

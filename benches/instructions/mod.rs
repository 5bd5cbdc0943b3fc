//! The same benchmarks, counted in instructions: does a change make a stage do more? Times depend on the machine and on
//! what else it does, counts hardly do, so that CI can hold them against a baseline that lies beside the benches.
//!
//! ```text
//! cargo bench --bench wire --bench stages                            times, by criterion
//! cargo bench --bench wire --bench stages -- --instructions          counts, against benches/instructions.toml
//! cargo bench --bench wire --bench stages -- --instructions=save     counts, into benches/instructions.toml
//! ```
//!
//! The executable starts itself again under callgrind, where criterion measures by [`counter::Instructions`] instead of
//! the clock: one iteration to warm up, then ten samples of one to ten iterations each, whose slope is the figure. Nothing
//! of it depends on time. What a count doesn't know is cache misses, branch mispredictions and the kernel; and what the
//! compiler, the C library or a processor without AVX2 does differently, which [`baseline::Made`] names.

mod baseline;
mod counter;
mod judge;

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use criterion::Criterion;

use baseline::{Baseline, Counts, Made};
use counter::Instructions;

/// Names the folder for the counts to the executable that runs under callgrind.
const FOLDER: &str = "RINGHUB_INSTRUCTIONS_FOLDER";
const ARGUMENT: &str = "--instructions";

/// Makes `main` of an executable from its benchmarks, which are generic over what is measured. Those behind `timed` wait
/// for other threads: what they count is the scheduler's.
#[macro_export]
macro_rules! benches {
    ($name:literal, counted: [$($counted:path),+], timed: [$($timed:path),*]) => {
        fn main() -> std::process::ExitCode {
            $crate::instructions::main(
                $name,
                |timing| { $($counted(timing);)+ $($timed(timing);)* },
                |counting| { $($counted(counting);)+ },
            )
        }
    };
}

/// Runs the benchmarks the way that the command line asks for.
pub fn main(name: &str, timed: fn(&mut Criterion), counted: fn(&mut Criterion<Instructions>)) -> ExitCode {
    if let Some(folder) = env::var_os(FOLDER) {
        counted(&mut counter::criterion(Path::new(&folder)));
        return ExitCode::SUCCESS;
    }
    let way = env::args().find_map(|argument| Some(argument.strip_prefix(ARGUMENT)?.to_owned()));
    let outcome = match way.as_deref() {
        None => {
            timed(&mut Criterion::default().configure_from_args());
            Criterion::default().configure_from_args().final_summary();
            return ExitCode::SUCCESS;
        }
        Some("") => compare(name),
        Some("=save") => save(name),
        Some(other) => Err(format!("{ARGUMENT}{other} is neither {ARGUMENT} nor {ARGUMENT}=save")),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Prints the counts beside the baseline's; false if they are not as they should be.
fn compare(name: &str) -> Result<bool, String> {
    let baseline = Baseline::read(&file())?;
    let made = Made::here()?;
    judge::comparable(&baseline.made, &made)?;
    let verdict = judge::judge(name, baseline.counts(name), &count()?);
    print!("{}", verdict.text);
    if !verdict.pass {
        eprint!("{}", judge::advice(&baseline.made, &made));
    }
    Ok(verdict.pass)
}

fn save(name: &str) -> Result<bool, String> {
    let counts = count()?;
    let mut baseline = Baseline::read(&file()).unwrap_or_default();
    println!("{name}: {} figures saved in {}", counts.len(), file().display());
    baseline.put(Made::here()?, name, counts);
    baseline.write(&file())?;
    Ok(true)
}

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.toml")
}

/// Runs this executable under callgrind and gathers what criterion estimated.
fn count() -> Result<Counts, String> {
    let folder = env::temp_dir().join(format!("ringhub-instructions-{}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let counts = count_in(&folder);
    let removed = std::fs::remove_dir_all(&folder);
    let counts = counts?;
    removed.map_err(|error| format!("{}: {error}", folder.display()))?;
    Ok(counts)
}

fn count_in(folder: &Path) -> Result<Counts, String> {
    let executable = env::current_exe().map_err(|error| format!("this executable is not to be found: {error}"))?;
    let output = Command::new("valgrind")
        .args(counter::callgrind_arguments(folder))
        .arg(executable)
        .arg("--bench")
        .env(FOLDER, folder)
        .output()
        .map_err(|error| format!("valgrind can't be started: {error}. Install it (apt-get install valgrind)"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("the benchmarks failed under callgrind ({}):\n{said}", output.status));
    }
    counter::estimates(folder)
}

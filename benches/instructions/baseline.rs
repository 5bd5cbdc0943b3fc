//! The file with the figures to hold others against, and what they depend on beside the code.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::{env, fs};

use serde::{Deserialize, Serialize};

/// Instructions per iteration, by the benchmark's name.
pub type Counts = BTreeMap<String, u64>;

const HEADER: &str = "\
# Instructions per iteration of the benchmarks, in user space, as callgrind counts them. `tests/run instructions` fails
# where there are more than 5 % more. To save those of the present code:
#
#     cargo bench --bench wire --bench stages -- --instructions=save

";

/// What other counts come from with the same code.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// The compiler that built the executable.
    pub rustc: String,
    /// What of the processor chooses the code: valgrind shows AVX2 at most.
    pub processor: String,
    /// Its `memcpy` and `malloc` are counted as well.
    pub libc: String,
    pub valgrind: String,
}

impl Made {
    /// Those of this executable on this machine.
    pub fn here() -> Result<Made, String> {
        Ok(Made {
            rustc: rustc()?,
            processor: processor(),
            libc: said("getconf", "GNU_LIBC_VERSION").unwrap_or_else(|| "unknown".to_owned()),
            valgrind: said("valgrind", "--version")
                .ok_or("valgrind can't be started. Install it (apt-get install valgrind)")?,
        })
    }
}

/// The compiler writes its name into what it makes, so that this is no guess from the search path.
fn rustc() -> Result<String, String> {
    let path = env::current_exe().map_err(|error| format!("this executable is not to be found: {error}"))?;
    let executable = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mark = b"rustc version ";
    memchr::memmem::find_iter(&executable, mark)
        .filter_map(|at| executable.get(at + mark.len()..))
        .filter(|rest| rest.first().is_some_and(u8::is_ascii_digit))
        .map(|rest| rest.iter().take_while(|byte| byte.is_ascii_digit() || **byte == b'.'))
        .map(|version| version.map(|byte| char::from(*byte)).collect())
        .next()
        .ok_or_else(|| format!("{} doesn't say which compiler made it", path.display()))
}

#[cfg(target_arch = "x86_64")]
fn processor() -> String {
    let with = if is_x86_feature_detected!("avx2") { "with" } else { "without" };
    format!("x86_64 {with} avx2")
}

#[cfg(not(target_arch = "x86_64"))]
fn processor() -> String {
    env::consts::ARCH.to_owned()
}

/// What a program says when it is given one argument.
fn said(program: &str, argument: &str) -> Option<String> {
    let output = Command::new(program).arg(argument).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The file's content.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Baseline {
    pub made: Made,
    /// By the executable's name.
    #[serde(flatten)]
    executables: BTreeMap<String, Counts>,
}

impl Baseline {
    pub fn read(path: &Path) -> Result<Baseline, String> {
        let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        toml::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
    }

    pub fn write(&self, path: &Path) -> Result<(), String> {
        let text = toml::to_string(self).map_err(|error| format!("{}: {error}", path.display()))?;
        fs::write(path, format!("{HEADER}{text}")).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// An executable's figures; none if it has none.
    pub fn counts(&self, executable: &str) -> &Counts {
        const NONE: &Counts = &Counts::new();
        self.executables.get(executable).unwrap_or(NONE)
    }

    /// Takes an executable's figures in. Those of others go if they were made otherwise: one file, one compiler.
    pub fn put(&mut self, made: Made, executable: &str, counts: Counts) {
        if self.made != made {
            self.executables.clear();
        }
        self.made = made;
        self.executables.insert(executable.to_owned(), counts);
    }
}

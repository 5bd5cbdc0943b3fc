//! The program `ringhub`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ringhub::cli::run()
}

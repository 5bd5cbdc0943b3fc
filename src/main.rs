//! The program `ringhub`; `ringhub help` tells what it can do.

fn main() -> std::process::ExitCode {
    ringhub::cli::run()
}

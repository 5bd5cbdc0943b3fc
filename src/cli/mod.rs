//! The command line.

pub mod config;
pub mod conformance;
pub mod doctor;
mod fit;
mod logging;
mod notify;
pub mod serve;
mod sources;
mod through;
pub mod token;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::load;

/// A dedicated real-time hub: rooms over WebSocket, for browsers, agents and services.
#[derive(Debug, Parser)]
#[command(name = "ringhub", version, propagate_version = true)]
struct Program {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the hub.
    Serve(serve::ServeArgs),
    /// Sign a token with the configured secret.
    Token(token::TokenArgs),
    /// Say what this machine lacks for the hub, and the line that fixes it.
    Doctor(doctor::DoctorArgs),
    /// List the options, or check a file.
    Config(config::ConfigArgs),
    /// Put load on a hub and say how it bears it.
    Bench(Box<load::bench::Args>),
    /// Say what a load needs, from what things cost on this host.
    Plan(load::capacity::plan::Args),
    /// Print a room's events as they come.
    Tail(load::tail::Args),
    /// Publish an event into a room.
    Publish(load::publish::Args),
    /// Say what became of an event for a client.
    Explain(load::explain::Args),
    /// Serve what outside test suites expect, on loopback only.
    Conformance(conformance::ConformanceArgs),
}

/// Runs the program with the arguments of this process.
pub fn run() -> ExitCode {
    match Program::parse().command {
        Command::Serve(args) => serve::run(args),
        Command::Token(args) => token::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Config(args) => config::run(args),
        Command::Bench(args) => load::bench::run(*args),
        Command::Plan(args) => load::capacity::plan::run(&args),
        Command::Tail(args) => load::tail::run(args),
        Command::Publish(args) => load::publish::run(args),
        Command::Explain(args) => load::explain::run(args),
        Command::Conformance(args) => conformance::run(args),
    }
}

/// Says on standard error what went wrong, and gives the exit code for it.
pub(crate) fn fail(error: impl std::fmt::Display) -> ExitCode {
    eprintln!("ringhub: {error}");
    ExitCode::FAILURE
}

/// Writes to standard output; a reader that has gone away (`| head`) is no failure worth a word.
pub(crate) fn print(text: &str) -> ExitCode {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => fail(format_args!("cannot write to standard output: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_contradicts_itself_nowhere() {
        Program::command().debug_assert();
    }

    #[test]
    fn flags_of_serve_become_options() {
        let line = "ringhub serve --listen 127.0.0.1:1 --listen 127.0.0.1:2 --shards 2 --no-auth --echo --demo --quiet --set limits.rooms_max=3";
        let Ok(Program { command: Command::Serve(args) }) = Program::try_parse_from(line.split(' ')) else {
            panic!("the line is serve's");
        };
        let config = args.config().expect("valid");
        assert_eq!((config.listen.public.len(), config.shards.count, config.limits.rooms_max), (2, 2, 3));
        assert!(!config.auth.enabled && config.endpoints.echo && config.endpoints.demo);
        assert_eq!(config.log.level, crate::config::LogLevel::Warn);
    }
}

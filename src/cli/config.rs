//! `ringhub config`: every option in writing, or the check of a file.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::sources::SourceArgs;
use crate::auth::Verifier;
use crate::config::folder::journal_folder;
use crate::config::{Config, Level, reference};

/// Flags of `ringhub config`.
#[derive(Args, Clone, Debug)]
pub struct ConfigArgs {
    /// Where the configuration comes from; values that differ from the default are shown.
    #[command(flatten)]
    pub sources: SourceArgs,
    /// Check a file, the key files it names and the journal's folder, and list nothing.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["json", "reference", "config", "set", "profile"])]
    pub check: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Print a file with every option at its default, commented out.
    #[arg(long, conflicts_with = "json")]
    pub reference: bool,
}

/// Lists or checks.
pub fn run(args: ConfigArgs) -> ExitCode {
    if let Some(path) = &args.check {
        let config = match Config::check_file(path) {
            Ok(config) => config,
            Err(error) => return super::fail(error),
        };
        let journal = journal_folder(&config).filter(|finding| finding.level == Level::Fail);
        if let Some(finding) = journal {
            return super::fail(finding);
        }
        return match Verifier::new(&config) {
            Ok(_) => super::print(&format!("{}: no problem found\n", path.display())),
            Err(error) => super::fail(error),
        };
    }
    if args.reference {
        return super::print(&reference::reference_file());
    }
    match args.sources.load() {
        Ok(config) if args.json => super::print(&reference::listing_json(&config)),
        Ok(config) => super::print(&reference::listing(&config)),
        Err(error) => super::fail(error),
    }
}

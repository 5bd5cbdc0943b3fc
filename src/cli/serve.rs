//! `ringhub serve`: its flags, and the configuration they give.

use std::process::ExitCode;

use clap::Args;

use super::sources::SourceArgs;
use crate::config::{Config, ConfigError, Level, Sources, check_host};

/// Flags of `ringhub serve`.
#[derive(Args, Clone, Debug, Default)]
pub struct ServeArgs {
    /// Where the configuration comes from.
    #[command(flatten)]
    pub sources: SourceArgs,
    /// Public address, HOST:PORT or unix:/path; may be repeated.
    #[arg(long, value_name = "ADDR")]
    pub listen: Vec<String>,
    /// Number of shards; 0 for one per core.
    #[arg(long, value_name = "N")]
    pub shards: Option<u16>,
    /// Ask for no token: everybody is an anonymous administrator. Loopback only.
    #[arg(long)]
    pub no_auth: bool,
    /// Serve /echo.
    #[arg(long)]
    pub echo: bool,
    /// Print no greeting, and log warnings and errors only.
    #[arg(long)]
    pub quiet: bool,
}

impl ServeArgs {
    /// The configuration, flags over all other sources.
    pub fn config(&self) -> Result<Config, ConfigError> {
        Config::load(&self.config_sources())
    }

    /// Where the configuration comes from, to read it again on a reload.
    pub fn config_sources(&self) -> Sources {
        let mut sources = self.sources.sources();
        if !self.listen.is_empty() {
            let listen = self.listen.iter().cloned().map(toml::Value::String).collect();
            sources.flags.push(("--listen", "listen.public", toml::Value::Array(listen)));
        }
        if let Some(shards) = self.shards {
            sources.flags.push(("--shards", "shards.count", toml::Value::Integer(shards.into())));
        }
        if self.no_auth {
            sources.flags.push(("--no-auth", "auth.enabled", toml::Value::Boolean(false)));
        }
        if self.echo {
            sources.flags.push(("--echo", "endpoints.echo", toml::Value::Boolean(true)));
        }
        if self.quiet {
            sources.flags.push(("--quiet", "log.level", toml::Value::String("warn".to_owned())));
        }
        sources
    }
}

/// Reads the configuration, checks the machine and runs the hub.
pub fn run(args: ServeArgs) -> ExitCode {
    let config = match args.config() {
        Ok(config) => config,
        Err(error) => return super::fail(error),
    };
    let findings = check_host(&config);
    let failed = findings.iter().filter(|finding| finding.level == Level::Fail);
    let failed: Vec<String> = failed.map(|finding| format!("cannot start: {finding}")).collect();
    if !failed.is_empty() {
        return super::fail(failed.join("\nringhub: "));
    }
    super::fail("this build has no node to run")
}

//! The flags by which several commands are told where their configuration comes from.

use std::path::PathBuf;

use clap::Args;

use crate::config::{Config, ConfigError, Sources};

/// `--config`, `--profile` and `--set`.
#[derive(Args, Clone, Debug, Default)]
pub struct SourceArgs {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE", env = "RINGHUB_CONFIG")]
    pub config: Option<PathBuf>,
    /// Built-in profile: default, latency, throughput or density.
    #[arg(long, value_name = "NAME", env = "RINGHUB_PROFILE")]
    pub profile: Option<String>,
    /// Set one option, over file and environment; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl SourceArgs {
    /// These sources over the environment of this process.
    pub fn sources(&self) -> Sources {
        Sources {
            profile: self.profile.clone(),
            file: self.config.clone(),
            set: self.set.clone(),
            ..Sources::from_process_env()
        }
    }

    /// The configuration they give.
    pub fn load(&self) -> Result<Config, ConfigError> {
        Config::load(&self.sources())
    }
}

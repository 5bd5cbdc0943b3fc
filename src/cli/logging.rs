//! The log on standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::{LogConfig, LogFormat};

/// Starts to log as configured. `RUST_LOG` may ask for more of some part.
pub(super) fn start(config: &LogConfig) -> Result<(), String> {
    let directives = std::env::var("RUST_LOG").unwrap_or_default();
    // glommio tells of every executor that starts.
    let base = format!("{},glommio=warn,hyper=warn", config.level.word());
    let all = if directives.is_empty() { base } else { format!("{base},{directives}") };
    let filter = EnvFilter::try_new(&all).map_err(|error| format!("RUST_LOG is not a list of directives: {error}"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match config.format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| format!("the log can't be started: {error}"))
}

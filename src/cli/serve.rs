//! `ringhub serve`: its flags, and the configuration they give.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::sources::SourceArgs;
use crate::auth::{Claims, mint};
use crate::config::{Config, ConfigError, Level, Listen, Sources, check_host};
use crate::node::Hub;

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
    if let Err(error) = super::logging::start(&config.log) {
        return super::fail(error);
    }
    for finding in findings.iter().filter(|finding| finding.level == Level::Warn) {
        tracing::warn!("{finding}");
    }
    let drawn = config.auth.enabled && config.auth.secret.is_empty();
    let (hub, signals) = match start(config) {
        Ok(started) => started,
        Err(error) => return super::fail(error),
    };
    for address in hub.addresses() {
        tracing::info!(%address, shards = hub.stats().shards.len(), "listening");
    }
    if let Some(address) = hub.internal_address() {
        tracing::info!(%address, "the HTTP API listens");
    }
    if !args.quiet {
        let code = super::print(&welcome(&hub.config(), &hub, drawn));
        if code != ExitCode::SUCCESS {
            return code;
        }
    }
    run_until_signalled(&hub, signals, Some(args))
}

/// Starts the hub. The signals that it minds are taken over before: one that comes early must not end the process where
/// it stands.
pub(super) fn start(config: Config) -> Result<(Hub, Signals), String> {
    let signals = Signals::new([SIGTERM, SIGINT, SIGHUP]);
    let signals = signals.map_err(|error| format!("signals can't be handled: {error}"))?;
    let hub = Hub::start(config).map_err(|error| error.to_string())?;
    Ok((hub, signals))
}

/// Runs until the hub ends: SIGTERM and SIGINT drain it, a second one ends it at once; SIGHUP reads the configuration
/// again, if there is one to read.
pub(super) fn run_until_signalled(hub: &Hub, mut signals: Signals, args: Option<ServeArgs>) -> ExitCode {
    let handle = signals.handle();
    let of_signals = hub.clone();
    let body = move || {
        let mut draining = false;
        for signal in signals.forever() {
            match (signal, &args) {
                (SIGHUP, Some(args)) => reload(&of_signals, args),
                (SIGHUP, None) => {}
                _ if draining => {
                    tracing::warn!("ending without waiting for clients");
                    if of_signals.shutdown().is_err() {
                        tracing::error!("a part of the hub did not end well");
                    }
                    return;
                }
                _ => {
                    draining = true;
                    tracing::info!("draining; a second signal ends the hub at once");
                    of_signals.drain();
                }
            }
        }
    };
    let thread = match std::thread::Builder::new().name("signals".to_owned()).spawn(body) {
        Ok(thread) => thread,
        Err(error) => return super::fail(format_args!("the thread for signals can't be started: {error}")),
    };
    let ended = hub.wait();
    handle.close();
    match (ended, thread.join()) {
        (Ok(()), Ok(())) => ExitCode::SUCCESS,
        (Err(failed), _) => super::fail(failed),
        (_, Err(_)) => super::fail("the thread for signals panicked"),
    }
}

fn reload(hub: &Hub, args: &ServeArgs) {
    let reloaded = match args.config() {
        Ok(config) => hub.reload(config),
        Err(error) => {
            tracing::error!("the configuration stays as it was: {error}");
            return;
        }
    };
    match reloaded {
        Ok(kept) if kept.is_empty() => tracing::info!("configuration read again"),
        Ok(kept) => tracing::warn!(keys = kept.join(", "), "configuration read again; these keys need a restart"),
        Err(error) => tracing::error!("the configuration stays as it was: {error}"),
    }
}

/// What a person who has just started the hub wants to know next.
fn welcome(config: &Config, hub: &Hub, drawn: bool) -> String {
    let mut text = String::new();
    let mut line = |one: std::fmt::Arguments<'_>| {
        text.push_str(&one.to_string());
        text.push('\n');
    };
    line(format_args!("ringhub {} on {} shard(s)", env!("CARGO_PKG_VERSION"), hub.stats().shards.len()));
    for listen in &config.listen.public {
        if let Listen::Unix(path) = listen {
            line(format_args!("  clients   unix:{}", path.display()));
        }
    }
    for address in hub.addresses() {
        line(format_args!("  clients   ws://{address}/ws"));
        line(format_args!("  backends  http://{address}/api/v1/publish"));
        line(format_args!("  health    http://{address}/ready"));
    }
    if !config.auth.enabled {
        line(format_args!("  everybody is an anonymous administrator (--no-auth)"));
    }
    let token = drawn.then(|| first_token(config)).flatten();
    if let Some(token) = &token {
        line(format_args!(
            "\nThe secret was drawn for this run. An administrator's token for the next 24 hours:\n\n{token}"
        ));
    } else if config.auth.enabled {
        line(format_args!("\nA token:  ringhub token --sub me --role admin --ttl 1h   (with the same configuration)"));
    }
    if let Some(address) = hub.addresses().first() {
        line(format_args!("\nTo try next, in other terminals:"));
        if token.is_some() {
            line(format_args!("  export RINGHUB_TOKEN=...    # the token above"));
        }
        line(format_args!("  ringhub tail project:1 --url ws://{address}/ws"));
        line(format_args!(
            "  ringhub publish project:1 project.updated '{{\"name\":\"hello\"}}' --url ws://{address}/ws"
        ));
        line(format_args!("  curl -s http://{address}/ready"));
    }
    text
}

fn first_token(config: &Config) -> Option<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
    let claims = Claims {
        sub: "admin".to_owned(),
        roles: vec!["admin".to_owned()],
        iat: Some(now),
        exp: Some(now + 24 * 3600),
        iss: config.auth.issuer.first().cloned(),
        aud: config.auth.audience.first().cloned(),
        ..Claims::default()
    };
    match mint(config.auth.secret.first()?, config.auth.algorithm, &claims) {
        Ok(token) => Some(token),
        Err(error) => {
            tracing::warn!(%error, "no token could be made");
            None
        }
    }
}

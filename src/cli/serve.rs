//! `ringhub serve`: its flags, and the configuration they give.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::notify::Notifier;
use super::sources::SourceArgs;
use crate::auth::{Claims, mint};
use crate::config::{Config, ConfigError, Level, Listen, Sources, check_host};
use crate::demo::{self, Demo};
use crate::node::{Handlers, Hub};

/// What the hub may need to end beside the time that it gives its clients.
const STOP_MARGIN: Duration = Duration::from_secs(5);

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
    /// Run a simulated fleet beside the hub, to see it at work; /demo shows it with its code.
    #[arg(long)]
    pub demo: bool,
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
        if self.demo {
            sources.flags.push(("--demo", "endpoints.demo", toml::Value::Boolean(true)));
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
    let notifier = match Notifier::from_env() {
        Ok(notifier) => notifier,
        Err(error) => return super::fail(format_args!("NOTIFY_SOCKET can't be used: {error}")),
    };
    let drawn = config.auth.enabled && config.auth.secret.is_empty();
    let (hub, signals) = match start(config, Handlers::default()) {
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
    if let Err(error) = notifier.start_beating(&hub) {
        return super::fail(format_args!("the watchdog's thread can't be started: {error}"));
    }
    let demo = match hub.config().endpoints.demo.then(|| Demo::start(&hub)).transpose() {
        Ok(demo) => demo,
        Err(error) => return super::fail(error),
    };
    notifier.ready(&status(&hub));
    let code = run_until_signalled(&hub, signals, Some((args, notifier)));
    drop(demo);
    code
}

/// A line for `systemctl status`.
fn status(hub: &Hub) -> String {
    let public = hub.config().listen.public;
    let public: Vec<String> = public.iter().map(Listen::to_string).collect();
    format!("serving {} on {} shard(s)", public.join(", "), hub.stats().shards.len())
}

/// Starts the hub. The signals that it minds are taken over before: one that comes early must not end the process where
/// it stands.
pub(super) fn start(config: Config, handlers: Handlers) -> Result<(Hub, Signals), String> {
    let signals = Signals::new([SIGTERM, SIGINT, SIGHUP]);
    let signals = signals.map_err(|error| format!("signals can't be handled: {error}"))?;
    let hub = Hub::start_with(config, handlers).map_err(|error| error.to_string())?;
    Ok((hub, signals))
}

/// Runs until the hub ends: SIGTERM and SIGINT drain it, a second one ends it at once; SIGHUP reads the configuration
/// again, if `service` has one to read. Whoever supervises the service is told of both.
pub(super) fn run_until_signalled(hub: &Hub, mut signals: Signals, service: Option<(ServeArgs, Notifier)>) -> ExitCode {
    let handle = signals.handle();
    let of_signals = hub.clone();
    let body = move || {
        let mut draining = false;
        for signal in signals.forever() {
            match (signal, &service) {
                (SIGHUP, Some((args, notifier))) => {
                    notifier.reloading();
                    let kept = reload(&of_signals, args);
                    notifier.ready(kept.unwrap_or(&status(&of_signals)));
                }
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
                    if let Some((_, notifier)) = &service {
                        let config = of_signals.config();
                        let wait_s = config.drain.seconds + config.limits.close_wait_s;
                        notifier.stopping(Duration::from_secs(wait_s) + STOP_MARGIN);
                    }
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

/// Reads the configuration again; says where it was not taken as it is.
fn reload(hub: &Hub, args: &ServeArgs) -> Option<&'static str> {
    let reloaded = args.config().map_err(|error| error.to_string());
    let reloaded = reloaded.and_then(|config| hub.reload(config).map_err(|error| error.to_string()));
    match reloaded {
        Ok(kept) if kept.is_empty() => {
            tracing::info!("configuration read again");
            None
        }
        Ok(kept) => {
            tracing::warn!(keys = kept.join(", "), "configuration read again; these keys need a restart");
            Some("serving; some of the configuration needs a restart, the log says what")
        }
        Err(error) => {
            tracing::error!("the configuration stays as it was: {error}");
            Some("serving with the configuration as it was; the new one has errors, the log says which")
        }
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
    // A token of a secret that others rely on is for nobody's terminal, but where it can only be used on this machine, in a
    // hub that was started to be looked at.
    let is_shown = drawn || (config.endpoints.demo && config.listen.public.iter().all(Listen::is_local));
    let token = is_shown.then(|| admin_token(config, "admin", 24 * 3600)).flatten();
    if let Some(address) = hub.internal_address().or_else(|| hub.addresses().first().copied()) {
        let address = demo::reachable(address);
        // Behind the `#` it is sent to nobody: the page takes it, and removes it from the address.
        let with_token = token.as_ref().map(|token| format!("#token={token}")).unwrap_or_default();
        line(format_args!("\nThe dashboard:\n\nhttp://{address}/dashboard{with_token}"));
        if config.endpoints.demo {
            line(format_args!(
                "\nThe demo, which shows a simulated fleet and its code:\n\nhttp://{address}/demo{with_token}"
            ));
        }
    }
    if let Some(token) = &token {
        let why = if drawn { "The secret was drawn for this run. An" } else { "An" };
        line(format_args!("\n{why} administrator's token for the next 24 hours:\n\n{token}"));
    } else if config.auth.enabled {
        line(format_args!("\nA token:  ringhub token --sub me --role admin --ttl 1h   (with the same configuration)"));
    }
    if let Some(address) = hub.addresses().first() {
        let room = if config.endpoints.demo { "project:atlas" } else { "project:1" };
        line(format_args!("\nTo try next, in other terminals:"));
        if token.is_some() {
            line(format_args!("  export RINGHUB_TOKEN=...    # the token above"));
        }
        line(format_args!("  ringhub tail {room} --url ws://{address}/ws"));
        line(format_args!("  ringhub publish {room} project.updated '{{\"name\":\"hello\"}}' --url ws://{address}/ws"));
        line(format_args!("  curl -s http://{address}/ready"));
    }
    text
}

/// An administrator's token, signed with the configured secret; none without one.
pub(super) fn admin_token(config: &Config, sub: &str, ttl_s: u64) -> Option<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
    let claims = Claims {
        sub: sub.to_owned(),
        roles: vec!["admin".to_owned()],
        permissions: vec!["websocket:admin".to_owned()],
        iat: Some(now),
        exp: Some(now.saturating_add(ttl_s)),
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

//! `ringhub bench --calibrate`: short runs against a hub of its own, each for one figure.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::Algorithm;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::super::course::Bench;
use super::super::plan::{EchoVia, Mode, Pace, Plan};
use super::super::process::{self, Process};
use super::super::report::{Limits, Report, Server};
use super::super::stamp::Stamp;
use super::super::target::{Target, Token};
use super::figures::{self, Delivery, FORMAT, Figures, Host, SIZE_BYTES, usual_path};
use super::hub::{Cores, Hub};
use crate::auth::{Claims, mint};
use crate::config::Secret;

/// Events in flight of the runs that measure deliveries.
const WINDOWS: [u32; 3] = [1, 16, 64];
/// Bytes of data of the run that tells what a byte costs.
const LARGE_BYTES: u32 = 4096;
/// Rooms of the run that tells what an event costs beside its deliveries.
const SMALL_ROOMS: usize = 100;
const CHURN_RATE: f64 = 500.0;
/// Time of the run that measures heartbeats, of which each connection has one per second.
const HEARTBEATS: Duration = Duration::from_secs(4);
const NO_AUTH: &str = "auth.enabled=false";
const DRAIN: Duration = Duration::from_secs(5);
const SETUP: Duration = Duration::from_secs(10);

/// How thoroughly, and where to.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Subscribers of the runs that measure deliveries.
    pub(crate) connections: usize,
    /// Measured time of each run.
    pub(crate) measured: Duration,
    pub(crate) warmup: Duration,
    /// None for the usual place.
    pub(crate) out: Option<PathBuf>,
    pub(crate) quiet: bool,
}

/// Why there is no calibration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CalibrationError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Setup(String),
    #[error("{run}: {what}")]
    Run { run: &'static str, what: String },
    #[error("there is no place for the calibration: neither XDG_STATE_HOME nor HOME is set. Name one with --out FILE")]
    NoPlace,
    #[error("interrupted")]
    Interrupted,
    #[error("the calibration can't be saved: {0}")]
    Save(String),
}

/// Measures this host and saves what it found; gives the text to print.
pub(crate) fn calibrate(settings: &Settings) -> Result<String, CalibrationError> {
    let place = settings.out.clone().or_else(usual_path).ok_or(CalibrationError::NoPlace)?;
    // A minute of measuring is not to end with a folder that may not be written to.
    figures::prepare(&place).map_err(|error| CalibrationError::Save(error.to_string()))?;
    let cores = Cores::divide()?;
    let measured = Calibration { settings, program: std::env::current_exe()?, cores: &cores }.measure();
    cores.give_back()?;
    let figures = measured?;
    figures.write(&place).map_err(|error| CalibrationError::Save(error.to_string()))?;
    Ok(super::text::figures(&figures, &place))
}

struct Calibration<'a> {
    settings: &'a Settings,
    program: PathBuf,
    cores: &'a Cores,
}

impl Calibration<'_> {
    fn measure(&self) -> Result<Figures, CalibrationError> {
        process::allow_connections(self.idle_connections() as u64)
            .map_err(|error| CalibrationError::Setup(error.to_string()))?;
        let mut deliveries = Vec::new();
        for window in WINDOWS {
            let report = self.crowd(window, SIZE_BYTES)?;
            deliveries.push(Delivery { events: window, cpu_us: per_delivery("deliveries", &report)? });
        }
        let large_us = per_delivery("large deliveries", &self.crowd(WINDOWS[1], LARGE_BYTES)?)?;
        let same_us = deliveries.get(1).map_or(0.0, |delivery| delivery.cpu_us);
        let delivery_ns_per_byte = ((large_us - same_us) * 1e3 / f64::from(LARGE_BYTES - SIZE_BYTES)).max(0.0);
        let alone_us = deliveries.first().map_or(0.0, |delivery| delivery.cpu_us);

        let without = self.idle("idle connections", false, Duration::from_millis(500))?;
        let with = self.idle("idle subscribers", true, HEARTBEATS)?;
        let heartbeat_us = heartbeat_us(&without, &with)?;
        let connection_bytes = memory_per_connection("idle connections", &without)?;
        Ok(Figures {
            format: FORMAT,
            host: self.host(),
            deliveries,
            delivery_ns_per_byte,
            publish_us: self.publish_us(alone_us)?,
            connect_us: self.connect_us()?,
            heartbeat_us,
            base_bytes: server("idle connections", &without)?.rss_before_bytes as f64,
            connection_bytes,
            membership_bytes: (memory_per_connection("idle subscribers", &with)? - connection_bytes).max(0.0),
            kernel_bytes: kernel_bytes(),
            log_bytes: self.log_bytes()?,
        })
    }

    /// One publisher, one room.
    fn crowd(&self, window: u32, size: u32) -> Result<Report, CalibrationError> {
        let hub = self.hub(&[NO_AUTH])?;
        let plan = Plan { pace: Pace::Window(window), size: size as usize, ..self.plan(&hub, Mode::Fanout)? };
        self.run("deliveries", &hub, plan)
    }

    /// CPU of an event in a room with one member, less its delivery.
    fn publish_us(&self, delivery_us: f64) -> Result<f64, CalibrationError> {
        let hub = self.hub(&[NO_AUTH])?;
        let plan = Plan {
            rooms: SMALL_ROOMS,
            connections: SMALL_ROOMS,
            publishers: SMALL_ROOMS,
            pace: Pace::Window(1),
            ..self.plan(&hub, Mode::Fanout)?
        };
        let event_us = per_delivery("publishes", &self.run("publishes", &hub, plan)?)?;
        // The publisher's answer and the delivery are about the same work, so that the publish can't cost nothing.
        Ok((event_us - delivery_us).max(event_us / 10.0))
    }

    /// CPU of a connection with a token, from accept to close.
    fn connect_us(&self) -> Result<f64, CalibrationError> {
        let run = "connects";
        let text = hex(&mut [0; 32])?;
        let hub = self.hub(&[&format!("auth.secret={text}")])?;
        let mut plan = Plan { pace: Pace::Rate(CHURN_RATE), connections: 100, ..self.plan(&hub, Mode::Churn)? };
        plan.target = target(&hub, Some(&token(&text)?))?;
        let report = self.run(run, &hub, plan)?;
        let per_s = report.traffic.sent_per_s;
        if per_s <= 0.0 {
            return Err(CalibrationError::Run { run, what: "no connection came about".to_owned() });
        }
        Ok(server(run, &report)?.cpu_percent * 1e4 / per_s)
    }

    /// Enough of them to be seen in the process's memory.
    fn idle_connections(&self) -> usize {
        (2 * self.settings.connections).max(1000)
    }

    /// Connections that are there and, once a second where they subscribe, answer pings.
    fn idle(&self, run: &'static str, subscribe: bool, measured: Duration) -> Result<Report, CalibrationError> {
        let interval_s = if subscribe { 1 } else { 3600 };
        let hub = self.hub(&[NO_AUTH, &format!("heartbeat.interval_s={interval_s}")])?;
        let plan = Plan {
            connections: self.idle_connections(),
            subscribe,
            measured_ns: ns(measured),
            ..self.plan(&hub, Mode::Idle)?
        };
        self.run(run, &hub, plan)
    }

    /// Memory that a logged event takes beside its data: what the process grows by while a log does.
    fn log_bytes(&self) -> Result<f64, CalibrationError> {
        let run = "logged events";
        let options = [NO_AUTH, "history.events_max=1000000", "history.bytes_max=1GiB", "history.shard_bytes_max=4GiB"];
        let hub = self.hub(&options)?;
        let plan = Plan {
            connections: 1,
            pace: Pace::Window(64),
            warmup_ns: 0,
            // Less may not be seen, more can be a gigabyte.
            measured_ns: ns(Duration::from_secs(1)),
            ..self.plan(&hub, Mode::Fanout)?
        };
        let report = self.run(run, &hub, plan)?;
        let server = server(run, &report)?;
        let grown = server.rss_end_bytes.saturating_sub(server.rss_connected_bytes) as f64;
        let events = report.traffic.sent.max(1) as f64;
        let beside = grown / events - f64::from(SIZE_BYTES);
        if beside > 0.0 {
            Ok(beside)
        } else {
            let what = format!("the process grew by {grown} bytes for {events} events: too short a run");
            Err(CalibrationError::Run { run, what })
        }
    }

    fn hub(&self, options: &[&str]) -> Result<Hub, CalibrationError> {
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        Ok(Hub::start(&self.program, self.cores, &options)?)
    }

    fn plan(&self, hub: &Hub, mode: Mode) -> Result<Plan, CalibrationError> {
        let publishes = mode == Mode::Fanout;
        Ok(Plan {
            mode,
            connections: self.settings.connections,
            rooms: 1,
            publishers: usize::from(publishes),
            pace: Pace::Rate(0.0),
            skewed: false,
            size: SIZE_BYTES as usize,
            event_type: "bench.event".to_owned(),
            measured_ns: ns(self.settings.measured),
            warmup_ns: if publishes { ns(self.settings.warmup) } else { 0 },
            connect_rate: 2000.0,
            setup_timeout_ns: ns(SETUP),
            threads: 1,
            sources: 1,
            greeting: true,
            subscribe: true,
            check_seq: true,
            reconnect_rate: 0.0,
            away_ns: 0,
            echo: EchoVia::Path,
            target: target(hub, None)?,
            stamp: Stamp::new(fastrand::u32(..)),
        })
    }

    /// One run; errors of its connections make its figures worthless.
    fn run(&self, run: &'static str, hub: &Hub, plan: Plan) -> Result<Report, CalibrationError> {
        if !self.settings.quiet {
            eprintln!("measuring {run}");
        }
        let process = Some(Process::new(hub.pid())?);
        let bench = Bench { plan, probe: None, drain: DRAIN, process, limits: Limits::default(), progress: false };
        let report = bench.course()?;
        if report.interrupted {
            return Err(CalibrationError::Interrupted);
        }
        match report.errors.first() {
            Some(error) => {
                let hint = error.hint.map(|hint| format!(" ({hint})")).unwrap_or_default();
                Err(CalibrationError::Run { run, what: format!("{} × {}{hint}", error.count, error.example) })
            }
            None => Ok(report),
        }
    }

    fn host(&self) -> Host {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let now = OffsetDateTime::from_unix_timestamp(i64::try_from(now).unwrap_or(0));
        Host {
            cpu: cpu_name(),
            cores: self.cores.count,
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            ringhub: env!("CARGO_PKG_VERSION").to_owned(),
            date: now.ok().and_then(|now| now.format(&Rfc3339).ok()).unwrap_or_default(),
            shared_core: self.cores.are_shared(),
        }
    }
}

fn target(hub: &Hub, token: Option<&Token>) -> Result<Target, CalibrationError> {
    Target::new(&hub.url(), token).map_err(|error| CalibrationError::Setup(error.to_string()))
}

/// A token that may connect, and read what the runs subscribe to.
fn token(secret: &str) -> Result<Token, CalibrationError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let claims = Claims {
        sub: "calibration".to_owned(),
        permissions: ["websocket:connect", "websocket:subscribe", "project:*:read"].map(str::to_owned).to_vec(),
        exp: Some(now + 3600),
        ..Claims::default()
    };
    let secret = Secret { kid: None, secret: secret.to_owned() };
    mint(&secret, Algorithm::HS256, &claims)
        .map_err(|error| error.to_string())
        .and_then(|token| token.parse())
        .map_err(CalibrationError::Setup)
}

/// Random bytes as text.
fn hex(bytes: &mut [u8]) -> Result<String, CalibrationError> {
    getrandom::fill(bytes).map_err(|error| CalibrationError::Setup(format!("no random numbers: {error}")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn server<'a>(run: &'static str, report: &'a Report) -> Result<&'a Server, CalibrationError> {
    let what = || "the hub's process could not be read".to_owned();
    report.server.as_ref().ok_or_else(|| CalibrationError::Run { run, what: what() })
}

/// CPU of a ping: what connections with one per second cost more than those without.
fn heartbeat_us(without: &Report, with: &Report) -> Result<f64, CalibrationError> {
    let cpu_us_per_s = |report| Ok::<f64, CalibrationError>(server("heartbeats", report)?.cpu_percent * 1e4);
    let more = cpu_us_per_s(with)? - cpu_us_per_s(without)?;
    // A host that was busy during the one run may have told less for the other.
    Ok((more / with.connections.ready.max(1) as f64).max(0.1))
}

fn per_delivery(run: &'static str, report: &Report) -> Result<f64, CalibrationError> {
    let cpu_us = server(run, report)?.cpu_us_per_delivery.filter(|cpu_us| *cpu_us > 0.0);
    cpu_us.ok_or_else(|| CalibrationError::Run { run, what: "nothing was delivered in the measured time".to_owned() })
}

fn memory_per_connection(run: &'static str, report: &Report) -> Result<f64, CalibrationError> {
    let bytes = server(run, report)?.memory_per_connection_bytes.filter(|bytes| *bytes > 0.0);
    let what = || "the connections were too few to be seen in the process's memory: give more with --conns".to_owned();
    bytes.ok_or_else(|| CalibrationError::Run { run, what: what() })
}

/// The kernel's own sizes of what an idle TCP connection needs there: socket, its file, directory entry and inode, and
/// the ring's receive. `/proc/slabinfo` is root's; others get the sizes of Linux 6.x on 64 bits.
fn kernel_bytes() -> f64 {
    const FALLBACK: f64 = 2432.0 + 256.0 + 192.0 + 768.0 + 256.0;
    const SLABS: [&str; 5] = ["TCP ", "filp ", "dentry ", "sock_inode_cache ", "io_kiocb "];
    let Ok(text) = std::fs::read_to_string("/proc/slabinfo") else { return FALLBACK };
    let size =
        |slab: &str| text.lines().find(|line| line.starts_with(slab))?.split_ascii_whitespace().nth(3)?.parse().ok();
    let sizes: Option<Vec<f64>> = SLABS.iter().map(|slab| size(slab)).collect();
    sizes.map_or(FALLBACK, |sizes| sizes.iter().sum())
}

fn cpu_name() -> String {
    let text = std::fs::read_to_string(Path::new("/proc/cpuinfo")).unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name"));
    name.and_then(|line| line.split_once(':'))
        .map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

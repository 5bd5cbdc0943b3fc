//! `ringhub bench`: its settings and what follows from them. `course` runs it.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use super::capacity::calibrate::{self, Settings};
use super::course::Bench;
pub use super::plan::{EchoVia, Mode};
use super::plan::{Pace, Plan};
use super::process::{self, Process};
use super::report::Limits;
use super::stamp::{STAMP_BYTES, Stamp};
use super::target::{HubArgs, SOURCES_MAX};

/// Put load on a hub and measure what it does.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The hub.
    #[command(flatten)]
    hub: HubArgs,
    /// The work
    #[arg(long, value_enum, default_value_t = Mode::Fanout)]
    mode: Mode,
    /// Subscribers, echo clients, idle connections, or (churn) connections at a time
    /// [default: fanout 1000, echo 100, idle 1000, churn 100, reconnect 5000; 10000 with --full-load]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    conns: Option<u32>,
    /// Rooms, project:bench-0 and up [default: 1; reconnect 50; 10 with --full-load]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rooms: Option<u32>,
    /// Connections that publish (fanout, reconnect) [default: 1; 10 with --full-load]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    publishers: Option<u32>,
    /// Open loop: events, echoes or connects per second in all [default: fanout 50, churn 100, reconnect 100]
    #[arg(long, value_name = "PER_SECOND", value_parser = rate, conflicts_with = "window")]
    rate: Option<f64>,
    /// Closed loop: messages in flight per publisher and room, or per echo client [default: echo 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    window: Option<u32>,
    /// Rooms get unequal shares of the rate: the k-th 1/k (on with --full-load)
    #[arg(long)]
    skewed: bool,
    /// Bytes of one body
    #[arg(long, value_name = "BYTES", default_value_t = 128,
          value_parser = clap::value_parser!(u32).range(STAMP_BYTES as i64..=16 << 20))]
    size: u32,
    /// Subscribers that vanish and come back each second, of a hundred (reconnect)
    #[arg(long, value_name = "PERCENT", default_value = "10", value_parser = rate)]
    reconnect_percent: f64,
    /// How long each of them stays away (reconnect)
    #[arg(long, value_name = "SECONDS", default_value = "0.5", value_parser = seconds)]
    away: Duration,
    /// Type of the events
    #[arg(long, value_name = "TYPE", default_value = "bench.event")]
    event_type: String,
    /// Measured time [default: 10; 20 with --full-load]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    secs: Option<Duration>,
    /// Load before the measured time
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    warmup: Duration,
    /// How long deliveries are waited for after the last event
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    drain: Duration,
    /// New connections per second
    #[arg(long, value_name = "PER_SECOND", default_value = "2000", value_parser = rate)]
    connect_rate: f64,
    /// How long one connection may take to be set up
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    connect_timeout: Duration,
    /// Threads of this generator
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: u16,
    /// Source addresses 127.0.1.1 and up; only to a hub on a loopback address
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=SOURCES_MAX as i64))]
    sources: u32,
    /// How echoes are asked for
    #[arg(long, value_enum, default_value_t = EchoVia::Path)]
    echo_via: EchoVia,
    /// Measure so many echo connections beside the load, from a thread of their own
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    probe: Option<u32>,
    /// Echoes per second of the probe in all
    #[arg(long, value_name = "PER_SECOND", default_value = "200", value_parser = rate)]
    probe_rate: f64,
    /// The hub sends no greeting (churn waits for one otherwise)
    #[arg(long)]
    no_greeting: bool,
    /// Idle and churn: connect only
    #[arg(long)]
    no_subscribe: bool,
    /// The hub doesn't number a room's events 1, 2, 3, …: don't check their order
    #[arg(long)]
    no_seq: bool,
    /// Offer compression (permessage-deflate), and decompress what comes; this side sends nothing compressed
    #[arg(long)]
    compress: bool,
    /// The hub's process: report its CPU time per delivery and its memory
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// 10 000 connections, 10 rooms, 10 publishers at unequal rates, judged: 100 ms, 0 errors, 100 % delivered
    #[arg(long)]
    full_load: bool,
    /// Fail if the p99 from due to delivered is longer
    #[arg(long, value_name = "MS", value_parser = limit)]
    max_p99_ms: Option<f64>,
    /// Fail if the p99 of the probe is longer
    #[arg(long, value_name = "MS", value_parser = limit, requires = "probe")]
    max_probe_p99_ms: Option<f64>,
    /// Fail if there are more errors (lost connections, refusals, gaps, repeats)
    #[arg(long, value_name = "N")]
    max_errors: Option<u64>,
    /// Fail if a smaller part of the deliveries came
    #[arg(long, value_name = "PERCENT", value_parser = limit)]
    min_delivered: Option<f64>,
    /// Measure what things cost on this host instead, against a hub of its own, for `ringhub plan`: about a minute;
    /// --conns (1000), --secs (3) and --warmup are those of each run
    #[arg(long, conflicts_with_all = ["mode", "rooms", "publishers", "rate", "window", "full_load", "probe", "pid", "size", "threads", "sources"])]
    calibrate: bool,
    /// Where the calibration is saved [default: $XDG_STATE_HOME/ringhub/calibration.json, or below ~/.local/state]
    #[arg(long, value_name = "FILE", requires = "calibrate")]
    out: Option<PathBuf>,
    /// Print the report as one JSON object
    #[arg(long, conflicts_with = "calibrate")]
    json: bool,
    /// No progress bar
    #[arg(long)]
    quiet: bool,
}

/// Runs the load and prints the report. Exit code 1: a limit was missed, or nothing could be measured; 2: wrong use.
pub fn run(args: Args) -> ExitCode {
    if args.calibrate {
        return calibrate(args);
    }
    let bench = match Bench::new(&args) {
        Ok(bench) => bench,
        Err(message) => {
            eprintln!("error: {message}");
            return ExitCode::from(2);
        }
    };
    let report = match bench.course() {
        Ok(report) => report,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let text = if args.json { serde_json::to_string(&report).map(|json| json + "\n") } else { Ok(report.to_string()) };
    let printed = text.map_err(io::Error::other).and_then(|text| io::stdout().write_all(text.as_bytes()));
    if let Err(error) = printed {
        eprintln!("error: the report could not be printed: {error}");
        return ExitCode::FAILURE;
    }
    let measured = report.connections.ready > 0;
    if measured && report.verdict.is_none_or(|v| v.pass) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn calibrate(args: Args) -> ExitCode {
    let settings = Settings {
        connections: args.conns.unwrap_or(1000) as usize,
        measured: args.secs.unwrap_or(Duration::from_secs(3)),
        warmup: args.warmup,
        out: args.out,
        quiet: args.quiet,
    };
    match calibrate::calibrate(&settings).map(|text| io::stdout().write_all(text.as_bytes())) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => fail(&format!("the calibration could not be printed: {error}")),
        Err(error) => fail(&error.to_string()),
    }
}

fn fail(message: &str) -> ExitCode {
    eprintln!("error: {message}");
    ExitCode::FAILURE
}

impl Bench {
    /// Checks the settings and fills in what follows from the mode.
    fn new(args: &Args) -> Result<Bench, String> {
        let full = args.full_load;
        let (connections, pace) = match args.mode {
            Mode::Fanout => (if full { 10_000 } else { 1000 }, Pace::Rate(50.0)),
            Mode::Echo => (if full { 10_000 } else { 100 }, Pace::Window(1)),
            Mode::Idle => (if full { 10_000 } else { 1000 }, Pace::Rate(0.0)),
            Mode::Churn => (100, Pace::Rate(100.0)),
            Mode::Reconnect => (if full { 10_000 } else { 5000 }, Pace::Rate(100.0)),
        };
        let many = |given: Option<u32>, usual: u32| given.unwrap_or(usual) as usize;
        let target = args.hub.target().map_err(|e| e.to_string())?;
        let target = if args.compress { target.offering_compression() } else { target };
        let echo_target = match args.echo_via {
            EchoVia::Path => target.with_path("/echo").map_err(|e| e.to_string())?,
            EchoVia::Ping => target.clone(),
        };
        if args.sources > 1 && !target.is_ipv4_loopback() {
            return Err("--sources needs a hub on an IPv4 loopback address".into());
        }
        if args.mode == Mode::Idle && (args.rate.is_some() || args.window.is_some()) {
            return Err("--mode idle sends nothing: --rate and --window have no meaning".into());
        }
        if args.mode == Mode::Churn && args.window.is_some() {
            return Err("--mode churn connects at --rate, at most --conns at a time: --window has no meaning".into());
        }
        let reconnects = args.mode == Mode::Reconnect;
        if reconnects && (args.no_seq || args.no_greeting || args.window.is_some()) {
            return Err("--mode reconnect needs greetings, numbered events and an open loop".into());
        }
        let publishes = args.mode == Mode::Fanout || reconnects;
        let sends = publishes || args.mode == Mode::Echo;
        let plan = Plan {
            mode: args.mode,
            connections: many(args.conns, connections),
            rooms: many(
                args.rooms,
                if full {
                    10
                } else if reconnects {
                    50
                } else {
                    1
                },
            ),
            publishers: if publishes { many(args.publishers, if full { 10 } else { 1 }) } else { 0 },
            pace: match (args.rate, args.window) {
                (Some(rate), _) => Pace::Rate(rate),
                (_, Some(window)) => Pace::Window(window),
                _ => pace,
            },
            skewed: args.skewed || full,
            size: args.size as usize,
            event_type: args.event_type.clone(),
            measured_ns: ns(args.secs.unwrap_or(Duration::from_secs(if full { 20 } else { 10 }))),
            warmup_ns: if sends { ns(args.warmup) } else { 0 },
            connect_rate: args.connect_rate,
            setup_timeout_ns: ns(args.connect_timeout),
            threads: usize::from(args.threads),
            sources: args.sources,
            greeting: !args.no_greeting,
            subscribe: publishes || !args.no_subscribe,
            check_seq: !args.no_seq,
            reconnect_rate: if reconnects {
                args.reconnect_percent / 100.0 * many(args.conns, connections) as f64
            } else {
                0.0
            },
            away_ns: ns(args.away),
            echo: args.echo_via,
            target: if args.mode == Mode::Echo { echo_target.clone() } else { target },
            stamp: Stamp::new(fastrand::u32(..)),
        };
        let probe = args.probe.map(|connections| Plan {
            mode: Mode::Echo,
            connections: connections as usize,
            rooms: 0,
            publishers: 0,
            pace: Pace::Rate(args.probe_rate),
            reconnect_rate: 0.0,
            threads: 1,
            target: echo_target,
            stamp: Stamp::new(fastrand::u32(..)),
            ..plan.clone()
        });
        let all = plan.connections_all() + probe.as_ref().map_or(0, Plan::connections_all);
        process::allow_connections(all as u64).map_err(|e| e.to_string())?;
        let process = match args.pid {
            None => None,
            Some(pid) => Some(Process::new(pid).map_err(|e| format!("--pid {pid}: {e}"))?),
        };
        let strict = |given: Option<f64>, full_load: f64| given.or(full.then_some(full_load));
        // Whether anything was lost is what such a run is for.
        let all_delivered = args.min_delivered.or((full || reconnects).then_some(100.0));
        let has_traffic = plan.mode != Mode::Idle;
        Ok(Bench {
            plan,
            probe,
            drain: args.drain,
            process,
            limits: Limits {
                p99_ms_max: strict(args.max_p99_ms, 100.0).filter(|_| has_traffic),
                probe_p99_ms_max: args.max_probe_p99_ms,
                errors_max: args.max_errors.or((full || reconnects).then_some(0)),
                delivered_percent_min: all_delivered.filter(|_| has_traffic),
            },
            progress: !args.quiet && !args.json,
        })
    }
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn rate(text: &str) -> Result<f64, String> {
    text.parse::<f64>().ok().filter(|r| (0.001..=1e7).contains(r)).ok_or("a number from 0.001 to 10000000".into())
}

fn limit(text: &str) -> Result<f64, String> {
    text.parse::<f64>().ok().filter(|l| l.is_finite() && *l >= 0.0).ok_or("a number not below 0".into())
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse::<f64>()
        .ok()
        .filter(|s| (0.0..=604_800.0).contains(s))
        .map(Duration::from_secs_f64)
        .ok_or("seconds, at most 604800".into())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::load::report::Report;
    use crate::load::standin::StandIn;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        args: Args,
    }

    fn bench(line: &str) -> Result<Bench, String> {
        let args = Program::try_parse_from(std::iter::once("bench").chain(line.split_ascii_whitespace()))
            .map_err(|e| e.to_string())?
            .args;
        Bench::new(&args)
    }

    fn measure(hub: &StandIn, line: &str) -> Report {
        bench(&format!("--url {} --quiet {line}", hub.url("/ws"))).unwrap().course().unwrap()
    }

    #[test]
    fn an_open_loop_fan_out_counts_every_delivery_once_and_in_order() {
        let hub = StandIn::start();
        let report = measure(
            &hub,
            "--conns 12 --rooms 3 --publishers 2 --threads 2 --rate 100 --secs 0.5 --warmup 0.1 --max-errors 0 --min-delivered 100",
        );
        assert_eq!((report.connections.ready, report.connections.lost), (14, 0), "{report}");
        assert!((40..=60).contains(&report.traffic.sent), "{report}");
        assert_eq!(report.traffic.expected, report.traffic.sent * 4, "{report}");
        assert_eq!(report.traffic.missing, 0, "{report}");
        assert_eq!(report.sequence, Some(Default::default()), "{report}");
        assert!(report.verdict.is_some_and(|v| v.pass));
    }

    #[test]
    fn a_closed_loop_keeps_its_window_full() {
        let hub = StandIn::start();
        let report = measure(&hub, "--conns 4 --window 2 --secs 0.3 --warmup 0");
        assert!(report.traffic.sent > 10 && report.traffic.missing == 0, "{report}");
        assert_eq!(report.traffic.expected, report.traffic.sent * 4, "{report}");
    }

    #[test]
    fn events_that_a_hub_loses_doubles_or_swaps_are_found() {
        let hub = StandIn::start();
        hub.lose_every(7);
        let report = measure(&hub, "--conns 3 --rate 100 --secs 0.5 --warmup 0 --drain 0.3 --max-errors 0");
        assert!(report.traffic.missing > 0 && report.sequence.is_some_and(|d| d.missing > 0 && d.gaps > 0), "{report}");
        assert!(report.verdict.is_some_and(|v| !v.pass));
    }

    #[test]
    fn echoes_come_back_by_path_and_by_ping() {
        let hub = StandIn::start();
        for line in ["--mode echo --conns 3 --window 2", "--mode echo --conns 3 --rate 60 --echo-via ping"] {
            let report = measure(&hub, &format!("{line} --secs 0.4 --warmup 0"));
            assert!(report.traffic.sent > 10 && report.traffic.missing == 0, "{report}");
            assert!(report.errors.is_empty(), "{report}");
        }
    }

    #[test]
    fn a_probe_is_measured_beside_the_load() {
        let hub = StandIn::start();
        let report = measure(
            &hub,
            "--conns 5 --rate 50 --probe 2 --probe-rate 100 --secs 0.4 --warmup 0 --max-probe-p99-ms 2000",
        );
        let probe = report.probe.as_ref().unwrap();
        assert!(probe.connections == 2 && probe.sent > 20 && probe.sent == probe.answered, "{report}");
        assert!(report.verdict.as_ref().is_some_and(|v| v.pass), "{report}");
    }

    #[test]
    fn idle_connections_answer_pings_and_what_is_lost_is_reported() {
        let hub = StandIn::start();
        hub.ping_on_subscribe();
        let report = measure(&hub, &format!("--mode idle --conns 5 --secs 0.3 --pid {}", std::process::id()));
        assert_eq!((report.connections.ready, report.connections.pings_answered), (5, 5), "{report}");
        assert!(report.server.as_ref().is_some_and(|s| s.rss_connected_bytes > 0), "{report}");
        hub.close_on_subscribe(4500);
        let report = measure(&hub, "--mode idle --conns 5 --secs 0.3 --max-errors 0");
        assert!(report.errors.iter().any(|e| e.kind == "closed by the hub with 4500" && e.count == 5), "{report}");
        assert!(report.verdict.is_some_and(|v| !v.pass));
    }

    #[test]
    fn a_server_process_that_ends_on_the_way_ends_its_readings_and_not_the_run() {
        let hub = StandIn::start();
        let mut child = std::process::Command::new("sleep").arg("0.4").spawn().unwrap();
        let report = measure(&hub, &format!("--mode idle --conns 2 --secs 0.8 --pid {}", child.id()));
        child.wait().unwrap();
        assert!(report.server.is_none() && report.connections.ready == 2, "{report}");
        assert!(report.errors.iter().any(|e| e.kind.contains("--pid")), "{report}");
    }

    #[test]
    fn churn_completes_its_cycles() {
        let hub = StandIn::start();
        let report = measure(&hub, "--mode churn --rate 60 --secs 0.5 --conns 8 --min-delivered 100");
        assert!(report.traffic.sent >= 25 && report.traffic.missing == 0 && report.errors.is_empty(), "{report}");
    }

    #[test]
    fn subscribers_that_vanish_come_back_to_all_that_was_published() {
        let hub = StandIn::start();
        let line = "--mode reconnect --conns 20 --rooms 2 --reconnect-percent 200 --away 0.05 --rate 100 --secs 0.5 --warmup 0";
        let report = measure(&hub, line);
        let reconnects = report.reconnects.as_ref().unwrap();
        assert!(reconnects.due >= 15 && reconnects.resumed == reconnects.due, "{report}");
        assert!(reconnects.replayed > 0, "{report}");
        assert_eq!((report.traffic.missing, report.sequence), (0, Some(Default::default())), "{report}");
        assert!(report.verdict.as_ref().is_some_and(|v| v.pass), "{report}");
        hub.lose_every(7);
        let report = measure(&hub, &format!("{line} --drain 0.3"));
        assert!(report.sequence.is_some_and(|d| d.missing > 0), "{report}");
        assert!(report.verdict.is_some_and(|v| !v.pass));
    }

    #[test]
    fn a_refused_upgrade_is_reported_with_status_and_code() {
        let hub = StandIn::start();
        let line = format!("--url {} --conns 2 --secs 0.1 --warmup 0 --quiet", hub.url("/refused"));
        let report = bench(&line).unwrap().course().unwrap();
        assert_eq!(report.connections.ready, 0);
        assert_eq!(report.errors[0].kind, "HTTP 429 rate_limited");
    }

    #[test]
    fn nobody_listening_is_a_refused_connection() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let report = bench(&format!("--url ws://127.0.0.1:{port}/ws --conns 2 --secs 0.1 --quiet")).unwrap().course();
        assert_eq!(report.unwrap().errors[0].kind, "connection refused");
    }

    #[test]
    fn source_addresses_are_used_in_turn() {
        let hub = StandIn::start();
        measure(&hub, "--mode idle --conns 6 --sources 3 --secs 0.05");
        let mut peers = hub.peers();
        peers.sort();
        peers.dedup();
        assert_eq!(peers, ["127.0.1.1", "127.0.1.2", "127.0.1.3"]);
    }

    #[test]
    fn full_load_means_ten_thousand_connections_and_its_limits() {
        match bench("--full-load") {
            Ok(full) => {
                assert_eq!((full.plan.connections, full.plan.rooms, full.plan.publishers), (10_000, 10, 10));
                assert_eq!((full.limits.p99_ms_max, full.limits.errors_max), (Some(100.0), Some(0)));
                assert_eq!(full.limits.delivered_percent_min, Some(100.0));
            }
            Err(message) => assert!(message.contains("RLIMIT_NOFILE"), "{message}"),
        }
    }

    #[test]
    fn settings_without_meaning_are_refused() {
        for line in [
            "--mode idle --rate 5",
            "--mode churn --window 3",
            "--sources 4 --url ws://192.0.2.1/ws",
            "--size 3",
            "--rate 0",
        ] {
            assert!(bench(line).is_err(), "{line}");
        }
    }
}

//! `ringhub plan`: its settings, and what they leave to the host.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{fs, thread};

use serde::Serialize;

use super::figures::{Figures, FiguresError, Host, usual_path};
use super::need::{Load, Machine, Need, need};
use super::text;

/// Say what a load needs: cores, memory, bandwidth, descriptors, nodes, and what is used up first.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Clients that are connected
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000_000))]
    connections: u32,
    /// Rooms in use
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000_000))]
    rooms: u32,
    /// Events per second, in all rooms together
    #[arg(long, value_name = "PER_SECOND", value_parser = rate)]
    rate: f64,
    /// Members of each room [default: every client is in one room]
    #[arg(long, value_name = "N", value_parser = members)]
    members: Option<f64>,
    /// Bytes of an event's data
    #[arg(long, value_name = "BYTES", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=16 << 20))]
    size: u32,
    /// Events of a room that are published at once
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    batch: u32,
    /// Events that each room's log keeps (history.events_max)
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    history: u32,
    /// Bytes that each room's log keeps at most (history.bytes_max)
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20)]
    history_bytes: u32,
    /// How many of a hundred clients speak Socket.IO; the others speak the native protocol or read streams
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    socketio: u8,
    /// Seconds of silence before a client is pinged (heartbeat.interval_s)
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3600))]
    heartbeat: u32,
    /// How much of every resource stays free
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=95))]
    headroom: u8,
    /// Cores of one machine [default: this one's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    cores: Option<u16>,
    /// GiB of memory of one machine [default: this one's]
    #[arg(long, value_name = "GIB", value_parser = positive)]
    memory: Option<f64>,
    /// Gbit/s of one machine's network
    #[arg(long, value_name = "GBITS", default_value = "10", value_parser = positive)]
    link: f64,
    /// Descriptors that the hub may have open on one machine [default: this one's fs.nr_open]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1024..))]
    descriptors: Option<u32>,
    /// What `ringhub bench --calibrate` has saved [default: its usual place; else figures of another machine]
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What was planned from what.
#[derive(Debug, Serialize)]
pub(super) struct Planned {
    pub(super) load: Load,
    pub(super) machine: Machine,
    /// The file with the figures; none for those of another machine that the program carries.
    pub(super) calibration: Option<PathBuf>,
    pub(super) host: Host,
    /// The calibration is of this program, kernel and processor count: what is not is named.
    pub(super) remarks: Vec<String>,
    pub(super) need: Need,
    pub(super) options: Vec<Suggestion>,
}

/// An option to set.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Suggestion {
    pub(super) option: String,
    pub(super) why: String,
}

/// Prints the plan. Exit code 1: no number of machines bears the load; 2: wrong use.
pub fn run(args: &Args) -> ExitCode {
    let planned = match plan(args) {
        Ok(planned) => planned,
        Err(message) => {
            eprintln!("error: {message}");
            return ExitCode::from(2);
        }
    };
    let text = match args.json {
        true => serde_json::to_string(&planned).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}")) + "\n",
        false => text::planned(&planned),
    };
    if let Err(error) = std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes()) {
        eprintln!("error: the plan could not be printed: {error}");
        return ExitCode::FAILURE;
    }
    if planned.need.fits { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn plan(args: &Args) -> Result<Planned, String> {
    let (figures, calibration) = figures(args.calibration.as_deref()).map_err(|error| error.to_string())?;
    let load = load(args)?;
    let machine = machine(args)?;
    let need = need(&load, &figures, &machine);
    let mut remarks = Vec::new();
    if calibration.is_none() {
        let cpu = &figures.host.cpu;
        remarks
            .push(format!("the figures are of another machine ({cpu}): `ringhub bench --calibrate` measures this one"));
    } else {
        remarks.extend(differences(&figures.host));
    }
    if need.home_part > 1.0 - load.headroom {
        let percent = need.home_part * 100.0;
        remarks.push(format!(
            "a room's events are numbered at one shard, of which each room takes {percent:.0} %: spread them over more rooms"
        ));
    }
    let options = suggestions(&load, &machine, &need);
    Ok(Planned { load, machine, calibration, host: figures.host, remarks, need, options })
}

/// The figures of the file that is named, of the usual one where there is one, or the program's own.
fn figures(named: Option<&Path>) -> Result<(Figures, Option<PathBuf>), FiguresError> {
    let usual = || usual_path().filter(|path| path.exists());
    match named.map(Path::to_path_buf).or_else(usual) {
        Some(path) => Ok((Figures::read(&path)?, Some(path))),
        None => Ok((Figures::built_in(), None)),
    }
}

fn load(args: &Args) -> Result<Load, String> {
    let (connections, rooms) = (f64::from(args.connections), f64::from(args.rooms));
    let members = args.members.unwrap_or(connections / rooms);
    if members > connections {
        return Err(format!("--members {members}: a room can't have more members than there are connections"));
    }
    Ok(Load {
        connections,
        rooms,
        members,
        rate: args.rate,
        size: args.size,
        batch: args.batch,
        history: f64::from(args.history),
        history_bytes: f64::from(args.history_bytes),
        socketio: f64::from(args.socketio) / 100.0,
        heartbeat_s: f64::from(args.heartbeat),
        headroom: f64::from(args.headroom) / 100.0,
    })
}

fn machine(args: &Args) -> Result<Machine, String> {
    let cores = match args.cores {
        Some(cores) => usize::from(cores),
        None => thread::available_parallelism()
            .map_err(|error| format!("this machine's cores: {error}. Give --cores"))?
            .get(),
    };
    let memory_bytes = match args.memory {
        Some(gib) => gib * f64::from(1 << 30),
        None => memory_bytes().ok_or("this machine doesn't tell its memory. Give --memory")?,
    };
    let descriptors = match args.descriptors {
        Some(descriptors) => f64::from(descriptors),
        // A limit of this shell is no limit of the machine.
        None => number("/proc/sys/fs/nr_open").ok_or("this machine doesn't tell fs.nr_open. Give --descriptors")?,
    };
    Ok(Machine { cores: cores as f64, memory_bytes, link_bits_per_s: args.link * 1e9, descriptors })
}

/// A file of the kernel that holds one number.
fn number(path: &str) -> Option<f64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// This machine's memory, or what its control group may have of it.
fn memory_bytes() -> Option<f64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let total = line.split_ascii_whitespace().next()?.parse::<f64>().ok()? * 1024.0;
    Some(number("/sys/fs/cgroup/memory.max").map_or(total, |granted| granted.min(total)))
}

/// In what this host is not the one that was measured.
fn differences(host: &Host) -> Vec<String> {
    let mut all = Vec::new();
    let version = env!("CARGO_PKG_VERSION");
    if host.ringhub != version {
        all.push(format!("the calibration is of Ringhub {}, this is {version}", host.ringhub));
    }
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    if host.kernel != kernel {
        all.push(format!("the calibration is of Linux {}, this is {kernel}", host.kernel));
    }
    if host.shared_core {
        all.push(
            "the calibration was made on one core, which hub and load shared: its figures are too high".to_owned(),
        );
    }
    all
}

fn suggestions(load: &Load, machine: &Machine, need: &Need) -> Vec<Suggestion> {
    let mut all = Vec::new();
    let mut suggest = |option: String, why: &str| all.push(Suggestion { option, why: why.to_owned() });
    let nodes = f64::from(need.nodes);
    let shards = f64::from(need.shards_per_node);
    suggest(
        format!("shards.count = {}", need.shards_per_node),
        "the cores that deliveries, publishes and heartbeats need",
    );
    // A hub may be given all of a node's connections while another one restarts; the default is for a mixed use.
    let per_shard = (load.connections / nodes / shards / (1.0 - load.headroom)).ceil();
    if per_shard > 15_000.0 {
        suggest(
            format!("limits.connections_per_shard_max = {per_shard}"),
            "more than the default of 15 000, with headroom",
        );
    }
    let logs = need.resources.iter().flat_map(|resource| &resource.terms).find(|term| term.what == "logs");
    let logs_per_shard = logs.map_or(0.0, |logs| logs.value) / shards;
    if logs_per_shard > f64::from(256 << 20) {
        let mib = (logs_per_shard / f64::from(1 << 20)).ceil();
        suggest(
            format!("history.shard_bytes_max = \"{mib}MiB\""),
            "the logs are larger than the default of 256 MiB per shard",
        );
    }
    if load.rooms / shards > 1_000_000.0 {
        suggest(
            format!("limits.rooms_per_shard_max = {}", (load.rooms / shards).ceil()),
            "more than the default of 1 000 000",
        );
    }
    let descriptors =
        need.resources.iter().find(|resource| resource.name == "descriptors").map_or(0.0, |one| one.needed);
    suggest(format!("LimitNOFILE={}", (descriptors.ceil() as u64).next_power_of_two()), "in the systemd unit");
    if need.nodes > 1 {
        suggest("broker.kind = \"redis\"".to_owned(), "rooms that several nodes share");
    }
    let (profile, why) = profile(load, machine, need);
    suggest(format!("--profile {profile}"), why);
    all
}

/// Which profile a load is for.
fn profile(load: &Load, machine: &Machine, need: &Need) -> (&'static str, &'static str) {
    let nodes = f64::from(need.nodes);
    let per_connection = need.deliveries_per_s / load.connections;
    let cpu = need.resources.first().map_or(0.0, |cpu| cpu.used) / machine.cores;
    if load.connections / nodes > 20_000.0 && per_connection < 1.0 {
        ("density", "many connections, each of which hears less than one event per second")
    } else if need.deliveries_per_s / nodes > 200_000.0 {
        ("throughput", "more than 200 000 deliveries per second and node")
    } else if cpu < 0.1 && load.members <= 100.0 && machine.cores >= 4.0 {
        ("latency", "small rooms on a machine that is mostly idle")
    } else {
        ("default", "a mixed use")
    }
}

fn rate(text: &str) -> Result<f64, String> {
    text.parse::<f64>().ok().filter(|rate| (0.0..=1e9).contains(rate)).ok_or("a number from 0 to 1000000000".into())
}

fn members(text: &str) -> Result<f64, String> {
    text.parse::<f64>()
        .ok()
        .filter(|members| (0.0..=1e9).contains(members))
        .ok_or("a number from 0 to 1000000000".into())
}

fn positive(text: &str) -> Result<f64, String> {
    text.parse::<f64>()
        .ok()
        .filter(|number| (0.001..=1e6).contains(number))
        .ok_or("a number from 0.001 to 1000000".into())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        args: Args,
    }

    const MACHINE: &str = "--cores 8 --memory 32 --descriptors 1048576";

    /// With figures that no file of this machine changes.
    fn planned(line: &str) -> Result<Planned, String> {
        let path = std::env::temp_dir().join(format!("ringhub-plan-{}-{}.json", std::process::id(), fastrand::u64(..)));
        Figures::built_in().write(&path).expect("written");
        let file = path.display().to_string();
        let line = format!("plan {line} {MACHINE} --calibration {file}");
        let args = Program::try_parse_from(line.split_ascii_whitespace()).map_err(|error| error.to_string())?.args;
        let planned = plan(&args);
        fs::remove_file(path).expect("removed");
        planned
    }

    fn options(planned: &Planned) -> String {
        planned.options.iter().map(|suggestion| format!("{}\n", suggestion.option)).collect()
    }

    #[test]
    fn every_client_is_in_one_room_unless_members_say_otherwise() {
        let one = planned("--connections 1000 --rooms 10 --rate 5").expect("a plan");
        assert_eq!(one.load.members, 100.0);
        let many = planned("--connections 1000 --rooms 10 --rate 5 --members 500").expect("a plan");
        assert_eq!(many.load.members, 500.0);
        assert_eq!(many.need.deliveries_per_s, 2500.0);
    }

    #[test]
    fn wrong_use_is_told_with_the_option() {
        let error = planned("--connections 10 --rooms 1 --rate 5 --members 11").expect_err("too many");
        assert!(error.contains("--members 11"), "{error}");
        let error = planned("--connections 0 --rooms 1 --rate 5").expect_err("none");
        assert!(error.contains("--connections"), "{error}");
        let error = planned("--connections 10 --rooms 1 --rate fast").expect_err("no number");
        assert!(error.contains("--rate"), "{error}");
    }

    #[test]
    fn a_calibration_that_is_not_there_is_an_error_and_none_is_the_programs_own_figures() {
        assert!(figures(Some(Path::new("/no/such/calibration.json"))).is_err());
        let line = format!("plan --connections 10 --rooms 1 --rate 1 {MACHINE} --calibration /no/such.json");
        let args = Program::try_parse_from(line.split_ascii_whitespace()).expect("a line").args;
        assert!(plan(&args).expect_err("no file").contains("/no/such.json"));
    }

    #[test]
    fn options_are_suggested_where_the_defaults_do_not_do() {
        let small = planned("--connections 1000 --rooms 100 --rate 10").expect("a plan");
        assert_eq!(options(&small), "shards.count = 1\nLimitNOFILE=2048\n--profile latency\n");
        let large = planned("--connections 100000 --rooms 20000 --rate 100").expect("a plan");
        let text = options(&large);
        assert!(text.contains("limits.connections_per_shard_max = 200000"), "{text}");
        assert!(text.contains("history.shard_bytes_max"), "{text}");
        assert!(text.ends_with("--profile density\n"), "{text}");
    }

    #[test]
    fn the_profile_follows_the_load() {
        let of = |line: &str| options(&planned(line).expect("a plan")).lines().last().unwrap_or_default().to_owned();
        assert_eq!(of("--connections 10000 --rooms 1 --rate 100 --batch 16"), "--profile throughput");
        assert_eq!(of("--connections 10000 --rooms 10 --rate 50"), "--profile default");
    }

    #[test]
    fn a_room_that_takes_more_than_its_home_can_give_is_named() {
        let planned = planned("--connections 100 --rooms 1 --rate 80000 --members 1").expect("a plan");
        assert!(planned.remarks.iter().any(|remark| remark.contains("more rooms")), "{:?}", planned.remarks);
    }
}

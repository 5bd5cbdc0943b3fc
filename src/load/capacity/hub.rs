//! A hub to measure: this program again, in a process of its own, with one shard on a processor of its own.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{io, thread};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::super::process::Process;

const START_PATIENCE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(5);
/// A hub whose memory has not changed in such a time, and which has hardly worked, has started.
const REST: Duration = Duration::from_millis(300);

/// What limits what one address may do is off: the load comes from one.
const UNLIMITED: [&str; 4] = [
    "limits.messages_per_s=0",
    "limits.connects_per_s=0",
    "limits.connections_per_address_max=0",
    "limits.connections_per_user_max=0",
];

/// Processors of the hub and of the load.
pub(super) struct Cores {
    all: CpuSet,
    hub: CpuSet,
    load: CpuSet,
    pub(super) count: usize,
}

impl Cores {
    /// The last processor that this process may use is the hub's, since the first one is where the kernel likes to handle
    /// interrupts; all others are the load's. Where there is only one, they share it.
    pub(super) fn divide() -> io::Result<Cores> {
        let all = sched_getaffinity(None)?;
        let numbers: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu)).collect();
        let (mut hub, mut load) = (CpuSet::new(), CpuSet::new());
        if let Some((last, rest)) = numbers.split_last() {
            hub.set(*last);
            rest.iter().for_each(|cpu| load.set(*cpu));
        }
        if numbers.len() < 2 {
            load = all;
        }
        Ok(Cores { all, hub, load, count: numbers.len() })
    }

    pub(super) fn are_shared(&self) -> bool {
        self.count < 2
    }

    /// From now on this thread, and what it starts, is on the load's processors.
    pub(super) fn take_load(&self) -> io::Result<()> {
        Ok(sched_setaffinity(None, &self.load)?)
    }

    /// As it was before.
    pub(super) fn give_back(&self) -> io::Result<()> {
        Ok(sched_setaffinity(None, &self.all)?)
    }
}

/// A hub that runs; it ends with this.
pub(super) struct Hub {
    child: Child,
    address: SocketAddr,
}

impl Hub {
    /// Starts it with these options and waits until it listens.
    pub(super) fn start(program: &Path, cores: &Cores, options: &[String]) -> io::Result<Hub> {
        // Whoever takes the port before the hub does makes the start fail, which is told.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let mut command = Command::new(program);
        // The operator's own options are of another hub.
        command.env_clear().args(["serve", "--quiet", "--shards", "1", "--listen", &address.to_string()]);
        for option in UNLIMITED.iter().copied().chain(options.iter().map(String::as_str)) {
            command.args(["--set", option]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // A process begins on the processors of the thread that starts it.
        sched_setaffinity(None, &cores.hub)?;
        let child = command.spawn();
        cores.take_load()?;
        let mut hub = Hub { child: child?, address };
        hub.await_listening()?;
        hub.await_rest()?;
        Ok(hub)
    }

    fn await_listening(&mut self) -> io::Result<()> {
        let until = Instant::now() + START_PATIENCE;
        while TcpStream::connect(self.address).is_err() {
            if let Some(status) = self.child.try_wait()? {
                return Err(io::Error::other(format!("the hub to measure did not start: {status}")));
            }
            if Instant::now() > until {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the hub to measure did not start in time"));
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// It listens before all of it is there; what it costs then is no connection's.
    fn await_rest(&self) -> io::Result<()> {
        let process = Process::new(self.child.id())?;
        let until = Instant::now() + START_PATIENCE;
        let mut before = process.usage()?;
        loop {
            thread::sleep(REST);
            let now = process.usage()?;
            let worked_ns = now.cpu_ns.saturating_sub(before.cpu_ns);
            if now.rss_bytes == before.rss_bytes && Duration::from_nanos(worked_ns) < REST / 20 {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the hub to measure did not come to rest"));
            }
            before = now;
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn url(&self) -> String {
        format!("ws://{}/ws", self.address)
    }
}

impl Drop for Hub {
    /// Nothing of it is worth keeping, so it needs no time to end well.
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("warning: the hub that was measured (process {}) did not end: {error}", self.child.id());
        }
    }
}

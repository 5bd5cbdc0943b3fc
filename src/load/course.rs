//! The course of a run: connect, warm up, measure, wait for what is under way, report.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{io, thread};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::churn::Churner;
use super::failure::Failure;
use super::plan::{Mode, Pace, Plan};
use super::process::{Process, Usage};
use super::report::{Connections, ErrorCount, Limits, Probe, Reconnected, Report, Server, Settings, Traffic};
use super::run::{Run, Window};
use super::tally::Tally;
use super::worker::Worker;

/// How often the course of a run is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// From the decision to begin to the first event, so that every thread knows in time.
const LEAD_NS: u64 = 30_000_000;
/// After the last connection is set up: the hub's memory comes to rest before it is read.
const SETTLE: Duration = Duration::from_millis(300);

/// A run that is ready to start.
pub(crate) struct Bench {
    pub(crate) plan: Plan,
    /// Echo connections beside it.
    pub(crate) probe: Option<Plan>,
    /// How long deliveries are waited for after the last event.
    pub(crate) drain: Duration,
    /// The hub's process.
    pub(crate) process: Option<Process>,
    pub(crate) limits: Limits,
    /// Whether a progress bar is shown.
    pub(crate) progress: bool,
}

impl Bench {
    /// Runs it from the first connect to the judged report.
    pub(crate) fn course(self) -> io::Result<Report> {
        let interrupted = interrupt_flag()?;
        let settings = Settings::of(&self.plan);
        let mut gauge = Gauge::new(self.process);
        gauge.read();
        let origin = Instant::now();
        let load = Load::start(self.plan, origin)?;
        let probe = self.probe.map(|plan| Load::start(plan, origin)).transpose()?;
        let bar = progress_bar(self.progress);

        load.settle(&bar, &interrupted);
        if let Some(probe) = &probe {
            probe.settle(&ProgressBar::hidden(), &interrupted);
        }
        let setup_s = origin.elapsed().as_secs_f64();
        if load.run.plan.mode != Mode::Churn && !interrupted.load(Relaxed) {
            thread::sleep(SETTLE);
        }
        gauge.read();
        let measured = measure(&load, probe.as_ref(), &mut gauge, &bar, &interrupted);
        drain(&load, probe.as_ref(), self.drain, &bar, &interrupted);
        bar.finish_and_clear();

        let run = Arc::clone(&load.run);
        let check_seq = run.plan.check_seq && run.plan.publishes() && run.delivered.load(Relaxed) > 0;
        let probe_tally = probe.map(Load::end_with_rate).transpose()?;
        let mut tally = load.end()?;
        // What goes wrong on the probe's connections is an error of the run as well.
        if let Some((_, probe)) = &probe_tally {
            tally.failures.add(probe.failures.clone());
        }
        gauge.failure.take().into_iter().for_each(|failure| tally.failures.count(failure));
        let mut report = Report {
            version: env!("CARGO_PKG_VERSION"),
            url: run.plan.target.to_string(),
            settings,
            interrupted: interrupted.load(Relaxed),
            connections: Connections::of(&tally, setup_s),
            traffic: Traffic::of(&tally, measured.seconds),
            sequence: check_seq.then_some(tally.disorder),
            reconnects: (run.plan.mode == Mode::Reconnect).then(|| Reconnected::of(&tally)),
            latency_us: tally.latency.percentiles(),
            generator_lag_us: tally.lag.percentiles(),
            probe: probe_tally.map(|(rate, tally)| Probe::of(&tally, rate)),
            server: gauge.server(tally.ready, &measured),
            errors: ErrorCount::of(&tally),
            verdict: None,
        };
        report.judge(self.limits);
        Ok(report)
    }
}

/// What the measured time was like from outside the threads.
struct Measured {
    seconds: f64,
    /// Deliveries in that time, whenever they were due.
    deliveries: u64,
}

/// Lets the load begin and waits until its measured time is over.
fn measure(
    load: &Load,
    probe: Option<&Load>,
    gauge: &mut Gauge,
    bar: &ProgressBar,
    interrupted: &AtomicBool,
) -> Measured {
    let run = &load.run;
    let start_ns = run.now_ns() + LEAD_NS;
    let count_ns = start_ns + run.plan.warmup_ns;
    let window = Window { start_ns, count_ns, end_ns: count_ns + run.plan.measured_ns };
    // Without a single connection there is nothing to wait for.
    if run.plan.mode != Mode::Churn && run.open.load(Relaxed) == 0 {
        return Measured { seconds: 0.0, deliveries: 0 };
    }
    run.begin(window);
    if let Some(probe) = probe {
        probe.run.begin(window);
    }
    wait_until(run, window.count_ns, interrupted, || load.show(bar, "warming up"));
    gauge.read();
    let before = run.delivered.load(Relaxed);
    wait_until(run, window.end_ns, interrupted, || load.show(bar, "measuring"));
    let seconds = run.now_ns().min(window.end_ns).saturating_sub(window.count_ns) as f64 / 1e9;
    let deliveries = run.delivered.load(Relaxed).saturating_sub(before);
    gauge.read();
    Measured { seconds, deliveries }
}

/// Waits for what is under way, but not longer than `at_most`.
fn drain(load: &Load, probe: Option<&Load>, at_most: Duration, bar: &ProgressBar, interrupted: &AtomicBool) {
    let until = Instant::now() + at_most;
    let under_way = |load: &Load| {
        load.run.away.load(Relaxed) > 0
            || load.run.counted_delivered.load(Relaxed) < load.run.counted_expected.load(Relaxed)
            // What a lost connection should have got never comes.
            && (load.run.plan.mode == Mode::Churn || load.run.open.load(Relaxed) > 0)
    };
    while (under_way(load) || probe.is_some_and(under_way)) && Instant::now() < until && !interrupted.load(Relaxed) {
        load.show(bar, "draining");
        thread::sleep(LOOK);
    }
}

/// Readings of the hub's process: before the connects, when all are set up, at the begin and the end of the measured
/// time. A process that ends on the way ends the readings, not the run.
struct Gauge {
    process: Option<Process>,
    readings: Vec<Usage>,
    failure: Option<Failure>,
}

impl Gauge {
    fn new(process: Option<Process>) -> Gauge {
        Gauge { process, readings: Vec::new(), failure: None }
    }

    fn read(&mut self) {
        match self.process.as_ref().filter(|_| self.failure.is_none()).map(Process::usage) {
            Some(Ok(usage)) => self.readings.push(usage),
            Some(Err(error)) => self.failure = Some(Failure::Process(error.to_string())),
            None => {}
        }
    }

    fn server(&self, ready: u64, measured: &Measured) -> Option<Server> {
        let readings = <[Usage; 4]>::try_from(self.readings.as_slice()).ok()?;
        let pid = self.process.as_ref()?.pid();
        Some(Server::of(pid, readings, ready, measured.deliveries, measured.seconds))
    }
}

/// A run and its threads.
struct Load {
    run: Arc<Run>,
    threads: Vec<JoinHandle<io::Result<Tally>>>,
}

impl Load {
    fn start(plan: Plan, origin: Instant) -> io::Result<Load> {
        let run = Arc::new(Run::new(plan, origin));
        let mut wakers = Vec::new();
        let mut works: Vec<Box<dyn FnOnce() -> io::Result<Tally> + Send>> = Vec::new();
        for number in 0..run.plan.threads {
            if run.plan.mode == Mode::Churn {
                let churner = Churner::new(Arc::clone(&run), number)?;
                wakers.push(churner.waker());
                works.push(Box::new(move || churner.work()));
            } else {
                let worker = Worker::new(Arc::clone(&run), number)?;
                wakers.push(worker.waker());
                works.push(Box::new(move || worker.work()));
            }
        }
        run.set_wakers(wakers);
        let threads = works
            .into_iter()
            .enumerate()
            .map(|(number, work)| thread::Builder::new().name(format!("load-{number}")).spawn(work))
            .collect::<io::Result<Vec<_>>>()?;
        Ok(Load { run, threads })
    }

    /// Waits until every connection is set up or has failed. No longer than that can take by the plan.
    fn settle(&self, bar: &ProgressBar, interrupted: &AtomicBool) {
        let plan = &self.run.plan;
        if plan.mode == Mode::Churn {
            return;
        }
        let total = plan.connections_all();
        bar.set_length(total as u64);
        let until = Instant::now()
            + Duration::from_secs_f64(total as f64 / plan.connect_rate * 2.0)
            + Duration::from_nanos(plan.setup_timeout_ns).saturating_mul(2);
        while self.run.settled.load(Relaxed) < total
            && Instant::now() < until
            && !interrupted.load(Relaxed)
            && !self.threads.iter().any(JoinHandle::is_finished)
        {
            bar.set_position(self.run.settled.load(Relaxed) as u64);
            bar.set_message(format!("connecting, {} errors", self.run.failures.load(Relaxed)));
            thread::sleep(LOOK);
        }
    }

    fn show(&self, bar: &ProgressBar, what: &str) {
        let run = &self.run;
        let Some(window) = run.window() else { return };
        bar.set_length((window.end_ns - window.start_ns) / 1_000_000);
        bar.set_position(run.now_ns().min(window.end_ns).saturating_sub(window.start_ns) / 1_000_000);
        bar.set_message(format!(
            "{what}: {} open, {} sent, {} delivered, {} errors",
            run.open.load(Relaxed),
            run.sent.load(Relaxed),
            run.delivered.load(Relaxed),
            run.failures.load(Relaxed)
        ));
    }

    /// Ends the threads and adds up what they counted; with the rate of an open loop.
    fn end_with_rate(self) -> io::Result<(f64, Tally)> {
        let rate = if let Pace::Rate(rate) = self.run.plan.pace { rate } else { 0.0 };
        Ok((rate, self.end()?))
    }

    /// Ends the threads and adds up what they counted.
    fn end(self) -> io::Result<Tally> {
        self.run.stop();
        let mut tally = Tally::default();
        for thread in self.threads {
            match thread.join() {
                Ok(part) => tally.add(part?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(tally)
    }
}

fn wait_until(run: &Run, end_ns: u64, interrupted: &AtomicBool, mut look: impl FnMut()) {
    loop {
        let left = Duration::from_nanos(end_ns.saturating_sub(run.now_ns()));
        if left.is_zero() || interrupted.load(Relaxed) {
            return;
        }
        look();
        thread::sleep(left.min(LOOK));
    }
}

/// Set by the first Ctrl-C, which ends the run with a report; the second one ends the program.
fn interrupt_flag() -> io::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register_conditional_shutdown(signal_hook::consts::SIGINT, 130, Arc::clone(&flag))?;
    signal_hook::flag::register(signal_hook::consts::SIGINT, Arc::clone(&flag))?;
    Ok(flag)
}

/// A bar on the error stream; hidden by itself where that is no terminal.
fn progress_bar(shown: bool) -> ProgressBar {
    if !shown {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr_with_hz(10));
    match ProgressStyle::with_template("{bar:30} {percent:>3} % {elapsed} {msg}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

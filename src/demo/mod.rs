//! A simulated fleet, for whoever wants to see a hub at work (`ringhub serve --demo`): agents, projects, workflows, quotes
//! with two editors, and one client that reads too slowly.
//!
//! ```text
//! world  ── what a backend publishes, through the hub's own handle ──► rooms
//! actors ── agents, editors, pricing, wallboards: clients over real WebSockets ◄──► rooms
//! ```
//!
//! All of it is one thread that looks every 50 ms, and a dozen connections. The numbers that it draws begin with the same
//! seed each time. It publishes events of every type that the protocol knows (section 6), each about once a minute at least,
//! and nothing else; its rooms and clients are told from others by no rule but their names.

mod agent;
mod editor;
mod member;
mod pricing;
mod wallboard;
mod world;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;

use crate::node::{Hub, Pending, Published, Target};
use agent::{AGENTS, Agent};
use editor::Editor;
use member::{Actor, Gate, Member};
use pricing::Pricing;
use wallboard::Wallboard;
use world::{To, World};

/// How often it looks what is due, and what has come.
const TICK: Duration = Duration::from_millis(50);
/// What the story begins with.
const SEED: u64 = 42;
/// Answers to publishes that are waited for; more wait where the hub does not keep up, and then less is published.
const UNANSWERED_MAX: usize = 256;

/// The running fleet. It ends when this is dropped.
#[derive(Debug)]
pub struct Demo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Why there is no fleet.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its clients have nowhere to connect to.
    #[error("the demo's clients need a TCP address in listen.public")]
    NoAddress,
    /// The thread can't be started.
    #[error("the demo's thread can't be started: {0}")]
    Thread(#[from] std::io::Error),
}

impl Demo {
    /// Starts the fleet beside a hub.
    pub fn start(hub: &Hub) -> Result<Demo, StartError> {
        let address = hub.addresses().first().copied().ok_or(StartError::NoAddress)?;
        let gate = Gate::new(reachable(address), &hub.config());
        let stop = Arc::new(AtomicBool::new(false));
        let (hub, ends) = (hub.clone(), Arc::clone(&stop));
        let thread = std::thread::Builder::new().name("demo".to_owned()).spawn(move || run(&hub, &gate, &ends))?;
        Ok(Demo { stop, thread: Some(thread) })
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the demo's thread panicked");
        }
    }
}

/// Where a listener of this process is reached from this machine.
pub(crate) fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

fn run(hub: &Hub, gate: &Gate, stop: &AtomicBool) {
    let began = Instant::now();
    let mut world = World::new(fastrand::Rng::with_seed(SEED));
    let mut members: Vec<Member> = fleet().into_iter().map(Member::new).collect();
    let mut backend = Backend { hub, unanswered: Vec::new() };
    // A hub that drains is not kept waiting by somebody who reads slowly on purpose.
    while !stop.load(Ordering::Relaxed) && !hub.is_draining() {
        let now_ms = began.elapsed().as_millis() as u64;
        for event in world.step(now_ms) {
            backend.publish(&event);
        }
        backend.collect();
        for member in &mut members {
            member.step(gate, now_ms);
        }
        std::thread::sleep(TICK);
    }
}

/// Everybody who holds a connection.
fn fleet() -> Vec<Box<dyn Actor>> {
    let mut actors: Vec<Box<dyn Actor>> = Vec::new();
    for (index, one) in AGENTS.iter().enumerate() {
        actors.push(Box::new(Agent::new(one, index as u64)));
    }
    actors.push(Box::new(Editor::new("anna", 1)));
    actors.push(Box::new(Editor::new("ben", 2)));
    actors.push(Box::new(Pricing::default()));
    actors.push(Box::new(Wallboard::attentive()));
    actors.push(Box::new(Wallboard::slow()));
    actors
}

/// What publishes as a backend does that embeds the hub.
struct Backend<'h> {
    hub: &'h Hub,
    unanswered: Vec<Unanswered>,
}

enum Unanswered {
    Published(Pending<Published>),
    Sent(Pending<crate::node::Sent>),
}

impl Backend<'_> {
    fn publish(&mut self, event: &world::Event) {
        if self.unanswered.len() >= UNANSWERED_MAX {
            return;
        }
        self.unanswered.push(match &event.to {
            To::Room(room) => Unanswered::Published(self.hub.publish(room, event.kind, &event.data)),
            To::Everyone => Unanswered::Published(self.hub.broadcast(event.kind, &event.data)),
            To::User(user) => Unanswered::Sent(self.hub.send(&Target::User((*user).into()), event.kind, &event.data)),
        });
    }

    /// Looks which answers have come.
    fn collect(&mut self) {
        self.unanswered.retain_mut(|one| {
            let answer = match one {
                Unanswered::Published(pending) => pending.now_or_never().map(|answer| answer.map(drop)),
                Unanswered::Sent(pending) => pending.now_or_never().map(|answer| answer.map(drop)),
            };
            if let Some(Err(error)) = &answer {
                tracing::debug!(%error, "an event of the demo was refused");
            }
            answer.is_none()
        });
    }
}

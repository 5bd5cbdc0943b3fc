//! The nodes of a cluster, as they know each other: who lives, calls from node to node, ids that only one may have, and who
//! was present in rooms, for the case that a node dies.
//!
//! ```text
//!  shards, control plane ──Handle──► thread `nodes` ──► Redis: registry with leases, hashes
//!            ▲                          │    ▲
//!            └────── answers, events ───┘    └──────── other nodes: calls over pub/sub
//! ```
//!
//! It has a thread, a runtime and connections of its own, so that long answers delay no events. Nobody waits for it: what it
//! is given goes through queues, and what it answers comes by [`Pending`] or by a function that is called. Of several single
//! servers, the first one of the list has the registry.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};

mod calls;
mod figures;
mod keys;
mod members;
mod registered;
mod worker;

pub use calls::{Answer, FRAME_BYTES_MAX, Failure};
pub use figures::NodesFigures;
pub use members::{Event, NodeInfo};

use super::redis::connection::{CaFileError, Target};
use crate::config::Config;
use crate::hub::presence::Presenting;
use crate::hub::reply::{HubError, Pending, Responder, pending};
use crate::hub::shared_locks::NotedLock;
use crate::wire::codes::ErrorCode;
use crate::wire::native::Refused;

/// Calls that wait to be sent.
const CALLS_MAX: usize = 1024;

/// A call that another node makes.
#[derive(Debug)]
pub struct Asked {
    /// The node's run.
    pub from: u64,
    /// What it wants, as JSON.
    pub data: Bytes,
    /// How long it waits.
    pub timeout: Duration,
}

/// The answer to a call, as JSON.
pub type Answering = Pin<Box<dyn Future<Output = Result<Vec<u8>, HubError>> + Send>>;

/// Tells members of a room who has come (true) or gone.
pub type TellPresence = Arc<dyn Fn(&str, Bytes, bool) -> Pending<()> + Send + Sync>;

/// Frees a lock in a room that a dead node held.
pub type FreeLock = Arc<dyn Fn(&str, NotedLock) -> Pending<()> + Send + Sync>;

/// What a node does for others, and about them.
pub struct Service {
    /// Answers a call. The future is dropped where the caller does not wait any longer.
    pub answer: Box<dyn Fn(Asked) -> Answering + Send>,
    /// Is told what changed, on the nodes' thread: it must not wait.
    pub event: Box<dyn Fn(Event) + Send>,
    /// Tells the members of a room who has come (true) or gone: the room, and what they are told.
    pub presence: TellPresence,
    /// Frees a lock in a room that a dead node held: the room, and what that node had noted of it.
    pub lock: FreeLock,
    /// A client's id that this node had is another one's: it was claimed while this one was taken for dead.
    pub taken: Box<dyn Fn(&str) + Send>,
    /// A node's answer that came when nobody waited for it any more.
    pub late: Box<dyn Fn(NodeInfo, Bytes) + Send>,
}

/// Who waits for the answer to a claim.
type Tell = Box<dyn FnOnce(Result<(), ClaimFailure>) + Send>;

/// Why an id can't be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimFailure {
    /// Another node that lives has it.
    Taken,
    /// The registry can't be reached.
    Unreachable,
}

/// What can be asked of the nodes' thread. Clones are handles to the same one.
#[derive(Clone)]
pub struct Handle(Arc<Shared>);

/// The thread's end of the queues, until it starts.
pub struct Intake {
    shared: Arc<Shared>,
    calls: mpsc::Receiver<Call>,
    tasks: mpsc::UnboundedReceiver<Task>,
}

/// The running thread. Dropping it takes this node out of the registry, and ends it.
#[derive(Debug)]
pub struct Nodes {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    me: RwLock<NodeInfo>,
    others: RwLock<Arc<[NodeInfo]>>,
    calls: mpsc::Sender<Call>,
    /// What of it may wait is bounded by the connections and rooms that it is about: the thread takes it at once and keeps
    /// the last state of each.
    tasks: mpsc::UnboundedSender<Task>,
    figures: NodesFigures,
    stop: AtomicBool,
    stopped: Notify,
}

/// A call to other nodes.
struct Call {
    to: Vec<NodeInfo>,
    data: Bytes,
    timeout: Duration,
    responder: Responder<Vec<Answer>>,
}

/// What is registered, or not any more.
enum Task {
    Claim { id: Box<str>, tell: Tell },
    Release { id: Box<str> },
    Present { room: Box<str>, session: Box<str>, told: Bytes, presenting: Presenting },
    Cleaned { run: u64 },
    Sweep,
}

impl fmt::Debug for Handle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Handle")
    }
}

/// The two ends. Nothing is done before [`Intake::start`].
pub fn link(me: NodeInfo) -> (Handle, Intake) {
    let (calls_in, calls) = mpsc::channel(CALLS_MAX);
    let (tasks_in, tasks) = mpsc::unbounded_channel();
    let shared = Arc::new(Shared {
        me: RwLock::new(me),
        others: RwLock::new(Arc::from([])),
        calls: calls_in,
        tasks: tasks_in,
        figures: NodesFigures::default(),
        stop: AtomicBool::new(false),
        stopped: Notify::new(),
    });
    (Handle(shared.clone()), Intake { shared, calls, tasks })
}

impl Handle {
    /// This node.
    pub fn me(&self) -> NodeInfo {
        self.0.me.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says where this node's clients and operators connect, once that is known.
    pub fn set_addresses(&self, public: Option<String>, internal: Option<String>) {
        let mut me = self.0.me.write().unwrap_or_else(PoisonError::into_inner);
        (me.public, me.internal) = (public, internal);
    }

    /// The other nodes that live, as far as is known.
    pub fn others(&self) -> Arc<[NodeInfo]> {
        self.0.others.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is counted.
    pub fn figures(&self) -> &NodesFigures {
        &self.0.figures
    }

    /// All nodes that live, this one first.
    pub fn alive(&self) -> Vec<NodeInfo> {
        std::iter::once(self.me()).chain(self.others().iter().cloned()).collect()
    }

    /// Whether a run of a node lives, as far as is known.
    pub fn is_alive(&self, run: u64) -> bool {
        self.me().run == run || self.others().iter().any(|other| other.run == run)
    }

    /// Asks nodes something, which is JSON, and gives what they answered, by their names; whoever does not in time is missing.
    pub fn call(&self, to: Vec<NodeInfo>, data: impl Into<Bytes>, timeout: Duration) -> Pending<Vec<Answer>> {
        let (responder, pending) = pending();
        // Whoever waits for a call that found the queue full learns it from the responder that is dropped.
        drop(self.0.calls.try_send(Call { to, data: data.into(), timeout, responder }));
        pending
    }

    /// The same, of all other nodes; a function is told what they answered, on the nodes' thread, where it must not wait.
    pub fn call_others_then(
        &self,
        data: impl Into<Bytes>,
        timeout: Duration,
        then: impl FnOnce(Result<Vec<Answer>, HubError>) + Send + 'static,
    ) {
        let (to, data, responder) = (self.others().to_vec(), data.into(), Responder::to(then));
        drop(self.0.calls.try_send(Call { to, data, timeout, responder }));
    }

    /// The same, for who awaits it.
    pub fn call_others(&self, data: impl Into<Bytes>, timeout: Duration) -> Pending<Vec<Answer>> {
        self.call(self.others().to_vec(), data, timeout)
    }

    /// Claims a client's id for this node, which keeps it until it is given back as often as it was claimed.
    pub fn claim(&self, id: &str, tell: impl FnOnce(Result<(), ClaimFailure>) + Send + 'static) {
        let task = Task::Claim { id: id.into(), tell: Box::new(tell) };
        if let Err(mpsc::error::SendError(Task::Claim { tell, .. })) = self.0.tasks.send(task) {
            tell(Err(ClaimFailure::Unreachable));
        }
    }

    /// Gives a client's id back.
    pub fn release(&self, id: &str) {
        self.task(Task::Release { id: id.into() });
    }

    /// A session is in a room through this node, or is not any more. The room's members are told by
    /// [`Service::presence`], but where another node has the session there, and also should this node die.
    pub fn present(&self, room: &str, session: &str, told: Bytes, presenting: Presenting) {
        self.task(Task::Present { room: room.into(), session: session.into(), told, presenting });
    }

    /// This node holds a lock for a session, or does not any more. Should it die, [`Service::lock`] of another one frees it.
    pub fn hold(&self, room: &str, noted: &NotedLock, is_held: bool) {
        let Ok(told) = serde_json::to_vec(noted) else { return };
        let session = registered::of_lock(noted.token);
        let presenting = if is_held { Presenting::There } else { Presenting::Left };
        self.task(Task::Present { room: room.into(), session, told: told.into(), presenting });
    }

    /// What [`Event::CleanUp`] asked for is done.
    pub fn cleaned(&self, run: u64) {
        self.task(Task::Cleaned { run });
    }

    /// Has those calls ended, also at other nodes, whose answers were given up: what was asked for there is of no use.
    pub fn end_abandoned(&self) {
        self.task(Task::Sweep);
    }

    fn task(&self, task: Task) {
        // Where the thread has ended this node is out of the registry, or about to be taken for dead.
        drop(self.0.tasks.send(task));
    }

    fn set_others(&self, others: Arc<[NodeInfo]>) {
        *self.0.others.write().unwrap_or_else(PoisonError::into_inner) = others;
    }
}

impl Intake {
    /// Starts the thread. Returns when the node is registered, or Redis can't be reached or takes nothing: then it is as soon
    /// as it can.
    pub fn start(self, config: &Config, service: Service) -> Result<Nodes, super::StartError> {
        let Intake { shared, calls, tasks } = self;
        let handle = Handle(shared);
        let me = handle.me();
        let target = first_target(config, &me.name)?;
        let prefix = config.broker_redis.prefix.clone();
        let keys = keys::Keys::new(&prefix, target.is_cluster());
        let bounds = worker::Bounds { lease_ms: config.broker.lease_ms, timeout_ms: config.broker_redis.timeout_ms };
        let of_thread = handle.clone();
        let (started, outcome) = std::sync::mpsc::sync_channel(1);
        let main = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
            match runtime {
                Ok(runtime) => {
                    let worker = worker::Worker::new(of_thread, target, keys, bounds, service);
                    runtime.block_on(worker.run(calls, tasks, started));
                }
                Err(error) => tracing::error!(%error, "nodes can't know each other: no runtime"),
            }
        };
        let thread = std::thread::Builder::new().name("nodes".into()).spawn(main)?;
        // A thread that ended has dropped its end.
        outcome.recv().unwrap_or_default();
        Ok(Nodes { handle, thread: Some(thread) })
    }
}

pub(super) fn first_target(config: &Config, name: &str) -> Result<Target, super::StartError> {
    let targets: Result<Vec<Target>, CaFileError> = Target::all(config, name);
    targets?.into_iter().next().ok_or(super::StartError::NoBroker)
}

impl Nodes {
    /// What can be asked of it.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// False once its thread has ended, whether it was asked to or not.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Takes this node out of the registry and ends.
    pub fn shutdown(mut self) -> Result<(), super::Panicked> {
        self.end()
    }

    fn end(&mut self) -> Result<(), super::Panicked> {
        self.handle.0.stop.store(true, Ordering::SeqCst);
        self.handle.0.stopped.notify_one();
        match self.thread.take() {
            Some(thread) => thread.join().map_err(|_| super::Panicked),
            None => Ok(()),
        }
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!(%error, "the nodes' thread did not end well");
        }
    }
}

/// The refusal where the other nodes can't be asked.
pub const UNREACHABLE: Refused =
    Refused::new(ErrorCode::Unavailable, "the other nodes can't be asked right now; try again");

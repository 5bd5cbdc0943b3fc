//! Programs that emit with `@socket.io/redis-emitter`: what they emit into a room is published there, once, by one of the
//! nodes, so that it has a number and reaches clients of every protocol.
//!
//! All nodes hear it; of those that live, the first by its run passes it on. While nodes come and go two may take it for
//! theirs, or none: such programs are told of nothing in any case.

mod packet;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use redis::{PushKind, Value, cmd};
use tokio::sync::Notify;

use super::nodes::Handle;
use super::redis::connection::{Connections, Inbox, LinkError, Target};
use crate::config::Config;
use packet::{Emitted, Unusable};

/// Bytes of what is heard that wait to be published; what is beyond is lost, and counted.
const INBOX_BYTES_MAX: usize = 8 << 20;
/// How often it is looked whether the link carries anything.
const PING: Duration = Duration::from_secs(3);
/// How long a link rests that broke.
const REST: Duration = Duration::from_secs(1);

/// Publishes an event: room, type, data.
pub type Publish = Box<dyn Fn(&str, &str, Bytes) + Send>;

/// The running listener. Dropping it ends it.
#[derive(Debug)]
pub struct Emitter {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    stopped: Notify,
    /// Events that could not be published since that was told last.
    lost: AtomicU64,
}

struct Listener {
    shared: Arc<Shared>,
    target: Target,
    key: String,
    namespaces: Vec<String>,
    nodes: Handle,
    publish: Publish,
}

/// Begins to listen, where that is configured.
pub fn start(config: &Config, nodes: Handle, publish: Publish) -> Result<Option<Emitter>, super::StartError> {
    let Some(key) = config.broker_redis.emitter_key.clone() else { return Ok(None) };
    let me = nodes.me();
    let target = super::nodes::first_target(config, &me.name)?;
    let shared: Arc<Shared> = Arc::default();
    let namespaces = config.socketio.namespaces.clone();
    let listener = Listener { shared: shared.clone(), target, key, namespaces, nodes, publish };
    let main = move || match tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build() {
        Ok(runtime) => runtime.block_on(listener.run()),
        Err(error) => tracing::error!(%error, "emitters can't be heard: no runtime"),
    };
    let thread = std::thread::Builder::new().name("emitter".into()).spawn(main)?;
    Ok(Some(Emitter { shared, thread: Some(thread) }))
}

impl Drop for Emitter {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.stopped.notify_one();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the listener for emitters did not end well");
        }
    }
}

impl Listener {
    async fn run(self) {
        let mut was_told = false;
        while !self.shared.stop.load(Ordering::SeqCst) {
            let notify: Arc<Notify> = Arc::default();
            let inbox = Inbox::new(notify.clone(), INBOX_BYTES_MAX);
            let listening = tokio::select! {
                () = self.shared.stopped.notified() => break,
                listening = self.listen(&inbox) => listening,
            };
            match listening {
                Ok(connections) => {
                    tracing::info!(key = self.key, "emitters of Socket.IO are heard");
                    was_told = false;
                    self.hear(&connections, &inbox, &notify).await;
                }
                Err(error) if !was_told => {
                    tracing::warn!(%error, "emitters of Socket.IO can't be heard right now");
                    was_told = true;
                }
                Err(_) => {}
            }
            if !self.shared.stop.load(Ordering::SeqCst) {
                tokio::select! {
                    () = self.shared.stopped.notified() => {}
                    () = tokio::time::sleep(REST) => {}
                }
            }
        }
    }

    async fn listen(&self, inbox: &Arc<Inbox>) -> Result<Connections, LinkError> {
        // In a cluster each server tells all others what is published.
        let connections = self.target.connect_to_any(inbox.clone()).await?;
        connections.follow.subscribe_to_pattern(&format!("{}#/*", escaped(&self.key))).await?;
        Ok(connections)
    }

    /// Publishes what is heard, until the link breaks.
    async fn hear(&self, connections: &Connections, inbox: &Inbox, notify: &Notify) {
        let mut ping = tokio::time::interval(PING);
        loop {
            tokio::select! {
                () = self.shared.stopped.notified() => return,
                () = notify.notified() => {}
                _ = ping.tick() => {
                    self.tell_lost();
                    if let Err(error) = self.look_at(connections).await {
                        tracing::warn!(%error, "emitters of Socket.IO can't be heard any more");
                        return;
                    }
                }
            }
            let pushed = inbox.take();
            self.shared.lost.fetch_add(pushed.dropped.len() as u64, Ordering::Relaxed);
            for push in pushed.messages {
                match push.kind {
                    PushKind::PMessage => {
                        if let Some(Value::BulkString(payload)) = push.data.get(2) {
                            self.heard(payload);
                        }
                    }
                    PushKind::Disconnection => return,
                    _ => {}
                }
            }
        }
    }

    /// Whether the link carries anything.
    async fn look_at(&self, connections: &Connections) -> Result<(), LinkError> {
        connections.follow.command(cmd("PING")).await?;
        if self.target.look_around(connections).await? {
            return Ok(());
        }
        // A cluster that is not complete carries it all the same; a server that is parted from the others hears nothing of them.
        match self.target.ask().await {
            Ok(Some(_)) => Err(LinkError::NotServing),
            _ => Ok(()),
        }
    }

    fn heard(&self, payload: &[u8]) {
        let me = self.nodes.me().run;
        if self.nodes.others().iter().any(|other| other.run < me) {
            return;
        }
        match packet::read(payload) {
            Ok(emitted) if self.namespaces.contains(&emitted.namespace) => self.pass_on(emitted),
            Ok(_) => {}
            Err(error) => self.refused(&error),
        }
    }

    fn pass_on(&self, emitted: Emitted) {
        let Emitted { rooms, name, data, .. } = emitted;
        let data = Bytes::from(data);
        if rooms.is_empty() {
            // All who are in the namespace: everybody is in this room.
            return (self.publish)("global", &name, data);
        }
        for room in rooms {
            (self.publish)(&room, &name, data.clone());
        }
    }

    fn refused(&self, error: &Unusable) {
        tracing::debug!(%error, "what an emitter says can't be published");
        self.shared.lost.fetch_add(1, Ordering::Relaxed);
    }

    fn tell_lost(&self) {
        let lost = self.shared.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            tracing::warn!(
                lost,
                "what emitters of Socket.IO said could not be published; the log says why at level debug"
            );
        }
    }
}

/// A key as patterns of channels have it.
fn escaped(key: &str) -> String {
    let mut text = String::with_capacity(key.len());
    for c in key.chars() {
        if "*?[]\\".contains(c) {
            text.push('\\');
        }
        text.push(c);
    }
    text
}

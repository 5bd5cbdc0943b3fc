//! The task that opens the door: wakes sleepers, takes in connections, and ends the executor when asked.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_lite::AsyncReadExt as _;
use futures_lite::future::yield_now;

use super::backend::Backend;
use super::connection::{Connections, Fresh};
use super::inbox::Shared;
use super::listener::{Bound, accept};
use super::metrics::ControlFigures;
use super::runtime::{Socket, sleep, spawn_local};
use super::service::App;
use super::windows;

/// How often the end of the last connections is looked for.
const STOP_POLL: Duration = Duration::from_millis(5);

/// Everything the executor runs, until a stop is requested.
pub(crate) async fn run<B: Backend>(
    app: App<B>,
    shared: Arc<Shared>,
    inside: OwnedFd,
    internal: Option<Bound>,
    figures: ControlFigures,
) {
    let app = Rc::new(app);
    let connections = Rc::new(RefCell::new(Connections::default()));
    let listening = internal.map(|bound| spawn_local(accept(bound, Rc::clone(&app), Rc::clone(&connections), figures)));

    let reading = spawn_local(read_figures(Rc::clone(&app)));

    let mut bell = match Socket::new(inside) {
        Ok(bell) => bell,
        Err(error) => {
            tracing::error!(%error, "the control plane's door can't be watched");
            return shared.door.close();
        }
    };
    let mut bytes = [0; 64];
    while !shared.door.stop_requested() {
        if attend(&app, &shared, &connections) {
            // Whoever was woken gets its turn before the next look.
            yield_now().await;
            continue;
        }
        shared.door.sleep();
        // Whoever came before the line above saw the porter awake and did not ring.
        let came = attend(&app, &shared, &connections) || shared.door.stop_requested();
        if !came && let Err(error) = bell.read(&mut bytes).await {
            tracing::error!(%error, "the control plane's door is broken");
            break;
        }
        shared.door.wake();
    }

    shared.door.close();
    reading.cancel();
    if let Some(listening) = listening {
        listening.cancel();
    }
    connections.borrow().stop();
    let deadline = Instant::now() + app.options.stop_grace;
    while connections.borrow().len() > 0 && Instant::now() < deadline {
        // Requests in flight may still be waiting for answers from other threads.
        attend(&app, &shared, &connections);
        sleep(STOP_POLL).await;
    }
}

/// Reads the shards' figures every second, for what is told of the last ones.
async fn read_figures<B: Backend>(app: Rc<App<B>>) {
    loop {
        sleep(windows::INTERVAL).await;
        app.windows.take(Instant::now(), &app.backend.figures(), app.backend.times());
    }
}

/// True if there was something to do.
fn attend<B: Backend>(app: &Rc<App<B>>, shared: &Arc<Shared>, connections: &Rc<RefCell<Connections>>) -> bool {
    let mut any = shared.door.wake_sleepers();
    if shared.door.is_closed() {
        return any;
    }
    while let Some((connection, place)) = shared.pop() {
        any = true;
        match Fresh::adopted(connection) {
            Ok(fresh) => Connections::spawn(connections, app, fresh, place),
            Err(error) => tracing::warn!(%error, "a connection that a shard handed over can't be watched"),
        }
    }
    any
}

//! The hub as its control plane sees it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Hub, lock};
use crate::auth::Identity;
use crate::control::{self, Adopted, Backend, PublishRequest, Readiness, Snapshot};
use crate::hub::core::epoch_text;
use crate::hub::name::ShardId;
use crate::hub::reply::{HubError, Pending, pending};
use crate::ring::Now;
use crate::shard::request::Request;
use crate::wire::codes::ErrorCode;
use crate::wire::native::Refused;

impl Backend for Hub {
    type Identity = Identity;

    fn publish(&self, identity: &Arc<Identity>, event: PublishRequest) -> Pending<control::Published> {
        let PublishRequest { room, kind, data, key } = event;
        let (responder, pending) = pending();
        let answered = room.clone();
        let tell = move |outcome: Result<super::Published, Refused>| {
            let outcome = outcome.map_err(Into::into).map(|published| control::Published {
                room: answered,
                id: published.id().to_owned(),
                seq: published.seq,
                epoch: Some(epoch_text(published.epoch)),
                duplicate: published.duplicate,
            });
            // The caller may have gone away meanwhile; the event is published all the same.
            responder.resolve(outcome);
        };
        let data = bytes::Bytes::from(Box::<str>::from(data).into_string().into_bytes());
        let may = |kind: &str, name: &str| identity.permissions.may_publish(kind, name);
        self.publish_checked(&room, &kind, data, key.as_deref(), may, Box::new(tell));
        pending
    }

    fn verify(&self, token: &str) -> Result<Arc<Identity>, HubError> {
        let settings = lock(&self.inner.settings).clone();
        let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        match settings.gate().check_token(token, Now { monotonic_us: 0, unix_ms }) {
            Ok(identity) => Ok(Arc::new(identity)),
            Err(refusal) => Err(HubError::new(ErrorCode::Unauthorized, refusal.message)),
        }
    }

    fn anonymous(&self) -> Option<Arc<Identity>> {
        let settings = lock(&self.inner.settings);
        (!settings.config.auth.enabled).then(|| settings.anonymous.clone())
    }

    fn figures(&self) -> Snapshot {
        self.stats()
    }

    fn journal(&self) -> Option<control::JournalSnapshot> {
        self.inner.journal_figures.as_ref().map(|figures| figures.read())
    }

    fn ready(&self) -> Pending<Readiness> {
        let watch = &self.inner.watch;
        Pending::ready(Ok(Readiness { shards: watch.shards(), answering: watch.answering() }))
    }

    fn adopt(&self, connection: Adopted) {
        // Any shard will do; they take turns.
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let shard = NEXT.fetch_add(1, Ordering::Relaxed) % usize::from(self.inner.mesh.shards().max(1));
        if self.inner.mesh.request(ShardId(shard as u16), Request::Adopt(Box::new(connection))).is_err() {
            tracing::debug!(shard, "a shard is too busy to adopt a connection, which is closed");
        }
    }

    fn draining(&self) -> bool {
        self.inner.mesh.draining.load(Ordering::Relaxed)
    }
}

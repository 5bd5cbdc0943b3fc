//! What an operator can do with field locks.

use super::api::Gather;
use super::{Hub, Pending};
use crate::hub::lock_pages::LockPage;
use crate::hub::name::ShardId;
use crate::hub::reply::{Responder, pending};
use crate::hub::view::Window;
use crate::shard::request::Request;

pub use crate::hub::locks::LockInfo;

impl Hub {
    /// The field locks that are held in a room, by field; none where the room does not exist.
    ///
    /// ```
    /// # use ringhub::{node::Hub, config::Config};
    /// # let mut config = Config::default();
    /// # config.listen.public = vec!["127.0.0.1:0".parse()?];
    /// # config.shards.count = 1;
    /// # config.auth.enabled = false;
    /// # let hub = Hub::start(config)?;
    /// # let (mut client, _) = tungstenite::connect(format!("ws://{}/ws", hub.addresses()[0]))?;
    /// # client.read()?; // The greeting.
    /// let ask = r#"{"type":"lock.acquire","id":1,"data":{"room":"quote:q1","field":"price","ttl_s":60}}"#;
    /// client.send(tungstenite::Message::text(ask))?;
    /// client.read()?; // It is granted.
    ///
    /// let locks = hub.locks("quote:q1").wait()?;
    /// assert_eq!((locks.len(), locks[0].field.as_str()), (1, "price"));
    ///
    /// assert!(hub.force_unlock("quote:q1", "price").wait()?);
    /// assert!(hub.locks("quote:q1").wait()?.is_empty());
    /// assert!(!hub.force_unlock("quote:q1", "price").wait()?, "nobody holds it any more");
    /// # hub.shutdown()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn locks(&self, room: &str) -> Pending<Vec<LockInfo>> {
        let (responder, pending) = pending();
        self.ask_room_with(room, |room| Request::Locks { room, responder });
        pending
    }

    /// The field locks that are held, of all rooms or of one, by room and field: at most `window.limit` behind the place
    /// `window.after`, and where to go on. A page may be short and yet others come behind it.
    pub fn lock_page(&self, room: Option<&str>, window: Window) -> Pending<LockPage> {
        let (responder, pending) = pending();
        let limit = window.limit;
        let finish = move |page: Result<LockPage, _>| responder.resolve(page.map(|page| page.finish(limit)));
        let finished = Responder::to(finish);
        match room {
            Some(room) => {
                self.ask_room_with(room, |room| Request::LockPage { room: Some(room), window, responder: finished })
            }
            None => {
                let shards = self.inner.mesh.shards();
                let gather = Gather::new(finished, usize::from(shards));
                for shard in 0..shards {
                    let responder = Responder::to(gather.part_with(LockPage::with));
                    let window = window.clone();
                    self.ask(ShardId(shard), Request::LockPage { room: None, window, responder });
                }
            }
        }
        pending
    }

    /// Frees a field's lock, whoever holds it, and says whether somebody did. The room is told with `lock.released` and the
    /// reason `forced`, the connection that took or renewed the lock last with the error `lock_lost`. What the holder has
    /// sent to others before it hears of that is still on its way: they tell it apart by the lock's number.
    pub fn force_unlock(&self, room: &str, field: &str) -> Pending<bool> {
        let (responder, pending) = pending();
        self.ask_room_with(room, |room| Request::Unlock { room, field: field.into(), responder });
        pending
    }
}

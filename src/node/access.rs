//! Taking access away from who is connected: a new proof, fewer permissions.

use std::sync::Arc;
use std::time::Duration;

use super::api::Gather;
use super::{Hub, HubError, Pending, Target};
use crate::hub::message::{ClientRequest, Withdraw};
use crate::hub::name::ShardId;
use crate::hub::reply::{Responder, pending};
use crate::shard::request::Request;
use crate::wire::codes::ErrorCode;

pub use crate::hub::message::Withdrew;

/// The longest time that may be given for a proof, in seconds.
pub const GRACE_S_MAX: u64 = 3600;
/// Permissions that one call may withdraw.
pub const WITHDRAWN_AT_ONCE_MAX: usize = 100;
/// The longest permission: the name of the longest room, and words around it.
const PERMISSION_BYTES_MAX: usize = 1200;

impl Hub {
    /// Has connections show a valid token again: a client's, of sessions, or all of a user's. They are told with
    /// `auth.expiring`, and closed with 4401 where no `auth.refresh` with a valid token comes within `grace` (1 s to
    /// [`GRACE_S_MAX`]). Says how many there are.
    pub fn reauthenticate(&self, who: &Target, grace: Duration) -> Pending<u32> {
        let (responder, pending) = pending();
        let grace_s = grace.as_secs();
        if !(1..=GRACE_S_MAX).contains(&grace_s) {
            let message = format!("the time for a new token is 1 to {GRACE_S_MAX} seconds");
            responder.resolve(Err(HubError::new(ErrorCode::BadCommand, message)));
            return pending;
        }
        let grace_s = grace_s as u32;
        let of_session = |id: &str, responder| {
            let request = ClientRequest::Reauthenticate { grace_s, responder };
            self.ask_room_with(&format!("session:{id}"), |room| Request::Session { room, request });
        };
        match who {
            Target::Client(client_id) => {
                let request = ClientRequest::Reauthenticate { grace_s, responder };
                self.ask_key(client_id, Request::Client { client_id: client_id.clone(), request });
            }
            Target::Session(id) => of_session(id, responder),
            Target::Sessions(ids) => {
                let gather = Gather::new(responder, ids.len());
                ids.iter().for_each(|id| of_session(id, Responder::to(gather.sum_part())));
            }
            Target::User(user_id) => self.ask_every_shard(
                responder,
                |sum, one| sum + one,
                |responder| Request::ReauthenticateUser { user_id: user_id.clone(), grace_s, responder },
            ),
        }
        pending
    }

    /// Takes permissions (`*` in one stands for one whole part) away from a client's connection, of sessions, or of all that
    /// a user has, for as long as the session lasts: from what its token grants, and from what others grant that were issued
    /// before now. Rooms that it may be in no longer are left at once. The connection is closed with 4403 where
    /// `disconnect` is set or `websocket:connect` is gone, with `reason` in the first case.
    ///
    /// ```
    /// # use ringhub::{node::{Hub, Target}, config::Config};
    /// # let mut config = Config::default();
    /// # config.listen.public = vec!["127.0.0.1:0".parse()?];
    /// # config.shards.count = 1;
    /// # config.auth.enabled = false;
    /// # let hub = Hub::start(config)?;
    /// # let (mut client, _) = tungstenite::connect(format!("ws://{}/ws?client_id=c1", hub.addresses()[0]))?;
    /// # client.read()?; // The greeting.
    /// let withdrew = hub.withdraw(&Target::Client("c1".into()), &["project:*:read"], false, "").wait()?;
    /// assert_eq!((withdrew.connections, withdrew.closed), (1, 0));
    ///
    /// client.send(tungstenite::Message::text(r#"{"type":"subscribe","id":1,"data":{"room":"project:42"}}"#))?;
    /// assert!(client.read()?.to_text()?.contains("forbidden"));
    /// # hub.shutdown()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn withdraw(&self, who: &Target, permissions: &[&str], disconnect: bool, reason: &str) -> Pending<Withdrew> {
        let (responder, pending) = pending();
        if let Err(message) = check_permissions(permissions) {
            responder.resolve(Err(HubError::new(ErrorCode::BadCommand, message)));
            return pending;
        }
        let permissions: Arc<[Box<str>]> = permissions.iter().copied().map(Into::into).collect();
        let withdraw = Withdraw { permissions, disconnect, reason: reason.into() };
        let of_session = |id: &str, responder| {
            let withdraw = withdraw.clone();
            self.ask_room_with(&format!("session:{id}"), |room| Request::WithdrawFromSession {
                room,
                withdraw,
                responder,
            });
        };
        match who {
            Target::Client(client_id) => {
                let request = ClientRequest::Withdraw { withdraw, responder };
                self.ask_key(client_id, Request::Client { client_id: client_id.clone(), request });
            }
            Target::Session(id) => of_session(id, responder),
            Target::Sessions(ids) => {
                let gather = Gather::new(responder, ids.len());
                ids.iter().for_each(|id| of_session(id, Responder::to(gather.absent_part(add))));
            }
            Target::User(user_id) => self.ask_every_shard(responder, add, |responder| Request::WithdrawFromUser {
                user_id: user_id.clone(),
                withdraw: withdraw.clone(),
                responder,
            }),
        }
        pending
    }

    fn ask_every_shard<T: Default + Send + 'static>(
        &self,
        responder: Responder<T>,
        add: fn(T, T) -> T,
        request: impl Fn(Responder<T>) -> Request,
    ) {
        let shards = self.inner.mesh.shards();
        let gather = Gather::new(responder, usize::from(shards));
        for shard in 0..shards {
            self.ask(ShardId(shard), request(Responder::to(gather.part_with(add))));
        }
    }
}

fn add(sum: Withdrew, one: Withdrew) -> Withdrew {
    Withdrew {
        connections: sum.connections + one.connections,
        closed: sum.closed + one.closed,
        sessions: sum.sessions + one.sessions,
    }
}

fn check_permissions(permissions: &[&str]) -> Result<(), String> {
    if !(1..=WITHDRAWN_AT_ONCE_MAX).contains(&permissions.len()) {
        return Err(format!("1 to {WITHDRAWN_AT_ONCE_MAX} permissions at a time"));
    }
    let is_one = |text: &&str| {
        let parts_are_there = text.split(':').all(|part| !part.is_empty());
        text.len() <= PERMISSION_BYTES_MAX
            && parts_are_there
            && text.contains(':')
            && !text.chars().any(char::is_control)
    };
    if !permissions.iter().all(is_one) {
        return Err(format!("a permission is words with colons between them, of at most {PERMISSION_BYTES_MAX} bytes"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permission_has_parts() {
        assert_eq!(check_permissions(&["project:42:read", "websocket:connect", "*:*"]), Ok(()));
        for bad in ["", "project", "project:", ":read", "a::b", "a:\n", &"a:".repeat(700)] {
            assert!(check_permissions(&[bad]).is_err(), "{bad:?}");
        }
        assert!(check_permissions(&[]).is_err());
        assert!(check_permissions(&["a:b"; 101]).is_err());
    }
}

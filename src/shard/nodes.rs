//! What a shard asks of other nodes for its clients. Nothing waits for an answer: it comes as a request to the shard.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::json;

use super::connection::Phase;
use super::mesh::Mesh;
use super::request::Request;
use super::resume::token_text;
use super::state::State;
use crate::auth::Identity;
use crate::broker::nodes::{Answer, ClaimFailure, Failure, Handle};
use crate::control::nodes::call::{PresentMember, PresentPart};
use crate::control::nodes::{ANSWER_WAIT, NodeCall, merge};
use crate::hub::batch::Address;
use crate::hub::message::{
    ClaimKind, ClaimRefused, Direct, HistoryTold, Message, Published, ReplyTo, Resume, Resumed, Sent, Ticket,
};
use crate::hub::moved::Moved;
use crate::hub::name::RoomName;
use crate::hub::presence::{Asker, MEMBERS_LISTED_MAX, RoomPresence};
use crate::hub::reply::{HubError, Responder};
use crate::ring::ConnKey;
use crate::session::ClientId;
use crate::session::SessionId;
use crate::wire::codes::ErrorCode;
use crate::wire::envelope::rfc3339;
use crate::wire::native::{Reference, Refused};
use crate::wire::refusal::Refusal;

/// Bytes of the answer to `presence`, at about.
const PRESENCE_BYTES_MAX: usize = 1 << 20;

impl State {
    /// Whether there are other nodes.
    fn others(&self) -> Option<&Handle> {
        self.nodes.as_ref().filter(|nodes| !nodes.others().is_empty())
    }

    /// Wants a client's id that no other node has. The answer comes as [`ClaimKind::Cluster`].
    pub(super) fn claim_over_nodes(&self, address: Address, client_id: &ClientId) {
        let Some(nodes) = &self.nodes else { return };
        let (mesh, handle, of_claim) = (self.mesh.clone(), nodes.clone(), client_id.clone());
        nodes.claim(client_id, move |outcome| {
            let refused = outcome.err().map(|failure| match failure {
                ClaimFailure::Taken => ClaimRefused::Taken,
                ClaimFailure::Unreachable => ClaimRefused::Unreachable,
            });
            let told = tell(&mesh, address, Message::Claimed { address, what: ClaimKind::Cluster, refused });
            if !told && refused.is_none() {
                // Its handshake comes to its end without an answer.
                handle.release(&of_claim);
            }
        });
    }

    /// Sends to a client that is not connected here.
    pub(super) fn send_elsewhere(&mut self, client_id: &str, direct: Direct) {
        let Some(nodes) = self.others() else { return self.core.refuse_direct(direct) };
        let Direct { kind, data, reply, .. } = direct;
        let data = String::from_utf8_lossy(&data).into_owned();
        let (mesh, room) = (self.mesh.clone(), self.core.hasher().room(""));
        let call = NodeCall::SendToClient { client_id: client_id.into(), kind, data };
        nodes.call_others_then(written(&call), ANSWER_WAIT, move |answers| {
            let outcome = sent_elsewhere(answers);
            match reply {
                ReplyTo::Client { address, ticket } if outcome.is_err() || ticket.is_awaited() => {
                    tell(&mesh, address, Message::Published { address, ticket, room, outcome });
                }
                ReplyTo::Handle(tell) => tell(outcome),
                ReplyTo::Client { .. } | ReplyTo::Nobody => {}
            }
        });
    }

    /// Counts the connections of other nodes that an event went to which was sent to a session or user; given back where
    /// there is nothing to count.
    pub(super) fn count_elsewhere(
        &self,
        address: Address,
        ticket: Ticket,
        room: &RoomName,
        outcome: Result<Published, Refused>,
    ) -> Option<(Ticket, Result<Published, Refused>)> {
        match (&self.nodes, outcome, ticket) {
            (Some(nodes), Ok(published), ticket @ (Ticket::Direct(Some(_)) | Ticket::Part(_)))
                if published.nodes > 0 =>
            {
                let (mesh, of_room) = (self.mesh.clone(), room.clone());
                count_audience(nodes, room.as_str(), published, move |published| {
                    let outcome = Ok(published);
                    tell(&mesh, address, Message::Published { address, ticket, room: of_room, outcome });
                });
                None
            }
            (_, outcome, ticket) => Some((ticket, outcome)),
        }
    }

    /// Who asks a room's home who is there: a client, or, where there are other nodes, somebody who asks those as well and
    /// tells the client.
    pub(super) fn asker_over_nodes(&self, address: Address, reference: Option<Reference>, room: &RoomName) -> Asker {
        let Some(nodes) = self.others() else { return Asker::Client { address, reference } };
        let (nodes, mesh, room) = (nodes.clone(), self.mesh.clone(), room.clone());
        let of_room = NodeCall::Presence { room: room.as_str().into() };
        Asker::Handle(Responder::to(move |here: Result<RoomPresence, HubError>| {
            let ticket = Ticket::Single(reference);
            let here = match here {
                Ok(here) => PresentPart::from(here),
                Err(HubError { code, message }) => {
                    let outcome = Err(Refused::because(code, message));
                    tell(&mesh, address, Message::Published { address, ticket, room, outcome });
                    return;
                }
            };
            nodes.call_others_then(written(&of_room), ANSWER_WAIT, move |answers| {
                let body = presence_body(room.as_str(), here, answers.unwrap_or_default()).into();
                let told = HistoryTold { address, ticket, kind: "presence", body };
                tell(&mesh, address, Message::HistoryTold(Box::new(told)));
            });
        }))
    }
}

// ---- sessions ----

impl State {
    /// Asks other nodes for a session that a connection wants to take up and that is not here.
    pub(super) fn seek_session(&mut self, resume: Resume) {
        let Some(nodes) = self.others() else { return self.session_sought(resume, Ok(None)) };
        let call = NodeCall::YieldSession {
            session_id: resume.asked.session_id.clone(),
            user_id: resume.identity.user_id.as_str().into(),
            token: Some(token_text(&resume.token)),
        };
        let (mesh, home) = (self.mesh.clone(), self.me);
        let resume = Box::new(resume);
        nodes.call_others_then(written(&call), ANSWER_WAIT, move |answers| {
            let found = yielded(answers);
            // A shard that is too busy for it leaves its client without an answer, as one that is lost does.
            if mesh.request(home, Request::SessionSought { resume, found }).is_err() {
                tracing::warn!(shard = home.0, "a shard is too busy to take a session of another node, which is lost");
            }
        });
    }

    /// The other nodes have answered.
    pub(super) fn session_sought(&mut self, resume: Resume, found: Result<Option<Bytes>, Refused>) {
        let resume = Resume { was_sought: true, ..resume };
        match found {
            Ok(found) => {
                if let Some(moved) = found.and_then(|text| self.read_moved(&text)) {
                    let (room, identity) = (resume.room.clone(), resume.identity.clone());
                    self.message(Message::InstallSession { room, identity, moved: Box::new(moved) });
                }
                self.message(Message::Resume(Box::new(resume)));
            }
            Err(refused) => {
                let Resume { address, asked, .. } = resume;
                let resumed = Resumed { address, asked, outcome: Err(refused) };
                self.core.send(address.shard, Message::Resumed(Box::new(resumed)));
            }
        }
        self.drain_local();
    }

    /// Asks other nodes for a session that a connection begins by its name; true where it has to wait for that.
    pub(super) fn seek_by_name(&mut self, conn: ConnKey) -> bool {
        let Some(nodes) = self.others().cloned() else { return false };
        let (mesh, shard) = (self.mesh.clone(), self.me);
        let Some(Phase::Admission(admission)) = self.connections.get_mut(conn).map(|connection| &mut connection.phase)
        else {
            return false;
        };
        // One that was drawn is nobody else's.
        if admission.was_sought || admission.admit.session_id.is_none() {
            return false;
        }
        admission.was_sought = true;
        let (session_id, identity) = (admission.session_id.clone(), admission.admit.identity.clone());
        let user_id = identity.user_id.as_str().into();
        let call = NodeCall::YieldSession { session_id: (&*session_id).into(), user_id, token: None };
        nodes.call_others_then(written(&call), ANSWER_WAIT, move |answers| {
            let found = yielded(answers);
            if mesh.request(shard, Request::NameSought { conn, session_id, identity, found }).is_err() {
                tracing::warn!(shard = shard.0, "a shard is too busy to take a session of another node, which is lost");
            }
        });
        true
    }

    /// The other nodes have answered.
    pub(super) fn name_sought(
        &mut self,
        conn: ConnKey,
        session_id: &SessionId,
        identity: &Arc<Identity>,
        found: Result<Option<Bytes>, Refused>,
    ) {
        let refused = found.as_ref().err().cloned();
        if let Some(moved) = found.ok().flatten().and_then(|text| self.read_moved(&text)) {
            // Also where the connection has gone: it can be resumed here.
            let (room, identity) = (self.core.hasher().session_room(session_id), identity.clone());
            self.core.send_home(&room.clone(), Message::InstallSession { room, identity, moved: Box::new(moved) });
        }
        let phase = self.connections.get_mut(conn).map(|connection| &mut connection.phase);
        if let Some(Phase::Admission(admission)) = phase
            && admission.session_id == *session_id
        {
            if refused.is_some() {
                admission.refused.get_or_insert(Refusal::forbidden("this session is another user's"));
                self.admission_refused(conn);
            } else {
                self.join_first_rooms(conn);
            }
        }
        self.drain_local();
    }

    fn read_moved(&self, text: &[u8]) -> Option<Moved> {
        let moved = Moved::read(text, &self.core.hasher(), self.now);
        if moved.is_none() {
            tracing::warn!("a session that another node gave away can't be read");
        }
        moved
    }
}

/// The session that a node gave away, none where no node has it, or why it is not to be had.
fn yielded(answers: Result<Vec<Answer>, HubError>) -> Result<Option<Bytes>, Refused> {
    let mut refused = None;
    for answer in answers.unwrap_or_default() {
        match answer.outcome {
            Ok(text) => return Ok(Some(text)),
            Err(Failure::Refused(error)) if error.code == ErrorCode::Forbidden => {
                refused = Some(Refused::because(error.code, error.message));
            }
            // As after a node's restart: what it had is gone, or can't be had now.
            Err(Failure::Refused(_) | Failure::Missing) => {}
        }
    }
    refused.map_or(Ok(None), Err)
}

/// Counts the connections of other nodes in the room that an event went to.
pub(crate) fn count_audience(
    nodes: &Handle,
    room: &str,
    published: Published,
    then: impl FnOnce(Published) + Send + 'static,
) {
    let call = NodeCall::Audience { room: room.into() };
    nodes.call_others_then(written(&call), ANSWER_WAIT, move |answers| {
        let mut sum = Sent { delivered: 0, queued: 0 };
        for one in told::<Sent>(answers.unwrap_or_default()) {
            sum.delivered += one.delivered;
            sum.queued += one.queued;
        }
        let count = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        let here = published.delivered.saturating_sub(published.nodes);
        let delivered = here.saturating_add(count(sum.delivered));
        // Where it is connected to one node, it does not wait at another one where it was before.
        let queued = if delivered > 0 { 0 } else { published.queued.max(count(sum.queued)) };
        then(Published { delivered, queued, nodes: 0, ..published });
    });
}

fn written(call: &NodeCall) -> Vec<u8> {
    // It has no maps whose keys are no text, and so on: it can be written.
    serde_json::to_vec(call).unwrap_or_default()
}

/// Tells a connection's shard; false where that is too busy.
fn tell(mesh: &Mesh, address: Address, message: Message) -> bool {
    let told = mesh.request(address.shard, Request::ForMember(Box::new(message))).is_ok();
    if !told {
        tracing::debug!(shard = address.shard.0, "a shard is too busy to take what other nodes answered");
    }
    told
}

/// What was answered, where it can be read.
fn told<T: serde::de::DeserializeOwned>(answers: Vec<Answer>) -> impl Iterator<Item = T> {
    answers.into_iter().filter_map(|answer| serde_json::from_slice(&answer.outcome.ok()?).ok())
}

/// What became of an event for a client that was looked for at other nodes.
fn sent_elsewhere(answers: Result<Vec<Answer>, HubError>) -> Result<Published, Refused> {
    let unavailable =
        || Refused::new(ErrorCode::Unavailable, "not all nodes could be asked for this client; try again");
    let answers = answers.map_err(|_| unavailable())?;
    let failure = answers.iter().find_map(|answer| match answer.outcome.as_ref().err()? {
        Failure::Refused(error) if error.code == ErrorCode::NotFound => None,
        Failure::Refused(error) => Some(Refused::because(error.code, error.message.clone())),
        Failure::Missing => Some(unavailable()),
    });
    match told::<Sent>(answers).next() {
        Some(Sent { delivered, queued }) => {
            let (delivered, queued) = (delivered as u32, queued as u32);
            Ok(Published { id: [0; 36], seq: 0, epoch: 0, duplicate: false, delivered, queued, nodes: 0 })
        }
        None => Err(failure.unwrap_or(Refused::new(ErrorCode::NotFound, "there is no such client"))),
    }
}

/// The data of the answer to `presence`, of this node and of those that answered.
fn presence_body(room: &str, here: PresentPart, answers: Vec<Answer>) -> Vec<u8> {
    let missing: Vec<String> =
        answers.iter().filter(|answer| answer.outcome.is_err()).map(|answer| answer.node.name.clone()).collect();
    let parts = std::iter::once(here).chain(told(answers)).map(|part| (None, part)).collect();
    let (count, seq, members) = merge::presence(parts, MEMBERS_LISTED_MAX);
    let (mut written, mut bytes) = (Vec::new(), 0);
    for of in members {
        let PresentMember { client_id, user_id, session_id, metadata, joined_ms } = of.item;
        let joined_at = String::from_utf8_lossy(&rfc3339(joined_ms)).into_owned();
        let member = json!({
            "client_id": client_id, "user_id": user_id, "session_id": session_id,
            "metadata": metadata, "joined_at": joined_at,
        });
        if bytes > PRESENCE_BYTES_MAX {
            break;
        }
        let text = member.to_string();
        bytes += text.len();
        written.push(member);
    }
    let more = written.len() < count;
    let mut body = json!({"room": room, "seq": seq, "count": count, "members": written, "more": more});
    if let (false, Some(body)) = (missing.is_empty(), body.as_object_mut()) {
        body.insert("partial".to_owned(), true.into());
        body.insert("missing".to_owned(), missing.into());
    }
    serde_json::to_vec(&body).unwrap_or_default()
}

//! Commands with several parts: each part is answered by the home of its room, and the client when all are there.

use super::commands::write_sent;
use super::connection::{GATHERS_MAX, Gather, GatherKind};
use super::state::State;
use crate::ring::ConnKey;
use crate::wire::codes::ErrorCode;
use crate::wire::native::{Reference, Refused};

impl State {
    pub(super) fn gather(
        &mut self,
        conn: ConnKey,
        reference: Option<Reference>,
        parts: usize,
        kind: GatherKind,
    ) -> Result<u32, Refused> {
        let waiting = u32::try_from(parts).unwrap_or(u32::MAX);
        // Never the number of a command that an earlier client of the connection had under way.
        self.last_part = self.last_part.wrapping_add(1);
        let part = self.last_part;
        let Some(client) = self.client_mut(conn) else { return Ok(0) };
        let under_way = client.under_way();
        if under_way.gathers.len() >= GATHERS_MAX {
            return Err(Refused::new(ErrorCode::Unavailable, "too many commands of this connection are under way"));
        }
        under_way.gathers.push(Gather { part, reference, waiting, kind });
        if waiting == 0 {
            self.gather_complete(conn, part);
        }
        Ok(part)
    }

    /// One part of a list is there; `write` appends what it says.
    pub fn gathered(&mut self, conn: ConnKey, part: u32, write: impl FnOnce(&mut Vec<u8>)) {
        let Some(gather) = self.part(conn, part) else { return };
        if let GatherKind::Subscribe(results) | GatherKind::Unsubscribe(results) | GatherKind::Resume(results) =
            &mut gather.kind
        {
            if !results.is_empty() {
                results.push(b',');
            }
            write(results);
        }
        self.part_done(conn, part);
    }

    /// One part of a `send` to several sessions is there.
    pub fn gathered_send(&mut self, conn: ConnKey, part: u32, reached: u64, waits: u64) {
        let Some(gather) = self.part(conn, part) else { return };
        if let GatherKind::Send { delivered, queued } = &mut gather.kind {
            *delivered += reached;
            *queued += waits;
        }
        self.part_done(conn, part);
    }

    fn part(&mut self, conn: ConnKey, part: u32) -> Option<&mut Gather> {
        let under_way = self.client_mut(conn)?.under_way.as_mut()?;
        under_way.gathers.iter_mut().find(|gather| gather.part == part)
    }

    fn part_done(&mut self, conn: ConnKey, part: u32) {
        let Some(gather) = self.part(conn, part) else { return };
        gather.waiting = gather.waiting.saturating_sub(1);
        if gather.waiting == 0 {
            self.gather_complete(conn, part);
        }
    }

    fn gather_complete(&mut self, conn: ConnKey, part: u32) {
        let Some(client) = self.client_mut(conn) else { return };
        let Some(under_way) = client.under_way.as_mut() else { return };
        let Some(place) = under_way.gathers.iter().position(|gather| gather.part == part) else { return };
        let Gather { reference, kind, .. } = under_way.gathers.swap_remove(place);
        client.tidy();
        match kind {
            GatherKind::Subscribe(results) => {
                let write = |payload: &mut Vec<u8>| write_results(payload, &results);
                self.tell_behind_events(conn, None, "subscribed", reference.as_ref(), write);
                // Replays were held back until the answer.
                self.release_lags(conn, part);
            }
            GatherKind::Resume(results) => self.resume_complete(conn, part, reference.as_ref(), &results),
            GatherKind::Unsubscribe(results) => {
                let write = |payload: &mut Vec<u8>| write_results(payload, &results);
                self.tell_behind_events(conn, None, "unsubscribed", reference.as_ref(), write);
            }
            GatherKind::Send { delivered, queued } => {
                self.answer(conn, "sent", reference.as_ref(), |payload| write_sent(payload, delivered, queued));
            }
        }
    }
}

pub(super) fn write_results(payload: &mut Vec<u8>, results: &[u8]) {
    payload.extend_from_slice(b"{\"results\":[");
    payload.extend_from_slice(results);
    payload.extend_from_slice(b"]}");
}

//! A batch in the forms that connections take it in. Native frames are the batch itself; what other protocols want is made
//! once for all who want the same.

use bytes::Bytes;
use smallvec::SmallVec;

use super::connection::{Connection, Phase};
use super::deflating::{Deflating, Found};
use super::socketio::{self, Form};
use super::stream::Stream;
use crate::hub::batch::{Address, Batch, FrameMemory};
use crate::hub::name::ShardId;
use crate::hub::outbox::{Full, Lane, Protocol};
use crate::hub::rooms::RoomId;
use crate::ring::ConnKey;
use crate::wire::sse::AroundSeq;
use crate::wire::variant::Variant;

/// The forms of the batch that was encoded last.
#[derive(Debug)]
pub struct Variants<'v> {
    me: ShardId,
    namespaces: &'v [Box<str>],
    /// For streams that are equally far in the same rooms.
    stream: Option<(Bytes, AroundSeq, Bytes)>,
    /// For clients of Socket.IO, by where in them it goes and how.
    socketio: SmallVec<[(Form, Bytes); 2]>,
    /// The frames of which those were made.
    socketio_of: Bytes,
    /// For clients of the native protocol that want it in another form, or as changes.
    forms: SmallVec<[((Variant, usize), Bytes); 4]>,
    /// The frames of which those were made.
    forms_of: Bytes,
    /// What was encoded and is alive, and beyond how much of it connections wait.
    memory: FrameMemory,
    memory_bytes_max: usize,
    /// What of it is compressed.
    deflating: &'v mut Deflating,
}

/// How a client of the native protocol wants a batch.
#[derive(Debug, Clone, Copy)]
struct NativeForm {
    variant: Variant,
    /// How many of its events as changes, of what it has, which is all after that event.
    changes: usize,
    after_seq: u64,
}

/// A batch on its way to a connection: its frames for that one, the room's place in the table, and the batch.
pub type Delivery<'d> = (&'d Bytes, RoomId, &'d Batch);

impl<'v> Variants<'v> {
    /// Nothing was encoded yet. Native frames are shared by all, but a crowd of streams may need copies of its own, which
    /// together have the bound of all outboxes. Beyond it they wait for one another.
    pub fn new(
        me: ShardId,
        namespaces: &'v [Box<str>],
        memory: &FrameMemory,
        outbox_shard_bytes_max: usize,
        deflating: &'v mut Deflating,
    ) -> Variants<'v> {
        Variants {
            me,
            namespaces,
            stream: None,
            socketio: SmallVec::new(),
            socketio_of: Bytes::new(),
            forms: SmallVec::new(),
            forms_of: Bytes::new(),
            memory: memory.clone(),
            memory_bytes_max: outbox_shard_bytes_max,
            deflating,
        }
    }

    /// Makes a chunk of its own, unless memory is short.
    fn encode(&self, bytes_about: usize, write: impl FnOnce(&mut Vec<u8>)) -> Result<Bytes, Full> {
        if self.memory.bytes() > self.memory_bytes_max {
            return Err(Full);
        }
        let mut out = Vec::with_capacity(bytes_about);
        write(&mut out);
        Ok(self.memory.share(out))
    }

    fn for_stream(&mut self, stream: &Stream, room: RoomId, batch: &Batch) -> Result<Bytes, Full> {
        let (around, is_of_room) = stream.around(room);
        if let Some((frames, of, events)) = &self.stream
            && is_same(frames, &batch.bytes)
            && *of == around
        {
            return Ok(events.clone());
        }
        let bytes_about = batch.bytes.len() + batch.events.len() * around.bytes();
        let events = self.encode(bytes_about, |out| super::stream::write(out, &around, is_of_room, batch))?;
        if is_of_room {
            self.stream = Some((batch.bytes.clone(), around, events.clone()));
        }
        Ok(events)
    }

    fn for_form(&mut self, form: NativeForm, frames: &Bytes, batch: &Batch) -> Result<Bytes, Full> {
        let NativeForm { variant, changes, after_seq } = form;
        if changes == 0 && variant.is_native(frames) {
            return Ok(frames.clone());
        }
        let is_for_all = is_same(frames, &batch.bytes);
        if is_for_all && is_same(&self.forms_of, frames) {
            if let Some((_, events)) = self.forms.iter().find(|(of, _)| *of == (variant, changes)) {
                return Ok(events.clone());
            }
        } else if is_for_all {
            self.forms.clear();
            self.forms_of = frames.clone();
        }
        let events = self.encode(frames.len(), |out| {
            if changes == 0 {
                return variant.write_events(frames, out);
            }
            let mut changed = Vec::with_capacity(frames.len());
            batch.write_deltas(after_seq, &mut changed);
            variant.write_events(&changed, out);
        })?;
        if is_for_all {
            self.forms.push(((variant, changes), events.clone()));
        }
        Ok(events)
    }

    fn for_socketio(&mut self, form: Form, conn: ConnKey, frames: &Bytes, batch: &Batch) -> Result<Bytes, Full> {
        let is_for_all = is_same(frames, &batch.bytes);
        if is_for_all && is_same(&self.socketio_of, frames) {
            if let Some((_, events)) = self.socketio.iter().find(|(of, _)| *of == form) {
                return Ok(events.clone());
            }
        } else if is_for_all {
            self.socketio.clear();
            self.socketio_of = frames.clone();
        }
        let namespaces = self.namespaces;
        let without = (!is_for_all).then_some(Address { shard: self.me, conn });
        let bytes_about = frames.len() + batch.events.len() * socketio::AROUND_BYTES;
        let events = self.encode(bytes_about, |out| form.write(out, namespaces, batch, without))?;
        if is_for_all {
            self.socketio.push((form, events.clone()));
        }
        Ok(events)
    }

    /// A batch, in a form of Socket.IO or as it is, compressed once for all who take it so. Where memory is short it is not: what is
    /// there already is shared.
    fn deflated(
        &mut self,
        window_bits: u8,
        form: Option<Form>,
        conn: ConnKey,
        frames: &Bytes,
        batch: &Batch,
    ) -> Result<Bytes, Full> {
        let without = (!is_same(frames, &batch.bytes)).then_some(Address { shard: self.me, conn });
        let as_they_are = |variants: &mut Self, frames: &Bytes| match form {
            None => Ok(frames.clone()),
            Some(form) => variants.for_socketio(form, conn, frames, batch),
        };
        let mut found = self.deflating.find(batch, form, window_bits, without, &self.memory);
        if found.is_none() && self.memory.bytes() <= self.memory_bytes_max {
            let plain = as_they_are(self, &batch.bytes)?;
            self.deflating.remember(batch, form, window_bits, &plain, &self.memory);
            found = self.deflating.find(batch, form, window_bits, without, &self.memory);
        }
        if let Some(Found::Frames(frames)) = found {
            return Ok(frames);
        }
        as_they_are(self, frames)
    }
}

/// Whether both are the same piece of memory, and so the same events.
fn is_same(one: &Bytes, other: &Bytes) -> bool {
    one.as_ptr() == other.as_ptr() && one.len() == other.len()
}

/// Queues a batch for a connection in the form it takes: all of it, or none.
#[inline]
pub(super) fn queue(
    (conn, connection): (ConnKey, &mut Connection),
    (lane, bytes_max): (Lane, usize),
    delivery: Delivery<'_>,
    variants: &mut Variants<'_>,
) -> Result<(), Full> {
    match connection.outbox.protocol() {
        Protocol::Native if connection.outbox.deflate_bits() == 0 => {
            connection.outbox.push_events(delivery.0, lane, bytes_max)
        }
        Protocol::Native => queue_deflated((conn, connection), (lane, bytes_max), delivery, variants),
        Protocol::Variant(variant) => queue_form((variant, connection), (lane, bytes_max), delivery, variants),
        Protocol::Stream => queue_stream(connection, bytes_max, delivery, variants),
        Protocol::SocketIo | Protocol::Polling => {
            queue_socketio((conn, connection), (lane, bytes_max), delivery, variants)
        }
    }
}

fn queue_form(
    (variant, connection): (Variant, &mut Connection),
    (lane, bytes_max): (Lane, usize),
    (frames, room, batch): Delivery<'_>,
    variants: &mut Variants<'_>,
) -> Result<(), Full> {
    let mut form = NativeForm { variant, changes: 0, after_seq: 0 };
    if let Some(deltas) = batch.deltas()
        && let Some(after_seq) = connection.has_all_after(room, batch)
    {
        deltas.note_used();
        // Whoever is left out of an event gets what is left as it is.
        if is_same(frames, &batch.bytes) {
            form = NativeForm { changes: deltas.count_after(after_seq), after_seq, ..form };
        }
    }
    let events = variants.for_form(form, frames, batch)?;
    connection.outbox.push_events(&events, lane, bytes_max)
}

fn queue_deflated(
    (conn, connection): (ConnKey, &mut Connection),
    (lane, bytes_max): (Lane, usize),
    (frames, _, batch): Delivery<'_>,
    variants: &mut Variants<'_>,
) -> Result<(), Full> {
    let events = variants.deflated(connection.outbox.deflate_bits(), None, conn, frames, batch)?;
    connection.outbox.push_events(&events, lane, bytes_max)
}

fn queue_stream(
    connection: &mut Connection,
    bytes_max: usize,
    (_, room, batch): Delivery<'_>,
    variants: &mut Variants<'_>,
) -> Result<(), Full> {
    let Connection { outbox, phase, .. } = connection;
    let Phase::Open(client) = phase else { return Ok(()) };
    let Some(stream) = client.stream_mut() else { return Ok(()) };
    // Nobody who only reads is left out of an event.
    let events = variants.for_stream(stream, room, batch)?;
    outbox.push_events(&events, Lane::Ordinary, bytes_max)?;
    if let Some(event) = batch.events.last() {
        stream.reached(room, event.seq, None);
    }
    Ok(())
}

fn queue_socketio(
    (conn, connection): (ConnKey, &mut Connection),
    (lane, bytes_max): (Lane, usize),
    (frames, room, batch): Delivery<'_>,
    variants: &mut Variants<'_>,
) -> Result<(), Full> {
    let spaces = connection.spaces_of(room);
    if spaces.is_empty() {
        return Ok(());
    }
    let form = Form { spaces, polls: connection.outbox.protocol() == Protocol::Polling };
    let events = match connection.outbox.deflate_bits() {
        0 => variants.for_socketio(form, conn, frames, batch)?,
        window_bits => variants.deflated(window_bits, Some(form), conn, frames, batch)?,
    };
    connection.outbox.push_events(&events, lane, bytes_max)
}

//! The ring of receive buffers that the shard shares with the kernel: one block of memory for all connections, touched
//! once at the start, so that an idle connection has no buffer at all.

use std::io;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;

use super::BufferId;

/// The only group of buffers in a ring.
pub(super) const GROUP: u16 = 1;

/// At any time a buffer belongs either to the kernel or to the shard; `lent` says which, so that a mistaken id ends in a
/// panic and never in two owners.
pub(super) struct Buffers {
    entries: Mapping,
    memory: Mapping,
    count: u16,
    buffer_bytes: u32,
    /// Where the next returned buffer goes; wraps.
    tail: u16,
    /// Bytes that the shard may touch, per buffer; 0 while the kernel has it.
    lent: Vec<u32>,
    lent_count: u16,
}

impl Buffers {
    /// `count` is a power of two up to 32 768.
    pub(super) fn new(submitter: &Submitter<'_>, count: u16, buffer_bytes: u32) -> io::Result<Buffers> {
        if !count.is_power_of_two() || count > 1 << 15 || buffer_bytes == 0 {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let entries = Mapping::new(usize::from(count) * size_of::<BufRingEntry>())?;
        let memory = Mapping::new(usize::from(count) * buffer_bytes as usize)?;
        // SAFETY: the entries are mapped for `count` of them, and are unmapped after the ring is gone (see `Uring`).
        unsafe { submitter.register_buf_ring_with_flags(entries.address.as_ptr() as u64, count, GROUP, 0)? };
        let mut buffers =
            Buffers { entries, memory, count, buffer_bytes, tail: 0, lent: vec![0; usize::from(count)], lent_count: 0 };
        (0..count).for_each(|id| buffers.append(id));
        buffers.publish();
        Ok(buffers)
    }

    /// The kernel filled `bytes` of this buffer: it is the shard's now.
    #[inline]
    pub(super) fn lend(&mut self, id: u16, bytes: u32) {
        debug_assert!(bytes <= self.buffer_bytes && self.lent[usize::from(id)] == 0);
        self.lent[usize::from(id)] = bytes.min(self.buffer_bytes);
        self.lent_count += 1;
    }

    /// The filled part of a lent buffer.
    #[inline]
    pub(super) fn bytes(&mut self, id: BufferId, bytes: u32) -> &mut [u8] {
        assert!(bytes <= self.lent[usize::from(id.0)], "a buffer is read that the kernel owns");
        // SAFETY: the buffer lies within the mapping, whose pages are initialised (zeroed) memory; it is lent, so the kernel
        // does not touch it until it is appended again, which needs `&mut self`.
        unsafe { std::slice::from_raw_parts_mut(self.address(id.0), bytes as usize) }
    }

    /// Hands a lent buffer back to the kernel.
    #[inline]
    pub(super) fn release(&mut self, id: BufferId) {
        let lent = &mut self.lent[usize::from(id.0)];
        assert!(*lent != 0, "a buffer is released twice");
        *lent = 0;
        self.lent_count -= 1;
        self.append(id.0);
        self.publish();
    }

    /// Hands back a buffer that was never lent (its connection is gone).
    pub(super) fn give_back(&mut self, id: u16) {
        debug_assert!(self.lent[usize::from(id)] == 0);
        self.append(id);
        self.publish();
    }

    /// How many the kernel has, once all completions were taken.
    pub(super) fn free(&self) -> u16 {
        self.count - self.lent_count
    }

    #[inline]
    fn append(&mut self, id: u16) {
        let address = self.address(id) as u64;
        let index = usize::from(self.tail & (self.count - 1));
        // SAFETY: the index is below `count`, for which the mapping has room; the kernel reads entries below the published
        // tail only, and this one is not published yet.
        let entry = unsafe { &mut *self.entries.address.cast::<BufRingEntry>().as_ptr().add(index) };
        entry.set_addr(address);
        entry.set_len(self.buffer_bytes);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
    }

    #[inline]
    fn publish(&mut self) {
        // SAFETY: the tail lies within the first entry of the mapping, is aligned for a u16, and is written here only.
        let tail = unsafe {
            let tail = BufRingEntry::tail(self.entries.address.cast::<BufRingEntry>().as_ptr());
            AtomicU16::from_ptr(tail.cast_mut())
        };
        tail.store(self.tail, Ordering::Release);
    }

    #[inline]
    fn address(&self, id: u16) -> *mut u8 {
        assert!(id < self.count);
        // SAFETY: the id is below `count`, so the result lies within the mapping.
        unsafe { self.memory.address.as_ptr().add(usize::from(id) * self.buffer_bytes as usize) }
    }
}

/// Anonymous pages, present from the start.
struct Mapping {
    address: NonNull<u8>,
    bytes: usize,
}

impl Mapping {
    fn new(bytes: usize) -> io::Result<Mapping> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        // SAFETY: a fresh anonymous mapping; the result is checked.
        let address = unsafe { libc::mmap(ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        match NonNull::new(address.cast::<u8>()) {
            Some(address) => Ok(Mapping { address, bytes }),
            None => Err(io::Error::from_raw_os_error(libc::ENOMEM)),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the address and length are those of `mmap`; nothing borrows from the mapping any more.
        let result = unsafe { libc::munmap(self.address.as_ptr().cast(), self.bytes) };
        debug_assert_eq!(result, 0);
    }
}

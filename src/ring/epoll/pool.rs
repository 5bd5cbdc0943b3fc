//! Receive buffers: one block of memory for all connections of a shard, lent one by one. The last one that came back goes
//! out first, so that few are touched, and those are in the processor's cache.

use std::io;

use super::super::BufferId;

/// A buffer belongs either to the pool or to the shard; `lent` says which, so that a mistaken id ends in a panic and never
/// in two owners.
pub(super) struct Pool {
    memory: Vec<u8>,
    buffer_bytes: usize,
    free: Vec<u16>,
    /// Bytes that the shard may touch, per buffer; 0 for those that are free.
    lent: Vec<u32>,
}

impl Pool {
    /// `count` is a power of two up to 32 768, as it has to be for a ring of buffers.
    pub(super) fn new(count: u16, buffer_bytes: u32) -> io::Result<Pool> {
        if !count.is_power_of_two() || count > 1 << 15 || buffer_bytes == 0 {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let (buffers, buffer_bytes) = (usize::from(count), buffer_bytes as usize);
        Ok(Pool {
            memory: vec![0; buffers * buffer_bytes],
            buffer_bytes,
            free: (0..count).rev().collect(),
            lent: vec![0; buffers],
        })
    }

    /// Whether none is left.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.free.is_empty()
    }

    /// Size of each.
    #[inline]
    pub(super) fn buffer_bytes(&self) -> usize {
        self.buffer_bytes
    }

    /// The buffer that is lent next, to be filled; none if all are.
    #[inline]
    pub(super) fn next(&mut self) -> Option<&mut [u8]> {
        let start = usize::from(*self.free.last()?) * self.buffer_bytes;
        self.memory.get_mut(start..start + self.buffer_bytes)
    }

    /// Lends the buffer of [`Pool::next`], of which the first `bytes` are filled.
    #[inline]
    pub(super) fn lend(&mut self, bytes: usize) -> Option<BufferId> {
        debug_assert!(bytes > 0 && bytes <= self.buffer_bytes);
        let id = self.free.pop()?;
        self.lent[usize::from(id)] = bytes as u32;
        Some(BufferId(id))
    }

    /// The filled part of a lent buffer.
    #[inline]
    pub(super) fn bytes(&mut self, id: BufferId, bytes: u32) -> &mut [u8] {
        assert!(bytes <= self.lent[usize::from(id.0)], "a buffer is read that is not lent");
        let start = usize::from(id.0) * self.buffer_bytes;
        &mut self.memory[start..start + bytes as usize]
    }

    /// Takes a lent buffer back.
    #[inline]
    pub(super) fn release(&mut self, id: BufferId) {
        let lent = &mut self.lent[usize::from(id.0)];
        assert!(*lent != 0, "a buffer is released twice");
        *lent = 0;
        self.free.push(id.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_buffer_is_lent_once_and_comes_back() {
        let mut pool = Pool::new(2, 8).unwrap();
        pool.next().unwrap()[..3].copy_from_slice(b"one");
        let first = pool.lend(3).unwrap();
        pool.next().unwrap()[..3].copy_from_slice(b"two");
        let second = pool.lend(3).unwrap();
        assert!(pool.is_empty() && pool.next().is_none() && pool.lend(1).is_none());
        assert_eq!((pool.bytes(first, 3).to_vec(), pool.bytes(second, 3).to_vec()), (b"one".into(), b"two".into()));
        pool.release(first);
        assert_eq!(pool.lend(1), Some(first), "the last one that came back goes out first");
    }

    #[test]
    #[should_panic(expected = "not lent")]
    fn more_than_was_received_is_not_to_be_had() {
        let mut pool = Pool::new(1, 8).unwrap();
        let id = pool.lend(3).unwrap();
        pool.bytes(id, 4);
    }

    #[test]
    #[should_panic(expected = "released twice")]
    fn a_buffer_that_is_released_twice_panics() {
        let mut pool = Pool::new(1, 8).unwrap();
        let id = pool.lend(1).unwrap();
        pool.release(id);
        pool.release(id);
    }
}

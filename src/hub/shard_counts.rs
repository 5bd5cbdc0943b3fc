//! How many members a room has on which shards, as its home counts them.

use super::name::ShardId;

/// Members by shard. Most rooms are those of one session or one user and have theirs on one shard: that takes no memory of
/// its own, however many shards there are.
#[derive(Debug)]
pub enum ShardCounts {
    /// All are on that shard; which one it is means nothing where there are none.
    OnOne {
        /// The shard.
        shard: ShardId,
        /// How many.
        count: u32,
    },
    /// Some were on different shards at a time; from shard 0 on.
    OnMany(Box<[u32]>),
}

impl Default for ShardCounts {
    fn default() -> ShardCounts {
        ShardCounts::OnOne { shard: ShardId(0), count: 0 }
    }
}

impl ShardCounts {
    /// Counts one more on a shard, of `shards`.
    pub fn add(&mut self, shard: ShardId, shards: u16) {
        if let ShardCounts::OnOne { shard: only, count } = self {
            if *only == shard || *count == 0 {
                (*only, *count) = (shard, *count + 1);
                return;
            }
            let by_shard = (0..shards).map(|one| if one == only.0 { *count } else { 0 });
            *self = ShardCounts::OnMany(by_shard.collect());
        }
        if let Some(count) = self.count_mut(shard) {
            *count += 1;
        }
    }

    /// Counts one less on a shard. False where none was counted there.
    pub fn remove(&mut self, shard: ShardId) -> bool {
        match self.count_mut(shard) {
            Some(count) if *count > 0 => {
                *count -= 1;
                true
            }
            _ => false,
        }
    }

    /// Members on all shards.
    pub fn total(&self) -> u32 {
        match self {
            ShardCounts::OnOne { count, .. } => *count,
            ShardCounts::OnMany(counts) => counts.iter().sum(),
        }
    }

    /// The shards that have members.
    pub fn shards(&self) -> impl Iterator<Item = ShardId> {
        let (only, many) = match self {
            ShardCounts::OnOne { shard, count } => ((*count > 0).then_some(*shard), &[][..]),
            ShardCounts::OnMany(counts) => (None, &counts[..]),
        };
        let among_many = many.iter().enumerate().filter(|(_, count)| **count > 0);
        only.into_iter().chain(among_many.map(|(shard, _)| ShardId(shard as u16)))
    }

    fn count_mut(&mut self, shard: ShardId) -> Option<&mut u32> {
        match self {
            ShardCounts::OnOne { shard: only, count } => (*only == shard).then_some(count),
            ShardCounts::OnMany(counts) => counts.get_mut(usize::from(shard.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shards(counts: &ShardCounts) -> Vec<u16> {
        counts.shards().map(|shard| shard.0).collect()
    }

    #[test]
    fn members_on_one_shard_take_no_memory_of_their_own() {
        assert!(size_of::<ShardCounts>() <= 16);
        let mut counts = ShardCounts::default();
        assert_eq!((counts.total(), shards(&counts)), (0, vec![]));
        for shard in [3, 5] {
            counts.add(ShardId(shard), 8);
            counts.add(ShardId(shard), 8);
            assert!(matches!(counts, ShardCounts::OnOne { count: 2, .. }));
            assert_eq!(shards(&counts), [shard]);
            assert!(!counts.remove(ShardId(shard + 1)), "none was counted there");
            assert!(counts.remove(ShardId(shard)) && counts.remove(ShardId(shard)));
            assert!(!counts.remove(ShardId(shard)), "there are none left");
            assert_eq!((counts.total(), shards(&counts)), (0, vec![]));
        }
    }

    #[test]
    fn members_on_many_shards_are_counted_on_each() {
        let mut counts = ShardCounts::default();
        for shard in [2, 2, 0, 1, 2] {
            counts.add(ShardId(shard), 3);
        }
        assert_eq!((counts.total(), shards(&counts)), (5, vec![0, 1, 2]));
        assert!(counts.remove(ShardId(1)));
        assert!(!counts.remove(ShardId(1)));
        assert_eq!((counts.total(), shards(&counts)), (4, vec![0, 2]));
        counts.add(ShardId(9), 3);
        assert_eq!(counts.total(), 4, "there is no such shard");
    }
}

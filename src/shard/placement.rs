//! Which processor each shard has, and which one the control plane.
//!
//! Shards that are next to each other in number get cores that are next to each other: first one thread of every physical
//! core, NUMA node by NUMA node, then the second threads. Two shards on one physical core slow each other down, and batches
//! between two nodes go through the slower of the machine's memories, so that a hub with few shards stays on one node.

use std::collections::HashMap;

use glommio::CpuSet;

/// Processors by their numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placement {
    /// In the order in which shards take them; empty where the machine doesn't tell.
    pub shards: Vec<usize>,
    /// The control plane's; none leaves it to the kernel.
    pub control: Option<usize>,
}

/// Where in the machine a processor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Location {
    node: usize,
    package: usize,
    core: usize,
    cpu: usize,
}

impl Placement {
    /// That of this process on this machine. `control_core` keeps a core for the control plane.
    pub fn here(control_core: bool) -> Placement {
        let Ok(allowed) = rustix::thread::sched_getaffinity(None) else { return Placement::default() };
        match CpuSet::online() {
            Ok(online) => {
                let location = |at: glommio::CpuLocation| Location {
                    node: at.numa_node,
                    package: at.package,
                    core: at.core,
                    cpu: at.cpu,
                };
                let usable = online.into_iter().map(location).filter(|at| allowed.is_set(at.cpu)).collect();
                Placement::of(usable, control_core)
            }
            Err(error) => {
                tracing::debug!(%error, "the processors' topology is not known");
                Placement::default()
            }
        }
    }

    fn of(mut locations: Vec<Location>, control_core: bool) -> Placement {
        locations.sort_unstable();
        let mut threads: HashMap<(usize, usize), usize> = HashMap::new();
        let mut ordered: Vec<(usize, Location)> = Vec::new();
        for at in locations {
            let thread = threads.entry((at.package, at.core)).or_default();
            ordered.push((*thread, at));
            *thread += 1;
        }
        ordered.sort_by_key(|(thread, at)| (*thread, *at));
        // The last physical core, since shards begin with the first.
        let kept = ordered.iter().rev().find(|(thread, _)| *thread == 0).map(|(_, at)| *at);
        let Some(kept) = kept.filter(|_| control_core && ordered.len() > 1) else {
            return Placement { shards: ordered.into_iter().map(|(_, at)| at.cpu).collect(), control: None };
        };
        ordered.retain(|(_, at)| at.cpu != kept.cpu);
        // Its other threads are taken last: only by a hub with as many shards as that.
        ordered.sort_by_key(|(thread, at)| ((at.package, at.core) == (kept.package, kept.core), *thread, *at));
        Placement { shards: ordered.into_iter().map(|(_, at)| at.cpu).collect(), control: Some(kept.cpu) }
    }

    /// The processors that `count` shards use.
    pub fn used(&self, count: usize) -> &[usize] {
        self.shards.get(..count).unwrap_or(&self.shards)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two NUMA nodes of two cores with two threads each, numbered as Linux does: second threads after all first ones.
    fn machine() -> Vec<Location> {
        (0..8).rev().map(|cpu| Location { node: cpu % 4 / 2, package: cpu % 4 / 2, core: cpu % 4, cpu }).collect()
    }

    #[test]
    fn every_core_gets_a_shard_before_any_gets_two() {
        let placement = Placement::of(machine(), false);
        assert_eq!(placement.shards, [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!((placement.control, placement.used(2)), (None, &[0, 1][..]));
        assert_eq!(placement.used(99).len(), 8);
    }

    #[test]
    fn threads_that_are_numbered_side_by_side_are_told_apart() {
        let side_by_side =
            (0..8).map(|cpu| Location { node: cpu / 4, package: cpu / 4, core: cpu / 2 % 2, cpu }).collect();
        assert_eq!(Placement::of(side_by_side, false).shards, [0, 2, 4, 6, 1, 3, 5, 7]);
    }

    #[test]
    fn nodes_are_filled_one_after_the_other() {
        let interleaved = (0..8).map(|cpu| Location { node: cpu % 2, package: cpu % 2, core: cpu, cpu }).collect();
        assert_eq!(Placement::of(interleaved, false).shards, [0, 2, 4, 6, 1, 3, 5, 7]);
    }

    #[test]
    fn the_control_planes_core_is_the_last_and_its_other_thread_is_taken_last() {
        let placement = Placement::of(machine(), true);
        assert_eq!(placement.control, Some(3));
        assert_eq!(placement.shards, [0, 1, 2, 4, 5, 6, 7]);
        assert_eq!(placement.shards.last(), Some(&7), "the other thread of core 3");
    }

    #[test]
    fn a_machine_with_one_processor_keeps_it_for_its_shard() {
        let one = vec![Location { node: 0, package: 0, core: 0, cpu: 5 }];
        assert_eq!(Placement::of(one, true), Placement { shards: vec![5], control: None });
        assert_eq!(Placement::of(Vec::new(), true), Placement::default());
    }

    #[test]
    fn this_machine_has_a_processor_for_a_shard() {
        let placement = Placement::here(false);
        let allowed = rustix::thread::sched_getaffinity(None).expect("allowed");
        assert!(!placement.shards.is_empty() && placement.shards.iter().all(|cpu| allowed.is_set(*cpu)));
    }
}

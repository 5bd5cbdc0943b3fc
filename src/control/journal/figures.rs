//! What the journal counts.

use serde::Serialize;

use super::super::figures::Figure;

macro_rules! journal_figures {
    ($($field:ident: $kind:ident $name:literal $help:literal;)*) => {
        /// The journal's counters; its thread is their only writer.
        #[derive(Debug, Default)]
        pub struct JournalFigures {
            $(#[doc = $help] pub $field: Figure,)*
        }

        impl JournalFigures {
            /// All values at this moment.
            pub fn read(&self) -> JournalSnapshot {
                JournalSnapshot { $($field: self.$field.value(),)* }
            }
        }

        /// What the journal had counted at some moment.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
        pub struct JournalSnapshot {
            $(#[doc = $help] pub $field: u64,)*
        }

        impl JournalSnapshot {
            /// Every figure: its name (with `_total` for those that only grow), its meaning, whether it only grows, its value.
            pub fn list(&self) -> impl Iterator<Item = (&'static str, &'static str, bool, u64)> {
                [$(($name, $help, stringify!($kind) == "Counter", self.$field),)*].into_iter()
            }
        }
    };
}

journal_figures! {
    up: Gauge "journal_up" "1 while the journal takes events, 0 after a failure until it could be written again";
    files: Gauge "journal_files" "Files of the journal";
    bytes: Gauge "journal_bytes" "Bytes of all files of the journal";
    live_bytes: Gauge "journal_live_bytes" "Bytes of the journal that rooms still need";
    batches: Counter "journal_batches" "Batches of events written to the journal";
    written_bytes: Counter "journal_written_bytes" "Bytes written to the journal";
    writes: Counter "journal_writes" "Writes to the journal, each of all that waited";
    syncs: Counter "journal_syncs" "Times that the journal had the disk take what was written";
    sync_us: Counter "journal_sync_microseconds" "Time that those took in all";
    sync_us_max: Gauge "journal_sync_microseconds_max" "Time that the slowest of those took";
    failures: Counter "journal_failures" "Times that the journal could not be written";
    refused: Counter "journal_lost_batches" "Batches that were refused because the journal could not be written";
    moved_bytes: Counter "journal_moved_bytes" "Bytes that were moved to a newer file so that an older one could go";
    cut_bytes: Counter "journal_cut_bytes" "Bytes at the end of the journal that were cut off at start";
    damaged: Counter "journal_damaged" "Places in the journal that could not be read at start";
}

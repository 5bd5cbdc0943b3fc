//! What a shard does with the journal: hands over what durable rooms have for it, and looks how far it is.

use super::state::State;

impl State {
    /// Takes in how far the journal is; what it has goes on its way to members and publishers.
    pub fn look_at_journal(&mut self) {
        if let Some(journal) = &self.journal {
            let progress = journal.progress(self.me);
            self.core.journaled(progress);
            self.drain_local();
        }
    }

    /// Hands over what this turn has for the journal; keeps it where too much waits there already.
    pub fn send_to_journal(&mut self) {
        let Some(journal) = &self.journal else { return };
        let Some(out) = self.core.journal_out().filter(|out| !out.is_empty()) else { return };
        if let Err(entries) = journal.push(self.me, std::mem::take(out)) {
            *out = entries;
            self.has_backlog = true;
        }
    }
}

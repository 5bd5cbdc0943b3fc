//! What a shard does with the broker: hands over what its homes have for it, and takes in what it tells them.

use super::state::State;

/// Batches of the broker taken in one turn; where there are more the next turn comes at once.
const BATCHES_PER_TURN: usize = 64;

impl State {
    /// Takes in what the broker told the homes of this shard.
    pub fn look_at_broker(&mut self) {
        let Some(broker) = self.broker.clone() else { return };
        self.core.set_now(self.now);
        for _ in 0..BATCHES_PER_TURN {
            let Some(batch) = broker.take(self.me) else { return };
            for told in batch {
                self.core.brokered(told);
            }
            self.drain_local();
        }
    }

    /// Hands over what this turn has for the broker; keeps it where too much waits there already.
    pub fn send_to_broker(&mut self) {
        if let Some(nodes) = &self.nodes {
            for (room, session, told, presenting) in self.core.take_presence() {
                nodes.present(room.as_str(), &session, told, presenting);
            }
            for (room, noted, is_held) in self.core.take_noted_locks() {
                nodes.hold(room.as_str(), &noted, is_held);
            }
        }
        let Some(broker) = &self.broker else { return };
        let Some(out) = self.core.broker_out().filter(|out| !out.is_empty()) else { return };
        if let Err(messages) = broker.push(self.me, std::mem::take(out)) {
            *out = messages;
            self.has_backlog = true;
        }
    }
}

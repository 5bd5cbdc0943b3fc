//! What a subscriber comes back to after its connection has gone.

use super::failure::Failure;
use super::message::{self, Detail, Since};
use super::sequence::SeqTracker;
use super::tally::Reconnects;

/// A session of the hub.
#[derive(Debug)]
pub(crate) struct Session {
    id: String,
    token: String,
    /// The life of the room's log.
    pub(crate) epoch: Option<String>,
    /// Since when its connection is gone; none while it has one.
    pub(crate) away_ns: Option<u64>,
}

impl Session {
    /// The session that a greeting gives.
    pub(crate) fn new(greeting: Detail) -> Result<Session, Failure> {
        match (greeting.session_id, greeting.resume) {
            (Some(id), Some(proof)) => Ok(Session { id, token: proof.token, epoch: None, away_ns: None }),
            _ => Err(Failure::Protocol("a greeting without a session to be resumed".into())),
        }
    }

    /// The command that takes it up, after the last event that came.
    pub(crate) fn resume(&self, room: &str, last: Option<u64>) -> String {
        let since = Since::Seq { seq: last.unwrap_or(0), epoch: self.epoch.clone() };
        message::resume("r", &self.id, &self.token, room, &since)
    }

    /// The answer to that command.
    pub(crate) fn resumed(
        &mut self,
        room: &str,
        answer: Detail,
        now_ns: u64,
        seq: &mut SeqTracker,
        tally: &mut Reconnects,
    ) -> Result<(), Failure> {
        if let Some(proof) = answer.resume {
            self.token = proof.token;
        }
        let result = answer.results.into_iter().find(|result| result.room.as_deref() == Some(room));
        let Some(result) = result else {
            return Err(Failure::Protocol(format!("the answer to resume says nothing of {room}")));
        };
        if let Some(error) = result.error {
            return Err(error.failure());
        }
        let replayed = result.replayed.unwrap_or(0);
        tally.replayed += replayed;
        let is_same = result.epoch == self.epoch;
        if !is_same {
            // Numbered anew: what the former one still had is lost, and can't be counted.
            seq.begin(result.seq.unwrap_or(0).saturating_sub(replayed));
            self.epoch = result.epoch;
        }
        if !is_same || result.recovered != Some(true) {
            tally.unrecovered += 1;
        }
        tally.resumed += 1;
        tally.away.record(now_ns.saturating_sub(self.away_ns.take().unwrap_or(now_ns)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detail(text: &str) -> Detail {
        serde_json::from_str(text).unwrap()
    }

    fn session() -> Session {
        let greeting = detail(r#"{"session_id":"s","resume":{"token":"t","window_s":120}}"#);
        Session { epoch: Some("e".into()), away_ns: Some(1_000), ..Session::new(greeting).unwrap() }
    }

    fn resumed(session: &mut Session, result: &str) -> (Result<(), Failure>, Reconnects) {
        let answer = detail(&format!(r#"{{"session_id":"s","resume":{{"token":"u"}},"results":[{result}]}}"#));
        let mut tally = Reconnects::default();
        let mut seq = SeqTracker::default();
        (session.resumed("project:a", answer, 3_000, &mut seq, &mut tally), tally)
    }

    #[test]
    fn a_session_is_taken_up_after_the_last_event_that_came() {
        let command = session().resume("project:a", Some(7));
        let cursors = r#""cursors":{"project:a":{"seq":7,"epoch":"e"}}"#;
        assert_eq!(
            command,
            format!(r#"{{"type":"resume","id":"r","data":{{"session_id":"s","token":"t",{cursors}}}}}"#)
        );
        assert!(Session::new(detail("{}")).is_err());
    }

    #[test]
    fn what_the_hub_could_not_recover_is_counted() {
        let mut session = session();
        let result = r#"{"room":"project:a","seq":9,"epoch":"e","recovered":true,"replayed":2,"missed":0}"#;
        let (outcome, tally) = resumed(&mut session, result);
        assert_eq!((outcome, tally.resumed, tally.replayed, tally.unrecovered), (Ok(()), 1, 2, 0));
        assert_eq!((session.token.as_str(), session.away_ns), ("u", None));
        let (_, tally) = resumed(&mut session, &result.replace("true", "false"));
        assert_eq!(tally.unrecovered, 1);
        let (_, tally) = resumed(&mut session, &result.replace(r#""e""#, r#""f""#));
        assert_eq!((tally.unrecovered, session.epoch.as_deref()), (1, Some("f")));
    }

    #[test]
    fn a_room_that_is_refused_or_forgotten_is_a_failure() {
        let refused = r#"{"room":"project:a","error":{"code":"forbidden","message":"no"}}"#;
        assert!(matches!(resumed(&mut session(), refused).0, Err(Failure::Command { .. })));
        assert!(matches!(resumed(&mut session(), r#"{"room":"global"}"#).0, Err(Failure::Protocol(_))));
    }
}

//! Whether answers over a connection that is subscribed are those to what was asked. Pure.
//!
//! A server that ends a subscription by itself says it in the form of an answer. Where something was asked that is not
//! answered yet, the library takes it for the answer to that, and each answer after it for the one to the next question,
//! until nothing is asked any more and one is left over. So nothing more is asked then until all is answered, and a moment
//! longer, in which what is left over comes.

/// How long nothing is asked after all was answered.
const REST_MS: u64 = 20;

/// How often in a row that may be of no use.
const IN_A_ROW_MAX: u32 = 4;

/// What was asked over a connection.
#[derive(Debug, Default)]
pub struct Answers {
    /// Questions that are not answered.
    asked: usize,
    is_mixed_up: bool,
    /// Nothing is asked before.
    resumes_ms: u64,
    /// How often a wrong answer came though it should not have, since the last right one.
    in_a_row: u32,
}

impl Answers {
    /// Whether something may be asked.
    pub fn may_ask(&self, now_ms: u64) -> bool {
        !self.is_mixed_up && self.resumes_ms <= now_ms
    }

    /// Something is asked.
    pub fn ask(&mut self) {
        self.asked += 1;
    }

    /// Something was answered, with whatever.
    pub fn answered(&mut self, now_ms: u64) {
        self.asked = self.asked.saturating_sub(1);
        if self.asked == 0 && std::mem::take(&mut self.is_mixed_up) {
            self.resumes_ms = now_ms + REST_MS;
        }
    }

    /// Something came that may have been taken for an answer.
    pub fn mix_up(&mut self) {
        self.is_mixed_up |= self.asked > 0;
    }

    /// What knows its own answer got it.
    pub fn is_right(&mut self) {
        self.in_a_row = 0;
    }

    /// It got another, which is not counted as answered yet. Whether there is still hope.
    pub fn is_wrong(&mut self) -> bool {
        if !std::mem::replace(&mut self.is_mixed_up, true) {
            self.in_a_row += 1;
        }
        self.in_a_row <= IN_A_ROW_MAX
    }

    /// When something may be asked again, where that is a matter of time.
    pub fn next_ms(&self, now_ms: u64) -> Option<u64> {
        (self.resumes_ms > now_ms).then_some(self.resumes_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_asked_after_a_mix_up_until_all_is_answered_and_a_moment_longer() {
        let mut answers = Answers::default();
        answers.mix_up();
        assert!(answers.may_ask(0), "nothing was asked: it was taken for no answer");
        answers.ask();
        answers.ask();
        assert!(answers.may_ask(0));
        answers.mix_up();
        assert!(!answers.may_ask(1) && answers.next_ms(1).is_none());
        assert!(answers.is_wrong());
        answers.answered(1);
        assert!(!answers.may_ask(1));
        answers.answered(5);
        assert!(!answers.may_ask(5));
        assert_eq!(answers.next_ms(5), Some(5 + REST_MS));
        assert!(answers.may_ask(5 + REST_MS) && answers.next_ms(5 + REST_MS).is_none());
        answers.answered(6);
    }

    #[test]
    fn where_that_does_not_help_there_is_no_hope() {
        let mut answers = Answers::default();
        let wrong = |answers: &mut Answers| {
            answers.ask();
            answers.ask();
            let is_hopeful = answers.is_wrong();
            assert_eq!(answers.is_wrong(), is_hopeful, "another of the same mix-up");
            answers.answered(0);
            answers.answered(0);
            is_hopeful
        };
        assert!((0..IN_A_ROW_MAX).all(|_| wrong(&mut answers)));
        answers.is_right();
        assert!((0..IN_A_ROW_MAX).all(|_| wrong(&mut answers)));
        assert!(!wrong(&mut answers));
    }
}

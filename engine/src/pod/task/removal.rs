//! Whether something is to be removed, who waits for it, and when what could not be given
//! back is tried again.
//!
//! Does no work and answers nobody: the task does, and says here what came of it.

use tokio::task::AbortHandle;

use super::super::backoff::Backoff;
use super::reply::Reply;

/// How the removal of a container or a sandbox stands.
///
/// ```text
///          ask         begin
/// NotAsked ──▶ Asked ─────────▶ Runs      begin leads from NotAsked to Runs, too,
///    ▲           │ end            │ end   and end from Runs, be it done or failed
///    └───────────┴────────────────┘
/// ```
#[derive(Default)]
pub(super) enum Removal {
    #[default]
    NotAsked,
    /// It is removed as soon as nothing of it runs any more.
    Asked(Vec<Reply<()>>),
    /// The work runs, for those who wait: nobody if the task itself gives back what could
    /// not be made.
    Runs(Vec<Reply<()>>),
}

impl Removal {
    /// Somebody asks for it, and is answered with all others who wait.
    pub(super) fn ask(&mut self, reply: Reply<()>) {
        match self {
            Self::NotAsked => *self = Self::Asked(vec![reply]),
            Self::Asked(waiting) | Self::Runs(waiting) => waiting.push(reply),
        }
    }

    /// Whether somebody asked for it and it was not begun.
    pub(super) const fn is_asked(&self) -> bool {
        matches!(self, Self::Asked(_))
    }

    /// Whether the work runs.
    pub(super) const fn runs(&self) -> bool {
        matches!(self, Self::Runs(_))
    }

    /// The work begins.
    pub(super) fn begin(&mut self) {
        *self = Self::Runs(self.end());
    }

    /// The work has ended, whatever it came to, or is not done at all. Who asked is to be
    /// answered, and may ask again.
    pub(super) fn end(&mut self) -> Vec<Reply<()>> {
        match std::mem::take(self) {
            Self::NotAsked => Vec::new(),
            Self::Asked(waiting) | Self::Runs(waiting) => waiting,
        }
    }

    /// Who waits for it.
    pub(super) fn waiting(&self) -> &[Reply<()>] {
        match self {
            Self::NotAsked => &[],
            Self::Asked(waiting) | Self::Runs(waiting) => waiting,
        }
    }
}

/// Whether the parts of a sandbox that is Stopping are being given back.
#[derive(Default)]
pub(super) enum Teardown {
    /// It waits until all containers have ended.
    #[default]
    Waits,
    Runs,
    /// It failed: this timer has it tried again.
    Failed(AbortHandle),
}

impl Teardown {
    /// Whether the work runs.
    pub(super) const fn runs(&self) -> bool {
        matches!(self, Self::Runs)
    }

    /// Goes on to `next`; a timer that runs is not needed any more.
    pub(super) fn go_on(&mut self, next: Self) {
        if let Self::Failed(timer) = std::mem::replace(self, next) {
            timer.abort();
        }
    }
}

/// When something is tried again that failed, by one timer, however many ask: to give a
/// container back that could not be made, or to write what a disk did not take.
#[derive(Default)]
pub(super) struct Retry {
    pub(super) backoff: Backoff,
    timer: Option<AbortHandle>,
}

impl Retry {
    /// The timer of the next try takes the place of the one before.
    pub(super) fn arm(&mut self, timer: AbortHandle) {
        self.disarm();
        self.timer = Some(timer);
    }

    /// Whether a try is to come.
    pub(super) const fn is_armed(&self) -> bool {
        self.timer.is_some()
    }

    /// The try is made now, or is not needed any more.
    pub(super) fn disarm(&mut self) {
        if let Some(timer) = self.timer.take() {
            timer.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_at_any_time_is_answered_with_the_end() {
        let mut removal = Removal::default();
        assert!(!removal.is_asked() && !removal.runs());
        assert!(removal.end().is_empty());
        removal.ask(Reply::channel().0);
        assert!(removal.is_asked() && !removal.runs());
        removal.ask(Reply::channel().0);
        removal.begin();
        assert!(!removal.is_asked() && removal.runs());
        removal.ask(Reply::channel().0);
        assert!(removal.runs());
        assert_eq!(removal.waiting().len(), 3);
        assert_eq!(removal.end().len(), 3);
        assert!(!removal.is_asked() && !removal.runs());
    }

    #[test]
    fn one_that_nobody_asked_for_can_run() {
        let mut removal = Removal::default();
        removal.begin();
        assert!(removal.runs() && removal.waiting().is_empty());
        assert!(removal.end().is_empty());
        assert!(!removal.runs());
    }

    #[tokio::test]
    async fn a_try_ends_the_timer_of_the_next_one() {
        let timer = || tokio::spawn(std::future::pending::<()>());
        let (first, second) = (timer(), timer());
        let mut teardown = Teardown::default();
        teardown.go_on(Teardown::Failed(first.abort_handle()));
        teardown.go_on(Teardown::Failed(second.abort_handle()));
        assert!(first.await.is_err_and(|error| error.is_cancelled()));
        assert!(!second.is_finished() && !teardown.runs());
        teardown.go_on(Teardown::Runs);
        assert!(second.await.is_err_and(|error| error.is_cancelled()));
        assert!(teardown.runs());
    }
}

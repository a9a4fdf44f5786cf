//! The ways back to those who asked a pod's task, and to the steps of their calls.

use std::sync::Arc;

use runtime::client::steps::Steps;
use tokio::sync::oneshot;

use super::super::error::{PodError, SharedError};

/// Where an answer goes. That nobody listens any more is no error.
pub(crate) struct Reply<T> {
    sender: oneshot::Sender<Result<T, SharedError>>,
    /// The steps of the call that waits for it.
    pub(super) steps: Option<Steps>,
}

/// Where an answer arrives.
pub(crate) type Answer<T> = oneshot::Receiver<Result<T, SharedError>>;

impl<T> Reply<T> {
    /// For the call whose work this is.
    pub(crate) fn channel() -> (Self, Answer<T>) {
        let (sender, answer) = oneshot::channel();
        let steps = Steps::current();
        (Self { sender, steps }, answer)
    }

    /// Answers.
    pub(crate) fn answer(self, result: Result<T, PodError>) {
        self.send(result.map_err(Arc::new));
    }

    pub(super) fn send(self, result: Result<T, SharedError>) {
        // Who does not listen any more has gone away.
        drop(self.sender.send(result));
    }
}

/// The steps of the first call that waits.
pub(super) fn steps_of<T>(waiting: &[Reply<T>]) -> Option<Steps> {
    waiting.iter().find_map(|reply| reply.steps.clone())
}

/// Answers everyone who waits for the same thing.
pub(super) fn answer<T: Clone>(waiting: &mut Vec<Reply<T>>, result: &Result<T, SharedError>) {
    for reply in waiting.drain(..) {
        reply.send(result.clone());
    }
}

/// Answers one.
pub(super) fn respond<T>(reply: Reply<T>, result: Result<T, PodError>) {
    reply.answer(result);
}

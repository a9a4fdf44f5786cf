//! Reply channels of a pod's task, with the steps (`slipway trace`) of the calls that wait at
//! them.
//!
//! Owns the order: an answer is sent only after the views that lists read say the same.

use std::sync::Arc;

use runtime::client::steps::Steps;
use tokio::sync::oneshot;

use super::super::error::{PodError, SharedError};
use crate::ids::{ContainerId, PodId};

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

/// Answers of a pod's task, which are sent once lists say what they tell: who asks next
/// must see what he was told.
#[derive(Default)]
pub(super) struct Answers(Vec<Pending>);

/// An answer and its way.
pub(super) enum Pending {
    Unit(Reply<()>, Result<(), SharedError>),
    Pod(Reply<PodId>, Result<PodId, SharedError>),
    Container(Reply<ContainerId>, Result<ContainerId, SharedError>),
}

/// What an answer may tell.
pub(super) trait AnswerValue: Sized {
    /// Puts an answer with its way.
    fn pending(reply: Reply<Self>, result: Result<Self, SharedError>) -> Pending;
}

impl AnswerValue for () {
    fn pending(reply: Reply<Self>, result: Result<Self, SharedError>) -> Pending {
        Pending::Unit(reply, result)
    }
}

impl AnswerValue for PodId {
    fn pending(reply: Reply<Self>, result: Result<Self, SharedError>) -> Pending {
        Pending::Pod(reply, result)
    }
}

impl AnswerValue for ContainerId {
    fn pending(reply: Reply<Self>, result: Result<Self, SharedError>) -> Pending {
        Pending::Container(reply, result)
    }
}

impl Answers {
    /// For one.
    pub(super) fn one<T: AnswerValue>(&mut self, reply: Reply<T>, result: Result<T, PodError>) {
        self.0.push(T::pending(reply, result.map_err(Arc::new)));
    }

    /// For everyone who waits for the same thing.
    pub(super) fn all<T: AnswerValue + Clone>(
        &mut self,
        waiting: &mut Vec<Reply<T>>,
        result: &Result<T, SharedError>,
    ) {
        let pending = waiting
            .drain(..)
            .map(|reply| T::pending(reply, result.clone()));
        self.0.extend(pending);
    }

    /// Sends all of them.
    pub(super) fn send(&mut self) {
        for pending in self.0.drain(..) {
            match pending {
                Pending::Unit(reply, result) => reply.send(result),
                Pending::Pod(reply, result) => reply.send(result),
                Pending::Container(reply, result) => reply.send(result),
            }
        }
    }
}

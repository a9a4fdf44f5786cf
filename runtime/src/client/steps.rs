//! The step clock: what a call's work consists of and when each part ran.
//!
//! Owns a list of steps per call, on the monotonic clock that engine and monitor
//! share, so that steps of both line up. A call's [`Steps`] follow its work
//! through the tasks that enter them with [`Steps::follow`]; outside of any call a
//! mark costs one look and records nothing. Steps may overlap. A crash loses them.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};

use crate::protocol::{self, Envelope, monotonic_now};

/// The most steps that one call keeps; more is a defect, and dropped.
const MOST: usize = 256;

tokio::task_local! {
    static CURRENT: Steps;
}

/// Whose step it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The engine's.
    Engine,
    /// The pod's monitor's, or of a process that it made.
    Monitor,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Its name.
    pub name: Cow<'static, str>,
    /// Whose it is.
    pub place: Place,
    /// Monotonic nanoseconds.
    pub start: u64,
    /// Monotonic nanoseconds.
    pub end: u64,
    /// The step that it is a part of, by its place in the list.
    pub parent: Option<usize>,
}

/// The steps of one call.
#[derive(Debug, Clone, Default)]
pub struct Steps(Arc<Mutex<Vec<Step>>>);

impl Steps {
    /// Those of the call whose work this is.
    #[must_use]
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Clone::clone).ok()
    }

    /// Lets marks in this future belong to these steps.
    pub async fn follow<F: Future>(steps: Option<Self>, work: F) -> F::Output {
        match steps {
            Some(steps) => CURRENT.scope(steps, work).await,
            None => work.await,
        }
    }

    /// The same for work that does not wait.
    pub fn follow_sync<T>(steps: Option<Self>, work: impl FnOnce() -> T) -> T {
        match steps {
            Some(steps) => CURRENT.sync_scope(steps, work),
            None => work(),
        }
    }

    /// Begins a step that ends when the mark is dropped.
    pub fn mark(&self, name: &'static str) -> Mark {
        Mark(Some((self.clone(), name, monotonic_now())))
    }

    /// What was recorded so far.
    #[must_use]
    pub fn recorded(&self) -> Vec<Step> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Adds steps; the parents of all but the first are counted from the first.
    fn add(&self, steps: impl IntoIterator<Item = Step>) {
        let mut list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let first = list.len();
        for mut step in steps {
            if list.len() < MOST {
                step.parent = step.parent.map(|parent| parent + first);
                list.push(step);
            }
        }
    }
}

/// A step that runs.
#[must_use = "the step ends when this is dropped"]
#[derive(Debug)]
pub struct Mark(Option<(Steps, &'static str, u64)>);

impl Drop for Mark {
    fn drop(&mut self) {
        if let Some((steps, name, start)) = self.0.take() {
            steps.add([Step {
                name: Cow::Borrowed(name),
                place: Place::Engine,
                start,
                end: monotonic_now(),
                parent: None,
            }]);
        }
    }
}

/// Begins a step of the current call, if there is one.
pub fn mark(name: &'static str) -> Mark {
    let steps = Steps::current();
    Mark(steps.map(|steps| (steps, name, monotonic_now())))
}

/// Records a request to a monitor: the engine's wait, and in it the way there, the
/// monitor's own steps and the way back.
pub(super) fn answered(name: &'static str, sent_at: u64, arrived_at: u64, answer: &Envelope) {
    let Some(steps) = Steps::current() else {
        return;
    };
    let part = |name: Cow<'static, str>, start: u64, end: u64| Step {
        name,
        place: Place::Monitor,
        start,
        end: end.max(start),
        parent: Some(0),
    };
    let mut list = vec![Step {
        place: Place::Engine,
        parent: None,
        ..part(Cow::Borrowed(name), sent_at, arrived_at)
    }];
    if answer.received_at != 0 {
        let mut before = answer.received_at;
        list.push(part(Cow::Borrowed("way to the monitor"), sent_at, before));
        for protocol::Step { name, at } in &answer.steps {
            list.push(part(Cow::Owned(name.clone()), before, *at));
            before = before.max(*at);
        }
        list.push(part(Cow::Borrowed("finish"), before, answer.sent_at));
        let back = part(Cow::Borrowed("way back"), answer.sent_at, arrived_at);
        list.push(back);
    }
    steps.add(list);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn marks_follow_the_call_and_overlap() {
        let steps = Steps::default();
        let work = async {
            let _outer = mark("outer");
            let (first, second) = tokio::join!(async { drop(mark("first")) }, async {
                drop(mark("second"))
            });
            (first, second)
        };
        Steps::follow(Some(steps.clone()), work).await;
        drop(mark("of no call"));
        let names: Vec<_> = steps.recorded().into_iter().map(|step| step.name).collect();
        assert_eq!(names, ["first", "second", "outer"]);
        let recorded = steps.recorded();
        assert!(recorded[2].start <= recorded[0].start && recorded[2].end >= recorded[1].end);
    }

    #[test]
    fn a_monitors_steps_are_parts_of_the_engines_wait() {
        let steps = Steps::default();
        drop(steps.mark("before"));
        let step = |name: &str, at| protocol::Step {
            name: name.to_owned(),
            at,
        };
        let answer = Envelope {
            received_at: 110,
            sent_at: 180,
            steps: vec![step("cloned", 130), step("ready", 170)],
            ..Envelope::default()
        };
        Steps::follow_sync(Some(steps.clone()), || {
            answered("monitor create", 100, 200, &answer);
        });
        let recorded = steps.recorded();
        let lines: Vec<_> = recorded[1..]
            .iter()
            .map(|step| (&*step.name, step.start, step.end, step.parent))
            .collect();
        assert_eq!(
            lines,
            [
                ("monitor create", 100, 200, None),
                ("way to the monitor", 100, 110, Some(1)),
                ("cloned", 110, 130, Some(1)),
                ("ready", 130, 170, Some(1)),
                ("finish", 170, 180, Some(1)),
                ("way back", 180, 200, Some(1)),
            ]
        );
    }

    #[test]
    fn a_call_that_never_ends_keeps_a_bounded_list() {
        let steps = Steps::default();
        for _ in 0..2 * MOST {
            drop(steps.mark("again"));
        }
        assert_eq!(steps.recorded().len(), MOST);
    }
}

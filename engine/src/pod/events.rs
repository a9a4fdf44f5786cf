//! What happens to pods and containers, for those who would rather be told than ask.
//!
//! An event is the difference between two views of a pod, and carries the later one, so
//! that it cannot say anything else than lists do at that moment. Events are told in the
//! order in which views are published, under the index's lock. Nothing waits for who
//! listens: one that is slow misses some, is told so, and has to list.

use std::sync::Arc;

use tokio::sync::broadcast::{self, Receiver, Sender};

use super::machine::State;
use super::view::{ContainerView, PodView};
use crate::clock::now;

/// Events that wait for one who listens.
const MOST: usize = 1024;

/// What happened to a container, or to a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Happening {
    Created,
    Started,
    Stopped,
    Deleted,
}

/// An event.
#[derive(Clone)]
pub(crate) struct Event {
    /// To what: the id of a container or of the sandbox itself.
    pub(crate) id: String,
    pub(crate) happening: Happening,
    /// When it was published, nanoseconds since the epoch.
    pub(crate) at: i64,
    /// The pod after it; a pod that is gone: before it.
    pub(crate) pod: Arc<PodView>,
}

/// Whoever listens.
pub(crate) struct Events(Sender<Event>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::channel(MOST).0)
    }
}

impl Events {
    /// All events from now on.
    pub(crate) fn listen(&self) -> Receiver<Event> {
        self.0.subscribe()
    }

    /// Tells what has become of a pod.
    pub(super) fn tell(&self, before: Option<&Arc<PodView>>, after: Option<&Arc<PodView>>) {
        if self.0.receiver_count() == 0 {
            return;
        }
        let Some(pod) = after.or(before) else { return };
        let at = now();
        for (id, happening) in differences(before.map(|one| &**one), after.map(|one| &**one)) {
            // Whoever listened may be gone.
            let _told = self.0.send(Event {
                id,
                happening,
                at,
                pod: Arc::clone(pod),
            });
        }
    }
}

/// How far something has come in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Unknown,
    Created,
    Started,
    Stopped,
}

/// The containers' events, and around them the sandbox's own.
fn differences(before: Option<&PodView>, after: Option<&PodView>) -> Vec<(String, Happening)> {
    let mut events = Vec::new();
    let stage_of_pod = |view: Option<&PodView>| match view {
        None => Stage::Unknown,
        Some(view) if view.ready => Stage::Started,
        Some(_) => Stage::Stopped,
    };
    let (was, is) = (stage_of_pod(before), stage_of_pod(after));
    let pod = after.or(before).map(|view| view.id.to_string());
    let of_pod = |events: &mut Vec<_>, is| {
        if let Some(id) = &pod {
            let steps = steps(was, is, was != Stage::Unknown || is == Stage::Started);
            events.extend(steps.into_iter().map(|step| (id.clone(), step)));
        }
    };
    if is == Stage::Started {
        of_pod(&mut events, is);
    }
    let containers = |view: Option<&PodView>| -> Vec<Arc<ContainerView>> {
        view.map(|view| view.containers.clone()).unwrap_or_default()
    };
    let (old, new) = (containers(before), containers(after));
    for container in &new {
        let former = old.iter().find(|one| one.id == container.id);
        let was = former.map_or(Stage::Unknown, |one| stage(&one.state));
        let steps = steps(was, stage(&container.state), has_run(&container.state));
        let id = container.id.to_string();
        events.extend(steps.into_iter().map(|step| (id.clone(), step)));
    }
    for container in &old {
        if !new.iter().any(|one| one.id == container.id) {
            events.push((container.id.to_string(), Happening::Deleted));
        }
    }
    match (is, &pod) {
        (Stage::Stopped, _) => of_pod(&mut events, is),
        (Stage::Unknown, Some(id)) => events.push((id.clone(), Happening::Deleted)),
        _ => {}
    }
    events
}

/// What lies between two stages; a start only where there was one.
fn steps(was: Stage, is: Stage, has_run: bool) -> Vec<Happening> {
    let all = [
        (Stage::Created, Happening::Created),
        (Stage::Started, Happening::Started),
        (Stage::Stopped, Happening::Stopped),
    ];
    let passed = all
        .into_iter()
        .filter(|(stage, _)| was < *stage && *stage <= is);
    let real = passed.filter(|(stage, _)| *stage != Stage::Started || has_run);
    real.map(|(_, happening)| happening).collect()
}

fn stage(state: &State) -> Stage {
    match state {
        State::Creating => Stage::Unknown,
        State::Created | State::Starting => Stage::Created,
        State::Running { .. } | State::Stopping { .. } | State::Killing { .. } => Stage::Started,
        State::Exited(_) => Stage::Stopped,
    }
}

fn has_run(state: &State) -> bool {
    match state {
        State::Creating | State::Created | State::Starting => false,
        State::Running { .. } | State::Stopping { .. } | State::Killing { .. } => true,
        State::Exited(exit) => exit.started_at > 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::machine::Exit;

    fn exit(started_at: i64) -> State {
        State::Exited(Exit {
            code: 0,
            reason: String::new(),
            message: String::new(),
            started_at,
            finished_at: 2,
        })
    }

    #[test]
    fn every_stage_on_the_way_is_told_once() {
        use Happening::{Created, Started, Stopped};
        let running = State::Running { started_at: 1 };
        for (was, is, told) in [
            (None, State::Creating, vec![]),
            (None, State::Created, vec![Created]),
            (Some(State::Created), State::Starting, vec![]),
            (Some(State::Starting), running.clone(), vec![Started]),
            (
                Some(running.clone()),
                State::Killing { started_at: 1 },
                vec![],
            ),
            (Some(running), exit(1), vec![Stopped]),
            (Some(State::Starting), exit(1), vec![Started, Stopped]),
            (Some(State::Starting), exit(0), vec![Stopped]),
            (None, exit(1), vec![Created, Started, Stopped]),
            (Some(exit(1)), exit(1), vec![]),
        ] {
            let before = was.as_ref().map_or(Stage::Unknown, stage);
            let steps = steps(before, stage(&is), has_run(&is));
            assert_eq!(steps, told, "{was:?} -> {is:?}");
        }
    }
}

//! The task of a pod that an earlier engine left, from its start to agreement with the monitor.
//!
//! It begins with what the records say, which lists show at once. Then the monitor is reached,
//! and what it reports counts. What was being made is undone, what was being ended is ended.

use std::sync::Arc;

use runtime::client::{ContainerReport, ContainerState, Reached};
use tokio::sync::{mpsc, oneshot};

use super::super::container::NotCreated;
use super::super::error::PodError;
use super::super::machine::{Phase, State};
use super::super::record::{ContainerRecord, PodRecord};
use super::super::restore;
use super::super::teardown;
use super::super::upgrade;
use super::link::Link;
use super::{Command, Done, Slot, Task, exit_of, supervise};
use crate::context::Engine;
use crate::ids::ContainerId;

/// What the records say of a pod.
pub(crate) struct Restored {
    pub(crate) record: PodRecord,
    /// Whether the disk has an older record than this.
    pub(crate) stale: bool,
    pub(crate) containers: Vec<RestoredContainer>,
    /// Whether a monitor of it may be alive.
    pub(crate) monitored: bool,
}

/// What its record, and its exit record, say of a container.
pub(crate) struct RestoredContainer {
    pub(crate) record: ContainerRecord,
    /// Whether the disk has an older record than this.
    pub(crate) stale: bool,
}

/// Starts the task of a pod that an earlier engine left. What is answered ends when
/// the records agree with the monitor, or with its being dead.
pub(crate) fn resume(
    engine: Arc<Engine>,
    restored: Restored,
    inbox: mpsc::UnboundedReceiver<Command>,
) -> oneshot::Receiver<()> {
    let Restored {
        record,
        stale,
        containers,
        monitored,
    } = restored;
    let (reaching, reached) = oneshot::channel();
    let mut task = Task::new(engine, record, inbox);
    task.stale = stale;
    if stale {
        task.rewrite_later();
    }
    for RestoredContainer { record, stale } in containers {
        let mut slot = Box::new(Slot::new(record, None));
        slot.forget_what_ran();
        let id = slot.record.id.clone();
        task.keys.insert(slot.record.config.key.clone(), id.clone());
        task.slots.insert(id.clone(), slot);
        if stale {
            task.note_stale(&id);
        }
    }
    if task.record.phase == Phase::Starting {
        task.undo_start(monitored);
    } else {
        for id in task.ids() {
            task.refresh(&id);
        }
        task.commit();
        if monitored {
            task.link = Link::Sought(reaching);
            task.reach();
        } else {
            task.undo_creations();
            task.carry_on();
            if task.record.phase == Phase::Stopped {
                // All of it has ended, where the disk had no room for how.
                task.kill_orphans(task.ids());
            }
        }
    }
    supervise(Box::new(task));
    reached
}

impl Task {
    /// The ids of all containers.
    pub(super) fn ids(&self) -> Vec<ContainerId> {
        self.slots.keys().cloned().collect()
    }

    /// Gives back a sandbox whose start was cut off: nobody was told of it.
    fn undo_start(&mut self, monitored: bool) {
        tracing::info!(pod = %self.record.id, "undoing a sandbox that was being started");
        let (engine, record) = (Arc::clone(&self.engine), self.record.clone());
        let work = async move {
            let state = engine.pod_state(&record.id);
            let reached = match monitored {
                true => restore::reach_soon(&state).await,
                false => None,
            };
            let monitor = reached.as_ref().map(|reached| &reached.monitor);
            teardown::undo(&engine, &record, monitor).await
        };
        self.job(work, Done::Undone);
    }

    /// Looks for the monitor, for as long as it may be alive.
    fn reach(&mut self) {
        let state = self.engine.pod_state(&self.record.id);
        let work = async move { Ok(restore::reach(&state).await.map(Box::new)) };
        self.job(work, |reached| Done::Reached(reached.unwrap_or_default()));
    }

    /// The monitor answers, or is dead.
    pub(super) fn reached(&mut self, reached: Option<Box<Reached>>) {
        let whoever_waits = self.link.found();
        match reached {
            Some(reached) => {
                let Reached {
                    monitor,
                    events,
                    containers,
                } = *reached;
                if self.record.phase.is_ready() {
                    upgrade::begin(&self.engine, &self.record.id, &monitor);
                }
                self.link = Link::Up { monitor, events };
                self.undo_creations();
                self.settle(&containers);
                self.carry_on();
            }
            None => {
                self.undo_creations();
                self.monitor_gone();
                self.carry_on();
            }
        }
        drop(whoever_waits);
    }

    /// Brings the records up to what the monitor says. A container that it does not
    /// know has no parent any more.
    fn settle(&mut self, reports: &[ContainerReport]) {
        let mut orphans = Vec::new();
        for id in self.ids() {
            let Some(slot) = self.slots.get_mut(&id) else {
                continue;
            };
            if slot.has_ended() || slot.record.state == State::Creating {
                continue;
            }
            let Some(report) = reports.iter().find(|report| report.id == id.as_str()) else {
                orphans.push(id);
                continue;
            };
            let state = settled(&slot.record.state, &report.state);
            slot.pid = (!matches!(state, State::Exited(_))).then_some(report.pid);
            if slot.record.state != state {
                slot.record.state = state;
                slot.forget_what_ran();
                self.keep_if_possible(&id);
            }
            self.refresh(&id);
        }
        self.kill_orphans(orphans);
    }

    /// Gives containers back whose creation was cut off: nobody was told their ids.
    fn undo_creations(&mut self) {
        for id in self.ids() {
            let Some(slot) = self.slots.get(&id) else {
                continue;
            };
            if slot.record.state == State::Creating && slot.creation.is_none() {
                self.undo_creation(&id, PodError::CutOff);
            }
        }
    }

    /// Gives a container back that must not be answered.
    pub(super) fn undo_creation(&mut self, id: &ContainerId, error: PodError) {
        let Some(slot) = self.slots.get(id) else {
            return;
        };
        let (engine, dir) = (Arc::clone(&self.engine), self.dir.clone());
        let (record, monitor) = (slot.record.clone(), self.link.monitor().cloned());
        let work =
            async move { teardown::container(&engine, &dir, &record, monitor.as_ref()).await };
        let id = id.clone();
        self.job(work, move |undone| {
            Done::Created(id, Err(Box::new(NotCreated { error, undone })))
        });
    }
}

/// The state of a container by its record and by its monitor.
fn settled(recorded: &State, reported: &ContainerState) -> State {
    match (recorded, reported) {
        (_, ContainerState::Exited(exit)) => State::Exited(exit_of(exit)),
        // A start that was ordered and did not arrive: it may be ordered again.
        (_, ContainerState::Created) => State::Created,
        // A kill is simply sent again.
        (State::Killing { .. }, ContainerState::Running { .. } | ContainerState::Starting) => {
            recorded.clone()
        }
        // Its end is told by an event.
        (_, ContainerState::Starting) => State::Starting,
        // A stop whose signal may not have been sent has to be asked for again.
        (_, ContainerState::Running { started_at }) => State::Running {
            started_at: *started_at,
        },
    }
}

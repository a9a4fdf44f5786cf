//! Results of a pod's jobs, and events of its monitor: each steps a state machine and answers
//! who waits for it.

use std::sync::Arc;

use runtime::client::{Event, ExitRecord};

use super::super::error::PodError;
use super::super::machine::{Exit, Input, Phase, PhaseInput, State};
use super::super::record::ContainerRecord;
use super::super::teardown;
use super::link::Link;
use super::removal::Retry;
use super::{Done, Task};
use crate::causes::with_causes;
use crate::clock::now;
use crate::ids::ContainerId;

/// The reason of an end for lack of memory.
const OOM_KILLED: &str = "OOMKilled";

/// What the kernel's exit means to people.
pub(crate) fn exit_of(record: &ExitRecord) -> Exit {
    let reason = match record {
        record if record.oom_killed => OOM_KILLED,
        record if record.exit_code == 0 => "Completed",
        record if record.started_at == 0 && record.exit_code == 128 => "StartError",
        _ => "Error",
    };
    Exit {
        code: record.exit_code,
        reason: reason.to_owned(),
        message: String::new(),
        started_at: record.started_at,
        finished_at: record.finished_at,
    }
}

/// The end of a container as its monitor would write it down, if that says the same.
pub(crate) fn exit_record_of(record: &ContainerRecord) -> Option<ExitRecord> {
    let State::Exited(exit) = &record.state else {
        return None;
    };
    let written = ExitRecord {
        container: record.id.to_string(),
        exit_code: exit.code,
        signal: None,
        oom_killed: exit.reason == OOM_KILLED,
        started_at: exit.started_at,
        finished_at: exit.finished_at,
    };
    let says = exit_of(&written);
    (says.code == exit.code && says.reason == exit.reason).then_some(written)
}

impl Task {
    pub(super) fn event(&mut self, event: Event) {
        match event {
            Event::Exited(record) => match ContainerId::try_from(record.container.as_str()) {
                Ok(id) => {
                    if let Err(error) = self.step(&id, Input::Exited(exit_of(&record))) {
                        tracing::debug!(container = %id, %error, "exit of a forgotten container");
                    }
                }
                Err(error) => tracing::warn!(%error, "exit record"),
            },
            Event::StartEnded { container, outcome } => {
                if let Ok(id) = ContainerId::try_from(container.as_str()) {
                    let result = outcome.map_err(PodError::Start);
                    self.started(&id, result);
                }
            }
            Event::Log { container, stalled } => self.log_state(&container, stalled),
            Event::Gone => self.monitor_gone(),
        }
    }

    pub(super) fn done(&mut self, done: Done) {
        match done {
            Done::Launched(result) => self.launched(result),
            Done::Created(id, result) => self.created(&id, result),
            Done::Started(id, result) => self.started(&id, result),
            Done::GraceOver(id) => {
                if let Err(error) = self.step(&id, Input::GraceOver) {
                    tracing::debug!(container = %id, %error, "grace period of a removed container");
                }
            }
            Done::KillOverdue(id) => self.kill_overdue(&id),
            Done::CgroupKilled(id, result) => self.cgroup_killed(&id, result),
            Done::Undone(result) => self.undone(result),
            Done::Reached(reached) => self.reached(reached),
            Done::RetryRemoval(id) => self.remove_when_ended(&id),
            Done::Quiet => {}
            Done::Updated(id, result, reply) => self.updated(&id, result, reply),
            Done::ContainerRemoved(id, result) => self.container_removed(&id, result),
            Done::Orphaned(all) => self.orphaned(all),
            Done::TornDown(result) => self.torn_down(result),
            Done::Removed(result) => self.removed(result),
            Done::RetryTeardown => self.tear_down_when_ended(),
            Done::Rewrite => self.rewrite_due(),
            Done::RetryOrphans(ids) => self.kill_orphans(ids),
        }
    }

    fn updated(&mut self, id: &ContainerId, result: Result<(), PodError>, reply: super::Reply<()>) {
        let slot = self.slots.get_mut(id);
        if let Some((before, slot)) =
            slot.and_then(|slot| Some((slot.limits_in_force.take()?, slot)))
        {
            if result.is_err() {
                Arc::make_mut(&mut slot.record.config).resources = before;
                self.keep_if_possible(id);
            } else {
                self.refresh(id);
            }
        }
        self.answers.one(reply, result);
        self.next_update(id);
    }

    fn launched(&mut self, result: Result<Box<super::Launched>, Box<super::NotLaunched>>) {
        let launched = match result {
            Ok(launched) => *launched,
            Err(failed) => return self.launch_failed(*failed),
        };
        self.link = Link::Up {
            monitor: launched.monitor,
            events: launched.events,
        };
        self.record.init_pid = launched.init_pid;
        self.record.ips = launched.ips;
        self.step_phase(PhaseInput::Launched);
        if let Err(error) = self.write_pod() {
            // A sandbox that a restart would not know must not be answered.
            tracing::error!(pod = %self.record.id, %error, "sandbox without a record");
            self.answers.all(&mut self.joining, &Err(Arc::new(error)));
            self.step_phase(PhaseInput::StopAsked);
            self.tear_down_when_ended();
            return self.replay();
        }
        crate::failpoint::hit("run-ready");
        let id = self.record.id.clone();
        tracing::info!(pod = %id, "sandbox ready");
        self.answers.all(&mut self.joining, &Ok(id));
        self.replay();
    }

    fn launch_failed(&mut self, failed: super::NotLaunched) {
        let error = Arc::new(failed.error);
        match failed.undone {
            Ok(()) => self.forget(&error),
            Err(left) => {
                self.answers
                    .all(&mut self.joining, &Err(Arc::clone(&error)));
                let trouble = format!(
                    "it could not be started: {}; not given back yet: {}",
                    with_causes(&*error),
                    with_causes(&left)
                );
                self.stay(trouble);
            }
        }
    }

    /// The start that an earlier engine had begun is undone, or not yet.
    fn undone(&mut self, undone: Result<(), PodError>) {
        match undone {
            Ok(()) => self.forget(&Arc::new(PodError::CutOff)),
            Err(left) => {
                self.answers
                    .all(&mut self.joining, &Err(Arc::new(PodError::CutOff)));
                let left = with_causes(&left);
                self.stay(format!("its start was cut off; not given back yet: {left}"));
            }
        }
    }

    /// A sandbox that nobody was told of, and that cannot be given back, is listed:
    /// so it can be asked for, stopped and removed like any other.
    fn stay(&mut self, trouble: String) {
        tracing::warn!(pod = %self.record.id, trouble, "the sandbox stays until it is given back");
        self.step_phase(PhaseInput::NotLaunched);
        self.record.trouble = Some(trouble);
        self.keep_pod();
        self.retry_later();
        self.replay();
    }

    /// Nothing is left to stop, remove or use.
    fn forget(&mut self, error: &Arc<PodError>) {
        self.engine.index.forget(&self.record.id);
        self.answers.all(&mut self.joining, &Err(Arc::clone(error)));
        self.finished = true;
        self.step_phase(PhaseInput::GivenBack);
        self.replay();
        while let Ok(command) = self.inbox.try_recv() {
            match command {
                super::Command::Join(reply) => reply.send(Err(Arc::clone(error))),
                other => self.command(other),
            }
        }
    }

    fn replay(&mut self) {
        for command in std::mem::take(&mut self.deferred) {
            self.command(command);
        }
    }

    fn created(
        &mut self,
        id: &ContainerId,
        result: Result<Box<super::CreatedContainer>, Box<super::NotCreated>>,
    ) {
        match result {
            Ok(made) => self.made(id, *made),
            Err(failed) => self.not_made(id, *failed),
        }
    }

    fn made(&mut self, id: &ContainerId, made: super::CreatedContainer) {
        let Some(slot) = self.slots.get_mut(id) else {
            return;
        };
        let transition = slot.record.transition;
        slot.record = made.record;
        slot.record.transition = transition;
        slot.pid = Some(made.pid);
        if let Err(error) = self.step(id, Input::Made) {
            // A container that a restart would undo must not be answered.
            return self.undo_creation(id, error);
        }
        if let Some(slot) = self.slots.get_mut(id) {
            slot.creation = None;
            self.answers.all(&mut slot.creating, &Ok(id.clone()));
            if slot.removal.is_asked() {
                self.remove_when_ended(id);
            }
        }
        if self.record.phase != Phase::Ready {
            self.end_all();
        }
    }

    fn not_made(&mut self, id: &ContainerId, failed: super::NotCreated) {
        let error = Arc::new(failed.error);
        let Err(left) = failed.undone else {
            if let Some(mut slot) = self.slots.remove(id) {
                self.keys.remove(&slot.record.config.key);
                self.answers.all(&mut slot.creating, &Err(error));
                self.answers.all(&mut slot.removal.end(), &Ok(()));
            }
            self.fail_without_init();
            return self.tear_down_when_ended();
        };
        // It stays, and is listed, until all of it is given back.
        let message = format!(
            "{}; not given back yet: {}",
            with_causes(&*error),
            with_causes(&left)
        );
        tracing::warn!(container = %id, message, "a container could not be made");
        if let Some(slot) = self.slots.get_mut(id) {
            slot.creation = None;
            slot.unmade = Some(Retry::default());
            self.answers.all(&mut slot.creating, &Err(error));
        }
        let at = now();
        if let Err(error) = self.step(id, Input::CreateFailed { at, message }) {
            tracing::debug!(container = %id, %error, "creation of a removed container");
        }
        self.retry_removal(id);
    }

    fn started(&mut self, id: &ContainerId, result: Result<i64, PodError>) {
        let (input, reply) = match result {
            Ok(at) => (Input::Started { at }, Ok(())),
            Err(error) => {
                let message = with_causes(&error);
                let failed = Input::StartFailed {
                    at: now(),
                    message: message.clone(),
                };
                (failed, Err(Arc::new(PodError::Start(message))))
            }
        };
        if let Err(error) = self.step(id, input) {
            tracing::debug!(container = %id, %error, "start of a removed container");
        }
        crate::failpoint::hit("start-done");
        if let Some(slot) = self.slots.get_mut(id) {
            self.answers.all(&mut slot.starting, &reply);
        }
    }

    /// A container has ended: its cgroup goes at once, its record stays.
    pub(super) fn ended(&mut self, id: &ContainerId) {
        let Some(slot) = self.slots.get_mut(id) else {
            return;
        };
        slot.end_timers();
        if let State::Exited(exit) = &slot.record.state {
            tracing::info!(container = %id, exit_code = exit.code, reason = exit.reason, "container exited");
        }
        let (engine, record) = (Arc::clone(&self.engine), slot.record.clone());
        let own = id.clone();
        let work = async move {
            if let Err(error) = teardown::container_processes(&engine, &record).await {
                let reason = with_causes(&error);
                tracing::warn!(container = %own, reason, "processes or cgroup of an ended container");
            }
            Ok(())
        };
        self.job(work, |_: Result<(), PodError>| Done::Quiet);
        self.fail_without_init();
        // Whoever asks next must see what they are told now.
        if let Some(slot) = self.slots.get_mut(id) {
            self.answers.all(&mut slot.stopping, &Ok(()));
            if slot.removal.is_asked() {
                self.remove_when_ended(id);
            }
        }
        self.tear_down_when_ended();
    }

    /// A container's log stopped taking records, or takes them again.
    fn log_state(&mut self, container: &str, stalled: bool) {
        let Ok(id) = ContainerId::try_from(container) else {
            return;
        };
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        let log = slot.record.log_path.as_ref().map(|path| path.display());
        let log = log.map(|path| path.to_string()).unwrap_or_default();
        if stalled {
            tracing::warn!(container = %id, log, "the log takes nothing: the container's output waits");
        } else {
            tracing::info!(container = %id, log, "the log takes output again");
        }
        slot.log_stalled = stalled;
        self.refresh(&id);
    }
}

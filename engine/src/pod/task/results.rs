//! What jobs and the monitor report back.

use std::sync::Arc;

use runtime::client::{Event, ExitRecord};

use super::super::error::PodError;
use super::super::machine::{Exit, Input, Phase, State};
use super::super::teardown;
use super::{Done, Task, answer, respond};
use crate::engine::now;
use crate::ids::ContainerId;
use crate::model::Resources;

/// What the kernel's exit means to people.
pub(crate) fn exit_of(record: &ExitRecord) -> Exit {
    let reason = match record {
        record if record.oom_killed => "OOMKilled",
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
        self.publish();
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
            Done::Quiet => return,
            Done::Updated(id, resources, result, reply) => {
                self.updated(&id, resources, result, reply);
            }
            Done::ContainerRemoved(id, result) => self.container_removed(&id, result),
            Done::Orphaned(result) => self.orphaned(result),
            Done::Down(result) => self.down(result),
            Done::Removed(result) => self.removed(result),
            Done::Retry => self.tear_down_when_ended(),
            Done::RetryOrphans => self.kill_orphans(),
        }
        self.publish();
    }

    fn updated(
        &mut self,
        id: &ContainerId,
        resources: Resources,
        result: Result<(), PodError>,
        reply: super::Reply<()>,
    ) {
        if result.is_ok()
            && let Some(slot) = self.slots.get_mut(id)
        {
            Arc::make_mut(&mut slot.record.config).resources = resources;
            self.keep(id);
        }
        self.publish();
        respond(reply, result);
        let next = self.slots.get_mut(id).and_then(|slot| {
            slot.update_runs = false;
            slot.updates.pop_front()
        });
        if let Some((update, reply)) = next {
            self.update(id, update, reply);
        }
    }

    fn launched(&mut self, result: Result<Box<super::Launched>, PodError>) {
        let launched = match result {
            Ok(launched) => *launched,
            Err(error) => return self.launch_failed(error),
        };
        self.monitor = Some(launched.monitor);
        self.events = Some(launched.events);
        self.record.init_pid = launched.init_pid;
        self.record.ips = launched.ips;
        self.record.phase = Phase::Ready;
        if let Err(error) = self.write_pod() {
            // A sandbox that a restart would not know must not be answered.
            tracing::error!(pod = %self.record.id, %error, "sandbox without a record");
            answer(&mut self.joining, &Err(Arc::new(error)));
            self.record.phase = Phase::Stopping;
            self.tear_down_when_ended();
            return self.replay();
        }
        crate::failpoint::hit("run-ready");
        let id = self.record.id.clone();
        tracing::info!(pod = %id, "sandbox ready");
        self.publish();
        answer(&mut self.joining, &Ok(id));
        self.replay();
    }

    fn launch_failed(&mut self, error: PodError) {
        self.engine.index.forget(&self.record.id);
        let error = Arc::new(error);
        answer(&mut self.joining, &Err(Arc::clone(&error)));
        self.finished = true;
        self.record.phase = Phase::Stopped;
        // Nothing is left to stop, remove or use.
        self.replay();
        while let Ok(command) = self.inbox.try_recv() {
            match command {
                super::Command::Join(reply) => reply.send(Err(Arc::clone(&error))),
                other => self.command(other),
            }
        }
    }

    fn replay(&mut self) {
        for command in std::mem::take(&mut self.deferred) {
            self.command(command);
        }
    }

    fn created(&mut self, id: &ContainerId, result: Result<Box<super::Made>, PodError>) {
        let Some(slot) = self.slots.get_mut(id) else {
            return;
        };
        match result {
            Ok(made) => {
                let transition = slot.record.transition;
                slot.record = made.record;
                slot.record.transition = transition;
                slot.pid = Some(made.pid);
                if let Err(error) = self.step(id, Input::Made) {
                    tracing::error!(container = %id, %error, "created");
                }
                self.publish();
                if let Some(slot) = self.slots.get_mut(id) {
                    answer(&mut slot.creating, &Ok(id.clone()));
                    if !slot.removing.is_empty() {
                        self.remove_when_ended(id);
                    }
                }
                if self.record.phase != Phase::Ready {
                    self.end_all();
                }
            }
            Err(error) => {
                let error = Arc::new(error);
                if let Some(mut slot) = self.slots.remove(id) {
                    self.keys.remove(&slot.record.config.key);
                    answer(&mut slot.creating, &Err(error));
                    answer(&mut slot.removing, &Ok(()));
                }
                self.tear_down_when_ended();
            }
        }
    }

    fn started(&mut self, id: &ContainerId, result: Result<i64, PodError>) {
        let (input, reply) = match result {
            Ok(at) => (Input::Started { at }, Ok(())),
            Err(error) => {
                let message = crate::network::chain(&error);
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
        self.publish();
        if let Some(slot) = self.slots.get_mut(id) {
            answer(&mut slot.starting, &reply);
        }
    }

    /// A container has ended: its cgroup goes at once, its record stays.
    pub(super) fn ended(&mut self, id: &ContainerId) {
        let Some(slot) = self.slots.get_mut(id) else {
            return;
        };
        if let State::Exited(exit) = &slot.record.state {
            tracing::info!(container = %id, exit_code = exit.code, reason = exit.reason, "container exited");
        }
        let (engine, record) = (Arc::clone(&self.engine), slot.record.clone());
        let own = id.clone();
        let work = async move {
            if let Err(error) = teardown::container_processes(&engine, &record).await {
                let reason = crate::network::chain(&error);
                tracing::warn!(container = %own, reason, "processes or cgroup of an ended container");
            }
            Ok(())
        };
        self.job(work, |_: Result<(), PodError>| Done::Quiet);
        // Whoever asks next must see what they are told now.
        self.publish();
        if let Some(slot) = self.slots.get_mut(id) {
            answer(&mut slot.stopping, &Ok(()));
            if !slot.removing.is_empty() {
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

    fn monitor_gone(&mut self) {
        self.events = None;
        self.monitor = None;
        match self.record.phase {
            Phase::Stopped => return,
            // The teardown tells the monitor to end, and needs it no more.
            Phase::Stopping if self.teardown_runs => return,
            // Nobody will report the end of what is being killed.
            Phase::Stopping => {}
            Phase::Starting | Phase::Ready | Phase::Failed { .. } => {
                let reason = "the monitor of the pod died".to_owned();
                self.record.phase = Phase::Failed { reason };
                self.keep_pod();
            }
        }
        tracing::error!(pod = %self.record.id, "the monitor died");
        self.kill_orphans();
    }

    /// Kills what a dead monitor left, before anything is said about it.
    fn kill_orphans(&mut self) {
        let engine = Arc::clone(&self.engine);
        let records: Vec<_> = self
            .slots
            .values()
            .filter(|slot| !slot.has_ended())
            .map(|slot| slot.record.clone())
            .collect();
        let work = async move {
            let mut alive = Vec::new();
            for record in &records {
                if let Err(error) = teardown::container_processes(&engine, record).await {
                    let reason = crate::network::chain(&error);
                    tracing::error!(container = %record.id, reason, "processes of a dead monitor");
                    alive.push(record.id.clone());
                }
            }
            Ok(alive)
        };
        self.job(work, Done::Orphaned);
    }

    fn orphaned(&mut self, result: Result<Vec<ContainerId>, PodError>) {
        // Only a container whose processes are gone may be said to have ended.
        let alive = match result {
            Ok(alive) => alive,
            Err(error) => {
                tracing::error!(pod = %self.record.id, %error, "processes of a dead monitor");
                self.slots.keys().cloned().collect()
            }
        };
        if !alive.is_empty() {
            let wait = async {
                tokio::time::sleep(super::ending::RETRY).await;
                Ok(())
            };
            self.job(wait, |_: Result<(), PodError>| Done::RetryOrphans);
        }
        // What the monitor could still write down is truer than what we know.
        let written = ExitRecord::read_dir(&self.dir.exits()).unwrap_or_default();
        let ids: Vec<ContainerId> = self.slots.keys().cloned().collect();
        for id in ids.into_iter().filter(|id| !alive.contains(id)) {
            let known = written
                .iter()
                .find(|record| record.container == id.as_str());
            let exit = known.map_or_else(|| self.orphan_exit(&id), exit_of);
            if self
                .slots
                .get(&id)
                .is_some_and(|slot| slot.record.state != State::Creating)
                && let Err(error) = self.step(&id, Input::Exited(exit))
            {
                tracing::debug!(container = %id, %error, "orphan");
            }
        }
    }

    fn orphan_exit(&self, id: &ContainerId) -> Exit {
        let started_at = self
            .slots
            .get(id)
            .map_or(0, |slot| slot.record.state.started_at());
        Exit {
            code: 137,
            reason: "Error".to_owned(),
            message: "the monitor of the pod died, the container was killed".to_owned(),
            started_at,
            finished_at: now(),
        }
    }
}

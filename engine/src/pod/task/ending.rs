//! Removal of containers, and stop and removal of the sandbox.
//!
//! Each waits for the one before: a container is removed once it has ended, the sandbox's parts
//! are given back once all containers have, and its records go once its parts are given back.

use std::sync::Arc;
use std::time::Duration;

use super::super::backoff::Backoff;
use super::super::error::PodError;
use super::super::machine::{Exit, Input, Phase, PhaseInput, State};
use super::super::teardown;
use super::removal::Teardown;
use super::{Done, Reply, Task};
use crate::causes::with_causes;
use crate::clock::now;
use crate::ids::ContainerId;
use crate::threads::blocking;

impl Task {
    /// Removes a container that has no running process, unless that runs already.
    pub(super) fn remove_when_ended(&mut self, id: &ContainerId) {
        let Some(slot) = self.slots.get_mut(id) else {
            return;
        };
        if slot.removal.runs() || !(slot.has_ended() || slot.record.state == State::Created) {
            return;
        }
        slot.removal.begin();
        if let Some(retry) = &mut slot.unmade {
            retry.disarm();
        }
        self.steps = super::steps_of(slot.removal.waiting());
        let (engine, dir) = (Arc::clone(&self.engine), self.dir.clone());
        let (record, monitor, own) = (
            slot.record.clone(),
            self.link.monitor().cloned(),
            id.clone(),
        );
        let work =
            async move { teardown::container(&engine, &dir, &record, monitor.as_ref()).await };
        self.job(work, move |result| Done::ContainerRemoved(own, result));
    }

    pub(super) fn container_removed(&mut self, id: &ContainerId, result: Result<(), PodError>) {
        match result {
            Ok(()) => {
                if let Some(mut slot) = self.slots.remove(id) {
                    self.keys.remove(&slot.record.config.key);
                    self.answers.all(&mut slot.removal.end(), &Ok(()));
                    self.answers.all(&mut slot.stopping, &Ok(()));
                }
                self.tear_down_when_ended();
            }
            Err(error) => {
                if let Some(slot) = self.slots.get_mut(id) {
                    let error = Err(Arc::new(error));
                    self.answers.all(&mut slot.removal.end(), &error);
                }
                self.retry_removal(id);
            }
        }
    }

    /// Tries later again to give a container back that could not be made.
    pub(super) fn retry_removal(&mut self, id: &ContainerId) {
        let slot = self.slots.get_mut(id);
        let Some(mut retry) = slot.and_then(|slot| slot.unmade.take()) else {
            return;
        };
        let pause = retry.backoff.pause();
        retry.arm(self.timer(pause, Done::RetryRemoval(id.clone())));
        if let Some(slot) = self.slots.get_mut(id) {
            slot.unmade = Some(retry);
        }
    }

    pub(super) fn stop_pod(&mut self, reply: Reply<()>) {
        match self.record.phase {
            Phase::Stopped => return self.answers.one(reply, Ok(())),
            Phase::Stopping => self.stopping.push(reply),
            Phase::Starting | Phase::Ready | Phase::Failed { .. } => {
                self.stopping.push(reply);
                self.step_phase(PhaseInput::StopAsked);
                self.keep_pod();
                crate::failpoint::hit("stop-intent");
            }
        }
        self.end_all();
    }

    /// Goes on with what an earlier engine had begun to end.
    pub(super) fn carry_on(&mut self) {
        if self.record.phase == Phase::Stopping {
            return self.end_all();
        }
        let killed = |slot: &super::Slot| matches!(slot.record.state, State::Killing { .. });
        let ids: Vec<ContainerId> = self
            .slots
            .iter()
            .filter(|(_, slot)| killed(slot))
            .map(|(id, _)| id.clone())
            .collect();
        for id in ids {
            self.order_kill(&id);
        }
    }

    /// Kills every container; what was never started ends with the sandbox.
    pub(super) fn end_all(&mut self) {
        let ids: Vec<ContainerId> = self.slots.keys().cloned().collect();
        for id in ids {
            let Some(slot) = self.slots.get_mut(&id) else {
                continue;
            };
            if slot.record.state == State::Creating {
                // Whatever its creation waits for on the host, it need not go on.
                slot.creation = None;
            }
            let created = slot.record.state == State::Created;
            let input = if created {
                Input::Exited(never_started())
            } else {
                Input::StopAsked {
                    grace: Duration::ZERO,
                }
            };
            if let Err(error) = self.step(&id, input) {
                tracing::debug!(container = %id, %error, "end with the sandbox");
            }
        }
        self.tear_down_when_ended();
    }

    /// Gives the sandbox's parts back once no container needs them.
    pub(super) fn tear_down_when_ended(&mut self) {
        let ready = self.record.phase == Phase::Stopping
            && !self.teardown.runs()
            && self.slots.values().all(|slot| slot.has_ended());
        if !ready {
            return;
        }
        // The monitor knows how its containers ended, until it is let go.
        self.rewrite_stale();
        self.teardown.go_on(Teardown::Runs);
        self.steps = self.steps.take().or_else(|| self.of_the_ending());
        let (engine, record) = (Arc::clone(&self.engine), self.record.clone());
        let monitor = self.link.monitor().cloned();
        let work = async move { teardown::pod(&engine, &record, monitor.as_ref()).await };
        self.job(work, Done::TornDown);
    }

    pub(super) fn torn_down(&mut self, result: Result<(), PodError>) {
        self.teardown.go_on(Teardown::Waits);
        match result {
            Ok(()) => {
                self.link.lose();
                self.record.init_pid = None;
                self.step_phase(PhaseInput::GivenBack);
                self.record.attachment = None;
                self.record.ips.clear();
                self.record.trouble = None;
                self.failed_teardowns = Backoff::default();
                self.keep_pod();
                crate::failpoint::hit("stop-done");
                tracing::info!(pod = %self.record.id, "sandbox stopped");
                self.answers.all(&mut self.stopping, &Ok(()));
                self.remove_when_stopped();
            }
            Err(error) => {
                let reason = with_causes(&error);
                tracing::warn!(pod = %self.record.id, reason, "sandbox is not stopped yet");
                self.record.trouble = Some(format!("it is not stopped yet: {reason}"));
                self.keep_pod();
                let error = Arc::new(error);
                self.answers
                    .all(&mut self.stopping, &Err(Arc::clone(&error)));
                self.answers.all(&mut self.removal.end(), &Err(error));
                self.retry_later();
            }
        }
    }

    /// Tries later again to give the sandbox's parts back; a caller who asks for it
    /// meanwhile has it tried at once, in the place of this.
    pub(super) fn retry_later(&mut self) {
        let pause = self.failed_teardowns.pause();
        let timer = self.timer(pause, Done::RetryTeardown);
        self.teardown.go_on(Teardown::Failed(timer));
    }

    pub(super) fn remove_pod(&mut self, reply: Reply<()>) {
        if self.finished {
            return self.answers.one(reply, Ok(()));
        }
        self.removal.ask(reply);
        match self.record.phase {
            Phase::Stopped => self.remove_when_stopped(),
            Phase::Stopping => self.end_all(),
            Phase::Starting | Phase::Ready | Phase::Failed { .. } => {
                self.step_phase(PhaseInput::StopAsked);
                self.keep_pod();
                self.end_all();
            }
        }
    }

    fn remove_when_stopped(&mut self) {
        if self.record.phase != Phase::Stopped || !self.removal.is_asked() {
            return;
        }
        self.removal.begin();
        self.steps = super::steps_of(self.removal.waiting());
        let (engine, dir) = (Arc::clone(&self.engine), self.dir.clone());
        let records: Vec<_> = self
            .slots
            .values()
            .map(|slot| slot.record.clone())
            .collect();
        let work = async move {
            for record in &records {
                teardown::container(&engine, &dir, record, None).await?;
            }
            blocking(move || Ok(dir.remove()?)).await
        };
        self.job(work, Done::Removed);
    }

    pub(super) fn removed(&mut self, result: Result<(), PodError>) {
        match result {
            Ok(()) => {
                self.engine.index.forget(&self.record.id);
                self.engine.samples.forget(self.record.id.as_str());
                self.engine.traces.forget(self.record.id.as_str());
                tracing::info!(pod = %self.record.id, "sandbox removed");
                for slot in self.slots.values_mut() {
                    self.answers.all(&mut slot.removal.end(), &Ok(()));
                }
                self.answers.all(&mut self.removal.end(), &Ok(()));
                self.finished = true;
                self.answer_the_late();
            }
            Err(error) => {
                let error = Err(Arc::new(error));
                self.answers.all(&mut self.removal.end(), &error);
            }
        }
    }

    /// Commands that arrived after the sandbox was forgotten find nothing.
    fn answer_the_late(&mut self) {
        self.slots.clear();
        while let Ok(command) = self.inbox.try_recv() {
            self.command(command);
        }
    }
}

/// How a container ends that was created and never started.
fn never_started() -> Exit {
    Exit {
        code: 137,
        reason: "Error".to_owned(),
        message: "the sandbox was stopped before the container was started".to_owned(),
        started_at: 0,
        finished_at: now(),
    }
}

//! Commands of RPC handlers to a pod's task: each is answered at once, joins work that runs,
//! or steps a state machine and orders work, whose result arrives in `results`. Until the
//! sandbox is started, all but those that wait for that start are deferred.

use std::sync::Arc;
use std::time::Duration;

use runtime::client::steps::Steps;
use tokio::sync::oneshot;

use super::super::container::{self, NotCreated, Sandbox, Target};
use super::super::error::PodError;
use super::super::machine::{Input, Phase, State, Work};
use super::{Command, Done, Reply, Slot, Task};
use crate::convert::resources;
use crate::ids::{ContainerId, PodId};
use crate::model::{ContainerConfig, PidMode, Resources};
use crate::spec;
use crate::threads::on_disk;

/// How long a monitor may take to answer that it has sent a signal.
const SIGNAL_PATIENCE: Duration = Duration::from_secs(10);

impl Command {
    /// The steps of the call that waits for the answer.
    fn steps(&self) -> Option<Steps> {
        match self {
            Self::Join(reply) => reply.steps.clone(),
            Self::Create(_, reply) => reply.steps.clone(),
            Self::Start(_, reply)
            | Self::Stop(_, _, reply)
            | Self::RemoveContainer(_, reply)
            | Self::Update(_, _, reply)
            | Self::ReopenLog(_, reply)
            | Self::StopPod(reply)
            | Self::RemovePod(reply)
            | Self::Keep(reply) => reply.steps.clone(),
        }
    }
}

impl Task {
    /// Handles one command; until the sandbox is started, most of them wait.
    pub(super) fn command(&mut self, command: Command) {
        let waits = !matches!(command, Command::Join(_) | Command::Keep(_));
        if self.record.phase == Phase::Starting && waits {
            self.deferred.push(command);
            return;
        }
        self.steps = command.steps();
        crate::failpoint::panic_once("command");
        match command {
            Command::Join(reply) => self.join(reply),
            Command::Create(config, reply) => self.create(*config, reply),
            Command::Start(id, reply) => self.start_container(&id, reply),
            Command::Stop(id, grace, reply) => self.stop_container(&id, grace, reply),
            Command::RemoveContainer(id, reply) => self.remove_container(&id, reply),
            Command::Update(id, resources, reply) => self.update(&id, resources, reply),
            Command::ReopenLog(id, reply) => self.reopen_log(&id, reply),
            Command::StopPod(reply) => self.stop_pod(reply),
            Command::RemovePod(reply) => self.remove_pod(reply),
            Command::Keep(reply) => self.keep_at_the_end(reply),
        }
    }

    fn what(&self) -> String {
        format!("pod sandbox {}", self.record.id)
    }

    fn join(&mut self, reply: Reply<PodId>) {
        match &self.record.phase {
            Phase::Starting => self.joining.push(reply),
            Phase::Ready => self.answers.one(reply, Ok(self.record.id.clone())),
            phase @ (Phase::Failed { .. } | Phase::Stopping | Phase::Stopped) => {
                let key = &self.record.config.key;
                let what = format!(
                    "pod sandbox {}/{} uid {} attempt {}",
                    key.namespace, key.name, key.uid, key.attempt
                );
                let (id, state) = (self.record.id.to_string(), phase.word());
                self.answers
                    .one(reply, Err(PodError::Exists { what, id, state }));
            }
        }
    }

    fn create(&mut self, config: ContainerConfig, reply: Reply<ContainerId>) {
        if let Some(id) = self.keys.get(&config.key).cloned() {
            return self.join_creation(&id, reply);
        }
        let monitor = match (&self.record.phase, self.link.monitor()) {
            (Phase::Ready, Some(monitor)) => monitor.clone(),
            (Phase::Ready, None) => return self.answers.one(reply, Err(PodError::MonitorSilent)),
            (phase, _) => {
                let (what, state) = (self.what(), phase.word().to_owned());
                return self
                    .answers
                    .one(reply, Err(PodError::State { what, state }));
            }
        };
        let target = match &config.security.pid {
            PidMode::Target(id) => match self.target(id) {
                Ok(target) => Some(target),
                Err(error) => return self.answers.one(reply, Err(error)),
            },
            PidMode::Pod | PidMode::Container | PidMode::Node => None,
        };
        let traced =
            container::refuse_traced_birth(&self.engine, &self.record, &config, target.as_ref());
        if let Err(error) = traced {
            return self.answers.one(reply, Err(error));
        }
        let id = ContainerId::random();
        let intent = self.mark("intent");
        let record = match container::intend(&self.engine, &self.record, id.clone(), config) {
            Ok(record) => record,
            Err(error) => return self.answers.one(reply, Err(error)),
        };
        if let Err(error) = on_disk(|| self.dir.begin_container(&record)) {
            return self.answers.one(reply, Err(error.into()));
        }
        drop(intent);
        crate::failpoint::hit("create-intent");
        self.keys.insert(record.config.key.clone(), id.clone());
        let mut slot = Box::new(Slot::new(record.clone(), None));
        let (creation, stop) = oneshot::channel();
        slot.creation = Some(creation);
        slot.creating.push(reply);
        self.slots.insert(id.clone(), slot);
        let sandbox = Sandbox {
            pod: self.record.clone(),
            monitor,
            target,
        };
        let work = container::create(Arc::clone(&self.engine), sandbox, record, stop);
        self.job(async move { Ok(Box::pin(work).await) }, move |made| {
            let made = made.unwrap_or_else(|panic| Err(NotCreated::panicked(panic)));
            Done::Created(id, made)
        });
    }

    /// The container whose PID namespace another one is to enter.
    fn target(&self, id: &str) -> Result<Target, PodError> {
        let mut matching = self
            .slots
            .iter()
            .filter(|(known, _)| known.as_str().starts_with(id));
        let first = matching.next();
        match first.map(|(_, slot)| slot) {
            Some(_) if matching.next().is_some() => Err(PodError::State {
                what: format!("target container {id:?}"),
                state: "the beginning of more than one id".to_owned(),
            }),
            Some(slot) if slot.record.state.is_running() => {
                let pid = slot
                    .pid
                    .ok_or_else(|| PodError::NoContainer(id.to_owned()))?;
                let may_trace = spec::may_trace(&slot.record.config.security);
                let id = slot.record.id.clone();
                Ok(Target { id, pid, may_trace })
            }
            Some(slot) => Err(PodError::State {
                what: format!("target container {id}"),
                state: slot.record.state.word().to_owned(),
            }),
            None => Err(PodError::NoContainer(id.to_owned())),
        }
    }

    fn join_creation(&mut self, id: &ContainerId, reply: Reply<ContainerId>) {
        let Some(slot) = self.slots.get_mut(id) else {
            return;
        };
        match &slot.record.state {
            State::Creating => slot.creating.push(reply),
            State::Created => self.answers.one(reply, Ok(id.clone())),
            other => {
                let key = &slot.record.config.key;
                let what = format!("container {} attempt {}", key.name, key.attempt);
                let state = other.word();
                self.answers.one(
                    reply,
                    Err(PodError::Exists {
                        what,
                        id: id.to_string(),
                        state,
                    }),
                );
            }
        }
    }

    fn start_container(&mut self, id: &ContainerId, reply: Reply<()>) {
        let Some(slot) = self.slots.get_mut(id) else {
            return self
                .answers
                .one(reply, Err(PodError::NoContainer(id.to_string())));
        };
        match &slot.record.state {
            // A repeated call joins the first or finds its work done.
            State::Starting => return slot.starting.push(reply),
            State::Running { .. } => return self.answers.one(reply, Ok(())),
            State::Exited(_) => {
                let (what, state) = (format!("container {id}"), "exited".to_owned());
                return self
                    .answers
                    .one(reply, Err(PodError::State { what, state }));
            }
            _ => {}
        }
        if !self.record.phase.is_ready() {
            let (what, state) = (self.what(), self.record.phase.word().to_owned());
            return self
                .answers
                .one(reply, Err(PodError::State { what, state }));
        }
        if self.link.monitor().is_none() {
            return self.answers.one(reply, Err(PodError::MonitorSilent));
        }
        match self.step(id, Input::StartAsked) {
            Ok(_) => {
                if let Some(slot) = self.slots.get_mut(id) {
                    slot.starting.push(reply);
                }
            }
            Err(error) => self.answers.one(reply, Err(error)),
        }
    }

    /// Steps a container's machine, keeps the outcome and orders the work.
    pub(super) fn step(&mut self, id: &ContainerId, input: Input) -> Result<(), PodError> {
        let Some(slot) = self.slots.get_mut(id) else {
            return Err(PodError::NoContainer(id.to_string()));
        };
        let before = slot.record.state.clone();
        // A restart finds out what a container has become, but not that it was promised.
        let must_be_kept = matches!(input, Input::Made | Input::StartAsked);
        let (after, works) = before
            .clone()
            .step(input)
            .map_err(|refused| PodError::State {
                what: format!("container {id}"),
                state: refused.0.to_owned(),
            })?;
        if after != before {
            tracing::debug!(container = %id, from = before.word(), to = after.word(), "transition");
            slot.record.state = after;
            slot.forget_what_ran();
            if must_be_kept {
                let kept = self.keep(id);
                self.take_back_unless(kept, id, before)?;
            } else {
                self.keep_if_possible(id);
            }
        }
        for work in works {
            self.order(id, work);
        }
        Ok(())
    }

    /// A transition that is not on disk has not happened.
    fn take_back_unless(
        &mut self,
        kept: Result<(), PodError>,
        id: &ContainerId,
        before: State,
    ) -> Result<(), PodError> {
        if kept.is_err() {
            if let Some(slot) = self.slots.get_mut(id) {
                slot.record.state = before;
            }
            self.refresh(id);
        }
        kept
    }

    fn order(&mut self, id: &ContainerId, work: Work) {
        match work {
            Work::Start => self.order_start(id),
            Work::Signal => self.order_signal(id),
            Work::Kill => self.order_kill(id),
            Work::Grace(grace) => self.order_grace(id, grace),
            Work::Ended => self.ended(id),
        }
    }

    fn order_start(&mut self, id: &ContainerId) {
        let Some(monitor) = self.link.monitor().cloned() else {
            return;
        };
        let own = id.clone();
        let work = async move {
            let started = monitor.start(own.as_str()).await;
            started
                .map(|started| started.started_at)
                .map_err(container::launch_error)
        };
        let id = id.clone();
        self.job(work, move |started| Done::Started(id, started));
        crate::failpoint::hit("start-ordered");
    }

    fn order_grace(&mut self, id: &ContainerId, grace: Duration) {
        let timer = self.timer(grace, Done::GraceOver(id.clone()));
        match self.slots.get_mut(id) {
            Some(slot) => slot.graces.push(timer),
            None => timer.abort(),
        }
    }

    fn order_signal(&mut self, id: &ContainerId) {
        let Some(signal) = self.slots.get(id).map(|slot| slot.record.stop_signal) else {
            return;
        };
        self.send(id, signal);
    }

    pub(super) fn send(&mut self, id: &ContainerId, signal: i32) {
        let Some(monitor) = self.link.monitor().cloned() else {
            return;
        };
        let id = id.clone();
        let work = async move {
            let sent = monitor.signal(id.as_str(), signal);
            match tokio::time::timeout(SIGNAL_PATIENCE, sent).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(container = %id, signal, %error, "signal"),
                Err(_) => {
                    tracing::warn!(container = %id, signal, "the monitor does not answer a signal");
                }
            }
            Ok(())
        };
        self.job(work, |_: Result<(), PodError>| Done::Quiet);
    }

    fn stop_container(&mut self, id: &ContainerId, grace: Duration, reply: Reply<()>) {
        let Some(slot) = self.slots.get_mut(id) else {
            return self.answers.one(reply, Ok(()));
        };
        match slot.record.state {
            State::Exited(_) | State::Created | State::Creating => {
                return self.answers.one(reply, Ok(()));
            }
            _ => slot.stopping.push(reply),
        }
        if let Err(error) = self.step(id, Input::StopAsked { grace }) {
            tracing::debug!(container = %id, %error, "stop");
        }
    }

    fn remove_container(&mut self, id: &ContainerId, reply: Reply<()>) {
        let Some(slot) = self.slots.get_mut(id) else {
            return self.answers.one(reply, Ok(()));
        };
        slot.removal.ask(reply);
        match slot.record.state {
            // Removed as soon as it is made.
            State::Creating => {}
            State::Created | State::Exited(_) => self.remove_when_ended(id),
            _ => {
                if let Err(error) = self.step(
                    id,
                    Input::StopAsked {
                        grace: Duration::ZERO,
                    },
                ) {
                    tracing::debug!(container = %id, %error, "kill before removal");
                }
            }
        }
    }

    pub(super) fn update(&mut self, id: &ContainerId, update: Resources, reply: Reply<()>) {
        if let Some(slot) = self.slots.get_mut(id)
            && slot.limits_in_force.is_some()
        {
            return slot.updates.push_back((update, reply));
        }
        let new = match self.intend_update(id, &update) {
            Ok(new) => new,
            Err(error) => {
                self.answers.one(reply, Err(error));
                return self.next_update(id);
            }
        };
        let Some(record) = self.slots.get(id).map(|slot| slot.record.clone()) else {
            return;
        };
        let (engine, own) = (Arc::clone(&self.engine), id.clone());
        let work = async move { container::update(&engine, &record, new).await };
        self.job(work, move |result| Done::Updated(own, result, reply));
    }

    /// Writes down what the limits will be: a limit that is in force and not on disk
    /// would be another after a restart.
    fn intend_update(
        &mut self,
        id: &ContainerId,
        update: &Resources,
    ) -> Result<Resources, PodError> {
        let Some(slot) = self.slots.get_mut(id) else {
            return Err(PodError::NoContainer(id.to_string()));
        };
        if slot.has_ended() || slot.record.state == State::Creating {
            let state = slot.record.state.word().to_owned();
            let what = format!("container {id}");
            return Err(PodError::State { what, state });
        }
        let before = slot.record.config.resources.clone();
        let new = resources::merge(&before, update);
        Arc::make_mut(&mut slot.record.config).resources = new.clone();
        slot.limits_in_force = Some(before.clone());
        let kept = self.keep(id);
        if kept.is_err()
            && let Some(slot) = self.slots.get_mut(id)
        {
            Arc::make_mut(&mut slot.record.config).resources = before;
            slot.limits_in_force = None;
            self.refresh(id);
        }
        kept.map(|()| new)
    }

    /// The update that has waited longest.
    pub(super) fn next_update(&mut self, id: &ContainerId) {
        let slot = self.slots.get_mut(id);
        if let Some((update, reply)) = slot.and_then(|slot| slot.updates.pop_front()) {
            self.update(id, update, reply);
        }
    }

    fn reopen_log(&mut self, id: &ContainerId, reply: Reply<()>) {
        let Some(slot) = self.slots.get(id) else {
            return self
                .answers
                .one(reply, Err(PodError::NoContainer(id.to_string())));
        };
        if self.link.is_sought() {
            return self.answers.one(reply, Err(PodError::MonitorSilent));
        }
        let (Some(monitor), true) = (self.link.monitor().cloned(), slot.record.state.is_running())
        else {
            let (what, state) = (
                format!("container {id}"),
                slot.record.state.word().to_owned(),
            );
            return self
                .answers
                .one(reply, Err(PodError::State { what, state }));
        };
        let id = id.clone();
        let Some(path) = slot.record.log_path.clone() else {
            let what = format!("container {id}");
            let state = "without a log".to_owned();
            return self
                .answers
                .one(reply, Err(PodError::State { what, state }));
        };
        let work = async move {
            let result = monitor.reopen_log(id.as_str(), &path).await;
            let named = |error| PodError::runtime(format!("reopen log of container {id}"), error);
            reply.answer(result.map_err(named));
            Ok(())
        };
        self.job(work, |_: Result<(), PodError>| Done::Quiet);
    }
}

//! Sandboxes whose record cannot be read: cut short by a power loss, damaged, or written
//! by a newer engine.
//!
//! Such a sandbox is listed as NOTREADY, with its containers as their own records say. Its
//! name, namespace, uid and attempt stay taken where the rest of the record tells them, so
//! that RunPodSandbox starts no second one beside what may still run. StopPodSandbox and
//! RemovePodSandbox end all that bears its id: monitor, cgroups, network, mounts and writable
//! layers are named by it. StopContainer and RemoveContainer work, too, since a kubelet calls
//! them first and does not go on to the sandbox where they fail. After another boot nothing
//! of it can run, and all is given back at once. Before that, a crash of this engine or a
//! return to the newer one leaves it as it was.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use runtime::client::{ContainerReport, ContainerState, Event, ExitRecord};
use tokio::sync::mpsc;

use super::backoff::Backoff;
use super::error::PodError;
use super::index::Inbox;
use super::machine::{Exit, State};
use super::placeholder;
use super::record::{ContainerRecord, PodDir, RecordError, Recorded};
use super::task::{Command, exit_of, refuse};
use super::view::{ContainerView, PodView};
use super::{restore, teardown};
use crate::causes::with_causes;
use crate::clock::now;
use crate::context::Engine;
use crate::ids::{ContainerId, PodId};
use crate::model::SandboxConfig;
use crate::threads::{blocking, blocking_with, on_disk};

/// How long a monitor may take to end what it has.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked whether containers have ended.
const LOOK: Duration = Duration::from_secs(5);
/// The longest grace period: whatever else is asked of the sandbox waits for it.
const LONGEST_GRACE: Duration = Duration::from_secs(30);

/// Whether the records of such a sandbox may be readable later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Records {
    /// A disk, or a shortage of something, does not give them now: they are asked for again
    /// until it does, or until the sandbox is ended.
    Withheld,
    /// They are damaged, of a newer engine, or say the same as another sandbox's: they stay so.
    Unusable,
}

impl Records {
    /// What an error says of them.
    pub(super) fn after(error: &RecordError) -> Self {
        match error.may_pass() {
            true => Self::Withheld,
            false => Self::Unusable,
        }
    }
}

/// Keeps the identity of such a sandbox and lists it, with the reason.
pub(super) fn hold(engine: &Arc<Engine>, id: &PodId, dir: &PodDir, reason: &str, records: Records) {
    let config = dir.config_of_broken();
    let config = config.unwrap_or_else(|| placeholder::sandbox(id));
    let (inbox, receiver) = Inbox::new(id);
    if engine.index.claim(&config.key, &inbox).is_err() {
        // Another has the identity; the id is unique.
        let alone = placeholder::sandbox(id);
        if engine.index.claim(&alone.key, &inbox).is_err() {
            return;
        }
    }
    let mut held = Held {
        engine: Arc::clone(engine),
        id: id.clone(),
        dir: dir.clone(),
        config: Arc::new(config),
        reason: format!("its record cannot be read: {reason}"),
        containers: BTreeMap::new(),
        records,
    };
    held.look();
    held.publish();
    tokio::spawn(async move { held.run(receiver).await });
}

/// Gives such a sandbox back of which nothing can run any more.
pub(super) fn give_back(engine: &Arc<Engine>, id: &PodId, dir: &PodDir) {
    let (engine, id, dir) = (Arc::clone(engine), id.clone(), dir.clone());
    tokio::spawn(async move {
        let mut backoff = Backoff::default();
        while let Err(error) = remove(&engine, &id, &dir).await {
            let reason = with_causes(&error);
            tracing::warn!(pod = %id, reason, "a sandbox without a readable record is not given back yet");
            tokio::time::sleep(backoff.pause()).await;
        }
        engine.index.forget(&id);
        tracing::info!(pod = %id, "a sandbox without a readable record was given back");
    });
}

/// Ends the containers of a readable sandbox whose own records cannot be read: nothing
/// is known of them, so that they could not be listed, stopped or run into again.
pub(super) fn end_containers(
    engine: &Arc<Engine>,
    pod: &PodId,
    dir: &PodDir,
    damaged: &[(String, RecordError)],
) {
    for (container, error) in damaged {
        let reason = with_causes(error);
        tracing::error!(%pod, container, reason, "a container whose record is damaged is ended and removed");
    }
    if damaged.is_empty() {
        return;
    }
    let lost: Vec<_> = damaged.iter().map(|(id, _)| id.clone()).collect();
    let (engine, pod, dir) = (Arc::clone(engine), pod.clone(), dir.clone());
    tokio::spawn(async move {
        let mut backoff = Backoff::default();
        while let Err(error) = remove_containers(&engine, &dir, &lost).await {
            let reason = with_causes(&error);
            tracing::warn!(%pod, reason, "containers without readable records are not given back yet");
            tokio::time::sleep(backoff.pause()).await;
        }
    });
}

async fn remove_containers(
    engine: &Arc<Engine>,
    dir: &PodDir,
    ids: &[String],
) -> Result<(), PodError> {
    end_cgroups(engine, ids.to_vec()).await?;
    give_layers_back(engine, ids).await?;
    for id in ids
        .iter()
        .filter_map(|id| ContainerId::try_from(id.as_str()).ok())
    {
        let dir = dir.clone();
        blocking(move || Ok(dir.remove_container(&id)?)).await?;
    }
    Ok(())
}

/// Kills what is in the cgroups that bear these names, and removes them.
async fn end_cgroups(engine: &Arc<Engine>, names: Vec<String>) -> Result<(), PodError> {
    blocking_with(engine, move |engine| {
        for name in &names {
            let found = engine.cgroups.find(name);
            let step = || format!("find the cgroups of {name}");
            for cgroup in found.map_err(|error| PodError::runtime(step(), error))? {
                teardown::kill_and_remove(engine, cgroup.path())?;
            }
        }
        Ok(())
    })
    .await
}

async fn give_layers_back(engine: &Engine, containers: &[String]) -> Result<(), PodError> {
    for container in containers {
        engine.images.remove_snapshot(container).await?;
        engine.images.release(container);
    }
    Ok(())
}

/// Such a sandbox, with what is known of it.
struct Held {
    engine: Arc<Engine>,
    id: PodId,
    dir: PodDir,
    config: Arc<SandboxConfig>,
    /// Why it is not ready.
    reason: String,
    containers: BTreeMap<ContainerId, Kept>,
    /// Withheld only until it is ended: from then on its records have nothing to go on with.
    records: Records,
}

/// A container of such a sandbox.
struct Kept {
    record: ContainerRecord,
    /// Its record cannot be read either: this one says what is known without it.
    unread: bool,
}

impl Held {
    fn publish(&self) {
        let view = |kept: &Kept| ContainerView {
            unread: kept.unread,
            cgroup: (!kept.unread).then(|| kept.record.cgroup.clone()),
            ..ContainerView::of(&kept.record, &self.id)
        };
        let containers = self.containers.values();
        self.engine.index.publish(&Arc::new(PodView {
            id: self.id.clone(),
            transition: self.engine.index.next_transition(),
            ready: false,
            reason: self.reason.clone(),
            config: Arc::clone(&self.config),
            handler: String::new(),
            created_at: on_disk(|| self.dir.age()),
            cgroup: None,
            netns: None,
            ips: Vec::new(),
            monitor: None,
            containers: containers.map(|kept| Arc::new(view(kept))).collect(),
        }));
    }

    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Command>) {
        let mut backoff = Backoff::default();
        loop {
            let pause = match self.records {
                Records::Withheld => backoff.pause().min(LOOK),
                Records::Unusable => LOOK,
            };
            match tokio::time::timeout(pause, inbox.recv()).await {
                Ok(Some(command)) => {
                    if self.obey(command).await.is_break() {
                        return;
                    }
                }
                Ok(None) => return,
                Err(_) => match self.returns() {
                    Some(recorded) => {
                        tracing::info!(pod = %self.id, "the records of the sandbox can be read again");
                        let Self { engine, dir, .. } = self;
                        // Commands that wait are the task's.
                        drop(on_disk(|| restore::go_on(&engine, &dir, recorded, inbox)));
                        return;
                    }
                    None => self.look_again(),
                },
            }
        }
    }

    /// The records, if they can be read by now and nobody else has the identity.
    fn returns(&self) -> Option<Recorded> {
        if self.records == Records::Unusable {
            return None;
        }
        let recorded = on_disk(|| self.dir.read()).ok().flatten()?;
        let key = &recorded.pod.config.key;
        self.engine.index.identify(key, &self.id).ok()?;
        Some(recorded)
    }

    async fn obey(&mut self, command: Command) -> ControlFlow<()> {
        match command {
            Command::Stop(id, grace, reply) => reply.answer(self.stop(&id, grace).await),
            Command::RemoveContainer(id, reply) => {
                reply.answer(self.remove_container(&id).await);
            }
            Command::StopPod(reply) => reply.answer(self.end().await),
            Command::RemovePod(reply) => {
                let removed = self.remove().await;
                let done = removed.is_ok();
                if done {
                    self.engine.index.forget(&self.id);
                }
                reply.answer(removed);
                if done {
                    return ControlFlow::Break(());
                }
            }
            other => refuse(other, || PodError::State {
                what: format!("pod sandbox {}", self.id),
                state: "left alone until it is removed, since its record cannot be read".to_owned(),
            }),
        }
        ControlFlow::Continue(())
    }

    /// The same as [`Self::look`], for all to see.
    fn look_again(&mut self) {
        let states = |held: &Self| -> Vec<_> {
            let containers = held.containers.values();
            containers
                .map(|kept| (kept.unread, kept.record.state.clone()))
                .collect()
        };
        let before = states(self);
        on_disk(|| self.look());
        if states(self) != before {
            self.publish();
        }
    }

    /// Notes which containers there are, and which have ended already: nobody tells of it.
    fn look(&mut self) {
        let Ok(ids) = self.dir.container_ids() else {
            // Not known now.
            return;
        };
        let ids = ids.into_iter();
        for id in ids.filter_map(|id| ContainerId::try_from(id).ok()) {
            if self.containers.get(&id).is_some_and(|kept| !kept.unread) {
                continue;
            }
            match self.dir.read_container(&id) {
                // Nobody was told of one that was being made.
                Ok(record) if record.state == State::Creating => {
                    self.containers.remove(&id);
                }
                Ok(record) => {
                    let unread = false;
                    self.containers.insert(id, Kept { record, unread });
                }
                Err(_) => {
                    let config = self.dir.container_config_of_broken(&id);
                    // Every id is the name of a cgroup.
                    let Ok(record) = placeholder::container(&id, &self.config, config) else {
                        continue;
                    };
                    let unread = true;
                    self.containers.entry(id).or_insert(Kept { record, unread });
                }
            }
        }
        let Ok(written) = ExitRecord::read_dir(&self.dir.exits()) else {
            return;
        };
        for Kept { record, unread } in self.containers.values_mut() {
            let cgroups = &self.engine.cgroups;
            let gone = || !*unread && !cgroups.open(&record.cgroup).exists();
            if is_written(&written, record) || gone() {
                let message = "it ended, how could not be written down";
                end_record(record, &written, (255, "Unknown", message));
            }
        }
    }

    /// Notes the end of containers whose processes are gone.
    fn note_ended(&mut self, which: impl Fn(&ContainerRecord) -> bool) {
        let message = "the record of its sandbox cannot be read, the container was killed";
        let (written, lost) = match ExitRecord::read_dir(&self.dir.exits()) {
            Ok(written) => (written, (137, "Error", message)),
            Err(_) => (Vec::new(), (255, "Unknown", message)),
        };
        let kept = self.containers.values_mut();
        for Kept { record, unread } in kept.filter(|kept| which(&kept.record)) {
            // What is on disk of one that cannot be read stays as it is.
            if !end_record(record, &written, lost) || *unread {
                continue;
            }
            record.transition = self.engine.index.next_transition();
            if let Err(error) = self.dir.write_container(record) {
                let reason = with_causes(&error);
                tracing::error!(container = %record.id, reason, "the container's record is stale");
                if let Err(error) = self.dir.write_exit(record) {
                    tracing::error!(container = %record.id, %error, "nor is its end on disk");
                }
            }
        }
        self.publish();
    }

    fn container(&self, id: &ContainerId) -> Option<ContainerRecord> {
        self.containers.get(id).map(|kept| kept.record.clone())
    }

    /// Kills what runs in a container and removes its cgroups, which its id names.
    async fn end_processes_of(&self, id: &ContainerId) -> Result<(), PodError> {
        end_cgroups(&self.engine, vec![id.to_string()]).await
    }

    async fn stop(&mut self, id: &ContainerId, grace: Duration) -> Result<(), PodError> {
        let Some(record) = self.container(id) else {
            return Ok(());
        };
        if matches!(record.state, State::Exited(_) | State::Created) {
            return Ok(());
        }
        if !grace.is_zero() {
            let state = self.engine.pod_state(&self.id);
            let ended = end_by_signal(&state, &record);
            if tokio::time::timeout(grace.min(LONGEST_GRACE), ended)
                .await
                .is_err()
            {
                tracing::debug!(container = %id, "grace period of a container is over");
            }
        }
        self.end_processes_of(id).await?;
        on_disk(|| self.note_ended(|record| record.id == *id));
        Ok(())
    }

    async fn remove_container(&mut self, id: &ContainerId) -> Result<(), PodError> {
        let Some(record) = self.container(id) else {
            return Ok(());
        };
        self.end_processes_of(id).await?;
        let reached = restore::reach_soon(&self.engine.pod_state(&self.id)).await;
        let monitor = reached.as_ref().map(|reached| &reached.monitor);
        teardown::container(&self.engine, &self.dir, &record, monitor).await?;
        self.containers.remove(id);
        self.publish();
        Ok(())
    }

    async fn end(&mut self) -> Result<(), PodError> {
        self.records = Records::Unusable;
        end_processes(&self.engine, &self.id, &self.dir).await?;
        on_disk(|| self.note_ended(|_| true));
        give_parts_back(&self.engine, &self.id, &self.dir).await
    }

    async fn remove(&mut self) -> Result<(), PodError> {
        self.end().await?;
        let dir = self.dir.clone();
        blocking(move || Ok(dir.remove()?)).await
    }
}

fn is_written(written: &[ExitRecord], record: &ContainerRecord) -> bool {
    written
        .iter()
        .any(|exit| exit.container == record.id.as_str())
}

/// Notes an end: as the monitor has written it down, or else as `lost` says. False where
/// it is known already.
fn end_record(
    record: &mut ContainerRecord,
    written: &[ExitRecord],
    lost: (i32, &str, &str),
) -> bool {
    if matches!(record.state, State::Exited(_)) {
        return false;
    }
    let known = written
        .iter()
        .find(|exit| exit.container == record.id.as_str());
    let started_at = record.state.started_at();
    let (code, reason, message) = lost;
    let lost = || Exit {
        code,
        reason: reason.to_owned(),
        message: message.to_owned(),
        started_at,
        finished_at: now(),
    };
    record.state = State::Exited(known.map_or_else(lost, exit_of));
    record.process = None;
    true
}

/// Sends a container its stop signal and waits for its end.
async fn end_by_signal(state: &Path, record: &ContainerRecord) {
    let Some(mut reached) = restore::reach_soon(state).await else {
        return;
    };
    let id = record.id.as_str();
    let has_ended = |report: &ContainerReport| {
        report.id == id && matches!(report.state, ContainerState::Exited(_))
    };
    if reached.containers.iter().any(has_ended) {
        return;
    }
    if let Err(error) = reached.monitor.signal(id, record.stop_signal).await {
        tracing::debug!(container = id, %error, "signal");
        return;
    }
    while let Some(event) = reached.events.recv().await {
        match event {
            Event::Exited(exit) if exit.container == id => return,
            Event::Gone => return,
            _ => {}
        }
    }
}

/// Gives back a sandbox that is not held.
async fn remove(engine: &Arc<Engine>, id: &PodId, dir: &PodDir) -> Result<(), PodError> {
    end_processes(engine, id, dir).await?;
    give_parts_back(engine, id, dir).await?;
    let dir = dir.clone();
    blocking(move || Ok(dir.remove()?)).await
}

/// Ends whatever runs below the sandbox's id or that of one of its containers.
async fn end_processes(engine: &Arc<Engine>, id: &PodId, dir: &PodDir) -> Result<(), PodError> {
    let state = engine.pod_state(id);
    if let Some(reached) = restore::reach_soon(&state).await {
        let ended = tokio::time::timeout(PATIENCE, reached.monitor.shutdown()).await;
        tracing::debug!(pod = %id, ?ended, "monitor of an unreadable sandbox");
    }
    let mut names = on_disk(|| dir.container_ids())?;
    names.push(id.to_string());
    end_cgroups(engine, names).await
}

/// Gives back the network, the mounts and the writable layers, once nothing runs.
async fn give_parts_back(engine: &Arc<Engine>, id: &PodId, dir: &PodDir) -> Result<(), PodError> {
    let netns = engine.netns(id);
    engine.network.detach_unrecorded(id, &netns).await?;
    let own = id.clone();
    blocking_with(engine, move |engine| {
        teardown::unpin(&netns)?;
        teardown::remove_state(engine, &own)
    })
    .await?;
    let containers = on_disk(|| dir.container_ids())?;
    give_layers_back(engine, &containers).await
}

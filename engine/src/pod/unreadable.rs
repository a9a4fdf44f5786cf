//! Sandboxes whose record cannot be read: cut short by a power loss, damaged, or written
//! by a newer engine.
//!
//! They are listed as NOTREADY, with their containers as those are recorded, and keep
//! their identity where the rest of the record tells it, so that no second sandbox
//! starts beside what may still run. Whoever stops or removes one ends all that bears
//! its id: the monitor, cgroups, network, mounts and writable layers are all named by it.
//! Their containers can be stopped and removed one by one, too: a kubelet does that first,
//! and never comes to the sandbox where it fails. After another boot nothing of it runs,
//! and all is given back at once. Until then a crash, or a return to the newer engine,
//! leaves it as it was.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use runtime::client::{ContainerReport, ContainerState, Event, ExitRecord};
use tokio::sync::mpsc;

use super::backoff::Backoff;
use super::error::PodError;
use super::machine::{Exit, State};
use super::record::{ContainerRecord, PodDir, RecordError};
use super::task::{Command, exit_of, refuse};
use super::view::{ContainerView, PodView};
use super::{restore, teardown};
use crate::engine::{Engine, blocking, blocking_with, now, on_disk};
use crate::ids::{ContainerId, PodId};
use crate::model::{IpcMode, NetworkMode, Pairs, PidMode, SandboxConfig, SandboxKey};

/// How long a monitor may take to end what it has.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest grace period: whatever else is asked of the sandbox waits for it.
const LONGEST_GRACE: Duration = Duration::from_secs(30);

/// Keeps the identity of such a sandbox and lists it. What `may_pass` is tried again until
/// it has, or the sandbox is ended.
pub(super) fn hold(engine: &Arc<Engine>, id: &PodId, dir: &PodDir, reason: &str, may_pass: bool) {
    let config = dir.config_of_broken().unwrap_or_else(|| unknown(id));
    let (inbox, receiver) = mpsc::unbounded_channel();
    if engine.index.claim(&config.key, id, &inbox).is_err() {
        // Another has the identity; the id is unique.
        let alone = unknown(id);
        if engine.index.claim(&alone.key, id, &inbox).is_err() {
            return;
        }
    }
    let containers = dir.readable_containers().into_iter();
    let mut held = Held {
        engine: Arc::clone(engine),
        id: id.clone(),
        dir: dir.clone(),
        config: Arc::new(config),
        reason: format!("its record cannot be read: {reason}"),
        // Nobody was told of one that was being made.
        containers: containers
            .filter(|record| record.state != State::Creating)
            .collect(),
        may_pass,
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
            let reason = crate::network::chain(&error);
            tracing::warn!(pod = %id, reason, "a sandbox without a readable record is not given back yet");
            tokio::time::sleep(backoff.pause()).await;
        }
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
        let reason = crate::network::chain(error);
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
            let reason = crate::network::chain(&error);
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

fn unknown(id: &PodId) -> SandboxConfig {
    SandboxConfig {
        key: SandboxKey {
            namespace: "unreadable".to_owned(),
            name: id.to_string(),
            uid: id.to_string(),
            attempt: 0,
        },
        hostname: String::new(),
        log_directory: None,
        dns: None,
        port_mappings: Vec::new(),
        labels: Pairs::new(),
        annotations: Pairs::new(),
        cgroup_parent: String::new(),
        network: NetworkMode::Pod,
        pid: PidMode::Container,
        ipc: IpcMode::Pod,
        sysctls: Pairs::new(),
        privileged: false,
    }
}

/// Such a sandbox, with what is known of it.
struct Held {
    engine: Arc<Engine>,
    id: PodId,
    dir: PodDir,
    config: Arc<SandboxConfig>,
    /// Why it is not ready.
    reason: String,
    /// Those with records that can be read.
    containers: Vec<ContainerRecord>,
    /// Whether its records may be readable later, and nothing of it was ended.
    may_pass: bool,
}

impl Held {
    fn publish(&self) {
        let containers = self.containers.iter();
        let containers = containers.map(|record| Arc::new(ContainerView::of(record, &self.id)));
        self.engine.index.publish(&Arc::new(PodView {
            id: self.id.clone(),
            transition: self.engine.index.next_transition(),
            ready: false,
            reason: self.reason.clone(),
            config: Arc::clone(&self.config),
            handler: String::new(),
            created_at: on_disk(|| self.dir.age()),
            cgroup: String::new(),
            netns: None,
            ips: Vec::new(),
            monitor: None,
            containers: containers.collect(),
        }));
    }

    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Command>) {
        let mut backoff = Backoff::default();
        loop {
            let command = tokio::select! {
                command = inbox.recv() => command,
                () = tokio::time::sleep(backoff.pause()), if self.may_pass => {
                    if on_disk(|| self.dir.read()).is_ok() {
                        tracing::info!(pod = %self.id, "the records of the sandbox can be read again");
                        restore::again(&self.engine, &self.id).await;
                        return;
                    }
                    continue;
                }
            };
            let Some(command) = command else { return };
            // Whatever ends a part of it, ends it for good.
            self.may_pass &= matches!(&command, Command::Create(..) | Command::Join(_));
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
                        return;
                    }
                }
                other => refuse(other, || PodError::State {
                    what: format!("pod sandbox {}", self.id),
                    state: "left alone until it is removed, since its record cannot be read"
                        .to_owned(),
                }),
            }
        }
    }

    /// Notes which containers have ended already: nobody tells of it.
    fn look(&mut self) {
        let engine = Arc::clone(&self.engine);
        let Ok(written) = ExitRecord::read_dir(&self.dir.exits()) else {
            // Not known now.
            return;
        };
        for record in &mut self.containers {
            let gone = || !engine.cgroups.open(&record.cgroup).exists();
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
        for record in self.containers.iter_mut().filter(|record| which(record)) {
            if !end_record(record, &written, lost) {
                continue;
            }
            record.transition = self.engine.index.next_transition();
            if let Err(error) = self.dir.write_container(record) {
                let reason = crate::network::chain(&error);
                tracing::error!(container = %record.id, reason, "the container's record is stale");
            }
        }
        self.publish();
    }

    fn container(&self, id: &ContainerId) -> Option<ContainerRecord> {
        let mut containers = self.containers.iter();
        containers.find(|record| record.id == *id).cloned()
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
        teardown::container_processes(&self.engine, &record).await?;
        on_disk(|| self.note_ended(|record| record.id == *id));
        Ok(())
    }

    async fn remove_container(&mut self, id: &ContainerId) -> Result<(), PodError> {
        let Some(record) = self.container(id) else {
            return Ok(());
        };
        teardown::container_processes(&self.engine, &record).await?;
        let reached = restore::reach_soon(&self.engine.pod_state(&self.id)).await;
        let monitor = reached.as_ref().map(|reached| &reached.monitor);
        teardown::container(&self.engine, &self.dir, &record, monitor).await?;
        self.containers.retain(|record| record.id != *id);
        self.publish();
        Ok(())
    }

    async fn end(&mut self) -> Result<(), PodError> {
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

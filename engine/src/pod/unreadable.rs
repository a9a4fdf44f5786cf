//! Sandboxes whose record cannot be read: cut short by a power loss, damaged, or written
//! by a newer engine.
//!
//! They are listed as NOTREADY, with their containers as those are recorded, and keep
//! their identity where the rest of the record tells it, so that no second sandbox
//! starts beside what may still run. Whoever stops or removes one ends all that bears
//! its id: the monitor, cgroups, network, mounts and writable layers are all named by it. After
//! another boot nothing of it runs, and that is done at once. Until then a crash, or a
//! return to the newer engine, leaves it as it was.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::backoff::Backoff;
use super::error::PodError;
use super::record::{ContainerRecord, PodDir};
use super::task::{Command, refuse};
use super::view::{ContainerView, PodView};
use super::{restore, teardown};
use crate::engine::{Engine, blocking, blocking_with, on_disk};
use crate::ids::{ContainerId, PodId};
use crate::model::{IpcMode, NetworkMode, Pairs, PidMode, SandboxConfig, SandboxKey};

/// How long a monitor may take to end what it has.
const PATIENCE: Duration = Duration::from_secs(5);

/// Keeps the identity of such a sandbox and lists it.
pub(super) fn hold(engine: &Arc<Engine>, id: &PodId, dir: &PodDir, reason: &str) {
    let config = dir.config_of_broken().unwrap_or_else(|| unknown(id));
    let (inbox, receiver) = mpsc::unbounded_channel();
    if engine.index.claim(&config.key, id, &inbox).is_err() {
        // Another has the identity; the id is unique.
        let alone = unknown(id);
        if engine.index.claim(&alone.key, id, &inbox).is_err() {
            return;
        }
    }
    publish(engine, id, config, reason);
    let (engine, id, dir) = (Arc::clone(engine), id.clone(), dir.clone());
    tokio::spawn(async move { run(&engine, &id, &dir, receiver).await });
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
    known: &[ContainerRecord],
) {
    let mut lost = match dir.container_ids() {
        Ok(ids) => ids,
        Err(error) => {
            let reason = crate::network::chain(&error);
            return tracing::error!(%pod, reason, "the records of containers cannot be listed");
        }
    };
    lost.retain(|id| known.iter().all(|record| record.id.as_str() != id));
    if lost.is_empty() {
        return;
    }
    tracing::error!(%pod, ?lost, "containers whose records cannot be read are ended and removed");
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
        let mut found = names.iter().flat_map(|name| engine.cgroups.find(name));
        found.try_for_each(|cgroup| teardown::kill_and_remove(engine, cgroup.path()))
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

fn publish(engine: &Engine, id: &PodId, config: SandboxConfig, reason: &str) {
    // As they are recorded: nobody says more of them.
    let containers = engine.pod_dir(id).read_containers().into_iter();
    let containers = containers.filter_map(Result::ok);
    let containers = containers.map(|record| Arc::new(ContainerView::of(&record, id)));
    engine.index.publish(&Arc::new(PodView {
        id: id.clone(),
        transition: engine.index.next_transition(),
        ready: false,
        reason: format!("its record cannot be read: {reason}"),
        config: Arc::new(config),
        handler: String::new(),
        created_at: on_disk(|| engine.pod_dir(id).age()),
        cgroup: String::new(),
        netns: None,
        ips: Vec::new(),
        monitor: None,
        containers: containers.collect(),
    }));
}

async fn run(
    engine: &Arc<Engine>,
    id: &PodId,
    dir: &PodDir,
    mut inbox: mpsc::UnboundedReceiver<Command>,
) {
    while let Some(command) = inbox.recv().await {
        match command {
            Command::StopPod(reply) => reply.answer(end(engine, id, dir).await),
            Command::RemovePod(reply) => {
                let removed = remove(engine, id, dir).await;
                let done = removed.is_ok();
                if done {
                    engine.index.forget(id);
                }
                reply.answer(removed);
                if done {
                    return;
                }
            }
            other => refuse(other, || PodError::State {
                what: format!("pod sandbox {id}"),
                state: "left alone until it is removed, since its record cannot be read".to_owned(),
            }),
        }
    }
}

async fn remove(engine: &Arc<Engine>, id: &PodId, dir: &PodDir) -> Result<(), PodError> {
    end(engine, id, dir).await?;
    let dir = dir.clone();
    blocking(move || Ok(dir.remove()?)).await
}

/// Ends all that bears the sandbox's id or that of one of its containers.
async fn end(engine: &Arc<Engine>, id: &PodId, dir: &PodDir) -> Result<(), PodError> {
    let state = engine.pod_state(id);
    if let Some(reached) = restore::reach_soon(&state).await {
        let ended = tokio::time::timeout(PATIENCE, reached.monitor.shutdown()).await;
        tracing::debug!(pod = %id, ?ended, "monitor of an unreadable sandbox");
    }
    let containers = on_disk(|| dir.container_ids())?;
    let mut names = containers.clone();
    names.push(id.to_string());
    end_cgroups(engine, names).await?;
    let netns = engine.netns(id);
    engine.network.detach_unrecorded(id, &netns).await?;
    let own = id.clone();
    blocking_with(engine, move |engine| {
        teardown::unpin(&netns)?;
        teardown::remove_state(engine, &own)
    })
    .await?;
    give_layers_back(engine, &containers).await
}

//! Gives back everything that a sandbox or a container may consist of.
//!
//! Works from the records alone, in any state, as often as wanted: what is gone
//! already is no error. So the same code undoes a failed launch, stops a
//! sandbox, and cleans up after a crash or a reboot.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use runtime::cgroup::CgroupPath;
use runtime::client::Monitor;
use runtime::client::steps::mark;

use super::error::PodError;
use super::files;
use super::record::{ContainerRecord, PodRecord};
use crate::context::Engine;
use crate::failpoint;
use crate::ids::PodId;
use crate::threads::{blocking, blocking_with};

/// How long the processes of a killed cgroup may take to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(20);

/// How long a monitor may take to end all that it has; after that the cgroups are
/// killed without it.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(5);

/// Ends all processes of a sandbox and gives its parts back, but keeps its records.
pub(crate) async fn pod(
    engine: &Arc<Engine>,
    record: &PodRecord,
    monitor: Option<&Monitor>,
) -> Result<(), PodError> {
    // A monitor that says so has reaped all that lived in the namespaces.
    let ended = match monitor {
        Some(monitor) => shut_down(&record.id, monitor).await,
        None => false,
    };
    failpoint::hit("stop-monitor");
    let processes = async {
        let own = record.clone();
        blocking_with(engine, move |engine| processes(engine, &own)).await?;
        if let Some(systemd) = engine.cgroups.systemd() {
            let _step = mark("scope");
            let ended = systemd.end(&record.cgroup).await;
            ended.map_err(|error| PodError::runtime("end the pod's scope", error))?;
        }
        failpoint::hit("stop-processes");
        Ok::<_, PodError>(())
    };
    let state = async {
        let id = record.id.clone();
        blocking_with(engine, move |engine| remove_state(engine, &id)).await
    };
    let network = give_network_back(engine, record);
    if ended {
        let (processes, network, state) = tokio::join!(processes, network, state);
        processes.and(network).and(state)
    } else {
        processes.await?;
        network.await?;
        state.await
    }
}

/// Asks a monitor to end all that it has; false where it did not say that it has.
async fn shut_down(pod: &PodId, monitor: &Monitor) -> bool {
    match tokio::time::timeout(SHUTDOWN_PATIENCE, monitor.shutdown()).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::debug!(%pod, %error, "monitor at shutdown");
            false
        }
        Err(_) => {
            tracing::warn!(%pod, "the monitor does not answer, the pod is ended without it");
            false
        }
    }
}

/// The pod's addresses and interfaces, then its namespace.
async fn give_network_back(engine: &Arc<Engine>, record: &PodRecord) -> Result<(), PodError> {
    let Some(netns) = record.netns.clone() else {
        return Ok(());
    };
    if let Some(attachment) = &record.attachment {
        let _step = mark("network");
        if record.may_be_adding() {
            engine.network.end_survivors(&record.id, attachment).await?;
        }
        let detached = engine.network.detach(&record.id, &netns, attachment);
        detached.await?;
    }
    failpoint::hit("stop-network");
    blocking_with(engine, move |_| {
        let _step = mark("network namespace");
        unpin(&netns)
    })
    .await
}

/// Drops a network namespace; one that is not there is fine.
pub(super) fn unpin(netns: &Path) -> Result<(), PodError> {
    runtime::netns::NetNs::unpin(netns).map_err(|error| {
        let step = format!("unpin network namespace {}", netns.display());
        PodError::runtime(step, error)
    })
}

/// Undoes a sandbox that nobody was told of, its records last: on an error they stay,
/// for this engine or the next to try again.
pub(crate) async fn undo(
    engine: &Arc<Engine>,
    record: &PodRecord,
    monitor: Option<&Monitor>,
) -> Result<(), PodError> {
    pod(engine, record, monitor).await?;
    let dir = engine.pod_dir(&record.id);
    blocking(move || Ok(dir.remove()?)).await
}

/// Whatever is in the pod's own cgroup, a monitor that cannot be reached included.
fn processes(engine: &Engine, record: &PodRecord) -> Result<(), PodError> {
    let _step = mark("pod's processes and cgroup");
    let parent = record.config.cgroup_parent.path(&*engine.cgroups);
    engine.left_parents.note(parent);
    // Those that wait for a disk cannot be killed, and end with what they have once the
    // disk goes on.
    let cgroup = engine.cgroups.open(&record.cgroup);
    let step = || format!("find log writers in cgroup {}", record.cgroup);
    cgroup
        .let_go(runtime::log::WRITER_NAME)
        .map_err(|error| PodError::runtime(step(), error))?;
    kill_and_remove(engine, &record.cgroup)
}

/// Ends what is in a cgroup and removes it; one that is not there is fine.
pub(super) fn kill_and_remove(engine: &Engine, path: &CgroupPath) -> Result<(), PodError> {
    let cgroup = engine.cgroups.open(path);
    if !cgroup.exists() {
        return Ok(());
    }
    cgroup
        .kill(KILL_DEADLINE)
        .map_err(|error| PodError::runtime(format!("kill what is in cgroup {path}"), error))?;
    engine
        .cgroups
        .remove(&cgroup)
        .map_err(|error| PodError::runtime(format!("remove cgroup {path}"), error))
}

/// Unmounts and removes what a pod has below `--state`.
pub(super) fn remove_state(engine: &Engine, id: &PodId) -> Result<(), PodError> {
    let _step = mark("state");
    files::unmount_shm(&engine.shm(id))?;
    let state = engine.pod_state(id);
    match std::fs::remove_dir_all(&state) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(PodError::runtime(
            format!("remove {}", state.display()),
            error,
        )),
        _ => Ok(()),
    }
}

/// Ends a container's processes and gives its cgroup back; its records, its
/// writable layer and its log stay.
pub(crate) async fn container_processes(
    engine: &Arc<Engine>,
    record: &ContainerRecord,
) -> Result<(), PodError> {
    let _step = mark("container's processes and cgroup");
    let cgroup = record.cgroup.clone();
    blocking_with(engine, move |engine| kill_and_remove(engine, &cgroup)).await
}

/// Removes a container with all that belongs to it but its log.
pub(crate) async fn container(
    engine: &Arc<Engine>,
    pod: &super::record::PodDir,
    record: &ContainerRecord,
    monitor: Option<&Monitor>,
) -> Result<(), PodError> {
    if let Some(monitor) = monitor {
        let forgotten = monitor.delete(record.id.as_str());
        match tokio::time::timeout(SHUTDOWN_PATIENCE, forgotten).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(container = %record.id, %error, "monitor forgets the container");
            }
            Err(_) => {
                tracing::warn!(container = %record.id, "the monitor does not answer, the container is removed without it");
            }
        }
    }
    failpoint::hit("remove-monitor");
    container_processes(engine, record).await?;
    failpoint::hit("remove-cgroup");
    let step = mark("writable layer");
    engine.images.remove_snapshot(record.id.as_str()).await?;
    drop(step);
    failpoint::hit("remove-snapshot");
    engine.images.release(record.id.as_str());
    engine.samples.forget(record.id.as_str());
    let (pod, id) = (pod.clone(), record.id.clone());
    blocking_with(engine, move |_| Ok(pod.remove_container(&id)?)).await
}

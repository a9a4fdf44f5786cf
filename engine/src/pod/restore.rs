//! What an earlier engine left: its records are read at start, and a task is started
//! for each pod, which finds out what is true and finishes or undoes the rest.
//!
//! - Nothing but the records is waited for: a monitor that does not answer, a process
//!   that does not end or a plugin that fails delays its own pod only.
//! - A sandbox that was being started is undone: nobody was told of it.
//! - A sandbox that ran is reached through its monitor; exits that happened
//!   meanwhile are read from the monitor's records, with their true times.
//! - After another boot nothing runs: sandboxes are NOTREADY, containers EXITED,
//!   and the network is given back for each.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use runtime::client::{ExitRecord, Monitor, Reached};
use tokio::sync::{mpsc, oneshot};

use super::error::PodError;
use super::index::Inbox;
use super::machine::{Exit, Phase, State};
use super::record::{ContainerRecord, PodDir, RecordError, Recorded};
use super::task::{Command, Restored, RestoredContainer, exit_of, resume};
use super::unreadable::{self, Records};
use crate::causes::with_causes;
use crate::clock::now;
use crate::context::Engine;
use crate::ids::PodId;
use crate::threads::on_disk;

/// How long the records of a pod may take to be given by a disk, or by what else is short
/// for a moment, until the sandbox is shown as one whose record cannot be read.
const READ_PATIENCE: Duration = Duration::from_secs(1);
/// The pause between two tries.
const READ_PAUSE: Duration = Duration::from_millis(100);
/// How long a monitor may take to answer until that is worth a word.
const REACH_PATIENCE: Duration = Duration::from_secs(4);
/// How long a monitor is looked for whose pod has to be undone anyway.
const UNDO_PATIENCE: Duration = Duration::from_secs(5);
/// How long the first answers wait for monitors, so that they are as true as can be.
const FIRST_ANSWER: Duration = Duration::from_secs(1);

/// Reads all records and starts a task for every pod. Answers their number once the
/// monitors have said what they know, or soon.
pub(crate) async fn restore(engine: &Arc<Engine>) -> Result<usize, PodError> {
    let step = || format!("read {}", engine.config.pods_dir().display());
    let ids = pods(engine).map_err(|error| PodError::runtime(step(), error))?;
    let mut works = tokio::task::JoinSet::new();
    for id in &ids {
        let (engine, id) = (Arc::clone(engine), id.clone());
        works.spawn(async move { one(&engine, &id).await });
    }
    let mut alive = HashSet::new();
    let mut all_listed = true;
    let mut reached = Vec::new();
    while let Some(work) = works.join_next().await {
        let found = work.map_err(|error| PodError::Defect(error.to_string()))?;
        match found.containers {
            Some(containers) => alive.extend(containers),
            None => all_listed = false,
        }
        reached.extend(found.reached);
    }
    let count = reached.len();
    sweep(engine, &ids, all_listed.then_some(&alive));
    let all = futures::future::join_all(reached);
    if tokio::time::timeout(FIRST_ANSWER, all).await.is_err() {
        tracing::warn!("not every monitor answers yet, their pods are shown as recorded");
    }
    Ok(count)
}

/// Starts the task of one pod again, from its records. Lists say of it what they said,
/// until it is known better.
pub(crate) async fn again(engine: &Arc<Engine>, id: &PodId) {
    // Nobody waits: the lists show the records meanwhile.
    drop(one(engine, id).await);
}

/// Every pod that has a folder, whatever its record says.
pub(crate) fn pods(engine: &Engine) -> std::io::Result<Vec<PodId>> {
    let mut ids = Vec::new();
    for entry in std::fs::read_dir(engine.config.pods_dir())? {
        let name = entry?.file_name().into_string().ok();
        ids.extend(name.and_then(|name| PodId::try_from(name).ok()));
    }
    Ok(ids)
}

/// Removes, in the background, snapshots and state folders that no record speaks of now;
/// no snapshot where not every record could be listed.
fn sweep(engine: &Arc<Engine>, pods: &[PodId], containers: Option<&HashSet<String>>) {
    let mut snapshots = engine.images.snapshots();
    snapshots.retain(|owner| containers.is_some_and(|known| !known.contains(owner)));
    let known: HashSet<&str> = pods.iter().map(PodId::as_str).collect();
    let entries = std::fs::read_dir(engine.config.pods_state_dir());
    let is_known = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| known.contains(name))
    };
    let folders: Vec<PathBuf> = entries
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| !is_known(path))
        .collect();
    let engine = Arc::clone(engine);
    tokio::spawn(async move {
        for owner in snapshots {
            if let Err(error) = engine.images.remove_snapshot(&owner).await {
                tracing::warn!(owner, %error, "a snapshot without a container stays");
            }
        }
        for folder in folders {
            on_disk(|| remove_state(&folder));
        }
    });
}

fn remove_state(path: &Path) {
    if let Err(error) = super::files::unmount_shm(&path.join("shm")) {
        tracing::warn!(%error, "a mount without a sandbox stays");
        return;
    }
    if let Err(error) = std::fs::remove_dir_all(path) {
        tracing::warn!(path = %path.display(), %error, "a folder without a sandbox stays");
    }
}

/// What was found of one pod.
struct Found {
    /// The containers whose files must stay; absent where they cannot be listed.
    containers: Option<Vec<String>>,
    /// Answered when the pod's monitor has said what it knows; absent without a task.
    reached: Option<oneshot::Receiver<()>>,
}

async fn one(engine: &Arc<Engine>, id: &PodId) -> Found {
    let dir = engine.pod_dir(id);
    match read(&dir).await {
        Ok(Some(recorded)) => {
            let damaged = recorded.damaged.iter().map(|(id, _)| id.clone());
            let whole = recorded.containers.iter();
            let containers = whole.map(|record| record.id.to_string()).chain(damaged);
            Found {
                containers: Some(containers.collect()),
                reached: on_disk(|| pod(engine, &dir, recorded)),
            }
        }
        Ok(None) => {
            // A removal, or a creation, that was cut off; or somebody took the record away.
            tracing::warn!(pod = %id, "a sandbox without a record is given back");
            unreadable::give_back(engine, id, &dir);
            Found {
                containers: on_disk(|| dir.container_ids()).ok(),
                reached: None,
            }
        }
        Err(error) => {
            let reason = with_causes(&error);
            if engine.first_of_boot && !error.may_pass() {
                tracing::error!(pod = %id, reason, "the record of a sandbox of an earlier boot cannot be read, the sandbox is given back");
                unreadable::give_back(engine, id, &dir);
            } else {
                tracing::error!(pod = %id, reason, "the record of the sandbox cannot be read, it is left alone until it can be or is removed");
                on_disk(|| unreadable::hold(engine, id, &dir, &reason, Records::after(&error)));
            }
            Found {
                containers: on_disk(|| dir.container_ids()).ok(),
                reached: None,
            }
        }
    }
}

/// Reads all records of a pod. What the disk does not give is asked for some more times.
async fn read(dir: &PodDir) -> Result<Option<Recorded>, RecordError> {
    let end = Instant::now() + READ_PATIENCE;
    loop {
        match on_disk(|| dir.read()) {
            Err(error) if error.may_pass() && Instant::now() < end => {
                tracing::debug!(error = with_causes(&error), "records");
                tokio::time::sleep(READ_PAUSE).await;
            }
            read => return read,
        }
    }
}

fn pod(engine: &Arc<Engine>, dir: &PodDir, recorded: Recorded) -> Option<oneshot::Receiver<()>> {
    let (inbox, receiver) = Inbox::new(&recorded.pod.id);
    let key = &recorded.pod.config.key;
    if engine.index.claim(key, &inbox).is_err() {
        let id = &recorded.pod.id;
        tracing::error!(pod = %id, "two records of one sandbox, this one is left alone until it is removed");
        unreadable::hold(
            engine,
            id,
            dir,
            "another record has the same identity",
            Records::Unusable,
        );
        return None;
    }
    Some(go_on(engine, dir, recorded, receiver))
}

/// Starts the task of a pod that is in the index, from its records.
pub(crate) fn go_on(
    engine: &Arc<Engine>,
    dir: &PodDir,
    recorded: Recorded,
    inbox: mpsc::UnboundedReceiver<Command>,
) -> oneshot::Receiver<()> {
    let mut record = recorded.pod;
    let before = record.clone();
    engine.index.continue_after(record.transition);
    let same_boot = record.boot_id == engine.boot_id;
    let monitored = same_boot && record.phase != Phase::Stopped;
    let containers = containers(engine, dir, recorded.containers, &recorded.exits);
    unreadable::end_containers(engine, &record.id, dir, &recorded.damaged);
    if !same_boot && !matches!(record.phase, Phase::Starting | Phase::Stopped) {
        // Nothing runs any more; what plugins keep on disk is given back by the
        // pod's task, which tries again until it is.
        record.phase = Phase::Stopping;
    }
    record.boot_id.clone_from(&engine.boot_id);
    let mut stale = false;
    if record != before
        && let Err(error) = dir.write_pod(&record)
    {
        tracing::error!(pod = %record.id, %error, "the sandbox's record is stale");
        stale = true;
    }
    let restored = Restored {
        record,
        stale,
        containers,
        monitored,
    };
    resume(Arc::clone(engine), restored, inbox)
}

/// Reaches a monitor, however long it takes; `None` where it is known to be dead.
/// A monitor that does not answer may be held up by a disk, and its containers run.
pub(crate) async fn reach(state: &Path) -> Option<Reached> {
    let reaching = Monitor::reach(state);
    tokio::pin!(reaching);
    match tokio::time::timeout(REACH_PATIENCE, &mut reaching).await {
        Ok(reached) => reached.ok(),
        Err(_) => {
            tracing::warn!(state = %state.display(), "a monitor does not answer, it is waited for");
            reaching.await.ok()
        }
    }
}

/// The same for a pod that is undone with or without its monitor.
pub(crate) async fn reach_soon(state: &Path) -> Option<Reached> {
    let reached = tokio::time::timeout(UNDO_PATIENCE, reach(state)).await;
    reached.ok().flatten()
}

/// The containers of a pod as their records and the monitor's exit records say.
fn containers(
    engine: &Engine,
    dir: &PodDir,
    recorded: Vec<ContainerRecord>,
    exits: &[ExitRecord],
) -> Vec<RestoredContainer> {
    let restore = |mut record: ContainerRecord| {
        engine.index.continue_after(record.transition);
        let before = record.clone();
        let exit = exits
            .iter()
            .find(|exit| exit.container == record.id.as_str());
        note_exit(engine, &mut record, exit);
        lease(engine, &record);
        let mut stale = false;
        if record != before
            && let Err(error) = dir.write_container(&record)
        {
            tracing::error!(container = %record.id, %error, "the container's record is stale");
            stale = true;
        }
        RestoredContainer { record, stale }
    };
    recorded.into_iter().map(restore).collect()
}

fn lease(engine: &Engine, record: &ContainerRecord) {
    let Some(image) = engine.images.find(&record.image_id) else {
        return;
    };
    if let Err(error) = engine.images.lease(&image.id, record.id.as_str()) {
        tracing::warn!(container = %record.id, %error, "image without a lease");
    }
}

/// Notes an end that is known without the monitor.
fn note_exit(engine: &Engine, record: &mut ContainerRecord, exit: Option<&ExitRecord>) {
    let same_boot = super::container::of_this_boot(engine, record);
    record.boot_id.clone_from(&engine.boot_id);
    if matches!(record.state, State::Exited(_) | State::Creating) {
        return;
    }
    match exit {
        Some(exit) => record.state = State::Exited(exit_of(exit)),
        None if !same_boot => {
            record.state = State::Exited(Exit {
                code: 137,
                reason: "Error".to_owned(),
                message: "the node restarted while the container ran".to_owned(),
                started_at: record.state.started_at(),
                finished_at: now(),
            });
        }
        None => {}
    }
}

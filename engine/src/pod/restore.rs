//! What an earlier engine left: read at start, compared with what is true, and
//! finished or undone.
//!
//! - A sandbox that was being started is undone: nobody was told of it.
//! - A sandbox that ran is reached through its monitor; exits that happened
//!   meanwhile are read from the monitor's records, with their true times.
//! - After another boot nothing runs: sandboxes are NOTREADY, containers EXITED,
//!   and the network is given back for each.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use runtime::client::{
    ConnectError, ContainerReport, ContainerState, Event, ExitRecord, Monitor, MonitorError,
};
use tokio::sync::mpsc;

use super::error::PodError;
use super::machine::{Exit, Phase, State};
use super::record::{ContainerRecord, PodDir, PodRecord};
use super::task::{Restored, exit_of, refuse_all, resume};
use super::teardown;
use crate::engine::{Engine, now};
use crate::ids::PodId;

/// How often and how long a monitor is waited for before its pod is given up.
const REACH_TRIES: u32 = 3;
const REACH_PATIENCE: Duration = Duration::from_secs(4);
const REACH_PAUSE: Duration = Duration::from_millis(200);

/// Reads all records and starts a task for every pod that is to live on.
pub(crate) async fn restore(engine: &Arc<Engine>) -> Result<usize, PodError> {
    let step = || format!("read {}", engine.config.pods_dir().display());
    let ids = pods(engine).map_err(|error| PodError::runtime(step(), error))?;
    let mut known = HashSet::new();
    let mut works = tokio::task::JoinSet::new();
    for id in ids {
        known.insert(id.to_string());
        let engine = Arc::clone(engine);
        works.spawn(async move { one(&engine, &id).await });
    }
    let mut alive = HashSet::new();
    let mut count = 0;
    while let Some(work) = works.join_next().await {
        let containers = work.map_err(|error| PodError::Defect(error.to_string()))?;
        count += usize::from(containers.is_some());
        alive.extend(containers.unwrap_or_default());
    }
    sweep(engine, &known, &alive).await;
    Ok(count)
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

/// Snapshots and state folders that no record speaks of.
async fn sweep(engine: &Engine, pods: &HashSet<String>, containers: &HashSet<String>) {
    for owner in engine.images.snapshots() {
        if !containers.contains(&owner)
            && let Err(error) = engine.images.remove_snapshot(&owner).await
        {
            tracing::warn!(owner, %error, "a snapshot without a container stays");
        }
    }
    let Ok(entries) = std::fs::read_dir(engine.config.pods_state_dir()) else {
        return;
    };
    for entry in entries.filter_map(Result::ok) {
        if entry
            .file_name()
            .to_str()
            .is_some_and(|name| !pods.contains(name))
        {
            remove_state(&entry.path());
        }
    }
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

/// One pod; answers the ids of the containers whose files must stay.
async fn one(engine: &Arc<Engine>, id: &PodId) -> Option<Vec<String>> {
    let dir = engine.pod_dir(id);
    match dir.read_pod() {
        Ok(Some(record)) => {
            pod(engine, &dir, record).await;
            Some(dir.container_ids())
        }
        Ok(None) => {
            // The sandbox's record goes first and comes last: the rest is waste.
            if let Err(error) = dir.remove() {
                tracing::warn!(pod = %id, %error, "a folder without a record stays");
            }
            None
        }
        Err(error) => {
            let reason = crate::network::chain(&error);
            tracing::error!(pod = %id, reason, "the sandbox cannot be restored and is left alone");
            hold(engine, id, &dir);
            Some(dir.container_ids())
        }
    }
}

/// Keeps the identity of a sandbox whose record cannot be read: its containers may
/// still run, and a second one beside it must not.
fn hold(engine: &Engine, id: &PodId, dir: &PodDir) {
    let Some(key) = dir.key_of_broken() else {
        return;
    };
    let (inbox, receiver) = mpsc::unbounded_channel();
    if engine.index.claim(&key, id, &inbox).is_ok() {
        tokio::spawn(refuse_all(id.clone(), receiver));
    }
}

async fn pod(engine: &Arc<Engine>, dir: &PodDir, mut record: PodRecord) {
    let before = record.clone();
    engine.index.continue_after(record.transition);
    let same_boot = record.boot_id == engine.boot_id;
    let reached = if same_boot && record.phase != Phase::Stopped {
        reach(&engine.pod_state(&record.id)).await
    } else {
        None
    };
    if record.phase == Phase::Starting {
        tracing::info!(pod = %record.id, "undoing a sandbox that was being started");
        let engine = Arc::clone(engine);
        // In the background: a plugin may take its time, or need pods of its own.
        tokio::spawn(async move {
            let monitor = reached.as_ref().map(|reached| &reached.monitor);
            teardown::undo(&engine, &record, monitor).await;
        });
        return;
    }
    let containers = containers(engine, dir, &record, reached.as_ref()).await;
    if record.phase.is_ready() && reached.is_none() {
        let reason = "the monitor of the pod died".to_owned();
        record.phase = Phase::Failed { reason };
    }
    if !same_boot && record.phase != Phase::Stopped {
        // Nothing runs any more; what plugins keep on disk is given back by the
        // pod's task, which tries again until it is.
        record.phase = Phase::Stopping;
    }
    record.boot_id.clone_from(&engine.boot_id);
    if record != before
        && let Err(error) = dir.write_pod(&record)
    {
        tracing::error!(pod = %record.id, %error, "the sandbox's record is stale");
    }
    let monitor = reached.map(|reached| (reached.monitor, reached.events));
    adopt(
        engine,
        Restored {
            record,
            containers,
            monitor,
        },
    );
}

fn adopt(engine: &Arc<Engine>, restored: Restored) {
    let (inbox, receiver) = mpsc::unbounded_channel();
    let (key, id) = (&restored.record.config.key, &restored.record.id);
    if engine.index.claim(key, id, &inbox).is_err() {
        tracing::error!(pod = %id, "two records of one sandbox; this one is left alone");
        return;
    }
    resume(Arc::clone(engine), restored, receiver);
}

/// A monitor that answers, and what it has.
struct Reached {
    monitor: Monitor,
    events: mpsc::UnboundedReceiver<Event>,
    reports: Vec<ContainerReport>,
}

/// Reaches a monitor, with patience: only one that is not there is dead at once.
/// One that does not answer at all is as good as dead in the end.
async fn reach(state: &Path) -> Option<Reached> {
    for _ in 0..REACH_TRIES {
        let reaching = async {
            let (monitor, events) = Monitor::connect(state).await.map_err(Unreached::Connect)?;
            let reports = monitor.list().await.map_err(Unreached::List)?;
            Ok(Reached {
                monitor,
                events,
                reports,
            })
        };
        match tokio::time::timeout(REACH_PATIENCE, reaching).await {
            Ok(Ok(reached)) => return Some(reached),
            Ok(Err(Unreached::Connect(error))) if error.is_absent() => return None,
            Ok(Err(error)) => {
                tracing::warn!(state = %state.display(), ?error, "a monitor is not reached yet");
            }
            Err(_) => {
                tracing::warn!(state = %state.display(), "a monitor does not answer");
            }
        }
        tokio::time::sleep(REACH_PAUSE).await;
    }
    None
}

#[derive(Debug)]
#[expect(dead_code, reason = "read by Debug, in the log")]
enum Unreached {
    Connect(ConnectError),
    List(MonitorError),
}

/// The containers of a pod as they are now.
async fn containers(
    engine: &Arc<Engine>,
    dir: &PodDir,
    pod: &PodRecord,
    reached: Option<&Reached>,
) -> Vec<(ContainerRecord, Option<i32>)> {
    let monitor = reached.map(|reached| &reached.monitor);
    let reports = reached.map_or(&[][..], |reached| &reached.reports);
    let exits = ExitRecord::read_dir(&dir.exits()).unwrap_or_default();
    let mut containers = Vec::new();
    for read in dir.read_containers() {
        let mut record = match read {
            Ok(record) => record,
            Err(error) => {
                let reason = crate::network::chain(&error);
                tracing::error!(pod = %pod.id, reason, "the container cannot be restored");
                continue;
            }
        };
        engine.index.continue_after(record.transition);
        if record.state == State::Creating {
            // Nobody was told its id.
            if let Err(error) = teardown::container(engine, dir, &record, monitor).await {
                let reason = crate::network::chain(&error);
                tracing::warn!(container = %record.id, reason, "an unfinished container stays");
            }
            continue;
        }
        let before = record.clone();
        let report = reports
            .iter()
            .find(|report| report.id == record.id.as_str());
        let exit = exits
            .iter()
            .find(|exit| exit.container == record.id.as_str());
        let pid = settle(engine, &mut record, report, exit).await;
        lease(engine, &record);
        if record != before
            && let Err(error) = dir.write_container(&record)
        {
            tracing::error!(container = %record.id, %error, "the container's record is stale");
        }
        containers.push((record, pid));
    }
    containers
}

fn lease(engine: &Engine, record: &ContainerRecord) {
    let Some(image) = engine.images.find(&record.image_id) else {
        return;
    };
    if let Err(error) = engine.images.lease(&image.id, record.id.as_str()) {
        tracing::warn!(container = %record.id, %error, "image without a lease");
    }
}

/// Brings one record up to what its monitor or its exit record says.
async fn settle(
    engine: &Arc<Engine>,
    record: &mut ContainerRecord,
    report: Option<&ContainerReport>,
    exit: Option<&ExitRecord>,
) -> Option<i32> {
    let before = record.state.clone();
    let same_boot = super::container::of_this_boot(engine, record);
    record.boot_id.clone_from(&engine.boot_id);
    if matches!(before, State::Exited(_)) {
        return None;
    }
    if let Some(exit) = exit {
        record.state = State::Exited(exit_of(exit));
        return None;
    }
    match report.map(|report| (&report.state, report.pid)) {
        Some((ContainerState::Running { started_at }, pid)) => {
            // A stop whose signal may not have been sent has to be asked for again;
            // a kill is simply sent again.
            if !matches!(record.state, State::Killing { .. }) {
                record.state = State::Running {
                    started_at: *started_at,
                };
            }
            Some(pid)
        }
        Some((ContainerState::Created, pid)) => {
            // A start that was ordered and did not arrive: it may be ordered again.
            record.state = State::Created;
            Some(pid)
        }
        Some((ContainerState::Starting, pid)) => {
            // Its end is told by an event. Of a stop that was asked for meanwhile
            // the same is true as above.
            if !matches!(record.state, State::Killing { .. }) {
                record.state = State::Starting;
            }
            Some(pid)
        }
        Some((ContainerState::Exited(exit), _)) => {
            record.state = State::Exited(exit_of(exit));
            None
        }
        None => {
            let gone = if same_boot {
                if let Err(error) = teardown::container_processes(engine, record).await {
                    let reason = crate::network::chain(&error);
                    tracing::warn!(container = %record.id, reason, "processes without a monitor");
                }
                "the monitor of the pod died, the container was killed"
            } else {
                "the node restarted while the container ran"
            };
            record.state = State::Exited(lost(before.started_at(), gone));
            None
        }
    }
}

fn lost(started_at: i64, message: &str) -> Exit {
    Exit {
        code: 137,
        reason: "Error".to_owned(),
        message: message.to_owned(),
        started_at,
        finished_at: now(),
    }
}

//! From a recorded intent to a READY sandbox: network beside cgroup, files and
//! monitor.
//!
//! Every part made here follows from the record, so that `teardown` can give
//! back whatever a failure or a crash left.

use std::path::PathBuf;
use std::sync::Arc;

use runtime::cgroup::Systemd;
use runtime::client::steps::mark;
use runtime::client::{Event, Monitor, PodSetup, PodUser};
use runtime::mount::IdMapping;
use runtime::netns::PodNamespaces;
use tokio::sync::mpsc;

use super::error::PodError;
use super::files;
use super::record::PodRecord;
use crate::context::Engine;
use crate::failpoint;
use crate::model::{IdRange, IpcMode, NetworkMode, PidMode};
use crate::network::NetworkError;
use crate::threads::{blocking, blocking_with};

/// A sandbox's score for the OOM killer: its monitor must outlive its containers.
const MONITOR_OOM_SCORE: i32 = -998;

/// What a launched sandbox consists of.
pub(crate) struct Launched {
    pub(crate) monitor: Monitor,
    pub(crate) events: mpsc::UnboundedReceiver<Event>,
    pub(crate) ips: Vec<String>,
    /// PID 1 of the shared PID namespace.
    pub(crate) init_pid: Option<i32>,
}

/// A sandbox that could not be launched.
pub(crate) struct NotLaunched {
    pub(crate) error: PodError,
    /// Whether all of it was given back, its records too.
    pub(crate) undone: Result<(), PodError>,
}

impl NotLaunched {
    /// The work panicked: what it made is not known.
    pub(crate) fn panicked(error: PodError) -> Box<Self> {
        let undone = Err(PodError::unknown_rest());
        Box::new(Self { error, undone })
    }
}

/// Makes all parts, or gives back those that were made.
pub(crate) async fn launch(
    engine: Arc<Engine>,
    mut record: PodRecord,
) -> Result<Box<Launched>, Box<NotLaunched>> {
    match make(&engine, &record).await {
        Ok(launched) => Ok(Box::new(launched)),
        Err(error) => {
            tracing::debug!(pod = %record.id, %error, "undoing the sandbox");
            if let PodError::Network(NetworkError::NothingAttached { .. }) = &error {
                record.attachment = None;
            }
            let undone = super::teardown::undo(&engine, &record, None).await;
            Err(Box::new(NotLaunched { error, undone }))
        }
    }
}

async fn make(engine: &Arc<Engine>, record: &PodRecord) -> Result<Launched, PodError> {
    let mut user = None;
    if let Some(netns) = &record.netns {
        let _step = mark("network namespace");
        let failed =
            |error| PodError::runtime(format!("network namespace {}", netns.display()), error);
        match record.config.user_ids {
            None => engine.namespaces.pin(netns).await.map_err(failed)?,
            Some(ids) => user = Some(own_namespaces(ids, netns.clone()).await?),
        }
        failpoint::hit("run-netns");
    }
    let files = {
        let record = record.clone();
        blocking_with(engine, move |engine| write_files(engine, &record))
    };
    // All of them, whatever becomes of one: what is made has to be known.
    let (ips, process, files) = tokio::join!(
        network(engine, record),
        process(engine, record, user),
        files
    );
    let ips = ips?;
    let (monitor, events, init_pid) = process?;
    files?;
    Ok(Launched {
        monitor,
        events,
        ips,
        init_pid,
    })
}

/// The namespaces of a pod that has a user namespace, the network's pinned, which keeps
/// them findable; the others live in its monitor.
async fn own_namespaces(ids: IdRange, pin: PathBuf) -> Result<PodUser, PodError> {
    let IdRange { first, length } = ids;
    let mapping = IdMapping {
        container_id: 0,
        host_id: first,
        length,
    };
    let namespaces = blocking(move || {
        let step = || format!("user and network namespace {}", pin.display());
        PodNamespaces::pinned(mapping, &pin).map_err(|error| PodError::runtime(step(), error))
    });
    Ok(PodUser {
        namespaces: Arc::new(namespaces.await?),
        first,
        length,
    })
}

async fn network(engine: &Engine, record: &PodRecord) -> Result<Vec<String>, PodError> {
    let (Some(netns), Some(attachment)) = (&record.netns, &record.attachment) else {
        return Ok(Vec::new());
    };
    let _step = mark("network");
    let ips = engine.network.attach(&record.id, netns, attachment).await?;
    failpoint::hit("run-network");
    Ok(ips)
}

type Process = (Monitor, mpsc::UnboundedReceiver<Event>, Option<i32>);

async fn process(
    engine: &Arc<Engine>,
    record: &PodRecord,
    user: Option<PodUser>,
) -> Result<Process, PodError> {
    let prepared = async {
        let record = record.clone();
        blocking_with(engine, move |engine| prepare(engine, &record, user)).await
    };
    let taken = async {
        let _step = mark("take a monitor");
        engine
            .monitors
            .take()
            .await
            .map_err(|error| PodError::runtime("start a monitor", error))
    };
    let (setup, monitor) = match engine.cgroups.systemd() {
        None => tokio::join!(prepared, taken),
        Some(systemd) => {
            // A scope begins with a process of its own.
            let monitor = taken.await?;
            begin_scope(systemd, record, &monitor).await?;
            failpoint::hit("run-scope");
            (prepared.await, Ok(monitor))
        }
    };
    let (setup, monitor) = (setup?, monitor?);
    failpoint::hit("run-monitor");
    match monitor.setup(setup).await {
        Ok((ready, events)) => {
            for warning in &ready.warnings {
                engine.warnings.once(warning);
            }
            failpoint::hit("run-setup");
            Ok((monitor, events, ready.init_pid))
        }
        Err(error) => {
            if let Err(error) = monitor.shutdown().await {
                tracing::debug!(%error, "monitor of a failed sandbox");
            }
            Err(PodError::runtime("set up the sandbox", error))
        }
    }
}

async fn begin_scope(
    systemd: &Systemd,
    record: &PodRecord,
    monitor: &Monitor,
) -> Result<(), PodError> {
    let _step = mark("scope");
    let begun = systemd.begin(&record.cgroup, monitor.pid(), monitor.clone());
    let step = || format!("make the scope around cgroup {}", record.cgroup);
    begun
        .await
        .map_err(|error| PodError::runtime(step(), error))
}

/// The files that its containers share.
fn write_files(engine: &Engine, record: &PodRecord) -> Result<(), PodError> {
    let _step = mark("files");
    files::write(&engine.pod_dir(&record.id).files(), &record.config)?;
    if record.config.ipc == IpcMode::Pod {
        files::mount_shm(&engine.shm(&record.id), record.config.user_ids)?;
    }
    Ok(())
}

/// Cgroup and folder; then the order for the monitor, which may wait long for the
/// kernel when it joins the cgroup.
fn prepare(
    engine: &Engine,
    record: &PodRecord,
    user: Option<PodUser>,
) -> Result<PodSetup, PodError> {
    let config = &record.config;
    let dir = engine.pod_dir(&record.id);
    let state = engine.pod_state(&record.id);
    std::fs::create_dir_all(&state)
        .map_err(|error| PodError::runtime(format!("create {}", state.display()), error))?;
    let _step = mark("cgroup");
    let cgroup = engine
        .cgroups
        .make_pod(&record.cgroup)
        .map_err(|error| PodError::runtime(format!("create cgroup {}", record.cgroup), error))?;
    failpoint::hit("run-cgroup");
    let own_names = config.network == NetworkMode::Pod;
    Ok(PodSetup {
        pod_id: record.id.to_string(),
        state_dir: state,
        exit_dir: dir.exits(),
        cgroup_files: engine.cgroups.files_of_pod(&cgroup),
        hostname: own_names.then(|| config.hostname.clone()),
        new_ipc: config.ipc == IpcMode::Pod,
        netns: record.netns.clone(),
        sysctls: config.sysctls.clone().into_iter().collect(),
        shared_pid: config.pid == PidMode::Pod,
        oom_score_adj: MONITOR_OOM_SCORE,
        user,
    })
}

//! From a recorded intent to a CREATED container: image, writable layer,
//! specification, cgroup with its limits, and the launcher.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use image_store::Image;
use runtime::cgroup::Cgroup;
use runtime::client::steps::mark;
use runtime::client::{CreateContainer, LauncherKind, Monitor, MonitorError, OciRuntime};

use super::error::PodError;
use super::image_names;
use super::record::{ContainerRecord, PodRecord, User};
use crate::config::Launcher;
use crate::convert::{resources, signal};
use crate::engine::{Engine, blocking_with, now};
use crate::failpoint;
use crate::ids::ContainerId;
use crate::model::{ContainerConfig, IpcMode, PidMode};
use crate::pod::machine::State;
use crate::spec::{self, Built};

/// What a sandbox tells a container that is made in it.
#[derive(Clone)]
pub(crate) struct Host {
    pub(crate) pod: PodRecord,
    pub(crate) monitor: Monitor,
    /// First process of the container whose PID namespace is to be entered.
    pub(crate) target_pid: Option<i32>,
}

/// The intent: everything that follows from the request, before any work.
pub(crate) fn intend(
    engine: &Engine,
    host: &PodRecord,
    id: ContainerId,
    config: ContainerConfig,
) -> Result<ContainerRecord, PodError> {
    let image = engine
        .images
        .find(&config.image.image)
        .ok_or_else(|| PodError::NoImage(config.image.image.clone()))?;
    let of_image = image
        .config
        .config()
        .as_ref()
        .and_then(|config| config.stop_signal().clone());
    let stop_signal = config
        .stop_signal
        .or_else(|| of_image.as_deref().and_then(signal::parse))
        .unwrap_or(libc::SIGTERM);
    let named = image_names::of(&image, &config.image);
    Ok(ContainerRecord {
        version: super::record::version(),
        boot_id: engine.boot_id.clone(),
        transition: engine.index.next_transition(),
        created_at: now(),
        state: State::Creating,
        image_id: image.id.to_string(),
        image_ref: named.reference,
        image_name: named.name,
        cgroup: Engine::container_cgroup(&host.cgroup, &id),
        log_path: config.log_path.clone(),
        stop_signal,
        user: User::default(),
        process: None,
        id,
        config: Arc::new(config),
    })
}

/// What became of the intent.
pub(crate) struct Made {
    pub(crate) record: ContainerRecord,
    pub(crate) pid: i32,
}

/// Makes the container; on an error nothing of it is left.
pub(crate) async fn create(
    engine: Arc<Engine>,
    host: Host,
    record: ContainerRecord,
) -> Result<Made, PodError> {
    let made = make(&engine, &host, record.clone()).await;
    if made.is_err() {
        let dir = engine.pod_dir(&host.pod.id);
        let undone = super::teardown::container(&engine, &dir, &record, Some(&host.monitor)).await;
        if let Err(error) = undone {
            let reason = crate::network::chain(&error);
            tracing::warn!(container = %record.id, reason, "the failed container left something");
        }
    }
    made
}

async fn make(
    engine: &Arc<Engine>,
    host: &Host,
    mut record: ContainerRecord,
) -> Result<Made, PodError> {
    let image = engine
        .images
        .find(&record.image_id)
        .ok_or_else(|| PodError::NoImage(record.config.image.image.clone()))?;
    engine.images.lease(&image.id, record.id.as_str())?;
    let snapshot = async {
        let _step = mark("writable layer");
        let id = record.id.as_str();
        engine.images.create_snapshot(id, &image.id).await
    };
    let (snapshot, cgroup) = tokio::join!(snapshot, make_cgroup(engine, &record));
    let (snapshot, cgroup) = (snapshot?, cgroup?);
    failpoint::hit("create-snapshot");
    let prepared = {
        let (host, record) = (host.clone(), record.clone());
        blocking_with(engine, move |engine| {
            let step = mark("mount");
            let rootfs = snapshot.mount(false)?;
            drop(step);
            prepare(engine, &host, &record, &image, (rootfs, &cgroup))
        })
        .await?
    };
    failpoint::hit("create-cgroup");
    record.user = prepared.user;
    record.process = Some(Arc::new(prepared.process));
    let created = host
        .monitor
        .create(prepared.order)
        .await
        .map_err(launch_error)?;
    for warning in &created.warnings {
        engine.said.warn(warning);
    }
    failpoint::hit("create-launched");
    Ok(Made {
        record,
        pid: created.pid,
    })
}

/// Makes the container's cgroup.
async fn make_cgroup(engine: &Arc<Engine>, record: &ContainerRecord) -> Result<Cgroup, PodError> {
    let path = record.cgroup.clone();
    blocking_with(engine, move |engine| {
        let _step = mark("cgroup");
        let made = engine.cgroups.create(&path);
        made.map_err(|error| PodError::runtime(format!("create cgroup {path}"), error))
    })
    .await
}

struct Prepared {
    order: CreateContainer,
    user: User,
    process: oci_spec::runtime::Process,
}

fn prepare(
    engine: &Engine,
    host: &Host,
    record: &ContainerRecord,
    image: &Image,
    (rootfs, cgroup): (OwnedFd, &Cgroup),
) -> Result<Prepared, PodError> {
    let config = &record.config;
    let step = mark("spec");
    let inputs = inputs(engine, host, record, image, &rootfs);
    let Built {
        spec,
        process,
        sources,
        user,
        filter,
    } = spec::build(&inputs)?;
    drop(step);
    let _step = mark("limits");
    if let Some(log) = &record.log_path {
        make_log_dir(log)?;
    }
    let limits = resources::to_runtime(&config.resources, 0);
    for warning in cgroup.apply(&limits).map_err(PodError::Limits)? {
        engine.said.warn(&warning);
    }
    // Without a PID namespace of its own, what outlives the first process has to
    // be found through the cgroup.
    let shares_pids = config.security.pid != PidMode::Container;
    let order = CreateContainer {
        id: record.id.to_string(),
        launcher: launcher(engine, &host.pod)?,
        runtime: oci_runtime(engine, &host.pod),
        spec,
        rootfs,
        mounts: sources,
        cgroup_files: cgroup.files_to_join(),
        cgroup_oom: cgroup.oom_file(),
        cgroup_kill: if shares_pids {
            cgroup.kill_file()
        } else {
            None
        },
        seccomp_bpf: filter.map(|filter| filter.to_vec()),
        log_path: record.log_path.clone(),
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
    };
    Ok(Prepared {
        order,
        user,
        process,
    })
}

/// Who makes the containers of a pod.
fn launcher(engine: &Engine, pod: &PodRecord) -> Result<LauncherKind, PodError> {
    let handler = engine.config.handler(&pod.handler);
    match handler.map(|handler| handler.launcher) {
        Some(Launcher::Libcontainer) => Ok(LauncherKind::Libcontainer),
        Some(Launcher::Native) => Ok(LauncherKind::Native),
        Some(Launcher::Oci) => Ok(LauncherKind::Oci),
        None => Err(PodError::NoHandler(pod.handler.clone())),
    }
}

fn oci_runtime(engine: &Engine, pod: &PodRecord) -> Option<OciRuntime> {
    let handler = engine.config.handler(&pod.handler)?;
    Some(OciRuntime {
        path: handler.path.clone()?,
        args: handler.options.args.clone(),
    })
}

fn inputs<'a>(
    engine: &'a Engine,
    host: &'a Host,
    record: &'a ContainerRecord,
    image: &'a Image,
    rootfs: &'a OwnedFd,
) -> spec::Inputs<'a> {
    let pod = &host.pod;
    let pid_of_namespace = match &record.config.security.pid {
        PidMode::Target(id) => host.target_pid.filter(|pid| is_in_cgroup(*pid, id)),
        PidMode::Pod | PidMode::Container | PidMode::Node => {
            let of_pod = |pid: &i32| is_in_cgroup(*pid, pod.id.as_str());
            pod.init_pid.filter(of_pod)
        }
    };
    spec::Inputs {
        config: &record.config,
        sandbox: &pod.config,
        image: &image.config,
        rootfs,
        cgroup: &record.cgroup,
        files: engine.pod_dir(&pod.id).files(),
        shm: (pod.config.ipc == IpcMode::Pod).then(|| engine.shm(&pod.id)),
        netns: pod.netns.clone(),
        monitor_pid: host.monitor.pid(),
        pid_of_namespace,
        unified_cgroups: engine.unified(),
        open_files: engine.config.open_files,
        seccomp: &engine.seccomp,
    }
}

/// Whether a process is still the one that was meant: a number may have been given
/// to another since, but not the cgroup of this id.
fn is_in_cgroup(pid: i32, id: &str) -> bool {
    let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    // Or one below it: systemd in a container moves itself.
    let mut parts = cgroups.lines().flat_map(|line| line.split('/'));
    parts.any(|part| part.starts_with(id))
}

fn make_log_dir(log: &std::path::Path) -> Result<(), PodError> {
    let Some(dir) = log.parent() else {
        return Ok(());
    };
    std::fs::create_dir_all(dir).map_err(|source| PodError::Log {
        path: PathBuf::from(dir),
        source,
    })
}

/// A launcher's error as a caller should read it.
pub(crate) fn launch_error(error: MonitorError) -> PodError {
    match error {
        MonitorError::Gone => PodError::MonitorGone,
        other => PodError::runtime("launch the container", other),
    }
}

/// The limits after an update, set all or not at all.
pub(crate) async fn update(
    engine: &Arc<Engine>,
    record: &ContainerRecord,
    new: crate::model::Resources,
) -> Result<(), PodError> {
    let cgroup = record.cgroup.clone();
    blocking_with(engine, move |engine| {
        let limits = resources::to_runtime(&new, 0);
        let cgroup = engine.cgroups.open(&cgroup);
        for warning in cgroup.apply(&limits).map_err(PodError::Limits)? {
            engine.said.warn(&warning);
        }
        Ok(())
    })
    .await
}

/// Whether a record may be believed to describe a living process.
pub(crate) fn of_this_boot(engine: &Engine, record: &ContainerRecord) -> bool {
    record.boot_id == engine.boot_id
}

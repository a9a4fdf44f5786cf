//! From a recorded intent to a CREATED container: image, writable layer,
//! specification, cgroup with its limits, and the launcher.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use image_store::{Filling, Snapshot};
use runtime::cgroup::Cgroup;
use runtime::client::steps::mark;
use runtime::client::{LauncherKind, Monitor, MonitorError};

use tokio::sync::oneshot;

use super::error::PodError;
use super::prepare::{Parts, Prepared, prepare};
use super::record::{ContainerRecord, PodRecord, User};
use super::volumes;
use super::{image_mounts, image_names};
use crate::clock::now;
use crate::config::Launcher;
use crate::context::Engine;
use crate::convert::{BadRequest, resources, signal};
use crate::failpoint;
use crate::ids::ContainerId;
use crate::model::{ContainerConfig, Mount, PidMode};
use crate::pod::machine::State;
use crate::spec::{self, Whereabouts};
use crate::threads::{blocking, blocking_with};
use crate::user_ns;

/// How long the host's paths may take to answer: less than the kubelet's patience, so
/// that its user is told why.
const HOST_PATIENCE: Duration = Duration::from_secs(60);

/// The sandbox in which a container is made.
#[derive(Clone)]
pub(crate) struct Sandbox {
    pub(crate) pod: PodRecord,
    pub(crate) monitor: Monitor,
    /// The container whose PID namespace is to be entered.
    pub(crate) target: Option<Target>,
}

/// A container whose PID namespace another one is to enter.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// Its id.
    pub(crate) id: ContainerId,
    /// Its first process.
    pub(crate) pid: i32,
    /// Whether it may trace.
    pub(crate) may_trace: bool,
}

/// The intent: everything that follows from the request, before any work.
pub(crate) fn intend(
    engine: &Engine,
    sandbox: &PodRecord,
    id: ContainerId,
    mut config: ContainerConfig,
) -> Result<ContainerRecord, PodError> {
    image_mounts::resolve(engine, &mut config)?;
    let image = engine
        .images
        .find(&config.image.image)
        .ok_or_else(|| PodError::NoImage(config.image.image.clone()))?;
    let of_image = image.summary.stop_signal.as_deref();
    let stop_signal = config
        .stop_signal
        .or_else(|| of_image.and_then(signal::parse))
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
        cgroup: engine.container_cgroup(&sandbox.cgroup, &id)?,
        log_path: config.log_path.clone(),
        stop_signal,
        user: User::default(),
        raw_environment: None,
        process: None,
        id,
        config: Arc::new(config),
    })
}

/// A container that was created.
pub(crate) struct CreatedContainer {
    pub(crate) record: ContainerRecord,
    pub(crate) pid: i32,
}

/// A container that could not be created.
pub(crate) struct NotCreated {
    pub(crate) error: PodError,
    /// Whether all of it was given back, its records too.
    pub(crate) undone: Result<(), PodError>,
}

impl NotCreated {
    /// The work panicked: what it made is not known.
    pub(crate) fn panicked(error: PodError) -> Box<Self> {
        let undone = Err(PodError::unknown_rest());
        Box::new(Self { error, undone })
    }
}

/// Makes the container, or gives back what was made of it. `stop` ends the wait for
/// paths of the host when its sender is dropped.
pub(crate) async fn create(
    engine: Arc<Engine>,
    sandbox: Sandbox,
    record: ContainerRecord,
    stop: oneshot::Receiver<()>,
) -> Result<Box<CreatedContainer>, Box<NotCreated>> {
    match make(&engine, &sandbox, record.clone(), stop).await {
        Ok(made) => Ok(Box::new(made)),
        Err(error) => {
            let dir = engine.pod_dir(&sandbox.pod.id);
            let monitor = Some(&sandbox.monitor);
            let undone = super::teardown::container(&engine, &dir, &record, monitor).await;
            Err(Box::new(NotCreated { error, undone }))
        }
    }
}

async fn make(
    engine: &Arc<Engine>,
    sandbox: &Sandbox,
    record: ContainerRecord,
    mut stop: oneshot::Receiver<()>,
) -> Result<CreatedContainer, PodError> {
    let image = engine
        .images
        .find(&record.image_id)
        .ok_or_else(|| PodError::NoImage(record.config.image.image.clone()))?;
    engine.images.lease(&image.id, record.id.as_str())?;
    let volumes = image_mounts::lease(engine, &record)?;
    let snapshot = async {
        let _step = mark("writable layer");
        let id = record.id.as_str();
        engine.images.create_snapshot(id, &image.id).await
    };
    let of_image = async {
        let _step = mark("image configuration");
        engine.images.process(&image.id).await
    };
    let (of_image, snapshot, cgroup) =
        tokio::join!(of_image, snapshot, make_cgroup(engine, &record));
    let (of_image, snapshot, cgroup) = (of_image?, snapshot?, cgroup?);
    failpoint::hit("create-snapshot");
    let user = user_ns::of_pod(&sandbox.pod)?;
    let images = image_mounts::mount(engine, &record, volumes, user.as_ref()).await?;
    failpoint::hit("create-image-volumes");
    let places = volumes::places(&of_image, &record.config)?;
    // Copies may be large: they take the time they take, unless the container is stopped.
    let filled = match places.is_empty() {
        true => None,
        false => {
            let most = volumes::most_bytes(&image);
            let root = (snapshot.clone(), user.clone());
            Some(fill_volumes(root, places, most, &mut stop).await?)
        }
    };
    let at = Arc::new(Whereabouts::default());
    let preparing = {
        let (sandbox, record, at) = (sandbox.clone(), record.clone(), Arc::clone(&at));
        blocking_with(engine, move |engine| {
            let (rootfs, volumes) = match filled {
                Some(filled) => filled,
                None => (mount_root(&snapshot, user.as_deref())?, Vec::new()),
            };
            let parts = Parts {
                of_image,
                rootfs,
                user,
                volumes,
                images,
                cgroup,
                at,
            };
            prepare(engine, &sandbox, &record, parts)
        })
    };
    let prepared = tokio::select! {
        prepared = preparing => prepared?,
        _dropped = stop => return Err(PodError::State {
            what: format!("container {}", record.id),
            state: "being stopped".to_owned(),
        }),
        // A thread that a path of the host keeps in the kernel cannot be ended.
        () = tokio::time::sleep(HOST_PATIENCE) => return Err(PodError::HostPaths {
            path: at.path(),
            patience: HOST_PATIENCE,
        }),
    };
    failpoint::hit("create-cgroup");
    launch(engine, sandbox, record, prepared).await
}

/// Has the monitor make the container.
async fn launch(
    engine: &Engine,
    sandbox: &Sandbox,
    mut record: ContainerRecord,
    prepared: Prepared,
) -> Result<CreatedContainer, PodError> {
    record.user = prepared.user;
    record.process = Some(Arc::new(prepared.process));
    record.raw_environment = prepared.raw_environment.map(Arc::new);
    let created = sandbox
        .monitor
        .create(prepared.order)
        .await
        .map_err(launch_error)?;
    for warning in &created.warnings {
        engine.warnings.once(warning);
    }
    failpoint::hit("create-launched");
    Ok(CreatedContainer {
        record,
        pid: created.pid,
    })
}

/// Mounts the root, with the ids of the pod's user namespace if it has one.
fn mount_root(snapshot: &Snapshot, user: Option<&OwnedFd>) -> Result<OwnedFd, PodError> {
    let _step = mark("mount");
    match user {
        None => Ok(snapshot.mount(false)?),
        Some(user) => Ok(snapshot.mount_shown(&|layer| user_ns::show(layer, user))?),
    }
}

/// Mounts the root and fills the directories of the image's volumes from it, with so many
/// bytes at most. When `stop` ends it, nothing is written any more.
async fn fill_volumes(
    (snapshot, user): (Snapshot, Option<Arc<OwnedFd>>),
    places: Vec<PathBuf>,
    most: u64,
    stop: &mut oneshot::Receiver<()>,
) -> Result<(OwnedFd, Vec<Mount>), PodError> {
    let given_up = Arc::new(AtomicBool::new(false));
    let filling = Filling::new(most, Arc::clone(&given_up));
    let work = blocking(move || {
        let rootfs = mount_root(&snapshot, user.as_deref())?;
        let _step = mark("image volumes");
        let volumes = volumes::fill(&snapshot, &rootfs, &places, filling)?;
        Ok((rootfs, volumes))
    });
    tokio::pin!(work);
    tokio::select! {
        filled = &mut work => filled,
        _dropped = stop => {
            given_up.store(true, Ordering::Relaxed);
            work.await
        }
    }
}

/// Makes the container's cgroup.
async fn make_cgroup(engine: &Arc<Engine>, record: &ContainerRecord) -> Result<Cgroup, PodError> {
    let path = record.cgroup.clone();
    blocking_with(engine, move |engine| {
        let _step = mark("cgroup");
        let made = engine.cgroups.make_container(&path);
        made.map_err(|error| PodError::runtime(format!("create cgroup {path}"), error))
    })
    .await
}

/// Other launchers than the native one make first processes with sockets of theirs: who
/// shares its processes and may trace has the node's descriptors through those.
pub(crate) fn refuse_traced_birth(
    engine: &Engine,
    pod: &PodRecord,
    config: &ContainerConfig,
    target: Option<&Target>,
) -> Result<(), PodError> {
    let handler = engine.config.handler(&pod.handler);
    let allowed = handler.is_some_and(|handler| handler.options.allow_tracers);
    if allowed || launcher(engine, pod)? == LauncherKind::Native {
        return Ok(());
    }
    let own = spec::may_trace(&config.security);
    let (traced, field) = match &config.security.pid {
        PidMode::Pod => (own, "capabilities.add_capabilities"),
        PidMode::Target(_) if own => (true, "capabilities.add_capabilities"),
        PidMode::Target(_) => {
            let its = target.is_some_and(|target| target.may_trace);
            (its, "namespace_options.target_id")
        }
        PidMode::Container | PidMode::Node => (false, ""),
    };
    if !traced {
        return Ok(());
    }
    let reason = format!(
        "processes are shared with a container that has CAP_SYS_PTRACE, which the launcher of \
         runtime handler {:?} cannot be hidden from: use a native one, or set its options.allow_tracers",
        engine.config.handler_name(&pod.handler),
    );
    Err(PodError::Request(BadRequest::Value {
        field: format!("config.linux.security_context.{field}"),
        reason,
    }))
}

/// Who makes the containers of a pod.
pub(super) fn launcher(engine: &Engine, pod: &PodRecord) -> Result<LauncherKind, PodError> {
    let handler = engine.config.handler(&pod.handler);
    match handler.map(|handler| handler.launcher) {
        Some(Launcher::Libcontainer) => Ok(LauncherKind::Libcontainer),
        Some(Launcher::Native) => Ok(LauncherKind::Native),
        Some(Launcher::Oci) => Ok(LauncherKind::Oci),
        None => Err(PodError::NoHandler(pod.handler.clone())),
    }
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
            engine.warnings.once(&warning);
        }
        Ok(())
    })
    .await
}

/// Whether a record may be believed to describe a living process.
pub(crate) fn of_this_boot(engine: &Engine, record: &ContainerRecord) -> bool {
    record.boot_id == engine.boot_id
}

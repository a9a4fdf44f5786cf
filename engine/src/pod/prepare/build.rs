//! The first step: the specification that a container's record, its image and its
//! sandbox ask for.
//!
//! In come the records and the mounted root; out goes the specification, with detached
//! clones of all volumes. Looks at paths of the host, each of which may never answer.

use runtime::spec::Spec;

use super::Parts;
use crate::context::Engine;
use crate::model::{IpcMode, PidMode};
use crate::pod::container::Sandbox;
use crate::pod::error::PodError;
use crate::pod::record::ContainerRecord;
use crate::spec::{self, Visitor};

/// Builds the specification.
///
/// # Errors
/// `Spec`: what the request or the image asks for cannot be had here.
pub(super) fn build(
    engine: &Engine,
    sandbox: &Sandbox,
    record: &ContainerRecord,
    parts: &Parts,
) -> Result<Spec, PodError> {
    Ok(spec::build(&inputs(engine, sandbox, record, parts))?)
}

fn inputs<'a>(
    engine: &'a Engine,
    sandbox: &'a Sandbox,
    record: &'a ContainerRecord,
    parts: &'a Parts,
) -> spec::Inputs<'a> {
    let pod = &sandbox.pod;
    // Launchers that need the number are not sure whose it is: the monitor is.
    let pid_of_namespace = match &record.config.security.pid {
        PidMode::Target(_) => sandbox.target.as_ref().map(|target| target.pid),
        PidMode::Pod | PidMode::Container | PidMode::Node => pod.init_pid,
    };
    spec::Inputs {
        config: &record.config,
        sandbox: &pod.config,
        image: &parts.of_image,
        rootfs: &parts.rootfs,
        user: parts.user.as_deref(),
        image_volumes: &parts.volumes,
        mounted_images: &parts.images,
        images_dir: engine.images.images_dir(),
        cgroup: &record.cgroup,
        files: engine.pod_dir(&pod.id).files(),
        shm: (pod.config.ipc == IpcMode::Pod).then(|| engine.shm(&pod.id)),
        netns: pod.netns.clone(),
        monitor_pid: sandbox.monitor.pid(),
        pid_of_namespace,
        unified_cgroups: engine.unified(),
        open_files: engine.config.open_files,
        seccomp: &engine.seccomp,
        host_paths: Visitor {
            paths: &engine.host_paths,
            at: &parts.at,
        },
    }
}

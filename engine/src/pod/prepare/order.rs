//! The third step: the order that has a pod's monitor make a container.
//!
//! In come a finished specification, the root and the cgroup; out goes the message
//! with its descriptors, for the launcher that the pod's handler names, and what the
//! record keeps of it. Puts the specification's limits in force, so that they hold before the
//! container's first process is born.

use std::os::fd::OwnedFd;

use runtime::cgroup::Cgroup;
use runtime::client::steps::mark;
use runtime::client::{CreateContainer, LauncherKind, OciRuntime, Pids};
use runtime::spec::{Spec, oci};

use super::Prepared;
use crate::context::Engine;
use crate::convert::BadRequest;
use crate::model::{Bytes, ContainerConfig, PidMode};
use crate::pod::container::{Sandbox, launcher};
use crate::pod::error::PodError;
use crate::pod::record::{ContainerRecord, PodRecord, User};

/// Makes the order.
///
/// # Errors
/// `NoHandler`: the pod's handler is not configured any more. `Request`: the launcher
/// cannot be told the environment. `Limits`: the kernel refuses one, and the cgroup has
/// those that it had.
pub(super) fn order(
    engine: &Engine,
    sandbox: &Sandbox,
    record: &ContainerRecord,
    spec: Spec,
    (rootfs, cgroup): (OwnedFd, &Cgroup),
) -> Result<Prepared, PodError> {
    let config = &record.config;
    let launcher = launcher(engine, &sandbox.pod)?;
    let raw_environment = raw_environment(&spec);
    if raw_environment.is_some() && launcher != LauncherKind::Native {
        return Err(PodError::Request(raw_environment_refused(config)));
    }
    limit(engine, &spec, cgroup)?;
    let process = &spec.process;
    let user = User {
        uid: process.uid,
        gid: process.gid,
        groups: process.groups.clone(),
    };
    let process = oci::write_process(process);
    // Without a PID namespace of its own, what outlives the first process has to
    // be found through the cgroup.
    let shares_pids = config.security.pid != PidMode::Container;
    let order = CreateContainer {
        id: record.id.to_string(),
        launcher,
        runtime: oci_runtime(engine, &sandbox.pod),
        spec,
        pids: pids(config, sandbox),
        rootfs,
        cgroup_files: cgroup.files_to_join(),
        cgroup_oom: cgroup.oom_file(),
        cgroup_kill: if shares_pids {
            cgroup.kill_file()
        } else {
            None
        },
        log_path: record.log_path.clone(),
        stdin: config.stdin,
        stdin_once: config.stdin_once,
    };
    Ok(Prepared {
        order,
        user,
        process,
        raw_environment,
    })
}

/// The environment in bytes, where the record's process, which is JSON, cannot say it.
fn raw_environment(spec: &Spec) -> Option<Vec<Bytes>> {
    let process = &spec.process;
    (!process.env_is_text()).then(|| process.env.iter().cloned().map(Bytes).collect())
}

/// Puts the container's limits in force; what is less than that is said.
fn limit(engine: &Engine, spec: &Spec, cgroup: &Cgroup) -> Result<(), PodError> {
    let _step = mark("limits");
    for warning in cgroup.apply(&spec.limits).map_err(PodError::Limits)? {
        engine.warnings.once(&warning);
    }
    Ok(())
}

/// Whose PID namespace the monitor is to enter.
fn pids(config: &ContainerConfig, sandbox: &Sandbox) -> Pids {
    match (&config.security.pid, &sandbox.target) {
        (PidMode::Target(_), Some(target)) => Pids::Target(target.id.to_string()),
        (PidMode::Target(id), None) => Pids::Target(id.clone()),
        (PidMode::Pod, _) => Pids::Pod,
        (PidMode::Container, _) => Pids::Own,
        (PidMode::Node, _) => Pids::Node,
    }
}

/// Names the variable that an OCI runtime specification, which is JSON, cannot say.
fn raw_environment_refused(config: &ContainerConfig) -> BadRequest {
    let is_raw = |(_, value): &&(String, Bytes)| std::str::from_utf8(&value.0).is_err();
    let name = config.envs.iter().find(is_raw).map(|(name, _)| name);
    BadRequest::Value {
        field: format!("config.envs[{}]", name.map_or("", String::as_str)),
        reason: "the value is not UTF-8, which only the native launcher can pass on".to_owned(),
    }
}

fn oci_runtime(engine: &Engine, pod: &PodRecord) -> Option<OciRuntime> {
    let handler = engine.config.handler(&pod.handler)?;
    Some(OciRuntime {
        path: handler.path.clone()?,
        args: handler.options.args.clone(),
    })
}

//! Between the engine's types and messages.
//!
//! Plain conversion; every field is named, so that none is forgotten.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;

use super::error::MonitorError;
use super::plan;
use super::types::{
    Attachment, ContainerReport, ContainerState, CreateContainer, ExecProcess, ExecStreams, Pids,
    PodReady, PodSetup, PodUser,
};
use crate::exit::ExitRecord;
use crate::protocol::{
    self, Attach, Container, Create, Exec, IdRange, LauncherKind, MountSource, PidMode, Plan,
    Setup, State, StreamSlots, Sysctl, sealed_memfd,
};
use crate::spec::oci::{self, EnvironmentIsNotText};
use crate::spec::{Mount, Spec, What};

/// Adds a descriptor to a packet and gives its slot.
pub(super) fn push<'a>(fds: &mut Vec<BorrowedFd<'a>>, fd: BorrowedFd<'a>) -> u32 {
    fds.push(fd);
    // A packet holds at most 253: sending refuses more than that.
    u32::try_from(fds.len() - 1).unwrap_or(u32::MAX)
}

pub(super) fn setup<'a>(
    setup: &'a PodSetup,
    launcher_fd: Option<u32>,
    fds: &mut Vec<BorrowedFd<'a>>,
) -> Result<Setup, MonitorError> {
    let PodSetup {
        pod_id,
        state_dir,
        exit_dir,
        cgroup_files,
        hostname,
        new_ipc,
        netns,
        sysctls,
        shared_pid,
        oom_score_adj,
        user,
    } = setup.clone();
    if !state_dir.is_absolute() || !exit_dir.is_absolute() {
        // The monitor lives in /.
        return Err(invalid("pod's directories", "not absolute"));
    }
    let user_ids = user.map(|PodUser { first, length, .. }| IdRange { first, length });
    let namespaces = setup.user.as_ref().map(|user| &*user.namespaces);
    let mut slot = |fd: Option<&'a OwnedFd>| fd.map(|fd| push(fds, fd.as_fd()));
    Ok(Setup {
        pod: pod_id,
        state_dir: bytes(state_dir),
        exit_dir: bytes(exit_dir),
        cgroup_files: all_bytes(cgroup_files),
        hostname,
        new_ipc,
        netns: netns.map(bytes),
        sysctls: sysctls
            .into_iter()
            .map(|(name, value)| Sysctl { name, value })
            .collect(),
        shared_pid,
        oom_score_adj,
        launcher_fd,
        userns_fd: slot(namespaces.map(|all| &all.user)),
        user_ids,
        ipc_fd: slot(namespaces.map(|all| &all.ipc)),
        uts_fd: slot(namespaces.map(|all| &all.uts)),
    })
}

pub(super) fn pod_ready(ready: protocol::PodReady) -> PodReady {
    let protocol::PodReady {
        pid,
        init_pid,
        warnings,
    } = ready;
    PodReady {
        pid,
        init_pid,
        warnings,
    }
}

/// A specification as its launcher takes it.
pub(super) enum Form {
    /// System calls.
    Plan(Box<Plan>),
    /// An OCI runtime specification as JSON in a sealed memfd.
    Json(OwnedFd),
}

impl Form {
    /// The plan or the memfd.
    pub(super) fn parts(self) -> (Option<Box<Plan>>, Option<OwnedFd>) {
        match self {
            Self::Plan(plan) => (Some(plan), None),
            Self::Json(memfd) => (None, Some(memfd)),
        }
    }
}

/// Brings a specification into its launcher's form.
pub(super) fn spec(launcher: LauncherKind, spec: &Spec) -> Result<Form, MonitorError> {
    if launcher == LauncherKind::Native {
        return plan::build(spec).map(|plan| Form::Plan(Box::new(plan)));
    }
    let written = oci::write(spec).map_err(|EnvironmentIsNotText| {
        let message = "this launcher takes a runtime specification, in which other bytes than UTF-8 cannot be said";
        invalid("environment", message)
    })?;
    let unwritten = |error: &dyn std::fmt::Display| invalid("runtime spec", &error.to_string());
    let json = serde_json::to_vec(&written).map_err(|error| unwritten(&error))?;
    let memfd = sealed_memfd("spec", &json).map_err(|error| unwritten(&error))?;
    Ok(Form::Json(memfd))
}

/// Makes the message. `plan` or `json` is the specification in its launcher's form.
pub(super) fn create<'a>(
    c: &'a CreateContainer,
    fds: &mut Vec<BorrowedFd<'a>>,
    (plan, json): (Option<Box<Plan>>, Option<BorrowedFd<'a>>),
    log: Option<BorrowedFd<'a>>,
) -> Result<Create, MonitorError> {
    let CreateContainer {
        id,
        launcher,
        runtime,
        spec,
        pids,
        rootfs,
        cgroup_files,
        cgroup_oom,
        cgroup_kill,
        log_path,
        stdin,
        stdin_once,
    } = c;
    let seccomp = spec.seccomp.as_ref();
    let seccomp_flags = plan::seccomp_flags(seccomp.map(|seccomp| &seccomp.profile))?;
    let spec_slot = json.map(|json| push(fds, json));
    let rootfs_slot = push(fds, rootfs.as_fd());
    let mounts = mount_sources(&spec.mounts, fds)?;
    let (pid_mode, pid_target) = pid_namespace(pids);
    // The last one: the monitor takes it out of those that it hands on.
    Ok(Create {
        id: id.clone(),
        launcher: (*launcher).into(),
        spec_fd: spec_slot,
        rootfs_fd: Some(rootfs_slot),
        mounts,
        cgroup_files: all_bytes(cgroup_files.clone()),
        cgroup_oom: cgroup_oom.clone().map(bytes),
        cgroup_kill: cgroup_kill.clone().map(bytes),
        seccomp_bpf: seccomp.map(|seccomp| seccomp.filter.to_vec()),
        log_path: log_path.clone().map(bytes),
        log_fd: log.map(|log| push(fds, log)),
        stdin: *stdin,
        stdin_once: *stdin_once,
        tty: spec.process.terminal,
        streams: None,
        plan,
        runtime: runtime.as_ref().map(|runtime| bytes(runtime.path.clone())),
        runtime_args: runtime
            .iter()
            .flat_map(|runtime| &runtime.args)
            .map(|arg| arg.clone().into_bytes())
            .collect(),
        seccomp_flags,
        pids: pid_mode.into(),
        pid_target,
        keyring: String::new(),
    })
}

fn pid_namespace(pids: &Pids) -> (PidMode, String) {
    match pids {
        Pids::Own => (PidMode::Own, String::new()),
        Pids::Pod => (PidMode::Pod, String::new()),
        Pids::Target(id) => (PidMode::Target, id.clone()),
        Pids::Node => (PidMode::Node, String::new()),
    }
}

/// The sources of volumes, by their place among the mounts.
fn mount_sources<'a>(
    mounts: &'a [Mount],
    fds: &mut Vec<BorrowedFd<'a>>,
) -> Result<Vec<MountSource>, MonitorError> {
    let trees = mounts.iter().enumerate().filter_map(|(index, mount)| {
        let What::Volume { tree, .. } = &mount.what else {
            return None;
        };
        Some((index, tree))
    });
    let sources = trees.map(|(index, tree)| {
        Ok(MountSource {
            index: u32::try_from(index).map_err(|_| invalid("mount", "index"))?,
            fd: Some(push(fds, tree.as_fd())),
            idmap_fd: None,
        })
    });
    sources.collect()
}

pub(super) fn exec<'a>(
    e: &'a ExecProcess,
    fds: &mut Vec<BorrowedFd<'a>>,
) -> Result<Exec, MonitorError> {
    let ExecProcess {
        container,
        process,
        streams,
        streaming,
        timeout,
        cgroup_files,
    } = e;
    plan::refuse(
        "process.terminal",
        process.terminal && !matches!(streams, ExecStreams::Terminal(_)),
        "its streams are pipes",
    )?;
    let streams = match streams {
        ExecStreams::Pipes {
            stdin,
            stdout,
            stderr,
        } => StreamSlots {
            stdin: stdin.as_ref().map(|fd| push(fds, fd.as_fd())),
            stdout: Some(push(fds, stdout.as_fd())),
            stderr: Some(push(fds, stderr.as_fd())),
            tty: None,
        },
        ExecStreams::Terminal(socket) => StreamSlots {
            tty: Some(push(fds, socket.as_fd())),
            ..StreamSlots::default()
        },
    };
    Ok(Exec {
        id: container.clone(),
        process: Some(plan::process(process)),
        streams: Some(streams),
        timeout: timeout.map_or(0, nanoseconds),
        cgroup_files: all_bytes(cgroup_files.clone()),
        streaming: *streaming,
    })
}

pub(super) fn attach<'a>(a: &'a Attachment, fds: &mut Vec<BorrowedFd<'a>>) -> Attach {
    let Attachment {
        container,
        stdin,
        stdout,
        stderr,
        terminal,
    } = a;
    let mut slot = |fd: &'a Option<OwnedFd>| fd.as_ref().map(|fd| push(fds, fd.as_fd()));
    let streams = StreamSlots {
        stdin: slot(stdin),
        stdout: slot(stdout),
        stderr: slot(stderr),
        tty: slot(terminal),
    };
    Attach {
        id: container.clone(),
        streams: Some(streams),
    }
}

pub(super) fn report(container: Container) -> ContainerReport {
    let state = container.state();
    let Container {
        id,
        state: _,
        pid,
        started_at,
        exit,
        lost_log_bytes,
        log_stalled,
    } = container;
    let state = match (state, exit) {
        (State::Exited, Some(exit)) => ContainerState::Exited(ExitRecord::from(exit)),
        (State::Running, _) => ContainerState::Running { started_at },
        (State::Starting, _) => ContainerState::Starting,
        _ => ContainerState::Created,
    };
    ContainerReport {
        id,
        state,
        pid,
        lost_log_bytes,
        log_stalled,
    }
}

fn nanoseconds(timeout: Duration) -> u64 {
    // 0 would mean "never": a timeout of nothing is the shortest one instead.
    u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX).max(1)
}

fn bytes(path: PathBuf) -> Vec<u8> {
    path.into_os_string().into_vec()
}

fn all_bytes(paths: Vec<PathBuf>) -> Vec<Vec<u8>> {
    paths.into_iter().map(bytes).collect()
}

fn invalid(what: &'static str, message: &str) -> MonitorError {
    MonitorError::Invalid {
        what,
        message: message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeout_of_nothing_is_not_never() {
        assert_eq!(nanoseconds(Duration::ZERO), 1);
        assert_eq!(nanoseconds(Duration::MAX), u64::MAX);
    }

    #[test]
    fn what_exec_cannot_honour_is_refused_by_name() {
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let mut process = oci_spec::runtime::Process::default();
        process.set_terminal(Some(true));
        let order = ExecProcess {
            container: String::new(),
            process: oci::read_process(&process).unwrap(),
            streams: ExecStreams::Pipes {
                stdin: None,
                stdout: null(),
                stderr: null(),
            },
            streaming: false,
            timeout: None,
            cgroup_files: Vec::new(),
        };
        let error = exec(&order, &mut Vec::new()).unwrap_err();
        assert!(
            matches!(&error, MonitorError::Unsupported { what, .. } if what == "process.terminal")
        );
    }
}

//! Between the engine's types and messages.
//!
//! Plain conversion; every field is named, so that none is forgotten.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;

use oci_spec::runtime::{Capabilities, LinuxCapabilities, PosixRlimit, PosixRlimitType, Spec};

use super::error::MonitorError;
use super::plan::{self, Planned};
use super::types::{
    ContainerReport, ContainerState, CreateContainer, ExecProcess, Pids, PodReady, PodSetup,
};
use crate::exec::capability_number;
use crate::exit::ExitRecord;
use crate::protocol::{
    self, CapabilitySets, Container, Create, Exec, LauncherKind, MountSource, PidMode, Process,
    Rlimit, Setup, State, StreamSlots, Sysctl, sealed_memfd,
};

/// Adds a descriptor to a packet and gives its slot.
pub(super) fn push<'a>(fds: &mut Vec<BorrowedFd<'a>>, fd: BorrowedFd<'a>) -> u32 {
    fds.push(fd);
    // A packet holds at most 253: sending refuses more than that.
    u32::try_from(fds.len() - 1).unwrap_or(u32::MAX)
}

pub(super) fn setup(setup: PodSetup, launcher_fd: Option<u32>) -> Result<Setup, MonitorError> {
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
    } = setup;
    if !state_dir.is_absolute() || !exit_dir.is_absolute() {
        // The monitor lives in /.
        return Err(invalid("pod's directories", "not absolute"));
    }
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
        userns_fd: None,
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

/// A spec as its launcher takes it.
pub(super) enum SpecForm {
    /// JSON in a sealed memfd.
    Json(OwnedFd),
    /// System calls.
    Plan(Box<Planned>),
}

/// Brings a spec into its launcher's form.
pub(super) fn spec(c: &CreateContainer) -> Result<SpecForm, MonitorError> {
    if c.launcher != LauncherKind::Native {
        return spec_memfd(&c.spec).map(SpecForm::Json);
    }
    if c.spec
        .process()
        .as_ref()
        .and_then(oci_spec::runtime::Process::terminal)
        == Some(true)
        && !c.tty
    {
        return Err(invalid(
            "process.terminal",
            "it is not what the request says",
        ));
    }
    let given = |index| c.mounts.iter().any(|(given, _)| *given == index);
    let planned = plan::build(&c.spec, given, c.seccomp_bpf.is_some())?;
    Ok(SpecForm::Plan(Box::new(planned)))
}

/// The spec as JSON in a sealed memfd.
fn spec_memfd(spec: &Spec) -> Result<OwnedFd, MonitorError> {
    let json =
        serde_json::to_vec(spec).map_err(|error| invalid("runtime spec", &error.to_string()))?;
    sealed_memfd("spec", &json).map_err(|error| invalid("runtime spec", &error.to_string()))
}

pub(super) fn create<'a>(
    c: &'a CreateContainer,
    fds: &mut Vec<BorrowedFd<'a>>,
    form: &'a SpecForm,
    log: Option<BorrowedFd<'a>>,
) -> Result<Create, MonitorError> {
    if c.environment.is_some() && c.launcher != LauncherKind::Native {
        return Err(invalid(
            "environment",
            "this launcher takes a runtime specification, in which other bytes than UTF-8 cannot be said",
        ));
    }
    let CreateContainer {
        id,
        launcher,
        runtime,
        spec,
        pids,
        rootfs,
        mounts,
        cgroup_files,
        cgroup_oom,
        cgroup_kill,
        seccomp_bpf,
        log_path,
        stdin,
        stdin_once,
        tty,
        environment,
    } = c;
    let (spec_slot, plan, filter) = match form {
        SpecForm::Json(memfd) => (Some(push(fds, memfd.as_fd())), None, None),
        SpecForm::Plan(planned) => {
            let Planned { plan, filter } = &**planned;
            let mut plan = Box::new(plan.clone());
            if let (Some(process), Some(environment)) = (&mut plan.process, environment) {
                process.env.clone_from(environment);
            }
            (None, Some(plan), filter.clone())
        }
    };
    let profile = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.seccomp().as_ref());
    let seccomp_flags = plan::seccomp_flags(profile)?;
    let rootfs_slot = push(fds, rootfs.as_fd());
    let mounts = mount_sources(mounts, fds)?;
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
        seccomp_bpf: seccomp_bpf.clone().or(filter),
        log_path: log_path.clone().map(bytes),
        log_fd: log.map(|log| push(fds, log)),
        stdin: *stdin,
        stdin_once: *stdin_once,
        tty: *tty,
        streams: None,
        userns_fd: None,
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

/// The sources of mounts, by their place in the spec.
fn mount_sources<'a>(
    mounts: &'a [(usize, OwnedFd)],
    fds: &mut Vec<BorrowedFd<'a>>,
) -> Result<Vec<MountSource>, MonitorError> {
    let sources = mounts.iter().map(|(index, fd)| {
        Ok(MountSource {
            index: u32::try_from(*index).map_err(|_| invalid("mount", "index"))?,
            fd: Some(push(fds, fd.as_fd())),
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
        environment,
        stdin,
        stdout,
        stderr,
        timeout,
        cgroup_files,
    } = e;
    let streams = StreamSlots {
        stdin: stdin.as_ref().map(|fd| push(fds, fd.as_fd())),
        stdout: Some(push(fds, stdout.as_fd())),
        stderr: Some(push(fds, stderr.as_fd())),
        tty: None,
    };
    let mut process = convert_exec(process)?;
    if let Some(environment) = environment {
        process.env.clone_from(environment);
    }
    Ok(Exec {
        id: container.clone(),
        process: Some(process),
        streams: Some(streams),
        timeout: timeout.map_or(0, nanoseconds),
        cgroup_files: all_bytes(cgroup_files.clone()),
    })
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

fn convert_exec(process: &oci_spec::runtime::Process) -> Result<Process, MonitorError> {
    plan::refuse(
        "process.terminal",
        process.terminal() == Some(true),
        "not for processes that are run in a container",
    )?;
    convert_process(process)
}

/// Refuses by name what no process can have.
pub(super) fn convert_process(
    process: &oci_spec::runtime::Process,
) -> Result<Process, MonitorError> {
    let refused = [
        ("process.ioPriority", process.io_priority().is_some()),
        ("process.scheduler", process.scheduler().is_some()),
        (
            "process.execCPUAffinity",
            process.exec_cpu_affinity().is_some(),
        ),
    ];
    if let Some((what, _)) = refused.iter().find(|(_, set)| *set) {
        let message = "not in this version".to_owned();
        return Err(MonitorError::Unsupported {
            what: (*what).to_owned(),
            message,
        });
    }
    let user = process.user();
    let strings = |list: &Option<Vec<String>>| -> Vec<Vec<u8>> {
        list.iter()
            .flatten()
            .map(|text| text.clone().into_bytes())
            .collect()
    };
    Ok(Process {
        args: strings(process.args()),
        env: strings(process.env()),
        cwd: bytes(process.cwd().clone()),
        uid: user.uid(),
        gid: user.gid(),
        groups: user.additional_gids().clone().unwrap_or_default(),
        umask: user.umask(),
        capabilities: process
            .capabilities()
            .as_ref()
            .map(capability_sets)
            .transpose()?,
        rlimits: process.rlimits().iter().flatten().map(rlimit).collect(),
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        apparmor_profile: process.apparmor_profile().clone().unwrap_or_default(),
        selinux_label: process.selinux_label().clone().unwrap_or_default(),
        oom_score_adj: process.oom_score_adj(),
    })
}

fn capability_sets(sets: &LinuxCapabilities) -> Result<CapabilitySets, MonitorError> {
    Ok(CapabilitySets {
        bounding: capability_bits(sets.bounding().as_ref())?,
        effective: capability_bits(sets.effective().as_ref())?,
        permitted: capability_bits(sets.permitted().as_ref())?,
        inheritable: capability_bits(sets.inheritable().as_ref())?,
        ambient: capability_bits(sets.ambient().as_ref())?,
    })
}

fn capability_bits(set: Option<&Capabilities>) -> Result<u64, MonitorError> {
    set.into_iter().flatten().try_fold(0, |bits, capability| {
        let name = capability.to_string();
        let number = capability_number(&name).ok_or_else(|| invalid("capability", &name))?;
        Ok(bits | 1 << number)
    })
}

fn rlimit(limit: &PosixRlimit) -> Rlimit {
    Rlimit {
        resource: rlimit_number(limit.typ()),
        soft: limit.soft(),
        hard: limit.hard(),
    }
}

/// The kernel's numbers on every architecture that Slipway runs on.
fn rlimit_number(limit: PosixRlimitType) -> u32 {
    match limit {
        PosixRlimitType::RlimitCpu => 0,
        PosixRlimitType::RlimitFsize => 1,
        PosixRlimitType::RlimitData => 2,
        PosixRlimitType::RlimitStack => 3,
        PosixRlimitType::RlimitCore => 4,
        PosixRlimitType::RlimitRss => 5,
        PosixRlimitType::RlimitNproc => 6,
        PosixRlimitType::RlimitNofile => 7,
        PosixRlimitType::RlimitMemlock => 8,
        PosixRlimitType::RlimitAs => 9,
        PosixRlimitType::RlimitLocks => 10,
        PosixRlimitType::RlimitSigpending => 11,
        PosixRlimitType::RlimitMsgqueue => 12,
        PosixRlimitType::RlimitNice => 13,
        PosixRlimitType::RlimitRtprio => 14,
        PosixRlimitType::RlimitRttime => 15,
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
    use oci_spec::runtime::Capability;

    use super::*;

    #[test]
    fn timeout_of_nothing_is_not_never() {
        assert_eq!(nanoseconds(Duration::ZERO), 1);
        assert_eq!(nanoseconds(Duration::MAX), u64::MAX);
    }

    #[test]
    fn capabilities_become_the_kernels_bits() {
        let set = Capabilities::from([Capability::Chown, Capability::CheckpointRestore]);
        assert_eq!(capability_bits(Some(&set)).unwrap(), 1 | 1 << 40);
        assert_eq!(capability_bits(None).unwrap(), 0);
    }

    #[test]
    fn what_exec_cannot_honour_is_refused_by_name() {
        let mut process = oci_spec::runtime::Process::default();
        process.set_terminal(Some(true));
        let error = convert_exec(&process).unwrap_err();
        assert!(
            matches!(&error, MonitorError::Unsupported { what, .. } if what == "process.terminal")
        );
    }
}

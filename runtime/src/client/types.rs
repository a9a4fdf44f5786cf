//! What the engine asks of a monitor and what it gets.
//!
//! Plain data; holds no logic.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::exit::ExitRecord;
use crate::netns::PodNamespaces;
use crate::protocol::LauncherKind;
use crate::spec::{Process, Spec};

/// What a monitor tells without being asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A container's first process ended. Its record is on disk already.
    Exited(ExitRecord),
    /// A start ended that another engine had asked for.
    StartEnded {
        /// The container.
        container: String,
        /// When it began, nanoseconds since 1970, or why it did not: its exit
        /// follows then.
        outcome: Result<i64, String>,
    },
    /// A container's log stopped taking records, or takes them again.
    Log {
        /// The container.
        container: String,
        /// Whether its output waits.
        stalled: bool,
    },
    /// The monitor's process has ended.
    Gone,
}

/// A pod to set up.
#[derive(Debug, Clone, Default)]
pub struct PodSetup {
    /// The pod's id.
    pub pod_id: String,
    /// An existing directory; the monitor's socket is made here.
    pub state_dir: PathBuf,
    /// An existing directory; exit records are written here.
    pub exit_dir: PathBuf,
    /// Files by which the monitor joins, see [`crate::joining`].
    pub cgroup_files: Vec<PathBuf>,
    /// Set in a new uts namespace. `None`: the host's namespace.
    pub hostname: Option<String>,
    /// Whether the pod gets an ipc namespace.
    pub new_ipc: bool,
    /// Pinned network namespace to enter. `None`: the host's.
    pub netns: Option<PathBuf>,
    /// Kernel parameters, set in the pod's namespaces.
    pub sysctls: Vec<(String, String)>,
    /// Whether the built-in init becomes PID 1 of a pid namespace of the pod.
    pub shared_pid: bool,
    /// Of the monitor. One that may not be lowered is a warning.
    pub oom_score_adj: i32,
    /// The user namespace that its processes live in, but for the monitor, with the
    /// namespaces that it owns. `None`: the node's.
    pub user: Option<PodUser>,
}

/// A pod's user namespace.
#[derive(Debug, Clone)]
pub struct PodUser {
    /// It, and what it owns. The pinned network namespace is the one that they were made
    /// with.
    pub namespaces: Arc<PodNamespaces>,
    /// The first id of the node that is one of the namespace: its 0.
    pub first: u32,
    /// How many ids it has.
    pub length: u32,
}

/// A pod that is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodReady {
    /// The monitor: `/proc/<pid>/ns/{ipc,uts,net}` are the pod's namespaces.
    pub pid: i32,
    /// The pod's own init, if asked for: `/proc/<pid>/ns/pid`.
    pub init_pid: Option<i32>,
    /// What was not honoured without harm.
    pub warnings: Vec<String>,
}

/// A container to make.
#[derive(Debug)]
pub struct CreateContainer {
    /// Its id.
    pub id: String,
    /// Who makes it.
    pub launcher: LauncherKind,
    /// The OCI runtime, for that launcher.
    pub runtime: Option<OciRuntime>,
    /// Its specification.
    pub spec: Spec,
    /// Whose PID namespace it lives in. Launchers that read OCI specifications enter the
    /// one that the specification names, and the container is ended if that was another.
    pub pids: Pids,
    /// Detached mount of the root filesystem.
    pub rootfs: OwnedFd,
    /// Files by which the container joins, see [`crate::joining`].
    pub cgroup_files: Vec<PathBuf>,
    /// `memory.events` or `memory.oom_control`, read when it ends.
    pub cgroup_oom: Option<PathBuf>,
    /// `cgroup.kill` of the v2 tree.
    pub cgroup_kill: Option<PathBuf>,
    /// CRI log. `None`: output is dropped.
    pub log_path: Option<PathBuf>,
    /// Whether stdin is a pipe that stays open instead of /dev/null.
    pub stdin: bool,
    /// Whether that pipe closes after the first client that attached.
    pub stdin_once: bool,
}

/// Whose PID namespace a container lives in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pids {
    /// A new one.
    Own,
    /// The pod's, which has an init of its own.
    Pod,
    /// That of another container of the pod, by its id.
    Target(String),
    /// The node's.
    Node,
}

/// An OCI command line runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OciRuntime {
    /// Its executable.
    pub path: PathBuf,
    /// Its arguments before those that say what to do.
    pub args: Vec<String>,
}

/// A container that waits for its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// Its first process.
    pub pid: i32,
    /// What was not honoured without harm.
    pub warnings: Vec<String>,
}

/// A container that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// Nanoseconds since 1970.
    pub started_at: i64,
}

/// A process to run in a container.
#[derive(Debug)]
pub struct ExecProcess {
    /// The container.
    pub container: String,
    /// The process.
    pub process: Process,
    /// What it reads and writes.
    pub streams: ExecStreams,
    /// Whether its output is read as it comes, by somebody who may take his time: the
    /// answer follows when all of it is.
    pub streaming: bool,
    /// After this it is killed with its session.
    pub timeout: Option<Duration>,
    /// Files by which it joins: the container's, see [`crate::joining`].
    pub cgroup_files: Vec<PathBuf>,
}

/// What a process that is run reads and writes. None of these ends is the container's:
/// what passes between is relayed.
#[derive(Debug)]
pub enum ExecStreams {
    /// Pipes.
    Pipes {
        /// From where it reads. `None`: /dev/null.
        stdin: Option<OwnedFd>,
        /// Where its output goes.
        stdout: OwnedFd,
        /// Where its complaints go.
        stderr: OwnedFd,
    },
    /// A terminal of the container's, whose master side is sent to this socket
    /// ([`crate::terminal`]).
    Terminal(OwnedFd),
}

/// A client that reads what a container writes from now on, and may write to it. Its
/// streams end with the container's.
#[derive(Debug)]
pub struct Attachment {
    /// The container.
    pub container: String,
    /// From where the container reads beside others; not with a terminal.
    pub stdin: Option<OwnedFd>,
    /// Where its output goes, without what finds no room there.
    pub stdout: Option<OwnedFd>,
    /// Where its complaints go, in the same way.
    pub stderr: Option<OwnedFd>,
    /// A socket to which the master side of its terminal is sent
    /// ([`crate::terminal`]).
    pub terminal: Option<OwnedFd>,
}

/// How a process that was run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecExit {
    /// By itself or by a signal.
    Exited {
        /// Exit code; 128 + n for a signal.
        code: i32,
    },
    /// Its time was up.
    TimedOut,
}

/// One container of a monitor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerReport {
    /// Its id.
    pub id: String,
    /// Where it is in its life.
    pub state: ContainerState,
    /// Its first process; 0: not there yet.
    pub pid: i32,
    /// Output that was lost because the log could not be written.
    pub lost_log_bytes: u64,
    /// Whether its log takes nothing for the time being: its output waits.
    pub log_stalled: bool,
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerState {
    /// Being made or waiting for its start.
    Created,
    /// Let go; whether its program runs is told by [`Event::StartEnded`].
    Starting,
    /// Running.
    Running {
        /// Nanoseconds since 1970.
        started_at: i64,
    },
    /// Ended.
    Exited(ExitRecord),
}

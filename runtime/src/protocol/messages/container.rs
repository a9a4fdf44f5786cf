//! Messages about containers, between engine, monitor and launcher helper.

use super::{Failure, Plan};

/// Which launcher makes a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum LauncherKind {
    /// What an unknown or missing kind decodes to: refused.
    Unspecified = 0,
    /// youki's libcontainer in a throw-away process.
    Libcontainer = 1,
    /// The monitor itself.
    Native = 2,
    /// An OCI command line runtime.
    Oci = 3,
}

/// Whose PID namespace a container lives in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum PidMode {
    /// What an unknown or missing mode decodes to.
    Unspecified = 0,
    /// A new one.
    Own = 1,
    /// That of the pod's own init.
    Pod = 2,
    /// That of another container.
    Target = 3,
    /// The node's.
    Node = 4,
}

/// A container's wishes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Create {
    /// Its id.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Who makes it.
    #[prost(enumeration = "LauncherKind", tag = "2")]
    pub launcher: i32,
    /// Slot of a memfd with the runtime spec as JSON, for launchers that read
    /// it.
    #[prost(uint32, optional, tag = "3")]
    pub spec_fd: Option<u32>,
    /// Slot of the detached root filesystem.
    #[prost(uint32, optional, tag = "4")]
    pub rootfs_fd: Option<u32>,
    /// Detached mounts to use as sources.
    #[prost(message, repeated, tag = "5")]
    pub mounts: Vec<MountSource>,
    /// Files to join by, see [`crate::joining`].
    #[prost(bytes = "vec", repeated, tag = "6")]
    pub cgroup_files: Vec<Vec<u8>>,
    /// File that counts OOM kills.
    #[prost(bytes = "vec", optional, tag = "7")]
    pub cgroup_oom: Option<Vec<u8>>,
    /// `cgroup.kill` of the v2 tree.
    #[prost(bytes = "vec", optional, tag = "8")]
    pub cgroup_kill: Option<Vec<u8>>,
    /// Compiled seccomp filter, an array of `sock_filter`: for processes that
    /// are run, and with the native launcher for the first one.
    #[prost(bytes = "vec", optional, tag = "9")]
    pub seccomp_bpf: Option<Vec<u8>>,
    /// CRI log; missing: output is dropped. Read where `log_fd` is missing.
    #[prost(bytes = "vec", optional, tag = "10")]
    pub log_path: Option<Vec<u8>>,
    /// Whether stdin is a pipe instead of /dev/null.
    #[prost(bool, tag = "11")]
    pub stdin: bool,
    /// Whether stdin closes with the first client that attached to it.
    #[prost(bool, tag = "12")]
    pub stdin_once: bool,
    /// Whether stdio is a terminal.
    #[prost(bool, tag = "13")]
    pub tty: bool,
    /// Streams to connect from the beginning. Refused so far.
    #[prost(message, optional, tag = "14")]
    pub streams: Option<StreamSlots>,
    /// The spec for the native launcher.
    #[prost(message, optional, boxed, tag = "16")]
    pub plan: Option<Box<Plan>>,
    /// The executable of an OCI command line runtime.
    #[prost(bytes = "vec", optional, tag = "17")]
    pub runtime: Option<Vec<u8>>,
    /// Its arguments before those that say what to do.
    #[prost(bytes = "vec", repeated, tag = "18")]
    pub runtime_args: Vec<Vec<u8>>,
    /// Slot of a descriptor that names the log, the packet's last one.
    #[prost(uint32, optional, tag = "19")]
    pub log_fd: Option<u32>,
    /// The kernel's flags for the filter of processes that are run.
    #[prost(uint32, tag = "30")]
    pub seccomp_flags: u32,
    /// Whose PID namespace it lives in. The number of a process, as the spec has it, may
    /// be another's by the time that it is looked at.
    #[prost(enumeration = "PidMode", tag = "31")]
    pub pids: i32,
    /// The id of the other container, in `Target`.
    #[prost(string, tag = "32")]
    pub pid_target: String,
    /// The secret in the name of its session keyring. Of the monitor's own making.
    #[prost(string, tag = "33")]
    pub keyring: String,
}

/// A detached mount and where it belongs.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MountSource {
    /// Index into the spec's mounts.
    #[prost(uint32, tag = "1")]
    pub index: u32,
    /// Slot of the mount.
    #[prost(uint32, optional, tag = "2")]
    pub fd: Option<u32>,
    /// Slot of a user namespace for an id-mapped mount. Refused so far.
    #[prost(uint32, optional, tag = "3")]
    pub idmap_fd: Option<u32>,
}

/// A client that reads what a running container writes from now on, and may write what
/// it reads. Each stream ends with the container's, or when the client closes its end.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Attach {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The client's streams, as far as it wants them; with `tty` no stdin, since who has
    /// the terminal writes to it.
    #[prost(message, optional, tag = "2")]
    pub streams: Option<StreamSlots>,
}

/// Descriptors of a client's streams.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StreamSlots {
    /// What the process reads.
    #[prost(uint32, optional, tag = "1")]
    pub stdin: Option<u32>,
    /// What the process writes.
    #[prost(uint32, optional, tag = "2")]
    pub stdout: Option<u32>,
    /// What the process complains to.
    #[prost(uint32, optional, tag = "3")]
    pub stderr: Option<u32>,
    /// A socket for packets, to which a terminal's master side is sent.
    #[prost(uint32, optional, tag = "4")]
    pub tty: Option<u32>,
}

/// A container that waits for its start.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Created {
    /// Its first process.
    #[prost(int32, tag = "1")]
    pub pid: i32,
    /// What was not honoured without harm.
    #[prost(string, repeated, tag = "2")]
    pub warnings: Vec<String>,
}

/// A created container to let run.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Start {
    /// Its id.
    #[prost(string, tag = "1")]
    pub id: String,
    /// It is ended when its program has not begun after this many nanoseconds; 0: the
    /// monitor's own limit.
    #[prost(uint64, tag = "2")]
    pub timeout: u64,
}

/// A container that runs.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Started {
    /// When it began, wall clock nanoseconds.
    #[prost(int64, tag = "1")]
    pub started_at: i64,
}

/// A signal to send.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Signal {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The signal's number.
    #[prost(int32, tag = "2")]
    pub signal: i32,
}

/// All containers of a pod.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Containers {
    /// In order of creation.
    #[prost(message, repeated, tag = "1")]
    pub containers: Vec<Container>,
}

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum State {
    /// What an unknown state decodes to.
    Unspecified = 0,
    /// Being made or waiting for its start.
    Created = 1,
    /// Running.
    Running = 2,
    /// Ended.
    Exited = 3,
    /// Let go; whether its program runs is not known yet.
    Starting = 4,
}

/// One container of a list.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Container {
    /// Its id.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Its state.
    #[prost(enumeration = "State", tag = "2")]
    pub state: i32,
    /// Its first process; 0: not there yet.
    #[prost(int32, tag = "3")]
    pub pid: i32,
    /// When it began; 0: not yet.
    #[prost(int64, tag = "4")]
    pub started_at: i64,
    /// How it ended, in `Exited`.
    #[prost(message, optional, tag = "5")]
    pub exit: Option<Exited>,
    /// Output that was lost because the log could not be written.
    #[prost(uint64, tag = "6")]
    pub lost_log_bytes: u64,
    /// Whether its log takes nothing: its output waits.
    #[prost(bool, tag = "7")]
    pub log_stalled: bool,
}

/// A log to open again, since its file was renamed.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReopenLog {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Slot of a descriptor that names the new file; missing: the monitor opens
    /// the path that it was given with the container.
    #[prost(uint32, optional, tag = "2")]
    pub log_fd: Option<u32>,
}

/// What became of a start whose asker is gone.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StartEnded {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// When it began, wall clock nanoseconds.
    #[prost(int64, tag = "2")]
    pub started_at: i64,
    /// Why its program could not be executed.
    #[prost(message, optional, boxed, tag = "3")]
    pub failure: Option<Box<Failure>>,
}

/// A log stopped taking records, or takes them again.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LogState {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Whether it takes nothing.
    #[prost(bool, tag = "2")]
    pub stalled: bool,
}

/// How a container ended.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Exited {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Exit code; 128 + n for a signal.
    #[prost(int32, tag = "2")]
    pub exit_code: i32,
    /// The signal, if one ended it.
    #[prost(int32, optional, tag = "3")]
    pub signal: Option<i32>,
    /// Whether that was the kernel, for lack of memory.
    #[prost(bool, tag = "4")]
    pub oom_killed: bool,
    /// When it began, wall clock nanoseconds; 0: never.
    #[prost(int64, tag = "5")]
    pub started_at: i64,
    /// When it ended, wall clock nanoseconds.
    #[prost(int64, tag = "6")]
    pub finished_at: i64,
}

/// Monitor to launcher helper.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Launch {
    /// The container as the engine asked for it, with the same slots.
    #[prost(message, optional, boxed, tag = "1")]
    pub create: Option<Box<Create>>,
    /// Private directory to work in; a mount point in the helper's namespace.
    #[prost(bytes = "vec", tag = "2")]
    pub work_dir: Vec<u8>,
    /// Slot of the pipe that the container's first process waits at.
    #[prost(uint32, optional, tag = "3")]
    pub start_fd: Option<u32>,
    /// Slot of the pipe for its words about what went wrong.
    #[prost(uint32, optional, tag = "5")]
    pub words_fd: Option<u32>,
    /// Slots of the container's ends of its pipes.
    #[prost(message, optional, tag = "4")]
    pub stdio: Option<StreamSlots>,
}

/// Launcher helper to monitor.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Launched {
    /// The container's first process, a child of the monitor.
    #[prost(int32, tag = "1")]
    pub pid: i32,
    /// Slot of the terminal's master side.
    #[prost(uint32, optional, tag = "2")]
    pub console_fd: Option<u32>,
    /// What was not honoured without harm.
    #[prost(string, repeated, tag = "3")]
    pub warnings: Vec<String>,
    /// Whether its session keyring is of the OCI runtime's making: its name has no secret.
    #[prost(bool, tag = "4")]
    pub runtimes_keyring: bool,
}

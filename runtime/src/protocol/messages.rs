//! The messages of the protocol.
//!
//! Owns field numbers: a number is never reused for another meaning, a field
//! is never made required. Paths are bytes, descriptors are slots: indexes
//! into the descriptors of the same packet. Holds no logic.

/// Every packet.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Envelope {
    /// Protocol version of the sender.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// Chosen by the asking side, repeated in the answer; 0 in events.
    #[prost(uint64, tag = "2")]
    pub request: u64,
    /// When the sender sent it, monotonic nanoseconds.
    #[prost(uint64, tag = "3")]
    pub sent_at: u64,
    /// In an answer: when the request arrived, monotonic nanoseconds.
    #[prost(uint64, tag = "4")]
    pub received_at: u64,
    /// In an answer: what happened in between.
    #[prost(message, repeated, tag = "5")]
    pub steps: Vec<Step>,
    /// Not 0: the real envelope is in the last descriptor, this many bytes.
    #[prost(uint64, tag = "6")]
    pub spilled: u64,
    /// What is said.
    #[prost(
        oneof = "Body",
        tags = "10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 30, 31, 32, 33, 34, 35, 36, 37, 38, 50"
    )]
    pub body: Option<Body>,
}

/// One step of a request's work.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Step {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// When it was done, monotonic nanoseconds.
    #[prost(uint64, tag = "2")]
    pub at: u64,
}

impl Step {
    /// A step that is done now.
    #[must_use]
    pub fn now(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            at: super::monotonic_now(),
        }
    }
}

/// Requests, answers and events.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Body {
    /// First request of every connection.
    #[prost(message, tag = "10")]
    Hello(Hello),
    /// Turns an idle monitor into a pod's.
    #[prost(message, boxed, tag = "11")]
    Setup(Box<Setup>),
    /// Makes a container.
    #[prost(message, boxed, tag = "12")]
    Create(Box<Create>),
    /// Lets a created container run.
    #[prost(message, tag = "13")]
    Start(ContainerName),
    /// Signals a container's first process.
    #[prost(message, tag = "14")]
    Signal(Signal),
    /// Runs a process in a container and waits for its end.
    #[prost(message, boxed, tag = "15")]
    Exec(Box<Exec>),
    /// Forgets a container.
    #[prost(message, tag = "16")]
    Delete(ContainerName),
    /// Opens a container's log again, after its rotation.
    #[prost(message, tag = "17")]
    ReopenLog(ContainerName),
    /// Asks for all containers.
    #[prost(message, tag = "18")]
    List(Empty),
    /// Kills what is left and ends the monitor.
    #[prost(message, tag = "19")]
    Shutdown(Empty),
    /// Monitor to launcher helper: make this container.
    #[prost(message, boxed, tag = "20")]
    Launch(Box<Launch>),

    /// Answers `Hello`.
    #[prost(message, tag = "30")]
    Welcome(Welcome),
    /// Answers `Setup`.
    #[prost(message, tag = "31")]
    PodReady(PodReady),
    /// Answers `Create`.
    #[prost(message, tag = "32")]
    Created(Created),
    /// Answers `Start`.
    #[prost(message, tag = "33")]
    Started(Started),
    /// Answers what has nothing to tell.
    #[prost(message, tag = "34")]
    Done(Empty),
    /// Answers `Exec`.
    #[prost(message, tag = "35")]
    ExecEnded(ExecEnded),
    /// Answers `List`.
    #[prost(message, tag = "36")]
    Containers(Containers),
    /// Answers anything that failed.
    #[prost(message, boxed, tag = "37")]
    Failure(Box<Failure>),
    /// Launcher helper to monitor: the container waits for its start.
    #[prost(message, tag = "38")]
    Launched(Launched),

    /// A container's first process ended.
    #[prost(message, tag = "50")]
    Exited(Exited),
}

/// Nothing to say.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Empty {}

/// A container by its id.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerName {
    /// Its id.
    #[prost(string, tag = "1")]
    pub id: String,
}

/// Who asks.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Hello {
    /// Version of the engine, for messages to people only.
    #[prost(string, tag = "1")]
    pub engine: String,
}

/// Who answers.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Welcome {
    /// Version of the monitor, for messages to people only.
    #[prost(string, tag = "1")]
    pub monitor: String,
    /// Its pid in the engine's pid namespace (the two share one).
    #[prost(int32, tag = "2")]
    pub pid: i32,
    /// The pod it keeps; empty while idle.
    #[prost(string, tag = "3")]
    pub pod: String,
}

/// A pod's wishes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Setup {
    /// The pod's id.
    #[prost(string, tag = "1")]
    pub pod: String,
    /// Directory of the pod's socket.
    #[prost(bytes = "vec", tag = "2")]
    pub state_dir: Vec<u8>,
    /// Directory of exit records.
    #[prost(bytes = "vec", tag = "3")]
    pub exit_dir: Vec<u8>,
    /// `cgroup.procs` files to join.
    #[prost(bytes = "vec", repeated, tag = "4")]
    pub cgroup_procs: Vec<Vec<u8>>,
    /// Host name in a new uts namespace; missing: the host's namespace.
    #[prost(string, optional, tag = "5")]
    pub hostname: Option<String>,
    /// Whether to make an ipc namespace.
    #[prost(bool, tag = "6")]
    pub new_ipc: bool,
    /// Pinned network namespace to enter; missing: the host's.
    #[prost(bytes = "vec", optional, tag = "7")]
    pub netns: Option<Vec<u8>>,
    /// Kernel parameters of the pod's namespaces.
    #[prost(message, repeated, tag = "8")]
    pub sysctls: Vec<Sysctl>,
    /// Whether to start an init for a pid namespace of the pod.
    #[prost(bool, tag = "9")]
    pub shared_pid: bool,
    /// Of the monitor itself.
    #[prost(int32, tag = "10")]
    pub oom_score_adj: i32,
    /// Slot of the launcher helper's executable.
    #[prost(uint32, optional, tag = "11")]
    pub launcher_fd: Option<u32>,
    /// Slot of a user namespace to make all others in. Refused so far.
    #[prost(uint32, optional, tag = "12")]
    pub userns_fd: Option<u32>,
}

/// One kernel parameter.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Sysctl {
    /// Name with dots, or with slashes.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Value as written.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// A pod that is set up.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PodReady {
    /// The monitor's pid.
    #[prost(int32, tag = "1")]
    pub pid: i32,
    /// The pod's own init, if it has one.
    #[prost(int32, optional, tag = "2")]
    pub init_pid: Option<i32>,
    /// What was not honoured without harm.
    #[prost(string, repeated, tag = "3")]
    pub warnings: Vec<String>,
}

/// Which launcher makes a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum LauncherKind {
    /// What an unknown or missing kind decodes to: refused.
    Unspecified = 0,
    /// youki's libcontainer in a throw-away process.
    Libcontainer = 1,
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
    /// Slot of a memfd with the runtime spec as JSON.
    #[prost(uint32, optional, tag = "3")]
    pub spec_fd: Option<u32>,
    /// Slot of the detached root filesystem.
    #[prost(uint32, optional, tag = "4")]
    pub rootfs_fd: Option<u32>,
    /// Detached mounts to use as sources.
    #[prost(message, repeated, tag = "5")]
    pub mounts: Vec<MountSource>,
    /// `cgroup.procs` files to join.
    #[prost(bytes = "vec", repeated, tag = "6")]
    pub cgroup_procs: Vec<Vec<u8>>,
    /// File that counts OOM kills.
    #[prost(bytes = "vec", optional, tag = "7")]
    pub cgroup_oom: Option<Vec<u8>>,
    /// `cgroup.kill` of the v2 tree.
    #[prost(bytes = "vec", optional, tag = "8")]
    pub cgroup_kill: Option<Vec<u8>>,
    /// Compiled seccomp filter, an array of `sock_filter`.
    #[prost(bytes = "vec", optional, tag = "9")]
    pub seccomp_bpf: Option<Vec<u8>>,
    /// CRI log; missing: output is dropped.
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
    /// Slot of the container's user namespace. Refused so far.
    #[prost(uint32, optional, tag = "15")]
    pub userns_fd: Option<u32>,
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
    /// A terminal instead of the three.
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

/// A process to run in a container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Exec {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The process.
    #[prost(message, optional, tag = "2")]
    pub process: Option<Process>,
    /// Its streams; stdout and stderr are a must.
    #[prost(message, optional, tag = "3")]
    pub streams: Option<StreamSlots>,
    /// Killed after this many nanoseconds; 0: never.
    #[prost(uint64, tag = "4")]
    pub timeout: u64,
    /// `cgroup.procs` files to join.
    #[prost(bytes = "vec", repeated, tag = "5")]
    pub cgroup_procs: Vec<Vec<u8>>,
}

/// What a process is to be.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Process {
    /// Program and arguments.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub args: Vec<Vec<u8>>,
    /// Environment in order; duplicates are kept.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub env: Vec<Vec<u8>>,
    /// Working directory.
    #[prost(bytes = "vec", tag = "3")]
    pub cwd: Vec<u8>,
    /// User id.
    #[prost(uint32, tag = "4")]
    pub uid: u32,
    /// Group id.
    #[prost(uint32, tag = "5")]
    pub gid: u32,
    /// Supplementary groups.
    #[prost(uint32, repeated, tag = "6")]
    pub groups: Vec<u32>,
    /// Mask of file modes.
    #[prost(uint32, optional, tag = "7")]
    pub umask: Option<u32>,
    /// Capabilities; missing: none at all.
    #[prost(message, optional, tag = "8")]
    pub capabilities: Option<CapabilitySets>,
    /// Resource limits.
    #[prost(message, repeated, tag = "9")]
    pub rlimits: Vec<Rlimit>,
    /// Whether execve may never raise privileges.
    #[prost(bool, tag = "10")]
    pub no_new_privileges: bool,
    /// AppArmor profile; empty: none.
    #[prost(string, tag = "11")]
    pub apparmor_profile: String,
    /// SELinux label; empty: none.
    #[prost(string, tag = "12")]
    pub selinux_label: String,
    /// OOM score adjustment; missing: the container's own is not changed.
    #[prost(int32, optional, tag = "13")]
    pub oom_score_adj: Option<i32>,
}

/// The five capability sets as bits.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct CapabilitySets {
    /// What can ever be had.
    #[prost(uint64, tag = "1")]
    pub bounding: u64,
    /// What counts now.
    #[prost(uint64, tag = "2")]
    pub effective: u64,
    /// What may be made effective.
    #[prost(uint64, tag = "3")]
    pub permitted: u64,
    /// What survives execve of a marked file.
    #[prost(uint64, tag = "4")]
    pub inheritable: u64,
    /// What survives execve.
    #[prost(uint64, tag = "5")]
    pub ambient: u64,
}

/// One resource limit.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Rlimit {
    /// The kernel's `RLIMIT_` number.
    #[prost(uint32, tag = "1")]
    pub resource: u32,
    /// What counts; `u64::MAX`: no limit.
    #[prost(uint64, tag = "2")]
    pub soft: u64,
    /// How far the soft one may be raised; `u64::MAX`: no limit.
    #[prost(uint64, tag = "3")]
    pub hard: u64,
}

/// A process that was run ended.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct ExecEnded {
    /// Exit code; 128 + n for a signal.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// Whether it was killed because its time was up.
    #[prost(bool, tag = "2")]
    pub timed_out: bool,
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
    /// Whether the kernel killed something in it for lack of memory.
    #[prost(bool, tag = "4")]
    pub oom_killed: bool,
    /// When it began, wall clock nanoseconds; 0: never.
    #[prost(int64, tag = "5")]
    pub started_at: i64,
    /// When it ended, wall clock nanoseconds.
    #[prost(int64, tag = "6")]
    pub finished_at: i64,
}

/// Why something failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum FailureKind {
    /// What an unknown kind decodes to.
    Internal = 0,
    /// The peer's version or message is not understood.
    Protocol = 1,
    /// No container of that id.
    UnknownContainer = 2,
    /// The container does not run.
    NotRunning = 3,
    /// The container runs, or is past what was asked for.
    WrongState = 4,
    /// A container or pod of that id is there already.
    Exists = 5,
    /// Setting up the pod failed.
    Setup = 6,
    /// Making a container or a process failed.
    Launch = 7,
    /// The launcher cannot do what the spec asks for.
    Unsupported = 8,
    /// The launcher did not answer in time.
    Timeout = 9,
}

/// What failed.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Failure {
    /// Why.
    #[prost(enumeration = "FailureKind", tag = "1")]
    pub kind: i32,
    /// The step that failed, the id that is unknown, the thing unsupported.
    #[prost(string, tag = "2")]
    pub subject: String,
    /// For people.
    #[prost(string, tag = "3")]
    pub message: String,
    /// The executable is missing or cannot be executed.
    #[prost(bool, tag = "4")]
    pub not_found: bool,
    /// The kernel's error number; 0: none.
    #[prost(int32, tag = "5")]
    pub errno: i32,
}

impl Failure {
    /// A failure of one kind.
    #[must_use]
    pub fn new(kind: FailureKind, subject: &str, message: impl Into<String>) -> Self {
        Self {
            kind: kind.into(),
            subject: subject.to_owned(),
            message: message.into(),
            not_found: false,
            errno: 0,
        }
    }
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
    /// Slot of the socket that the container's first process waits on.
    #[prost(uint32, optional, tag = "3")]
    pub start_fd: Option<u32>,
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
}

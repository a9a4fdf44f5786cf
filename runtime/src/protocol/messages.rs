//! The messages of the protocol.
//!
//! Owns field numbers: a number is never reused for another meaning, a field
//! is never made required. Paths are bytes, descriptors are slots: indexes
//! into the descriptors of the same packet. Holds no logic.

mod container;
mod handover;
mod plan;
mod pod;
mod process;

pub use container::{
    Attach, Container, Containers, Create, Created, Exited, Launch, Launched, LauncherKind,
    LogState, MountSource, PidMode, ReopenLog, Signal, Start, StartEnded, Started, State,
    StreamSlots,
};
pub use handover::{
    HANDOVER_VERSION, HANDOVER_WITHOUT_USER_NAMESPACE, Handover, HandoverClient,
    HandoverConnection, HandoverContainer, HandoverExec, HandoverInit, HandoverLog, HandoverOutput,
    HandoverPod, HandoverReader, HandoverReply, HandoverTap, HandoverWriter,
};
pub use plan::{
    Device, DeviceRule, Mount, MountAttributes, MountKind, MountPropagation, Namespace,
    NamespaceKind, Parameter, Plan,
};
pub use pod::{IdRange, PodReady, Setup, Sysctl};
pub use process::{CapabilitySets, Exec, ExecEnded, Process, Rlimit};

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
    /// In a request: what its receiver must be able to do, see
    /// [`Features`](super::Features). One that cannot refuses.
    #[prost(uint64, tag = "7")]
    pub requires: u64,
    /// What is said.
    #[prost(
        oneof = "Body",
        tags = "10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 30, 31, 32, 33, 34, 35, 36, 37, 38, 50, 51, 52"
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
    Start(Start),
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
    ReopenLog(ReopenLog),
    /// Asks for all containers.
    #[prost(message, tag = "18")]
    List(Empty),
    /// Kills what is left and ends the monitor.
    #[prost(message, tag = "19")]
    Shutdown(Empty),
    /// Monitor to launcher helper: make this container.
    #[prost(message, boxed, tag = "20")]
    Launch(Box<Launch>),
    /// Ends a process that was run: nobody waits for it any more.
    #[prost(message, tag = "22")]
    CancelExec(CancelExec),
    /// Goes on as another build of the monitor, in place.
    #[prost(message, tag = "21")]
    Upgrade(Upgrade),
    /// Connects a client to a container's streams.
    #[prost(message, tag = "23")]
    Attach(Attach),
    /// Has a container's log written out, before `ReopenLog`. Answered when nothing is
    /// on its way to the file any more. Until then, and until the log is opened again,
    /// what the container writes waits: for half a second at most, after which the
    /// file is written on.
    #[prost(message, tag = "24")]
    SettleLog(ContainerName),

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
    /// A start ended whose asker is gone.
    #[prost(message, tag = "51")]
    StartEnded(StartEnded),
    /// A log stopped taking records, or takes them again.
    #[prost(message, tag = "52")]
    LogState(LogState),
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
    /// What it can do, see [`Features`](super::Features).
    #[prost(uint64, tag = "4")]
    pub features: u64,
    /// Which build it is, as whoever started it named it.
    #[prost(string, tag = "5")]
    pub build: String,
}

/// A process that is to end.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct CancelExec {
    /// The number of the request that runs it, of the same connection.
    #[prost(uint64, tag = "1")]
    pub request: u64,
}

/// Another build to go on as.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Upgrade {
    /// Slot of the executable.
    #[prost(uint32, optional, tag = "1")]
    pub executable: Option<u32>,
    /// Which build it is.
    #[prost(string, tag = "2")]
    pub build: String,
    /// The newest version of a [`Handover`] that it reads.
    #[prost(uint32, tag = "3")]
    pub reads: u32,
    /// Slot of the launcher helper's executable of that build.
    #[prost(uint32, optional, tag = "4")]
    pub launcher_fd: Option<u32>,
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

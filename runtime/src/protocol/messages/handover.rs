//! What a monitor leaves to the build that goes on in its place.
//!
//! Descriptors are numbers in the process's own table, which the new program
//! inherits. Fields are added like those of other messages; whoever adds one
//! that the next build must not miss raises [`HANDOVER_VERSION`]: an older
//! build is then not gone back to.

use std::os::fd::OwnedFd;

use prost::Message;

use super::{Envelope, Exited};
use crate::protocol::{ProtocolError, read_memfd};

/// The newest version of this state that this build reads and writes: that of a pod with
/// a user namespace, which a build that knows none must not go on with.
pub const HANDOVER_VERSION: u32 = 3;
/// The version of a pod without one, which this build reads as well.
pub const HANDOVER_WITHOUT_USER_NAMESPACE: u32 = 2;

/// A monitor.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Handover {
    /// Version of what follows.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// Which build goes on.
    #[prost(string, tag = "2")]
    pub build: String,
    /// The pod.
    #[prost(message, optional, tag = "3")]
    pub pod: Option<HandoverPod>,
    /// Engines that are connected.
    #[prost(message, repeated, tag = "4")]
    pub connections: Vec<HandoverConnection>,
    /// Containers in order of creation.
    #[prost(message, repeated, tag = "5")]
    pub containers: Vec<HandoverContainer>,
    /// What forgotten containers wrote.
    #[prost(message, repeated, tag = "6")]
    pub leaving: Vec<HandoverOutput>,
    /// Processes that were run.
    #[prost(message, repeated, tag = "7")]
    pub execs: Vec<HandoverExec>,
    /// Helpers that were killed.
    #[prost(int32, repeated, tag = "8")]
    pub dying: Vec<i32>,
    /// The last number that was given.
    #[prost(uint64, tag = "9")]
    pub last_key: u64,
    /// Who asked for the upgrade.
    #[prost(message, optional, tag = "10")]
    pub asked: Option<HandoverReply>,
}

/// A pod that is set up.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HandoverPod {
    /// Its id.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Where its exit records go.
    #[prost(bytes = "vec", tag = "2")]
    pub exit_dir: Vec<u8>,
    /// Its state directory.
    #[prost(int32, tag = "3")]
    pub state_dir: i32,
    /// The socket that listens.
    #[prost(int32, tag = "4")]
    pub listener: i32,
    /// PID 1 of its own pid namespace.
    #[prost(int32, optional, tag = "5")]
    pub init: Option<i32>,
    /// The launcher helper's executable.
    #[prost(int32, optional, tag = "6")]
    pub launcher: Option<i32>,
    /// Where helpers mount.
    #[prost(bytes = "vec", tag = "7")]
    pub work_dir: Vec<u8>,
    /// The mount namespace that keeps the proc filesystem of that PID namespace.
    #[prost(int32, optional, tag = "8")]
    pub procfs: Option<i32>,
    /// Its user namespace.
    #[prost(int32, optional, tag = "9")]
    pub userns: Option<i32>,
    /// Which ids of the node those of the user namespace are.
    #[prost(message, optional, tag = "10")]
    pub user_ids: Option<super::IdRange>,
}

/// A connected engine.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HandoverConnection {
    /// Its number.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// Its socket.
    #[prost(int32, tag = "2")]
    pub socket: i32,
    /// Envelopes that it has not taken yet.
    #[prost(bytes = "vec", repeated, tag = "3")]
    pub queue: Vec<Vec<u8>>,
}

/// Where an answer belongs.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HandoverReply {
    /// The connection that asked.
    #[prost(uint64, tag = "1")]
    pub connection: u64,
    /// The request.
    #[prost(uint64, tag = "2")]
    pub request: u64,
    /// When it arrived, monotonic nanoseconds.
    #[prost(uint64, tag = "3")]
    pub received_at: u64,
    /// What was done until now.
    #[prost(message, repeated, tag = "4")]
    pub steps: Vec<super::Step>,
}

/// A container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HandoverContainer {
    /// Its number.
    #[prost(uint64, tag = "1")]
    pub key: u64,
    /// Its id.
    #[prost(string, tag = "2")]
    pub id: String,
    /// Its first process; missing once that ended.
    #[prost(message, optional, tag = "3")]
    pub init: Option<HandoverInit>,
    /// The pipe that lets its first process go, and the one that brings its words;
    /// none once it runs.
    #[prost(int32, repeated, tag = "19")]
    pub gate: Vec<i32>,
    /// Since when it runs, wall clock nanoseconds.
    #[prost(int64, tag = "5")]
    pub started_at: i64,
    /// How it ended.
    #[prost(message, optional, tag = "6")]
    pub exited: Option<Exited>,
    /// Its streams and log.
    #[prost(message, optional, tag = "7")]
    pub output: Option<HandoverOutput>,
    /// The filter of processes that are run in it.
    #[prost(bytes = "vec", optional, tag = "8")]
    pub seccomp: Option<Vec<u8>>,
    /// The kernel's flags for it.
    #[prost(uint32, tag = "9")]
    pub seccomp_flags: u32,
    /// Who wants it gone.
    #[prost(message, repeated, tag = "10")]
    pub deletes: Vec<HandoverReply>,
    /// Until when its exit waits for its log, monotonic nanoseconds.
    #[prost(uint64, optional, tag = "11")]
    pub untold: Option<u64>,
    /// Whether the engine had it killed.
    #[prost(bool, tag = "12")]
    pub killed: bool,
    /// Whether the kernel ends its processes with its first one.
    #[prost(bool, tag = "13")]
    pub own_pid_namespace: bool,
    /// A launcher's helper that is not reaped.
    #[prost(int32, optional, tag = "14")]
    pub helper: Option<i32>,
    /// Its cgroups' files: processes, OOM kills, kill, and the freezer's directory.
    #[prost(bytes = "vec", optional, tag = "15")]
    pub cgroup_procs: Option<Vec<u8>>,
    /// See `cgroup_procs`.
    #[prost(bytes = "vec", optional, tag = "16")]
    pub cgroup_oom: Option<Vec<u8>>,
    /// See `cgroup_procs`.
    #[prost(bytes = "vec", optional, tag = "17")]
    pub cgroup_kill: Option<Vec<u8>>,
    /// See `cgroup_procs`.
    #[prost(bytes = "vec", optional, tag = "18")]
    pub cgroup_freezer: Option<Vec<u8>>,
    /// The secret in the name of its session keyring.
    #[prost(string, tag = "20")]
    pub keyring: String,
    /// Whether processes of it outlive its first one.
    #[prost(bool, tag = "21")]
    pub lingering: bool,
    /// Whether its exit record has yet to be written.
    #[prost(bool, tag = "22")]
    pub unwritten: bool,
}

/// A container's first process.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct HandoverInit {
    /// Its id.
    #[prost(int32, tag = "1")]
    pub pid: i32,
    /// A descriptor of it.
    #[prost(int32, tag = "2")]
    pub pidfd: i32,
}

/// A container's streams and log.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HandoverOutput {
    /// Its streams.
    #[prost(message, repeated, tag = "1")]
    pub readers: Vec<HandoverReader>,
    /// What it reads, kept open.
    #[prost(int32, optional, tag = "2")]
    pub stdin: Option<i32>,
    /// What was read and not made into records yet.
    #[prost(bytes = "vec", tag = "3")]
    pub held: Vec<u8>,
    /// Whether that is of stderr.
    #[prost(bool, tag = "4")]
    pub held_is_stderr: bool,
    /// Its log.
    #[prost(message, optional, tag = "5")]
    pub log: Option<HandoverLog>,
    /// Its streams on their way to the ones above.
    #[prost(message, optional, tag = "6")]
    pub tap: Option<HandoverTap>,
    /// Whether what it reads closes with the first client that wrote to it.
    #[prost(bool, tag = "7")]
    pub stdin_once: bool,
    /// Clients that are attached.
    #[prost(message, repeated, tag = "8")]
    pub clients: Vec<HandoverClient>,
}

/// A client that is attached to a container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HandoverClient {
    /// Its number.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// Where it reads stdout.
    #[prost(int32, optional, tag = "2")]
    pub stdout: Option<i32>,
    /// Where it reads stderr.
    #[prost(int32, optional, tag = "3")]
    pub stderr: Option<i32>,
    /// Bytes of the two that it did not read in time.
    #[prost(uint64, repeated, tag = "4")]
    pub skipped: Vec<u64>,
    /// What it writes, on its way to the container.
    #[prost(message, optional, tag = "5")]
    pub input: Option<HandoverTap>,
}

/// Streams that processes of a container write to, on their way to whoever reads them.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HandoverTap {
    /// Its number.
    #[prost(uint64, tag = "1")]
    pub key: u64,
    /// Where processes write, and where that is read: two of each stream.
    #[prost(int32, repeated, tag = "2")]
    pub streams: Vec<i32>,
    /// The process that reads.
    #[prost(int32, optional, tag = "3")]
    pub relay: Option<i32>,
    /// Closed, that one is to end.
    #[prost(int32, optional, tag = "4")]
    pub go_on: Option<i32>,
    /// How often what is there was looked for since nothing is to follow it.
    #[prost(uint32, optional, tag = "5")]
    pub last_looks: Option<u32>,
    /// Whether it leads into a container instead.
    #[prost(bool, tag = "6")]
    pub is_input: bool,
}

/// One stream.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HandoverReader {
    /// The monitor's end.
    #[prost(int32, tag = "1")]
    pub fd: i32,
    /// Whether it is stderr.
    #[prost(bool, tag = "2")]
    pub is_stderr: bool,
    /// Whether it is a terminal.
    #[prost(bool, tag = "3")]
    pub is_terminal: bool,
    /// A line whose end is still to come.
    #[prost(bytes = "vec", tag = "4")]
    pub unfinished: Vec<u8>,
}

/// A log.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HandoverLog {
    /// The container's number.
    #[prost(uint64, tag = "1")]
    pub key: u64,
    /// Its path.
    #[prost(bytes = "vec", tag = "2")]
    pub path: Vec<u8>,
    /// Names the file.
    #[prost(int32, tag = "3")]
    pub file: i32,
    /// Records that wait for the writer.
    #[prost(bytes = "vec", tag = "4")]
    pub pending: Vec<u8>,
    /// Bytes that could not be written.
    #[prost(uint64, tag = "5")]
    pub lost: u64,
    /// Whether it takes nothing.
    #[prost(bool, tag = "6")]
    pub stalled: bool,
    /// The process that writes it.
    #[prost(message, optional, tag = "7")]
    pub writer: Option<HandoverWriter>,
}

/// A log's writer.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct HandoverWriter {
    /// Its pipe's end for records; missing: it is to end.
    #[prost(int32, optional, tag = "1")]
    pub input: Option<i32>,
    /// The other end.
    #[prost(int32, tag = "2")]
    pub output: i32,
    /// Counts what could not be written.
    #[prost(int32, tag = "3")]
    pub lost: i32,
    /// Names the file.
    #[prost(int32, tag = "4")]
    pub file: i32,
    /// Its id; missing: it died and is to be replaced.
    #[prost(int32, optional, tag = "5")]
    pub pid: Option<i32>,
    /// Bytes that went into the pipe.
    #[prost(uint64, tag = "6")]
    pub sent: u64,
}

/// A process that was run, and whose program runs.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HandoverExec {
    /// The container's id.
    #[prost(string, tag = "1")]
    pub container: String,
    /// The process.
    #[prost(int32, tag = "2")]
    pub pid: i32,
    /// What its maker reported by.
    #[prost(int32, tag = "3")]
    pub report: i32,
    /// When its time is up, monotonic nanoseconds.
    #[prost(uint64, optional, tag = "5")]
    pub deadline: Option<u64>,
    /// Whether it was killed for that.
    #[prost(bool, tag = "6")]
    pub timed_out: bool,
    /// Whether it was killed.
    #[prost(bool, tag = "7")]
    pub killed: bool,
    /// Who asked.
    #[prost(message, optional, tag = "8")]
    pub asked: Option<HandoverReply>,
    /// What it writes, on its way.
    #[prost(message, optional, tag = "9")]
    pub tap: Option<HandoverTap>,
    /// What it is to read, on its way.
    #[prost(message, optional, tag = "10")]
    pub input: Option<HandoverTap>,
    /// Whether its answer waits for as long as its streams are read.
    #[prost(bool, tag = "11")]
    pub streaming: bool,
}

impl Handover {
    /// The state as bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.encode_to_vec()
    }

    /// Reads a state from a memfd.
    ///
    /// # Errors
    /// It cannot be read, or is none.
    pub fn read(memfd: &OwnedFd) -> Result<Self, ProtocolError> {
        Ok(Self::decode(read_memfd(memfd)?.as_slice())?)
    }
}

impl Envelope {
    /// A packet as bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.encode_to_vec()
    }

    /// A packet of bytes.
    ///
    /// # Errors
    /// They are none.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ProtocolError> {
        Ok(Self::decode(bytes)?)
    }
}

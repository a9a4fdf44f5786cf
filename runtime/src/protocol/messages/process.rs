//! Messages about processes that are run in containers.

use super::StreamSlots;

/// A process to run in a container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Exec {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The process.
    #[prost(message, optional, tag = "2")]
    pub process: Option<Process>,
    /// Its streams: stdout and stderr are a must, or `tty` alone.
    #[prost(message, optional, tag = "3")]
    pub streams: Option<StreamSlots>,
    /// Killed after this many nanoseconds; 0: never.
    #[prost(uint64, tag = "4")]
    pub timeout: u64,
    /// Files to join by, see [`crate::joining`].
    #[prost(bytes = "vec", repeated, tag = "5")]
    pub cgroup_files: Vec<Vec<u8>>,
    /// Whether somebody reads its streams as they come, and takes his time: the answer
    /// follows when all of them is read, however long that takes.
    #[prost(bool, tag = "6")]
    pub streaming: bool,
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

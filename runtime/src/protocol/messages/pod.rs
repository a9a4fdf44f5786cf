//! Messages about a pod.

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
    /// Files to join by, see [`crate::joining`].
    #[prost(bytes = "vec", repeated, tag = "4")]
    pub cgroup_files: Vec<Vec<u8>>,
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
    /// Slot of a user namespace to make all processes in but the monitor. It owns the
    /// network namespace, and those of the two slots below.
    #[prost(uint32, optional, tag = "12")]
    pub userns_fd: Option<u32>,
    /// Which ids of the node those of the user namespace are.
    #[prost(message, optional, tag = "13")]
    pub user_ids: Option<IdRange>,
    /// Slot of an ipc namespace to enter instead of making one.
    #[prost(uint32, optional, tag = "14")]
    pub ipc_fd: Option<u32>,
    /// Slot of a uts namespace to enter instead of making one.
    #[prost(uint32, optional, tag = "15")]
    pub uts_fd: Option<u32>,
}

/// Ids of the node, of users and of groups, that are those from 0 on of a user namespace.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct IdRange {
    /// The first.
    #[prost(uint32, tag = "1")]
    pub first: u32,
    /// How many.
    #[prost(uint32, tag = "2")]
    pub length: u32,
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

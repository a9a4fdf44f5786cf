//! What can go wrong between the engine and systemd.

use std::io;
use std::time::Duration;

use super::super::{CgroupError, CgroupPath, Version};

/// A failure of the systemd driver; each names the unit at fault.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// The machine was not booted with systemd.
    #[error("no systemd runs here: set cgroup.driver = \"cgroupfs\"")]
    NotBooted,
    /// systemd manages hierarchies of version 1 here.
    #[error(
        "cgroup v1 with the systemd driver: this machine has {}, and pods get scopes of their own on \
         cgroup v2 alone: set cgroup.driver = \"cgroupfs\", or boot with \
         systemd.unified_cgroup_hierarchy=1", version(*_0)
    )]
    Version1(Version),
    /// The connection to systemd failed, and did not come back in time.
    #[error("systemd cannot be reached over D-Bus")]
    Unreachable(#[source] Box<zbus::Error>),
    /// A connection ended while an answer was awaited.
    #[error("the connection to systemd ended")]
    Lost,
    /// systemd refuses.
    #[error("systemd refuses to {what} unit {unit}")]
    Refused {
        /// What it was asked for.
        what: &'static str,
        /// The unit.
        unit: String,
        /// Its answer.
        source: Box<zbus::Error>,
    },
    /// This systemd takes processes by their numbers only.
    #[error("systemd knows no property PIDFDs")]
    NoDescriptors,
    /// And those mean others to it: it is not in the engine's PID namespace.
    #[error(
        "this systemd takes processes by their numbers only, and the engine, in a PID namespace of \
         its own, has others: it would move a stranger"
    )]
    OtherNumbers,
    /// A unit of this name is there already, and is not the one that was asked for.
    #[error("unit {0} exists already")]
    Exists(String),
    /// The job was begun and not done.
    #[error("systemd's job for unit {unit} ended with result {result:?}")]
    Job {
        /// The unit.
        unit: String,
        /// systemd's word: "failed", "canceled", "timeout", "dependency".
        result: String,
    },
    /// There was no answer.
    #[error("systemd did not {what} unit {unit} within {} s", limit.as_secs_f32())]
    Timeout {
        /// What it was asked for.
        what: &'static str,
        /// The unit.
        unit: String,
        /// How long it was waited for.
        limit: Duration,
    },
    /// A process cannot be named to systemd.
    #[error("name process {pid} to systemd")]
    Process {
        /// The process.
        pid: i32,
        /// Why.
        source: io::Error,
    },
    /// systemd says that the job was done, and the kernel shows something else.
    #[error("process {pid} is not in cgroup {path}, where systemd was to put it")]
    Elsewhere {
        /// The process.
        pid: i32,
        /// The scope's cgroup.
        path: CgroupPath,
    },
    /// A process cannot be moved from the scope's cgroup to one below it.
    #[error("move process {pid} to cgroup {path}")]
    Move {
        /// The process.
        pid: i32,
        /// The cgroup.
        path: CgroupPath,
        /// The cause.
        source: io::Error,
    },
    /// The cgroups within the scope.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The work panicked.
    #[error("defect: {0}")]
    Defect(String),
}

impl SystemdError {
    /// Whether systemd may not have heard of it, or may still come to it.
    pub(super) fn is_silence(&self) -> bool {
        matches!(
            self,
            Self::Unreachable(_) | Self::Lost | Self::Timeout { .. }
        )
    }
}

/// An error in one line, with its causes.
pub(super) fn causes(error: &SystemdError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

fn version(version: Version) -> &'static str {
    match version {
        Version::V2 => "cgroup v2",
        Version::Hybrid => "cgroup v1 with a v2 tree beside it",
        Version::V1 => "cgroup v1",
    }
}

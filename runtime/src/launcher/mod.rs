//! How containers come to be: the interface of all launchers.
//!
//! Owns the [`Launcher`] trait, which the monitor drives, the socket on which a
//! container's first process waits for its start, and names that engine and
//! monitor share. Everything here runs in the monitor or in a launcher's
//! helper, never in the engine.
//!
//! ```text
//!  begin ──▶ Launch in progress ──progress──▶ Ready: first process waits
//!              │ (helper fails)                  │ go
//!              ▼                                 ▼
//!            LaunchError                program runs, or Problem
//! ```
//! A launcher makes the container's first process a child of the monitor. A
//! crash of the monitor ends whatever still waits: its start socket closes.

mod libcontainer;
pub mod links;
mod native;
pub mod null;
pub mod place;
mod start;

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::Pid;

use crate::protocol::{Create, Failure, FailureKind, Fds, ProtocolError, Step, VERSION};
use crate::user_space::UserSpace;

pub use libcontainer::Libcontainer;
pub use native::Native;
pub use start::{StartEnd, StartGate, StartOutcome, Waiting, start_pair};

/// Name of a monitor's socket in its pod's state directory.
pub const SOCKET_NAME: &str = "monitor.sock";

/// What a monitor calls itself.
pub const MONITOR_NAME: &str = "slipway-monitor";

/// What `NAME --version` prints: crate and protocol version.
#[must_use]
pub fn version_line(name: &str) -> String {
    format!("{name} {} protocol {VERSION}", env!("CARGO_PKG_VERSION"))
}

/// Opens a directory to reach what is in it by short paths.
///
/// # Errors
/// The kernel's answer.
pub fn open_directory(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// The monitor's socket in an open directory, short enough for an address.
#[must_use]
pub fn socket_path(directory: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}/{SOCKET_NAME}", directory.as_raw_fd())
}

/// Makes containers of one kind.
pub trait Launcher {
    /// Starts making a container. Never waits for the work.
    ///
    /// # Errors
    /// It cannot even begin; nothing of it is left.
    fn begin(&mut self, order: Order) -> Result<Box<dyn Launch>, LaunchError>;
}

/// A container in the making.
pub trait Launch: std::fmt::Debug {
    /// Readable when [`progress`](Self::progress) has something to do.
    fn descriptor(&self) -> BorrowedFd<'_>;

    /// A process that works on it and is a child of the monitor.
    fn helper(&self) -> Option<Pid>;

    /// Who was born, where the helper makes the first process and ends: it has nothing
    /// left to do then.
    fn born(&self) -> Option<Pid> {
        None
    }

    /// Goes on as far as possible without waiting. `None`: not ready yet.
    ///
    /// # Errors
    /// The container cannot be made. What is left of it lives in its cgroups.
    fn progress(&mut self) -> Result<Option<Ready>, LaunchError>;
}

/// What a launcher gets.
#[derive(Debug)]
pub struct Order {
    /// What the engine asked for.
    pub create: Create,
    /// The descriptors that its slots mean.
    pub fds: Fds,
    /// The container's ends of its streams; all `None` with a terminal.
    pub stdio: ContainerStdio,
    /// The PID namespace that it shares, for the native launcher: others enter the one
    /// that the spec names.
    pub pids: Option<SharedPids>,
    /// The user namespace that it is made in, for the native launcher: the others refuse
    /// one. `None`: the node's.
    pub user_space: Option<UserSpace>,
}

/// A PID namespace that others live in.
#[derive(Debug)]
pub struct SharedPids {
    /// The namespace.
    pub namespace: OwnedFd,
    /// The mount namespace of one who lives in it.
    pub mounts: OwnedFd,
}

impl SharedPids {
    /// That of a child of this process that is not reaped: its number is its own.
    ///
    /// # Errors
    /// The kernel's answer; `ESRCH` or `ENOENT`: it has ended.
    pub fn of_child(pid: Pid) -> Result<Self, Errno> {
        let open = |name: &str| {
            let path = format!("/proc/{}/ns/{name}", pid.as_raw_nonzero());
            rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        };
        Ok(Self {
            namespace: open("pid")?,
            mounts: open("mnt")?,
        })
    }
}

/// The container's ends of its streams. `None`: a null device of its own.
#[derive(Debug, Default)]
pub struct ContainerStdio {
    /// What it reads.
    pub stdin: Option<OwnedFd>,
    /// What it writes.
    pub stdout: Option<OwnedFd>,
    /// What it complains to.
    pub stderr: Option<OwnedFd>,
}

/// A container whose first process waits for its start.
#[derive(Debug)]
pub struct Ready {
    /// The first process, a child of the monitor.
    pub pid: Pid,
    /// Lets it go.
    pub gate: StartGate,
    /// The master side of its terminal, if it has one.
    pub console: Option<OwnedFd>,
    /// When what was done, where the launcher knows.
    pub steps: Vec<Step>,
    /// What was not honoured without harm.
    pub warnings: Vec<String>,
    /// Whether the container's session keyring is of an OCI runtime's making.
    pub runtimes_keyring: bool,
}

/// Why a container could not be made.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The spec asks for something that this launcher cannot do.
    #[error("{what}: {message}")]
    Unsupported {
        /// What it asks for.
        what: String,
        /// Why not.
        message: String,
    },
    /// A step failed.
    #[error("{step}: {message}")]
    Failed {
        /// Which.
        step: String,
        /// Why.
        message: String,
        /// The executable is missing or cannot be executed.
        not_found: bool,
    },
    /// The helper broke the protocol.
    #[error("launcher's helper")]
    Protocol(#[from] ProtocolError),
}

impl LaunchError {
    /// A step that failed without saying anything about the executable.
    pub fn failed(step: &str, error: impl std::fmt::Display) -> Self {
        Self::Failed {
            step: step.to_owned(),
            message: error.to_string(),
            not_found: false,
        }
    }
}

impl From<Failure> for LaunchError {
    fn from(failure: Failure) -> Self {
        let kind = failure.kind();
        let Failure {
            kind: _,
            subject,
            message,
            not_found,
            errno: _,
        } = failure;
        match kind {
            FailureKind::Unsupported => Self::Unsupported {
                what: subject,
                message,
            },
            _ => Self::Failed {
                step: subject,
                message,
                not_found,
            },
        }
    }
}

impl From<LaunchError> for Failure {
    fn from(error: LaunchError) -> Self {
        match error {
            LaunchError::Unsupported { what, message } => {
                Self::new(FailureKind::Unsupported, &what, message)
            }
            LaunchError::Failed {
                step,
                message,
                not_found,
            } => Self {
                not_found,
                ..Self::new(FailureKind::Launch, &step, message)
            },
            LaunchError::Protocol(error) => {
                Self::new(FailureKind::Launch, "launcher's helper", error.to_string())
            }
        }
    }
}

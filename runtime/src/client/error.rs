//! What can go wrong between engine and monitor.
//!
//! One variant per failure that the engine treats differently.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::protocol::{Failure, FailureKind, ProtocolError};
use crate::spec::Unsupported;

/// Loading the executables failed.
#[derive(Debug, thiserror::Error)]
pub enum BinariesError {
    /// An executable cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The copy cannot be made.
    #[error("copy {} into memory", path.display())]
    Copy {
        /// Of which.
        path: PathBuf,
        /// Why.
        source: Errno,
    },
    /// An executable does not run.
    #[error("run {} --version", path.display())]
    Run {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An executable is of another build.
    #[error("{} is \"{found}\", this engine needs \"{wanted}\"", path.display())]
    Version {
        /// Which.
        path: PathBuf,
        /// What it says of itself.
        found: String,
        /// What it should say.
        wanted: String,
    },
}

/// Spawning a monitor failed.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// No socket for it.
    #[error("make a monitor's socket")]
    Socket(#[source] io::Error),
    /// No process.
    #[error("spawn a monitor")]
    Spawn(#[source] io::Error),
    /// It runs but does not answer well.
    #[error("greet a new monitor")]
    Hello(#[source] MonitorError),
}

/// Reaching a running monitor failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// There is no socket, nobody listens, or who did has ended: no monitor lives
    /// there.
    #[error("no monitor at {}", path.display())]
    Absent {
        /// The pod's state directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The socket is there but cannot be reached.
    #[error("connect to the monitor at {}", path.display())]
    Connect {
        /// The pod's state directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It does not answer well.
    #[error("greet the monitor at {}", path.display())]
    Hello {
        /// The pod's state directory.
        path: PathBuf,
        /// Why.
        source: MonitorError,
    },
}

impl ConnectError {
    /// Whether no monitor lives there: no socket, nobody who listens, or a process
    /// that has ended. After any other failure one may still live, with its
    /// containers: see [`Monitor::reach`](super::Monitor::reach).
    #[must_use]
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Absent { .. })
    }
}

/// A monitor could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// The monitor's process has ended.
    #[error("the monitor is gone")]
    Gone,
    /// The connection broke and the monitor lives: it is being reached again.
    /// Whether it did what was asked for is not known.
    #[error("the connection to the monitor broke")]
    Lost,
    /// It keeps no such container.
    #[error("the monitor has no container {0}")]
    UnknownContainer(String),
    /// The container does not run.
    #[error("container {0} is not running")]
    NotRunning(String),
    /// The container is past what was asked for, or still running.
    #[error("container {id}: {message}")]
    WrongState {
        /// The container.
        id: String,
        /// What is in the way.
        message: String,
    },
    /// A container of that id, or a pod, is there already.
    #[error("{0} exists already")]
    Exists(String),
    /// Setting up the pod failed.
    #[error("set up the pod: {step}: {message}")]
    Setup {
        /// Which step; a sysctl by its name.
        step: String,
        /// Why.
        message: String,
    },
    /// Making a container or a process failed.
    #[error("{step}: {message}")]
    Launch {
        /// Which step.
        step: String,
        /// Why.
        message: String,
        /// The executable is missing or cannot be executed.
        not_found: bool,
    },
    /// The launcher cannot do what the spec asks for.
    #[error("this launcher does not support {what}: {message}")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// Why not.
        message: String,
    },
    /// The monitor, or its launcher, did not answer in time.
    #[error("{0}: no answer in time")]
    Timeout(String),
    /// The two do not understand each other.
    #[error("monitor's protocol: {0}")]
    Protocol(String),
    /// A message could not be sent or was broken.
    #[error("message to or from a monitor")]
    Message(#[source] ProtocolError),
    /// The request cannot be put into a message.
    #[error("{what} cannot be sent to a monitor: {message}")]
    Invalid {
        /// Which part.
        what: &'static str,
        /// Why.
        message: String,
    },
    /// The monitor failed in a way that has no name.
    #[error("monitor: {0}")]
    Internal(String),
}

impl From<Unsupported> for MonitorError {
    fn from(unsupported: Unsupported) -> Self {
        let Unsupported { what, message } = unsupported;
        Self::Unsupported { what, message }
    }
}

impl From<Failure> for MonitorError {
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
            FailureKind::Internal => Self::Internal(join(&subject, &message)),
            FailureKind::Protocol => Self::Protocol(join(&subject, &message)),
            FailureKind::UnknownContainer => Self::UnknownContainer(subject),
            FailureKind::NotRunning => Self::NotRunning(subject),
            FailureKind::WrongState => Self::WrongState {
                id: subject,
                message,
            },
            FailureKind::Exists => Self::Exists(subject),
            FailureKind::Setup => Self::Setup {
                step: subject,
                message,
            },
            FailureKind::Launch => Self::Launch {
                step: subject,
                message,
                not_found,
            },
            FailureKind::Unsupported => Self::Unsupported {
                what: subject,
                message,
            },
            FailureKind::Timeout => Self::Timeout(subject),
        }
    }
}

fn join(subject: &str, message: &str) -> String {
    if subject.is_empty() {
        message.to_owned()
    } else {
        format!("{subject}: {message}")
    }
}

//! The engine's side: spawns monitors, reaches them, asks them.
//!
//! Owns the pool of idle monitors and the connections. Never touches a
//! container itself, never blocks the caller's thread for long, never forks:
//! monitors are spawned by `posix_spawn`. When the engine dies, idle monitors
//! end and those of pods live on; [`Monitor::connect`] finds them again.

mod binaries;
mod connection;
mod convert;
mod error;
mod log;
mod monitor;
mod peer;
mod plan;
mod pool;
mod reap;
pub mod steps;
mod types;

pub use crate::exit::ExitRecord;
pub use crate::protocol::LauncherKind;
pub use binaries::MonitorBinaries;
pub use error::{BinariesError, ConnectError, MonitorError, SpawnError};
pub use monitor::{Gone, Monitor, Reached, Upgraded};
pub use pool::MonitorPool;
pub use types::{
    Attachment, ContainerReport, ContainerState, CreateContainer, Created, Event, ExecExit,
    ExecProcess, ExecStreams, OciRuntime, Pids, PodReady, PodSetup, PodUser, Started,
};

/// Name of a monitor's socket in its pod's state directory.
pub const SOCKET_NAME: &str = crate::launcher::SOCKET_NAME;

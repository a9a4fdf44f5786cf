//! Idle monitors, ready for the next pod.
//!
//! Owns monitors that no pod has yet: they end with the engine. A monitor that is
//! taken is reaped here when it ends, whatever happens to the pool.

use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::Arc;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::process::{Child, Command};

use super::binaries::{MonitorBinaries, executable_path};
use super::error::{MonitorError, SpawnError};
use super::monitor::{Monitor, Upgraded};
use super::reap;
use crate::pool::{Maker, Pool};

/// A pool of idle monitors, as many as were needed at once lately.
#[derive(Debug)]
pub struct MonitorPool(Pool<Binaries>);

/// What monitors are made of.
#[derive(Debug)]
struct Binaries(Arc<MonitorBinaries>);

impl Maker for Binaries {
    type Item = Monitor;
    type Error = SpawnError;
    const WHAT: &'static str = "an idle monitor";

    async fn make(&self) -> Result<Monitor, SpawnError> {
        spawn(&self.0).await
    }

    fn is_good(monitor: &Monitor) -> bool {
        !monitor.is_gone()
    }
}

impl MonitorPool {
    /// A pool that keeps between so many and so many monitors ready from the
    /// first [`take`] on.
    ///
    /// [`take`]: Self::take
    #[must_use]
    pub fn new(binaries: Arc<MonitorBinaries>, kept: RangeInclusive<usize>) -> Self {
        Self(Pool::new(Binaries(binaries), kept))
    }

    /// A monitor that greets back, from the pool or new.
    ///
    /// # Errors
    /// It cannot be spawned or does not answer.
    pub async fn take(&self) -> Result<Monitor, SpawnError> {
        self.0.take().await
    }

    /// Has a monitor of another build go on as this pool's build, in place.
    ///
    /// # Errors
    /// See [`Monitor::upgrade`].
    pub async fn upgrade(&self, monitor: &Monitor) -> Result<Upgraded, MonitorError> {
        monitor.upgrade(&self.0.maker().0).await
    }

    /// Spawns what is missing, in the background.
    pub fn refill(&self) {
        self.0.refill();
    }

    /// Why monitors cannot be spawned, if the last try failed.
    #[must_use]
    pub fn last_failure(&self) -> Option<String> {
        self.0.last_failure()
    }
}

async fn spawn(binaries: &Arc<MonitorBinaries>) -> Result<Monitor, SpawnError> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
    .map_err(|errno| SpawnError::Socket(errno.into()))?;
    let child = spawn_process(binaries, theirs).map_err(SpawnError::Spawn)?;
    tokio::spawn(reap::reap(child));
    let greeting = Monitor::greet(ours, Some(Arc::clone(binaries)), None);
    super::monitor::within(super::monitor::HELLO, "hello", greeting)
        .await
        .map_err(SpawnError::Hello)
}

/// For the C library of monitors, each of one thread: no cache of freed memory for a
/// thread, which keeps a third of the heap that a container's creation needed.
const TUNABLES: &str = "glibc.malloc.tcache_count=0";

/// Tells a monitor which build it is.
const BUILD: &str = "SLIPWAY_MONITOR_BUILD";

/// `Command` uses `posix_spawn` as long as no uid, gid or `pre_exec` is set.
fn spawn_process(binaries: &MonitorBinaries, stdin: OwnedFd) -> std::io::Result<Child> {
    Command::new(executable_path(binaries.monitor()))
        .arg0("slipway-monitor")
        .env_clear()
        .env("GLIBC_TUNABLES", TUNABLES)
        .env(BUILD, binaries.build())
        .stdin(Stdio::from(stdin))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}

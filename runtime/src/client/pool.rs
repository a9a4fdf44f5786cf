//! Idle monitors, ready for the next pod.
//!
//! Owns monitors that no pod has yet: they end with the engine. Spawns in the
//! background; a pool that ran dry only costs time. A monitor that is taken is
//! reaped here when it ends, whatever happens to the pool.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::process::{Child, Command};

use super::binaries::{MonitorBinaries, executable_path};
use super::error::SpawnError;
use super::monitor::Monitor;

/// A pool of idle monitors.
#[derive(Debug)]
pub struct MonitorPool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    binaries: Arc<MonitorBinaries>,
    wanted: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    idle: VecDeque<Monitor>,
    spawning: usize,
    /// Why the last spawn failed; nothing after one that worked.
    failure: Option<String>,
}

impl MonitorPool {
    /// A pool that keeps `idle` monitors ready from the first [`take`] on.
    ///
    /// [`take`]: Self::take
    #[must_use]
    pub fn new(binaries: Arc<MonitorBinaries>, idle: usize) -> Self {
        let shared = Shared {
            binaries,
            wanted: idle,
            state: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// A monitor that greets back, from the pool or new.
    ///
    /// # Errors
    /// It cannot be spawned or does not answer.
    pub async fn take(&self) -> Result<Monitor, SpawnError> {
        let ready = self.shared.pop();
        self.shared.refill();
        match ready {
            Some(monitor) => Ok(monitor),
            None => self.shared.spawn().await,
        }
    }

    /// Spawns what is missing, in the background; a failure before is forgotten by
    /// the first success.
    pub fn refill(&self) {
        self.shared.refill();
    }

    /// Why monitors cannot be spawned, if the last try failed.
    #[must_use]
    pub fn last_failure(&self) -> Option<String> {
        self.shared.state().failure.clone()
    }
}

impl Shared {
    /// The lock is held for a moment only, never across an await.
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Spawns one and remembers how that went.
    async fn spawn(&self) -> Result<Monitor, SpawnError> {
        let spawned = spawn(&self.binaries).await;
        self.state().failure = spawned.as_ref().err().map(ToString::to_string);
        spawned
    }

    /// One that still lives.
    fn pop(&self) -> Option<Monitor> {
        let mut state = self.state();
        while let Some(monitor) = state.idle.pop_front() {
            if !monitor.is_gone() {
                return Some(monitor);
            }
        }
        None
    }

    /// Spawns what is missing, one after the other, behind the caller's back.
    fn refill(self: &Arc<Self>) {
        let missing = {
            let mut state = self.state();
            let missing = self
                .wanted
                .saturating_sub(state.idle.len() + state.spawning);
            state.spawning += missing;
            missing
        };
        if missing == 0 {
            return;
        }
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            for _ in 0..missing {
                let spawned = shared.spawn().await;
                let mut state = shared.state();
                state.spawning -= 1;
                match spawned {
                    Ok(monitor) => state.idle.push_back(monitor),
                    Err(error) => tracing::warn!(%error, "idle monitor not spawned"),
                }
            }
        });
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
    tokio::spawn(reap(child));
    Monitor::greet(ours, Some(Arc::clone(binaries)))
        .await
        .map_err(SpawnError::Hello)
}

/// `Command` uses `posix_spawn` as long as no uid, gid or `pre_exec` is set.
fn spawn_process(binaries: &MonitorBinaries, stdin: OwnedFd) -> std::io::Result<Child> {
    Command::new(executable_path(binaries.monitor()))
        .arg0("slipway-monitor")
        .env_clear()
        .stdin(Stdio::from(stdin))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}

/// Waits for the end of a monitor, so that none stays a zombie.
async fn reap(mut child: Child) {
    if let Err(error) = child.wait().await {
        tracing::warn!(%error, "monitor not reaped");
    }
}

//! The systemd driver: one delegated transient scope for each pod.
//!
//! Where systemd owns the tree, nobody else may make cgroups in it but below a unit that was
//! delegated. So systemd is asked for a scope in the pod's slice, which the kubelet has made
//! and limits; below the scope everything is as with cgroupfs:
//!
//! ```text
//! /kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod<uid>.slice   the kubelet's
//!     slipway-<pod id>.scope      systemd's; no process stays in it, so that it can hand
//!         <pod id>                controllers down: the monitor's
//!         <container id>          one for each container
//! ```
//!
//! A scope begins with a process: the idle monitor that the pod is to have, which goes on to
//! the pod's own cgroup before controllers are handed down. It ends with its last process:
//! systemd removes it and the empty cgroups in it by itself, whatever became of the engine,
//! and so nothing but the paths in the records is needed after a crash. Whoever stops a pod
//! has it stopped all the same, and waits, so that nothing of it is left when it is answered.
//!
//! Hierarchies of version 1 are refused: there each controller has a tree of its own, and
//! systemd delegates only those that it uses itself.

mod error;
mod manager;
mod names;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub use error::SystemdError;
pub use names::slice_path;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{
    Cgroup, CgroupError, CgroupPath, Counted, Driver, DriverKind, Hierarchies, Version, file,
};
use crate::joining::PROCS;
use manager::{First, Manager, Scope};

/// Present where systemd is PID 1: see sd_booted(3).
const BOOTED: &str = "/run/systemd/system";
/// How long systemd may take to make or end a scope. Whoever waits for it is one pod's job.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a process is kept that systemd may still put into a scope: its number must not
/// become another's before.
const KEPT: Duration = Duration::from_secs(60);
/// How long systemd may take to tell its version.
const GLANCE: Duration = Duration::from_secs(2);

/// Cgroups below scopes of systemd's.
#[derive(Debug, Clone)]
pub struct Systemd {
    hierarchies: Hierarchies,
    manager: Arc<Manager>,
    shared: CgroupPath,
    patience: Duration,
    /// Whether systemd counts processes as this process does.
    same_numbers: bool,
}

/// Whether systemd is the first process of this PID namespace: only then a number means
/// the same process to both.
fn systemd_is_first() -> bool {
    let name = std::fs::read_to_string("/proc/1/comm");
    name.is_ok_and(|name| name.trim_end() == "systemd")
}

impl Systemd {
    /// The systemd that runs this machine. Connects when something is asked of it.
    ///
    /// # Errors
    /// [`SystemdError::NotBooted`], and [`SystemdError::Version1`] where hierarchies of
    /// version 1 hold controllers.
    pub fn new(hierarchies: Hierarchies) -> Result<Self, SystemdError> {
        if !Path::new(BOOTED).is_dir() {
            return Err(SystemdError::NotBooted);
        }
        if hierarchies.version() != Version::V2 || !hierarchies.layout.left_out.is_empty() {
            let version = match hierarchies.layout.left_out.is_empty() {
                true => hierarchies.version(),
                // The v2 tree alone was chosen.
                false => Version::Hybrid,
            };
            return Err(SystemdError::Version1(version));
        }
        let dial = || -> futures::future::BoxFuture<'static, _> {
            Box::pin(async { zbus::connection::Builder::system().build().await })
        };
        let systemd = Self::with(hierarchies, Manager::new(Box::new(dial)), PATIENCE)?;
        Ok(Self {
            same_numbers: systemd_is_first(),
            ..systemd
        })
    }

    fn with(
        hierarchies: Hierarchies,
        manager: Manager,
        patience: Duration,
    ) -> Result<Self, SystemdError> {
        Ok(Self {
            hierarchies,
            manager: Arc::new(manager),
            shared: names::shared()?,
            patience,
            same_numbers: true,
        })
    }

    /// Why systemd could not be reached when it was last tried; `None` once it answers.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.manager.trouble()
    }

    /// Asks systemd for its version, for as long as a glance takes.
    ///
    /// # Errors
    /// It cannot be reached or does not answer.
    pub async fn version(&self) -> Result<String, SystemdError> {
        self.manager.version(GLANCE).await
    }

    /// Has a pod's scope made with a process in it, and moves that on to the pod's own
    /// cgroup at `path`. `keep` is what keeps the process alive: where systemd does not answer
    /// it is kept for a while, since systemd may still come to it, and its number must not be
    /// another's then.
    ///
    /// # Errors
    /// systemd refuses, fails or does not answer in time; or the cgroups in the scope cannot
    /// be made. What was made ends with its processes.
    pub async fn begin(
        &self,
        path: &CgroupPath,
        pid: i32,
        keep: impl Any + Send,
    ) -> Result<(), SystemdError> {
        let Some(scope) = names::scope_around(path) else {
            // Named by another driver, with nothing for systemd to do.
            return Ok(());
        };
        if let Err(error) = self.make_scope(&scope, pid).await {
            if error.is_silence() {
                tokio::spawn(async move {
                    tokio::time::sleep(KEPT).await;
                    drop(keep);
                });
            }
            return Err(error);
        }
        let (own, path) = (self.clone(), path.clone());
        let settle = move || own.settle(&scope, &path, pid);
        let settled = tokio::task::spawn_blocking(settle).await;
        settled.map_err(|error| SystemdError::Defect(error.to_string()))?
    }

    async fn make_scope(&self, scope: &CgroupPath, pid: i32) -> Result<(), SystemdError> {
        let unit = scope.name();
        let slice = scope.parent();
        let slice = slice.as_ref().map_or("-.slice", CgroupPath::name);
        let gone = |source: io::Error| SystemdError::Process { pid, source };
        let number = Pid::from_raw(pid).ok_or_else(|| gone(io::ErrorKind::InvalidInput.into()))?;
        let pidfd = pidfd_open(number, PidfdFlags::empty()).map_err(|errno| gone(errno.into()))?;
        let is_it = || is_in(pid, scope);
        let start = |first| {
            let manager = &self.manager;
            manager.start_scope(Scope { unit, slice, first }, self.patience, &is_it)
        };
        let mut first = First::Descriptor(pidfd.as_fd());
        let mut started = start(first).await;
        if let Err(SystemdError::NoDescriptors) = started {
            if !self.same_numbers {
                return Err(SystemdError::OtherNumbers);
            }
            first = First::Number(pid.unsigned_abs());
            started = start(first).await;
        }
        match started {
            // Of an engine that died, or of a call whose answer was lost.
            Err(SystemdError::Exists(_)) => {
                self.manager.stop(unit, self.patience).await?;
                start(first).await
            }
            other => other,
        }
    }

    /// Moves the process from the scope's cgroup to the pod's, so that the former can hand
    /// controllers down, and makes it do so.
    fn settle(&self, scope: &CgroupPath, path: &CgroupPath, pid: i32) -> Result<(), SystemdError> {
        if !is_in(pid, scope) && !is_in(pid, path) {
            let path = scope.clone();
            return Err(SystemdError::Elsewhere { pid, path });
        }
        if let Some(tree) = self.hierarchies.layout.v2() {
            let dir = self.hierarchies.open(path).dir(tree);
            let moved = std::fs::create_dir(&dir)
                .or_else(|error| match error.kind() {
                    io::ErrorKind::AlreadyExists => Ok(()),
                    _ => Err(error),
                })
                // It has just waited for systemd's own move: the kernel takes the next at once.
                .and_then(|()| file::write(&dir.join(PROCS), &pid.to_string()));
            moved.map_err(|source| SystemdError::Move {
                pid,
                path: path.clone(),
                source,
            })?;
        }
        self.hierarchies.create(path)?;
        Ok(())
    }

    /// Ends all that is in the scope of a pod whose own cgroup is or was at `path`, and has
    /// the scope stopped. One that is gone is fine, and so is a systemd that does not answer
    /// where nothing is left to run: it removes the scope by itself.
    ///
    /// # Errors
    /// Processes do not end by SIGKILL, or systemd refuses, fails or does not answer, and the
    /// scope has processes.
    pub async fn end(&self, path: &CgroupPath) -> Result<(), SystemdError> {
        let Some(scope) = names::scope_around(path) else {
            return Ok(());
        };
        let cgroup = self.hierarchies.open(&scope);
        if !cgroup.exists() {
            return Ok(());
        }
        // What no record names: systemd would ask it to end, by a signal that the first
        // process of a container does not even see, and wait for a minute and a half.
        let (all, patience) = (cgroup.clone(), self.patience);
        let killed = tokio::task::spawn_blocking(move || all.kill(patience)).await;
        killed.map_err(|error| SystemdError::Defect(error.to_string()))??;
        let stopped = self.manager.stop(scope.name(), self.patience).await;
        let finish = move || match stopped {
            // Nobody else's: what systemd does not know it does not remove.
            Ok(_) => Ok(cgroup.remove()?),
            Err(error) if cgroup.pids()?.is_empty() => {
                tracing::warn!(
                    unit = scope.name(),
                    error = error::causes(&error),
                    "the scope of a pod is left to systemd"
                );
                Ok(())
            }
            Err(error) => Err(error),
        };
        let finished = tokio::task::spawn_blocking(finish).await;
        finished.map_err(|error| SystemdError::Defect(error.to_string()))?
    }

    /// Cgroups are made below a scope that is there, never above.
    fn make_in_scope(&self, path: &CgroupPath) -> Result<Cgroup, CgroupError> {
        if let (Some(parent), Some(tree)) = (path.parent(), self.hierarchies.layout.v2()) {
            let dir = self.hierarchies.open(&parent).dir(tree);
            if !dir.is_dir() {
                return Err(CgroupError::NotFound { path: dir });
            }
        }
        self.hierarchies.create(path)
    }
}

/// Whether a process is in this very cgroup of the v2 tree.
fn is_in(pid: i32, path: &CgroupPath) -> bool {
    let line = format!("0::{path}");
    crate::procfs::cgroups(pid).is_ok_and(|cgroups| {
        cgroups
            .split(|byte| *byte == b'\n')
            .any(|one| one == line.as_bytes())
    })
}

impl Driver for Systemd {
    fn kind(&self) -> DriverKind {
        DriverKind::Systemd
    }

    fn systemd(&self) -> Option<&Systemd> {
        Some(self)
    }

    fn shared_parent(&self) -> CgroupPath {
        self.shared.clone()
    }

    fn version(&self) -> Version {
        self.hierarchies.version()
    }

    fn counted(&self) -> Counted {
        self.hierarchies.counted()
    }

    fn pod_path(&self, parent: &CgroupPath, id: &str) -> Result<CgroupPath, CgroupError> {
        parent.child(&names::scope(id))?.child(id)
    }

    fn container_path(&self, pod: &CgroupPath, id: &str) -> Result<CgroupPath, CgroupError> {
        pod.sibling(id)
    }

    fn make_pod(&self, path: &CgroupPath) -> Result<Cgroup, CgroupError> {
        self.make_in_scope(path)
    }

    fn make_container(&self, path: &CgroupPath) -> Result<Cgroup, CgroupError> {
        self.make_in_scope(path)
    }

    fn files_of_pod(&self, cgroup: &Cgroup) -> Vec<std::path::PathBuf> {
        let mut files = cgroup.files_to_join();
        files.retain(|file| !file.ends_with(PROCS));
        files
    }

    fn open(&self, path: &CgroupPath) -> Cgroup {
        self.hierarchies.open(path)
    }

    fn find(&self, id: &str) -> Result<Vec<Cgroup>, CgroupError> {
        self.hierarchies.find(id)
    }

    fn remove(&self, cgroup: &Cgroup) -> Result<(), CgroupError> {
        cgroup.remove()
    }

    fn remove_orphaned(&self, parent: &CgroupPath) -> Result<(), CgroupError> {
        self.hierarchies.open(parent).remove_orphaned()
    }
}

//! Whose PID namespace a container lives in.
//!
//! Owns which one that is and making sure of it. An order names a container or the pod,
//! not a process: the first processes of both are children of this one, so their numbers
//! are their own as long as nobody but this thread reaps them. A launcher that enters a
//! namespace by a path of the specification can meet another process there; what it
//! makes is looked at before it may run.

use std::os::fd::AsFd;

use runtime::launcher::SharedPids;
use runtime::protocol::{Create, Failure, FailureKind, PidMode};
use rustix::io::Errno;
use rustix::process::Pid;

use crate::container::Container;
use crate::monitor::Monitor;
use crate::process::raw;

/// A namespace: its device and number.
type Identity = (u64, u64);

/// Where a container's first process has to live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The order does not say.
    Anywhere,
    /// Where neither this process nor the pod's init lives.
    Own,
    /// Where this process lives.
    Node,
    /// In the namespace of another.
    Shared(Identity),
}

/// Where a process lives.
fn of(process: &str) -> Result<Identity, Errno> {
    let namespace = rustix::fs::stat(format!("/proc/{process}/ns/pid"))?;
    Ok((namespace.st_dev, namespace.st_ino))
}

/// Where a container's first process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a PID namespace that is the container's alone.
    Own,
    /// In one that others live in, or that cannot be told: the container's processes are
    /// ended one by one.
    Shared,
    /// Not where it was to.
    Elsewhere,
}

impl Wanted {
    fn place(self, pid: Pid, pod_init: Option<Pid>) -> Result<Place, Errno> {
        let its = of(&raw(pid).to_string())?;
        let nodes = of("self")?;
        let pods = pod_init.map(|init| of(&raw(init).to_string())).transpose();
        let is_own = its != nodes && pods != Ok(Some(its));
        let is_met = match self {
            Self::Anywhere => true,
            Self::Own => is_own,
            Self::Node => its == nodes,
            Self::Shared(identity) => its == identity,
        };
        Ok(match (is_met, self) {
            (false, _) => Place::Elsewhere,
            (true, Self::Own | Self::Anywhere) if is_own => Place::Own,
            (true, _) => Place::Shared,
        })
    }
}

impl Monitor {
    /// What a container's PID namespace has to be, and the one that it shares.
    pub(crate) fn pids_for(
        &self,
        create: &Create,
    ) -> Result<(Wanted, Option<SharedPids>), Failure> {
        let first = match create.pids() {
            PidMode::Unspecified => return Ok((Wanted::Anywhere, None)),
            PidMode::Own => return Ok((Wanted::Own, None)),
            PidMode::Node => return Ok((Wanted::Node, None)),
            PidMode::Pod => self.pod.as_ref().and_then(|pod| pod.init),
            PidMode::Target => {
                let key = self.find(&create.pid_target)?;
                self.containers.get(&key).and_then(Container::pid)
            }
        };
        let gone = |message: &str| match create.pids() {
            PidMode::Target => Failure::new(FailureKind::NotRunning, &create.pid_target, message),
            _ => Failure::new(
                FailureKind::Launch,
                "share the pod's PID namespace",
                message,
            ),
        };
        let first = first.ok_or_else(|| gone("its first process has ended"))?;
        let failed = |errno: Errno| gone(&errno.to_string());
        let shared = SharedPids::of_child(first).map_err(failed)?;
        let stat = rustix::fs::fstat(shared.namespace.as_fd()).map_err(failed)?;
        Ok((Wanted::Shared((stat.st_dev, stat.st_ino)), Some(shared)))
    }

    /// Where a new first process lives. One that has ended is found to have by whoever
    /// reaps it.
    pub(crate) fn place_of(&self, wanted: Wanted, pid: Pid) -> Place {
        let pod_init = self.pod.as_ref().and_then(|pod| pod.init);
        wanted.place(pid, pod_init).unwrap_or(Place::Shared)
    }
}

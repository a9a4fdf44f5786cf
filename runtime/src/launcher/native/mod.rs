//! The native launcher: the monitor makes containers itself.
//!
//! ```text
//! monitor: plan ──▶ prepare ──▶ clone3 ───────▶ wait ──▶ Ready
//!                                 └─▶ child: cgroups, namespaces, pivot_root, mounts, devices,
//!                                     terminal, masks, privileges, "ready" ──▶ gate ──▶ execve
//! ```
//! Owns the way from the engine's plan to a process that waits for its start.
//! Everything that allocates or needs the host's view is done before the clone.
//! The child leaves the host's mounts first of all: afterwards no path leads
//! out of the container's root, whatever links the image has. The kernel's own
//! filesystems are placed where no link is on the way, and what is masked in them
//! is found from their own descriptors (`tree`). A crash leaves
//! nothing: all mounts end with the child's mount namespace.

mod child;
mod dev;
mod mounts;
mod prepare;
mod procfs;
mod report;
mod tree;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::Pid;

use super::{ContainerStdio, Launch, LaunchError, Launcher, Order, Ready, StartGate, start_pair};
use crate::devices::{EnforceError, Rule, enforce};
use crate::exec::keyring;
use crate::exec::steps::Honoured;
use crate::protocol::{Create, Fds, Plan};
use crate::sys::fork::{self, Child};
use prepare::Prepared;
use report::Packet;

/// Makes containers in children of this process, which has one thread.
#[derive(Debug, Default)]
pub struct Native {
    shared: Option<Shared>,
}

/// The pid namespace that a pod's containers share.
#[derive(Debug)]
struct Shared {
    namespace: procfs::Identity,
    /// The mount namespace that keeps its proc filesystem.
    procfs: OwnedFd,
}

impl Native {
    /// Prepares for containers that share the pid namespace of a process, while no other
    /// lives in it.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn share_pids(&mut self, init: Pid) -> Result<(), Errno> {
        let path = format!("/proc/{}/ns/pid", init.as_raw_nonzero());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let namespace = rustix::fs::open(path, flags, Mode::empty())?;
        self.shared = Some(Shared {
            namespace: procfs::identity(namespace.as_fd())?,
            procfs: procfs::keep(namespace.as_fd())?,
        });
        Ok(())
    }
}

/// Makes the container's first process, which waits at the socket. In a pid namespace
/// that others live in it is a process that this one makes (`exec::birth`).
fn make(
    shared: Option<&Shared>,
    (plan, create): (&Plan, &Create),
    streams: (Fds, ContainerStdio),
    socket: &OwnedFd,
) -> Result<Child, LaunchError> {
    let prepared = Prepared::new((plan, create), streams, shared)?;
    let cgroup = prepared.process.born_in.as_ref().map(AsFd::as_fd);
    let child = fork::spawn_into(prepared.new, cgroup, || child::run(&prepared, socket));
    child.map_err(|errno| LaunchError::failed("clone", errno))
}

impl Launcher for Native {
    fn begin(&mut self, order: Order) -> Result<Box<dyn Launch>, LaunchError> {
        let Order {
            mut create,
            fds,
            stdio,
        } = order;
        let plan = create.plan.take();
        let plan = plan.ok_or_else(|| LaunchError::failed("read the plan", "there is none"))?;
        restrict_devices(&plan, &prepare::cgroup_dirs(&create))?;
        let (gate, socket) =
            start_pair().map_err(|errno| LaunchError::failed("make the start socket", errno))?;
        let watched = rustix::io::fcntl_dupfd_cloexec(gate.as_fd(), 3)
            .map_err(|errno| LaunchError::failed("copy the start socket", errno))?;
        let child = make(
            self.shared.as_ref(),
            (&plan, &create),
            (fds, stdio),
            &socket,
        )?;
        let score = plan.process.as_ref().and_then(|p| p.oom_score_adj);
        Ok(Box::new(InProgress {
            worker: child.pid,
            pid: child.pid,
            gate: Some(gate),
            watched,
            console: None,
            score: score.unwrap_or_default(),
            plan,
        }))
    }
}

fn restrict_devices(plan: &Plan, dirs: &[std::path::PathBuf]) -> Result<(), LaunchError> {
    let rules: Option<Vec<_>> = plan.device_rules.iter().map(Rule::of).collect();
    let rules = rules.ok_or_else(|| LaunchError::failed("read device rules", "one is none"))?;
    enforce(&rules, dirs).map_err(|error| match error {
        EnforceError::NoCgroup => LaunchError::Unsupported {
            what: "linux.resources.devices".into(),
            message: error.to_string(),
        },
        EnforceError::Kernel { .. } => LaunchError::failed("restrict devices", error),
    })
}

/// A child at work.
#[derive(Debug)]
struct InProgress {
    /// The process that was made here.
    worker: Pid,
    /// The container's first process: the same, or one that it made.
    pid: Pid,
    gate: Option<StartGate>,
    /// A copy of the gate's descriptor: watched until this is dropped, while
    /// the gate may be watched already.
    watched: OwnedFd,
    console: Option<OwnedFd>,
    score: i32,
    /// For the words of what goes wrong.
    plan: Box<Plan>,
}

impl InProgress {
    fn ready(&mut self, gate: StartGate, honoured: Honoured) -> Ready {
        let score = || format!("oom_score_adj {}: permission denied", self.score);
        let none = || keyring::NONE.to_owned();
        let unscored = (!honoured.score).then(score).into_iter();
        let warnings = unscored.chain((!honoured.keyring).then(none));
        Ready {
            pid: self.pid,
            gate,
            console: self.console.take(),
            steps: Vec::new(),
            warnings: warnings.collect(),
        }
    }
}

impl Launch for InProgress {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.watched.as_fd()
    }

    fn helper(&self) -> Option<Pid> {
        Some(self.worker)
    }

    fn progress(&mut self) -> Result<Option<Ready>, LaunchError> {
        let Some(gate) = self.gate.take() else {
            return Err(LaunchError::failed(
                "container's first process",
                "it is ready",
            ));
        };
        loop {
            match report::receive(gate.as_fd()) {
                Ok(Packet::Console(console)) => self.console = Some(console),
                // Whoever adopts it sees that it is a child.
                Ok(Packet::Born(pid)) => self.pid = pid,
                Ok(Packet::Ready { honoured, moments }) => {
                    let ready = self.ready(gate, honoured);
                    return Ok(Some(Ready {
                        steps: moments.steps(),
                        ..ready
                    }));
                }
                Ok(Packet::Problem(problem)) => {
                    self.gate = Some(gate);
                    return Err(problem.explain(&self.plan));
                }
                Err(Errno::AGAIN) => {
                    self.gate = Some(gate);
                    return Ok(None);
                }
                Err(errno) => {
                    self.gate = Some(gate);
                    let message = match errno {
                        Errno::CONNRESET => "it died".to_owned(),
                        errno => errno.to_string(),
                    };
                    return Err(LaunchError::failed("container's first process", message));
                }
            }
        }
    }
}

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
mod inside;
mod mounts;
mod prepare;
mod procfs;
mod report;
mod tree;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::Pid;

use super::{Launch, LaunchError, Launcher, Order, Ready, SharedPids, StartGate, start_pair};
use crate::devices::{EnforceError, Rule, enforce};
use crate::exec::steps::Honoured;
use crate::exec::{Step, keyring};
use crate::protocol::{Plan, one_way_pair};
use crate::sys::fork::{self, Child, NewNamespaces};
use crate::sys::note::Note;
use child::Handshake;
use prepare::{Foreign, Prepared};
use report::{Moments, Packet};

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
        let SharedPids { namespace, .. } = SharedPids::of_child(init)?;
        self.shared = Some(Shared {
            namespace: procfs::identity(namespace.as_fd())?,
            procfs: procfs::keep(namespace.as_fd())?,
        });
        Ok(())
    }

    /// What is kept for the pid namespace that containers share: it cannot be made again
    /// once containers live there.
    #[must_use]
    pub fn kept(&self) -> Option<BorrowedFd<'_>> {
        self.shared.as_ref().map(|shared| shared.procfs.as_fd())
    }

    /// One that goes on with what another has kept for the pid namespace of a process.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn resume(init: Pid, kept: OwnedFd) -> Result<Self, Errno> {
        let SharedPids { namespace, .. } = SharedPids::of_child(init)?;
        let shared = Shared {
            namespace: procfs::identity(namespace.as_fd())?,
            procfs: kept,
        };
        Ok(Self {
            shared: Some(shared),
        })
    }
}

impl Launcher for Native {
    fn begin(&mut self, order: Order) -> Result<Box<dyn Launch>, LaunchError> {
        let Order {
            mut create,
            fds,
            stdio,
            pids,
            user_space,
        } = order;
        let failed = |step: &'static str| move |errno| LaunchError::failed(step, errno);
        let plan = create.plan.take();
        let plan = plan.ok_or_else(|| LaunchError::failed("read the plan", "there is none"))?;
        restrict_devices(&plan, &prepare::cgroup_dirs(&create))?;
        let (gate, end) = start_pair().map_err(failed("make the start gate"))?;
        let (socket, says) = one_way_pair().map_err(failed("make the report socket"))?;
        let prepared = {
            let shared = pids.map(|pids| Foreign::new(pids, self.shared.as_ref()));
            let shared = shared.transpose();
            let shared = shared.map_err(failed("open the shared PID namespace"))?;
            Prepared::new((&plan, &create), (fds, stdio), (shared, user_space))?
        };
        // In a pid namespace that others live in it is a process that this one makes, and
        // in one that a user namespace owns one that the maker's maker is the parent of.
        let shares = prepared.pid_namespace.is_some();
        let inside = prepared.process.user_space.is_some();
        let note = (shares || inside).then(Note::new).transpose();
        let note = note.map_err(failed("make the note"))?;
        let handshake = Handshake {
            socket: says.as_fd(),
            start: end.waiting(),
            note: note.as_ref(),
        };
        let cgroup = prepared.process.born_in.as_ref().map(AsFd::as_fd);
        let new = match inside {
            true => NewNamespaces::default(),
            false => prepared.new,
        };
        let worker = fork::spawn_into(new, cgroup, || child::run(&prepared, handshake));
        let worker = worker.map_err(failed("clone"))?;
        let score = plan.process.as_ref().and_then(|p| p.oom_score_adj);
        Ok(Box::new(InProgress {
            worker,
            note,
            crosses: shares,
            socket,
            gate: Some(gate),
            console: None,
            terminal: create.tty,
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
    worker: Child,
    /// Who is born, if the container's first process is another one that it makes.
    note: Option<Note>,
    /// Whether that one is born last of all, so that it is known when the worker ends.
    crosses: bool,
    /// Brings what the worker says, or what it has made.
    socket: OwnedFd,
    gate: Option<StartGate>,
    console: Option<OwnedFd>,
    /// Whether a terminal is expected.
    terminal: bool,
    score: i32,
    /// For the words of what goes wrong.
    plan: Box<Plan>,
}

const FIRST: &str = "container's first process";

impl InProgress {
    fn ready(&mut self, honoured: Honoured, moments: &Moments) -> Result<Ready, LaunchError> {
        let pid = match &self.note {
            None => self.worker.pid,
            Some(note) => note.born().ok_or_else(|| match note.failed() {
                Some(errno) => LaunchError::failed(Step::Birth.name(), errno),
                None => LaunchError::failed(FIRST, "it died"),
            })?,
        };
        let gate = self.gate.take();
        let gate = gate.ok_or_else(|| LaunchError::failed(FIRST, "it is ready"))?;
        let score = || format!("oom_score_adj {}: permission denied", self.score);
        let none = || keyring::NONE.to_owned();
        let unscored = (!honoured.score).then(score).into_iter();
        let warnings = unscored.chain((!honoured.keyring).then(none)).collect();
        Ok(Ready {
            pid,
            gate,
            console: self.console.take(),
            steps: moments.steps(),
            warnings,
            runtimes_keyring: false,
        })
    }
}

impl Launch for InProgress {
    /// What is born elsewhere is known when the worker has ended.
    fn descriptor(&self) -> BorrowedFd<'_> {
        match self.crosses {
            false => self.socket.as_fd(),
            true => self.worker.pidfd.as_fd(),
        }
    }

    fn helper(&self) -> Option<Pid> {
        Some(self.worker.pid)
    }

    fn born(&self) -> Option<Pid> {
        self.note.as_ref()?.born()
    }

    fn progress(&mut self) -> Result<Option<Ready>, LaunchError> {
        loop {
            match report::receive(self.socket.as_fd()) {
                Ok(Packet::Console(console)) if self.terminal => self.console = Some(console),
                Ok(Packet::Console(_)) => {
                    return Err(LaunchError::failed(FIRST, "it has a terminal"));
                }
                Ok(Packet::Ready { honoured, moments }) => {
                    return self.ready(honoured, &moments).map(Some);
                }
                Ok(Packet::Problem(problem)) => return Err(problem.explain(&self.plan)),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::CONNRESET) => return Err(LaunchError::failed(FIRST, "it died")),
                Err(errno) => return Err(LaunchError::failed(FIRST, errno)),
            }
        }
    }
}

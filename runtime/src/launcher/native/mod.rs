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
//! out of the container's root, whatever links the image has. A crash leaves
//! nothing: all mounts end with the child's mount namespace.

mod child;
mod dev;
mod mounts;
mod place;
mod prepare;
mod report;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::LinkNameSpaceType;

use super::{ContainerStdio, Launch, LaunchError, Launcher, Order, Ready, StartGate, start_pair};
use crate::devices::{EnforceError, Rule, enforce};
use crate::protocol::{Create, Fds, Plan};
use crate::sys::fork::{self, Child};
use prepare::Prepared;
use report::Packet;

/// Makes containers in children of this process, which has one thread.
#[derive(Debug)]
pub struct Native {
    null: OwnedFd,
    pid_namespace: OwnedFd,
}

impl Native {
    /// A launcher for this process.
    ///
    /// # Errors
    /// /dev/null or the own pid namespace cannot be opened.
    pub fn new() -> Result<Self, Errno> {
        let open = |path: &std::ffi::CStr, flags: OFlags| {
            rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())
        };
        Ok(Self {
            null: open(c"/dev/null", OFlags::RDWR)?,
            pid_namespace: open(c"/proc/self/ns/pid", OFlags::RDONLY)?,
        })
    }

    /// Makes the container's first process, which waits at the socket.
    fn make(
        &self,
        (plan, create): (&Plan, &Create),
        streams: (Fds, ContainerStdio),
        socket: &OwnedFd,
    ) -> Result<Child, LaunchError> {
        let prepared = Prepared::new((plan, create), streams, &self.null)?;
        let failed = |step: &'static str| move |errno| LaunchError::failed(step, errno);
        let enter = |namespace: &OwnedFd| {
            rustix::thread::move_into_link_name_space(
                namespace.as_fd(),
                Some(LinkNameSpaceType::ProcessID),
            )
        };
        if let Some(namespace) = &prepared.pid_namespace {
            enter(namespace).map_err(failed("enter pid namespace"))?;
        }
        let cgroup = prepared.process.born_in.as_ref().map(AsFd::as_fd);
        let child = fork::spawn_into(prepared.new, cgroup, || child::run(&prepared, socket));
        if prepared.pid_namespace.is_some()
            && let Err(errno) = enter(&self.pid_namespace)
        {
            // All later children would be born in that container.
            if let Ok(child) = &child {
                let _killed =
                    rustix::process::kill_process(child.pid, rustix::process::Signal::KILL);
            }
            return Err(LaunchError::failed("leave pid namespace", errno));
        }
        child.map_err(failed("clone"))
    }
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
        let child = self.make((&plan, &create), (fds, stdio), &socket)?;
        let score = plan.process.as_ref().and_then(|p| p.oom_score_adj);
        Ok(Box::new(InProgress {
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
    fn ready(&mut self, gate: StartGate, honoured: bool) -> Ready {
        let warning = || format!("oom_score_adj {}: permission denied", self.score);
        Ready {
            pid: self.pid,
            gate,
            console: self.console.take(),
            steps: Vec::new(),
            warnings: (!honoured).then(warning).into_iter().collect(),
        }
    }
}

impl Launch for InProgress {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.watched.as_fd()
    }

    fn helper(&self) -> Option<Pid> {
        Some(self.pid)
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

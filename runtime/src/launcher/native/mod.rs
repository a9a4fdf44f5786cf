//! The native launcher: the monitor makes containers itself.
//!
//! ```text
//! monitor: plan ──▶ prepare ──▶ clone3 ───────▶ wait ──▶ Ready
//!                                 └─▶ child: cgroups, namespaces, pivot_root, mounts, devices,
//!                                     terminal, masks, privileges, "ready" ──▶ gate ──▶ execve
//! ```
//! Where a process waits in the container's cgroups already ([`Parked`]), all
//! from `prepare` to the clone happens in that one.
//!
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
use crate::parked::Parked;
use crate::protocol::{self, Create, Fds, Plan};
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

    /// The pid namespace of this process.
    pub(crate) fn pid_namespace(&self) -> BorrowedFd<'_> {
        self.pid_namespace.as_fd()
    }

    /// Makes the container's first process, which waits at the socket.
    fn make(
        &self,
        (plan, create): (&Plan, &Create),
        streams: (Fds, ContainerStdio),
        socket: &OwnedFd,
        place: Place,
    ) -> Result<Child, LaunchError> {
        let prepared = Prepared::new((plan, create), streams, &self.null, place)?;
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
        let life = || child::run(&prepared, socket);
        let child = match place {
            Place::Elsewhere => {
                let cgroup = prepared.cgroup.as_ref().map(AsFd::as_fd);
                fork::spawn_into(prepared.new, cgroup, life)
            }
            Place::Here => fork::spawn_sibling(prepared.new, life),
        };
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

    /// Makes a container in a process that is in the container's cgroups; what
    /// goes wrong is said through the start socket.
    pub(crate) fn make_here(
        &self,
        launch: protocol::Launch,
        mut fds: Fds,
        joined: Result<(), Errno>,
    ) {
        let protocol::Launch {
            create,
            work_dir: _,
            start_fd,
            stdio,
        } = launch;
        let Ok(socket) = fds.take(start_fd, "the start") else {
            return;
        };
        let stdio = ContainerStdio::take(&stdio.unwrap_or_default(), &mut fds);
        let made = stdio.and_then(|stdio| {
            joined.map_err(|errno| LaunchError::failed("join cgroup", errno))?;
            let mut create =
                create.ok_or_else(|| LaunchError::failed("read the order", "it is empty"))?;
            let plan = take_plan(&mut create)?;
            self.make((&plan, &create), (fds, stdio), &socket, Place::Here)
        });
        if let Err(error) = made {
            report::send_error(socket.as_fd(), &error);
        }
    }
}

/// Where a container's first process is born.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In the cgroups of the process that makes it: the container's.
    Here,
    /// In a cgroup of the v2 tree; it joins those of other hierarchies.
    Elsewhere,
}

fn take_plan(create: &mut Create) -> Result<Box<Plan>, LaunchError> {
    let plan = create.plan.take();
    plan.ok_or_else(|| LaunchError::failed("read the plan", "there is none"))
}

impl Launcher for Native {
    fn begin(&mut self, order: Order) -> Result<Box<dyn Launch>, LaunchError> {
        let Order {
            mut create,
            fds,
            stdio,
        } = order;
        let plan = take_plan(&mut create)?;
        restrict_devices(&plan, &prepare::cgroup_dirs(&create))?;
        let (gate, socket) =
            start_pair().map_err(|errno| LaunchError::failed("make the start socket", errno))?;
        let mut progress = InProgress::new(gate, plan.clone())?;
        let child = self.make((&plan, &create), (fds, stdio), &socket, Place::Elsewhere)?;
        progress.pid = Some(child.pid);
        Ok(Box::new(progress))
    }
}

/// Makes containers by a parked process.
#[derive(Debug, Clone, Copy)]
pub struct Through<'a>(&'a Parked);

impl<'a> Through<'a> {
    /// A launcher that asks this process, which is in the container's cgroups.
    #[must_use]
    pub fn new(parked: &'a Parked) -> Self {
        Self(parked)
    }
}

impl Launcher for Through<'_> {
    fn begin(&mut self, order: Order) -> Result<Box<dyn Launch>, LaunchError> {
        let plan = order.create.plan.clone();
        let plan = plan.ok_or_else(|| LaunchError::failed("read the plan", "there is none"))?;
        restrict_devices(&plan, &prepare::cgroup_dirs(&order.create))?;
        let (gate, socket) =
            start_pair().map_err(|errno| LaunchError::failed("make the start socket", errno))?;
        // The first process tells who it is by what the kernel says of a sender.
        rustix::net::sockopt::set_socket_passcred(gate.as_fd(), true)
            .map_err(|errno| LaunchError::failed("prepare the start socket", errno))?;
        let progress = InProgress::new(gate, plan)?;
        let (body, fds) = order.into_message(Vec::new(), socket)?;
        self.0
            .ask(body, &fds)
            .map_err(|error| LaunchError::failed("ask the parked process", error))?;
        Ok(Box::new(progress))
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
    /// Its process; `None`: that process will say so.
    pid: Option<Pid>,
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
    fn new(gate: StartGate, plan: Box<Plan>) -> Result<Self, LaunchError> {
        let watched = rustix::io::fcntl_dupfd_cloexec(gate.as_fd(), 3)
            .map_err(|errno| LaunchError::failed("copy the start socket", errno))?;
        let score = plan.process.as_ref().and_then(|p| p.oom_score_adj);
        Ok(Self {
            pid: None,
            gate: Some(gate),
            watched,
            console: None,
            score: score.unwrap_or_default(),
            plan,
        })
    }

    fn ready(&mut self, gate: StartGate, pid: Pid, honoured: bool) -> Ready {
        let warning = || format!("oom_score_adj {}: permission denied", self.score);
        Ready {
            pid,
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
        self.pid
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
                Ok(Packet::Ready {
                    honoured,
                    sender,
                    moments,
                }) => {
                    let pid = self.pid.or(sender);
                    let pid = pid.ok_or_else(|| {
                        LaunchError::failed("container's first process", "it has no number")
                    })?;
                    let ready = self.ready(gate, pid, honoured);
                    return Ok(Some(Ready {
                        steps: moments.steps(),
                        ..ready
                    }));
                }
                Ok(Packet::Error(error)) => {
                    self.gate = Some(gate);
                    return Err(error);
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

//! The child that becomes a process of a container.
//!
//! Owns the order of the steps: what needs the host's view comes before the
//! namespaces, what needs privileges before they are given up.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;
use rustix::process::Pid;
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType};

use super::plan::Plan;
use super::report::{self, Problem, Step};
use super::steps;
use crate::sys::fork;
use crate::sys::fork::{Child, NewNamespaces};

/// The container that the process belongs to.
#[derive(Debug, Clone, Copy)]
pub struct Container<'a> {
    /// Its first process.
    pub pidfd: BorrowedFd<'a>,
    /// The pid namespace of the process that calls: entered again afterwards.
    pub own_pid_namespace: BorrowedFd<'a>,
}

/// The streams of the process.
#[derive(Debug)]
pub struct Stdio {
    /// What it reads.
    pub stdin: OwnedFd,
    /// What it writes.
    pub stdout: OwnedFd,
    /// What it complains to.
    pub stderr: OwnedFd,
}

/// A process that was made.
#[derive(Debug)]
pub struct Running {
    /// Its id, as seen from here.
    pub pid: Pid,
    /// A descriptor of it.
    pub pidfd: OwnedFd,
    /// Brings a [`Problem`], or ends when the program runs.
    pub report: OwnedFd,
}

/// The two ends of a report: what is read never waits, and knows its sender.
///
/// # Errors
/// The kernel's answer.
pub fn report_pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (read, write) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::io::ioctl_fionbio(&read, true)?;
    rustix::net::sockopt::set_socket_passcred(&read, true)?;
    Ok((read, write))
}

/// Makes the process. It is a child of the caller, wherever it lives.
///
/// # Errors
/// It could not be made at all: the container is gone or the machine is full.
pub fn spawn(plan: &Plan, container: Container<'_>, stdio: &Stdio) -> Result<Running, Problem> {
    let namespaces = |errno| Problem {
        step: Step::Namespaces,
        errno,
    };
    let (report, child_report) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(namespaces)?;
    let life = || become_process(plan, container, stdio, child_report.as_fd());
    let cgroup = plan.cgroup.as_ref().map(AsFd::as_fd);
    let spawned = born_in(container, || {
        fork::spawn_into(NewNamespaces::default(), cgroup, life)
    });
    let Child { pid, pidfd } = spawned.map_err(namespaces)?;
    Ok(Running { pid, pidfd, report })
}

/// Makes the process as a sibling of the caller, which is in the container's
/// cgroups; it tells of its birth before it does anything else.
pub(crate) fn spawn_sibling(
    plan: &Plan,
    container: Container<'_>,
    stdio: &Stdio,
    report: BorrowedFd<'_>,
) {
    let life = || {
        if report::send_born(report).is_err() {
            return 127;
        }
        become_process(plan, container, stdio, report)
    };
    let spawned = born_in(container, || {
        fork::spawn_sibling(NewNamespaces::default(), life)
    });
    if let Err(errno) = spawned {
        let step = Step::Namespaces;
        tell(report, Problem { step, errno });
    }
}

/// Makes a child that is born in the container's pid namespace.
fn born_in(
    container: Container<'_>,
    spawn: impl FnOnce() -> Result<Child, Errno>,
) -> Result<Child, Errno> {
    enter_pid_namespace(container.pidfd)?;
    let child = spawn();
    let back = rustix::thread::move_into_link_name_space(
        container.own_pid_namespace,
        Some(LinkNameSpaceType::ProcessID),
    );
    let child = child?;
    if let Err(errno) = back {
        // All later children would be born in this container.
        let _killed = rustix::process::kill_process(child.pid, rustix::process::Signal::KILL);
        return Err(errno);
    }
    Ok(child)
}

/// Children are born there from now on.
fn enter_pid_namespace(pidfd: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::thread::move_into_thread_name_spaces(pidfd, ThreadNameSpaceType::PROCESS_ID)
}

/// The child's life: returns only when it failed.
fn become_process(
    plan: &Plan,
    container: Container<'_>,
    stdio: &Stdio,
    report: BorrowedFd<'_>,
) -> u8 {
    let moved = match join(plan, container)
        .and_then(|()| steps::at(Step::Streams, steps::connect_streams(plan, stdio, report)))
    {
        Ok(moved) => moved,
        Err(problem) => return tell(report, problem),
    };
    let problem = match steps::take_on(plan) {
        Ok(()) => Problem {
            step: Step::Exec,
            errno: plan.program.execute(),
        },
        Err(problem) => problem,
    };
    tell(moved.as_fd(), problem)
}

/// The exit code tells that something is wrong even where the pipe does not.
pub(crate) fn tell(report: BorrowedFd<'_>, problem: Problem) -> u8 {
    let _lost = rustix::io::write(report, &problem.to_bytes());
    127
}

/// What needs the host's view of files.
fn join(plan: &Plan, container: Container<'_>) -> Result<(), Problem> {
    steps::leave_monitor(plan)?;
    steps::at(Step::Namespaces, enter_namespaces(container.pidfd))
}

/// The pid namespace was entered before the clone. The user namespace is the
/// same: launchers refuse containers that have one of their own.
fn enter_namespaces(pidfd: BorrowedFd<'_>) -> Result<(), Errno> {
    let all = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::CONTROL_GROUP
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::NETWORK;
    rustix::thread::move_into_thread_name_spaces(pidfd, all)
}

//! The child that becomes a process of a container.
//!
//! Owns the order of the steps: what needs the host's view comes before the
//! namespaces, what needs privileges before they are given up, and the pid namespace
//! last of all (`birth`). The caller itself never enters a namespace.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::Pid;
use rustix::thread::ThreadNameSpaceType;

use super::plan::Plan;
use super::report::{Problem, Step};
use super::{birth, steps};
use crate::shared_pipe::SharedEnd;
use crate::sys::fork::{Child, NewNamespaces};
use crate::sys::note::Note;
use crate::sys::{fds, fork};
use crate::terminal::{self, Terminal};
use crate::user_space::become_root;

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

impl Stdio {
    /// Each of them, by its number in the process.
    pub(crate) fn each(&self) -> [BorrowedFd<'_>; 3] {
        [self.stdin.as_fd(), self.stdout.as_fd(), self.stderr.as_fd()]
    }
}

/// What a process reads and writes.
#[derive(Debug)]
pub enum Streams {
    /// These.
    Given(Stdio),
    /// A terminal, whose master side is sent to this socket.
    Terminal(OwnedFd),
}

/// A process in the making.
#[derive(Debug)]
pub struct Begun {
    /// The intermediate process: it ends when the process is born.
    pub pid: Pid,
    /// Who is born, once the intermediate process has ended.
    pub note: Note,
    /// Brings a [`Problem`], and ends when the program runs.
    pub report: SharedEnd,
}

/// Begins to make a process in the container whose first process this is. Both the
/// intermediate process and what is born are children of the caller.
///
/// # Errors
/// It cannot even begin: the machine or the cgroup is full, or has cgroups below it
/// (`EBUSY`).
pub fn spawn(plan: &Plan, container: BorrowedFd<'_>, streams: &Streams) -> Result<Begun, Problem> {
    let failed = |errno| Problem {
        step: Step::Cgroup,
        errno,
    };
    let note = Note::new().map_err(failed)?;
    let (report, child_report) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(failed)?;
    let cgroup = plan.born_in.as_ref().map(AsFd::as_fd);
    let child = fork::spawn_into(NewNamespaces::default(), cgroup, || {
        become_process(plan, container, streams, (&note, child_report.as_fd()))
    });
    let Child { pid, pidfd: _ } = child.map_err(failed)?;
    Ok(Begun {
        pid,
        note,
        report: report.into(),
    })
}

/// The child's life: returns only when it failed.
fn become_process(
    plan: &Plan,
    container: BorrowedFd<'_>,
    streams: &Streams,
    (note, report): (&Note, BorrowedFd<'_>),
) -> u8 {
    let joined = join(plan, container, streams).and_then(|()| connect(plan, streams, report));
    let [moved] = match joined {
        Ok(moved) => moved,
        Err(problem) => return tell(report, problem),
    };
    let report = fds::leave_open(moved);
    let reaps = birth::may_reap(plan);
    let nothing_more = || ();
    let terminal = matches!(streams, Streams::Terminal(_));
    let problem = birth::take_on_and_cross(plan, terminal, note, nothing_more, move |program| {
        let problem = match program {
            Ok(program) => {
                if reaps {
                    birth::reap_own();
                }
                Problem {
                    step: Step::Exec,
                    errno: program.execute().errno,
                }
            }
            Err(problem) => problem,
        };
        tell(report, problem)
    });
    tell(report, problem)
}

/// The exit code tells that something is wrong even where the pipe does not.
fn tell(report: BorrowedFd<'_>, problem: Problem) -> u8 {
    let _lost = rustix::io::write(report, &problem.to_bytes());
    127
}

/// What needs the host's view of files, and its rights; then the namespaces.
fn join(plan: &Plan, container: BorrowedFd<'_>, streams: &Streams) -> Result<(), Problem> {
    steps::leave_monitor(plan)?;
    let Some(space) = &plan.user_space else {
        let kinds = ThreadNameSpaceType::empty();
        return steps::at(Step::Namespaces, enter_namespaces(container, kinds));
    };
    match streams {
        Streams::Given(stdio) => steps::prepare_to_enter(plan, space, &stdio.each())?,
        Streams::Terminal(_) => steps::prepare_to_enter(plan, space, &[])?,
    }
    let entered = enter_namespaces(container, ThreadNameSpaceType::USER);
    steps::at(Step::Namespaces, entered.and_then(|()| become_root()))?;
    steps::join_keyring(plan).map(drop)
}

/// Puts the streams, or those of a terminal in the container's own devpts, where they
/// belong. Nothing else stays open but the report.
fn connect(
    plan: &Plan,
    streams: &Streams,
    report: BorrowedFd<'_>,
) -> Result<[OwnedFd; 1], Problem> {
    let socket = match streams {
        Streams::Given(stdio) => {
            let connected = steps::connect_streams(plan, stdio.each(), [report]);
            return steps::at(Step::Streams, connected);
        }
        Streams::Terminal(socket) => socket,
    };
    let opened = Terminal::of_this_root(plan.uid);
    let terminal = steps::at(Step::Terminal, opened)?;
    let sent = terminal::send(socket.as_fd(), terminal.master.as_fd());
    steps::at(Step::Terminal, sent)?;
    let slave = terminal.slave.as_fd();
    let connected = steps::connect_streams(plan, [slave; 3], [report]);
    // Its numbers mean nothing any more.
    std::mem::forget(terminal);
    steps::at(Step::Streams, connected)
}

/// The pid namespace is that of children from now on. A user namespace, which only pods
/// have that were made with one, is entered with the others, which it owns.
fn enter_namespaces(pidfd: BorrowedFd<'_>, more: ThreadNameSpaceType) -> Result<(), Errno> {
    let all = more
        | ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::CONTROL_GROUP
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::NETWORK
        | ThreadNameSpaceType::PROCESS_ID;
    rustix::thread::move_into_thread_name_spaces(pidfd, all)
}

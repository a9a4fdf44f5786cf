//! A process that stands in a container's cgroups before it is needed.
//!
//! Joining a cgroup by `cgroup.procs` waits for all processors where nothing
//! joined lately: about 7 ms on a stock kernel, some 20 at worst. On the
//! hierarchies of version 1 there is no way to be born in one, except to a parent
//! that is there. So a copy of the monitor joins while other work goes on, or
//! between two processes that are run in a container, and makes the next one
//! there, as a child of the monitor.
//!
//! Owns the socket to that copy and its life. The copy has nothing of the
//! monitor's descriptors but that socket; it ends with the socket or with the
//! monitor, and the container never sees it: it stays in the host's namespaces.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, Signal};

use crate::exec::{self, Problem, Step};
use crate::launcher::Native;
use crate::protocol::{
    self, Body, Envelope, Fds, ProtocolError, Received, Run, StreamSlots, monotonic_now,
};
use crate::sys::fds::{Close, close_from, copy_to};
use crate::sys::fork::{self, NewNamespaces};

/// The socket's number in the parked process; behind it everything is closed.
const SOCKET: i32 = 3;

/// Why a parked process cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// It is gone, or the order is no message.
    #[error(transparent)]
    Send(#[from] ProtocolError),
    /// It has not read what it was told before.
    #[error("it is busy")]
    Busy,
}

/// A parked process.
#[derive(Debug)]
pub struct Parked {
    pid: Pid,
    socket: OwnedFd,
}

impl Parked {
    /// Whether one is of use for these `cgroup.procs` files: any of them is of a
    /// hierarchy in which nothing can be born.
    #[must_use]
    pub fn is_useful(cgroup_procs: &[Vec<u8>]) -> bool {
        cgroup_procs.iter().any(|procs| !is_v2(procs))
    }

    /// Makes one, which joins the cgroups behind the caller's back. `seccomp` is
    /// the filter of processes that are run.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn open(cgroup_procs: &[Vec<u8>], seccomp: Option<&[u8]>) -> Result<Self, Errno> {
        let Ways { born_in, joined } = Ways::new(cgroup_procs).map_err(|(_, errno)| errno)?;
        let joined: Vec<CString> = joined
            .into_iter()
            .map(|path| CString::new(path).map_err(|_| Errno::INVAL))
            .collect::<Result<_, _>>()?;
        let (socket, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        rustix::io::ioctl_fionbio(&socket, true)?;
        let cgroup = born_in.as_ref().map(AsFd::as_fd);
        let child = fork::spawn_into(NewNamespaces::default(), cgroup, || {
            match live(theirs.as_fd(), &joined, seccomp) {
                Ok(()) => 0,
                Err(_) => 1,
            }
        })?;
        Ok(Self {
            pid: child.pid,
            socket,
        })
    }

    /// Its number: a child of the process that made it.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Has it run a process in the container whose first process this is. Tells
    /// by the report what becomes of it, see [`exec::Birth`].
    ///
    /// # Errors
    /// It cannot be asked; nothing was begun.
    pub fn run(
        &self,
        exec: &protocol::Exec,
        container: BorrowedFd<'_>,
        stdio: &exec::Stdio,
        report: BorrowedFd<'_>,
    ) -> Result<(), AskError> {
        let exec = protocol::Exec {
            streams: Some(StreamSlots {
                stdin: Some(0),
                stdout: Some(1),
                stderr: Some(2),
                tty: None,
            }),
            // It is there.
            cgroup_procs: Vec::new(),
            ..exec.clone()
        };
        let run = Run {
            exec: Some(Box::new(exec)),
            container_fd: Some(3),
            report_fd: Some(4),
        };
        let fds = [
            stdio.stdin.as_fd(),
            stdio.stdout.as_fd(),
            stdio.stderr.as_fd(),
            container,
            report,
        ];
        self.ask(Body::Run(Box::new(run)), &fds)
    }

    /// Tells it what to make.
    pub(crate) fn ask(&self, body: Body, fds: &[impl AsFd]) -> Result<(), AskError> {
        let envelope = Envelope {
            version: protocol::VERSION,
            request: 1,
            sent_at: monotonic_now(),
            body: Some(body),
            ..Envelope::default()
        };
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        match protocol::send(self.socket.as_fd(), &envelope, &fds)? {
            true => Ok(()),
            false => Err(AskError::Busy),
        }
    }
}

/// A container's cgroups, by how a process gets into them.
#[derive(Debug)]
pub(crate) struct Ways {
    /// The directory of one of the v2 tree, in which a process can be born.
    pub(crate) born_in: Option<OwnedFd>,
    /// `cgroup.procs` of the others, each to be joined.
    pub(crate) joined: Vec<Vec<u8>>,
}

impl Ways {
    /// Sorts `cgroup.procs` files. An error names the directory.
    pub(crate) fn new(procs: &[Vec<u8>]) -> Result<Self, (String, Errno)> {
        let mut joined = procs.to_vec();
        let Some(index) = joined.iter().position(|procs| is_v2(procs)) else {
            return Ok(Self {
                born_in: None,
                joined,
            });
        };
        let procs = joined.swap_remove(index);
        let dir = parent(&procs).unwrap_or(Path::new("/"));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(dir, flags, Mode::empty())
            .map_err(|errno| (dir.display().to_string(), errno))?;
        Ok(Self {
            born_in: Some(opened),
            joined,
        })
    }
}

/// Whether a `cgroup.procs` file is one of the v2 tree.
pub(crate) fn is_v2(procs: &[u8]) -> bool {
    parent(procs).is_some_and(|dir| dir.join("cgroup.controllers").exists())
}

/// The directory of the one cgroup of these `cgroup.procs` files, if a process can be
/// born there and has no other to join.
#[must_use]
pub fn birthplace(cgroup_procs: &[Vec<u8>]) -> Option<OwnedFd> {
    let Ok(Ways { born_in, joined }) = Ways::new(cgroup_procs) else {
        return None;
    };
    born_in.filter(|_| joined.is_empty())
}

fn parent(procs: &[u8]) -> Option<&Path> {
    Path::new(OsStr::from_bytes(procs)).parent()
}

/// The parked process's life.
fn live(
    socket: BorrowedFd<'_>,
    cgroup_procs: &[CString],
    seccomp: Option<&[u8]>,
) -> Result<(), Errno> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::thread::set_name(c"slipway-parked")?;
    // Away from the numbers that are filled.
    let socket = rustix::io::fcntl_dupfd_cloexec(socket, SOCKET + 1)?;
    let moved = copy_to(socket.as_fd(), SOCKET)?;
    // Its owner must not run: the number is closed here.
    std::mem::forget(socket);
    close_from(SOCKET.cast_unsigned() + 1, Close::Now)?;
    let native = Native::new()?;
    let joined = cgroup_procs.iter().try_for_each(|procs| {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::open(procs.as_c_str(), flags, Mode::empty())?;
        rustix::io::retry_on_intr(|| rustix::io::write(&file, b"0")).map(drop)
    });
    let mut seccomp = seccomp.map(<[u8]>::to_vec);
    while let Ok(Received::Packet(incoming)) = protocol::receive(moved.as_fd()) {
        match incoming.envelope.body {
            Some(Body::Launch(launch)) => {
                let filter = launch.create.as_ref().and_then(|c| c.seccomp_bpf.clone());
                seccomp = filter.or(seccomp);
                native.make_here(*launch, incoming.fds, joined);
            }
            Some(Body::Run(run)) => {
                run_here(&native, *run, incoming.fds, (joined, seccomp.as_deref()));
            }
            _ => return Err(Errno::BADMSG),
        }
    }
    Ok(())
}

/// Makes a process; the report says what goes wrong, or ends without a word when
/// the order is none.
fn run_here(
    native: &Native,
    run: Run,
    mut fds: Fds,
    (joined, seccomp): (Result<(), Errno>, Option<&[u8]>),
) {
    let Run {
        exec,
        container_fd,
        report_fd,
    } = run;
    let exec = exec.unwrap_or_default();
    let streams = exec.streams.unwrap_or_default();
    let mut take = |slot, what| fds.take(slot, what);
    let (Ok(report), Ok(pidfd), Ok(stdin), Ok(stdout), Ok(stderr)) = (
        take(report_fd, "the report"),
        take(container_fd, "the container"),
        take(streams.stdin, "stdin"),
        take(streams.stdout, "stdout"),
        take(streams.stderr, "stderr"),
    ) else {
        return;
    };
    if let Err(errno) = joined {
        let step = Step::Cgroup;
        exec::tell(report.as_fd(), Problem { step, errno });
        return;
    }
    let process = exec.process.unwrap_or_default();
    // The monitor checked it before.
    let Ok(plan) = exec::Plan::new(&process, &[], seccomp) else {
        return;
    };
    let container = exec::Container {
        pidfd: pidfd.as_fd(),
        own_pid_namespace: native.pid_namespace(),
    };
    let stdio = exec::Stdio {
        stdin,
        stdout,
        stderr,
    };
    exec::spawn_sibling(&plan, container, &stdio, report.as_fd());
}

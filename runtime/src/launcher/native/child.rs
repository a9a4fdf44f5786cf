//! The child that becomes a container's first process.
//!
//! Owns the order: cgroups and labels while the host's files are there, then
//! namespaces, then the root, so that every path afterwards is the container's;
//! privileges last. Ends with a word about what went wrong, or waits.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sched::CloneFlags;
use rustix::fs::Mode;
use rustix::io::Errno;

use super::super::StartSocket;
use super::mounts::{Mask, Taken};
use super::place::Root;
use super::prepare::Prepared;
use super::report::{self, Moments, Own, Problem};
use super::{dev, mounts};
use crate::exec::{self, Step, steps};

/// Exit code of a process whose program could not be executed.
const CANNOT_START: u8 = 128;

/// The child's life: returns only when it failed.
pub(super) fn run(prepared: &Prepared, socket: &OwnedFd) -> u8 {
    let socket = socket.as_fd();
    let mut moments = Moments::default();
    let set_up = set_up(prepared, socket, &mut moments)
        .and_then(|(honoured, stdio)| Ok((honoured, connect(prepared, stdio, socket)?)));
    let (honoured, socket) = match set_up {
        Ok(done) => done,
        Err(problem) => return give_up(socket, problem),
    };
    if let Err(problem) = steps::take_on(&prepared.process) {
        return give_up(socket.as_fd(), problem.into());
    }
    if report::send_ready(socket.as_fd(), honoured, &moments).is_err() {
        return CANNOT_START;
    }
    let start = StartSocket::new(socket.as_fd());
    if start.wait() {
        let program = &prepared.process.program;
        let (message, not_found) = program.explain(program.execute());
        start.fail(&message, not_found);
    }
    // Without a monitor nobody would look after the container.
    CANNOT_START
}

fn give_up(socket: BorrowedFd<'_>, problem: Problem) -> u8 {
    report::send_problem(socket, problem);
    CANNOT_START
}

/// Everything but the process itself; gives the terminal as its streams.
fn set_up(
    prepared: &Prepared,
    socket: BorrowedFd<'_>,
    moments: &mut Moments,
) -> Result<(bool, Option<exec::Stdio>), Problem> {
    let honoured = steps::leave_monitor(&prepared.process)?;
    moments.mark();
    // Modes are given as they are meant.
    rustix::process::umask(Mode::empty());
    Own::Namespaces.at(0, enter_namespaces(prepared))?;
    moments.mark();
    let mut taken = Own::Cgroups.at(0, Taken::cgroups(&prepared.view, &prepared.mounts))?;
    if !prepared.masked.is_empty() {
        Own::Mask.at(0, taken.null())?;
    }
    Own::Root.at(0, mounts::enter(prepared.rootfs.as_fd()))?;
    let root = Own::Root.at(0, Root::own())?;
    moments.mark();
    for (index, mount) in prepared.mounts.iter().enumerate() {
        let made = mounts::make(&root, mount, &prepared.view, &mut taken);
        Own::Mount.at(index, made)?;
    }
    moments.mark();
    if prepared.own_dev {
        Own::Dev.at(0, dev::fill(&root))?;
        for (index, device) in prepared.devices.iter().enumerate() {
            Own::Device.at(index, dev::make(&root, device))?;
        }
        Own::Dev.at(0, dev::link(&root))?;
    }
    let stdio = match prepared.stdio {
        Some(_) => None,
        None => Some(Own::Terminal.at(0, open_terminal(prepared, &root, socket))?),
    };
    let mut mask = Mask::new(taken);
    for (index, path) in prepared.readonly.iter().enumerate() {
        Own::ReadOnly.at(index, mounts::make_readonly(&root, path))?;
    }
    for (index, path) in prepared.masked.iter().enumerate() {
        Own::Mask.at(index, mask.hide(&root, path))?;
    }
    if prepared.readonly_root {
        Own::RootFlags.at(0, mounts::make_root_readonly())?;
    }
    if prepared.shared_root {
        Own::RootFlags.at(0, mounts::share_root())?;
    }
    moments.mark();
    Ok((honoured, stdio))
}

fn enter_namespaces(prepared: &Prepared) -> Result<(), Errno> {
    for namespace in &prepared.joined {
        rustix::thread::move_into_link_name_space(namespace.as_fd(), None)?;
    }
    if prepared.new_cgroup {
        // Its root is where this process is by now.
        nix::sched::unshare(CloneFlags::CLONE_NEWCGROUP)
            .map_err(|errno| Errno::from_raw_os_error(errno as i32))?;
    }
    Ok(())
}

/// Opens the terminal and hands the monitor its side.
fn open_terminal(
    prepared: &Prepared,
    root: &Root,
    socket: BorrowedFd<'_>,
) -> Result<exec::Stdio, Errno> {
    let process = &prepared.process;
    let terminal = dev::open_terminal(root, (process.uid, process.gid), prepared.own_dev)?;
    report::send_console(socket, terminal.master.as_fd())?;
    let copy = || rustix::io::fcntl_dupfd_cloexec(&terminal.slave, 3);
    Ok(exec::Stdio {
        stdin: copy()?,
        stdout: copy()?,
        stderr: copy()?,
    })
}

/// Streams and socket to 0-3, nothing else stays open.
fn connect(
    prepared: &Prepared,
    terminal: Option<exec::Stdio>,
    socket: BorrowedFd<'_>,
) -> Result<OwnedFd, Problem> {
    let connected = match prepared.stdio.as_ref().or(terminal.as_ref()) {
        Some(stdio) => steps::connect_streams(&prepared.process, stdio, socket),
        None => Err(Errno::BADF),
    };
    // Its numbers mean nothing any more.
    std::mem::forget(terminal);
    Ok(steps::at(Step::Streams, connected)?)
}

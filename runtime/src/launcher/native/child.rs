//! The child that becomes a container's first process.
//!
//! Owns the order: cgroups and labels while the host's files are there, then
//! namespaces, then the root, so that every path afterwards is the container's;
//! privileges last. Ends with a word about what went wrong, or waits.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sched::CloneFlags;
use rustix::fs::Mode;
use rustix::io::Errno;

use super::super::place::{Kind, Links};
use super::super::{ContainerStdio, Waiting, null};
use super::mounts::{Mask, Taken};
use super::prepare::Prepared;
use super::report::{self, Moments, Own, Problem};
use super::tree::{Held, Tree};
use super::{dev, inside, mounts};
use crate::exec::steps::Honoured;
use crate::exec::{self, Command, Step, birth, steps};
use crate::sys::fds;
use crate::sys::note::Note;

/// Exit code of a process whose program could not be executed.
const CANNOT_START: u8 = 128;

/// What the child says, waits at and notes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Handshake<'a> {
    /// Takes the words of `report`.
    pub(super) socket: BorrowedFd<'a>,
    /// What the process waits at.
    pub(super) start: Waiting<'a>,
    /// Who is born, in a pid namespace that others live in.
    pub(super) note: Option<&'a Note>,
}

/// The child's life: returns only when it failed.
pub(super) fn run(prepared: &Prepared, handshake: Handshake<'_>) -> u8 {
    let mut moments = Moments::default();
    let left = match leave(prepared, &mut moments) {
        Ok(left) => left,
        Err(problem) => return give_up(handshake.socket, problem),
    };
    match &prepared.process.user_space {
        None => go_on(prepared, handshake, (left, moments), false),
        Some(space) => inside::run(prepared, space, handshake, (left, moments)),
    }
}

/// What is had of the node when it is left.
pub(super) struct Left {
    /// What was honoured.
    pub(super) honoured: Honoured,
    /// What only the node's view gives.
    pub(super) taken: Taken,
}

/// The life of a process that is in its user namespace; a `sibling` of the one that has
/// left the monitor is not the first of a session yet.
pub(super) fn go_on(
    prepared: &Prepared,
    handshake: Handshake<'_>,
    (left, mut moments): (Left, Moments),
    sibling: bool,
) -> u8 {
    let Left { honoured, taken } = left;
    let set_up = set_up(prepared, handshake.socket, taken, &mut moments)
        .and_then(|stdio| connect(prepared, stdio, handshake));
    let [go, words, socket] = match set_up {
        Ok(done) => done,
        Err(problem) => return give_up(handshake.socket, problem),
    };
    let (go, words) = (fds::leave_open(go), fds::leave_open(words));
    let start = Waiting { go, words };
    let process = &prepared.process;
    let terminal = prepared.stdio.is_none();
    let Some(note) = handshake.note else {
        let session = match sibling {
            true => steps::begin_session(terminal),
            false => steps::take_terminal(terminal),
        };
        let taken_on = session.and_then(|()| steps::take_on(process, process.seccomp.as_ref()));
        if let Err(problem) = taken_on {
            return give_up(socket.as_fd(), problem.into());
        }
        if report::send_ready(socket.as_fd(), honoured, &moments).is_err() {
            return CANNOT_START;
        }
        drop(socket);
        return wait_and_execute(start, process.program.command());
    };
    let mut socket = Some(socket);
    // Nothing by which the monitor is reached is born with it.
    let done = || {
        if let Some(socket) = socket.take() {
            let _gone = report::send_ready(socket.as_fd(), honoured, &moments);
        }
    };
    let life = move |program: Result<Command<'static>, exec::Problem>| match program {
        Ok(program) => wait_and_execute(start, program),
        Err(exec::Problem { step, errno }) => {
            let (step, errno) = (step.name(), errno.raw_os_error());
            start.fail(format_args!("{step}: error {errno}"), false);
            CANNOT_START
        }
    };
    let problem = birth::take_on_and_cross(process, terminal, note, done, life);
    match socket {
        Some(socket) => give_up(socket.as_fd(), problem.into()),
        None => CANNOT_START,
    }
}

/// Waits for the start; returns only when there was none. Takes no memory.
fn wait_and_execute(start: Waiting<'_>, program: Command<'_>) -> u8 {
    if start.wait() {
        let refused = program.execute();
        start.fail(refused, refused.is_unusable());
    }
    // Without a monitor nobody would look after the container.
    CANNOT_START
}

pub(super) fn give_up(socket: BorrowedFd<'_>, problem: Problem) -> u8 {
    report::send_problem(socket, problem);
    CANNOT_START
}

/// What needs the node's view and rights.
fn leave(prepared: &Prepared, moments: &mut Moments) -> Result<Left, Problem> {
    let honoured = steps::leave_monitor(&prepared.process)?;
    moments.mark();
    // Modes are given as they are meant.
    rustix::process::umask(Mode::empty());
    let mut taken = Own::Cgroups.at(0, Taken::cgroups(&prepared.view, &prepared.mounts))?;
    if let Some(pids) = &prepared.pid_namespace {
        Own::Procfs.at(0, taken.procfs(pids, &prepared.mounts))?;
    }
    Ok(Left { honoured, taken })
}

/// Everything but the process itself; gives its streams.
fn set_up<'a>(
    prepared: &'a Prepared,
    socket: BorrowedFd<'_>,
    mut taken: Taken,
    moments: &mut Moments,
) -> Result<Streams<'a>, Problem> {
    Own::Namespaces.at(0, enter_namespaces(prepared))?;
    moments.mark();
    let is_inside = prepared.process.user_space.is_some();
    if is_inside {
        Own::Kernels.at(0, taken.make_kernels(&prepared.mounts))?;
    }
    Own::Root.at(0, mounts::enter(prepared.rootfs.as_fd()))?;
    let mut tree = Own::Root.at(0, Tree::own())?;
    moments.mark();
    for (index, mount) in prepared.mounts.iter().enumerate() {
        let made = mounts::make(&mut tree, mount, &prepared.view, &mut taken);
        Own::Mount.at(index, made)?;
    }
    moments.mark();
    if prepared.own_dev {
        Own::Dev.at(0, dev::fill(&mut tree, !is_inside))?;
        let missing = prepared.devices.iter().filter(|_| !is_inside);
        for (index, device) in missing.enumerate() {
            Own::Device.at(index, dev::make(&tree, device))?;
        }
        Own::Dev.at(0, dev::link(&tree))?;
    }
    make_directory(prepared, &tree);
    let stdio = match &prepared.stdio {
        Some(stdio) => Own::Streams.at(0, complete(stdio, &tree))?,
        None => Own::Terminal.at(0, open_terminal(prepared, &tree, socket))?,
    };
    restrict(prepared, &tree)?;
    moments.mark();
    Ok(stdio)
}

/// Makes the working directory where it is missing.
fn make_directory(prepared: &Prepared, tree: &Tree<'_>) {
    let cwd = prepared.process.cwd();
    if cwd != c"/" {
        // Why it is not there is told when it is entered.
        let _missing = tree.place(cwd, Kind::Directory, Links::Followed);
    }
}

/// Masks, paths and roots that are read-only.
fn restrict(prepared: &Prepared, tree: &Tree<'_>) -> Result<(), Problem> {
    for (index, path) in prepared.readonly.iter().enumerate() {
        Own::ReadOnly.at(index, mounts::make_readonly(tree, path))?;
    }
    let mut mask = Mask::default();
    for (index, path) in prepared.masked.iter().enumerate() {
        Own::Mask.at(index, mask.hide(tree, path))?;
    }
    if prepared.readonly_root {
        Own::RootFlags.at(0, mounts::make_root_readonly())?;
    }
    if prepared.shared_root {
        Own::RootFlags.at(0, mounts::share_root())?;
    }
    Ok(())
}

/// The streams of the process by their numbers.
type Streams<'a> = [Held<'a>; 3];

/// Streams with a null device of the container's own for each that is missing.
fn complete<'a>(given: &'a ContainerStdio, tree: &Tree<'_>) -> Result<Streams<'a>, Errno> {
    let stream = |stream: &'a Option<OwnedFd>| match (stream, tree.own_dev()) {
        (Some(stream), _) => Ok(Held::Given(stream.as_fd())),
        (None, Some(dev)) => null::open_in(dev).map(Held::Own),
        (None, None) => null::open().map(Held::Own),
    };
    Ok([
        stream(&given.stdin)?,
        stream(&given.stdout)?,
        stream(&given.stderr)?,
    ])
}

fn enter_namespaces(prepared: &Prepared) -> Result<(), Errno> {
    // That of pids becomes the children's.
    let pids = prepared.pid_namespace.as_ref().map(|pids| &pids.namespace);
    for namespace in prepared.joined.iter().chain(pids) {
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
    tree: &Tree<'_>,
    socket: BorrowedFd<'_>,
) -> Result<Streams<'static>, Errno> {
    let process = &prepared.process;
    let terminal = dev::open_terminal(tree, process.uid, prepared.own_dev)?;
    report::send_console(socket, terminal.master.as_fd())?;
    let copy = || rustix::io::fcntl_dupfd_cloexec(&terminal.slave, 3).map(Held::Own);
    Ok([copy()?, copy()?, copy()?])
}

/// Streams, start and socket to 0-5, nothing else stays open.
fn connect(
    prepared: &Prepared,
    stdio: Streams<'_>,
    handshake: Handshake<'_>,
) -> Result<[OwnedFd; 3], Problem> {
    let fds = stdio.each_ref().map(AsFd::as_fd);
    let others = [handshake.start.go, handshake.start.words, handshake.socket];
    let connected = steps::connect_streams(&prepared.process, fds, others);
    // Its numbers mean nothing any more.
    std::mem::forget(stdio);
    Ok(steps::at(Step::Streams, connected)?)
}

//! Steps on the way to a container's process, for its first one and for those
//! that are run beside it.
//!
//! Runs in the child of a clone. Descriptors of the monitor are closed before
//! the container's working directory is entered, since a path there may lead
//! through /proc/self/fd.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Gid, Rlimit, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets as ThreadCapabilities};

use super::keyring::Keyring;
use super::plan::{Label, Plan};
use super::report::{Problem, Step};
use crate::sys::fds::{Close, close_from, copy_to};
use crate::sys::seccomp_load::Filter;
use crate::sys::signals;
use crate::user_space::UserSpace;

/// Where other descriptors than the streams begin.
const FIRST_OTHER: i32 = 3;

/// What was honoured of wishes without which a process may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Honoured {
    /// The OOM score.
    pub(crate) score: bool,
    /// A session keyring of the container's own.
    pub(crate) keyring: bool,
}

/// What needs the host's view of files: signals, cgroups, OOM score, labels, keyring.
pub(crate) fn leave_monitor(plan: &Plan) -> Result<Honoured, Problem> {
    at(
        Step::Signals,
        signals::default_sigpipe().and_then(|()| signals::unblock_all()),
    )?;
    // A tracer of what is born could send signals to the monitor's process group.
    at(Step::Session, rustix::process::setsid().map(drop))?;
    for file in &plan.joined {
        at(Step::Cgroup, write_file(file, b"0"))?;
    }
    let mut honoured = Honoured {
        score: true,
        keyring: true,
    };
    if let Some(score) = &plan.oom_score_adj {
        honoured.score = at(Step::OomScore, set_oom_score(score.as_bytes()))?;
    }
    for label in &plan.labels {
        at(Step::Label, write_label(label))?;
    }
    if plan.user_space.is_none() {
        honoured.keyring = join_keyring(plan)?;
    }
    Ok(honoured)
}

/// Joins the container's session keyring, which belongs to the user and the user
/// namespace that its first process makes it in. Tells whether there is one.
pub(crate) fn join_keyring(plan: &Plan) -> Result<bool, Problem> {
    let joined = plan.keyring.as_ref().map(Keyring::join).transpose();
    Ok(at(Step::Keyring, joined)?.unwrap_or(true))
}

/// What takes rights that a process has not any more once it is in a user namespace:
/// limits above those that it has, and pipes that are to be its user's.
pub(crate) fn prepare_to_enter(
    plan: &Plan,
    space: &UserSpace,
    streams: &[BorrowedFd<'_>],
) -> Result<(), Problem> {
    for (resource, wanted) in &plan.rlimits {
        let now = rustix::process::getrlimit(*resource);
        // No limit at all is the highest one.
        let highest = now.maximum.zip(wanted.maximum);
        let maximum = highest.map(|(now, wanted)| now.max(wanted));
        if maximum != now.maximum {
            let raised = Rlimit { maximum, ..now };
            at(Step::Rlimit, rustix::process::setrlimit(*resource, raised))?;
        }
    }
    let ids = space.on_node(plan.uid.as_raw());
    let ids = ids.zip(space.on_node(plan.gid.as_raw()));
    let (uid, gid) = at(Step::Ids, ids.ok_or(Errno::INVAL))?;
    for stream in streams {
        if at(Step::Streams, is_pipe(*stream))? {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            let owned = rustix::fs::fchown(stream, Some(uid), Some(gid));
            at(Step::Streams, owned)?;
        }
    }
    Ok(())
}

fn is_pipe(stream: BorrowedFd<'_>) -> Result<bool, Errno> {
    let kind = rustix::fs::fstat(stream)?.st_mode;
    Ok(FileType::from_raw_mode(kind) == FileType::Fifo)
}

/// Begins a session; with a terminal, which is its standard input, as that one's.
pub(crate) fn begin_session(terminal: bool) -> Result<(), Problem> {
    at(Step::Session, rustix::process::setsid().map(drop))?;
    take_terminal(terminal)
}

/// Makes a terminal, which is the standard input, the one of this process's session.
pub(crate) fn take_terminal(terminal: bool) -> Result<(), Problem> {
    if terminal {
        let stdin = rustix::stdio::stdin();
        at(Step::Session, rustix::process::ioctl_tiocsctty(stdin))?;
    }
    Ok(())
}

/// What is the process's own, with this filter of system calls.
pub(crate) fn take_on(plan: &Plan, filter: Option<&Filter>) -> Result<(), Problem> {
    rustix::process::umask(plan.umask);
    let outside = enter_directory(plan)?;
    for (resource, limit) in &plan.rlimits {
        at(Step::Rlimit, rustix::process::setrlimit(*resource, *limit))?;
    }
    give_up_privileges(plan, filter)?;
    if outside {
        at(Step::Cwd, change_directory(&plan.cwd))?;
    }
    if plan.no_new_privileges {
        at(
            Step::NoNewPrivileges,
            rustix::thread::set_no_new_privs(true),
        )?;
        load_filter(filter)?;
    }
    Ok(())
}

pub(crate) fn at<T>(step: Step, result: Result<T, Errno>) -> Result<T, Problem> {
    result.map_err(|errno| Problem { step, errno })
}

fn write_file(path: &CStr, text: &[u8]) -> Result<(), Errno> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::retry_on_intr(|| rustix::io::write(&file, text)).map(drop)
}

/// Lowering the score needs CAP_SYS_RESOURCE: without it the process is a
/// likelier victim than was asked for, which harms nobody else. Tells whether
/// it was set.
fn set_oom_score(score: &[u8]) -> Result<bool, Errno> {
    match write_file(c"/proc/self/oom_score_adj", score) {
        Err(Errno::ACCESS | Errno::PERM) => Ok(false),
        other => other.map(|()| true),
    }
}

fn write_label(label: &Label) -> Result<(), Errno> {
    let mut result = Err(Errno::NOENT);
    for file in label.files {
        result = write_file(file, &label.value);
        if result != Err(Errno::NOENT) {
            break;
        }
    }
    result
}

/// Puts the streams to 0-2 and the others to the numbers behind them; closes everything
/// else.
pub(crate) fn connect_streams<const N: usize>(
    plan: &Plan,
    streams: [BorrowedFd<'_>; 3],
    others: [BorrowedFd<'_>; N],
) -> Result<[OwnedFd; N], Errno> {
    // Copies above all of them first: a source may be at one of the numbers to fill.
    let first_closed = FIRST_OTHER + i32::try_from(N).map_err(|_| Errno::INVAL)?;
    let copy = |fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, first_closed);
    let [stdin, stdout, stderr] = streams;
    let [stdin, stdout, stderr] = [copy(stdin)?, copy(stdout)?, copy(stderr)?];
    let mut copies = Vec::with_capacity(N);
    for other in others {
        copies.push(copy(other)?);
    }
    for stream in [&stdin, &stdout, &stderr] {
        own_pipe(plan, stream)?;
    }
    rustix::stdio::dup2_stdin(&stdin)?;
    rustix::stdio::dup2_stdout(&stdout)?;
    rustix::stdio::dup2_stderr(&stderr)?;
    let mut moved = Vec::with_capacity(N);
    for (copied, number) in copies.iter().zip(FIRST_OTHER..) {
        moved.push(copy_to(copied.as_fd(), number)?);
    }
    // These copies end with the range below; their owners must not run.
    std::mem::forget((stdin, stdout, stderr, copies));
    close_from(first_closed.cast_unsigned(), Close::Now)?;
    moved.try_into().map_err(|_| Errno::INVAL)
}

/// A process that is not root could not open /dev/stdout otherwise, which
/// leads to the pipe.
fn own_pipe(plan: &Plan, stream: &OwnedFd) -> Result<(), Errno> {
    let stat = rustix::fs::fstat(stream)?;
    let is_pipe = FileType::from_raw_mode(stat.st_mode) == FileType::Fifo;
    // In a user namespace its ids are that one's: the owner was changed before.
    if !is_pipe || stat.st_uid == plan.uid.as_raw() {
        return Ok(());
    }
    rustix::fs::fchown(stream, Some(plan.uid), Some(plan.gid))
}

/// Enters the working directory as root. `true`: the user has to try again,
/// since root may not (as on a network filesystem).
fn enter_directory(plan: &Plan) -> Result<bool, Problem> {
    match change_directory(&plan.cwd) {
        Err(Errno::ACCESS | Errno::PERM) => Ok(true),
        other => at(Step::Cwd, other).map(|()| false),
    }
}

fn change_directory(path: &CStr) -> Result<(), Errno> {
    rustix::process::chdir(path)?;
    // The kernel names a place outside of the root "(unreachable)".
    let here = rustix::process::getcwd(Vec::new())?;
    if here.to_bytes().first() == Some(&b'/') {
        Ok(())
    } else {
        Err(Errno::NOENT)
    }
}

/// Groups, user, capabilities; the filter before they are gone unless the
/// process may not get new privileges, which allows to load it last.
fn give_up_privileges(plan: &Plan, filter: Option<&Filter>) -> Result<(), Problem> {
    at(
        Step::Bounding,
        limit_bounding_set(plan.capabilities.bounding),
    )?;
    at(Step::Ids, rustix::thread::set_keep_capabilities(true))?;
    at(Step::Ids, rustix::thread::set_thread_groups(&plan.groups))?;
    at(
        Step::Ids,
        rustix::thread::set_thread_res_gid(plan.gid, plan.gid, plan.gid),
    )?;
    at(
        Step::Ids,
        rustix::thread::set_thread_res_uid(plan.uid, plan.uid, plan.uid),
    )?;
    if !plan.no_new_privileges {
        at(Step::Capabilities, regain_effective())?;
        load_filter(filter)?;
    }
    at(Step::Capabilities, set_capabilities(plan))?;
    at(Step::Ids, rustix::thread::set_keep_capabilities(false))
}

fn limit_bounding_set(bounding: u64) -> Result<(), Errno> {
    for number in 0..u64::BITS {
        let bit = 1 << number;
        if bounding & bit != 0 {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(
            bit,
        )) {
            // Behind the last one that the kernel knows.
            Err(Errno::INVAL) => break,
            other => other?,
        }
    }
    Ok(())
}

/// Leaving root emptied the effective set; the permitted one was kept.
fn regain_effective() -> Result<(), Errno> {
    let mut sets = rustix::thread::capabilities(None)?;
    sets.effective = sets.permitted;
    rustix::thread::set_capabilities(None, sets)
}

fn set_capabilities(plan: &Plan) -> Result<(), Errno> {
    let wanted = &plan.capabilities;
    let set = CapabilitySet::from_bits_retain;
    rustix::thread::set_capabilities(
        None,
        ThreadCapabilities {
            effective: set(wanted.effective),
            permitted: set(wanted.permitted),
            inheritable: set(wanted.inheritable),
        },
    )?;
    rustix::thread::clear_ambient_capability_set()?;
    for number in 0..u64::BITS {
        let bit = 1 << number;
        if wanted.ambient & bit != 0 {
            rustix::thread::configure_capability_in_ambient_set(set(bit), true)?;
        }
    }
    Ok(())
}

/// Puts the filter of system calls into force.
fn load_filter(filter: Option<&Filter>) -> Result<(), Problem> {
    filter.map_or(Ok(()), |filter| at(Step::Seccomp, filter.load()))
}

//! New processes that run Rust code of this one: `clone3`.
//!
//! Only for processes of one thread: the copy of a process with more may find
//! any lock of the others held for ever. The engine never comes here.

#![expect(unsafe_code, reason = "bare system calls")]

use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::process::Pid;

use super::note::Note;

/// `CLONE_INTO_CGROUP`, which does not fit the C library's type.
const INTO_CGROUP: u64 = 0x2_0000_0000;

/// Namespaces that the new process gets of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NewNamespaces {
    /// A pid namespace, whose first process it is.
    pub pid: bool,
    /// A copy of the mount namespace.
    pub mount: bool,
    /// An ipc namespace.
    pub ipc: bool,
    /// A uts namespace.
    pub uts: bool,
    /// A network namespace.
    pub network: bool,
}

impl NewNamespaces {
    fn flags(self) -> libc::c_int {
        [
            (self.pid, libc::CLONE_NEWPID),
            (self.mount, libc::CLONE_NEWNS),
            (self.ipc, libc::CLONE_NEWIPC),
            (self.uts, libc::CLONE_NEWUTS),
            (self.network, libc::CLONE_NEWNET),
        ]
        .iter()
        .filter(|(wanted, _)| *wanted)
        .fold(0, |flags, (_, flag)| flags | flag)
    }
}

/// A new process.
#[derive(Debug)]
pub struct Child {
    /// Its id, as seen from here.
    pub pid: Pid,
    /// A descriptor of it, closed on exec.
    pub pidfd: OwnedFd,
}

/// Ends the process when the child's code panics: unwinding would go on in the
/// parent's code, a second time.
struct EndOnUnwind(PhantomData<()>);

impl Drop for EndOnUnwind {
    fn drop(&mut self) {
        exit_now(255);
    }
}

/// Starts a copy of this process that runs `child` and exits with what it
/// returns. Destructors of the parent's values do not run in it.
///
/// # Errors
/// This process has more than one thread (`EDEADLK`), or the kernel's answer.
pub fn spawn(new: NewNamespaces, child: impl FnOnce() -> u8) -> Result<Child, Errno> {
    spawn_into(new, None, child)
}

/// Does what [`spawn`] does; the process is born in a cgroup of the v2 tree,
/// by a descriptor of its directory.
///
/// # Errors
/// See [`spawn`]; also those of joining the cgroup.
pub fn spawn_into(
    new: NewNamespaces,
    cgroup: Option<BorrowedFd<'_>>,
    child: impl FnOnce() -> u8,
) -> Result<Child, Errno> {
    let mut arguments = arguments(new);
    arguments.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
    be_born_in(&mut arguments, cgroup);
    clone(arguments, child)
}

/// Does what [`spawn_into`] does; the process is no child but a sibling: a child of
/// this process's parent, which is told of its end.
///
/// # Errors
/// See [`spawn`]; also those of joining the cgroup.
pub fn spawn_sibling_into(
    new: NewNamespaces,
    cgroup: Option<BorrowedFd<'_>>,
    child: impl FnOnce() -> u8,
) -> Result<Child, Errno> {
    let mut arguments = arguments(new);
    // Its exit signal is this process's own: the kernel wants none here.
    arguments.flags |= u64::from(libc::CLONE_PARENT.cast_unsigned());
    be_born_in(&mut arguments, cgroup);
    clone(arguments, child)
}

/// Does what [`spawn_sibling_into`] does without a cgroup. The sibling's id is noted
/// before it runs, whatever becomes of this process.
///
/// # Errors
/// See [`spawn`].
pub fn spawn_noted_sibling(
    new: NewNamespaces,
    note: &Note,
    child: impl FnOnce() -> u8,
) -> Result<Child, Errno> {
    let mut arguments = arguments(new);
    let flags = libc::CLONE_PARENT | libc::CLONE_PARENT_SETTID;
    arguments.flags |= u64::from(flags.cast_unsigned());
    arguments.parent_tid = note.place().expose_provenance() as u64;
    clone(arguments, child)
}

/// Ends this process at once, without destructors or exit handlers.
pub fn end(code: u8) -> ! {
    exit_now(code)
}

fn be_born_in(arguments: &mut libc::clone_args, cgroup: Option<BorrowedFd<'_>>) {
    if let Some(cgroup) = cgroup {
        arguments.flags |= INTO_CGROUP;
        arguments.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    }
}

fn clone(mut arguments: libc::clone_args, child: impl FnOnce() -> u8) -> Result<Child, Errno> {
    if thread_count()? != 1 {
        return Err(Errno::DEADLK);
    }
    let mut pidfd: RawFd = -1;
    arguments.pidfd = std::ptr::from_mut(&mut pidfd).expose_provenance() as u64;
    // SAFETY: without CLONE_VM the child has a copy of the memory, as after
    // fork. There is one thread, checked above, so no lock is held by another.
    // `pidfd` outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            std::ptr::from_mut(&mut arguments),
            size_of::<libc::clone_args>(),
        )
    };
    if result == 0 {
        let guard = EndOnUnwind(PhantomData);
        let code = child();
        std::mem::forget(guard);
        exit_now(code);
    }
    let pid = super::check(result)?;
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or(Errno::INVAL)?;
    // SAFETY: the kernel opened this descriptor for the call above and nobody
    // else knows it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Child { pid, pidfd })
}

fn arguments(new: NewNamespaces) -> libc::clone_args {
    // SAFETY: all fields are integers; zero is valid for each.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    let flags = libc::CLONE_PIDFD | new.flags();
    arguments.flags = u64::from(flags.cast_unsigned());
    arguments
}

/// The directory of threads has two links more than there are threads.
fn thread_count() -> Result<u64, Errno> {
    let stat = rustix::fs::stat(c"/proc/self/task")?;
    #[expect(
        clippy::useless_conversion,
        reason = "the type differs by architecture"
    )]
    Ok(u64::from(stat.st_nlink).saturating_sub(2))
}

/// Ends this process without running destructors or exit handlers.
fn exit_now(code: u8) -> ! {
    // SAFETY: _exit only ends the process.
    unsafe { libc::_exit(libc::c_int::from(code)) }
}

//! New processes that run Rust code of this one: `clone3`.
//!
//! Only for processes of one thread: the copy of a process with more may find
//! any lock of the others held for ever. The engine never comes here.

#![expect(unsafe_code, reason = "bare system calls")]

use std::marker::PhantomData;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::process::Pid;

/// Namespaces that the new process gets of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NewNamespaces {
    /// A pid namespace, whose first process it is.
    pub pid: bool,
    /// A copy of the mount namespace.
    pub mount: bool,
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
    if thread_count()? != 1 {
        return Err(Errno::DEADLK);
    }
    let mut pidfd: RawFd = -1;
    let mut flags = libc::CLONE_PIDFD;
    if new.pid {
        flags |= libc::CLONE_NEWPID;
    }
    if new.mount {
        flags |= libc::CLONE_NEWNS;
    }
    let mut arguments = clone_arguments();
    arguments.flags = u64::from(flags.cast_unsigned());
    arguments.pidfd = std::ptr::from_mut(&mut pidfd).expose_provenance() as u64;
    arguments.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
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

fn clone_arguments() -> libc::clone_args {
    // SAFETY: all fields are integers; zero is valid for each.
    unsafe { std::mem::zeroed() }
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

//! A process that holds a new user namespace open.
//!
//! unshare(CLONE_NEWUSER) is refused to threads of a larger process, so a
//! namespace needs a process of its own until a descriptor keeps it.

#![expect(unsafe_code, reason = "a bare system call")]

use std::ffi::c_long;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

/// The helper process; dropping it kills and reaps it.
#[derive(Debug)]
pub(crate) struct Holder {
    pid: i32,
    pidfd: OwnedFd,
}

impl Holder {
    /// Starts the helper in a new user namespace without any mapping. It ends
    /// with the calling thread at the latest.
    pub(crate) fn spawn() -> io::Result<Self> {
        let mut raw_pidfd: i32 = -1;
        // An exit signal of 0 keeps this child from wait calls and SIGCHLD
        // handlers that look after other children.
        // SAFETY: all-zero is a valid value of this plain struct of integers,
        // and means "unused" for every field of it.
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        args.flags = (libc::CLONE_NEWUSER | libc::CLONE_PIDFD)
            .cast_unsigned()
            .into();
        args.pidfd = (&raw mut raw_pidfd).expose_provenance() as u64;
        // SAFETY: without CLONE_VM the child gets its own copy of this memory
        // and stack. It may hold copies of locks that other threads had taken,
        // so it only makes the two direct system calls below.
        let pid: c_long = unsafe {
            libc::syscall(
                libc::SYS_clone3,
                &raw mut args,
                size_of::<libc::clone_args>(),
            )
        };
        match i32::try_from(pid) {
            Ok(0) => hold(),
            Ok(pid) if pid > 0 => {
                // SAFETY: with CLONE_PIDFD a successful clone3 stores a new
                // descriptor there, which nobody else knows.
                let pidfd = unsafe { OwnedFd::from_raw_fd(raw_pidfd) };
                Ok(Self { pid, pidfd })
            }
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // Neither can fail while the pidfd is of an unreaped child of ours.
        let _killed = pidfd_send_signal(&self.pidfd, Signal::KILL);
        // __WALL: a child without an exit signal is not seen otherwise.
        let options =
            WaitIdOptions::EXITED | WaitIdOptions::from_bits_retain(libc::__WALL.cast_unsigned());
        let _reaped = waitid(WaitId::PidFd(self.pidfd.as_fd()), options);
    }
}

/// The helper's whole life.
fn hold() -> ! {
    // SAFETY: prctl with these arguments only changes this process, and pause
    // takes none; both are bare system calls that touch no shared state.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        loop {
            libc::syscall(libc::SYS_pause);
        }
    }
}

//! Signal dispositions and masks.

#![expect(unsafe_code, reason = "bare system calls")]

use nix::sys::signal::{SigHandler, SigSet, Signal};
use rustix::io::Errno;
use rustix::process::Pid;

/// Highest number of a signal.
const LAST_SIGNAL: libc::c_int = 64;

/// Gives every signal its default disposition and blocks none: what a program
/// expects to begin with. Rust ignores `SIGPIPE` in every program it starts,
/// and whatever is ignored stays so in all that are executed.
///
/// # Errors
/// The kernel's answer.
pub fn reset_all() -> Result<(), Errno> {
    for signal in 1..=LAST_SIGNAL {
        if signal != libc::SIGKILL && signal != libc::SIGSTOP {
            set_default_raw(signal)?;
        }
    }
    unblock_all()
}

/// Ignores `SIGPIPE`: writing to a reader that is gone is an error then.
///
/// # Errors
/// The kernel's answer.
pub fn ignore_sigpipe() -> Result<(), Errno> {
    // SAFETY: SigIgn runs no code of this process.
    let previous = unsafe { nix::sys::signal::signal(Signal::SIGPIPE, SigHandler::SigIgn) };
    previous.map(drop).map_err(from_nix)
}

/// Undoes what Rust's start did: `SIGPIPE` gets its default back.
///
/// # Errors
/// The kernel's answer.
pub fn default_sigpipe() -> Result<(), Errno> {
    set_default(Signal::SIGPIPE)
}

/// Blocks no signal.
///
/// # Errors
/// The kernel's answer.
pub fn unblock_all() -> Result<(), Errno> {
    SigSet::empty().thread_set_mask().map_err(from_nix)
}

/// Sends a signal by its number, real time signals included.
///
/// # Errors
/// The kernel's answer: `EINVAL` for what is no signal, `ESRCH` for a process
/// that is gone.
pub fn send(process: Pid, signal: i32) -> Result<(), Errno> {
    // SAFETY: kill reads no memory of this process.
    let result = unsafe { libc::kill(process.as_raw_nonzero().get(), signal) };
    super::check(result.into()).map(drop)
}

/// The C library keeps two signals to itself and would refuse to reset them,
/// but a parent may have ignored these as any other.
fn set_default_raw(signal: libc::c_int) -> Result<(), Errno> {
    // The kernel's sigaction: handler, flags, restorer and mask, 8 bytes each
    // on every 64 bit machine; all zero is the default disposition.
    let default = [0_u64; 4];
    // SAFETY: the kernel reads 32 bytes at most from the array, writes nothing,
    // and the default disposition runs no code of this process.
    let result = unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            signal,
            default.as_ptr(),
            std::ptr::null::<u64>(),
            size_of::<u64>(),
        )
    };
    super::check(result).map(drop)
}

fn set_default(signal: Signal) -> Result<(), Errno> {
    // SAFETY: SigDfl runs no code of this process.
    let previous = unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) };
    previous.map(drop).map_err(from_nix)
}

fn from_nix(errno: nix::errno::Errno) -> Errno {
    Errno::from_raw_os_error(errno as i32)
}

//! Signal dispositions and masks.

#![expect(unsafe_code, reason = "bare system calls")]

use nix::sys::signal::{SigHandler, SigSet, Signal};
use rustix::io::Errno;

/// Gives every signal its default disposition and blocks none: what a program
/// expects to begin with. Rust ignores `SIGPIPE` in every program it starts,
/// and whatever is ignored stays so in all that are executed.
///
/// # Errors
/// The kernel's answer.
pub fn reset_all() -> Result<(), Errno> {
    for signal in Signal::iterator() {
        if matches!(signal, Signal::SIGKILL | Signal::SIGSTOP) {
            continue;
        }
        set_default(signal)?;
    }
    for signal in libc::SIGRTMIN()..=libc::SIGRTMAX() {
        // SAFETY: SIG_DFL runs no code of this process.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    unblock_all()
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

fn set_default(signal: Signal) -> Result<(), Errno> {
    // SAFETY: SigDfl runs no code of this process.
    let previous = unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) };
    previous.map(drop).map_err(from_nix)
}

fn from_nix(errno: nix::errno::Errno) -> Errno {
    Errno::from_raw_os_error(errno as i32)
}

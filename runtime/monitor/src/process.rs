//! Children of the monitor, by their numbers.
//!
//! A child keeps its number until it is reaped, which [`crate::reap`] alone does: until
//! then a signal reaches the child and nobody else. Knows no container and no command.

use rustix::io::Errno;
use rustix::process::{Pid, WaitStatus};

/// SIGKILL.
pub(crate) const KILL: i32 = 9;

/// Signals a child that is not reaped; one that ended is fine.
pub(crate) fn send_signal(pid: Pid, signal: i32) -> Result<(), Errno> {
    match runtime::sys::signals::send(pid, signal) {
        Err(Errno::SRCH) => Ok(()),
        other => other,
    }
}

/// A process id as a number.
pub(crate) fn raw(pid: Pid) -> i32 {
    pid.as_raw_nonzero().get()
}

/// The exit code that a shell would tell.
pub(crate) fn exit_code(status: WaitStatus) -> i32 {
    let signal = status.terminating_signal();
    signal.map_or_else(|| status.exit_status().unwrap_or(255), |n| 128 + n)
}

//! What the monitor has done in a pod's user namespace, which it never enters itself: it
//! needs its rights over the node. Short-lived children do it.

use std::os::fd::AsFd;

use runtime::protocol::{Failure, Sysctl};
use runtime::sys::fork::{self, NewNamespaces};
use runtime::user_space::UserSpace;
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions};

use crate::setup::{failed, set_sysctl};

/// Longest words of a child about what went wrong.
const WORDS: usize = 1024;

/// Sets kernel parameters as root of the pod's user namespace, in the namespaces of
/// this process.
pub(crate) fn set_sysctls(space: &UserSpace, sysctls: &[Sysctl]) -> Result<(), Failure> {
    if sysctls.is_empty() {
        return Ok(());
    }
    run(space, "set kernel parameters", || {
        let set = sysctls.iter().try_for_each(set_sysctl);
        set.map_err(|failure| format!("{}: {}", failure.subject, failure.message))
    })
}

/// Does something in a child that has entered the user namespace, and waits for it.
fn run(
    space: &UserSpace,
    step: &'static str,
    work: impl FnOnce() -> Result<(), String>,
) -> Result<(), Failure> {
    let failed = |errno: Errno| failed(step, errno);
    let (heard, words) = rustix::pipe::pipe().map_err(failed)?;
    let child = fork::spawn(NewNamespaces::default(), || {
        let entered = space.enter().map_err(|errno| errno.to_string());
        match entered.and_then(|()| work()) {
            Ok(()) => 0,
            Err(message) => {
                let bytes = message.as_bytes();
                let _lost = rustix::io::write(&words, bytes.get(..WORDS).unwrap_or(bytes));
                1
            }
        }
    });
    let child = child.map_err(failed)?;
    drop(words);
    let ended = rustix::process::waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED);
    if ended.map_err(failed)?.and_then(|ended| ended.exit_status()) == Some(0) {
        return Ok(());
    }
    let mut message = [0; WORDS];
    let length = rustix::io::read(&heard, &mut message).unwrap_or_default();
    let message = String::from_utf8_lossy(message.get(..length).unwrap_or_default());
    Err(crate::setup::failed(step, message))
}

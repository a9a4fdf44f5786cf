//! What the monitor has done in a pod's user namespace, which it never enters itself: it
//! needs its rights over the node. Short-lived children do it.

use std::os::fd::AsFd;

use runtime::protocol::{Failure, Sysctl};
use runtime::sys::fork::{self, NewNamespaces};
use runtime::user_space::UserSpace;
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions};

use crate::setup::{failed, set_sysctl};

/// Bytes of a child's words about what went wrong: as many as a pipe takes at once, since
/// nobody reads before the child has ended.
const WORDS: usize = 4096;
/// Bytes of them for what it is about: the name of a parameter may be of any length.
const SUBJECT: usize = 1024;

/// Sets kernel parameters as root of the pod's user namespace, in the namespaces of
/// this process.
pub(crate) fn set_sysctls(space: &UserSpace, sysctls: &[Sysctl]) -> Result<(), Failure> {
    if sysctls.is_empty() {
        return Ok(());
    }
    run(space, "set kernel parameters", || {
        sysctls.iter().try_for_each(set_sysctl)
    })
}

/// Does something in a child that has entered the user namespace, and waits for it.
fn run(
    space: &UserSpace,
    step: &'static str,
    work: impl FnOnce() -> Result<(), Failure>,
) -> Result<(), Failure> {
    let failed = |errno: Errno| failed(step, errno);
    let (heard, says) = rustix::pipe::pipe().map_err(failed)?;
    let child = fork::spawn(NewNamespaces::default(), || {
        let entered = space.enter().map_err(failed);
        match entered.and_then(|()| work()) {
            Ok(()) => 0,
            Err(Failure {
                subject, message, ..
            }) => {
                let subject = subject.get(..subject.floor_char_boundary(SUBJECT));
                let subject = subject.unwrap_or_default();
                let mut words = format!("{subject}\0{message}").into_bytes();
                words.truncate(WORDS);
                let said = rustix::io::write(&says, &words);
                u8::from(said.is_err()) + 1
            }
        }
    });
    let child = child.map_err(failed)?;
    drop(says);
    let ended = rustix::process::waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED);
    if ended.map_err(failed)?.and_then(|ended| ended.exit_status()) == Some(0) {
        return Ok(());
    }
    let mut said = vec![0; WORDS];
    let length = rustix::io::read(&heard, &mut said).unwrap_or_default();
    said.truncate(length);
    let said = String::from_utf8_lossy(&said);
    match said.split_once('\0') {
        Some((step, message)) => Err(crate::setup::failed(step, message)),
        None => Err(failed(Errno::CHILD)),
    }
}

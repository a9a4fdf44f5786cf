//! Being born in a container's pid namespace with nothing left to take.
//!
//! Whoever lives in a pid namespace can be traced from there by a process with
//! `CAP_SYS_PTRACE`: its memory, its root, its descriptors and what it may do are the
//! tracer's. So a process that still has something of the node never lives there. An
//! intermediate process, which does not, enters all other namespaces, closes what is
//! the monitor's, takes on the user, the capabilities and the filter of system calls,
//! and only then copies itself into the pid namespace: what is born there reaches no
//! more than the container's own processes do. It still *knows* more: until execve its
//! memory is a copy of the monitor's, with what that keeps of the pod's containers.
//!
//! ```text
//! monitor ─clone─▶ intermediate: cgroups, namespaces, root, descriptors, privileges
//!    │                  └──clone(CLONE_PARENT)──▶ born: waits ─▶ session ─▶ execve
//!    ◀─────"born N"─────┤                           ▲
//!                       └────────── "go" ───────────┘   then it ends
//! ```
//! The copy shares no memory with the intermediate, which would be the tracer's then,
//! out of the container's pid namespace. It waits for a word that comes after its id
//! was told: one whose intermediate was killed before ends by itself, and no process is
//! left that the monitor does not know.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::Pid;

use super::plan::Plan;
use super::report::{Problem, Step};
use super::steps::{self, Filtered, at};
use crate::sys::fork;

/// Where the intermediate process tells the other to go on.
#[derive(Debug)]
pub(crate) struct Gate {
    go: OwnedFd,
    wait: OwnedFd,
}

impl Gate {
    /// Makes it. Before a filter of system calls is in force.
    pub(crate) fn new() -> Result<Self, Problem> {
        let (wait, go) = at(Step::Birth, rustix::pipe::pipe_with(PipeFlags::CLOEXEC))?;
        Ok(Self { go, wait })
    }

    /// Copies this process into the pid namespace of its children, and goes on there;
    /// this process ends. `tell` makes the id known.
    fn pass(self, tell: impl FnOnce(Pid) -> Result<(), Errno>) -> Result<(), Errno> {
        let Self { go, wait } = self;
        if let Some(pid) = fork::go_on_as_sibling()? {
            let told = tell(pid).and_then(|()| rustix::io::write(&go, b"g").map(drop));
            fork::end(u8::from(told.is_err()));
        }
        // It would hold its own end open.
        drop(go);
        let word = rustix::io::retry_on_intr(|| rustix::io::read(&wait, &mut [0; 1]));
        if word != Ok(1) {
            fork::end(UNKNOWN);
        }
        Ok(())
    }
}

/// Exit code of a process that the monitor was not told of.
const UNKNOWN: u8 = 127;

/// Takes on what is the process's own and goes on as a process that is born in the pid
/// namespace of this one's children.
pub(crate) fn take_on_and_cross(
    plan: &Plan,
    terminal: bool,
    tell: impl FnOnce(Pid) -> Result<(), Errno>,
) -> Result<(), Problem> {
    let gate = Gate::new()?;
    let filtered = filter_time(plan, terminal)?;
    steps::take_on(plan, filtered)?;
    at(Step::Birth, gate.pass(tell))?;
    steps::begin_session(terminal)?;
    match filtered {
        Filtered::Now => Ok(()),
        Filtered::Later => steps::load_filter(plan),
    }
}

/// Makes this process the reaper of what descends from it, by which all of that is found
/// when it has to end. One whose filter does not let it ask for that goes without.
pub(crate) fn reap_own(plan: &Plan) {
    let filter = plan.seccomp.as_ref();
    if filter.is_none_or(|filter| filter.allows(libc::SYS_prctl, SUBREAPER)) {
        let own = rustix::process::getpid();
        let _left = rustix::process::set_child_subreaper(Some(own));
    }
}

/// `PR_SET_CHILD_SUBREAPER`.
const SUBREAPER: u64 = 36;

/// When the filter comes into force. Loading it before the birth leaves nothing to do
/// that takes a privilege; where it does not let a birth pass, it can come later only
/// if that takes none.
fn filter_time(plan: &Plan, terminal: bool) -> Result<Filtered, Problem> {
    let Some(filter) = &plan.seccomp else {
        return Ok(Filtered::Now);
    };
    let flags = u64::try_from(fork::CLONE_PARENT).unwrap_or_default();
    let others = [
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_close,
        libc::SYS_setsid,
    ];
    let passes = filter.allows(libc::SYS_clone, flags)
        && others.iter().all(|number| filter.allows(*number, 0))
        && (!terminal || filter.allows(libc::SYS_ioctl, 0));
    match (passes, plan.no_new_privileges) {
        (true, _) => Ok(Filtered::Now),
        (false, true) => Ok(Filtered::Later),
        (false, false) => at(Step::Birth, Err(Errno::OPNOTSUPP)),
    }
}

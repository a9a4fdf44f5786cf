//! Being born in a container's pid namespace with nothing left to take.
//!
//! Whoever lives in a pid namespace can be traced from there by a process with
//! `CAP_SYS_PTRACE`: its memory, its root, its descriptors and what it may do are the
//! tracer's. So a process that still has something of the node never lives there. An
//! intermediate process, which does not, enters all other namespaces, closes what is
//! the monitor's, takes on the user, the capabilities and the filter of system calls,
//! packs what the program needs, and only then makes a process in the pid namespace
//! that has no other memory ([`crate::sys::parcel`]): what is born there reaches and
//! knows no more than the container's own processes do.
//!
//! ```text
//! monitor ─clone─▶ intermediate: cgroups, namespaces, root, descriptors, privileges
//!    │                  ├──clone(CLONE_PARENT)──▶ born: session ─▶ execve
//!    ◀──note "born N"───┘ ends
//! ```
//! The two share no memory, which would be the tracer's then, out of the container's
//! pid namespace. Nor does what is born hold anything by which the monitor is told who
//! it is, or by which the monitor itself can be reached: a socket tells its holder who
//! has the other end (`SO_PEERPIDFD`), and whoever holds a process's pidfd and may trace
//! has its descriptors. The kernel notes the id in memory that monitor and intermediate
//! share, before what is born runs ([`crate::sys::note`]): whenever the intermediate
//! ends, the monitor knows.

use std::convert::Infallible;

use rustix::io::Errno;

use super::plan::Plan;
use super::program::Command;
use super::report::{Problem, Step};
use super::steps::{self, at};
use crate::sys::fork;
use crate::sys::note::Note;
use crate::sys::parcel::{CLONE_FLAGS, Parcel};
use crate::sys::seccomp_load::Filter;

/// Takes on what is the process's own, calls `done`, and has `life` go on as a process
/// that is born in the pid namespace of this one's children; this process ends. Who is
/// born is noted. Returns only when there is no such process.
///
/// `life` runs where there is no heap: see [`crate::sys::parcel`]. `done` is to close
/// whatever must not be born with it.
pub(crate) fn take_on_and_cross(
    plan: &Plan,
    terminal: bool,
    note: &Note,
    done: impl FnOnce(),
    life: impl FnOnce(Result<Command<'static>, Problem>) -> u8 + Copy + 'static,
) -> Problem {
    match cross(plan, terminal, note, done, life) {
        Err(problem) => problem,
        Ok(never) => match never {},
    }
}

fn cross(
    plan: &Plan,
    terminal: bool,
    note: &Note,
    done: impl FnOnce(),
    life: impl FnOnce(Result<Command<'static>, Problem>) -> u8 + Copy + 'static,
) -> Result<Infallible, Problem> {
    let wider = wider_filter(plan, terminal)?;
    let later = plan.seccomp.as_ref().filter(|_| wider.is_some());
    let room = later.map_or(0, |filter| filter.room());
    let mut parcel = at(Step::Birth, Parcel::new(plan.program.room() + room))?;
    let program = at(Step::Birth, plan.program.pack(&mut parcel))?;
    let packed = later.map(|filter| filter.pack(&mut parcel)).transpose();
    let filter = at(Step::Birth, packed)?;
    let closed = parcel.close(move || {
        let ready = steps::begin_session(terminal);
        let load = || filter.map_or(Ok(()), |filter| at(Step::Seccomp, filter.load()));
        life(ready.and_then(|()| load()).map(|()| program))
    });
    let closed = at(Step::Birth, closed)?;
    steps::take_on(plan, wider.as_ref().or(plan.seccomp.as_ref()))?;
    done();
    if let Err(errno) = closed.go(note) {
        note.fail(errno);
        at(Step::Birth, Err(errno))?;
    }
    fork::end(0)
}

/// Whether a process may become the reaper of what descends from it, by which all of
/// that is found when it has to end. One whose filter does not let it ask for that goes
/// without.
pub(crate) fn may_reap(plan: &Plan) -> bool {
    let filter = plan.seccomp.as_ref();
    filter.is_none_or(|filter| filter.allows(libc::SYS_prctl, SUBREAPER))
}

/// Makes this process that reaper.
pub(crate) fn reap_own() {
    let own = rustix::process::getpid();
    let _left = rustix::process::set_child_subreaper(Some(own));
}

/// `PR_SET_CHILD_SUBREAPER`.
const SUBREAPER: u64 = 36;

/// The filter to be born with, where the process's own does not let a birth pass: it
/// allows that in addition. The own one comes behind it, which takes no privilege if new
/// ones are off limits. `None`: the own one does.
fn wider_filter(plan: &Plan, terminal: bool) -> Result<Option<Filter>, Problem> {
    let Some(filter) = &plan.seccomp else {
        return Ok(None);
    };
    let calls = [libc::SYS_setsid, libc::SYS_ioctl];
    let calls = if terminal { &calls[..] } else { &calls[..1] };
    let passes = filter.allows(libc::SYS_clone, CLONE_FLAGS.into())
        && calls.iter().all(|number| filter.allows(*number, 0));
    if passes {
        return Ok(None);
    }
    let calls = [calls, &[libc::SYS_seccomp]].concat();
    let wider = filter.widened(&calls, CLONE_FLAGS);
    match wider.filter(|_| plan.no_new_privileges) {
        Some(wider) => Ok(Some(wider)),
        None => at(Step::Birth, Err(Errno::OPNOTSUPP)),
    }
}

//! Killing all processes of a cgroup by the freezer of cgroup v1. The v2 tree has `cgroup.kill`.
//!
//! Whoever lists processes and kills them one by one is outrun by a fork bomb. Frozen processes
//! fork no more: the list is complete then, and SIGKILL is delivered when the cgroup is thawed.
//!
//! A container may freeze cgroups of its own below its cgroup. These stay frozen when that is
//! thawed, so each is thawed by itself, and empty ones are removed: a call that runs out of time
//! leaves less to the next one. Another process that kills the same cgroup may thaw it at any
//! moment, so signals go to pidfds that were checked, as everywhere (`pidfd`). A crash leaves the
//! cgroup frozen; the next kill thaws it.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::joining::PROCS;
use crate::{pidfd, subtree};

/// The freezer's file.
pub const STATE: &str = "freezer.state";
const THAWED: &str = "THAWED";
/// The first pause before the processes are listed again.
const PAUSE: Duration = Duration::from_micros(200);

/// Freezes a cgroup with all below it, kills every process, and thaws it. It is done once
/// all are frozen, or then: a process that waits for a dead disk is never frozen, and
/// makes no others. Most of the time is waited, however long a round takes.
///
/// # Errors
/// The directory is no cgroup of the freezer, or one below cannot be looked at; timed
/// out: `gives_up`, which is asked at each cgroup, said so. What is gone meanwhile is fine.
pub fn kill(dir: &Path, until: Instant, gives_up: impl Fn() -> bool) -> io::Result<()> {
    let state = dir.join(STATE);
    let look = |dir: BorrowedFd<'_>| match gives_up() {
        true => Err(io::ErrorKind::TimedOut.into()),
        false => kill_listed(dir),
    };
    std::fs::write(&state, "FROZEN")?;
    let mut pause = PAUSE;
    let killed = loop {
        let began = Instant::now();
        // Asked before: what is listed once all are frozen is all.
        let frozen = std::fs::read_to_string(&state).is_ok_and(|text| text.trim() == "FROZEN");
        let killed = subtree::visit_busy(dir, look);
        let now = Instant::now();
        if frozen || now >= until || gives_up() {
            break killed;
        }
        std::thread::sleep(pause.max((now - began) * 3).min(until - now));
        pause *= 2;
    };
    // All that it froze, whatever becomes of the others.
    std::fs::write(&state, THAWED)?;
    killed.and_then(|()| thaw(dir, gives_up))
}

/// Thaws a cgroup and all below it.
///
/// # Errors
/// One of them cannot be looked at; timed out, as [`kill`]. What is not there is fine.
pub fn thaw(dir: &Path, gives_up: impl Fn() -> bool) -> io::Result<()> {
    subtree::visit_busy(dir, |dir| match subtree::read(dir, STATE)? {
        _ if gives_up() => Err(io::ErrorKind::TimedOut.into()),
        Some(state) if state.trim() != THAWED => subtree::write(dir, STATE, THAWED),
        _ => Ok(()),
    })
}

fn kill_listed(dir: BorrowedFd<'_>) -> io::Result<()> {
    let list = || {
        Ok(pidfd::parsed(
            &subtree::read(dir, PROCS)?.unwrap_or_default(),
        ))
    };
    pidfd::kill_listed(list).map(drop)
}

//! Killing everything in a cgroup of the v1 freezer.
//!
//! Processes that make others as fast as they can outrun whoever lists and kills them.
//! Frozen ones make none: what is listed then is all, and has its end pending when the
//! cgroup is thawed. A container may have frozen cgroups of its own below, which stay so
//! when the ones above are thawed: each is thawed. Whoever else kills the cgroup may thaw
//! it at any moment, so numbers are trusted no more than elsewhere. The v2 tree has
//! `cgroup.kill` for the same. A crash in between leaves a frozen cgroup; whoever kills it
//! again thaws it.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use crate::ways::PROCS;
use crate::{pidfd, subtree};

/// The freezer's file.
pub const STATE: &str = "freezer.state";
const THAWED: &str = "THAWED";
/// How often the processes are listed until all of them are frozen.
const ROUNDS: usize = 200;

/// Freezes a cgroup with all below it, kills every process, and thaws it.
///
/// # Errors
/// The directory is no cgroup of the freezer, or one below cannot be looked at. What is
/// gone meanwhile is fine.
pub fn kill(dir: &Path) -> io::Result<()> {
    let state = dir.join(STATE);
    std::fs::write(&state, "FROZEN")?;
    let mut killed = Ok(());
    for _ in 0..ROUNDS {
        // Asked before: what is listed once all are frozen is all.
        let frozen = std::fs::read_to_string(&state).is_ok_and(|text| text.trim() == "FROZEN");
        killed = subtree::visit(dir, kill_listed);
        if frozen {
            break;
        }
    }
    thaw(dir)?;
    killed
}

/// Thaws a cgroup and all below it.
///
/// # Errors
/// One of them cannot be looked at. What is not there is fine.
pub fn thaw(dir: &Path) -> io::Result<()> {
    subtree::visit(dir, |dir| match subtree::read(dir, STATE)? {
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

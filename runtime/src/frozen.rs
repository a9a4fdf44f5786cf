//! Killing everything in a cgroup of the v1 freezer.
//!
//! Processes that make others as fast as they can outrun whoever lists and kills them.
//! Frozen ones make none: what is listed then is all, and has its end pending when the
//! cgroup is thawed. Whoever else kills the cgroup may thaw it at any moment, so numbers
//! are trusted no more than elsewhere. The v2 tree has `cgroup.kill` for the same. A crash in
//! between leaves a frozen cgroup; whoever kills it again thaws it.

use std::io;
use std::path::Path;

use crate::pidfd;
use crate::ways::PROCS;

/// The freezer's file.
pub const STATE: &str = "freezer.state";
/// How often the processes are listed until all of them are frozen.
const ROUNDS: usize = 200;

/// Freezes a cgroup with all below it, kills every process, and thaws it.
///
/// # Errors
/// The directory is no cgroup of the freezer. What is gone meanwhile is fine.
pub fn kill(dir: &Path) -> io::Result<()> {
    let state = dir.join(STATE);
    std::fs::write(&state, "FROZEN")?;
    for _ in 0..ROUNDS {
        // Asked before: what is listed once all are frozen is all.
        let frozen = std::fs::read_to_string(&state).is_ok_and(|text| text.trim() == "FROZEN");
        kill_listed(dir);
        if frozen {
            break;
        }
    }
    std::fs::write(&state, "THAWED")
}

fn kill_listed(dir: &Path) {
    let procs = dir.join(PROCS);
    let _unread = pidfd::kill_listed(|| pidfd::listed(&procs));
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            kill_listed(&entry.path());
        }
    }
}

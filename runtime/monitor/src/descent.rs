//! Everything that descends from a process.
//!
//! Owns looking for it and killing it. A process that is a reaper of its own keeps
//! all of its descendants as long as it lives, whatever sessions they began; so they are
//! stopped before any is killed, from the top: what is stopped neither makes others nor
//! ends and leaves them to somebody else.

use std::collections::BTreeMap;

use rustix::process::Pid;

use crate::container::{KILL, raw, send_signal};

/// SIGSTOP.
const STOP: i32 = 19;
/// How often descendants are looked for: each round stops what was born meanwhile.
const ROUNDS: usize = 64;

/// Kills what descends from a child of this process, but not the child itself.
pub(crate) fn kill(ancestor: Pid) {
    let _gone = send_signal(ancestor, STOP);
    let mut stopped: Vec<Pid> = Vec::new();
    for _ in 0..ROUNDS {
        let found = descendants(ancestor);
        let new: Vec<Pid> = found
            .into_iter()
            .filter(|pid| !stopped.contains(pid))
            .collect();
        if new.is_empty() {
            break;
        }
        for pid in &new {
            let _gone = send_signal(*pid, STOP);
        }
        stopped.extend(new);
    }
    // Stopped and not reaped, their numbers are still theirs.
    for pid in stopped {
        let _gone = send_signal(pid, KILL);
    }
}

/// All that descend from a process and are not dead.
fn descendants(ancestor: Pid) -> Vec<Pid> {
    let mut children: BTreeMap<i32, Vec<Pid>> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.parse().ok());
        let Some(pid) = number.and_then(Pid::from_raw) else {
            continue;
        };
        if let Some(parent) = parent_of(&entry.path()) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut next = vec![ancestor];
    while let Some(parent) = next.pop() {
        let Some(of_parent) = children.remove(&raw(parent)) else {
            continue;
        };
        next.extend(&of_parent);
        found.extend(of_parent);
    }
    found
}

/// The parent of a process that is not dead.
fn parent_of(process: &std::path::Path) -> Option<i32> {
    let stat = std::fs::read_to_string(process.join("stat")).ok()?;
    // The name in brackets may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(parent)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn children_of_children_are_found_and_killed() {
        let script = "setsid sh -c 'sleep 1000 & sleep 1000' & sleep 1000";
        let mut shell = Command::new("sh");
        shell.args(["-c", script]).stdout(Stdio::null());
        let mut child = shell.spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while descendants(pid).len() < 4 {
            assert!(std::time::Instant::now() < end, "{:?}", descendants(pid));
        }
        kill(pid);
        while !descendants(pid).is_empty() {
            assert!(std::time::Instant::now() < end, "{:?}", descendants(pid));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

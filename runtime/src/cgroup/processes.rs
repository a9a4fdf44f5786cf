//! Counts the processes of a cgroup and what they hold open.
//!
//! Only reads, and nothing that a process could let wait: neither its memory nor the files
//! that its descriptors are of. How much is read has a bound, since a container decides how
//! many descriptors there are.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, RawDir};

use super::tree::collect_pids;
use super::{Cgroup, CgroupError};
use crate::procfs::is_gone;

/// Descriptors of one cgroup that are looked at: a microsecond each, or two.
const MOST: u64 = 1 << 16;
/// So many descriptors a process counts for beside those that it has, as it takes as long
/// to open the list of them.
const PROCESS: u64 = 8;

/// The processes of a cgroup and of those below it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Processes {
    /// How many there are.
    pub count: u64,
    /// What they hold open; `None` where that is too much to be counted.
    pub descriptors: Option<Descriptors>,
    /// How many descriptors the first process may have, `u64::MAX` without a limit;
    /// `None` where it is not in the cgroup any more.
    pub open_files_limit: Option<u64>,
}

/// Open descriptors. One that several processes share counts for each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Descriptors {
    /// All of them.
    pub open: u64,
    /// Those of sockets.
    pub sockets: u64,
}

impl Cgroup {
    /// Counts them; `first` is the process whose limit is asked for.
    ///
    /// # Errors
    /// [`CgroupError::Read`]: the processes cannot be listed.
    pub fn processes(&self, first: Option<i32>) -> Result<Processes, CgroupError> {
        let mut pids = BTreeSet::new();
        // All hierarchies that a container is in have the same processes.
        let tree = self.layout.v2().or_else(|| self.layout.trees.first());
        if let Some(tree) = tree {
            collect_pids(&self.dir(tree), &mut pids)?;
        }
        // Numbers are given to others again: only what is listed here is the first process.
        let first = first.filter(|pid| pids.contains(pid));
        Ok(Processes {
            count: pids.len() as u64,
            descriptors: descriptors(pids, MOST),
            open_files_limit: first.and_then(open_files_limit),
        })
    }
}

/// `None` where there are more than `most`, or processes as hard to count.
fn descriptors(pids: BTreeSet<i32>, most: u64) -> Option<Descriptors> {
    let mut found = Descriptors::default();
    let most = most.checked_sub(PROCESS * pids.len() as u64)?;
    for pid in pids {
        match count_in(pid, most, &mut found) {
            Ok(()) => {}
            Err(error) if is_gone(&error) => {}
            Err(error) => {
                tracing::debug!(pid, %error, "open descriptors");
                return None;
            }
        }
        if found.open > most {
            return None;
        }
    }
    Some(found)
}

/// Counts on until there are more than `most`.
fn count_in(pid: i32, most: u64, found: &mut Descriptors) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir: OwnedFd = rustix::fs::open(format!("/proc/{pid}/fd"), flags, Mode::empty())?;
    let mut buffer = Vec::with_capacity(4096);
    let mut entries = RawDir::new(&dir, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_bytes().starts_with(b".") {
            continue;
        }
        found.open += 1;
        if found.open > most {
            break;
        }
        let target = rustix::fs::readlinkat(&dir, name, Vec::new());
        // One that was closed meanwhile has no target.
        if target.is_ok_and(|target| target.to_bytes().starts_with(b"socket:[")) {
            found.sockets += 1;
        }
    }
    Ok(())
}

fn open_files_limit(pid: i32) -> Option<u64> {
    parse_limit(&std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?)
}

/// The first of the two limits in "Max open files   1024   4096   files".
fn parse_limit(text: &str) -> Option<u64> {
    let mut lines = text.lines();
    let rest = lines.find_map(|line| line.strip_prefix("Max open files"))?;
    match rest.split_ascii_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_descriptors_are_counted_up_to_a_bound_and_sockets_told_apart() {
        let own = std::process::id().cast_signed();
        let sockets = std::os::unix::net::UnixStream::pair().unwrap();
        let found = descriptors([own, i32::MAX].into(), MOST).unwrap();
        assert!(found.sockets >= 2, "{found:?}");
        assert!(found.open > found.sockets, "{found:?}");
        // Threads of other tests open and close some, and never all but one.
        assert_eq!(descriptors([own].into(), PROCESS + 1), None);
        assert_eq!(descriptors([own].into(), PROCESS - 1), None);
        drop(sockets);
        assert!(open_files_limit(own).unwrap() > 0);
        assert_eq!(open_files_limit(i32::MAX), None);
    }

    #[test]
    fn the_soft_limit_is_the_first_of_two() {
        let text = "Limit                     Soft Limit           Hard Limit           Units\n\
                    Max open files            1024                 524288               files\n";
        assert_eq!(parse_limit(text), Some(1024));
        assert_eq!(
            parse_limit(&text.replace("1024 ", "unlimited ")),
            Some(u64::MAX)
        );
        assert_eq!(parse_limit("Max processes 1 2\n"), None);
    }
}

//! Ways into cgroups that do not wait.
//!
//! A write to `cgroup.procs` moves a whole process, whatever threads it has, and so
//! waits for all processors where nothing joined lately: 7 ms on a quiet stock
//! kernel, 15 and more on a busy one. Two ways do not wait. A process can be born in
//! a cgroup of the v2 tree; and in a hierarchy of version 1 a thread may move itself
//! alone, which for a process of one thread is all of it (Linux 5.6 and later; before
//! it waits too).

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// A container's cgroups, by how a process of one thread gets into them.
#[derive(Debug)]
pub struct Ways {
    /// The directory of one of the v2 tree, in which a process can be born.
    pub born_in: Option<OwnedFd>,
    /// Files of the others: each is joined by writing 0.
    pub joined: Vec<Vec<u8>>,
}

impl Ways {
    /// Sorts `cgroup.procs` files.
    ///
    /// # Errors
    /// The directory that cannot be opened, and why.
    pub fn new(procs: &[Vec<u8>]) -> Result<Self, (String, Errno)> {
        let mut born_in = None;
        let mut joined = Vec::with_capacity(procs.len());
        for procs in procs {
            let Some(dir) = v2_dir(procs) else {
                joined.push(tasks(procs));
                continue;
            };
            if born_in.is_some() {
                joined.push(procs.clone());
                continue;
            }
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let opened = rustix::fs::open(dir, flags, Mode::empty());
            born_in = Some(opened.map_err(|errno| (dir.display().to_string(), errno))?);
        }
        Ok(Self { born_in, joined })
    }
}

/// The file that a process of one thread writes 0 to: `tasks` in hierarchies of
/// version 1, `cgroup.procs` itself in the v2 tree.
#[must_use]
pub fn file_to_join(procs: &[u8]) -> Vec<u8> {
    match v2_dir(procs) {
        Some(_) => procs.to_vec(),
        None => tasks(procs),
    }
}

/// Whether the file is of the v2 tree.
#[must_use]
pub fn is_v2(procs: &[u8]) -> bool {
    v2_dir(procs).is_some()
}

fn v2_dir(procs: &[u8]) -> Option<&Path> {
    let dir = Path::new(OsStr::from_bytes(procs)).parent()?;
    dir.join("cgroup.controllers").exists().then_some(dir)
}

fn tasks(procs: &[u8]) -> Vec<u8> {
    let tasks = Path::new(OsStr::from_bytes(procs)).with_file_name("tasks");
    tasks.into_os_string().into_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v2_is_entered_by_birth_and_v1_by_the_thread() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, file: &str| {
            let dir = dir.path().join(name);
            std::fs::create_dir(&dir).unwrap();
            std::fs::write(dir.join(file), "").unwrap();
            dir.join("cgroup.procs").into_os_string().into_vec()
        };
        let all = [make("cpu", "tasks"), make("unified", "cgroup.controllers")];
        let ways = Ways::new(&all).unwrap();
        assert!(ways.born_in.is_some());
        let tasks = dir.path().join("cpu/tasks").into_os_string().into_vec();
        assert_eq!(ways.joined, [tasks]);
        assert_eq!(file_to_join(&all[1]), all[1]);
    }
}

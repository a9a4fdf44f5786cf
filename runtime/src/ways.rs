//! Ways into cgroups that do not wait.
//!
//! A write to `cgroup.procs` moves a whole process, whatever threads it has, and so
//! waits for all processors where nothing joined lately: 7 ms on a quiet stock
//! kernel, 15 and more on a busy one. Two ways do not wait. A process can be born in
//! a cgroup of the v2 tree; and in a hierarchy of version 1 a thread may move itself
//! alone, which for a process of one thread is all of it (Linux 5.6 and later; before
//! it waits too). So whoever is to join gets `cgroup.procs` of the v2 tree, `tasks` of
//! every other hierarchy, and the name tells which is which.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// All processes of a cgroup, in every hierarchy; in the v2 tree it is joined by it.
pub const PROCS: &str = "cgroup.procs";
/// All threads of a cgroup, in hierarchies of version 1 only.
const TASKS: &str = "tasks";

/// The file by which a process of one thread joins a cgroup: it writes 0.
#[must_use]
pub fn file_to_join(v2: bool) -> &'static str {
    if v2 { PROCS } else { TASKS }
}

/// Whether a file to join by is of the v2 tree.
#[must_use]
pub fn is_v2(file: &[u8]) -> bool {
    Path::new(OsStr::from_bytes(file)).ends_with(PROCS)
}

/// A container's cgroups, by how a process of one thread gets into them.
#[derive(Debug)]
pub struct Ways {
    /// The directory of one of the v2 tree, in which a process can be born.
    pub born_in: Option<OwnedFd>,
    /// Files of the others: each is joined by writing 0.
    pub joined: Vec<Vec<u8>>,
}

impl Ways {
    /// Sorts files to join by.
    ///
    /// # Errors
    /// The directory that cannot be opened, and why.
    pub fn new(files: &[Vec<u8>]) -> Result<Self, (String, Errno)> {
        let mut born_in = None;
        let mut joined = Vec::with_capacity(files.len());
        for file in files {
            match Path::new(OsStr::from_bytes(file)).parent() {
                Some(dir) if is_v2(file) && born_in.is_none() => {
                    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                    let opened = rustix::fs::open(dir, flags, Mode::empty());
                    born_in = Some(opened.map_err(|errno| (dir.display().to_string(), errno))?);
                }
                _ => joined.push(file.clone()),
            }
        }
        Ok(Self { born_in, joined })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    #[test]
    fn v2_is_entered_by_birth_and_v1_by_the_thread() {
        let dir = tempfile::tempdir().unwrap();
        let file = |v2| {
            let path = dir.path().join(file_to_join(v2));
            path.into_os_string().into_vec()
        };
        let ways = Ways::new(&[file(false), file(true)]).unwrap();
        assert!(ways.born_in.is_some());
        assert_eq!(ways.joined, [file(false)]);
        assert!(is_v2(&file(true)) && !is_v2(&file(false)));
        let gone = dir.path().join("gone").join(PROCS);
        let gone = gone.into_os_string().into_vec();
        assert_eq!(Ways::new(&[gone]).unwrap_err().1, Errno::NOENT);
    }
}

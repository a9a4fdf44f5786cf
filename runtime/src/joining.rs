//! How a process joins a cgroup without waiting for an RCU grace period.
//!
//! A write to `cgroup.procs` moves a whole process with all its threads. For that the kernel
//! takes a semaphore against all forks, which waits for such a period where nobody took it lately:
//! 7 ms on a quiet stock kernel, 15 and more on a busy one. Two ways do not wait. In the v2 tree a process can be
//! born in a cgroup (CLONE_INTO_CGROUP). In a hierarchy of version 1 a thread can move itself
//! alone by writing 0 to `tasks`, which moves all of a process with one thread (since Linux 5.6;
//! older kernels wait there, too). So a list of files to join by has `cgroup.procs` for the v2
//! tree and `tasks` for each other hierarchy, and the file's name tells which kind it is.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::process::Pid;

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

/// How a process of one thread joins a set of cgroups.
#[derive(Debug)]
pub struct Joining {
    /// The directory of one of the v2 tree, in which a process can be born.
    pub born_in: Option<OwnedFd>,
    /// Files of the others: each is joined by writing 0.
    pub joined: Vec<Vec<u8>>,
}

impl Joining {
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

/// The cgroup of the v2 tree that a process is in, as a descriptor; it must lie below
/// another, which a descriptor tells.
///
/// # Errors
/// Words for what is in the way.
pub fn below(cgroup: BorrowedFd<'_>, process: Pid) -> Result<OwnedFd, String> {
    let number = process.as_raw_nonzero();
    let lines = crate::procfs::cgroups(number.get())
        .map_err(|error| format!("cgroup of the first process: {error}"))?;
    let mut lines = lines.split(|byte| *byte == b'\n');
    let path = lines.find_map(|line| line.strip_prefix(b"0::/"));
    let path = path.ok_or("the first process is in no cgroup of the v2 tree")?;
    let path = Path::new(OsStr::from_bytes(path));
    let own = format!("/proc/self/fd/{}", cgroup.as_raw_fd());
    let own =
        std::fs::read_link(own).map_err(|error| format!("the container's cgroup: {error}"))?;
    let rest = part_below(path, &own).ok_or_else(|| {
        format!(
            "the first process is in {}, not below {}",
            path.display(),
            own.display()
        )
    })?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(cgroup, rest, flags, Mode::empty(), resolve)
        .map_err(|errno| format!("open cgroup {}: {errno}", path.display()))
}

/// What of a cgroup's path is below the cgroup of a directory: the path begins at the
/// hierarchy's root, the directory where that is mounted.
fn part_below<'a>(path: &'a Path, dir: &Path) -> Option<&'a Path> {
    let above = path.ancestors().skip(1);
    let own = above.filter(|above| !above.as_os_str().is_empty());
    let own = own.into_iter().find(|above| dir.ends_with(above))?;
    path.strip_prefix(own).ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    #[test]
    fn what_is_below_a_cgroup_is_found_by_its_path() {
        let dir = Path::new("/sys/fs/cgroup/unified/pods/a1");
        let below = |path| part_below(Path::new(path), dir);
        let inner = Path::new("init.scope");
        assert_eq!(below("pods/a1/init.scope"), Some(inner));
        assert_eq!(below("pods/a1/x/y"), Some(Path::new("x/y")));
        for path in ["pods/a1", "pods/b2/init.scope", "a1", "init.scope"] {
            assert_eq!(below(path), None, "{path}");
        }
    }

    #[test]
    fn v2_is_entered_by_birth_and_v1_by_the_thread() {
        let dir = tempfile::tempdir().unwrap();
        let file = |v2| {
            let path = dir.path().join(file_to_join(v2));
            path.into_os_string().into_vec()
        };
        let joining = Joining::new(&[file(false), file(true)]).unwrap();
        assert!(joining.born_in.is_some());
        assert_eq!(joining.joined, [file(false)]);
        assert!(is_v2(&file(true)) && !is_v2(&file(false)));
        let gone = dir.path().join("gone").join(PROCS);
        let gone = gone.into_os_string().into_vec();
        assert_eq!(Joining::new(&[gone]).unwrap_err().1, Errno::NOENT);
    }
}

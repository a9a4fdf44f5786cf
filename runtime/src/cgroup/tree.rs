//! The directories of a cgroup: made, listed, emptied and removed.
//!
//! Owns the cgroup's own directory in each hierarchy and what is below it;
//! never removes anything above. A crash between two hierarchies leaves some
//! of the directories; making or removing the cgroup again finishes the work.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::detect::Tree;
use super::file::{self, errno};
use super::{Cgroup, CgroupError, Version};
use crate::joining::PROCS;
use crate::{pidfd, subtree};

/// Controllers that limits of Slipway use; others stay as the host has them.
const WANTED: [&str; 6] = ["cpuset", "cpu", "io", "memory", "hugetlb", "pids"];

/// How often a cgroup is made whose parent vanishes meanwhile, 20 µs each: whoever
/// removes empty parents in a loop on another processor wins ten times in a row.
const MAKE_TRIES: usize = 1000;
/// How long a directory may stay busy after its last process ended. Tasks
/// leave their cgroup a little after they were reaped.
const REMOVE_PATIENCE: Duration = Duration::from_secs(2);

/// Processes that are held by descriptors at once when they are killed: a cgroup may
/// have more than this process may open.
pub(super) const HELD_AT_ONCE: usize = 256;
/// The longest wait before a killed cgroup is looked at again.
const KILL_ROUND: Duration = Duration::from_millis(100);
/// How long processes may take to be frozen: those that wait for a dead disk never are.
const FREEZING: Duration = Duration::from_secs(2);

impl Cgroup {
    /// The directory in one hierarchy.
    pub(super) fn dir(&self, tree: &Tree) -> PathBuf {
        tree.root.join(self.path.below_mount_point())
    }

    /// The directory in every hierarchy.
    pub(super) fn dirs(&self) -> Vec<PathBuf> {
        self.layout
            .trees
            .iter()
            .map(|tree| self.dir(tree))
            .collect()
    }

    /// Makes the directories.
    pub(super) fn make(&self) -> Result<(), CgroupError> {
        let relative = self.path.below_mount_point();
        for tree in &self.layout.trees {
            make_dirs(&tree.root, relative)?;
            if tree.has("cpuset") && !tree.is_v2() {
                fill_cpuset(&tree.root, &tree.root.join(relative))?;
            }
            // In a hybrid the v2 tree is there for tracking; its controllers
            // are switched on when a limit asks for one.
            if self.layout.version == Version::V2 && tree.is_v2() {
                self.enable(tree, &WANTED)?;
            }
        }
        Ok(())
    }

    /// Hands controllers of the v2 tree down to this cgroup. One that cannot
    /// be (a parent holds processes) is left out: setting a limit of it names
    /// the controller then.
    pub(super) fn enable(&self, tree: &Tree, wanted: &[&str]) -> Result<(), CgroupError> {
        let mut dir = tree.root.clone();
        for component in self.path.below_mount_point().split('/') {
            enable_in(&dir, wanted)?;
            dir.push(component);
        }
        Ok(())
    }

    /// The processes in the cgroup and below it, over all hierarchies.
    pub fn pids(&self) -> Result<Vec<i32>, CgroupError> {
        let mut pids = BTreeSet::new();
        for dir in self.dirs() {
            collect_pids(&dir, &mut pids)?;
        }
        Ok(pids.into_iter().collect())
    }

    /// Whether any hierarchy has the directory.
    pub fn exists(&self) -> bool {
        self.dirs().iter().any(|dir| dir.exists())
    }

    /// Lets processes of this name go to the roots of their hierarchies, out of the
    /// cgroup's end. For a cgroup where no container's process lives, which could call
    /// itself anything. One that cannot leave stays: it holds the cgroup up then.
    pub fn let_go(&self, name: &str) -> Result<(), CgroupError> {
        let is_it = |pid: &str| {
            let comm = fs::read_to_string(format!("/proc/{pid}/comm"));
            comm.is_ok_and(|comm| comm.trim_end() == name)
        };
        for tree in &self.layout.trees {
            let list = file::read_optional(&self.dir(tree).join("cgroup.procs"))?;
            let list = list.unwrap_or_default();
            for pid in list.lines().filter(|pid| is_it(pid)) {
                if let Err(error) = file::write(&tree.root.join("cgroup.procs"), pid) {
                    tracing::debug!(pid, %error, "a process stays in its cgroup");
                }
            }
        }
        Ok(())
    }

    /// Kills every process in the cgroup and below it, and waits until none
    /// is left. A cgroup that does not exist is empty.
    pub fn kill(&self, deadline: Duration) -> Result<(), CgroupError> {
        let until = Instant::now() + deadline;
        if let Some(path) = self.kill_file() {
            match file::write(&path, "1") {
                Ok(()) => {}
                Err(e) if is_gone(&e) => {}
                Err(source) => {
                    return Err(CgroupError::Write {
                        path,
                        value: "1".into(),
                        source,
                    });
                }
            }
        }
        loop {
            let began = Instant::now();
            let pids = self.pids()?;
            if pids.is_empty() {
                return Ok(());
            }
            // What makes others faster than they are listed is killed while it is frozen.
            self.kill_frozen(until)?;
            let targets = self.signal_all(&pids)?;
            self.thaw()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(CgroupError::StillAlive {
                    path: self.path.clone(),
                    pids,
                });
            }
            // A container with many cgroups costs a part of one processor at most.
            let took = began.elapsed();
            if took > KILL_ROUND {
                std::thread::sleep(left.min(took * 3));
            }
            wait_for_exit(&targets, left.min(KILL_ROUND));
        }
    }

    /// Sends SIGKILL through descriptors to those that are still listed once they are
    /// held: a number may be another's by then. Gives some of the descriptors.
    pub(super) fn signal_all(&self, pids: &[i32]) -> Result<Vec<OwnedFd>, CgroupError> {
        let mut held = Vec::new();
        for some in pids.chunks(HELD_AT_ONCE) {
            // Those of the ones before are closed first.
            held.clear();
            held = self.signal_some(some)?;
        }
        Ok(held)
    }

    fn signal_some(&self, pids: &[i32]) -> Result<Vec<OwnedFd>, CgroupError> {
        let failed = |pid, error: Errno| CgroupError::Signal {
            pid,
            path: self.path.clone(),
            source: error.into(),
        };
        let mut held = Vec::with_capacity(pids.len());
        for &pid in pids {
            let Some(number) = Pid::from_raw(pid) else {
                continue;
            };
            match pidfd_open(number, PidfdFlags::empty()) {
                Ok(pidfd) => held.push((pid, pidfd)),
                Err(Errno::SRCH) => {}
                Err(error) => return Err(failed(pid, error)),
            }
        }
        let still: BTreeSet<i32> = self.pids()?.into_iter().collect();
        held.retain(|(pid, _)| still.contains(pid));
        for (pid, pidfd) in &held {
            match pidfd_send_signal(pidfd, Signal::KILL) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(error) => return Err(failed(*pid, error)),
            }
        }
        Ok(held.into_iter().map(|(_, pidfd)| pidfd).collect())
    }

    /// Kills all that the v1 freezer holds, where it is used.
    fn kill_frozen(&self, until: Instant) -> Result<(), CgroupError> {
        let Some(tree) = self.layout.home("freezer").filter(|tree| !tree.is_v2()) else {
            return Ok(());
        };
        let dir = self.dir(tree);
        crate::frozen::kill(&dir, until.min(Instant::now() + FREEZING), || false)
            .or_else(ignore_gone)
            .map_err(|source| CgroupError::Write {
                path: dir.join(crate::frozen::STATE),
                value: "FROZEN".into(),
                source,
            })
    }

    /// A task that the v1 freezer holds does not die before it is thawed.
    fn thaw(&self) -> Result<(), CgroupError> {
        let Some(tree) = self.layout.home("freezer").filter(|tree| !tree.is_v2()) else {
            return Ok(());
        };
        let dir = self.dir(tree);
        crate::frozen::thaw(&dir, || false).map_err(|source| CgroupError::Write {
            path: dir.join(crate::frozen::STATE),
            value: "THAWED".into(),
            source,
        })
    }

    /// Removes the directories with everything below them. What is not there
    /// is no error; one that stays busy is.
    pub fn remove(&self) -> Result<(), CgroupError> {
        let until = Instant::now() + REMOVE_PATIENCE;
        for dir in self.dirs() {
            subtree::remove(&dir, until).map_err(|source| CgroupError::Remove {
                path: dir.clone(),
                source,
            })?;
        }
        Ok(())
    }

    /// Removes the directories that nothing is in and nothing is below. One with
    /// children stays, though they be empty: somebody may be about to use them.
    pub fn remove_if_empty(&self) -> Result<(), CgroupError> {
        for path in self.dirs() {
            match fs::remove_dir(&path) {
                Ok(()) => {}
                Err(e) if is_gone(&e) => {}
                Err(e) if matches!(errno(&e), libc::EBUSY | libc::ENOTEMPTY) => {}
                Err(source) => return Err(CgroupError::Remove { path, source }),
            }
        }
        Ok(())
    }
}

impl Cgroup {
    /// Removes this cgroup and those above it, as far as they are left in the v2 tree of a
    /// hybrid only, be its other hierarchies used or not. The kubelet makes and removes its cgroups in the v1
    /// hierarchies; their twins in the v2 tree come from the engine and
    /// nobody else would miss them. Those that are in use, or that a v1
    /// hierarchy still has, stay; so does everything on other layouts.
    pub fn remove_orphaned(&self) -> Result<(), CgroupError> {
        let relative = self.path.below_mount_point();
        let Some(v2) = self.layout.v2() else {
            return Ok(());
        };
        // A named hierarchy beside a full v2 tree is nobody's to look at.
        if self.layout.version == Version::V2 && self.layout.left_out.is_empty() {
            return Ok(());
        }
        for orphan in Path::new(relative).ancestors() {
            let is_root = orphan.as_os_str().is_empty();
            let mut others = self.layout.beside_v2();
            if is_root || others.any(|root| root.join(orphan).exists()) {
                return Ok(());
            }
            let path = v2.root.join(orphan);
            match fs::remove_dir(&path) {
                Ok(()) => {}
                Err(e) if is_gone(&e) => {}
                Err(e) if matches!(errno(&e), libc::EBUSY | libc::ENOTEMPTY) => return Ok(()),
                Err(source) => return Err(CgroupError::Remove { path, source }),
            }
        }
        Ok(())
    }
}

/// Somebody may remove a parent that was empty just then: it is made again.
fn make_dirs(root: &Path, relative: &str) -> Result<(), CgroupError> {
    let mut made = make_dirs_once(root, relative);
    for _ in 1..MAKE_TRIES {
        let lost = |error: &CgroupError| matches!(error, CgroupError::Make { source, .. } if source.kind() == io::ErrorKind::NotFound);
        if !made.as_ref().is_err_and(lost) {
            break;
        }
        made = make_dirs_once(root, relative);
    }
    made
}

fn make_dirs_once(root: &Path, relative: &str) -> Result<(), CgroupError> {
    let leaf = root.join(relative);
    match fs::create_dir(&leaf) {
        Ok(()) => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(CgroupError::Make { path: leaf, source }),
    }
    let mut dir = root.to_path_buf();
    for component in relative.split('/') {
        dir.push(component);
        match fs::create_dir(&dir) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(CgroupError::Make { path: dir, source }),
        }
    }
    Ok(())
}

/// A new v1 cpuset has no CPUs and no memory nodes, and takes no process. It
/// gets its parent's, and the parent, where it is new as well, its own first.
fn fill_cpuset(root: &Path, dir: &Path) -> Result<(), CgroupError> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        fill_cpuset_file(root, dir, name)?;
    }
    Ok(())
}

fn fill_cpuset_file(root: &Path, dir: &Path, name: &str) -> Result<String, CgroupError> {
    let path = dir.join(name);
    let own = file::read(&path)?;
    if !own.is_empty() || dir == root {
        return Ok(own);
    }
    let value = fill_cpuset_file(root, dir.parent().unwrap_or(root), name)?;
    match file::write(&path, &value) {
        Ok(()) => Ok(value),
        Err(source) => Err(CgroupError::Write {
            path,
            value,
            source,
        }),
    }
}

fn enable_in(dir: &Path, wanted: &[&str]) -> Result<(), CgroupError> {
    let control = dir.join("cgroup.subtree_control");
    let Some(available) = file::read_optional(&dir.join("cgroup.controllers"))? else {
        return Ok(());
    };
    let enabled = file::read(&control)?;
    let lists = |list: &str, name: &str| list.split_whitespace().any(|c| c == name);
    let missing: Vec<String> = wanted
        .iter()
        .filter(|name| lists(&available, name) && !lists(&enabled, name))
        .map(|name| format!("+{name}"))
        .collect();
    if missing.is_empty() || file::write(&control, &missing.join(" ")).is_ok() {
        return Ok(());
    }
    // The kernel takes all or none: find those that it does take.
    for name in &missing {
        if let Err(error) = file::write(&control, name) {
            tracing::debug!(path = %control.display(), %name, %error, "controller not enabled");
        }
    }
    Ok(())
}

pub(super) fn collect_pids(dir: &Path, pids: &mut BTreeSet<i32>) -> Result<(), CgroupError> {
    let look = |dir: BorrowedFd<'_>| {
        // A threaded cgroup has no list of processes: they stand in the list of
        // the domain above it.
        let text = subtree::read(dir, PROCS)?.unwrap_or_default();
        let listed = pidfd::parsed(&text).into_iter();
        pids.extend(listed.map(|pid| pid.as_raw_nonzero().get()));
        Ok(())
    };
    subtree::visit(dir, look).map_err(|source| CgroupError::Read {
        path: dir.into(),
        source,
    })
}

/// Waits for the first of the processes to end. They may be listed a moment
/// longer than they live, hence a short pause when nothing had to be waited for.
fn wait_for_exit(targets: &[OwnedFd], limit: Duration) {
    let mut fds: Vec<_> = targets
        .iter()
        .map(|fd| PollFd::new(fd, PollFlags::IN))
        .collect();
    let start = Instant::now();
    let timeout = Timespec::try_from(limit).ok();
    let ended = !fds.is_empty() && poll(&mut fds, timeout.as_ref()).is_ok();
    if !ended || start.elapsed() < Duration::from_millis(1) {
        std::thread::sleep(Duration::from_millis(1).min(limit));
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(errno(error), libc::ENOENT | libc::ENODEV)
}

fn ignore_gone(error: io::Error) -> io::Result<()> {
    if is_gone(&error) { Ok(()) } else { Err(error) }
}

//! Cgroups of tests: a folder of the same name in every hierarchy.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use runtime::joining::file_to_join;

use super::wait_until;

const ROOT: &str = "/sys/fs/cgroup";

/// A cgroup in every hierarchy. Dropping it kills what is in it and removes
/// it.
#[derive(Debug)]
pub(crate) struct TestCgroup {
    dirs: Vec<PathBuf>,
}

impl TestCgroup {
    /// A new cgroup of this test process.
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("slipway-test-{}-{number}", std::process::id());
        let dirs: Vec<_> = hierarchies()
            .into_iter()
            .map(|root| {
                let dir = root.join(&name);
                make(&root, &dir);
                dir
            })
            .collect();
        assert!(!dirs.is_empty(), "no cgroups at {ROOT}");
        Self { dirs }
    }

    /// All `cgroup.procs`.
    pub(crate) fn procs(&self) -> Vec<PathBuf> {
        self.dirs
            .iter()
            .map(|dir| dir.join("cgroup.procs"))
            .collect()
    }

    /// The file of each to join by.
    pub(crate) fn files_to_join(&self) -> Vec<PathBuf> {
        let file = |dir: &PathBuf| {
            let v2 = dir.join("cgroup.controllers").exists();
            dir.join(file_to_join(v2))
        };
        self.dirs.iter().map(file).collect()
    }

    /// A file of whichever hierarchy has it.
    pub(crate) fn file(&self, name: &str) -> Option<PathBuf> {
        self.dirs
            .iter()
            .map(|dir| dir.join(name))
            .find(|path| path.exists())
    }

    /// The counter of OOM kills.
    pub(crate) fn oom_file(&self) -> Option<PathBuf> {
        self.file("memory.events")
            .or_else(|| self.file("memory.oom_control"))
    }

    /// The v2 tree's kill file.
    pub(crate) fn kill_file(&self) -> Option<PathBuf> {
        self.file("cgroup.kill")
    }

    /// Its path, the same in every hierarchy.
    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/").join(self.dirs[0].file_name().unwrap())
    }

    /// Processes in any of them.
    pub(crate) fn pids(&self) -> Vec<i32> {
        let mut pids: Vec<i32> = self
            .procs()
            .iter()
            .flat_map(|path| {
                let text = std::fs::read_to_string(path).unwrap_or_default();
                text.lines()
                    .map(|line| line.parse().unwrap())
                    .collect::<Vec<_>>()
            })
            .collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        let empty = wait_until(|| {
            for pid in self.pids() {
                let pid = rustix::process::Pid::from_raw(pid).unwrap();
                let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            self.pids().is_empty()
        });
        let removed = empty
            && wait_until(|| {
                self.dirs
                    .iter()
                    .all(|dir| std::fs::remove_dir(dir).is_ok() || !dir.exists())
            });
        assert!(
            removed || std::thread::panicking(),
            "{:?} cannot be removed",
            self.dirs
        );
    }
}

fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new(ROOT);
    if root.join("cgroup.procs").exists() {
        return vec![root.to_owned()];
    }
    let mut all: Vec<_> = std::fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| !path.is_symlink() && path.join("cgroup.procs").exists())
        .collect();
    // Lets the whole suite run as where an engine uses the v2 tree alone.
    if std::env::var_os("SLIPWAY_TEST_HIERARCHY").is_some_and(|name| name == "unified") {
        all.retain(|dir| dir.join("cgroup.controllers").exists());
    }
    all.sort();
    all
}

/// A new cpuset has nothing to run on until it is told.
fn make(parent: &Path, dir: &Path) {
    std::fs::create_dir(dir).unwrap();
    for name in ["cpuset.cpus", "cpuset.mems"] {
        if let Ok(value) = std::fs::read_to_string(parent.join(name)) {
            let _set = std::fs::write(dir.join(name), value.trim());
        }
    }
}

//! Cgroups of pods and containers: found, made, limited, read, emptied and
//! removed, whichever of the kernel's three layouts the machine has.
//!
//! Owns the directory it was asked for, in every mounted hierarchy; never
//! touches a sibling, and of its parents only what a child cannot live without
//! (cpuset values on v1, `cgroup.subtree_control` on v2). A crash leaves
//! directories, which [`Cgroup::remove`] takes away when asked again.
//!
//! Limits are written as plain files, not through the cgroups-rs crate: that
//! one drops the error of nearly every limit it sets, cannot tell the old
//! value (so nothing can be restored), always writes the memory limit before
//! the memory+swap limit (which the kernel refuses when both grow), re-reads
//! mountinfo for every object, and brings a D-Bus client along.
//!
//! The engine makes and removes cgroups through a [`Driver`] and does the rest with the
//! [`Cgroup`] that it gets from there.
//!
//! A controller is used where it is mounted, so a hybrid whose v2 tree holds
//! hugetlb gets its huge page limits there, and pressure figures come from the
//! v2 tree wherever there is one.

mod detect;
mod driver;
mod error;
mod figures;
mod file;
mod find;
mod limits;
mod path;
mod plan;
mod processes;
mod stats;
mod systemd;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

pub use driver::{Driver, DriverKind};
pub use error::CgroupError;
pub use figures::{Counted, DeviceUse, Figures, HugePages, Memory, Throttling};
pub use path::CgroupPath;
pub use processes::{Descriptors, Processes};
pub use stats::{Psi, PsiData, Stats};
pub use systemd::{Systemd, SystemdError, slice_path};

use crate::joining;
use detect::{Layout, Tree};

/// Which of the kernel's layouts this machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// One tree with all controllers.
    V2,
    /// Controllers on v1 hierarchies, and a v2 tree beside them.
    Hybrid,
    /// v1 hierarchies only.
    V1,
}

/// Which of the mounted hierarchies are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Selection {
    /// All of them.
    #[default]
    All,
    /// The v2 tree alone, also where v1 hierarchies hold the controllers: those
    /// are not touched, and processes stay in whatever cgroups of theirs they are
    /// born in. The machine counts as one of v2. Limits whose controllers the
    /// tree lacks are not set, each with a warning in place of an error.
    Unified,
}

/// The mounted cgroup hierarchies of this machine.
#[derive(Debug, Clone)]
pub struct Hierarchies {
    layout: Arc<Layout>,
}

impl Hierarchies {
    /// Finds what is mounted, from this process' mount table.
    pub fn detect(selection: Selection) -> Result<Self, CgroupError> {
        let layout = Arc::new(Layout::detect(selection)?);
        Ok(Self { layout })
    }

    /// The layout that was found, of what is used.
    pub fn version(&self) -> Version {
        self.layout.version
    }

    /// Whether limits of this controller can be set here at all. On v1 the
    /// names differ for one: `io` is called `blkio` there.
    pub fn has(&self, controller: &str) -> bool {
        self.layout.home(controller).is_some()
    }

    /// Makes the cgroup `path` and its missing parents in every hierarchy. An
    /// existing one is left as it is.
    pub fn create(&self, path: &CgroupPath) -> Result<Cgroup, CgroupError> {
        let cgroup = self.open(path);
        cgroup.make()?;
        Ok(cgroup)
    }

    /// A handle of the cgroup `path`, existing or not.
    pub fn open(&self, path: &CgroupPath) -> Cgroup {
        Cgroup {
            layout: Arc::clone(&self.layout),
            path: path.clone(),
        }
    }
}

/// One cgroup: the same path in every hierarchy.
#[derive(Debug, Clone)]
pub struct Cgroup {
    layout: Arc<Layout>,
    path: CgroupPath,
}

impl Cgroup {
    /// The path it was opened with.
    pub fn path(&self) -> &CgroupPath {
        &self.path
    }

    /// The file of each hierarchy that a process of one thread joins by, see
    /// [`crate::joining`].
    pub fn files_to_join(&self) -> Vec<PathBuf> {
        let file = |tree: &Tree| self.dir(tree).join(joining::file_to_join(tree.is_v2()));
        self.layout.trees.iter().map(file).collect()
    }

    /// The file that tells of OOM kills: `memory.events` on v2,
    /// `memory.oom_control` on v1.
    pub fn oom_file(&self) -> Option<PathBuf> {
        let tree = self.layout.home("memory")?;
        let name = if tree.is_v2() {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        Some(self.dir(tree).join(name))
    }

    /// `cgroup.kill` of the v2 tree, where the kernel has it (5.14).
    pub fn kill_file(&self) -> Option<PathBuf> {
        let tree = self.layout.v2()?;
        let file = self.dir(tree).join("cgroup.kill");
        // The root has no such file, so only the cgroup itself can tell.
        file.exists().then_some(file)
    }
}

/// Limits to set. Zero or empty means: leave as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// CFS period in microseconds.
    pub cpu_period: u64,
    /// CFS quota in microseconds per period; negative: no limit.
    pub cpu_quota: i64,
    /// Relative weight in v1 units (2 to 262144, 1024 is the default).
    pub cpu_shares: u64,
    /// Bytes of memory; negative: no limit.
    pub memory_limit: i64,
    /// Bytes of memory and swap together; negative: no limit.
    pub memory_swap_limit: i64,
    /// CPUs as a list ("0-2,7").
    pub cpuset_cpus: String,
    /// NUMA nodes as a list.
    pub cpuset_mems: String,
    /// Page size ("2MB") and bytes. Here 0 is a value: no huge pages.
    pub hugepage_limits: Vec<(String, u64)>,
    /// Raw files of cgroup v2 and what to write into them.
    pub unified: BTreeMap<String, String>,
    /// Number of tasks; negative: no limit.
    pub pids_limit: i64,
}

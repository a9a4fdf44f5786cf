//! Work in another network namespace.
//!
//! A namespace belongs to a thread: the caller's goes there and comes back. Where
//! the kernel refuses the way back the process ends, since nothing that this
//! thread did afterwards would happen where it is meant to.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use rustix::fs::fstatfs;

/// File system type of namespace files.
const NSFS_MAGIC: i64 = 0x6e73_6673;
/// Where namespaces of processes are, when a kernel shows them as files of proc.
const PROC_MAGIC: i64 = 0x9fa0;

/// The namespace of the thread that opens it.
const OWN: &str = "/proc/thread-self/ns/net";

/// Why a namespace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// There is nothing at the path.
    #[error("failed to Statfs {:?}: no such file or directory", path.display().to_string())]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// What is there is no namespace.
    #[error("unknown FS magic on {:?}: {magic:x}", path.display().to_string())]
    NotANamespace {
        /// The path.
        path: PathBuf,
        /// The file system it is on.
        magic: i64,
    },
    /// The kernel refused.
    #[error("{step} network namespace {}", path.display())]
    System {
        /// The path.
        path: PathBuf,
        /// What was tried.
        step: &'static str,
        /// The cause.
        source: io::Error,
    },
}

/// An open network namespace.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    path: PathBuf,
}

impl Namespace {
    /// Opens a pinned namespace, or that of a process.
    pub fn open(path: &Path) -> Result<Self, NamespaceError> {
        let failed = |step, source| NamespaceError::System {
            path: path.into(),
            step,
            source,
        };
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(NamespaceError::Missing { path: path.into() });
            }
            Err(error) => return Err(failed("open", error)),
        };
        let magic = fstatfs(&file)
            .map_err(|e| failed("look at", e.into()))?
            .f_type;
        if magic != NSFS_MAGIC && magic != PROC_MAGIC {
            let path = path.into();
            return Err(NamespaceError::NotANamespace { path, magic });
        }
        let path = path.into();
        Ok(Self { file, path })
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work` in the namespace. What it opens there (sockets) stays of that
    /// namespace and may be brought back. The thread is in its own namespace again
    /// afterwards, also when `work` panics.
    ///
    /// No thread is made for it: while any process on the machine is moved to
    /// another cgroup by `cgroup.procs`, none can be, for 7 ms and more.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> Result<T, NamespaceError> {
        let failed = |step, source| NamespaceError::System {
            path: self.path.clone(),
            step,
            source,
        };
        let own = File::open(OWN).map_err(|e| failed("find the way back from", e))?;
        setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|e| failed("enter", e.into()))?;
        let _back = WayBack(own);
        Ok(work())
    }
}

/// Leads a thread back into its own namespace.
struct WayBack(File);

impl Drop for WayBack {
    fn drop(&mut self) {
        if setns(&self.0, CloneFlags::CLONE_NEWNET).is_err() {
            // Whatever this thread did next would happen to a pod. Nothing is lost
            // with the process; its records say what is to be done.
            std::process::abort();
        }
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

//! Work in another network namespace.
//!
//! A namespace belongs to a thread. Everything here happens on short-lived
//! threads, so that no thread of the caller, which may belong to a pool, ever
//! changes its network: there is no way back that could fail.

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

    /// Runs `work` in the namespace, on a thread that ends with it. What it
    /// opens there (sockets) stays of that namespace and may be brought back.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NamespaceError> {
        let failed = |step, source| NamespaceError::System {
            path: self.path.clone(),
            step,
            source,
        };
        let entered = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("cni-netns".into())
                .stack_size(256 * 1024)
                .spawn_scoped(scope, || {
                    setns(&self.file, CloneFlags::CLONE_NEWNET)?;
                    Ok(work())
                })?;
            let ended = thread.join();
            ended.map_err(|_| io::Error::other("the thread panicked"))
        });
        let entered: Result<T, nix::Error> =
            entered.map_err(|e| failed("start a thread for", e))?;
        entered.map_err(|error| failed("enter", error.into()))
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

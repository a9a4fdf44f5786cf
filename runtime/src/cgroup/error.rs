//! What can go wrong with a cgroup.

use std::io;
use std::path::PathBuf;

use super::CgroupPath;

/// A failure of this module; each names the path, file or value at fault.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The mount table could not be read.
    #[error("read the mount table {}", path.display())]
    MountTable {
        /// The table's file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// No cgroup file system is mounted.
    #[error("no cgroup file system is mounted")]
    NotMounted,
    /// Only the v2 tree was to be used, and there is none.
    #[error("no cgroup v2 tree is mounted, and no other was to be used")]
    NoUnified,
    /// A text is not the path of a cgroup, see [`CgroupPath`].
    #[error("cgroup path {path:?} {reason}")]
    Path {
        /// The path as given.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The cgroup does not exist.
    #[error("cgroup {} does not exist", path.display())]
    NotFound {
        /// The missing directory.
        path: PathBuf,
    },
    /// A directory could not be made.
    #[error("make cgroup {}", path.display())]
    Make {
        /// The directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file could not be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file does not hold what the kernel documents.
    #[error("{} holds {content:?}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Its content.
        content: String,
    },
    /// The kernel refused a value.
    #[error("write {value:?} to {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The value.
        value: String,
        /// The cause.
        source: io::Error,
    },
    /// A limit needs a controller that this cgroup does not have.
    #[error("{file} cannot be set: cgroup {path} has no {controller} controller")]
    NoController {
        /// The controller.
        controller: String,
        /// The file that was to be written.
        file: String,
        /// The cgroup.
        path: CgroupPath,
    },
    /// A value that no kernel would take, refused before anything is written.
    #[error("{field} = {value:?}: {reason}")]
    Invalid {
        /// The field of the resources.
        field: String,
        /// Its value.
        value: String,
        /// Why it is refused.
        reason: String,
    },
    /// A limit failed, and so did putting an earlier one back.
    #[error("restore {} after a failed update", path.display())]
    NotRestored {
        /// The file that keeps its new value.
        path: PathBuf,
        /// Why the update failed.
        source: Box<CgroupError>,
    },
    /// A process could not be signalled.
    #[error("kill process {pid} of cgroup {path}")]
    Signal {
        /// The process.
        pid: i32,
        /// The cgroup.
        path: CgroupPath,
        /// The cause.
        source: io::Error,
    },
    /// Processes were still there at the deadline.
    #[error("cgroup {path} still has processes {pids:?} after SIGKILL")]
    StillAlive {
        /// The cgroup.
        path: CgroupPath,
        /// Who is left.
        pids: Vec<i32>,
    },
    /// A directory could not be removed.
    #[error("remove cgroup {}", path.display())]
    Remove {
        /// The directory.
        path: PathBuf,
        /// The cause; `EBUSY` means that it still holds processes.
        source: io::Error,
    },
}

//! Network namespaces pinned in the file system.
//!
//! Owns the pin (a file with a namespace mounted on it) and, once per
//! directory, the mount that lets pins travel; never configures more of a
//! network than its loopback. A crash leaves at most a pin or an empty file:
//! creating the same path again reuses the file, [`NetNs::unpin`] takes
//! either away.
//!
//! A namespace belongs to a thread. Everything here happens on short-lived
//! threads of its own, so that no thread of the caller ever changes its
//! network.

mod netlink;
mod owned;
mod pool;
#[cfg(test)]
mod tests;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::{FlockOperation, flock, statfs};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

pub use netlink::InterfaceStats;
pub use owned::{PodNamespaces, owner_of_network};
pub use pool::NetNsPool;

/// The namespace of the thread that reads this.
const OWN_NETNS: &str = "/proc/thread-self/ns/net";

/// File system type of namespace files.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// A failure of this module, with the path it is about.
#[derive(Debug, thiserror::Error)]
pub enum NetNsError {
    /// The directory of the pins cannot be prepared.
    #[error("prepare directory {} for network namespaces: {step}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What was tried.
        step: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// There is a pinned namespace already.
    #[error("{} is a pinned namespace already", path.display())]
    Exists {
        /// The pin.
        path: PathBuf,
    },
    /// A socket cannot be made in a namespace.
    #[error("socket in the network namespace {}: {step}", path.display())]
    Socket {
        /// The pin.
        path: PathBuf,
        /// What was tried.
        step: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// There is something else, which is left alone.
    #[error("{} is no pinned network namespace", path.display())]
    NotAPin {
        /// The path.
        path: PathBuf,
    },
    /// A namespace could not be made.
    #[error("make a network namespace: {step}")]
    Create {
        /// What was tried.
        step: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// A pod's user namespace, or what it owns, could not be made.
    #[error(transparent)]
    User(#[from] crate::mount::MountError),
    /// A namespace could not be pinned.
    #[error("pin a network namespace at {}: {step}", path.display())]
    Pin {
        /// The pin.
        path: PathBuf,
        /// What was tried.
        step: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// A pin could not be removed.
    #[error("unpin {}: {step}", path.display())]
    Unpin {
        /// The pin.
        path: PathBuf,
        /// What was tried.
        step: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The interfaces could not be read.
    #[error("read the interfaces of {}: {step}", path.display())]
    Interfaces {
        /// The pin.
        path: PathBuf,
        /// What was tried.
        step: &'static str,
        /// The cause.
        source: io::Error,
    },
}

/// Network namespaces by their pins.
#[derive(Debug)]
pub struct NetNs;

impl NetNs {
    /// Makes a network namespace with its loopback up and pins it at `path`.
    /// The pin outlives this process. Blocks for about half a millisecond.
    ///
    /// # Errors
    /// Something is there already, or the kernel's answer.
    pub fn create_pinned(path: &Path) -> Result<(), NetNsError> {
        prepare_dir(parent(path))?;
        // Before the slow part.
        if Self::is_pinned(path) {
            return Err(NetNsError::Exists { path: path.into() });
        }
        Self::pin(&create()?, path)
    }

    /// Pins a namespace at `path`, in a directory that is prepared.
    fn pin(namespace: &OwnedFd, path: &Path) -> Result<(), NetNsError> {
        let lock = lock_dir(parent(path));
        let _lock = lock.map_err(|e| pin_error(path, "lock the directory", e))?;
        reserve(path)?;
        crate::failpoint::hit("run-netns-reserved");
        let own = format!("/proc/self/fd/{}", namespace.as_raw_fd());
        mount_bind(own, path).map_err(|e| {
            // Nothing is mounted, so only the reserved file is left, and it is
            // ours as long as the lock is held.
            let _left_for_the_next = fs::remove_file(path);
            pin_error(path, "bind mount", e.into())
        })
    }

    /// Removes the pin; the kernel drops the namespace when nothing else
    /// holds it. A missing pin is no error, an empty file is removed as well.
    pub fn unpin(path: &Path) -> Result<(), NetNsError> {
        let failed = |step, source: io::Error| NetNsError::Unpin {
            path: path.into(),
            step,
            source,
        };
        // More than one mount can lie here if two engines raced.
        while Self::is_pinned(path) {
            // Detach: the namespace may be in use, its pin goes all the same.
            match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                Ok(()) => {}
                // A concurrent unpin was faster.
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => break,
                Err(e) => return Err(failed("unmount", e.into())),
            }
        }
        crate::failpoint::hit("stop-netns-unmounted");
        match fs::symlink_metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(failed("stat", e)),
            Ok(meta) if meta.is_file() && meta.len() == 0 => {}
            Ok(_) => return Err(NetNsError::NotAPin { path: path.into() }),
        }
        match fs::remove_file(path) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(failed("unlink", e)),
        }
    }

    /// Whether a namespace is pinned at `path`.
    pub fn is_pinned(path: &Path) -> bool {
        // nsfs reports one magic for all kinds of namespaces; only network
        // namespaces are ever pinned in these directories.
        statfs(path).is_ok_and(|fs| fs.f_type == NSFS_MAGIC)
    }

    /// Takes away the mount that [`NetNs::create_pinned`] may have put on the
    /// directory of the pins. Does nothing if there is none, and leaves it
    /// where pins remain. For whoever wants the host as it was; an engine
    /// that goes on later keeps the mount.
    pub fn release_dir(dir: &Path) -> Result<(), NetNsError> {
        let failed = |step, source| NetNsError::Directory {
            path: dir.into(),
            step,
            source,
        };
        let Ok(_lock) = lock_dir(dir) else {
            return Ok(());
        };
        let mounts = Mounts::read(dir)?;
        if !mounts.is_mount_point || mounts.holds_mounts {
            return Ok(());
        }
        // The lock itself is an open file on that mount: detach it.
        unmount(dir, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
            .map_err(|e| failed("unmount", e.into()))
    }
}

/// A TCP socket of the namespace that is pinned at `path`, for that to be connected from
/// wherever: a socket stays in the network in which it was made.
///
/// # Errors
/// See [`NetNsError::Socket`].
pub fn tcp_socket(path: &Path, ipv6: bool) -> Result<OwnedFd, NetNsError> {
    let failed = |step, source: io::Error| NetNsError::Socket {
        path: path.into(),
        step,
        source,
    };
    let family = if ipv6 {
        AddressFamily::INET6
    } else {
        AddressFamily::INET
    };
    // It enters, and does not leave: it ends.
    let made = on_thread("netns-socket", || {
        let netns = File::open(path).map_err(|e| failed("open", e))?;
        setns(&netns, CloneFlags::CLONE_NEWNET).map_err(|e| failed("enter", e.into()))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        rustix::net::socket_with(family, SocketType::STREAM, flags, None)
            .map_err(|e| failed("make a socket", e.into()))
    });
    made.unwrap_or_else(|source| Err(failed("start a thread", source)))
}

/// Traffic counters of every interface in each of the namespaces pinned at `paths`,
/// in that order. One that cannot be read holds no other up.
///
/// # Errors
/// There is no thread for it.
pub fn interface_stats<P: AsRef<Path> + Sync>(
    paths: &[P],
) -> io::Result<Vec<Result<Vec<InterfaceStats>, NetNsError>>> {
    if paths.is_empty() {
        return Ok(Vec::new());
    }
    // It enters one after the other, and leaves none: it ends.
    on_thread("netns-stats", || {
        let all = paths.iter().map(|path| interfaces_of(path.as_ref()));
        all.collect()
    })
}

fn interfaces_of(path: &Path) -> Result<Vec<InterfaceStats>, NetNsError> {
    let failed = |step, source: io::Error| NetNsError::Interfaces {
        path: path.into(),
        step,
        source,
    };
    let netns = File::open(path).map_err(|e| failed("open", e))?;
    setns(&netns, CloneFlags::CLONE_NEWNET).map_err(|e| failed("enter", e.into()))?;
    netlink::interfaces().map_err(|e| failed("ask the kernel", e))
}

/// Runs `work` on a thread that ends with it.
fn on_thread<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name(name.into())
            .stack_size(128 * 1024)
            .spawn_scoped(scope, work)?;
        thread
            .join()
            .map_err(|_| io::Error::other("the thread panicked"))
    })
}

/// A new namespace with its loopback up; it ends with the descriptor.
fn create() -> Result<OwnedFd, NetNsError> {
    let failed = |step, source| NetNsError::Create { step, source };
    on_thread("netns-create", || {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|e| failed("unshare", e.into()))?;
        netlink::loopback_up().map_err(|e| failed("bring lo up", e))?;
        let namespace = File::open(OWN_NETNS).map_err(|e| failed("open it", e))?;
        Ok(namespace.into())
    })
    .unwrap_or_else(|source| Err(failed("start a thread", source)))
}

/// The directory that a pin is in.
fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

fn pin_error(path: &Path, step: &'static str, source: io::Error) -> NetNsError {
    NetNsError::Pin {
        path: path.into(),
        step,
        source,
    }
}

/// Makes the file that the namespace is mounted on. An empty one that a crash
/// left is taken over.
fn reserve(path: &Path) -> Result<(), NetNsError> {
    match OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o444)
        .open(path)
    {
        Ok(_) => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(source) => return Err(pin_error(path, "create the file", source)),
    }
    if NetNs::is_pinned(path) {
        return Err(NetNsError::Exists { path: path.into() });
    }
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_file() && meta.len() == 0 => Ok(()),
        Ok(_) => Err(NetNsError::NotAPin { path: path.into() }),
        Err(source) => Err(pin_error(path, "stat", source)),
    }
}

/// Makes the directory and, where the mount that holds it is private, mounts
/// it on itself as shared, as `ip netns` does: pins made later then reach the
/// mount namespaces that copied this one (CNI daemons in pods), and a pin
/// removed here does not live on in them.
///
/// A lock on the directory keeps two threads, or two engines, from stacking
/// two mounts, of which the upper would hide pins of the lower.
fn prepare_dir(dir: &Path) -> Result<(), NetNsError> {
    let failed = |step, source| NetNsError::Directory {
        path: dir.into(),
        step,
        source,
    };
    fs::create_dir_all(dir).map_err(|e| failed("create", e))?;
    let _lock = lock_dir(dir).map_err(|e| failed("lock", e))?;
    let mounts = Mounts::read(dir)?;
    if mounts.shared {
        return Ok(());
    }
    // A bind mount would hide the pins that are there already: leave it then.
    if !mounts.is_mount_point {
        if mounts.holds_mounts {
            return Ok(());
        }
        mount_bind(dir, dir).map_err(|e| failed("mount it on itself", e.into()))?;
    }
    mount_change(dir, MountPropagationFlags::SHARED)
        .map_err(|e| failed("make its mount shared", e.into()))
}

/// The lock is on the directory's inode, which stays the same when the
/// directory is mounted on itself.
fn lock_dir(dir: &Path) -> io::Result<File> {
    let file = File::open(dir)?;
    flock(&file, FlockOperation::LockExclusive)?;
    Ok(file)
}

/// What the mount table says about a directory.
#[derive(Debug, Default, PartialEq, Eq)]
struct Mounts {
    /// The mount that holds the directory is shared.
    shared: bool,
    /// That mount is mounted on the directory itself.
    is_mount_point: bool,
    /// Something is mounted below the directory.
    holds_mounts: bool,
}

impl Mounts {
    fn read(dir: &Path) -> Result<Self, NetNsError> {
        let failed = |step, source| NetNsError::Directory {
            path: dir.into(),
            step,
            source,
        };
        let real = fs::canonicalize(dir).map_err(|e| failed("resolve", e))?;
        let table = crate::procfs::mount_table("/proc/thread-self/mountinfo")
            .map_err(|e| failed("read the mount table", e))?;
        Ok(Self::parse(&table, &real))
    }

    fn parse(table: &str, dir: &Path) -> Self {
        let mut found = Self::default();
        let mut deepest = 0;
        for line in table.lines() {
            let Some(entry) = crate::mount::table::Entry::parse(line) else {
                continue;
            };
            let point = entry.point.as_path();
            if dir.starts_with(point) {
                let depth = point.components().count();
                // A later line of the same depth lies on top.
                if depth >= deepest {
                    deepest = depth;
                    found.shared = entry.peer_group.is_some();
                    found.is_mount_point = point == dir;
                }
            } else if point.starts_with(dir) {
                found.holds_mounts = true;
            }
        }
        found
    }
}

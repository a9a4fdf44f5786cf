//! Detached mounts: trees that hang nowhere until a container takes them.
//!
//! Makes them and sets their attributes; never attaches one and never touches
//! the host's mount table. A detached mount lives as long as its descriptor,
//! so a crash leaves nothing.

pub(crate) mod idmap;
pub(crate) mod table;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, open_tree,
};

pub use idmap::{IdMapping, supports_idmap, user_namespace};

use crate::sys::mount_attr::{MountAttr, mount_setattr};

/// A failure of this module.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The source of a bind mount does not exist.
    #[error("mount source {} does not exist", path.display())]
    NotFound {
        /// The source.
        path: PathBuf,
    },
    /// The source could not be cloned.
    #[error("clone the mount of {}", path.display())]
    Clone {
        /// The source.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Bidirectional propagation needs a shared mount underneath.
    #[error("{} is not on a shared mount (it is on {})", path.display(), mount.display())]
    NotShared {
        /// The source.
        path: PathBuf,
        /// The mount that holds it.
        mount: PathBuf,
    },
    /// The mount that holds a source cannot be found out.
    #[error("find the mount of {}", path.display())]
    Table {
        /// The source.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// An attribute could not be set.
    #[error("make the mount of {} {attribute}", path.display())]
    Attribute {
        /// The source.
        path: PathBuf,
        /// Which one.
        attribute: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The file system of a source has no idmapped mounts.
    #[error("the file system of {} cannot be idmapped", path.display())]
    IdmapUnsupported {
        /// The source.
        path: PathBuf,
    },
    /// A file system could not be made.
    #[error("mount a {filesystem}: {step}{log}")]
    Make {
        /// Its type.
        filesystem: &'static str,
        /// What was tried.
        step: String,
        /// What the kernel logged about it, with a leading separator.
        log: String,
        /// The cause.
        source: io::Error,
    },
    /// A user namespace for an id mapping could not be made.
    #[error("make a user namespace: {step}")]
    UserNamespace {
        /// What was tried.
        step: &'static str,
        /// The cause.
        source: io::Error,
    },
}

/// How mounts and unmounts travel between a bind mount and its source.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Propagation {
    /// Neither way.
    #[default]
    Private,
    /// From the source to the bind mount.
    Slave,
    /// Both ways; the source must be on a shared mount.
    Shared,
}

/// How to clone a tree of mounts.
#[derive(Debug)]
pub struct BindOptions {
    /// Take the mounts below the source along.
    pub recursive: bool,
    /// The top mount is read-only.
    pub read_only: bool,
    /// All of the tree is read-only.
    pub recursive_read_only: bool,
    /// Where later mounts travel.
    pub propagation: Propagation,
    /// Attributes of all of the tree: no programs, no devices, no set-user-id.
    pub forbidden: MountAttrFlags,
    /// Show the files of the top mount with the ids of this user namespace.
    pub idmap: Option<OwnedFd>,
}

impl Default for BindOptions {
    fn default() -> Self {
        Self {
            recursive: false,
            read_only: false,
            recursive_read_only: false,
            propagation: Propagation::Private,
            forbidden: MountAttrFlags::empty(),
            idmap: None,
        }
    }
}

/// Flags of a new mount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TmpfsFlags {
    /// No writes.
    pub read_only: bool,
    /// No set-user-id programs.
    pub nosuid: bool,
    /// No devices.
    pub nodev: bool,
    /// No programs.
    pub noexec: bool,
}

/// Clones the mount tree at `path` (symbolic links are followed) into a
/// detached one. Flags that the source mount has (nosuid, nodev …) stay.
pub fn clone_tree(path: &Path, options: &BindOptions) -> Result<OwnedFd, MountError> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if options.recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    if options.propagation == Propagation::Shared {
        require_shared(path)?;
    }
    let tree = open_tree(CWD, path, flags).map_err(|e| match e {
        rustix::io::Errno::NOENT => MountError::NotFound { path: path.into() },
        e => MountError::Clone {
            path: path.into(),
            source: e.into(),
        },
    })?;
    set_propagation(path, &tree, options.propagation)?;
    if let Some(user_ns) = &options.idmap {
        set_idmap(path, &tree, user_ns)?;
    }
    if options.read_only || options.recursive_read_only {
        let attr = MountAttr {
            set: MountAttrFlags::MOUNT_ATTR_RDONLY,
            ..MountAttr::default()
        };
        let recursive = options.recursive_read_only;
        let attribute = if recursive {
            "recursively read-only"
        } else {
            "read-only"
        };
        set(path, &tree, &attr, recursive, attribute)?;
    }
    if !options.forbidden.is_empty() {
        let attr = MountAttr {
            set: options.forbidden,
            ..MountAttr::default()
        };
        let attribute = "recursively without programs, devices or set-user-id";
        set(path, &tree, &attr, true, attribute)?;
    }
    Ok(tree)
}

/// Makes a detached tmpfs. An option with an empty value is a flag.
pub fn tmpfs(options: &[(&str, &str)], flags: TmpfsFlags) -> Result<OwnedFd, MountError> {
    let failed = |step: String, log: String, e: rustix::io::Errno| MountError::Make {
        filesystem: "tmpfs",
        step,
        log,
        source: e.into(),
    };
    let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|e| failed("open".into(), String::new(), e))?;
    for (key, value) in options {
        let set = if value.is_empty() {
            fsconfig_set_flag(fs.as_fd(), *key)
        } else {
            fsconfig_set_string(fs.as_fd(), *key, *value)
        };
        set.map_err(|e| failed(format!("option {key}={value}"), kernel_log(&fs), e))?;
    }
    fsconfig_create(fs.as_fd()).map_err(|e| failed("create".into(), kernel_log(&fs), e))?;
    fsmount(
        fs.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        flags.attributes(),
    )
    .map_err(|e| failed("mount".into(), kernel_log(&fs), e))
}

impl TmpfsFlags {
    fn attributes(self) -> MountAttrFlags {
        let mut attributes = MountAttrFlags::empty();
        attributes.set(MountAttrFlags::MOUNT_ATTR_RDONLY, self.read_only);
        attributes.set(MountAttrFlags::MOUNT_ATTR_NOSUID, self.nosuid);
        attributes.set(MountAttrFlags::MOUNT_ATTR_NODEV, self.nodev);
        attributes.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, self.noexec);
        attributes
    }
}

/// Whether whole trees can be made read-only here (Linux 5.12): tried once on
/// a mount of our own.
pub fn supports_recursive_read_only() -> bool {
    static SUPPORTED: OnceLock<bool> = OnceLock::new();
    *SUPPORTED.get_or_init(|| {
        let attr = MountAttr {
            set: MountAttrFlags::MOUNT_ATTR_RDONLY,
            ..MountAttr::default()
        };
        tmpfs(&[("size", "4k")], TmpfsFlags::default())
            .is_ok_and(|mount| mount_setattr(mount.as_fd(), &attr, true).is_ok())
    })
}

fn set_propagation(
    path: &Path,
    tree: &OwnedFd,
    propagation: Propagation,
) -> Result<(), MountError> {
    let (flag, attribute) = match propagation {
        Propagation::Private => (libc::MS_PRIVATE, "recursively private"),
        Propagation::Slave => (libc::MS_SLAVE, "a recursive slave"),
        // A clone of a shared mount is in its peer group already.
        Propagation::Shared => return Ok(()),
    };
    let attr = MountAttr {
        propagation: flag,
        ..MountAttr::default()
    };
    set(path, tree, &attr, true, attribute)
}

/// The mapping is for the top mount only: a file system below it that cannot
/// be mapped (a host path with proc in it) would fail the whole tree.
fn set_idmap(path: &Path, tree: &OwnedFd, user_ns: &OwnedFd) -> Result<(), MountError> {
    let attr = MountAttr {
        set: MountAttrFlags::MOUNT_ATTR_IDMAP,
        user_ns: Some(user_ns.as_fd()),
        ..MountAttr::default()
    };
    mount_setattr(tree.as_fd(), &attr, false).map_err(|source| match source.raw_os_error() {
        Some(libc::EINVAL) => MountError::IdmapUnsupported { path: path.into() },
        _ => MountError::Attribute {
            path: path.into(),
            attribute: "idmapped",
            source,
        },
    })
}

fn set(
    path: &Path,
    tree: &OwnedFd,
    attr: &MountAttr<'_>,
    recursive: bool,
    attribute: &'static str,
) -> Result<(), MountError> {
    mount_setattr(tree.as_fd(), attr, recursive).map_err(|source| MountError::Attribute {
        path: path.into(),
        attribute,
        source,
    })
}

/// A clone of a private mount is private too, and a container that was
/// promised bidirectional mounts would mount into the void.
fn require_shared(path: &Path) -> Result<(), MountError> {
    let failed = |source| MountError::Table {
        path: path.into(),
        source,
    };
    let entry = match table::Entry::holding(path) {
        Ok(entry) => entry,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(MountError::NotFound { path: path.into() });
        }
        Err(e) => return Err(failed(e)),
    };
    match entry.peer_group {
        Some(_) => Ok(()),
        None => Err(MountError::NotShared {
            path: path.into(),
            mount: entry.point,
        }),
    }
}

/// What the kernel says about a file system that it could not make.
fn kernel_log(fs: &OwnedFd) -> String {
    let mut log = String::new();
    let mut buffer = [0; 512];
    // One message per read, then ENODATA.
    while let Ok(length @ 1..) = rustix::io::read(fs, &mut buffer) {
        log.push_str(": ");
        log.push_str(String::from_utf8_lossy(&buffer[..length]).trim_end());
    }
    log
}

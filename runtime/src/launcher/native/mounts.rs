//! Mounts of a container, made by its first process.
//!
//! Works on descriptors: what is attached was made detached, and has all of its
//! attributes before anybody sees it.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
};

use super::place::{Kind, Root, is_directory};
use super::prepare::{Attributes, CgroupView, Mount, What};
use crate::sys::mount_attr::{MountAttr, mount_setattr};
use crate::sys::propagation::{Propagation, set_propagation};

/// What only the host's view gives: taken before it is left.
#[derive(Debug)]
pub(super) struct Taken {
    /// Clones of the container's cgroups, for each mount that shows them.
    cgroups: Vec<Vec<OwnedFd>>,
    /// The host's /dev/null: an image cannot have replaced it.
    null: Option<OwnedFd>,
}

impl Taken {
    /// Takes clones of the cgroups.
    pub(super) fn cgroups(view: &CgroupView, mounts: &[Mount]) -> Result<Self, Errno> {
        let shown = mounts
            .iter()
            .filter(|mount| matches!(mount.what, What::Cgroup));
        let clones = shown.map(|_| {
            let dirs = view.hierarchies.iter().map(|hierarchy| &hierarchy.dir);
            dirs.map(|dir| clone(CWD, dir)).collect()
        });
        Ok(Self {
            cgroups: clones.collect::<Result<_, _>>()?,
            null: None,
        })
    }

    /// Takes a clone of /dev/null.
    pub(super) fn null(&mut self) -> Result<(), Errno> {
        let null = clone(CWD, c"/dev/null")?;
        // A peer of the host's mount where that is shared.
        limit(null.as_fd(), Propagation::Private)?;
        self.null = Some(null);
        Ok(())
    }
}

fn clone(at: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_EMPTY_PATH, path.is_empty());
    rustix::mount::open_tree(at, path, flags)
}

/// Attaches a detached mount to a place.
pub(super) fn attach(mount: BorrowedFd<'_>, place: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, c"", place, c"", flags)
}

/// Makes the container's root the root of everything.
pub(super) fn enter(rootfs: BorrowedFd<'_>) -> Result<(), Errno> {
    // What is unmounted below must not be unmounted at the host's peers.
    let everything = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change(c"/", everything)?;
    // Any directory will do to attach it; this one is always there.
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(rootfs, c"", CWD, c"/proc", flags)?;
    rustix::process::fchdir(rootfs)?;
    rustix::process::pivot_root(c".", c".")?;
    // The old root lies on top of the new one now.
    rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
    rustix::process::chdir(c"/")
}

/// Makes one mount.
pub(super) fn make(
    root: &Root,
    mount: &Mount,
    view: &CgroupView,
    taken: &mut Taken,
) -> Result<(), Errno> {
    match &mount.what {
        What::Filesystem {
            kind,
            source,
            parameters,
        } => {
            let filesystem = new_filesystem(kind, source, parameters, mount.top.set)?;
            change(filesystem.as_fd(), mount.tree, true)?;
            let place = root.place(&mount.destination, Kind::Directory)?;
            attach(filesystem.as_fd(), place.as_fd())?;
            match mount.propagation {
                Propagation::Shared => {
                    set_propagation(filesystem.as_fd(), Propagation::Shared, false)
                }
                // It has no other end.
                Propagation::Private | Propagation::Slave => Ok(()),
            }
        }
        What::Bind { tree, directory } => {
            limit(tree.as_fd(), mount.propagation)?;
            change(tree.as_fd(), mount.top, false)?;
            change(tree.as_fd(), mount.tree, true)?;
            let kind = if *directory {
                Kind::Directory
            } else {
                Kind::File
            };
            let place = root.place(&mount.destination, kind)?;
            attach(tree.as_fd(), place.as_fd())
        }
        What::Cgroup => {
            let place = root.place(&mount.destination, Kind::Directory)?;
            let clones = taken.cgroups.pop().unwrap_or_default();
            let top = show_cgroups(view, &clones, place.as_fd())?;
            // Clones are peers of the host's mounts where those are shared.
            limit(top.as_fd(), mount.propagation)?;
            // Flags for the top alone would leave the hierarchies writable.
            change(top.as_fd(), mount.top, true)?;
            change(top.as_fd(), mount.tree, true)
        }
    }
}

/// A source travels no further than its options say: one that was opened as a
/// peer of the host's stays one only where they do.
fn limit(tree: BorrowedFd<'_>, propagation: Propagation) -> Result<(), Errno> {
    match propagation {
        Propagation::Shared => Ok(()),
        limited => set_propagation(tree, limited, true),
    }
}

fn new_filesystem(
    kind: &CStr,
    source: &CStr,
    parameters: &[(std::ffi::CString, Option<std::ffi::CString>)],
    attributes: MountAttrFlags,
) -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    if !source.is_empty() {
        fsconfig_set_string(context.as_fd(), c"source", source)?;
    }
    for (key, value) in parameters {
        match value {
            Some(value) => fsconfig_set_string(context.as_fd(), key.as_c_str(), value.as_c_str())?,
            None => fsconfig_set_flag(context.as_fd(), key.as_c_str())?,
        }
    }
    fsconfig_create(context.as_fd())?;
    rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Changes attributes of a mount, and of those below it when `recursive`.
fn change(mount: BorrowedFd<'_>, attributes: Attributes, recursive: bool) -> Result<(), Errno> {
    if attributes.is_empty() {
        return Ok(());
    }
    let attr = MountAttr {
        set: attributes.set,
        clear: attributes.clear,
        ..MountAttr::default()
    };
    set(mount, &attr, recursive)
}

fn set(mount: BorrowedFd<'_>, attr: &MountAttr<'_>, recursive: bool) -> Result<(), Errno> {
    mount_setattr(mount, attr, recursive)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::INVAL))
}

/// Attaches one cgroup, or a directory with one for each hierarchy; gives the
/// mount on top.
fn show_cgroups(
    view: &CgroupView,
    clones: &[OwnedFd],
    place: BorrowedFd<'_>,
) -> Result<OwnedFd, Errno> {
    if view.unified {
        let cgroup = clones.first().ok_or(Errno::NOENT)?;
        attach(cgroup.as_fd(), place)?;
        return rustix::io::fcntl_dupfd_cloexec(cgroup, 3);
    }
    let none = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mode = (c"mode".to_owned(), Some(c"755".to_owned()));
    let top = new_filesystem(c"tmpfs", c"cgroup", &[mode], none)?;
    attach(top.as_fd(), place)?;
    let mode = Mode::RWXU | Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH;
    for (hierarchy, clone) in view.hierarchies.iter().zip(clones) {
        let name = hierarchy.name.as_c_str();
        rustix::fs::mkdirat(&top, name, mode)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(clone.as_fd(), c"", top.as_fd(), name, flags)?;
        for link in &hierarchy.links {
            rustix::fs::symlinkat(name, &top, link.as_c_str())?;
        }
    }
    Ok(top)
}

/// Hides paths: files behind /dev/null, directories behind an empty one.
#[derive(Debug)]
pub(super) struct Mask {
    null: Option<OwnedFd>,
    empty: Option<OwnedFd>,
    null_used: bool,
}

impl Mask {
    /// What masks.
    pub(super) fn new(taken: Taken) -> Self {
        Self {
            null: taken.null,
            empty: None,
            null_used: false,
        }
    }

    /// Hides one path. One that is not there needs no hiding.
    pub(super) fn hide(&mut self, root: &Root, path: &CStr) -> Result<(), Errno> {
        let place = match root.find(path) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            other => other?,
        };
        if !is_directory(place.as_fd())? {
            let null = self.null.as_ref().ok_or(Errno::NOENT)?;
            let used = std::mem::replace(&mut self.null_used, true);
            return attach_again(null, used, place.as_fd());
        }
        if let Some(empty) = &self.empty {
            return attach_again(empty, true, place.as_fd());
        }
        let parameters = [(c"nr_inodes", c"1"), (c"size", c"4k"), (c"mode", c"0555")]
            .map(|(key, value)| (key.to_owned(), Some(value.to_owned())));
        let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let empty = new_filesystem(c"tmpfs", c"tmpfs", &parameters, attributes)?;
        attach(empty.as_fd(), place.as_fd())?;
        self.empty = Some(empty);
        Ok(())
    }
}

/// A mount can be attached once; what is attached can be cloned.
fn attach_again(mount: &OwnedFd, used: bool, place: BorrowedFd<'_>) -> Result<(), Errno> {
    if !used {
        return attach(mount.as_fd(), place);
    }
    let again = clone(mount.as_fd(), c"")?;
    attach(again.as_fd(), place)
}

/// Makes a path and what is mounted below it read-only. One that is not there
/// is left out.
pub(super) fn make_readonly(root: &Root, path: &CStr) -> Result<(), Errno> {
    let place = match root.find(path) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        other => other?,
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = rustix::mount::open_tree(&place, c"", flags)?;
    set(tree.as_fd(), &read_only(), true)?;
    attach(tree.as_fd(), place.as_fd())
}

/// Makes the root itself read-only.
pub(super) fn make_root_readonly() -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(c"/", flags, Mode::empty())?;
    set(root.as_fd(), &read_only(), false)
}

/// Makes the root a peer for namespaces that are made of this one.
pub(super) fn share_root() -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(c"/", flags, Mode::empty())?;
    set_propagation(root.as_fd(), Propagation::Shared, false)
}

fn read_only() -> MountAttr<'static> {
    MountAttr {
        set: MountAttrFlags::MOUNT_ATTR_RDONLY,
        ..MountAttr::default()
    }
}

/// Binds a file that is there to a place.
pub(super) fn bind_file(file: BorrowedFd<'_>, place: BorrowedFd<'_>) -> Result<(), Errno> {
    let tree = clone(file, c"")?;
    attach(tree.as_fd(), place)
}

/// Type and numbers of a node.
pub(super) fn node_of(place: BorrowedFd<'_>, name: &CStr) -> Result<(u32, u64), Errno> {
    let stat = rustix::fs::statat(place, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok((
        rustix::fs::FileType::from_raw_mode(stat.st_mode).as_raw_mode(),
        stat.st_rdev,
    ))
}

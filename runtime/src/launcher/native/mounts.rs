//! Mounts of a container, made by its first process.
//!
//! Works on descriptors: what is attached was made detached, and has all of its
//! attributes before anybody sees it.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
};

use super::super::null;
use super::super::place::{Kind, is_directory};
use super::prepare::{Attributes, CgroupView, Foreign, Mount, What};
use super::procfs;
use super::tree::{Held, Tree};
use crate::sys::mount_attr::{MountAttr, mount_setattr};
use crate::sys::propagation::{Propagation, set_propagation};

/// What only the host's view gives, taken before it is left.
#[derive(Debug)]
pub(super) struct Taken {
    /// Clones of the container's cgroups, for each mount that shows them.
    cgroups: Vec<Vec<OwnedFd>>,
    /// Clones of the proc filesystem, for each mount of one, where it cannot be made.
    procfs: Vec<OwnedFd>,
    /// The container's own /dev with its nodes, where they cannot be made in it.
    pub(super) dev: Option<OwnedFd>,
    /// New filesystems by their places among the mounts, the last first.
    made: Vec<(CString, OwnedFd)>,
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
            procfs: Vec::new(),
            dev: None,
            made: Vec::new(),
        })
    }

    /// Makes what shows the kernel itself while the node's are there: to others than the
    /// node's root the kernel gives no more to see than they have.
    pub(super) fn make_kernels(&mut self, mounts: &[Mount]) -> Result<(), Errno> {
        for mount in mounts.iter().rev() {
            let What::Filesystem {
                kind,
                source,
                parameters,
            } = &mount.what
            else {
                continue;
            };
            let given = mount.what.is_proc() && !self.procfs.is_empty();
            if given || ![c"proc", c"sysfs"].contains(&kind.as_c_str()) {
                continue;
            }
            let made = new_filesystem(kind, source, parameters, mount.top.set)?;
            self.made.push((mount.destination.clone(), made));
        }
        Ok(())
    }

    /// Takes clones of the proc filesystem of a pid namespace that others live in.
    pub(super) fn procfs(&mut self, pids: &Foreign, mounts: &[Mount]) -> Result<(), Errno> {
        let wanted = mounts.iter().filter(|mount| mount.what.is_proc()).count();
        let namespace = pids.namespace.as_fd();
        self.procfs = procfs::clones(pids.procfs.as_fd(), namespace, wanted)?;
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
pub(super) fn make<'a>(
    tree: &mut Tree<'a>,
    mount: &'a Mount,
    view: &CgroupView,
    taken: &mut Taken,
) -> Result<(), Errno> {
    let made = match &mount.what {
        What::Filesystem { .. } => Held::Own(make_filesystem(tree, mount, taken)?),
        What::Bind { tree: source, .. } => {
            bind(tree, mount)?;
            Held::Given(source.as_fd())
        }
        What::Cgroup => {
            let place = tree.place(&mount.destination, Kind::Directory, mount.links)?;
            let clones = taken.cgroups.pop().unwrap_or_default();
            let top = show_cgroups(view, &clones, place.as_fd())?;
            // Clones are peers of the host's mounts where those are shared.
            limit(top.as_fd(), mount.propagation)?;
            // Flags for the top alone would leave the hierarchies writable.
            change(top.as_fd(), mount.top, true)?;
            change(top.as_fd(), mount.tree, true)?;
            Held::Own(top)
        }
    };
    tree.attached(&mount.destination, made, mount.kernels);
    Ok(())
}

fn make_filesystem(tree: &Tree<'_>, mount: &Mount, taken: &mut Taken) -> Result<OwnedFd, Errno> {
    let What::Filesystem {
        kind,
        source,
        parameters,
    } = &mount.what
    else {
        return Err(Errno::INVAL);
    };
    let given = if mount.what.is_proc() {
        taken.procfs.pop()
    } else {
        None
    };
    let dev = taken.dev.take_if(|_| mount.is_own_dev());
    let is_its = |(place, _): &mut (CString, OwnedFd)| *place == mount.destination;
    let made = taken.made.pop_if(is_its).map(|(_, made)| made);
    let filesystem = match (given, dev.or(made)) {
        (Some(given), _) => {
            change(given.as_fd(), mount.top.alone(), false)?;
            given
        }
        (None, Some(made)) => made,
        (None, None) => new_filesystem(kind, source, parameters, mount.top.set)?,
    };
    change(filesystem.as_fd(), mount.tree, true)?;
    let place = tree.place(&mount.destination, Kind::Directory, mount.links)?;
    attach(filesystem.as_fd(), place.as_fd())?;
    match mount.propagation {
        Propagation::Shared => set_propagation(filesystem.as_fd(), Propagation::Shared, false)?,
        // It has no other end.
        Propagation::Private | Propagation::Slave => {}
    }
    Ok(filesystem)
}

fn bind(tree: &Tree<'_>, mount: &Mount) -> Result<(), Errno> {
    let What::Bind {
        tree: source,
        directory,
    } = &mount.what
    else {
        return Err(Errno::INVAL);
    };
    limit(source.as_fd(), mount.propagation)?;
    change(source.as_fd(), mount.top, false)?;
    change(source.as_fd(), mount.tree, true)?;
    let kind = if *directory {
        Kind::Directory
    } else {
        Kind::File
    };
    let place = tree.place(&mount.destination, kind, mount.links)?;
    attach(source.as_fd(), place.as_fd())
}

/// A source travels no further than its options say: one that was opened as a
/// peer of the host's stays one only where they do.
fn limit(tree: BorrowedFd<'_>, propagation: Propagation) -> Result<(), Errno> {
    match propagation {
        Propagation::Shared => Ok(()),
        limited => set_propagation(tree, limited, true),
    }
}

pub(super) fn new_filesystem(
    kind: &CStr,
    source: &CStr,
    parameters: &[(CString, Option<CString>)],
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

/// Hides paths: files behind a null device of the container's own, directories
/// behind an empty one. Nobody writes through a mask.
#[derive(Debug, Default)]
pub(super) struct Mask {
    null: Option<OwnedFd>,
    empty: Option<OwnedFd>,
}

impl Mask {
    /// Hides one path. One that the kernel has not needs no hiding.
    pub(super) fn hide(&mut self, tree: &Tree<'_>, path: &CStr) -> Result<(), Errno> {
        let Some(place) = tree.find(path)? else {
            return Ok(());
        };
        if !is_directory(place.as_fd())? {
            let mask = match &self.null {
                Some(null) => clone(null.as_fd(), c"")?,
                None => null_mask(tree)?,
            };
            attach(mask.as_fd(), place.as_fd())?;
            self.null = Some(mask);
            return Ok(());
        }
        if let Some(empty) = &self.empty {
            let again = clone(empty.as_fd(), c"")?;
            return attach(again.as_fd(), place.as_fd());
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

/// A read-only clone of a null device: that of the container's own /dev, or where
/// /dev is a volume, one in a filesystem that nothing else is in.
fn null_mask(tree: &Tree<'_>) -> Result<OwnedFd, Errno> {
    let mask = match tree.own_dev() {
        Some(dev) => {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let null = rustix::fs::openat(dev, null::NAME, flags, Mode::empty())?;
            null::check(null.as_fd())?;
            clone(null.as_fd(), c"")?
        }
        None => clone_detached(null::filesystem()?.as_fd(), null::NAME)?,
    };
    set(mask.as_fd(), &read_only(), false)?;
    Ok(mask)
}

/// A clone of a file in a detached filesystem. Kernels before 6.15 clone only what
/// is attached here: it lies over the root for that moment.
fn clone_detached(filesystem: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let root = root()?;
    attach(filesystem, root.as_fd())?;
    let cloned = clone(filesystem, name);
    // The way to the topmost mount at the root, as after pivot_root.
    rustix::mount::unmount(c"/", UnmountFlags::DETACH)?;
    cloned
}

/// Makes a path and what is mounted below it read-only. One that the kernel has
/// not is left out.
pub(super) fn make_readonly(tree: &Tree<'_>, path: &CStr) -> Result<(), Errno> {
    let Some(place) = tree.find(path)? else {
        return Ok(());
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = rustix::mount::open_tree(&place, c"", flags)?;
    set(tree.as_fd(), &read_only(), true)?;
    attach(tree.as_fd(), place.as_fd())
}

fn root() -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(c"/", flags, Mode::empty())
}

/// Makes the root itself read-only.
pub(super) fn make_root_readonly() -> Result<(), Errno> {
    set(root()?.as_fd(), &read_only(), false)
}

/// Makes the root a peer for namespaces that are made of this one.
pub(super) fn share_root() -> Result<(), Errno> {
    set_propagation(root()?.as_fd(), Propagation::Shared, false)
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

//! The bundle: where root and mounts are while libcontainer works.
//!
//! Owns a tmpfs in two mount namespaces. Both are cut off from the host's
//! first, so that nothing that is attached here shows up there; what is
//! attached keeps the propagation it was given. The container's processes
//! enter the first, in which everything is prepared. libcontainer's other
//! processes are in the second, which lacks sources and cgroups: libcontainer
//! takes any cgroup filesystem that it sees for the machine's, a volume's too.
//! All of it goes with the last process that uses the namespaces.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::Spec;
use nix::sched::CloneFlags;
use runtime::launcher::{LaunchError, null, place};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};

/// The directory of sources.
const SOURCES: &str = "mounts";
/// The directory of a null device.
const NULL: &str = "null";

/// The bundle's directory.
#[derive(Debug)]
pub(crate) struct Bundle {
    dir: PathBuf,
}

impl Bundle {
    /// Leaves the host's mount namespace and makes an empty bundle there.
    pub(crate) fn make(dir: PathBuf) -> Result<Self, LaunchError> {
        let failed = |errno: Errno| {
            LaunchError::failed("make the bundle", format!("{}: {errno}", dir.display()))
        };
        nix::sched::unshare(CloneFlags::CLONE_NEWNS)
            .map_err(|errno| failed(Errno::from_raw_os_error(errno as i32)))?;
        let everything = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change(c"/", everything).map_err(failed)?;
        rustix::mount::mount(
            c"slipway",
            &dir,
            c"tmpfs",
            MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
            Some(c"mode=0700"),
        )
        .map_err(failed)?;
        for name in ["rootfs", SOURCES, "state"] {
            rustix::fs::mkdir(dir.join(name), Mode::RWXU).map_err(failed)?;
        }
        hide_null(&dir).map_err(|errno| LaunchError::failed("make a null device", errno))?;
        // A mount point of its own, so that all sources can go at once.
        let sources = dir.join(SOURCES);
        clone_tree(&sources)
            .and_then(|clone| attach(clone.as_fd(), &sources))
            .map_err(failed)?;
        Ok(Self { dir })
    }

    /// Leaves the namespace in which everything is attached, for one without
    /// sources and cgroups; gives the namespace that was left.
    pub(crate) fn leave(&self) -> Result<OwnedFd, LaunchError> {
        let failed = |errno| LaunchError::failed("leave the container's mounts", errno);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let left = rustix::fs::open(c"/proc/self/ns/mnt", flags, Mode::empty()).map_err(failed)?;
        nix::sched::unshare(CloneFlags::CLONE_NEWNS)
            .map_err(|errno| failed(Errno::from_raw_os_error(errno as i32)))?;
        // What is unmounted here must not be unmounted at the host's peers.
        let everything = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        rustix::mount::mount_change(c"/", everything).map_err(failed)?;
        rustix::mount::unmount(self.dir.join(SOURCES), UnmountFlags::DETACH).map_err(failed)?;
        Ok(left)
    }

    /// Where `config.json` is.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// libcontainer's state.
    pub(crate) fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// The root filesystem.
    pub(crate) fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }

    /// Attaches the root filesystem.
    pub(crate) fn attach_rootfs(&self, mount: &OwnedFd) -> Result<(), LaunchError> {
        attach(mount.as_fd(), &self.rootfs())
            .map_err(|errno| LaunchError::failed("attach the root filesystem", errno))
    }

    /// Attaches a mount to use as a source; gives its path.
    pub(crate) fn attach_source(
        &self,
        index: usize,
        mount: &OwnedFd,
    ) -> Result<PathBuf, LaunchError> {
        let path = self.dir.join(SOURCES).join(index.to_string());
        make_target(mount.as_fd(), &path)
            .and_then(|()| attach(mount.as_fd(), &path))
            .map_err(|errno| LaunchError::failed(&format!("attach mounts[{index}]"), errno))?;
        Ok(path)
    }

    /// Makes the working directory in the root filesystem, where it is missing, which
    /// libcontainer does not. Why it cannot be is told when it is entered.
    pub(crate) fn make_working_directory(&self, spec: &Spec) {
        if let Some(process) = spec.process() {
            let _missing = place::make_directory(&self.rootfs(), process.cwd());
        }
    }

    /// Makes a directory among the sources.
    pub(crate) fn make_source_dir(&self, name: &str) -> Result<PathBuf, LaunchError> {
        make_dir(self.dir.join(SOURCES).join(name))
    }

    /// Makes a directory of the bundle's own.
    pub(crate) fn make_dir(&self, name: &str) -> Result<PathBuf, LaunchError> {
        make_dir(self.dir.join(name))
    }
}

/// Lays a null device of the container's own over the node's, for the runtimes: they
/// hide files behind what they find there.
fn hide_null(dir: &Path) -> Result<(), Errno> {
    let place = dir.join(NULL);
    rustix::fs::mkdir(&place, Mode::RWXU)?;
    attach(null::filesystem()?.as_fd(), &place)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let own = rustix::mount::open_tree(CWD, place.join("null"), flags)?;
    attach(own.as_fd(), Path::new("/dev/null"))
}

fn make_dir(path: PathBuf) -> Result<PathBuf, LaunchError> {
    let mode = Mode::RWXU | Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH;
    rustix::fs::mkdir(&path, mode)
        .map_err(|errno| LaunchError::failed("make the bundle", errno))?;
    Ok(path)
}

/// A detached clone of what is at a directory.
pub(crate) fn clone_tree(dir: &Path) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(CWD, dir, flags)
}

/// Attaches a detached mount to a directory or file.
pub(crate) fn attach(mount: BorrowedFd<'_>, target: &Path) -> Result<(), Errno> {
    rustix::mount::move_mount(
        mount,
        c"",
        CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
}

/// A mount's target is of its kind.
pub(crate) fn make_target(mount: BorrowedFd<'_>, path: &Path) -> Result<(), Errno> {
    let stat = rustix::fs::statat(mount, c"", AtFlags::EMPTY_PATH)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return rustix::fs::mkdir(path, Mode::RWXU);
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map(drop)
}

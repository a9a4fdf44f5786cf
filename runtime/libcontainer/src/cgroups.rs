//! The container's cgroups.
//!
//! Owns the joining: this process joins, the container's processes are born
//! inside. libcontainer is kept away from cgroups altogether, since it joins
//! too few of a hybrid's hierarchies, makes others, and on a failure kills
//! whatever is in them, this helper before it could say what failed. It finds
//! no cgroup filesystem, and takes that for a machine with nothing to do. A
//! container's own view of its cgroups is made here instead.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::{Mount, Spec};
use runtime::launcher::LaunchError;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, UnmountFlags};

use crate::bundle::{Bundle, attach, make_target};

/// Where all cgroup filesystems are.
const ROOT: &str = "/sys/fs/cgroup";

/// The container's cgroups by their `cgroup.procs`.
#[derive(Debug)]
pub(crate) struct Cgroups {
    dirs: Vec<PathBuf>,
}

impl Cgroups {
    /// Cgroups by their `cgroup.procs`.
    pub(crate) fn new(procs: &[Vec<u8>]) -> Self {
        let dir = |path: &Vec<u8>| {
            Path::new(OsStr::from_bytes(path))
                .parent()
                .map(Path::to_owned)
        };
        Self {
            dirs: procs.iter().filter_map(dir).collect(),
        }
    }

    /// Their directories.
    pub(crate) fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// Moves this process into all of them.
    pub(crate) fn join(&self) -> Result<(), LaunchError> {
        for dir in &self.dirs {
            let procs = dir.join("cgroup.procs");
            write(&procs, b"0").map_err(|errno| {
                LaunchError::failed("join cgroup", format!("{}: {errno}", procs.display()))
            })?;
        }
        Ok(())
    }

    /// Replaces mounts of type `cgroup` by binds of the container's own
    /// cgroups, which show the same whatever its cgroup namespace is.
    pub(crate) fn provide_view(&self, spec: &mut Spec, bundle: &Bundle) -> Result<(), LaunchError> {
        let Some(mounts) = spec.mounts_mut() else {
            return Ok(());
        };
        let mut replaced = Vec::with_capacity(mounts.len());
        for (index, mount) in mounts.drain(..).enumerate() {
            if is_cgroup(&mount) {
                replaced.extend(self.make_view(bundle, index, &mount)?);
            } else {
                replaced.push(mount);
            }
        }
        *mounts = replaced;
        Ok(())
    }

    /// One cgroup of a pure v2 machine, or a directory with all hierarchies.
    ///
    /// Each is attached to the bundle by its number: libcontainer takes a
    /// cgroup filesystem at a place that is called `cpu` for the machine's.
    fn make_view(
        &self,
        bundle: &Bundle,
        index: usize,
        mount: &Mount,
    ) -> Result<Vec<Mount>, LaunchError> {
        let view = bundle.make_dir(&format!("cgroup-{index}"))?;
        let mut mounts = vec![bind(mount, &view, mount.destination())];
        for (number, dir) in self.dirs.iter().enumerate() {
            let Ok(below) = dir.strip_prefix(ROOT) else {
                continue;
            };
            let failed = |errno: Errno| {
                let message = format!("{}: {errno}", dir.display());
                LaunchError::failed("show cgroups to the container", message)
            };
            let source = bundle.make_dir(&format!("cgroup-{index}-{number}"))?;
            let clone = clone_tree(dir).map_err(failed)?;
            attach(clone.as_fd(), &source).map_err(failed)?;
            if is_hierarchy(Path::new(ROOT)) {
                return Ok(vec![bind(mount, &source, mount.destination())]);
            }
            let Some(hierarchy) = below.components().next() else {
                continue;
            };
            make_target(clone.as_fd(), &view.join(hierarchy)).map_err(failed)?;
            link_controllers(&view, hierarchy.as_os_str()).map_err(failed)?;
            mounts.push(bind(mount, &source, &mount.destination().join(hierarchy)));
        }
        Ok(mounts)
    }
}

/// Takes cgroup filesystems out of this mount namespace.
pub(crate) fn hide(bundle: &Bundle) -> Result<(), LaunchError> {
    let failed = |errno| LaunchError::failed("hide cgroups from libcontainer", errno);
    let nothing = bundle.make_dir("no-cgroups")?;
    match rustix::mount::unmount(ROOT, UnmountFlags::DETACH) {
        // Not a mount point: there are no cgroups at all.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(errno) => return Err(failed(errno)),
    }
    let clone = clone_tree(&nothing).map_err(failed)?;
    attach(clone.as_fd(), Path::new(ROOT)).map_err(failed)
}

fn is_cgroup(mount: &Mount) -> bool {
    matches!(mount.typ().as_deref(), Some("cgroup" | "cgroup2"))
}

/// Whether this is a cgroup of some hierarchy itself.
fn is_hierarchy(dir: &Path) -> bool {
    dir.join("cgroup.procs").exists()
}

/// A bind mount with the flags of a cgroup mount.
fn bind(like: &Mount, source: &Path, destination: &Path) -> Mount {
    let mut options = vec!["bind".to_owned()];
    for option in like.options().iter().flatten() {
        if matches!(
            option.as_str(),
            "ro" | "nosuid" | "nodev" | "noexec" | "relatime"
        ) {
            options.push(option.clone());
        }
    }
    let mut mount = Mount::default();
    mount.set_destination(destination.to_owned());
    mount.set_typ(Some("bind".to_owned()));
    mount.set_source(Some(source.to_owned()));
    mount.set_options(Some(options));
    mount
}

/// `cpu,cpuacct` is found as `cpu` and as `cpuacct`, too.
fn link_controllers(view: &Path, hierarchy: &OsStr) -> Result<(), Errno> {
    let names = hierarchy.as_bytes();
    if !names.contains(&b',') {
        return Ok(());
    }
    for name in names.split(|byte| *byte == b',') {
        rustix::fs::symlink(hierarchy, view.join(OsStr::from_bytes(name)))?;
    }
    Ok(())
}

fn clone_tree(dir: &Path) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(CWD, dir, flags)
}

/// Writes an existing file at once.
pub(crate) fn write(path: &Path, text: &[u8]) -> Result<(), Errno> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::retry_on_intr(|| rustix::io::write(&file, text)).map(drop)
}

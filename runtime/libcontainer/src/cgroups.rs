//! The container's cgroups.
//!
//! Owns the joining: this process joins, the container's processes are born
//! inside. libcontainer is kept away from cgroups altogether, since it joins
//! too few of a hybrid's hierarchies, makes others, and on a failure kills
//! whatever is in them, this helper before it could say what failed. Where its
//! processes look there is no cgroup filesystem, which it takes for a machine
//! with nothing to do. A container's view of its cgroups is made here instead.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Mount, Spec};
use runtime::joining::is_v2;
use runtime::launcher::LaunchError;
use runtime::procfs::mount_table;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::bundle::{Bundle, attach, clone_tree, make_target};
use crate::propagation::mount_point;

/// Where all cgroup filesystems are.
const ROOT: &str = "/sys/fs/cgroup";

/// The container's cgroups.
#[derive(Debug)]
pub(crate) struct Cgroups {
    dirs: Vec<PathBuf>,
    files: Vec<Vec<u8>>,
}

impl Cgroups {
    /// Cgroups by the files that they are joined by.
    pub(crate) fn new(files: &[Vec<u8>]) -> Self {
        let dir = |path: &Vec<u8>| {
            Path::new(OsStr::from_bytes(path))
                .parent()
                .map(Path::to_owned)
        };
        Self {
            dirs: files.iter().filter_map(dir).collect(),
            files: files.to_vec(),
        }
    }

    /// Their directories.
    pub(crate) fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// The v2 tree's, where it is the only one that the container has.
    pub(crate) fn unified(&self) -> Option<&Path> {
        self.v2().filter(|_| self.files.len() == 1)
    }

    /// That of the v2 tree, be there others or not.
    pub(crate) fn v2(&self) -> Option<&Path> {
        let file = self.files.iter().find(|file| is_v2(file))?;
        Path::new(OsStr::from_bytes(file)).parent()
    }

    /// Moves this process into all of them.
    pub(crate) fn join(&self) -> Result<(), LaunchError> {
        for file in &self.files {
            let file = Path::new(OsStr::from_bytes(file));
            write(file, b"0").map_err(|errno| {
                LaunchError::failed("join cgroup", format!("{}: {errno}", file.display()))
            })?;
        }
        Ok(())
    }

    /// Replaces mounts of type `cgroup` by binds of the container's own
    /// cgroups, which show the same whatever its cgroup namespace is.
    pub(crate) fn provide_view(&self, spec: &mut Spec, bundle: &Bundle) -> Result<(), LaunchError> {
        let namespaces = spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.namespaces().as_ref());
        let is_own = |namespace: &LinuxNamespace| namespace.typ() == LinuxNamespaceType::Cgroup;
        let own = namespaces.into_iter().flatten().any(is_own);
        let mounts = spec.mounts_mut().iter_mut().flatten().enumerate();
        for (index, mount) in mounts.filter(|(_, mount)| is_cgroup(mount)) {
            let source = self.make_view(bundle, &format!("cgroup-{index}"), own)?;
            mount.set_typ(Some("bind".to_owned()));
            mount.set_source(Some(source));
            mount.set_options(Some(recursive(
                mount.options().as_deref().unwrap_or_default(),
            )));
        }
        Ok(())
    }

    /// One cgroup of the v2 tree alone, or a directory with all hierarchies. Without a
    /// cgroup namespace of its own a container sees the whole v2 tree.
    fn make_view(&self, bundle: &Bundle, name: &str, own: bool) -> Result<PathBuf, LaunchError> {
        let view = bundle.make_source_dir(name)?;
        for dir in &self.dirs {
            let Ok(below) = dir.strip_prefix(ROOT) else {
                continue;
            };
            let failed = |errno: Errno| {
                let message = format!("{}: {errno}", dir.display());
                LaunchError::failed("show cgroups to the container", message)
            };
            let unified = self.unified().is_some() || is_hierarchy(Path::new(ROOT));
            let shown = match dir.ancestors().take_while(|dir| is_hierarchy(dir)).last() {
                Some(root) if unified && !own => root,
                _ => dir,
            };
            let clone = clone_tree(shown).map_err(failed)?;
            if unified {
                attach(clone.as_fd(), &view).map_err(failed)?;
                return Ok(view);
            }
            let Some(hierarchy) = below.components().next() else {
                continue;
            };
            let target = view.join(hierarchy);
            make_target(clone.as_fd(), &target).map_err(failed)?;
            attach(clone.as_fd(), &target).map_err(failed)?;
            link_controllers(&view, hierarchy.as_os_str()).map_err(failed)?;
        }
        Ok(view)
    }
}

/// Takes cgroup filesystems out of the mount namespace of libcontainer's own
/// processes.
pub(crate) fn hide(bundle: &Bundle) -> Result<(), LaunchError> {
    let failed = |error: &dyn std::fmt::Display| {
        LaunchError::failed("hide cgroups from libcontainer", error)
    };
    let nothing = bundle.make_dir("no-cgroups")?;
    unmount(Path::new(ROOT)).map_err(|errno| failed(&errno))?;
    let clone = clone_tree(&nothing).map_err(|errno| failed(&errno))?;
    attach(clone.as_fd(), Path::new(ROOT)).map_err(|errno| failed(&errno))?;
    let left = mount_table("/proc/self/mountinfo").map_err(|error| failed(&error))?;
    for point in left.lines().filter_map(cgroup_mount) {
        unmount(&point).map_err(|errno| failed(&errno))?;
    }
    Ok(())
}

fn unmount(point: &Path) -> Result<(), Errno> {
    match rustix::mount::unmount(point, UnmountFlags::DETACH) {
        // Not a mount point, or gone with one above it.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// The mount point of a line of mountinfo that is a cgroup filesystem.
fn cgroup_mount(line: &str) -> Option<PathBuf> {
    let (_, kind) = line.split_once(" - ")?;
    let is_cgroup = kind.starts_with("cgroup ") || kind.starts_with("cgroup2 ");
    is_cgroup.then(|| mount_point(line)).flatten()
}

fn is_cgroup(mount: &Mount) -> bool {
    matches!(mount.typ().as_deref(), Some("cgroup" | "cgroup2"))
}

/// Whether this is a cgroup of some hierarchy itself.
fn is_hierarchy(dir: &Path) -> bool {
    dir.join("cgroup.procs").exists()
}

/// Flags for the top alone would leave the mounts below it writable.
fn recursive(options: &[String]) -> Vec<String> {
    let each = options.iter().map(|option| match option.as_str() {
        flag @ ("ro" | "nosuid" | "nodev" | "noexec" | "relatime") => format!("r{flag}"),
        other => other.to_owned(),
    });
    each.chain(["rbind".to_owned()]).collect()
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

/// Writes an existing file at once.
pub(crate) fn write(path: &Path, text: &[u8]) -> Result<(), Errno> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::retry_on_intr(|| rustix::io::write(&file, text)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_reach_every_hierarchy() {
        let options = ["ro", "nosuid"].map(str::to_owned);
        assert_eq!(recursive(&options), ["rro", "rnosuid", "rbind"]);
    }

    #[test]
    fn cgroup_filesystems_are_found_wherever_they_are() {
        let line = "31 23 0:28 / /sys/fs/cgroup\\040x rw shared:9 - cgroup cgroup rw,cpu";
        assert_eq!(cgroup_mount(line), Some(PathBuf::from("/sys/fs/cgroup x")));
        let line = "31 23 0:28 / /x rw - cgroup2 cgroup rw";
        assert_eq!(cgroup_mount(line), Some(PathBuf::from("/x")));
        assert_eq!(cgroup_mount("31 23 0:28 / /x rw - tmpfs cgroup rw"), None);
    }
}

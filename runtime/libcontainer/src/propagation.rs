//! Each mount's own propagation, which libcontainer 0.7 does not know.
//!
//! A given source keeps its propagation as far as the spec allows it. Owns the
//! trick for that: libcontainer gives all mounts one propagation before it
//! makes the container's. `slave` leaves private and slave sources as they are;
//! a shared one (a bidirectional volume) needs `shared`, which makes all others
//! shared too, in groups of their own. Those are undone when the container's
//! mounts are there and before its program runs.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::{Mount, Spec};
use runtime::launcher::LaunchError;
use runtime::procfs::{mount_table, unescape};
use runtime::sys::propagation::{Propagation, set_propagation};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::LinkNameSpaceType;

/// What is to be done about propagation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Destinations of shared sources; empty: nothing is to be undone.
    shared: Vec<PathBuf>,
    /// Whether the spec wants a shared root.
    shared_root: bool,
}

/// Looks at the sources that are attached and sets the spec's propagation.
/// `sources`: index into the mounts, path of the attached source.
pub(crate) fn plan(spec: &mut Spec, sources: &[(usize, PathBuf)]) -> Result<Plan, LaunchError> {
    let failed = |error: &dyn std::fmt::Display| LaunchError::failed("read mountinfo", error);
    let mountinfo = mount_table("/proc/self/mountinfo").map_err(|error| failed(&error))?;
    let mounts = spec.mounts().clone().unwrap_or_default();
    let is_shared = |path: &Path| {
        mountinfo
            .lines()
            .filter_map(parse)
            .any(|mount| mount.shared && mount.point == path)
    };
    let shared: Vec<PathBuf> = sources
        .iter()
        .filter(|(_, path)| is_shared(path))
        .filter_map(|(index, _)| mounts.get(*index).map(|mount| mount.destination().clone()))
        .collect();
    let linux = spec
        .linux_mut()
        .as_mut()
        .ok_or_else(|| failed(&"the spec has no linux"))?;
    let asked = linux.rootfs_propagation().as_deref().unwrap_or_default();
    let shared_root = asked.ends_with("shared");
    let mode = if shared.is_empty() && !shared_root {
        "slave"
    } else {
        "shared"
    };
    linux.set_rootfs_propagation(Some(mode.to_owned()));
    Ok(Plan {
        shared,
        shared_root,
    })
}

/// Takes from a detached source what the spec does not ask for: a mount that
/// was opened as a peer of the host's stays one only where the spec says so.
pub(crate) fn limit(source: &OwnedFd, mount: &Mount) -> Result<(), LaunchError> {
    let asks = |kind: &str| {
        let mut options = mount.options().iter().flatten();
        options.any(|option| option.strip_prefix('r').unwrap_or(option) == kind || option == kind)
    };
    let limit = match (asks("shared"), asks("slave")) {
        (true, _) => return Ok(()),
        (false, true) => Propagation::Slave,
        (false, false) => Propagation::Private,
    };
    set_propagation(source.as_fd(), limit, true)
        .map_err(|errno| LaunchError::failed("limit propagation", errno))
}

impl Plan {
    /// Undoes what sharing all mounts did to those that were not shared. Moves
    /// this process into the container's mount namespace: the last thing it
    /// does.
    pub(crate) fn undo(&self, init: i32) -> Result<(), LaunchError> {
        if self.shared.is_empty() && !self.shared_root {
            return Ok(());
        }
        let failed = |error: &dyn std::fmt::Display| LaunchError::failed("set propagation", error);
        let mountinfo =
            mount_table(&format!("/proc/{init}/mountinfo")).map_err(|error| failed(&error))?;
        let namespace = open(Path::new(&format!("/proc/{init}/ns/mnt")), OFlags::RDONLY)
            .map_err(|errno| failed(&errno))?;
        rustix::thread::move_into_link_name_space(
            namespace.as_fd(),
            Some(LinkNameSpaceType::Mount),
        )
        .map_err(|errno| failed(&errno))?;
        for mount in mountinfo
            .lines()
            .filter_map(parse)
            .filter(|mount| mount.shared)
        {
            if self.keeps(&mount.point) {
                continue;
            }
            // A mount below another at the same place cannot be reached, and
            // nobody else will either.
            let opened = open(&mount.point, OFlags::PATH | OFlags::NOFOLLOW);
            let opened = opened.map_err(|errno| failed(&errno))?;
            // Without a master this makes it private.
            match set_propagation(opened.as_fd(), Propagation::Slave, false) {
                Ok(()) | Err(Errno::INVAL) => {}
                Err(errno) => return Err(failed(&errno)),
            }
        }
        Ok(())
    }

    fn keeps(&self, point: &Path) -> bool {
        let is_root = self.shared_root && point == Path::new("/");
        is_root || self.shared.iter().any(|shared| point.starts_with(shared))
    }
}

fn open(path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(CWD, path, flags | OFlags::CLOEXEC, Mode::empty())
}

/// One line of a mountinfo.
#[derive(Debug, PartialEq, Eq)]
struct MountLine {
    point: PathBuf,
    shared: bool,
}

fn parse(line: &str) -> Option<MountLine> {
    let point = mount_point(line)?;
    let mut optional = line.split(' ').skip(6).take_while(|field| *field != "-");
    let shared = optional.any(|field| field.starts_with("shared:"));
    Some(MountLine { point, shared })
}

/// The mount point of a line of mountinfo.
pub(crate) fn mount_point(line: &str) -> Option<PathBuf> {
    line.split(' ').nth(4).map(unescape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_read() {
        let line = "36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 shared:7 - ext3 /dev/root rw";
        let expected = MountLine {
            point: PathBuf::from("/mnt 2"),
            shared: true,
        };
        assert_eq!(parse(line), Some(expected));
        let line = "36 35 98:0 / /a rw master:1 - tmpfs shared:x rw";
        assert_eq!(
            parse(line),
            Some(MountLine {
                point: PathBuf::from("/a"),
                shared: false
            })
        );
        assert_eq!(parse("garbage"), None);
    }

    #[test]
    fn shared_places_and_what_is_below_are_kept() {
        let plan = Plan {
            shared: vec![PathBuf::from("/data")],
            shared_root: false,
        };
        assert!(plan.keeps(Path::new("/data")) && plan.keeps(Path::new("/data/x")));
        assert!(!plan.keeps(Path::new("/database")) && !plan.keeps(Path::new("/")));
    }
}

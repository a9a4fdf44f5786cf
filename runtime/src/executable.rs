//! Copies of executables that nobody can change, however they are reached.
//!
//! A process that is born in a container is of the node's executable for a moment, and
//! its `/proc/PID/exe` leads there. A sealed memfd cannot be written, but its mode and
//! owner can be changed by root of a container, and then the engine can start no more of
//! them. So a copy lies in a file system of its own that is mounted nowhere and
//! read-only. It is gone with the last descriptor and the last process.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::sys::mount_attr::{MountAttr, mount_setattr};

/// Copies an executable; the descriptor can be read and executed.
///
/// # Errors
/// The kernel refuses the file system or the memory.
pub fn copy(name: &str, bytes: &[u8]) -> Result<OwnedFd, Errno> {
    let filesystem = rustix::mount::fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [(c"mode", c"0555"), (c"nr_inodes", c"2")] {
        rustix::mount::fsconfig_set_string(filesystem.as_fd(), key, value)?;
    }
    rustix::mount::fsconfig_create(filesystem.as_fd())?;
    let mount = rustix::mount::fsmount(
        filesystem.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV,
    )?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o555);
    let file = rustix::fs::openat(&mount, name, flags, mode)?;
    let mut rest = bytes;
    while !rest.is_empty() {
        let written = rustix::io::retry_on_intr(|| rustix::io::write(&file, rest))?;
        rest = rest.get(written..).unwrap_or_default();
    }
    // Whoever has it open for writing keeps the mount from becoming read-only.
    drop(file);
    let read_only = MountAttr {
        set: MountAttrFlags::MOUNT_ATTR_RDONLY,
        ..MountAttr::default()
    };
    mount_setattr(mount.as_fd(), &read_only, false)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::INVAL))?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::openat(&mount, name, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::process::Command;

    use super::*;

    #[test]
    fn a_copy_runs_and_nobody_changes_it() {
        let bytes = std::fs::read("/bin/true").unwrap();
        let copy = copy("true", &bytes).unwrap();
        let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
        assert!(Command::new(&path).status().unwrap().success());
        let file = std::fs::File::from(copy);
        let denied = |error: std::io::Error| error.raw_os_error() == Some(libc::EROFS);
        let mode = std::fs::Permissions::from_mode(0o0);
        assert!(denied(file.set_permissions(mode.clone()).unwrap_err()));
        assert!(denied(std::fs::set_permissions(&path, mode).unwrap_err()));
        assert!(denied(
            std::os::unix::fs::chown(&path, Some(1), None).unwrap_err()
        ));
        let opened = std::fs::OpenOptions::new().write(true).open(&path);
        assert!(denied(opened.unwrap_err()));
        assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o555);
        assert!(Command::new(&path).status().unwrap().success());
    }
}

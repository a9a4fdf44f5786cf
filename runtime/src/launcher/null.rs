//! A null device that is nobody else's.
//!
//! The node's /dev/null is an inode of the node's devtmpfs: who holds a descriptor
//! of it, or sees it behind a bind mount, changes its mode and owner for the whole
//! node. What a container gets in its stead is a node in a filesystem that only it
//! uses. Owns making and checking one; a crash leaves nothing, since the filesystem
//! is nowhere attached and goes with its last descriptor.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string,
};

/// Its name in its filesystem.
pub const NAME: &std::ffi::CStr = c"null";
/// Its numbers.
const NUMBERS: (u32, u32) = (1, 3);

/// A detached filesystem with nothing but a null device.
///
/// # Errors
/// The kernel's answer: it needs `CAP_SYS_ADMIN` and `CAP_MKNOD`.
pub fn filesystem() -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [(c"size", c"4k"), (c"nr_inodes", c"2"), (c"mode", c"0755")] {
        fsconfig_set_string(context.as_fd(), key, value)?;
    }
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    let mount = rustix::mount::fsmount(context.as_fd(), flags, attributes)?;
    let number = rustix::fs::makedev(NUMBERS.0, NUMBERS.1);
    let mode = Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(&mount, NAME, FileType::CharacterDevice, mode, number)?;
    // Whatever mask of modes this process has.
    rustix::fs::chmodat(&mount, NAME, mode, rustix::fs::AtFlags::empty())?;
    Ok(mount)
}

/// Opens a null device of its own, to read and to write.
///
/// # Errors
/// See [`filesystem`]; or the cgroup forbids the device.
pub fn open() -> Result<OwnedFd, Errno> {
    open_in(filesystem()?.as_fd())
}

/// Opens the null device of a directory that only the launcher has changed.
///
/// # Errors
/// The kernel's answer; `ENODEV` where it is another thing.
pub fn open_in(dir: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(dir, NAME, flags, Mode::empty())?;
    check(opened.as_fd())?;
    Ok(opened)
}

/// Refuses what is no null device.
///
/// # Errors
/// `ENODEV` where it is another thing.
pub fn check(file: BorrowedFd<'_>) -> Result<(), Errno> {
    let stat = rustix::fs::fstat(file)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let number = rustix::fs::makedev(NUMBERS.0, NUMBERS.1);
    if kind == FileType::CharacterDevice && stat.st_rdev == number {
        Ok(())
    } else {
        Err(Errno::NODEV)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_null_device_is_nobody_elses() {
        let inode = |file: BorrowedFd<'_>| {
            let stat = rustix::fs::fstat(file).unwrap();
            (stat.st_dev, stat.st_ino)
        };
        let (one, other) = (open().unwrap(), open().unwrap());
        let nodes = std::fs::File::open("/dev/null").unwrap();
        check(nodes.as_fd()).unwrap();
        assert_ne!(inode(one.as_fd()), inode(other.as_fd()));
        assert_ne!(inode(one.as_fd()), inode(nodes.as_fd()));
        assert_eq!(rustix::io::write(&one, b"x"), Ok(1));
        assert_eq!(rustix::io::read(&one, &mut [0; 1]), Ok(0));
    }

    #[test]
    fn what_is_no_null_device_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("null"), "").unwrap();
        let opened = std::fs::File::open(dir.path()).unwrap();
        assert_eq!(open_in(opened.as_fd()).unwrap_err(), Errno::NODEV);
        let zero = std::fs::File::open("/dev/zero").unwrap();
        assert_eq!(check(zero.as_fd()), Err(Errno::NODEV));
    }
}

//! Makes single files, links and devices and gives them their attributes.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Timespec, Timestamps, UTIME_OMIT, Uid,
    XattrFlags,
};
use rustix::io::Errno;

use super::Problem;
use crate::tar::{Entry, Kind};

/// Makes an empty file that did not exist.
pub(super) fn create_file(at: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::from_raw_mode(0o600))
}

/// Writes all of `bytes`.
pub(super) fn write_all(fd: &OwnedFd, mut bytes: &[u8]) -> Result<(), Problem> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::INTR) => {}
            Err(e) => return Err(Problem::io("write a file", e)),
        }
    }
    Ok(())
}

/// Makes the file `size` bytes long: what was not written is a hole.
pub(super) fn set_size(fd: &OwnedFd, size: u64) -> Result<(), Problem> {
    rustix::fs::ftruncate(fd, size).map_err(|e| match e {
        Errno::FBIG => Problem::hostile("a sparse file above what this disk can hold"),
        e => Problem::io("make a file with holes", e),
    })
}

/// Goes to a place in the file.
pub(super) fn seek(fd: &OwnedFd, offset: u64) -> Result<(), Problem> {
    rustix::fs::seek(fd, SeekFrom::Start(offset))
        .map(drop)
        .map_err(|e| Problem::io("make a file with holes", e))
}

/// Owner, attributes and mode, in the order in which none undoes another:
/// changing the owner drops setuid bits and file capabilities.
pub(super) fn apply(fd: &OwnedFd, entry: &Entry) -> Result<(), Problem> {
    rustix::fs::fchown(
        fd,
        Some(Uid::from_raw(entry.uid)),
        Some(Gid::from_raw(entry.gid)),
    )
    .map_err(|e| Problem::io("set the owner", e))?;
    for (name, value) in kept_xattrs(entry) {
        let done = rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty());
        check_xattr(name, done)?;
    }
    rustix::fs::fchmod(fd, Mode::from_raw_mode(entry.mode))
        .map_err(|e| Problem::io("set the mode", e))
}

/// Sets the modification time and leaves the access time.
pub(super) fn set_times(fd: &OwnedFd, mtime: (i64, u32)) -> Result<(), Problem> {
    rustix::fs::futimens(fd, &times(mtime)).map_err(|e| Problem::io("set the time", e))
}

fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: seconds,
            tv_nsec: nanos.into(),
        },
    }
}

/// Makes a symbolic link, a device or a pipe at a free name.
pub(super) fn make_special(at: &OwnedFd, name: &[u8], entry: &Entry) -> Result<(), Problem> {
    if entry.kind == Kind::Symlink {
        if entry.link.is_empty() {
            return Err(Problem::hostile("a symbolic link to nothing"));
        }
        rustix::fs::symlinkat(&entry.link[..], at, name)
            .map_err(|e| Problem::io("make a symbolic link", e))?;
    } else {
        let kind = match entry.kind {
            Kind::Char => FileType::CharacterDevice,
            Kind::Block => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        let device = rustix::fs::makedev(entry.device.0, entry.device.1);
        rustix::fs::mknodat(at, name, kind, Mode::from_raw_mode(0o600), device)
            .map_err(|e| Problem::io("make a device or pipe", e))?;
    }
    let owner = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    rustix::fs::chownat(
        at,
        name,
        Some(owner.0),
        Some(owner.1),
        AtFlags::SYMLINK_NOFOLLOW,
    )
    .map_err(|e| Problem::io("set the owner", e))?;
    set_xattrs_by_name(at, name, entry)?;
    if entry.kind != Kind::Symlink {
        // The name was made just above and is no link; nobody else writes here.
        rustix::fs::chmodat(at, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())
            .map_err(|e| Problem::io("set the mode", e))?;
    }
    rustix::fs::utimensat(at, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|e| Problem::io("set the time", e))
}

/// Links and devices cannot be opened for their attributes: /proc leads to the
/// directory that is open, and the last part is not followed.
fn set_xattrs_by_name(at: &OwnedFd, name: &[u8], entry: &Entry) -> Result<(), Problem> {
    for (attribute, value) in kept_xattrs(entry) {
        let path = [
            format!("/proc/self/fd/{}/", at.as_raw_fd()).as_bytes(),
            name,
        ]
        .concat();
        let done = rustix::fs::lsetxattr(path, attribute, value, XattrFlags::empty());
        check_xattr(attribute, done)?;
    }
    Ok(())
}

/// Attributes that an image may bring: capabilities, access lists and what
/// users set. The rest belongs to the host: `trusted.overlay.*` would steer
/// overlayfs itself, `security.selinux` is the mount's affair.
fn kept_xattrs(entry: &Entry) -> impl Iterator<Item = (&[u8], &[u8])> {
    entry
        .xattrs
        .iter()
        .map(|(name, value)| (name.as_slice(), value.as_slice()))
        .filter(|(name, _)| is_kept(name))
}

/// Whether an image may bring this attribute.
pub(crate) fn is_kept(name: &[u8]) -> bool {
    name.starts_with(b"user.")
        || matches!(
            name,
            b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default"
        )
}

/// `user.*` is refused on links and devices, and by some file systems: the
/// image works without. A lost capability is an error, since it would not.
fn check_xattr(name: &[u8], done: Result<(), Errno>) -> Result<(), Problem> {
    match done {
        Ok(()) => Ok(()),
        Err(Errno::NOTSUP | Errno::PERM) if name != b"security.capability" => Ok(()),
        Err(e) => Err(Problem::io("set an extended attribute", e)),
    }
}

//! Propagation of one mount: `mount_setattr`.

#![expect(unsafe_code, reason = "bare system calls")]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// How mounts below a mount travel to and from its peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Not at all.
    Private,
    /// From its master only.
    Slave,
    /// Both ways.
    Shared,
}

/// Sets the propagation of the mount that a descriptor (may be `O_PATH`) is
/// the root of, and of those below it when `recursive`.
///
/// # Errors
/// The kernel's answer.
pub fn set_propagation(
    mount: BorrowedFd<'_>,
    propagation: Propagation,
    recursive: bool,
) -> Result<(), Errno> {
    let attributes = libc::mount_attr {
        attr_set: 0,
        attr_clr: 0,
        propagation: match propagation {
            Propagation::Private => libc::MS_PRIVATE,
            Propagation::Slave => libc::MS_SLAVE,
            Propagation::Shared => libc::MS_SHARED,
        },
        userns_fd: 0,
    };
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is an empty string that lives for ever, `attributes`
    // lives through the call and has the size that is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(&attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    super::check(result).map(drop)
}

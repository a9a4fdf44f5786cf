//! mount_setattr(2), which rustix does not have.

#![expect(unsafe_code, reason = "a bare system call")]

use std::ffi::c_long;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::mount::MountAttrFlags;

/// What to change on a mount.
#[derive(Debug)]
pub(crate) struct MountAttr<'a> {
    /// Attributes to set.
    pub(crate) set: MountAttrFlags,
    /// Attributes to clear before.
    pub(crate) clear: MountAttrFlags,
    /// One of `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`; 0 keeps it.
    pub(crate) propagation: u64,
    /// The user namespace of `MOUNT_ATTR_IDMAP`.
    pub(crate) user_ns: Option<BorrowedFd<'a>>,
}

impl Default for MountAttr<'_> {
    fn default() -> Self {
        Self {
            set: MountAttrFlags::empty(),
            clear: MountAttrFlags::empty(),
            propagation: 0,
            user_ns: None,
        }
    }
}

/// The kernel's `struct mount_attr`, first version.
#[repr(C)]
struct RawAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Changes the mount that `mount` is a descriptor of, and with `recursive`
/// every mount below it: all of them or, on an error, none.
pub(crate) fn mount_setattr(
    mount: BorrowedFd<'_>,
    attr: &MountAttr<'_>,
    recursive: bool,
) -> io::Result<()> {
    let raw = RawAttr {
        attr_set: attr.set.bits().into(),
        attr_clr: attr.clear.bits().into(),
        propagation: attr.propagation,
        // Read only with MOUNT_ATTR_IDMAP. Descriptors are never negative.
        userns_fd: attr
            .user_ns
            .map_or(0, |fd| fd.as_raw_fd().cast_unsigned().into()),
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated literal, `raw` lives through the
    // call and has the size that is passed; the kernel only reads both.
    let result: c_long = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const raw,
            size_of::<RawAttr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

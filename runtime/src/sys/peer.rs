//! Who is at the other end of a unix socket.

#![expect(unsafe_code, reason = "bare system calls")]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

/// `SO_PEERPIDFD`, which the C library's crate has for some architectures only.
const PEER_PIDFD: libc::c_int = 77;

/// A descriptor of the process that listens at the other end, whoever holds the
/// socket meanwhile.
///
/// # Errors
/// `NOPROTOOPT` on kernels before 6.5; `SRCH` or `INVAL` when it was reaped.
pub(crate) fn pidfd(socket: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let mut pidfd: RawFd = -1;
    let mut length = libc::socklen_t::try_from(size_of::<RawFd>()).map_err(|_| Errno::INVAL)?;
    // SAFETY: the kernel writes at most `length` bytes, the size of `pidfd`, and
    // the length; both outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            PEER_PIDFD,
            std::ptr::from_mut(&mut pidfd).cast(),
            &raw mut length,
        )
    };
    super::check(result.into())?;
    // SAFETY: the kernel opened this descriptor for the call above and nobody
    // else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(pidfd) })
}

//! Descriptors that tokio watches.

#![expect(unsafe_code, reason = "tokio asks for a promise about descriptors")]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Watches a descriptor for reading and writing. Must be called within a
/// runtime.
///
/// # Errors
/// The kernel cannot watch it.
pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names the same open descriptor until it is dropped,
    // and `AsyncFd` drops it after it has ended the watch.
    unsafe {
        AsyncFd::register_with_interest(fd, Interest::READABLE | Interest::WRITABLE)
            .map_err(io::Error::from)
    }
}

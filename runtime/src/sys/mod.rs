//! System calls that no safe crate offers: the only home of `unsafe`.
//!
//! Wrappers take borrowed descriptors and return owned ones. Nothing here
//! decides anything; a crash leaves nothing.

#[cfg(feature = "engine")]
pub mod async_fd;
pub mod bpf;
pub mod bytes;
pub mod execve;
pub mod fds;
#[cfg(test)]
#[cfg(feature = "engine")]
pub(crate) mod filtered_child;
pub mod fork;
pub mod heap;
pub mod keyring;
pub(crate) mod mount_attr;
pub mod note;
pub mod parcel;
#[cfg(feature = "engine")]
pub(crate) mod peer;
pub mod propagation;
mod rseq;
pub mod seccomp_load;
pub mod signals;
#[cfg(feature = "engine")]
pub(crate) mod user_ns;

use rustix::io::Errno;

/// The result of a raw system call, made by the C library's `syscall`.
fn check(result: libc::c_long) -> Result<libc::c_long, Errno> {
    if result >= 0 {
        return Ok(result);
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL))
}

//! How much makes a socket readable.

#![expect(unsafe_code, reason = "a bare system call")]

use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;

/// Has poll and its like say that there is something to read only when so many bytes are
/// there, or the other end has said all (`SO_RCVLOWAT`, see socket(7)); 1 is what a new
/// socket has. A read gives what is there all the same.
///
/// # Errors
/// Not a socket.
pub fn set_low_water<Fd: AsFd>(socket: Fd, bytes: u16) -> Result<(), Errno> {
    let bytes = libc::c_int::from(bytes);
    // SAFETY: the descriptor is borrowed, and the value is an int that outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            (&raw const bytes).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    super::check(libc::c_long::from(result)).map(drop)
}

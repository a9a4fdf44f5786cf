//! Netfilter sockets that wait for their next use.
//!
//! Closing such a socket waits until the kernel has freed whatever any
//! transaction took away, which takes one of its grace periods: 7 to 30 ms, more
//! than all the rest of attaching a container. So a socket is kept for the next
//! piece of work in the same network namespace, which is always the engine's.

use std::os::fd::OwnedFd;
use std::os::linux::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};

/// As many as there can be pieces of work at once on a machine of usual size.
const MOST: usize = 32;

static SPARE: Mutex<Vec<Spare>> = Mutex::new(Vec::new());

/// The namespace of the calling thread. Its number is not given to another one
/// as long as a socket of it is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Home(u64, u64);

impl Home {
    /// `None` where proc is not mounted; then nothing is kept.
    pub(super) fn here() -> Option<Self> {
        let meta = std::fs::metadata("/proc/thread-self/ns/net").ok()?;
        Some(Self(meta.st_dev(), meta.st_ino()))
    }
}

/// A socket that nobody uses, and the next number of its messages.
struct Spare {
    home: Home,
    fd: Arc<OwnedFd>,
    sequence: u32,
}

/// A spare socket of a namespace.
pub(super) fn take(home: Home) -> Option<(Arc<OwnedFd>, u32)> {
    let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
    let place = spare.iter().position(|spare| spare.home == home)?;
    let found = spare.swap_remove(place);
    Some((found.fd, found.sequence))
}

/// Keeps a socket that has nothing more to read.
pub(super) fn keep(home: Home, fd: Arc<OwnedFd>, sequence: u32) {
    let one = Spare { home, fd, sequence };
    let oldest = {
        let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
        spare.push(one);
        (spare.len() > MOST).then(|| spare.remove(0))
    };
    // Closed without the lock, since closing waits.
    drop(oldest);
}

//! Sockets of `NETLINK_NETFILTER` that are used again.
//!
//! Closing such a socket waits, under the one lock of nftables, until the kernel has
//! freed what earlier transactions took away: some 10 ms, and everyone else waits too.
//! One that stays open costs nothing. Owns the idle ones; each keeps the network
//! namespace it was opened in, which for the engine is its own.

use std::os::linux::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};

use super::socket::{Family, NetlinkError, Socket};

/// More calls at once than this only have their sockets closed.
const KEPT: usize = 16;

/// The idle ones, the oldest first.
static IDLE: Mutex<Vec<(Home, Socket)>> = Mutex::new(Vec::new());

/// Device and inode of a network namespace; nobody else's while a socket is in it.
type Home = (u64, u64);

/// Works with a socket of the calling thread's network namespace.
pub(crate) fn with_netfilter<T>(
    work: impl FnOnce(&mut Socket) -> Result<T, NetlinkError>,
) -> Result<T, NetlinkError> {
    let home = home().map_err(|source| NetlinkError::Socket {
        step: "look at the network namespace",
        source,
    })?;
    let idle = take(home);
    let mut socket = idle.map_or_else(|| Socket::open(Family::Netfilter), Ok)?;
    let done = work(&mut socket);
    // After a refusal, too: what is still to be read has old numbers, and is skipped.
    // After anything else a list may be half read, and the kernel gives no second one.
    let sound = done
        .as_ref()
        .err()
        .is_none_or(|error| error.errno().is_some());
    let surplus = if sound {
        keep(home, socket)
    } else {
        Some(socket)
    };
    drop(surplus);
    done
}

fn home() -> std::io::Result<Home> {
    let namespace = std::fs::metadata("/proc/thread-self/ns/net")?;
    Ok((namespace.st_dev(), namespace.st_ino()))
}

fn take(home: Home) -> Option<Socket> {
    let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
    let at = idle.iter().rposition(|(of, _)| *of == home)?;
    Some(idle.remove(at).1)
}

/// Answers the one that is too much, to be closed without the lock.
fn keep(home: Home, socket: Socket) -> Option<Socket> {
    let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
    idle.push((home, socket));
    (idle.len() > KEPT).then(|| idle.remove(0).1)
}

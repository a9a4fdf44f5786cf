//! The process of a monitor: whether it lives.
//!
//! A monitor that says nothing may be frozen, or wait for a machine that is busy:
//! its containers run on. Dead is one whose process has ended, or whose socket
//! is gone or refuses; nothing else. A socket that accepts proves no life: any
//! child of a dead monitor may hold a copy of it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::time::Timespec;
use tokio::io::unix::AsyncFd;

use crate::sys::{async_fd, peer};

/// A monitor's process.
#[derive(Debug)]
pub(super) struct Peer(AsyncFd<OwnedFd>);

impl Peer {
    /// The process that listens at a connected socket; `None`: it has ended.
    pub(super) fn of_socket(socket: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        let pidfd = match peer::pidfd(socket) {
            Ok(pidfd) => Ok(pidfd),
            // An older kernel tells the number only, which may be another's by now.
            Err(Errno::NOPROTOOPT) => of_number(socket),
            Err(errno) => Err(errno),
        };
        match pidfd {
            Ok(pidfd) => Self::new(pidfd).map(Some),
            Err(Errno::SRCH | Errno::INVAL) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// A child of this process, or one's copy, that is not reaped yet.
    pub(super) fn of_child(pid: i32) -> io::Result<Self> {
        let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        Self::new(pidfd_open(pid, PidfdFlags::empty())?)
    }

    fn new(pidfd: OwnedFd) -> io::Result<Self> {
        async_fd::watch(pidfd).map(Self)
    }

    /// Whether it has ended.
    pub(super) fn has_ended(&self) -> bool {
        let mut wanted = [PollFd::new(self.0.get_ref(), PollFlags::IN)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        rustix::event::poll(&mut wanted, Some(&now)) == Ok(1)
    }

    /// Waits for its end.
    pub(super) async fn ended(&self) {
        while !self.has_ended() {
            match self.0.readable().await {
                Ok(mut ready) => ready.clear_ready(),
                // The runtime is ending, and with it whoever waits.
                Err(_) => std::future::pending().await,
            }
        }
    }
}

fn of_number(socket: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let pid = rustix::net::sockopt::socket_peercred(socket)?.pid;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let path = format!("/proc/{}/comm", pid.as_raw_nonzero());
    let name = std::fs::read_to_string(path).map_err(|_| Errno::SRCH)?;
    // Read after the descriptor was opened: it is this process's name.
    if name.trim_end() == crate::launcher::MONITOR_NAME {
        Ok(pidfd)
    } else {
        Err(Errno::SRCH)
    }
}

impl AsFd for Peer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

//! Waits for the end of monitors, so that none stays a zombie.
//!
//! Owns nothing. Monitors of an engine that died are reaped by whoever they are
//! given to.

use std::io;
use std::os::fd::AsFd;

use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};
use tokio::process::Child;

use crate::sys::async_fd;

/// Waits for a process that was spawned.
pub(super) async fn reap(mut child: Child) {
    if let Err(error) = child.wait().await {
        tracing::warn!(%error, "monitor not reaped");
    }
}

/// Waits for a child that another one made: the copy of a monitor.
pub(super) async fn reap_copy(pid: i32) {
    if let Err(error) = wait(pid).await {
        tracing::warn!(pid, %error, "copy of a monitor not reaped");
    }
}

async fn wait(pid: i32) -> io::Result<()> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    // Nobody else waits for it, so the number is its own for as long.
    let process = async_fd::watch(pidfd_open(pid, PidfdFlags::NONBLOCK)?)?;
    let id = || WaitId::PidFd(process.get_ref().as_fd());
    loop {
        let mut ready = process.readable().await?;
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        match waitid(id(), options) {
            Ok(Some(_)) => return Ok(()),
            Ok(None) | Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
            Err(errno) => return Err(errno.into()),
        }
    }
}

//! The container's terminal.
//!
//! Owns the socket by which libcontainer hands over the master side.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use runtime::launcher::LaunchError;
use rustix::fs::{Mode, OFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

/// A socket that waits for a terminal.
#[derive(Debug)]
pub(crate) struct ConsoleSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ConsoleSocket {
    /// Listens in a directory, by a path that is short enough.
    pub(crate) fn listen(dir: &Path) -> Result<Self, LaunchError> {
        let failed =
            |error: &dyn std::fmt::Display| LaunchError::failed("prepare for the terminal", error);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(dir, flags, Mode::empty()).map_err(|error| failed(&error))?;
        let number = std::os::fd::AsRawFd::as_raw_fd(&opened);
        let listener = UnixListener::bind(format!("/proc/self/fd/{number}/console.sock"))
            .map_err(|error| failed(&error))?;
        Ok(Self {
            listener,
            path: dir.join("console.sock"),
        })
    }

    /// Where libcontainer finds it.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the terminal that was sent by now.
    pub(crate) fn take(&self) -> Result<OwnedFd, LaunchError> {
        let failed =
            |error: &dyn std::fmt::Display| LaunchError::failed("take the terminal", error);
        let (stream, _) = self.listener.accept().map_err(|error| failed(&error))?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut text = [0; 256];
        let mut iov = [IoSliceMut::new(&mut text)];
        rustix::net::recvmsg(&stream, &mut iov, &mut control, RecvFlags::CMSG_CLOEXEC)
            .map_err(|error| failed(&error))?;
        let mut rights = control.drain().filter_map(|part| match part {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        rights
            .next()
            .ok_or_else(|| failed(&"libcontainer sent none"))
    }
}

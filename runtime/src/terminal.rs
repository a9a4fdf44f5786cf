//! Terminals of containers.
//!
//! Owns how one is opened, in the container's own devpts, and how its master side gets
//! to whoever is to read and write it: by a socket that the process which opens it closes
//! before any process of the container can see it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{OFlags, Uid};
use rustix::io::Errno;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use crate::launcher::place::{Links, Root};
pub use crate::protocol::one_way_pair as pair;
use crate::protocol::{self, Envelope, ProtocolError, Received};

/// What the kernel says that a devpts is.
const DEVPTS: u64 = 0x1cd1;

/// Both sides of a terminal.
#[derive(Debug)]
pub(crate) struct Terminal {
    /// To be read and written from outside.
    pub(crate) master: OwnedFd,
    /// To become the controlling terminal of the container's session.
    pub(crate) slave: OwnedFd,
}

impl Terminal {
    /// Opens one in the devpts whose root this is. Its group is the devpts' own.
    ///
    /// # Errors
    /// The kernel's, and `ENOTTY` where that is no devpts.
    pub(crate) fn open(devpts: BorrowedFd<'_>, owner: Uid) -> Result<Self, Errno> {
        let kind = rustix::fs::fstatfs(devpts)?.f_type;
        if u64::try_from(kind) != Ok(DEVPTS) {
            return Err(Errno::NOTTY);
        }
        let flags = OFlags::RDWR | OFlags::NOCTTY;
        let master = Root::of(devpts).open(c"/ptmx", flags, Links::Refused)?;
        rustix::pty::unlockpt(&master)?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
        rustix::fs::fchown(&slave, Some(owner), None)?;
        Ok(Self { master, slave })
    }

    /// Opens one at the /dev/pts of the mount namespace that this process is in, which
    /// a container may have changed as it likes.
    ///
    /// # Errors
    /// As those of [`open`](Self::open).
    pub(crate) fn of_this_root(owner: Uid) -> Result<Self, Errno> {
        let devpts = Root::own()?.find(c"/dev/pts", Links::Refused)?;
        Self::open(devpts.as_fd(), owner)
    }
}

/// Sends a master side.
///
/// # Errors
/// Nobody is to receive it.
pub fn send(socket: BorrowedFd<'_>, master: BorrowedFd<'_>) -> Result<(), Errno> {
    match protocol::send(socket, &Envelope::default(), &[master]) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Errno::AGAIN),
        Err(ProtocolError::Socket { source, .. }) => Err(source),
        Err(_) => Err(Errno::INVAL),
    }
}

/// Receives a master side, which does not block from then on.
///
/// # Errors
/// `EAGAIN`: not yet; `ENOTTY`: there will be none.
pub fn receive(socket: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    match protocol::receive(socket) {
        Ok(Received::Packet(mut incoming)) => {
            let master = incoming.fds.take(Some(0), "the terminal");
            let master = master.map_err(|_| Errno::NOTTY)?;
            rustix::io::ioctl_fionbio(&master, true)?;
            Ok(master)
        }
        Ok(Received::Nothing) => Err(Errno::AGAIN),
        Ok(Received::Closed) | Err(_) => Err(Errno::NOTTY),
    }
}

/// Says how large a terminal is, by its master side: who uses it is told by SIGWINCH.
///
/// # Errors
/// `ENOTTY`: it is none.
pub fn resize(master: BorrowedFd<'_>, rows: u16, columns: u16) -> Result<(), Errno> {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(master, size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::Mode;

    fn directory(path: &str) -> OwnedFd {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        rustix::fs::open(path, flags, Mode::empty()).unwrap()
    }

    #[test]
    fn a_master_side_arrives_and_its_missing_is_told() {
        let (receives, sends) = pair().unwrap();
        assert_eq!(receive(receives.as_fd()).unwrap_err(), Errno::AGAIN);
        let owner = rustix::process::getuid();
        let terminal = Terminal::open(directory("/dev/pts").as_fd(), owner).unwrap();
        send(sends.as_fd(), terminal.master.as_fd()).unwrap();
        let master = receive(receives.as_fd()).unwrap();
        rustix::io::write(&terminal.slave, b"hello\n").unwrap();
        let mut got = [0; 16];
        let length = rustix::io::read(&master, &mut got).unwrap();
        assert_eq!(&got[..length], b"hello\r\n");
        drop(sends);
        assert_eq!(receive(receives.as_fd()).unwrap_err(), Errno::NOTTY);
    }

    #[test]
    fn what_is_no_devpts_gives_no_terminal() {
        let owner = rustix::process::getuid();
        let fake = tempfile::tempdir().unwrap();
        std::fs::write(fake.path().join("ptmx"), b"").unwrap();
        let fake = directory(fake.path().to_str().unwrap());
        let refused = Terminal::open(fake.as_fd(), owner).unwrap_err();
        assert_eq!(refused, Errno::NOTTY);
    }
}

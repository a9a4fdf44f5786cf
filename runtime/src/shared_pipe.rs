//! Operations on pipes that a process of a container has as well, or may get hold of.
//!
//! Reading, writing and closing the last descriptor of a pipe take its mutex, in a wait that no
//! signal ends. A writer holds the mutex while the kernel takes the data from their source, and
//! a container can choose a source that never gives any: splice from a silent socket, write from
//! a mapped file on a dead server. poll(2) alone takes no mutex. So a process that must not wait
//! polls, and has a child that may wait do the reading, writing or closing. A child that is stuck
//! keeps that pipe and nothing else. A crash leaves such children, which end by themselves.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use crate::sys::fds::keep_only;
use crate::sys::fork::{self, NewNamespaces};

/// How long a child may take to read what is there.
const PATIENCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 500_000_000,
};

/// What a pipe is about to give to who reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing, as long as somebody has the other end.
    Silent,
    /// Something.
    Brings,
    /// Nothing for ever: nobody has the other end.
    Ended,
}

/// What reading the end of a pipe would give. Takes no lock.
#[must_use]
pub fn state(end: BorrowedFd<'_>) -> State {
    let flags = poll(end);
    if flags.contains(PollFlags::IN) {
        State::Brings
    } else if is_alone(flags) {
        State::Ended
    } else {
        State::Silent
    }
}

/// One end of such a pipe.
#[derive(Debug)]
pub struct SharedEnd(Option<OwnedFd>);

impl SharedEnd {
    /// What reading it would give. Takes no lock.
    #[must_use]
    pub fn state(&self) -> State {
        state(self.as_fd())
    }

    /// What one read gives, of a child that does it: nothing where that takes too long.
    #[must_use]
    pub fn read(&self, most: usize) -> Vec<u8> {
        match read_apart(self.as_fd(), most) {
            Ok(bytes) => bytes,
            // A process with threads has no such children, and is not to be kept up.
            Err(Errno::DEADLK) => read_here(self.as_fd(), most).unwrap_or_default(),
            Err(_) => Vec::new(),
        }
    }

    /// Writes a few bytes by a child that does it, and does not wait for that.
    ///
    /// # Errors
    /// There is no such child to be had.
    pub fn write(&self, bytes: &[u8]) -> Result<(), Errno> {
        let end = self.as_fd();
        let child = fork::spawn(NewNamespaces::default(), || {
            let written = keep_only([end]).and_then(|[end]| rustix::io::write(&end, bytes));
            u8::from(written.is_err())
        });
        match child {
            // A process with threads has no such children, and is not to be kept up.
            Err(Errno::DEADLK) => rustix::io::write(end, bytes).map(drop),
            other => other.map(drop),
        }
    }
}

impl From<OwnedFd> for SharedEnd {
    fn from(end: OwnedFd) -> Self {
        Self(Some(end))
    }
}

impl AsFd for SharedEnd {
    #[expect(clippy::expect_used, reason = "it is there until it is dropped")]
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_ref().expect("an end").as_fd()
    }
}

impl AsRawFd for SharedEnd {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl Drop for SharedEnd {
    fn drop(&mut self) {
        if let Some(end) = self.0.take()
            && !is_alone(poll(end.as_fd()))
        {
            close_apart(end);
        }
    }
}

fn poll(end: BorrowedFd<'_>) -> PollFlags {
    let mut polled = [PollFd::new(&end, PollFlags::IN)];
    match rustix::event::poll(&mut polled, Some(&Timespec::default())) {
        Ok(1) => polled[0].revents(),
        _ => PollFlags::empty(),
    }
}

/// Whether nobody has the other end.
fn is_alone(flags: PollFlags) -> bool {
    flags.intersects(PollFlags::HUP | PollFlags::ERR)
}

fn read_here(end: BorrowedFd<'_>, most: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::with_capacity(most);
    rustix::io::retry_on_intr(|| rustix::io::read(end, spare_capacity(&mut bytes)))?;
    Ok(bytes)
}

fn read_apart(end: BorrowedFd<'_>, most: usize) -> Result<Vec<u8>, Errno> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    fork::spawn(NewNamespaces::default(), || {
        let passed = keep_only([end, write.as_fd()]).and_then(|[end, write]| {
            let bytes = read_here(end.as_fd(), most)?;
            rustix::io::write(&write, &bytes)
        });
        u8::from(passed.is_err())
    })?;
    drop(write);
    let mut polled = [PollFd::new(&read, PollFlags::IN)];
    match rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, Some(&PATIENCE)))? {
        0 => Ok(Vec::new()),
        _ => read_here(read.as_fd(), most),
    }
}

/// Closes an end by a child that has it as well, and closes it last.
fn close_apart(end: OwnedFd) {
    let Ok((told, go)) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC) else {
        // Better lost than waited for.
        return std::mem::forget(end);
    };
    let child = fork::spawn(NewNamespaces::default(), || {
        let waited = keep_only([told.as_fd(), end.as_fd()])
            .and_then(|[told, _end]| rustix::io::read(&told, &mut [0; 1]));
        u8::from(waited.is_err())
    });
    match child {
        Ok(_) => {
            drop(end);
            // Now it is the child's alone.
            drop(go);
        }
        Err(Errno::DEADLK) => drop(end),
        Err(_) => std::mem::forget(end),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipe() -> (SharedEnd, OwnedFd) {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::NONBLOCK).unwrap();
        (read.into(), write)
    }

    #[test]
    fn poll_tells_what_there_is() {
        let (end, write) = pipe();
        assert_eq!(end.state(), State::Silent);
        SharedEnd::from(write.try_clone().unwrap())
            .write(b"some")
            .unwrap();
        assert_eq!(end.state(), State::Brings);
        assert_eq!(end.read(100), b"some");
        assert_eq!(end.read(100), b"");
        assert_eq!(end.state(), State::Silent);
        rustix::io::write(&write, b"last").unwrap();
        drop(write);
        assert_eq!(end.state(), State::Brings);
        assert_eq!(end.read(2), b"la");
        assert_eq!(end.read(100), b"st");
        assert_eq!(end.state(), State::Ended);
    }

    #[test]
    fn an_end_that_is_dropped_is_closed() {
        let (end, write) = pipe();
        drop(end);
        assert_eq!(rustix::io::write(&write, b"x"), Err(Errno::PIPE));
        let (read, write) = rustix::pipe::pipe().unwrap();
        drop(SharedEnd::from(write));
        assert_eq!(rustix::io::read(&read, &mut [0; 1]), Ok(0));
    }
}

//! Processes that wait for disks, so that the monitor does not: the log writer, which
//! moves one container's records from a pipe to their file, and the one that writes
//! an exit record.
//!
//! A fork of the monitor, which shares nearly all of its memory. Keeps nothing
//! of the monitor's descriptors but a pipe, the file and a counter, and ends with
//! the pipe. Reads and writes instead of splicing: splice(2) holds the pipe's
//! lock while the disk takes its time, and the monitor's writes to the pipe would
//! wait for that lock; it also refuses files that are appended to.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use runtime::exit::ExitRecord;
use runtime::log::{LogFile, WRITER_NAME};
use runtime::sys::fds::{Close, close_from, copy_to};
use runtime::sys::fork::{NewNamespaces, spawn as fork};
use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::process::Pid;

/// What is moved at once: most of what the writer holds of memory.
const PIECE: usize = 64 * 1024;

/// What a writer works with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Streams<'a> {
    /// Brings the records.
    pub(crate) pipe: BorrowedFd<'a>,
    /// Names the log.
    pub(crate) file: BorrowedFd<'a>,
    /// Counts what could not be written.
    pub(crate) lost: BorrowedFd<'a>,
}

/// Whether the stream's beginning is in the pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begin {
    /// It is.
    New,
    /// A writer before this one died: its beginning may be any byte.
    Again,
}

/// Makes a writer: a child of the monitor.
pub(crate) fn spawn(streams: &Streams<'_>, begin: Begin) -> Result<Pid, Errno> {
    let child = fork(NewNamespaces::default(), || {
        u8::from(live(streams, begin).is_err())
    })?;
    Ok(child.pid)
}

/// Makes a process that writes an exit record, and ends.
pub(crate) fn record(record: &ExitRecord, exit_dir: &Path) -> Result<Pid, Errno> {
    let child = fork(NewNamespaces::default(), || {
        let alone = close_from(3, Close::Now).and_then(|()| take_name());
        u8::from(alone.is_err() || record.write(exit_dir).is_err())
    })?;
    Ok(child.pid)
}

/// By its name the engine lets it go where a pod ends before its disk goes on.
fn take_name() -> Result<(), Errno> {
    rustix::thread::set_name(&CString::new(WRITER_NAME).map_err(|_| Errno::INVAL)?)
}

fn live(streams: &Streams<'_>, begin: Begin) -> Result<(), Errno> {
    let pipe = copy_to(streams.pipe, 0)?;
    let named = copy_to(streams.file, 1)?;
    let counter = copy_to(streams.lost, 2)?;
    // Whatever else the monitor has is to end when the monitor ends it.
    close_from(3, Close::Now)?;
    take_name()?;
    let mut log = LogFile::append_to(named.as_fd());
    let mut piece = Vec::with_capacity(PIECE);
    let mut is_first = begin == Begin::Again;
    loop {
        piece.clear();
        let read =
            rustix::io::retry_on_intr(|| rustix::io::read(&pipe, spare_capacity(&mut piece)))?;
        if read == 0 {
            return Ok(());
        }
        let lost = match &mut log {
            Ok(log) => {
                if std::mem::take(&mut is_first) {
                    log.resume(&piece);
                }
                log.append(&piece);
                log.take_lost()
            }
            Err(_) => piece.len() as u64,
        };
        if lost > 0 {
            // The counter holds more bytes than will ever be.
            rustix::io::write(&counter, &lost.to_ne_bytes())?;
        }
    }
}

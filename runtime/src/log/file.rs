//! A container's log file.
//!
//! Two processes have a part in it. The engine opens the log ([`open`]) and
//! gives the monitor a descriptor that only names the file; the container's log
//! writer, a process of its own, writes through it ([`LogFile`]). Whole records
//! only, so that readers never see half of one: what a full disk cut off is
//! taken back. Never follows a link to the log and never writes to anything
//! but a regular file. A crash may leave half a record at the end.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::{MAX_LINE, stamp};
use crate::sys::bytes::find_byte;

/// More than the longest record: a line's piece behind its stamp and tags.
const LONGEST_RECORD: usize = MAX_LINE + 64;

/// A log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The kernel refuses: a symbolic link is `ELOOP`.
    #[error("open log {}: {source}", path.display())]
    Open {
        /// The log.
        path: PathBuf,
        /// Why.
        source: Errno,
    },
    /// Something else is in the place of the log.
    #[error("log {} is not a regular file", path.display())]
    NotRegular {
        /// The log.
        path: PathBuf,
    },
}

/// Makes the log if it is not there, proves that it can be written, and gives a
/// descriptor that names it. Such a descriptor holds nothing back when it is
/// closed; one for writing may wait for a disk then.
///
/// # Errors
/// It cannot be opened, or is a link, a device, a pipe.
pub fn open(path: &Path) -> Result<OwnedFd, LogError> {
    let failed = |source| LogError::Open {
        path: path.to_owned(),
        source,
    };
    // A pipe in the place of a file would keep the caller waiting for ever.
    let flags = OFlags::NONBLOCK
        | OFlags::NOFOLLOW
        | OFlags::WRONLY
        | OFlags::APPEND
        | OFlags::CREATE
        | OFlags::CLOEXEC
        | OFlags::NOCTTY;
    let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP;
    let file = rustix::fs::open(path, flags, mode).map_err(failed)?;
    let stat = rustix::fs::fstat(&file).map_err(failed)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        let path = path.to_owned();
        return Err(LogError::NotRegular { path });
    }
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::open(again(file.as_fd()), flags, Mode::empty()).map_err(failed)
}

/// The way to a descriptor's file.
fn again(file: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// An append-only log, as its writer has it.
#[derive(Debug)]
pub struct LogFile {
    file: OwnedFd,
    /// Bytes behind the last record's end in the file.
    tail: u64,
    /// Whether what comes next belongs to a record that was dropped.
    skips: bool,
    lost: u64,
}

impl LogFile {
    /// Opens a log that [`open`] named, for writing.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn append_to(named: BorrowedFd<'_>) -> Result<Self, Errno> {
        let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOCTTY;
        let file = rustix::fs::open(again(named), flags, Mode::empty())?;
        Ok(Self {
            file,
            tail: 0,
            skips: false,
            lost: 0,
        })
    }

    /// The rest of a stream whose writer died: half a record at the end of the
    /// file is taken back, and one at the beginning of the rest dropped. A text
    /// that looks like a record's beginning is taken for one: it can only be what
    /// the container might have written as well.
    pub fn resume(&mut self, beginning: &[u8]) {
        self.skips = !stamp::begins(beginning);
        let Ok(stat) = rustix::fs::fstat(&self.file) else {
            return;
        };
        let length = u64::try_from(stat.st_size).unwrap_or(0);
        let start = length.saturating_sub(LONGEST_RECORD as u64);
        let mut end = vec![0; LONGEST_RECORD];
        let read = rustix::io::pread(&self.file, &mut end[..], start).unwrap_or(0);
        let end = end.get(..read).unwrap_or_default();
        let whole = end.iter().rposition(|byte| *byte == b'\n');
        self.tail = (read - whole.map_or(0, |at| at + 1)) as u64;
        self.take_back();
    }

    /// Appends a piece of a stream of records, wherever it was cut. What cannot
    /// be written is dropped to the end of a record, and counted.
    pub fn append(&mut self, piece: &[u8]) {
        let mut rest = self.skip(piece);
        while !rest.is_empty() {
            match rustix::io::retry_on_intr(|| rustix::io::write(&self.file, rest)) {
                Ok(0) | Err(_) => return self.drop_rest(rest),
                Ok(written) => {
                    let (gone, left) = rest.split_at(written.min(rest.len()));
                    match gone.iter().rposition(|byte| *byte == b'\n') {
                        Some(end) => self.tail = (gone.len() - end - 1) as u64,
                        None => self.tail += gone.len() as u64,
                    }
                    rest = left;
                }
            }
        }
    }

    /// Counts what will never be written.
    pub fn lose(&mut self, piece: &[u8]) {
        self.lost += piece.len() as u64;
    }

    /// Bytes that could not be written since it was asked last.
    pub fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    /// What follows the record that is being dropped.
    fn skip<'a>(&mut self, piece: &'a [u8]) -> &'a [u8] {
        if !self.skips {
            return piece;
        }
        let end = find_byte(b'\n', piece).map_or(piece.len(), |end| end + 1);
        self.skips = end == 0 || piece.get(end - 1) != Some(&b'\n');
        let (dropped, rest) = piece.split_at(end);
        self.lose(dropped);
        rest
    }

    /// Drops what could not be written and the half of a record before it.
    fn drop_rest(&mut self, rest: &[u8]) {
        self.lose(rest);
        self.skips = rest.last() != Some(&b'\n');
        self.take_back();
    }

    /// Cuts the file behind the last record's end.
    fn take_back(&mut self) {
        if self.tail == 0 {
            return;
        }
        let cut = rustix::fs::fstat(&self.file).and_then(|stat| {
            let length = u64::try_from(stat.st_size).unwrap_or(0);
            rustix::fs::ftruncate(&self.file, length.saturating_sub(self.tail))
        });
        if cut.is_ok() {
            self.lost += self.tail;
            self.tail = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer(path: &Path) -> LogFile {
        LogFile::append_to(open(path).unwrap().as_fd()).unwrap()
    }

    #[test]
    fn a_log_that_was_renamed_is_written_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let named = open(&path).unwrap();
        std::fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        let mut former = LogFile::append_to(named.as_fd()).unwrap();
        former.append(b"one\n");
        let mut later = writer(&path);
        later.append(b"three\n");
        former.append(b"two\n");
        let read = |name| std::fs::read(dir.path().join(name)).unwrap();
        assert_eq!(read("0.log.1"), b"one\ntwo\n");
        assert_eq!(read("0.log"), b"three\n");
    }

    #[test]
    fn pipe_in_the_place_of_a_log_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, mode, 0).unwrap();
        let error = open(&path).unwrap_err();
        assert!(matches!(error, LogError::Open { source, .. } if source == Errno::NXIO));
        let _reader = rustix::fs::open(&path, OFlags::RDONLY | OFlags::NONBLOCK, mode).unwrap();
        let error = open(&path).unwrap_err();
        assert!(matches!(error, LogError::NotRegular { .. }), "{error}");
    }

    #[test]
    fn link_or_device_in_the_place_of_a_log_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("0.log"), dir.path().join("other"));
        std::fs::write(&other, "").unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        let error = open(&path).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(path.to_str().unwrap()), "{error}");
        assert!(matches!(error, LogError::Open { source, .. } if source == Errno::LOOP));
        let error = open(Path::new("/dev/null")).unwrap_err();
        assert_eq!(error.to_string(), "log /dev/null is not a regular file");
    }

    /// A log on a device that is always full.
    fn full() -> LogFile {
        LogFile {
            file: rustix::fs::open("/dev/full", OFlags::WRONLY, Mode::empty()).unwrap(),
            tail: 0,
            skips: false,
            lost: 0,
        }
    }

    #[test]
    fn what_a_full_disk_refuses_is_counted() {
        let mut log = full();
        log.append(b"one\ntwo\n");
        assert_eq!(log.take_lost(), 8);
        assert_eq!(log.take_lost(), 0);
    }

    #[test]
    fn torn_record_is_taken_back_and_its_rest_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = writer(&path);
        log.append(b"zero\none\ntw");
        // The disk is full for a moment.
        let file = std::mem::replace(&mut log.file, full().file);
        log.append(b"o and mo");
        log.file = file;
        log.append(b"re\nthree\n");
        assert_eq!(std::fs::read(&path).unwrap(), b"zero\none\ntwthree\n");
        // Of a device nothing can be taken back; of a file it can.
        let mut log = writer(&path);
        log.tail = 2 + 6;
        log.drop_rest(b"o and mo");
        log.append(b"re\nfour\n");
        assert_eq!(std::fs::read(&path).unwrap(), b"zero\none\nfour\n");
        assert_eq!(log.take_lost(), 8 + 8 + 3);
    }

    #[test]
    fn a_writer_that_died_leaves_no_half_of_a_record() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, b"zero\nha").unwrap();
        let mut log = writer(&path);
        let rest = b"lf\n1970-01-01T00:00:00.000000000Z stdout F a\n";
        log.resume(rest);
        log.append(rest);
        assert_eq!(
            std::fs::read(&path).unwrap(),
            b"zero\n1970-01-01T00:00:00.000000000Z stdout F a\n"
        );
        assert_eq!(log.take_lost(), 5);
    }

    #[test]
    fn a_stream_that_goes_on_after_its_writer_died_begins_with_a_record() {
        let dir = tempfile::tempdir().unwrap();
        for (piece, written) in [
            (
                &b"half\n1970-01-01T00:00:00.000000000Z stdout F a\n"[..],
                42,
            ),
            (&b"1970-01-01T00:00:00.000000000Z stdout F bc\n"[..], 43),
            (&b"no end"[..], 0),
        ] {
            let path = dir.path().join(written.to_string());
            let mut log = writer(&path);
            log.resume(piece);
            log.append(piece);
            let length = std::fs::read(&path).unwrap().len();
            assert_eq!(length as u64 + log.take_lost(), piece.len() as u64);
            assert_eq!(length, written);
        }
    }
}

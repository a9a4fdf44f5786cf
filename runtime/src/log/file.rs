//! A container's log file.
//!
//! Owns the open file. Writes whole records only, so that readers never see
//! half of one: what a full disk cut off is taken back. Never follows a link
//! to the log and never writes to anything but a regular file. A crash may
//! leave half a record at the end.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

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

/// An append-only log.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: OwnedFd,
    lost: u64,
}

impl LogFile {
    /// Opens the log, made if it is not there.
    ///
    /// # Errors
    /// It cannot be opened, or is a link, a device, a pipe.
    pub fn open(path: &Path) -> Result<Self, LogError> {
        Ok(Self {
            path: path.to_owned(),
            file: open(path)?,
            lost: 0,
        })
    }

    /// Opens the log again, after its file was renamed. On failure the old
    /// file stays in use.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn reopen(&mut self) -> Result<(), LogError> {
        self.file = open(&self.path)?;
        Ok(())
    }

    /// Appends records. What cannot be written is dropped and counted.
    pub fn append(&mut self, records: &[u8]) {
        let mut rest = records;
        while !rest.is_empty() {
            match rustix::io::retry_on_intr(|| rustix::io::write(&self.file, rest)) {
                Ok(0) | Err(_) => {
                    let torn = records.len() - rest.len();
                    let kept = self.take_back(records.get(..torn).unwrap_or_default());
                    self.lost += (records.len() - kept) as u64;
                    return;
                }
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            }
        }
    }

    /// Bytes that could not be written so far.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Cuts the file behind the last whole record of what was written; says
    /// how much of it is kept.
    fn take_back(&self, written: &[u8]) -> usize {
        let whole = written
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |end| end + 1);
        let torn = (written.len() - whole) as u64;
        if torn > 0 {
            let cut = rustix::fs::fstat(&self.file).and_then(|stat| {
                let length = u64::try_from(stat.st_size).unwrap_or(0);
                rustix::fs::ftruncate(&self.file, length.saturating_sub(torn))
            });
            if cut.is_err() {
                return written.len();
            }
        }
        whole
    }
}

fn open(path: &Path) -> Result<OwnedFd, LogError> {
    let failed = |source| LogError::Open {
        path: path.to_owned(),
        source,
    };
    // A pipe in the place of a file would keep the monitor waiting for ever.
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
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotation_between_records_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = LogFile::open(&path).unwrap();
        log.append(b"one\n");
        std::fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        log.append(b"two\n");
        log.reopen().unwrap();
        log.append(b"three\n");
        assert_eq!(
            std::fs::read(dir.path().join("0.log.1")).unwrap(),
            b"one\ntwo\n"
        );
        assert_eq!(std::fs::read(path).unwrap(), b"three\n");
    }

    #[test]
    fn failed_reopen_keeps_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs/0.log");
        std::fs::create_dir(dir.path().join("logs")).unwrap();
        let mut log = LogFile::open(&path).unwrap();
        std::fs::rename(dir.path().join("logs"), dir.path().join("moved")).unwrap();
        let error = log.reopen().unwrap_err();
        assert!(matches!(error, LogError::Open { source, .. } if source == Errno::NOENT));
        log.append(b"one\n");
        assert_eq!(
            std::fs::read(dir.path().join("moved/0.log")).unwrap(),
            b"one\n"
        );
    }

    #[test]
    fn pipe_in_the_place_of_a_log_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, mode, 0).unwrap();
        let error = LogFile::open(&path).unwrap_err();
        assert!(matches!(error, LogError::Open { source, .. } if source == Errno::NXIO));
        let _reader = rustix::fs::open(&path, OFlags::RDONLY | OFlags::NONBLOCK, mode).unwrap();
        let error = LogFile::open(&path).unwrap_err();
        assert!(matches!(error, LogError::NotRegular { .. }), "{error}");
    }

    #[test]
    fn link_or_device_in_the_place_of_a_log_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("0.log"), dir.path().join("other"));
        let mut log = LogFile::open(&path).unwrap();
        std::fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        std::fs::write(&other, "").unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        for error in [LogFile::open(&path).unwrap_err(), log.reopen().unwrap_err()] {
            assert!(
                error.to_string().contains(path.to_str().unwrap()),
                "{error}"
            );
            assert!(matches!(error, LogError::Open { source, .. } if source == Errno::LOOP));
        }
        log.append(b"one\n");
        assert_eq!(std::fs::read(&other).unwrap(), b"");
        assert_eq!(std::fs::read(dir.path().join("0.log.1")).unwrap(), b"one\n");
        let error = LogFile::open(Path::new("/dev/null")).unwrap_err();
        assert_eq!(error.to_string(), "log /dev/null is not a regular file");
    }

    #[test]
    fn what_a_full_disk_refuses_is_counted() {
        let full = rustix::fs::open("/dev/full", OFlags::WRONLY, Mode::empty()).unwrap();
        let mut log = LogFile {
            path: PathBuf::new(),
            file: full,
            lost: 0,
        };
        log.append(b"one\ntwo\n");
        assert_eq!(log.lost(), 8);
    }

    #[test]
    fn torn_record_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let log = LogFile::open(&path).unwrap();
        std::fs::write(&path, b"zero\none\ntw").unwrap();
        assert_eq!(log.take_back(b"one\ntw"), 4);
        assert_eq!(std::fs::read(&path).unwrap(), b"zero\none\n");
    }
}

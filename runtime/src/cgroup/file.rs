//! Reads and writes single cgroup files, with errors that name them.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::CgroupError;

const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC);

/// The content of a file without the last newline.
pub(super) fn read(path: &Path) -> Result<String, CgroupError> {
    raw_read(path).map_err(|source| CgroupError::Read {
        path: path.into(),
        source,
    })
}

/// The content, or none where the file or its controller is missing.
pub(super) fn read_optional(path: &Path) -> Result<Option<String>, CgroupError> {
    optional(path, raw_read(path))
}

fn optional(path: &Path, text: io::Result<String>) -> Result<Option<String>, CgroupError> {
    match text {
        Ok(text) => Ok(Some(text)),
        // A pressure file exists but cannot be read where PSI is switched off,
        // and a cgroup that is just going away answers ENODEV.
        Err(e) if matches!(errno(&e), libc::ENOENT | libc::EOPNOTSUPP | libc::ENODEV) => Ok(None),
        Err(source) => Err(CgroupError::Read {
            path: path.into(),
            source,
        }),
    }
}

/// A number; `None` stands for the kernel's "max".
pub(super) fn number(path: &Path, text: &str) -> Result<Option<u64>, CgroupError> {
    if text == "max" {
        return Ok(None);
    }
    let bad = |_| CgroupError::Content {
        path: path.into(),
        content: text.into(),
    };
    text.parse().map(Some).map_err(bad)
}

/// Writes a value in one system call; never creates the file.
pub(super) fn write(path: &Path, value: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.write_all(value.as_bytes())
}

/// The value of `key` in a file of "key value" lines.
pub(super) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok())?
    })
}

/// The error's number, 0 if it has none.
pub(super) fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(0)
}

fn raw_read(path: &Path) -> io::Result<String> {
    let file = rustix::fs::open(path, FLAGS, Mode::empty())?;
    read_until(&file, |length, _| length == 0)
}

/// Without asking for the size first, which these files do not tell anyway. `ends` is
/// asked after each reading, with its length and that of the buffer.
fn read_until(file: &OwnedFd, ends: impl Fn(usize, usize) -> bool) -> io::Result<String> {
    let mut text = Vec::new();
    let mut part = [0; 4096];
    loop {
        let length = rustix::io::retry_on_intr(|| rustix::io::read(file, &mut part))?;
        text.extend_from_slice(part.get(..length).unwrap_or_default());
        if ends(length, part.len()) {
            break;
        }
    }
    text.truncate(text.trim_ascii_end().len());
    String::from_utf8(text).map_err(io::Error::other)
}

/// A directory whose files are read one after the other: looked up in it and not from
/// the root, which is what reading small files costs most.
pub(super) struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

impl Dir {
    /// `None`: there is no such directory.
    pub(super) fn open(path: PathBuf) -> Result<Option<Self>, CgroupError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(Self { fd, path })),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(CgroupError::Read {
                path,
                source: errno.into(),
            }),
        }
    }

    /// The content of a file that the kernel writes in one piece, as it does those with
    /// figures: where a reading does not fill the buffer, nothing follows.
    pub(super) fn figures(&self, name: &str) -> Result<Option<String>, CgroupError> {
        let read = || {
            let file = rustix::fs::openat(&self.fd, name, FLAGS, Mode::empty())?;
            read_until(&file, |length, room| length < room)
        };
        optional(&self.path.join(name), read())
    }

    /// The number in a file; none for "max" and for a file that is not there.
    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, CgroupError> {
        match self.figures(name)? {
            Some(text) => number(&self.path.join(name), &text),
            None => Ok(None),
        }
    }
}

//! Reads and writes single cgroup files, with errors that name them.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::CgroupError;

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

/// The same of a file that the kernel writes in one piece, as it does those with
/// figures: where a reading does not fill the buffer, nothing follows.
pub(super) fn read_figures(path: &Path) -> Result<Option<String>, CgroupError> {
    optional(path, read_until(path, |length, room| length < room))
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
    read_until(path, |length, _| length == 0)
}

/// Without asking for the size first, which these files do not tell anyway. `ends` is
/// asked after each reading, with its length and that of the buffer.
fn read_until(path: &Path, ends: impl Fn(usize, usize) -> bool) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    let mut text = Vec::new();
    let mut part = [0; 4096];
    loop {
        let length = rustix::io::retry_on_intr(|| rustix::io::read(&file, &mut part))?;
        text.extend_from_slice(part.get(..length).unwrap_or_default());
        if ends(length, part.len()) {
            break;
        }
    }
    text.truncate(text.trim_ascii_end().len());
    String::from_utf8(text).map_err(io::Error::other)
}

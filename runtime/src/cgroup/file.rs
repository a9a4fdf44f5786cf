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
    match raw_read(path) {
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

/// Without asking for the size first, which these files do not tell anyway.
fn raw_read(path: &Path) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    let mut text = Vec::new();
    let mut part = [0; 4096];
    loop {
        match rustix::io::retry_on_intr(|| rustix::io::read(&file, &mut part))? {
            0 => break,
            length => text.extend_from_slice(part.get(..length).unwrap_or_default()),
        }
    }
    text.truncate(text.trim_ascii_end().len());
    String::from_utf8(text).map_err(io::Error::other)
}

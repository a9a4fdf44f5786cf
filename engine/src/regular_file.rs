//! Files that others write, read without being held up by what they are.
//!
//! A FIFO's opening waits for a writer, and a device gives without end. Knows nothing of
//! what the files say.

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Reads a regular file of at most so many bytes; a symbolic link is followed.
///
/// # Errors
/// It cannot be read, is longer, or is something else.
pub(crate) fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let unfit = || {
        let message = format!("no regular file of at most {most} bytes");
        io::Error::new(io::ErrorKind::InvalidData, message)
    };
    if !file.metadata()?.is_file() {
        return Err(unfit());
    }
    let mut text = Vec::new();
    // It may grow while it is read.
    let read = file.take(most.saturating_add(1)).read_to_end(&mut text)?;
    match u64::try_from(read) {
        Ok(read) if read <= most => Ok(text),
        _ => Err(unfit()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_or_too_long_is_refused_at_once() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("file");
        std::fs::write(&path, "12345").expect("write");
        assert_eq!(read(&path, 5).expect("read"), b"12345");
        let long = read(&path, 4).expect_err("too long");
        assert!(long.to_string().contains("at most 4 bytes"), "{long}");
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
        read(&fifo, 5).expect_err("a FIFO");
        read(Path::new("/dev/zero"), 5).expect_err("a device");
        read(dir.path(), 5).expect_err("a folder");
    }
}

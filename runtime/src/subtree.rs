//! A cgroup with all that is below it, in one hierarchy.
//!
//! A container that may make cgroups of its own nests them as deep as it likes: their
//! paths are longer than the kernel takes, and so many directories as are nested can
//! neither be held open at once nor be a function's calls. So the way down is a
//! descriptor for the directory that is looked at and the names that are left above it,
//! which are fewer than the container has paid for with its own memory; the way up is
//! `..`, since a cgroup is never moved to another parent. Owns walking and removing;
//! what vanishes meanwhile is no error, what cannot be looked at is one.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::path::Arg;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Looks at a directory and at all below it, parents first. None is there: nothing is
/// looked at.
///
/// # Errors
/// What `look` says, and the kernel's answer where a directory cannot be read.
pub fn visit(top: &Path, mut look: impl FnMut(BorrowedFd<'_>) -> io::Result<()>) -> io::Result<()> {
    let Some(mut dir) = open(CWD, top)? else {
        return Ok(());
    };
    look(dir.as_fd())?;
    let mut left = vec![children(&dir)?];
    while let Some(names) = left.last_mut() {
        match names.pop() {
            Some(name) => {
                if let Some(child) = open(&dir, &*name)? {
                    dir = child;
                    look(dir.as_fd())?;
                    left.push(children(&dir)?);
                }
            }
            None => {
                left.pop();
                if !left.is_empty() {
                    dir = above(&dir)?;
                }
            }
        }
    }
    Ok(())
}

/// Removes a directory with all below it. Those that are busy are tried until then: tasks
/// leave their cgroup a little after they were reaped.
///
/// # Errors
/// `EBUSY`: one stays busy; else the kernel's answer.
pub fn remove(top: &Path, until: Instant) -> io::Result<()> {
    let mut pause = Duration::from_micros(500);
    loop {
        if remove_one(CWD, top)? {
            return Ok(());
        }
        // Mostly nothing is below, and its last task is about to leave.
        let has_children = rustix::fs::stat(top).is_ok_and(|stat| stat.st_nlink > 2);
        if has_children {
            if let Some(dir) = open(CWD, top)? {
                remove_below(dir)?;
            }
            if remove_one(CWD, top)? {
                return Ok(());
            }
        }
        if Instant::now() >= until {
            return Err(Errno::BUSY.into());
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Removes what is below a directory and not busy.
fn remove_below(top: OwnedFd) -> io::Result<()> {
    let mut dir = top;
    let mut left = vec![children(&dir)?];
    while let Some(names) = left.last_mut() {
        let Some(name) = names.last() else {
            left.pop();
            if let Some(names) = left.last_mut() {
                dir = above(&dir)?;
                // Emptied or not, it is done with.
                if let Some(name) = names.pop() {
                    remove_one(&dir, &*name)?;
                }
            }
            continue;
        };
        if remove_one(&dir, &**name)? {
            names.pop();
            continue;
        }
        let below = match open(&dir, &**name)? {
            Some(child) => children(&child).map(|below| (child, below))?,
            None => {
                names.pop();
                continue;
            }
        };
        match below {
            (_, names_below) if names_below.is_empty() => drop(names.pop()),
            (child, names_below) => {
                dir = child;
                left.push(names_below);
            }
        }
    }
    Ok(())
}

/// `false`: it is in use, or something is below it.
fn remove_one(dir: impl AsFd, name: impl Arg) -> io::Result<bool> {
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT | Errno::NODEV) => Ok(true),
        Err(Errno::BUSY | Errno::NOTEMPTY) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// What a file in a directory holds; `None`: there is no such file.
///
/// # Errors
/// The kernel's answer.
pub fn read(dir: BorrowedFd<'_>, name: &str) -> io::Result<Option<String>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        Ok(file) => read_all(&file).map(Some).or_else(gone),
        Err(errno) => gone(errno.into()),
    }
}

/// Without asking for the size first, which these files do not tell anyway.
fn read_all(file: &OwnedFd) -> io::Result<String> {
    let mut text = Vec::new();
    let mut part = [0; 4096];
    loop {
        let length = rustix::io::retry_on_intr(|| rustix::io::read(file, &mut part))?;
        if length == 0 {
            return String::from_utf8(text).map_err(io::Error::other);
        }
        text.extend_from_slice(part.get(..length).unwrap_or_default());
    }
}

/// Writes to a file in a directory; one that is not there is fine.
///
/// # Errors
/// The kernel's answer.
pub fn write(dir: BorrowedFd<'_>, name: &str, text: &str) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, Mode::empty());
    let written = file.and_then(|file| rustix::io::write(file, text.as_bytes()));
    written.map(drop).or_else(|errno| gone(errno.into()))
}

/// A cgroup that is just going away answers `ENODEV`, and one of the v2 tree that is not
/// the head of its threads has no list of processes: they stand above it.
fn gone<T: Default>(error: io::Error) -> io::Result<T> {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP) => Ok(T::default()),
        _ => Err(error),
    }
}

fn open(at: impl AsFd, name: impl Arg) -> io::Result<Option<OwnedFd>> {
    match rustix::fs::openat(at, name, DIRECTORY, Mode::empty()) {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::NOENT | Errno::NODEV) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn above(dir: &OwnedFd) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(dir, c"..", DIRECTORY, Mode::empty())?)
}

/// The names of the directories in a directory.
fn children(dir: &OwnedFd) -> io::Result<Vec<CString>> {
    // Two more links than it has children.
    if rustix::fs::fstat(dir)?.st_nlink <= 2 {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = match entry {
            Err(Errno::NOENT | Errno::NODEV) => break,
            other => other?,
        };
        let name = entry.file_name();
        if entry.file_type() == FileType::Directory && name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As deep as no path reaches, without a cgroup: directories are enough.
    fn deep(levels: usize) -> tempfile::TempDir {
        let top = tempfile::tempdir().unwrap();
        let mut dir = open(CWD, top.path()).unwrap().unwrap();
        for _ in 0..levels {
            rustix::fs::mkdirat(&dir, "deep", Mode::RWXU).unwrap();
            rustix::fs::mkdirat(&dir, "other", Mode::RWXU).unwrap();
            dir = open(&dir, "deep").unwrap().unwrap();
        }
        top
    }

    #[test]
    fn what_is_deeper_than_any_path_is_seen_and_removed() {
        let top = deep(3000);
        let mut seen = 0;
        visit(top.path(), |_| {
            seen += 1;
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, 6001);
        remove(top.path(), Instant::now()).unwrap();
        assert!(!top.path().exists());
    }

    #[test]
    fn what_stays_busy_is_told() {
        let top = deep(2);
        // A file is what a process is in a cgroup.
        std::fs::write(top.path().join("deep/busy"), "").unwrap();
        let error = remove(top.path(), Instant::now()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBUSY));
        assert!(!top.path().join("deep/deep").exists() && !top.path().join("other").exists());
    }

    #[test]
    fn nothing_there_is_nothing_to_do() {
        let nothing = Path::new("/nothing/there");
        visit(nothing, |_| panic!("there is none")).unwrap();
        remove(nothing, Instant::now()).unwrap();
    }

    #[test]
    fn a_directory_that_cannot_be_looked_at_is_told() {
        let top = deep(1);
        let error = visit(top.path(), |_| Err(Errno::NAMETOOLONG.into())).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
    }
}

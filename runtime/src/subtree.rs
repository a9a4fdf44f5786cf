//! Walks and removes a cgroup's directory in one hierarchy with all directories below it.
//!
//! A container that may make cgroups makes as many as it likes, side by side or nested. Nested
//! ones have paths longer than PATH_MAX, exceed the limit of open files if each level is held
//! open, and the stack if each is a call; the names of many side by side would fill the memory.
//! So the walk holds one descriptor, of the directory that it is in, and for each level above it
//! the inode numbers of the children that are done: a few bytes for each cgroup, which costs the
//! kernel, and so the container, hundreds. It goes up by `..`, since the kernel never moves a
//! cgroup to another parent. A directory that vanishes meanwhile is no error, one that cannot be
//! read is.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, SeekFrom};
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
    let Some(top) = open(CWD, top)? else {
        return Ok(());
    };
    look(top.as_fd())?;
    walk(top, &mut look, &|_, _| Ok(false))
}

/// Looks at a directory and at what is below it and busy; the rest is removed on the way,
/// so that each time there is less.
///
/// # Errors
/// As [`visit`].
pub fn visit_busy(
    top: &Path,
    mut look: impl FnMut(BorrowedFd<'_>) -> io::Result<()>,
) -> io::Result<()> {
    let Some(top) = open(CWD, top)? else {
        return Ok(());
    };
    look(top.as_fd())?;
    walk(top, &mut look, &|dir, name| remove_one(dir, name))
}

/// Goes through all below a directory: looks at each child that is not taken away.
fn walk(
    top: OwnedFd,
    look: &mut dyn FnMut(BorrowedFd<'_>) -> io::Result<()>,
    take_away: TakeAway<'_>,
) -> io::Result<()> {
    let mut dir = top;
    let mut above = vec![Level::default()];
    while let Some(level) = above.last_mut() {
        match level.next_child(&dir, take_away)? {
            Some(child) => {
                dir = child;
                look(dir.as_fd())?;
                above.push(Level::default());
            }
            None => {
                above.pop();
                if !above.is_empty() {
                    dir = parent(&dir)?;
                }
            }
        }
    }
    Ok(())
}

/// Takes a child of a directory away; `false`: it stays.
type TakeAway<'a> = &'a dyn Fn(&OwnedFd, &CStr) -> io::Result<bool>;

/// A directory on the way down.
#[derive(Default)]
struct Level {
    /// Where its list is read on: the kernel's word behind a child.
    position: u64,
    /// The inodes of the children that were looked at.
    done: BTreeSet<u64>,
}

impl Level {
    /// The next child that stays and was not looked at.
    fn next_child(
        &mut self,
        dir: &OwnedFd,
        take_away: TakeAway<'_>,
    ) -> io::Result<Option<OwnedFd>> {
        // Two more links than it has children.
        if rustix::fs::fstat(dir)?.st_nlink <= 2 {
            return Ok(None);
        }
        if self.position == 0 {
            return self.find(dir, take_away);
        }
        rustix::fs::seek(dir, SeekFrom::Start(self.position))?;
        let found = self.find(dir, take_away)?;
        if found.is_some() {
            return Ok(found);
        }
        // Positions are hashes of names, so that two may share one: those that were
        // passed over are found from the beginning. Not by this descriptor: ext4 begins
        // at the end again if it was read there first.
        match open(dir, c".")? {
            Some(again) => self.find(&again, take_away),
            None => Ok(None),
        }
    }

    /// The same, from where the descriptor's list is read on.
    fn find(&mut self, dir: &OwnedFd, take_away: TakeAway<'_>) -> io::Result<Option<OwnedFd>> {
        let mut names = [MaybeUninit::uninit(); 4096];
        let mut list = RawDir::new(dir, &mut names);
        while let Some(entry) = list.next() {
            let entry = match entry {
                Err(Errno::NOENT | Errno::NODEV) => break,
                other => other?,
            };
            let name = entry.file_name();
            if entry.file_type() != FileType::Directory || name == c"." || name == c".." {
                continue;
            }
            if take_away(dir, name)? || !self.done.insert(entry.ino()) {
                continue;
            }
            if let Some(child) = open(dir, name)? {
                self.position = entry.next_entry_cookie();
                return Ok(Some(child));
            }
        }
        Ok(None)
    }
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

/// Removes what is below a directory and not busy: children when they are met, and those
/// that had children themselves when the rest of their parent's list was read.
fn remove_below(top: OwnedFd) -> io::Result<()> {
    walk(top, &mut |_| Ok(()), &|dir, name| remove_one(dir, name))
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

fn parent(dir: &OwnedFd) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(dir, c"..", DIRECTORY, Mode::empty())?)
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
    fn each_of_many_is_seen_once_and_all_are_removed() {
        let top = tempfile::tempdir().unwrap();
        for n in 0..3000 {
            let path = top.path().join(format!("{n:0100}"));
            std::fs::create_dir_all(path.join(if n % 7 == 0 { "below/it" } else { "" })).unwrap();
        }
        let mut seen = BTreeSet::new();
        visit(top.path(), |dir| {
            assert!(seen.insert(rustix::fs::fstat(dir)?.st_ino));
            Ok(())
        })
        .unwrap();
        assert_eq!(seen.len(), 1 + 3000 + 2 * 429);
        remove(top.path(), Instant::now()).unwrap();
        assert!(!top.path().exists());
    }

    #[test]
    fn what_is_busy_is_seen_and_the_rest_is_gone() {
        let top = deep(2);
        std::fs::write(top.path().join("deep/deep/busy"), "").unwrap();
        let mut seen = 0;
        let mut count = |_: BorrowedFd<'_>| {
            seen += 1;
            Ok(())
        };
        visit_busy(top.path(), &mut count).unwrap();
        assert_eq!(seen, 3);
        assert!(!top.path().join("other").exists() && !top.path().join("deep/other").exists());
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

//! Removes directory trees without ever leaving them.
//!
//! Works relative to directory descriptors and never follows links, so a tree
//! made by a hostile image cannot lead it astray. Depth costs neither stack nor
//! descriptors: what lies deeper than a few dozen levels is lifted up first. And
//! breadth costs no memory: directories are remembered some at a time.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, IFlags, Mode, OFlags};
use rustix::io::Errno;

const MAX_DEPTH: usize = 64;
/// Directories of one directory that are remembered at a time.
const BATCH: usize = 512;

/// Removes `name` in the open directory `at`, whatever it is. Missing: fine.
pub(crate) fn remove_tree<Fd: AsFd>(at: Fd, name: &[u8]) -> Result<(), Errno> {
    remove_with(at, name, &mut |_| true)
}

/// Like [`remove_tree`]; `step` is called after each removed entry and ends
/// the work early by answering false.
pub(crate) fn remove_with<Fd: AsFd>(
    at: Fd,
    name: &[u8],
    step: &mut dyn FnMut(u64) -> bool,
) -> Result<(), Errno> {
    let at = at.as_fd();
    match rustix::fs::unlinkat(at, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(e),
    }
    let top = match open(at, name) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(e),
    };
    let mut removal = Removal {
        top: &top,
        lifted: 0,
        removed: 0,
        step,
    };
    if !removal.empty(&top, 0)? {
        return Ok(());
    }
    for round in 0.. {
        if round >= removal.lifted {
            break;
        }
        let lifted = lifted_name(round);
        let dir = match open(top.as_fd(), &lifted) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => continue,
            Err(e) => return Err(e),
        };
        if !removal.empty(&dir, 1)? {
            return Ok(());
        }
        rustix::fs::unlinkat(&top, &lifted[..], AtFlags::REMOVEDIR)?;
    }
    rustix::fs::unlinkat(at, name, AtFlags::REMOVEDIR)
}

fn open(at: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty())
}

/// Unlinks, and where flags forbid it (a privileged container may have set
/// `immutable` or `append only`), takes them off first.
fn unlink(dir: &OwnedFd, name: &[u8], flags: AtFlags) -> Result<(), Errno> {
    match rustix::fs::unlinkat(dir, name, flags) {
        Err(Errno::PERM) => {
            unprotect(dir);
            let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            // Opening a device or a pipe could do more than that.
            let kind = FileType::from_raw_mode(stat.st_mode);
            if matches!(kind, FileType::RegularFile | FileType::Directory) {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                unprotect(&rustix::fs::openat(dir, name, flags, Mode::empty())?);
            }
            rustix::fs::unlinkat(dir, name, flags)
        }
        other => other,
    }
}

fn unprotect(file: &OwnedFd) {
    let protecting = IFlags::IMMUTABLE | IFlags::APPEND;
    if let Ok(flags) = rustix::fs::ioctl_getflags(file)
        && flags.intersects(protecting)
        && let Err(error) = rustix::fs::ioctl_setflags(file, flags - protecting)
    {
        tracing::debug!(error = %error, "flags stay on a file to be removed");
    }
}

fn lifted_name(number: u64) -> Vec<u8> {
    format!(".slipway-lifted-{number}").into_bytes()
}

struct Removal<'a> {
    top: &'a OwnedFd,
    /// Directories moved up into `top` because they lay too deep.
    lifted: u64,
    removed: u64,
    step: &'a mut dyn FnMut(u64) -> bool,
}

/// Directories of a directory.
struct Subdirs {
    names: Vec<Vec<u8>>,
    /// There are no others.
    all: bool,
}

impl Removal<'_> {
    /// Empties a directory; false when told to stop.
    fn empty(&mut self, dir: &OwnedFd, depth: usize) -> Result<bool, Errno> {
        loop {
            let Some(Subdirs { names, all }) = self.files(dir)? else {
                return Ok(false);
            };
            for name in names {
                if depth >= MAX_DEPTH {
                    self.lift(dir, &name)?;
                    continue;
                }
                let sub = open(dir, &name)?;
                if !self.empty(&sub, depth + 1)? {
                    return Ok(false);
                }
                unlink(dir, &name, AtFlags::REMOVEDIR)?;
                if !self.count() {
                    return Ok(false);
                }
            }
            if all {
                return Ok(true);
            }
        }
    }

    /// Removes what is no directory. `None` when told to stop.
    fn files(&mut self, dir: &OwnedFd) -> Result<Option<Subdirs>, Errno> {
        let mut names = Vec::new();
        for item in Dir::read_from(dir)? {
            let item = item?;
            let name = item.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let is_dir = match item.file_type() {
                FileType::Directory => true,
                FileType::Unknown => {
                    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
                    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
                }
                _ => false,
            };
            if is_dir {
                if names.len() == BATCH {
                    return Ok(Some(Subdirs { names, all: false }));
                }
                names.push(name.to_vec());
                continue;
            }
            unlink(dir, name, AtFlags::empty())?;
            if !self.count() {
                return Ok(None);
            }
        }
        Ok(Some(Subdirs { names, all: true }))
    }

    fn lift(&mut self, dir: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
        loop {
            let to = lifted_name(self.lifted);
            let flags = rustix::fs::RenameFlags::NOREPLACE;
            match rustix::fs::renameat_with(dir, name, self.top, &to[..], flags) {
                Ok(()) => {
                    self.lifted += 1;
                    return Ok(());
                }
                // A name that an earlier, interrupted removal left.
                Err(Errno::EXIST) => self.lifted += 1,
                Err(e) => return Err(e),
            }
        }
    }

    fn count(&mut self) -> bool {
        self.removed += 1;
        (self.step)(self.removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removing_what_is_missing_is_fine() {
        let dir = tempfile::tempdir().unwrap();
        let at = std::fs::File::open(dir.path()).unwrap();
        assert_eq!(remove_tree(&at, b"nothing"), Ok(()));
    }

    #[test]
    fn links_are_removed_and_never_followed() {
        let dir = tempfile::tempdir().unwrap();
        let keep = dir.path().join("keep");
        std::fs::create_dir_all(keep.join("sub")).unwrap();
        std::fs::create_dir_all(dir.path().join("tree/a/b")).unwrap();
        std::os::unix::fs::symlink(&keep, dir.path().join("tree/a/link")).unwrap();
        std::fs::write(dir.path().join("tree/a/b/f"), "x").unwrap();
        let at = std::fs::File::open(dir.path()).unwrap();
        remove_tree(&at, b"tree").unwrap();
        assert!(!dir.path().join("tree").exists());
        assert!(keep.join("sub").exists());
    }

    #[test]
    fn protected_files_are_removed_too() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree/sub");
        std::fs::create_dir_all(&tree).unwrap();
        std::fs::write(tree.join("file"), "x").unwrap();
        for path in [tree.join("file"), tree] {
            let fd = OwnedFd::from(std::fs::File::open(path).unwrap());
            let Ok(flags) = rustix::fs::ioctl_getflags(&fd) else {
                return;
            };
            if rustix::fs::ioctl_setflags(&fd, flags | IFlags::IMMUTABLE).is_err() {
                return; // no such flag here, or no capability for it
            }
        }
        let at = std::fs::File::open(dir.path()).unwrap();
        remove_tree(&at, b"tree").unwrap();
        assert!(!dir.path().join("tree").exists());
    }

    #[test]
    fn a_tree_deeper_than_any_path_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let at = std::fs::File::open(dir.path()).unwrap();
        rustix::fs::mkdirat(&at, "deep", Mode::from_raw_mode(0o755)).unwrap();
        let mut fd = open(&at, b"deep").unwrap();
        for _ in 0..2_100 {
            rustix::fs::mkdirat(&fd, "d", Mode::from_raw_mode(0o755)).unwrap();
            rustix::fs::mkdirat(&fd, ".slipway-lifted-0", Mode::from_raw_mode(0o755)).unwrap();
            fd = open(&fd, b"d").unwrap();
        }
        remove_tree(&at, b"deep").unwrap();
        assert!(!dir.path().join("deep").exists());
    }

    #[test]
    fn more_directories_than_are_remembered_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..2 * BATCH + 3 {
            let sub = dir.path().join(format!("tree/{i}"));
            std::fs::create_dir_all(&sub).unwrap();
            std::fs::write(sub.join("f"), "x").unwrap();
            std::fs::write(dir.path().join(format!("tree/f{i}")), "x").unwrap();
        }
        let at = std::fs::File::open(dir.path()).unwrap();
        remove_tree(&at, b"tree").unwrap();
        assert!(!dir.path().join("tree").exists());
    }

    #[test]
    fn a_stopped_removal_can_be_taken_up_again() {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..20 {
            std::fs::create_dir_all(dir.path().join(format!("tree/{i}/x"))).unwrap();
        }
        let at = std::fs::File::open(dir.path()).unwrap();
        remove_with(&at, b"tree", &mut |n| n < 5).unwrap();
        assert!(dir.path().join("tree").exists());
        remove_tree(&at, b"tree").unwrap();
        assert!(!dir.path().join("tree").exists());
    }
}

//! Places in the container's root, found and made.
//!
//! Every path is resolved as if the root were `/`: links stay inside, and the
//! magic ones of /proc, which lead anywhere, are not followed at all.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Links that may lead on to others while a place is made.
const MAX_LINKS: usize = 40;

/// What a place has to be when it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A directory.
    Directory,
    /// An empty file.
    File,
}

/// A container's root.
#[derive(Debug)]
pub(super) struct Root(OwnedFd);

impl Root {
    /// The root of this process.
    pub(super) fn own() -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(c"/", flags, Mode::empty()).map(Self)
    }

    /// Finds what is there.
    pub(super) fn find(&self, path: &CStr) -> Result<OwnedFd, Errno> {
        self.open(path, OFlags::PATH)
    }

    /// Opens what is there.
    pub(super) fn open(&self, path: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = flags | OFlags::CLOEXEC;
        // Renames elsewhere make it start again.
        loop {
            match rustix::fs::openat2(&self.0, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
    }

    /// Finds what is there, or makes it and all directories above.
    pub(super) fn place(&self, path: &CStr, kind: Kind) -> Result<OwnedFd, Errno> {
        match self.find(path) {
            Err(Errno::NOENT) => self.make(path.to_bytes(), kind),
            other => other,
        }
    }

    fn make(&self, path: &[u8], kind: Kind) -> Result<OwnedFd, Errno> {
        let mut path = path.to_vec();
        for _ in 0..MAX_LINKS {
            match self.walk(&path, kind)? {
                Step::Done(place) => return Ok(place),
                Step::Link(instead) => path = instead,
            }
        }
        Err(Errno::LOOP)
    }

    /// Walks along a path and makes what is missing, until it meets a link
    /// that leads to nothing.
    fn walk(&self, path: &[u8], kind: Kind) -> Result<Step, Errno> {
        let mut here = self.find(c"/")?;
        let mut walked = Vec::with_capacity(path.len() + 1);
        let mut parts = path
            .split(|byte| *byte == b'/')
            .filter(|part| !part.is_empty())
            .peekable();
        while let Some(part) = parts.next() {
            let above = walked.len();
            walked.push(b'/');
            walked.extend_from_slice(part);
            here = match self.find(&text(&walked)?) {
                Ok(found) => found,
                Err(Errno::NOENT) => {
                    let last = parts.peek().is_none();
                    let kind = if last { kind } else { Kind::Directory };
                    match make_one(here.as_fd(), &text(part)?, kind) {
                        Err(Errno::EXIST) => {
                            let target = rustix::fs::readlinkat(&here, part, Vec::new())?;
                            let mut instead = Vec::new();
                            if target.to_bytes().first() != Some(&b'/') {
                                instead.extend_from_slice(walked.get(..above).unwrap_or_default());
                                instead.push(b'/');
                            }
                            instead.extend_from_slice(target.to_bytes());
                            for rest in parts {
                                instead.push(b'/');
                                instead.extend_from_slice(rest);
                            }
                            return Ok(Step::Link(instead));
                        }
                        made => made?,
                    }
                    self.find(&text(&walked)?)?
                }
                Err(errno) => return Err(errno),
            };
        }
        Ok(Step::Done(here))
    }
}

/// Where a walk ended.
enum Step {
    /// At its end.
    Done(OwnedFd),
    /// At a link: the path to walk instead.
    Link(Vec<u8>),
}

fn text(bytes: &[u8]) -> Result<CString, Errno> {
    CString::new(bytes).map_err(|_| Errno::INVAL)
}

fn make_one(above: BorrowedFd<'_>, name: &CStr, kind: Kind) -> Result<(), Errno> {
    let file = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
    match kind {
        Kind::Directory => {
            let mode = Mode::RWXU | Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH;
            rustix::fs::mkdirat(above, name, mode)
        }
        Kind::File => rustix::fs::mknodat(above, name, FileType::RegularFile, file, 0),
    }
}

/// Whether a place is a directory.
pub(super) fn is_directory(place: BorrowedFd<'_>) -> Result<bool, Errno> {
    let stat = rustix::fs::fstat(place)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    fn root(dir: &Path) -> Root {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Root(rustix::fs::open(dir, flags, Mode::empty()).unwrap())
    }

    #[test]
    fn missing_places_are_made_with_all_above() {
        let dir = tempfile::tempdir().unwrap();
        let root = root(dir.path());
        root.place(c"/a//b/./c", Kind::Directory).unwrap();
        root.place(c"/a/f/file", Kind::File).unwrap();
        assert!(dir.path().join("a/b/c").is_dir());
        assert!(dir.path().join("a/f/file").is_file());
        let found = root.place(c"/a/f/file", Kind::Directory).unwrap();
        assert!(!is_directory(found.as_fd()).unwrap());
    }

    #[test]
    fn links_never_lead_out() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("root"), dir.path().join("outside"));
        std::fs::create_dir(&inside).unwrap();
        std::fs::create_dir(&outside).unwrap();
        symlink(&outside, inside.join("absolute")).unwrap();
        symlink("../../../outside", inside.join("up")).unwrap();
        symlink("self", inside.join("self")).unwrap();
        let root = root(&inside);
        root.place(c"/absolute/x", Kind::Directory).unwrap();
        root.place(c"/up/y", Kind::File).unwrap();
        root.place(c"/../../z", Kind::File).unwrap();
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
        let kept = inside.join(outside.strip_prefix("/").unwrap());
        assert!(kept.join("x").is_dir());
        assert!(inside.join("outside/y").is_file() && inside.join("z").is_file());
        assert_eq!(root.place(c"/self/x", Kind::File).unwrap_err(), Errno::LOOP);
    }

    #[test]
    fn magic_links_are_not_followed() {
        let proc = root(Path::new("/proc"));
        let number = std::os::fd::AsRawFd::as_raw_fd(&proc.0);
        let path = CString::new(format!("/self/fd/{number}")).unwrap();
        assert_eq!(proc.find(&path).unwrap_err(), Errno::LOOP);
    }
}

//! Places in the container's root, found and made.
//!
//! Every path is resolved as if the root were `/`: links stay inside, and the
//! magic ones of /proc, which lead anywhere, are not followed at all. A place of
//! which more depends than where a volume shows up is found without any link:
//! links of an image would lay procfs beside /proc, and no mask would meet it.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Links that may lead on to others while a place is made.
const MAX_LINKS: usize = 40;

/// What a place has to be when it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A directory.
    Directory,
    /// An empty file.
    File,
}

/// What becomes of symbolic links on a way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Links {
    /// They are followed, inside of the root.
    Followed,
    /// The way ends at them, with `ELOOP`.
    Refused,
}

/// The root of a container, or of one mount in it.
#[derive(Debug)]
pub(crate) struct Root<F>(F);

impl Root<OwnedFd> {
    /// The root of this process.
    pub(crate) fn own() -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(c"/", flags, Mode::empty()).map(Self)
    }
}

impl<'a> Root<BorrowedFd<'a>> {
    /// The root of a mount, whatever lies above or over its place.
    pub(crate) fn of(mount: BorrowedFd<'a>) -> Self {
        Self(mount)
    }
}

impl<F: AsFd> Root<F> {
    /// Finds what is there.
    pub(crate) fn find(&self, path: &CStr, links: Links) -> Result<OwnedFd, Errno> {
        self.open(path, OFlags::PATH, links)
    }

    /// Opens what is there.
    pub(crate) fn open(&self, path: &CStr, flags: OFlags, links: Links) -> Result<OwnedFd, Errno> {
        let mut resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        resolve.set(ResolveFlags::NO_SYMLINKS, links == Links::Refused);
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
    pub(crate) fn place(&self, path: &CStr, kind: Kind, links: Links) -> Result<OwnedFd, Errno> {
        match self.find(path, links) {
            Err(Errno::NOENT) => self.make(path.to_bytes(), kind, links),
            other => other,
        }
    }

    fn make(&self, path: &[u8], kind: Kind, links: Links) -> Result<OwnedFd, Errno> {
        let mut path = path.to_vec();
        for _ in 0..MAX_LINKS {
            match self.walk(&path, kind, links)? {
                Step::Done(place) => return Ok(place),
                Step::Link(instead) => path = instead,
            }
        }
        Err(Errno::LOOP)
    }

    /// Walks along a path and makes what is missing, until it meets a link
    /// that leads to nothing.
    fn walk(&self, path: &[u8], kind: Kind, links: Links) -> Result<Step, Errno> {
        let mut here = self.find(c"/", links)?;
        let mut walked = Vec::with_capacity(path.len() + 1);
        let mut parts = path
            .split(|byte| *byte == b'/')
            .filter(|part| !part.is_empty())
            .peekable();
        while let Some(part) = parts.next() {
            let above = walked.len();
            walked.push(b'/');
            walked.extend_from_slice(part);
            here = match self.find(&text(&walked)?, links) {
                Ok(found) => found,
                Err(Errno::NOENT) => {
                    let last = parts.peek().is_none();
                    let kind = if last { kind } else { Kind::Directory };
                    match make_one(here.as_fd(), &text(part)?, kind) {
                        Err(Errno::EXIST) if links == Links::Followed => {
                            let target = rustix::fs::readlinkat(&here, part, Vec::new())?;
                            let above = walked.get(..above).unwrap_or_default();
                            return Ok(Step::Link(redirect(above, target.to_bytes(), parts)));
                        }
                        made => made?,
                    }
                    self.find(&text(&walked)?, links)?
                }
                Err(errno) => return Err(errno),
            };
        }
        Ok(Step::Done(here))
    }
}

/// The path that is meant where a link lies on the way, below `above`.
fn redirect<'a>(above: &[u8], target: &[u8], rest: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut instead = Vec::new();
    if target.first() != Some(&b'/') {
        instead.extend_from_slice(above);
        instead.push(b'/');
    }
    instead.extend_from_slice(target);
    for part in rest {
        instead.push(b'/');
        instead.extend_from_slice(part);
    }
    instead
}

/// A path without doubled slashes and dots; `..` takes the part before it away,
/// as its text says and whatever is there.
pub(crate) fn clean(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    let mut clean = vec![b'/'];
    clean.extend_from_slice(&parts.join(&b'/'));
    clean
}

/// What is left of a clean path below another; `None`: it is not there or below.
pub(crate) fn below<'a>(path: &'a CStr, above: &CStr) -> Option<&'a CStr> {
    if above == c"/" {
        return Some(path);
    }
    let (whole, above) = (path.to_bytes_with_nul(), above.to_bytes());
    let rest = whole.strip_prefix(above)?;
    let inside = matches!(rest.first(), Some(b'/' | 0));
    inside.then(|| CStr::from_bytes_with_nul(rest).ok())?
}

/// Makes a directory, and all above it, in a root filesystem; no link leads out.
///
/// # Errors
/// The kernel's answer.
pub fn make_directory(rootfs: &Path, directory: &Path) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(rootfs, flags, Mode::empty()).map(Root)?;
    let path = text(directory.as_os_str().as_bytes())?;
    root.place(&path, Kind::Directory, Links::Followed)
        .map(drop)
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
pub(crate) fn is_directory(place: BorrowedFd<'_>) -> Result<bool, Errno> {
    let stat = rustix::fs::fstat(place)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn root(dir: &Path) -> Root<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Root(rustix::fs::open(dir, flags, Mode::empty()).unwrap())
    }

    #[test]
    fn missing_places_are_made_with_all_above() {
        let dir = tempfile::tempdir().unwrap();
        let root = root(dir.path());
        root.place(c"/a//b/./c", Kind::Directory, Links::Followed)
            .unwrap();
        root.place(c"/a/f/file", Kind::File, Links::Followed)
            .unwrap();
        assert!(dir.path().join("a/b/c").is_dir());
        assert!(dir.path().join("a/f/file").is_file());
        let found = root
            .place(c"/a/f/file", Kind::Directory, Links::Followed)
            .unwrap();
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
        root.place(c"/absolute/x", Kind::Directory, Links::Followed)
            .unwrap();
        root.place(c"/up/y", Kind::File, Links::Followed).unwrap();
        root.place(c"/../../z", Kind::File, Links::Followed)
            .unwrap();
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
        let kept = inside.join(outside.strip_prefix("/").unwrap());
        assert!(kept.join("x").is_dir());
        assert!(inside.join("outside/y").is_file() && inside.join("z").is_file());
        assert_eq!(
            root.place(c"/self/x", Kind::File, Links::Followed)
                .unwrap_err(),
            Errno::LOOP
        );
    }

    #[test]
    fn magic_links_are_not_followed() {
        let proc = root(Path::new("/proc"));
        let number = std::os::fd::AsRawFd::as_raw_fd(&proc.0);
        let path = CString::new(format!("/self/fd/{number}")).unwrap();
        assert_eq!(proc.find(&path, Links::Followed).unwrap_err(), Errno::LOOP);
    }

    #[test]
    fn a_way_without_links_ends_at_any() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("real")).unwrap();
        symlink("/real", dir.path().join("proc")).unwrap();
        symlink("/nothing", dir.path().join("sys")).unwrap();
        let root = root(dir.path());
        for path in [c"/proc", c"/proc/x", c"/sys", c"/sys/fs/cgroup"] {
            let placed = root.place(path, Kind::Directory, Links::Refused);
            assert_eq!(placed.unwrap_err(), Errno::LOOP, "{path:?}");
        }
        root.place(c"/dev/pts", Kind::Directory, Links::Refused)
            .unwrap();
        assert!(dir.path().join("dev/pts").is_dir());
        assert!(!dir.path().join("nothing").exists());
    }

    #[test]
    fn paths_are_cleaned_by_their_text() {
        for (path, expected) in [
            ("/a/../b", "/b"),
            ("/../../x/", "/x"),
            ("//proc/./sys", "/proc/sys"),
            ("/a/..", "/"),
            ("", "/"),
        ] {
            assert_eq!(clean(path.as_bytes()), expected.as_bytes(), "{path}");
        }
    }

    #[test]
    fn only_whole_parts_are_below() {
        assert_eq!(below(c"/proc/sys", c"/proc"), Some(c"/sys"));
        assert_eq!(below(c"/proc", c"/proc"), Some(c""));
        assert_eq!(below(c"/process", c"/proc"), None);
        assert_eq!(below(c"/x", c"/"), Some(c"/x"));
    }
}

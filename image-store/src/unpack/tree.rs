//! The directory a layer is unpacked into: finds and makes parents in it.
//!
//! Every look-up starts at a directory descriptor and is confined to it by the
//! kernel (openat2). Symbolic links made by earlier entries are followed as a
//! container would see them: an absolute one from the layer's root. One that
//! climbs above the root has no honest use on the way to a file and is refused.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, XattrFlags};
use rustix::io::Errno;

use super::Problem;

const MAX_LINKS: usize = 40;
const CACHED: usize = 64;
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NOATIME);

/// A directory and the descriptors of parts of it that are in use.
pub(super) struct Tree {
    root: Rc<OwnedFd>,
    cache: HashMap<Vec<u8>, Rc<OwnedFd>>,
    made: u64,
}

/// What stands at a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// Nothing.
    Nothing,
    /// A directory.
    Dir,
    /// A device 0:0: overlayfs reads it as `hidden below`.
    Whiteout,
    /// Anything else.
    Other,
}

impl Tree {
    /// Works in `root`, an open directory.
    pub(super) fn new(root: OwnedFd) -> Self {
        Self {
            root: Rc::new(root),
            cache: HashMap::new(),
            made: 0,
        }
    }

    /// The directory itself.
    pub(super) fn root(&self) -> Rc<OwnedFd> {
        Rc::clone(&self.root)
    }

    /// Directories made on the way to others so far.
    pub(super) fn made(&self) -> u64 {
        self.made
    }

    /// Opens the directory `path` (checked, relative); missing parts are made.
    pub(super) fn directory(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>, Problem> {
        if path.is_empty() {
            return Ok(self.root());
        }
        if let Some(fd) = self.cache.get(path) {
            return Ok(Rc::clone(fd));
        }
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let fd = match self.open_at_root(path, beneath) {
            Ok(fd) => Rc::new(fd),
            // Missing, a link out of the root, or no directory: look closer.
            Err(Errno::NOENT | Errno::XDEV | Errno::NOTDIR | Errno::LOOP | Errno::AGAIN) => {
                self.walk(path)?
            }
            Err(e) => return Err(Problem::io("open the parent directory", e)),
        };
        if self.cache.len() >= CACHED {
            self.cache.clear();
        }
        self.cache.insert(path.to_vec(), Rc::clone(&fd));
        Ok(fd)
    }

    /// Opens a directory that exists, as a container would find it.
    pub(super) fn existing_directory(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        self.open_at_root(path, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
    }

    fn open_at_root(&self, path: &[u8], resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let flags = DIRECTORY.difference(OFlags::NOFOLLOW);
        rustix::fs::openat2(&*self.root, path, flags, Mode::empty(), resolve)
    }

    /// Goes part by part, follows links by hand and makes what is missing.
    fn walk(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>, Problem> {
        let mut todo: VecDeque<Vec<u8>> = parts(path).collect();
        let mut stack = vec![self.root()];
        let mut links = 0;
        while let Some(part) = todo.pop_front() {
            if part == b".." {
                if stack.len() == 1 {
                    return Err(Problem::hostile("a symbolic link that leaves the layer"));
                }
                stack.pop();
                continue;
            }
            let here = stack.last().map_or_else(|| self.root(), Rc::clone);
            match rustix::fs::openat(&*here, &part[..], DIRECTORY, Mode::empty()) {
                Ok(fd) => stack.push(Rc::new(fd)),
                Err(Errno::NOENT) => stack.push(self.make(&here, &part, false)?),
                Err(Errno::NOTDIR | Errno::LOOP) => match look(&here, &part)? {
                    Found::Whiteout => {
                        unlink(&here, &part)?;
                        stack.push(self.make(&here, &part, true)?);
                    }
                    _ => {
                        links += 1;
                        if links > MAX_LINKS {
                            return Err(Problem::hostile("more than 40 symbolic links"));
                        }
                        follow(&here, &part, &mut todo, &mut stack)?;
                    }
                },
                Err(e) => return Err(Problem::io("open the parent directory", e)),
            }
        }
        Ok(stack.pop().unwrap_or_else(|| self.root()))
    }

    /// Makes a directory that the archive does not list (or not yet).
    fn make(&mut self, at: &OwnedFd, name: &[u8], opaque: bool) -> Result<Rc<OwnedFd>, Problem> {
        self.made += 1;
        make_directory(at, name, opaque).map(Rc::new)
    }

    /// Removes what stands at a name, a directory with all that is in it.
    pub(super) fn remove(
        &mut self,
        at: &OwnedFd,
        name: &[u8],
        found: Found,
    ) -> Result<(), Problem> {
        if found != Found::Dir {
            return unlink(at, name);
        }
        self.cache.clear();
        crate::remove::remove_tree(at, name).map_err(|e| Problem::io("remove a directory", e))
    }
}

/// Makes and opens a directory with the mode that missing parents get.
pub(super) fn make_directory(at: &OwnedFd, name: &[u8], opaque: bool) -> Result<OwnedFd, Problem> {
    rustix::fs::mkdirat(at, name, Mode::from_raw_mode(0o755))
        .map_err(|e| Problem::io("make a directory", e))?;
    let fd = rustix::fs::openat(at, name, DIRECTORY, Mode::empty())
        .map_err(|e| Problem::io("open a directory", e))?;
    // The umask of the process must not decide what containers see.
    rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o755))
        .map_err(|e| Problem::io("set the mode of a directory", e))?;
    if opaque {
        set_opaque(&fd)?;
    }
    Ok(fd)
}

/// Opens a directory by its name in an open one.
pub(super) fn open_directory(at: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Problem> {
    rustix::fs::openat(at, name, DIRECTORY, Mode::empty())
        .map_err(|e| Problem::io("open a directory", e))
}

/// Marks a directory as hiding all that is below it.
pub(super) fn set_opaque(dir: &OwnedFd) -> Result<(), Problem> {
    rustix::fs::fsetxattr(dir, "trusted.overlay.opaque", b"y", XattrFlags::empty())
        .map_err(|e| Problem::io("mark a directory opaque", e))
}

/// Looks at a name without following it.
pub(super) fn look(at: &OwnedFd, name: &[u8]) -> Result<Found, Problem> {
    match rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(Found::Nothing),
        Err(e) => Err(Problem::io("look at what is there", e)),
        Ok(stat) => Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Found::Dir,
            FileType::CharacterDevice if stat.st_rdev == 0 => Found::Whiteout,
            _ => Found::Other,
        }),
    }
}

fn unlink(at: &OwnedFd, name: &[u8]) -> Result<(), Problem> {
    rustix::fs::unlinkat(at, name, AtFlags::empty())
        .map_err(|e| Problem::io("remove what an earlier entry made", e))
}

fn parts(path: &[u8]) -> impl DoubleEndedIterator<Item = Vec<u8>> {
    path.split(|&b| b == b'/')
        .filter(|p| !p.is_empty() && *p != b".")
        .map(<[u8]>::to_vec)
}

/// Puts a link's target in front of what is still to walk.
fn follow(
    at: &OwnedFd,
    name: &[u8],
    todo: &mut VecDeque<Vec<u8>>,
    stack: &mut Vec<Rc<OwnedFd>>,
) -> Result<(), Problem> {
    let target = match rustix::fs::readlinkat(at, name, Vec::new()) {
        Ok(target) => target.into_bytes(),
        Err(Errno::INVAL) => return Err(Problem::hostile("a file where a directory is needed")),
        Err(e) => return Err(Problem::io("read a symbolic link", e)),
    };
    if target.first() == Some(&b'/') {
        stack.truncate(1);
    }
    for part in parts(&target).rev() {
        todo.push_front(part);
    }
    Ok(())
}

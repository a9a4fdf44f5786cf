//! The directory a layer is unpacked into: finds and makes parents in it.
//!
//! Every look-up starts at a directory descriptor and is confined to it by the
//! kernel (openat2). Symbolic links made by earlier entries are followed as a
//! container would see them: an absolute one from the layer's root. One that
//! climbs above the root has no honest use on the way to a file and is refused.
//!
//! Directories that files are made in are kept open for a while, with the time
//! that each has to have in the end: making an entry changes it, so it is set
//! again before the directory is let go. Nothing is remembered of the others, so
//! that an archive costs no memory for its length.
//!
//! A directory that the archive does not list but only needs is marked as
//! implied, and noted: what it is like in an image is for the layers below to
//! say (see `patch`).

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, XattrFlags};
use rustix::io::Errno;

use super::{Problem, node};

const MAX_LINKS: usize = 40;
const KEPT: usize = 64;
/// Directories on one way, those that links lead through too: each takes a descriptor
/// until the way's end is reached.
const MAX_STEPS: usize = 1024;
/// Bytes of the names of implied directories.
const MAX_IMPLIED: usize = 16 << 20;
/// Set on directories that no entry of the archive lists. Overlayfs shows no
/// container the attributes that begin like its own, and copies none of them up.
pub(crate) const IMPLIED: &str = "trusted.overlay.slipway.implied";
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NOATIME);

/// An open directory.
pub(super) struct Dir {
    fd: OwnedFd,
    /// What its time shall be when nothing is made in it any more.
    mtime: Cell<(i64, u32)>,
}

impl Deref for Dir {
    type Target = OwnedFd;

    fn deref(&self) -> &OwnedFd {
        &self.fd
    }
}

/// Tells one directory from another, whatever way led to it.
type Identity = (u64, u64);

/// A directory and the descriptors of parts of it that are in use.
pub(super) struct Tree {
    root: Rc<Dir>,
    root_identity: Identity,
    /// Those in use by the paths that led to them.
    paths: HashMap<Vec<u8>, Rc<Dir>>,
    open: HashMap<Identity, Rc<Dir>>,
    made: u64,
    most: u64,
    /// Paths of implied directories, each with a zero byte at its end.
    implied: Vec<u8>,
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
    /// Works in `root`, an open directory, and makes `most` directories that are
    /// not listed.
    pub(super) fn new(root: OwnedFd, most: u64) -> Result<Self, Problem> {
        let (dir, root_identity) = look_at(root)?;
        Ok(Self {
            root: Rc::new(dir),
            root_identity,
            paths: HashMap::new(),
            open: HashMap::new(),
            made: 0,
            most,
            implied: Vec::new(),
        })
    }

    /// The directory itself.
    pub(super) fn root(&self) -> Rc<Dir> {
        Rc::clone(&self.root)
    }

    /// Directories made on the way to others so far.
    pub(super) fn made(&self) -> u64 {
        self.made
    }

    /// Gives all directories in use their times; returns the implied ones.
    pub(super) fn finish(&mut self) -> Result<Vec<u8>, Problem> {
        self.settle()?;
        node::set_times(&self.root, self.root.mtime.get())?;
        Ok(std::mem::take(&mut self.implied))
    }

    /// Lets directories go, each with its time.
    fn settle(&mut self) -> Result<(), Problem> {
        self.paths.clear();
        for (_, dir) in self.open.drain() {
            node::set_times(&dir, dir.mtime.get())?;
        }
        Ok(())
    }

    /// The one object of a directory that was opened.
    fn adopt(&mut self, fd: OwnedFd) -> Result<Rc<Dir>, Problem> {
        let (dir, identity) = look_at(fd)?;
        if identity == self.root_identity {
            return Ok(self.root());
        }
        Ok(Rc::clone(
            self.open.entry(identity).or_insert_with(|| Rc::new(dir)),
        ))
    }

    /// Says what time the root shall have.
    pub(super) fn date_root(&self, mtime: (i64, u32)) {
        self.root.mtime.set(mtime);
    }

    /// Gives a directory that was there before its time, now or when it is let
    /// go. It is listed by an entry, so it is implied no longer.
    pub(super) fn list(&self, fd: &OwnedFd, mtime: (i64, u32)) -> Result<(), Problem> {
        self.no_longer_implied(fd)?;
        match self.open.get(&identity_of(fd)?.0) {
            Some(dir) => dir.mtime.set(mtime),
            None => node::set_times(fd, mtime)?,
        }
        Ok(())
    }

    /// Takes the mark off a directory.
    pub(super) fn no_longer_implied(&self, fd: &OwnedFd) -> Result<(), Problem> {
        if self.implied.is_empty() {
            return Ok(());
        }
        match rustix::fs::fremovexattr(fd, IMPLIED) {
            Ok(()) | Err(Errno::NODATA) => Ok(()),
            Err(e) => Err(Problem::io("take a mark off a directory", e)),
        }
    }

    /// Opens the directory `path` (checked, relative); missing parts are made.
    pub(super) fn directory(&mut self, path: &[u8]) -> Result<Rc<Dir>, Problem> {
        if path.is_empty() {
            return Ok(self.root());
        }
        if let Some(dir) = self.paths.get(path) {
            return Ok(Rc::clone(dir));
        }
        if self.open.len() >= KEPT || self.paths.len() >= KEPT {
            self.settle()?;
        }
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let dir = match self.open_at_root(path, beneath) {
            Ok(fd) => self.adopt(fd)?,
            // Missing, a link out of the root, or no directory: look closer.
            Err(Errno::NOENT | Errno::XDEV | Errno::NOTDIR | Errno::LOOP | Errno::AGAIN) => {
                self.walk(path)?
            }
            Err(e) => return Err(Problem::io("open the parent directory", e)),
        };
        self.paths.insert(path.to_vec(), Rc::clone(&dir));
        Ok(dir)
    }

    /// Opens a directory that exists, as a container would find it.
    pub(super) fn existing_directory(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        self.open_at_root(path, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
    }

    fn open_at_root(&self, path: &[u8], resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let flags = DIRECTORY.difference(OFlags::NOFOLLOW);
        rustix::fs::openat2(&self.root.fd, path, flags, Mode::empty(), resolve)
    }

    /// Goes part by part, follows links by hand and makes what is missing.
    fn walk(&mut self, path: &[u8]) -> Result<Rc<Dir>, Problem> {
        let mut todo: VecDeque<Vec<u8>> = parts(path).collect();
        let mut way = Way {
            dirs: vec![self.root()],
            names: Vec::new(),
        };
        let (mut links, mut steps) = (0, 0);
        while let Some(part) = todo.pop_front() {
            steps += 1;
            if steps > MAX_STEPS {
                let reason = format!("a way of more than {MAX_STEPS} directories");
                return Err(Problem::Hostile(reason));
            }
            if part == b".." {
                if way.names.pop().is_none() {
                    return Err(Problem::hostile("a symbolic link that leaves the layer"));
                }
                way.dirs.pop();
                continue;
            }
            let here = way.dirs.last().map_or_else(|| self.root(), Rc::clone);
            match rustix::fs::openat(&here.fd, &part[..], DIRECTORY, Mode::empty()) {
                Ok(fd) => {
                    let dir = self.adopt(fd)?;
                    way.enter(part, dir);
                }
                Err(Errno::NOENT) => {
                    let dir = self.make(&here, &part, false)?;
                    way.enter(part, dir);
                    self.imply(&way)?;
                }
                Err(Errno::NOTDIR | Errno::LOOP) => match look(&here, &part)? {
                    // What is below was hidden by this layer, so nothing of it is
                    // left to take after.
                    Found::Whiteout => {
                        unlink(&here, &part)?;
                        let dir = self.make(&here, &part, true)?;
                        way.enter(part, dir);
                    }
                    _ => {
                        links += 1;
                        if links > MAX_LINKS {
                            return Err(Problem::hostile("more than 40 symbolic links"));
                        }
                        follow(&here, &part, &mut todo, &mut way)?;
                    }
                },
                Err(e) => return Err(Problem::io("open the parent directory", e)),
            }
        }
        let end = way.dirs.pop().unwrap_or_else(|| self.root());
        drop(way);
        if self.open.len() > KEPT {
            // Whatever is read from the network next may take its time.
            self.settle()?;
            let (identity, _) = identity_of(&end.fd)?;
            if identity != self.root_identity {
                self.open.insert(identity, Rc::clone(&end));
            }
        }
        Ok(end)
    }

    /// Makes a directory that the archive does not list (or not yet).
    fn make(&mut self, at: &OwnedFd, name: &[u8], opaque: bool) -> Result<Rc<Dir>, Problem> {
        self.made += 1;
        if self.made > self.most {
            let reason = format!("more than {} directories that are not listed", self.most);
            return Err(Problem::Hostile(reason));
        }
        let fd = make_directory(at, name, opaque)?;
        self.adopt(fd)
    }

    /// Marks and notes the directory at the end of a way.
    fn imply(&mut self, way: &Way) -> Result<(), Problem> {
        let Some(dir) = way.dirs.last() else {
            return Ok(());
        };
        rustix::fs::fsetxattr(&dir.fd, IMPLIED, b"y", XattrFlags::empty())
            .map_err(|e| Problem::io("mark a directory", e))?;
        self.implied.extend(way.names.join(&b'/'));
        self.implied.push(0);
        if self.implied.len() > MAX_IMPLIED {
            let reason = "the names of directories that are not listed are above 16 MiB";
            return Err(Problem::hostile(reason));
        }
        Ok(())
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
        // Descriptors below it are of no use any more. They are let go later, so
        // that what is made meanwhile keeps its time.
        self.paths.clear();
        crate::remove::remove_tree(at, name).map_err(|e| Problem::io("remove a directory", e))
    }
}

/// Directories from the root on, and the names of all but the root.
struct Way {
    dirs: Vec<Rc<Dir>>,
    names: Vec<Vec<u8>>,
}

impl Way {
    fn enter(&mut self, name: Vec<u8>, dir: Rc<Dir>) {
        self.names.push(name);
        self.dirs.push(dir);
    }
}

fn look_at(fd: OwnedFd) -> Result<(Dir, Identity), Problem> {
    let (identity, mtime) = identity_of(&fd)?;
    let mtime = Cell::new(mtime);
    Ok((Dir { fd, mtime }, identity))
}

fn identity_of(fd: &OwnedFd) -> Result<(Identity, (i64, u32)), Problem> {
    let stat = rustix::fs::fstat(fd).map_err(|e| Problem::io("look at a directory", e))?;
    let nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    Ok(((stat.st_dev, stat.st_ino), (stat.st_mtime, nanos)))
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
    way: &mut Way,
) -> Result<(), Problem> {
    let target = match rustix::fs::readlinkat(at, name, Vec::new()) {
        Ok(target) => target.into_bytes(),
        Err(Errno::INVAL) => return Err(Problem::hostile("a file where a directory is needed")),
        Err(e) => return Err(Problem::io("read a symbolic link", e)),
    };
    if target.first() == Some(&b'/') {
        way.dirs.truncate(1);
        way.names.clear();
    }
    for part in parts(&target).rev() {
        todo.push_front(part);
    }
    Ok(())
}

//! Directories for the volumes that an image asks for (`VOLUME`).
//!
//! A container gets a fresh writable directory at each of these places, filled
//! with what the image has there: owners, modes, times, attributes, links,
//! devices, holes and all. It lies beside the snapshot's other directories, so
//! it counts with them and goes with them.
//!
//! Owns the copy. The image's tree is hostile: the place is looked up below the
//! container's root by the kernel, links in the tree are copied and never
//! followed, and what is copied is bounded for all volumes of a container
//! together: links and volumes in volumes would have one file copied hundreds of
//! times. Whoever waits for it may give it up. A copy gets its name when it is
//! complete; a crash leaves one that begins anew, or goes with the snapshot.

use std::collections::HashMap;
use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, SeekFrom, Stat, Timespec, Timestamps,
    Uid,
};
use rustix::io::Errno;

use crate::patch::copy_attributes;
use crate::remove::remove_tree;
use crate::snapshot::{Snapshot, SnapshotError};

/// Deeper trees are made to hurt those who walk them.
const MAX_DEPTH: usize = 256;
/// Files, directories and the rest in all volumes of a container.
const MAX_ENTRIES: u64 = 1_000_000;
/// Bytes of the names of files with several ones that are remembered; further files become
/// several.
const MAX_LINKS: usize = 1 << 20;
const BUFFER: usize = 128 * 1024;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NOATIME);

/// Why a tree was not copied.
#[derive(Debug)]
enum Failure {
    Refused(String),
    Io(&'static str, Errno),
}

fn failed(step: &'static str) -> impl Fn(Errno) -> Failure {
    move |errno| Failure::Io(step, errno)
}

/// What the volumes of one container take together.
#[derive(Debug)]
pub struct Filling {
    entries: u64,
    /// Bytes that may still be written.
    left: u64,
    most: u64,
    given_up: Arc<AtomicBool>,
    /// Places of the image that were copied, by device and inode, and their copies.
    done: HashMap<(u64, u64), PathBuf>,
}

impl Filling {
    /// No volume yet. So many bytes are written at most, and nothing any more once
    /// `given_up` is true: an error says so then.
    #[must_use]
    pub fn new(most: u64, given_up: Arc<AtomicBool>) -> Self {
        Self {
            entries: 0,
            left: most,
            most,
            given_up,
            done: HashMap::new(),
        }
    }

    fn goes_on(&self) -> Result<(), Failure> {
        match self.given_up.load(Ordering::Relaxed) {
            true => Err(Failure::Io("fill a volume", Errno::CANCELED)),
            false => Ok(()),
        }
    }

    fn entry(&mut self) -> Result<(), Failure> {
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            let reason = format!("the image's volumes have more than {MAX_ENTRIES} files");
            return Err(Failure::Refused(reason));
        }
        self.goes_on()
    }

    fn bytes(&mut self, more: usize) -> Result<(), Failure> {
        let Some(left) = self.left.checked_sub(more as u64) else {
            let reason = format!("the image's volumes have more than {} bytes", self.most);
            return Err(Failure::Refused(reason));
        };
        self.left = left;
        self.goes_on()
    }
}

impl Snapshot {
    /// The directory for the volume number `index` of the image, to be mounted at
    /// `path` in the container. Made now, with a copy of what the image has at
    /// that path, unless it was made before. `root` is the container's root as
    /// [`Snapshot::mount`] gave it, before anything is mounted in it.
    ///
    /// A path that the image does not have gives an empty directory. Links in it
    /// lead where they would lead the container; two paths that lead to one directory
    /// are one in the container, too, and share theirs.
    pub fn volume(
        &self,
        filling: &mut Filling,
        root: impl AsFd,
        index: usize,
        path: &Path,
    ) -> Result<PathBuf, SnapshotError> {
        let volumes = self.volumes();
        let dir = volumes.join(index.to_string());
        if dir.exists() {
            return Ok(dir);
        }
        match DirBuilder::new().mode(0o700).create(&volumes) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(SnapshotError::io("make", &volumes, e));
            }
            _ => {}
        }
        let named = |failure| match failure {
            Failure::Refused(reason) => SnapshotError::Volume {
                path: path.to_owned(),
                reason,
            },
            Failure::Io(step, errno) => SnapshotError::io(step, path, errno.into()),
        };
        let source = source(root.as_fd(), path).map_err(named)?;
        let inode = source.as_ref().map(|dir| inode(dir.as_fd()));
        let inode = inode.transpose().map_err(named)?;
        if let Some(done) = inode.and_then(|inode| filling.done.get(&inode)) {
            return Ok(done.clone());
        }
        let part = format!("{index}.part");
        fill(filling, &volumes, &part, source, self.lower_dirs()).map_err(named)?;
        std::fs::rename(volumes.join(part), &dir)
            .map_err(|e| SnapshotError::io("install the volume", &dir, e))?;
        filling.done.extend(inode.map(|inode| (inode, dir.clone())));
        Ok(dir)
    }
}

fn fill(
    filling: &mut Filling,
    volumes: &Path,
    part: &str,
    source: Option<OwnedFd>,
    lowers: &[PathBuf],
) -> Result<(), Failure> {
    let volumes = rustix::fs::open(volumes, DIRECTORY, Mode::empty())
        .map_err(failed("open the volumes of a snapshot"))?;
    remove_tree(&volumes, part.as_bytes()).map_err(failed("remove half a volume"))?;
    rustix::fs::mkdirat(&volumes, part, Mode::from_raw_mode(0o700))
        .map_err(failed("make a volume"))?;
    let to = rustix::fs::openat(&volumes, part, DIRECTORY, Mode::empty())
        .map_err(failed("open a volume"))?;
    let Some(from) = source else {
        return rustix::fs::fchmod(&to, Mode::from_raw_mode(0o755))
            .map_err(failed("set the mode of a volume"));
    };
    let mut copy = Copy {
        top: &to,
        filling,
        links: HashMap::new(),
        remembered: 0,
        way: Vec::new(),
        sharing: Sharing::new(&from, lowers),
        buffer: vec![0; BUFFER],
    };
    copy.dir(&from, &to, 0)
}

/// What the image has at a path; `None` for nothing.
fn source(root: impl AsFd, path: &Path) -> Result<Option<OwnedFd>, Failure> {
    let flags = DIRECTORY.difference(OFlags::NOFOLLOW);
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let dir = match rustix::fs::openat2(root.as_fd(), path, flags, Mode::empty(), resolve) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => {
            let reason = "the image has something there that is no directory";
            return Err(Failure::Refused(reason.to_owned()));
        }
        Err(e) => return Err(failed("open what the image has at a volume's path")(e)),
    };
    if inode(dir.as_fd())? == inode(root.as_fd())? {
        let reason = "it is the root directory itself";
        return Err(Failure::Refused(reason.to_owned()));
    }
    Ok(Some(dir))
}

fn inode(dir: BorrowedFd<'_>) -> Result<(u64, u64), Failure> {
    let stat = rustix::fs::fstat(dir).map_err(failed("look at a volume's path"))?;
    Ok((stat.st_dev, stat.st_ino))
}

/// A copy under way.
struct Copy<'a> {
    top: &'a OwnedFd,
    filling: &'a mut Filling,
    /// Files with several names, and where their first copy is.
    links: HashMap<(u64, u64), Vec<u8>>,
    /// What they take of [`MAX_LINKS`].
    remembered: usize,
    /// The way from the top to the directory in hand, with a slash at its end.
    way: Vec<u8>,
    sharing: Sharing,
    buffer: Vec<u8>,
}

impl Copy<'_> {
    fn dir(&mut self, from: &OwnedFd, to: &OwnedFd, depth: usize) -> Result<(), Failure> {
        if depth > MAX_DEPTH {
            let reason = format!("more than {MAX_DEPTH} directories deep");
            return Err(Failure::Refused(reason));
        }
        for item in Dir::read_from(from).map_err(failed("list a directory of a volume"))? {
            let item = item.map_err(failed("list a directory of a volume"))?;
            let name = item.file_name().to_bytes();
            if name != b"." && name != b".." {
                self.entry(from, to, name, depth)?;
            }
        }
        let stat = rustix::fs::fstat(from).map_err(failed("look at a directory of a volume"))?;
        copy_attributes(from, to).map_err(failed("copy a directory's attributes"))?;
        rustix::fs::futimens(to, &times(&stat)).map_err(failed("set a directory's time"))
    }

    fn entry(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        name: &[u8],
        depth: usize,
    ) -> Result<(), Failure> {
        self.filling.entry()?;
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed("look at a file of a volume"))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                rustix::fs::mkdirat(to, name, Mode::from_raw_mode(0o700))
                    .map_err(failed("make a directory of a volume"))?;
                let open = |at| rustix::fs::openat(at, name, DIRECTORY, Mode::empty());
                let from = open(from).map_err(failed("open a directory of a volume"))?;
                let to = open(to).map_err(failed("open a directory of a volume"))?;
                let length = self.way.len();
                self.way.extend_from_slice(name);
                self.way.push(b'/');
                let copied = self.dir(&from, &to, depth + 1);
                self.way.truncate(length);
                copied
            }
            FileType::RegularFile => self.file(from, to, name, &stat),
            _ => special(from, to, name, &stat),
        }
    }

    fn file(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        name: &[u8],
        stat: &Stat,
    ) -> Result<(), Failure> {
        let path = [&self.way[..], name].concat();
        if stat.st_nlink > 1 {
            let inode = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&inode) {
                return rustix::fs::linkat(self.top, &first[..], to, name, AtFlags::empty())
                    .map_err(failed("link a file of a volume"));
            }
            // What an entry takes beside its name is about as much as a short name.
            let takes = path.len() + 64;
            if self.remembered + takes <= MAX_LINKS {
                self.remembered += takes;
                self.links.insert(inode, path.clone());
            }
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let from = rustix::fs::openat(from, name, flags | OFlags::NOATIME, Mode::empty())
            .map_err(failed("open a file of a volume"))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let to = rustix::fs::openat(to, name, flags, Mode::from_raw_mode(0o600))
            .map_err(failed("make a file of a volume"))?;
        if !self.sharing.share(&path, stat, &to)? {
            self.data(&from, &to, u64::try_from(stat.st_size).unwrap_or(0))?;
        }
        copy_attributes(&from, &to).map_err(failed("copy a file's attributes"))?;
        rustix::fs::futimens(&to, &times(stat)).map_err(failed("set a file's time"))
    }

    /// Copies what is no hole.
    fn data(&mut self, from: &OwnedFd, to: &OwnedFd, size: u64) -> Result<(), Failure> {
        let fail = failed("copy a file of a volume");
        let mut at = 0;
        while at < size {
            let start = match rustix::fs::seek(from, SeekFrom::Data(at)) {
                Ok(start) => start,
                Err(Errno::NXIO) => break,
                // A file system that knows of no holes.
                Err(Errno::INVAL | Errno::NOTSUP) => at,
                Err(e) => return Err(fail(e)),
            };
            let end = match rustix::fs::seek(from, SeekFrom::Hole(start)) {
                Ok(end) => end.min(size),
                Err(Errno::INVAL | Errno::NOTSUP) => size,
                Err(e) => return Err(fail(e)),
            };
            self.stretch(from, to, (start, end))?;
            at = end.max(start + 1);
        }
        rustix::fs::ftruncate(to, size).map_err(failed("copy a file of a volume"))
    }

    fn stretch(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        (mut at, end): (u64, u64),
    ) -> Result<(), Failure> {
        let fail = failed("copy a file of a volume");
        while at < end {
            let most = usize::try_from(end - at).unwrap_or(usize::MAX);
            let most = most.min(self.buffer.len());
            let n = match rustix::io::pread(from, &mut self.buffer[..most], at) {
                Ok(0) => return Ok(()), // shorter than it was
                Ok(n) => n,
                Err(Errno::INTR) => continue,
                Err(e) => return Err(fail(e)),
            };
            self.filling.bytes(n)?;
            let mut written = 0;
            while written < n {
                match rustix::io::pwrite(to, &self.buffer[written..n], at + written as u64) {
                    Ok(n) => written += n,
                    Err(Errno::INTR) => {}
                    Err(e) => return Err(fail(e)),
                }
            }
            at += n as u64;
        }
        Ok(())
    }
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds, nanos: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanos).unwrap_or(0),
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

/// Links, devices, pipes and sockets.
fn special(from: &OwnedFd, to: &OwnedFd, name: &[u8], stat: &Stat) -> Result<(), Failure> {
    let fail = failed("make a link or device of a volume");
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind == FileType::Symlink {
        let target = rustix::fs::readlinkat(from, name, Vec::new()).map_err(&fail)?;
        rustix::fs::symlinkat(target.as_c_str(), to, name).map_err(&fail)?;
    } else {
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(to, name, kind, mode, stat.st_rdev).map_err(&fail)?;
    }
    let owner = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(to, name, Some(owner.0), Some(owner.1), nofollow).map_err(&fail)?;
    if kind != FileType::Symlink {
        // Made just above, and nobody else writes here.
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        rustix::fs::chmodat(to, name, mode, AtFlags::empty()).map_err(&fail)?;
    }
    rustix::fs::utimensat(to, name, &times(stat), nofollow).map_err(&fail)
}

/// Copies that share their blocks with the original, where the file system can
/// do that. Overlayfs cannot pass it on to another mount, so the file is looked
/// up in the layers: it is the topmost of its path that has its inode number.
struct Sharing {
    /// Layers, the topmost first; none when sharing does not work here.
    lowers: Vec<OwnedFd>,
    /// Where the volume is in them.
    place: Vec<u8>,
}

impl Sharing {
    fn new(from: &OwnedFd, lowers: &[PathBuf]) -> Self {
        // Where links have led, the kernel knows.
        let place = std::fs::read_link(format!("/proc/self/fd/{}", from.as_raw_fd()));
        let place = place.unwrap_or_default();
        let place = place.as_os_str().as_bytes();
        let lowers = lowers
            .iter()
            .map_while(|dir| rustix::fs::open(dir, DIRECTORY, Mode::empty()).ok());
        Self {
            lowers: lowers.collect(),
            place: place.strip_prefix(b"/").unwrap_or(place).to_vec(),
        }
    }

    /// Makes `to` share the blocks of the file at `path` in the volume; false
    /// when its bytes have to be copied.
    fn share(&mut self, path: &[u8], stat: &Stat, to: &OwnedFd) -> Result<bool, Failure> {
        if stat.st_size == 0 {
            return Ok(true);
        }
        let Some(file) = self.original(path, stat) else {
            return Ok(false);
        };
        match rustix::fs::ioctl_ficlone(to, &file) {
            Ok(()) => Ok(true),
            Err(Errno::DQUOT | Errno::NOSPC) => {
                Err(Failure::Io("copy a file of a volume", Errno::NOSPC))
            }
            Err(_) => {
                // Not here, and so not for the next file either.
                self.lowers.clear();
                Ok(false)
            }
        }
    }

    fn original(&self, path: &[u8], stat: &Stat) -> Option<OwnedFd> {
        let path = [&self.place[..], b"/", path].concat();
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let open = |dir| rustix::fs::openat2(dir, &path[..], flags, Mode::empty(), resolve).ok();
        let file = self.lowers.iter().find_map(open)?;
        let same = rustix::fs::fstat(&file).ok()?;
        let is_same = same.st_ino == stat.st_ino
            && same.st_size == stat.st_size
            && same.st_mode == stat.st_mode
            && (same.st_mtime, same.st_mtime_nsec) == (stat.st_mtime, stat.st_mtime_nsec);
        is_same.then_some(file)
    }
}

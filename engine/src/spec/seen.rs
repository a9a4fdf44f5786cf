//! Files of the container as its process will see them: the image's, unless a
//! mount of the request covers them.
//!
//! Opens nothing but regular files, and those only after it has looked: no FIFO
//! and no device that an image or a volume puts in the place of a file is opened.
//! Links are followed within the root that they are found in, never out of it.
//! A volume may never answer: each is touched in a visit to its path of the host alone.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use runtime::spec::{Mount, What};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::host_paths::{Stuck, Visitor};

/// Why a file could not be read.
#[derive(Debug)]
pub(super) enum ReadError {
    /// Its volume, which is at this path of the host, does not answer.
    Stuck(PathBuf, Stuck),
    /// The system says why.
    Io(io::Error),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The container's root and what is mounted over it.
pub(super) struct Seen<'a> {
    rootfs: BorrowedFd<'a>,
    mounts: &'a [Mount],
    visitor: Visitor<'a>,
}

/// A place in a volume.
struct InVolume<'a> {
    /// On the host.
    host_path: &'a Path,
    volume: &'a OwnedFd,
    /// Below the volume.
    rest: &'a Path,
}

impl<'a> Seen<'a> {
    /// The files of a container with this root and these mounts.
    pub(super) fn new(rootfs: &'a OwnedFd, mounts: &'a [Mount], visitor: Visitor<'a>) -> Self {
        Self {
            rootfs: rootfs.as_fd(),
            mounts,
            visitor,
        }
    }

    /// At most `limit` bytes of the file at an absolute path; nothing where there
    /// is no regular file.
    pub(super) fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>, ReadError> {
        let path = Path::new(path);
        if let Some(place) = self.in_volume(path) {
            return self.read_volume(&place, limit);
        }
        let Some(in_image) = look(self.rootfs, path)? else {
            return Ok(Vec::new());
        };
        // A link of the image may lead to where something is mounted.
        let real = self.real_path(&in_image)?;
        let elsewhere = real.as_deref().filter(|real| *real != path);
        match elsewhere.and_then(|real| self.in_volume(real)) {
            Some(place) => self.read_volume(&place, limit),
            None => Ok(read(&in_image, limit)?),
        }
    }

    fn read_volume(&self, place: &InVolume<'_>, limit: u64) -> Result<Vec<u8>, ReadError> {
        let host_path = place.host_path;
        let bytes = self.visitor.visit(host_path, || match place.rest {
            rest if rest.as_os_str().is_empty() => read(place.volume, limit),
            rest => match look(place.volume.as_fd(), rest)? {
                Some(found) => read(&found, limit),
                None => Ok(Vec::new()),
            },
        });
        let stuck = |stuck| ReadError::Stuck(host_path.to_owned(), stuck);
        Ok(bytes.map_err(stuck)??)
    }

    /// Where in the root a descriptor leads.
    fn real_path(&self, found: &OwnedFd) -> io::Result<Option<PathBuf>> {
        let root = std::fs::read_link(by_descriptor(self.rootfs))?;
        let real = std::fs::read_link(by_descriptor(found.as_fd()))?;
        let below = real.strip_prefix(&root).ok();
        Ok(below.map(|below| Path::new("/").join(below)))
    }

    /// Where in the deepest volume that covers it a path is; `None`: no volume does.
    fn in_volume<'p>(&'p self, path: &'p Path) -> Option<InVolume<'p>> {
        let covering = self.mounts.iter().filter_map(|mount| {
            let What::Volume { host_path, tree } = &mount.what else {
                return None;
            };
            let target = &mount.destination;
            let place = InVolume {
                host_path,
                volume: tree,
                rest: path.strip_prefix(target).ok()?,
            };
            Some((target.components().count(), place))
        });
        let deepest = covering.max_by_key(|(depth, _)| *depth);
        deepest.map(|(_, place)| place)
    }
}

/// At most `limit` bytes of a regular file; nothing of anything else.
fn read(found: &OwnedFd, limit: u64) -> io::Result<Vec<u8>> {
    if !is_regular(found)? {
        return Ok(Vec::new());
    }
    let mut bytes = Vec::new();
    // Whoever in the pod holds a lease on the file would keep this one waiting.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let path = by_descriptor(found.as_fd());
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    std::fs::File::from(file)
        .take(limit)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Looks a path up below a root that no link leads out of.
fn look(root: BorrowedFd<'_>, path: &Path) -> io::Result<Option<OwnedFd>> {
    let found = rustix::fs::openat2(
        root,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    );
    match found {
        Ok(fd) => Ok(Some(fd)),
        // A loop of links is no file either.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn is_regular(fd: &OwnedFd) -> io::Result<bool> {
    let kind = rustix::fs::fstat(fd)?.st_mode;
    Ok(FileType::from_raw_mode(kind) == FileType::RegularFile)
}

fn by_descriptor(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::host_paths::{HostPaths, Whereabouts};

    fn open(path: &Path) -> OwnedFd {
        rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).expect("open")
    }

    fn volume(target: &str, source: &Path) -> Mount {
        let volume = (source.to_owned(), open(source));
        Mount::volume(target, volume, &[]).expect("no options")
    }

    struct Root(tempfile::TempDir);

    impl Root {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("folder");
            std::fs::create_dir(dir.path().join("etc")).expect("etc");
            std::fs::write(dir.path().join("etc/passwd"), "image").expect("passwd");
            Self(dir)
        }

        fn read(&self, mounts: &[(&str, &Path)]) -> String {
            let bytes = self.try_read(mounts, &HostPaths::default());
            String::from_utf8(bytes.expect("read")).expect("text")
        }

        fn try_read(
            &self,
            mounts: &[(&str, &Path)],
            paths: &HostPaths,
        ) -> Result<Vec<u8>, ReadError> {
            let root = open(self.0.path());
            let mounts = mounts.iter();
            let mounts: Vec<_> = mounts
                .map(|(target, source)| volume(target, source))
                .collect();
            let at = &Whereabouts::default();
            let visitor = Visitor { paths, at };
            Seen::new(&root, &mounts, visitor).read("/etc/passwd", 1000)
        }
    }

    #[test]
    fn a_file_on_a_volume_that_does_not_answer_is_refused_by_the_volumes_name() {
        let root = Root::new();
        let (dead, good) = (tempfile::tempdir(), tempfile::tempdir());
        let (dead, good) = (dead.expect("folder"), good.expect("folder"));
        let paths = HostPaths::impatient();
        let _never = paths.enter(dead.path()).expect("room");
        let refused = root.try_read(&[("/etc", dead.path())], &paths);
        let Err(ReadError::Stuck(path, _)) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(path, dead.path());
        let elsewhere = [("/data", dead.path()), ("/other", good.path())];
        let read = root.try_read(&elsewhere, &paths).expect("not touched");
        assert_eq!(read, b"image");
        // A link of the image leads there.
        let link = root.0.path().join("etc/passwd");
        std::fs::create_dir(root.0.path().join("data")).expect("data");
        std::fs::write(root.0.path().join("data/passwd"), "below").expect("file");
        std::fs::remove_file(&link).expect("removed");
        std::os::unix::fs::symlink("/data/passwd", &link).expect("link");
        let refused = root.try_read(&elsewhere, &paths);
        assert!(matches!(refused, Err(ReadError::Stuck(..))), "{refused:?}");
    }

    #[test]
    fn a_mount_over_the_file_or_its_folder_is_what_is_read() {
        let root = Root::new();
        assert_eq!(root.read(&[]), "image");
        let volume = tempfile::tempdir().expect("folder");
        let file = volume.path().join("passwd");
        std::fs::write(&file, "volume").expect("passwd");
        assert_eq!(root.read(&[("/etc/passwd", &file)]), "volume");
        assert_eq!(root.read(&[("/etc", volume.path())]), "volume");
        assert_eq!(root.read(&[("/other", volume.path())]), "image");
        let deeper = volume.path().join("deeper");
        std::fs::write(&deeper, "deeper").expect("file");
        let both = [("/etc", volume.path()), ("/etc/passwd", deeper.as_path())];
        assert_eq!(root.read(&both), "deeper");
    }

    #[test]
    fn a_link_of_the_image_into_a_volume_is_followed_there() {
        let root = Root::new();
        std::fs::create_dir(root.0.path().join("data")).expect("data");
        std::fs::write(root.0.path().join("data/passwd"), "below").expect("file");
        let link = root.0.path().join("etc/passwd");
        std::fs::remove_file(&link).expect("removed");
        std::os::unix::fs::symlink("/data/passwd", &link).expect("link");
        assert_eq!(root.read(&[]), "below");
        let volume = tempfile::tempdir().expect("folder");
        std::fs::write(volume.path().join("passwd"), "volume").expect("passwd");
        assert_eq!(root.read(&[("/data", volume.path())]), "volume");
    }

    #[test]
    fn no_fifo_device_or_link_out_of_the_root_is_opened() {
        let root = Root::new();
        let path = root.0.path().join("etc/passwd");
        let replaced = |make: &dyn Fn()| {
            std::fs::remove_file(&path).expect("removed");
            make();
            root.read(&[])
        };
        let fifo = || {
            let kind = FileType::Fifo;
            rustix::fs::mknodat(rustix::fs::CWD, &path, kind, Mode::RUSR, 0).expect("fifo");
        };
        assert_eq!(replaced(&fifo), "");
        for link in [
            "/etc/hostname-of-nobody",
            "../../../../../etc/passwd",
            "passwd",
        ] {
            let out = || std::os::unix::fs::symlink(link, &path).expect("link");
            assert_eq!(replaced(&out), "", "{link}");
        }
        let volume = tempfile::tempdir().expect("folder");
        let fifo = volume.path().join("fifo");
        let kind = FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, kind, Mode::RUSR, 0).expect("fifo");
        assert_eq!(root.read(&[("/etc/passwd", &fifo)]), "");
    }
}

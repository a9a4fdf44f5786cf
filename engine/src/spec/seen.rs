//! Files of the container as its process will see them: the image's, unless a
//! mount of the request covers them.
//!
//! Opens nothing but regular files, and those only after it has looked: no FIFO
//! and no device that an image or a volume puts in the place of a file is opened.
//! Links are followed within the root that they are found in, never out of it.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// The container's root and what is mounted over it.
pub(super) struct Seen<'a> {
    rootfs: BorrowedFd<'a>,
    mounts: &'a [Mount],
    /// Index into `mounts` and the detached mount for it.
    sources: &'a [(usize, OwnedFd)],
}

impl<'a> Seen<'a> {
    /// The files of a container with this root and these mounts.
    pub(super) fn new(
        rootfs: &'a OwnedFd,
        mounts: &'a [Mount],
        sources: &'a [(usize, OwnedFd)],
    ) -> Self {
        Self {
            rootfs: rootfs.as_fd(),
            mounts,
            sources,
        }
    }

    /// At most `limit` bytes of the file at an absolute path; nothing where there
    /// is no regular file.
    pub(super) fn read(&self, path: &str, limit: u64) -> io::Result<Vec<u8>> {
        let Some(found) = self.find(Path::new(path))? else {
            return Ok(Vec::new());
        };
        if !is_regular(&found)? {
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

    /// The thing at a path, not opened for reading.
    fn find(&self, path: &Path) -> io::Result<Option<OwnedFd>> {
        if let Some(found) = self.in_mount(path) {
            return found;
        }
        let in_image = look(self.rootfs, path)?;
        // A link of the image may lead to where something is mounted.
        let Some(found) = &in_image else {
            return Ok(None);
        };
        match self.real_path(found)? {
            Some(real) if real != path => self.in_mount(&real).unwrap_or(Ok(in_image)),
            _ => Ok(in_image),
        }
    }

    /// Where in the root a descriptor leads.
    fn real_path(&self, found: &OwnedFd) -> io::Result<Option<PathBuf>> {
        let root = std::fs::read_link(by_descriptor(self.rootfs))?;
        let real = std::fs::read_link(by_descriptor(found.as_fd()))?;
        let below = real.strip_prefix(&root).ok();
        Ok(below.map(|below| Path::new("/").join(below)))
    }

    /// The thing in the deepest mount that covers a path; `None`: no mount does.
    fn in_mount(&self, path: &Path) -> Option<io::Result<Option<OwnedFd>>> {
        let covering = self.sources.iter().filter_map(|(at, source)| {
            let target = self.mounts.get(*at)?.destination();
            let rest = path.strip_prefix(target).ok()?;
            Some((target.components().count(), source, rest))
        });
        let (_, source, rest) = covering.max_by_key(|(depth, _, _)| *depth)?;
        if rest.as_os_str().is_empty() {
            return Some(source.try_clone().map(Some));
        }
        Some(look(source.as_fd(), rest))
    }
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

    fn open(path: &Path) -> OwnedFd {
        rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).expect("open")
    }

    fn mount(target: &str) -> Mount {
        let mut mount = Mount::default();
        mount.set_destination(PathBuf::from(target));
        mount
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
            let root = open(self.0.path());
            let targets: Vec<Mount> = mounts.iter().map(|(target, _)| mount(target)).collect();
            let sources: Vec<(usize, OwnedFd)> = mounts
                .iter()
                .enumerate()
                .map(|(at, (_, source))| (at, open(source)))
                .collect();
            let seen = Seen::new(&root, &targets, &sources);
            let bytes = seen.read("/etc/passwd", 1000).expect("read");
            String::from_utf8(bytes).expect("text")
        }
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

//! Images that a container has as volumes.
//!
//! Owns a snapshot's directory `shown`, with a directory for each of those images, by its
//! id. It tells the next start that the image is in use, whatever was removed meanwhile,
//! and it is the topmost of the image's directories in the mount, so that the volume's
//! root is like the image's. Made before the mount, gone with the snapshot: a crash leaves
//! at most one that keeps an image which nobody sees yet.
//!
//! The image's tree is hostile: a path in it is looked up by the kernel below the mount,
//! and leads to a directory or a regular file of the image or nowhere.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::digest::ImageId;
use crate::overlay::{Layers, Show, Stack, clone_below, mount};
use crate::patch::copy_attributes;
use crate::snapshot::{Lowers, SnapshotError};

const SHOWN: &str = "shown";

/// An image that is to be a volume.
pub(crate) struct Shown {
    owner: String,
    image: ImageId,
    /// The snapshot's directory for all of them.
    all: PathBuf,
    lowers: Lowers,
}

impl Shown {
    /// An image for the owner of the snapshot in a directory.
    pub(crate) fn new(snapshot: &Path, owner: &str, image: ImageId, lowers: Lowers) -> Self {
        Self {
            owner: owner.to_owned(),
            image,
            all: snapshot.join(SHOWN),
            lowers,
        }
    }

    /// Notes the image and mounts it, or what it has at a path.
    pub(crate) fn mount(
        self,
        sub_path: &Path,
        show: Option<Show<'_>>,
    ) -> Result<OwnedFd, SnapshotError> {
        let top = self.make()?;
        let mut lowers = self.lowers.dirs.clone();
        lowers.insert(0, top);
        // Without an upper directory the kernel wants two layers at least.
        if lowers.len() == 1 {
            lowers.push(self.lowers.empty.clone());
        }
        let refused = |source| SnapshotError::Mount {
            owner: self.owner.clone(),
            source,
        };
        let seen = show.map(|show| Layers::new(&lowers, show));
        let seen = seen.transpose().map_err(refused)?;
        let stack = Stack {
            lowers: seen.as_ref().map_or(&lowers, |seen| &seen.paths),
            upper: None,
            place: &self.lowers.place,
        };
        let mounted = mount(&stack).map_err(refused)?;
        if sub_path.components().next().is_none() {
            return Ok(mounted);
        }
        let part = self.part(&mounted, sub_path)?;
        clone_below(&mounted, &part, &self.lowers.place).map_err(refused)
    }

    /// Makes the image's directory; found made: fine.
    fn make(&self) -> Result<PathBuf, SnapshotError> {
        let dir = self.all.join(self.image.to_string());
        let made = DirBuilder::new().mode(0o755).recursive(true).create(&dir);
        let made = made.and_then(|()| match &self.lowers.root {
            Some(root) => Ok(copy_attributes(File::open(root)?, File::open(&dir)?)?),
            None => Ok(()),
        });
        made.map_err(|error| SnapshotError::io("make", &dir, error))?;
        Ok(dir)
    }

    /// What the image has at a path: its links lead where they lead a container of it.
    fn part(&self, mounted: &OwnedFd, path: &Path) -> Result<OwnedFd, SnapshotError> {
        let refused = |reason| SnapshotError::ImagePath {
            image: self.image,
            path: path.to_owned(),
            reason,
        };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let opened = rustix::fs::openat2(mounted.as_fd(), path, flags, Mode::empty(), resolve);
        let part = opened.map_err(|errno| match errno {
            Errno::NOENT | Errno::NOTDIR => refused("does not exist in it"),
            Errno::LOOP => refused("is a loop of links"),
            Errno::NAMETOOLONG => refused("is too long"),
            other => SnapshotError::io("look into an image at", path, other.into()),
        })?;
        let found = rustix::fs::fstat(&part)
            .map_err(|errno| SnapshotError::io("look at", path, errno.into()))?;
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Directory | FileType::RegularFile => Ok(part),
            _ => Err(refused("is neither a directory nor a regular file")),
        }
    }
}

/// The images that the owner of the snapshot in a directory has as volumes.
pub(crate) fn images_of(snapshot: &Path) -> io::Result<Vec<ImageId>> {
    let entries = match fs::read_dir(snapshot.join(SHOWN)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut images = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        images.extend(name.to_str().and_then(|id| id.parse::<ImageId>().ok()));
    }
    Ok(images)
}

//! One container's writable view of an image.
//!
//! Owns the form of a snapshot's directory: `fs` takes the changes, `work` is
//! the kernel's, `volumes` holds those of the image (see `volume`), `shown` tells which
//! other images the container has as volumes (see `shown`), and the symbolic link
//! `image` (made last, in one step, no sync) names the image. A crash before the link leaves a directory without
//! one, which start-up throws away.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::digest::ImageId;
use crate::error::Cause;
use crate::overlay::{Layers, OverlayError, Show, Stack, mount};
use crate::patch::copy_attributes;
use crate::usage::{Counted, Effort, Usage, usage};

const UPPER: &str = "fs";
const WORK: &str = "work";
const IMAGE: &str = "image";
const VOLUMES: &str = "volumes";

/// Upper and work directory over the layers of an image.
#[derive(Debug, Clone)]
pub struct Snapshot {
    owner: String,
    image: ImageId,
    dir: PathBuf,
    lowers: Lowers,
}

/// What lies below the changes.
#[derive(Debug, Clone)]
pub(crate) struct Lowers {
    /// The image's patch, if it has one, and its layers, the topmost first.
    pub(crate) dirs: Vec<PathBuf>,
    /// The layer that says what the root directory is like.
    pub(crate) root: Option<PathBuf>,
    /// A directory with nothing in it.
    pub(crate) empty: PathBuf,
    /// One for mounts of a moment.
    pub(crate) place: PathBuf,
}

/// Why a snapshot cannot be made, mounted or removed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// There is no such image.
    #[error("image {image} is not in the store")]
    NoImage {
        /// The image.
        image: ImageId,
    },
    /// The owner has a snapshot of another image.
    #[error("{owner} has a snapshot of image {image} already")]
    OtherImage {
        /// The owner.
        owner: String,
        /// The image of the snapshot that exists.
        image: ImageId,
    },
    /// The snapshot of this owner is on its way out.
    #[error("the snapshot of {owner} is being removed")]
    Leaving {
        /// The owner.
        owner: String,
    },
    /// The owner's name cannot be a directory's.
    #[error("`{owner}` cannot own a snapshot: letters, digits, `-` and `_` only")]
    BadOwner {
        /// The name.
        owner: String,
    },
    /// No space is left.
    #[error("{step} {}: no space left", path.display())]
    DiskFull {
        /// What was being done.
        step: &'static str,
        /// Where.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A directory could not be made or moved.
    #[error("{step} {}", path.display())]
    Io {
        /// What was being done.
        step: &'static str,
        /// Where.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// What the image has at a volume's path cannot be copied.
    #[error("the volume at {} cannot be filled: {reason}", path.display())]
    Volume {
        /// The path in the image.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A path of an image that is to be a volume cannot be had.
    #[error("image {image} as a volume: {path:?} {reason}")]
    ImagePath {
        /// The image.
        image: ImageId,
        /// The path in it.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The kernel refuses the mount.
    #[error("mount the snapshot of {owner}")]
    Mount {
        /// The owner.
        owner: String,
        /// Its answer.
        source: OverlayError,
    },
    /// The database of images failed.
    #[error("{step} in the image database")]
    Database {
        /// What was being done.
        step: &'static str,
        /// Its answer.
        source: Cause,
    },
}

impl SnapshotError {
    pub(crate) fn io(step: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        if crate::error::is_disk_full(&source) {
            return Self::DiskFull { step, path, source };
        }
        Self::Io { step, path, source }
    }
}

impl Snapshot {
    pub(crate) fn new((owner, image): (&str, ImageId), dir: PathBuf, lowers: Lowers) -> Self {
        Self {
            owner: owner.to_owned(),
            image,
            dir,
            lowers,
        }
    }

    /// Who owns it: a container's id.
    #[must_use]
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// The image below.
    #[must_use]
    pub fn image(&self) -> ImageId {
        self.image
    }

    /// The directory that takes the changes.
    #[must_use]
    pub fn upper(&self) -> PathBuf {
        self.dir.join(UPPER)
    }

    /// Where the directories for the image's volumes are.
    pub(crate) fn volumes(&self) -> PathBuf {
        self.dir.join(VOLUMES)
    }

    pub(crate) fn lower_dirs(&self) -> &[PathBuf] {
        &self.lowers.dirs
    }

    /// What its changes and its volumes occupy, as far as the effort allows to tell.
    pub(crate) fn usage(&self, effort: &mut Effort) -> Result<Counted, Errno> {
        let changes = usage(&self.upper(), effort)?;
        let volumes = match usage(&self.volumes(), effort) {
            Err(Errno::NOENT) => return Ok(changes),
            other => other?,
        };
        let usage = Usage {
            bytes: changes.usage.bytes + volumes.usage.bytes,
            inodes: changes.usage.inodes + volumes.usage.inodes,
        };
        let whole = changes.whole && volumes.whole;
        Ok(Counted { usage, whole })
    }

    /// Mounts it, attached nowhere. `read_only` gives the image with what was
    /// written so far, in a mount that nothing can be written to by anybody.
    pub fn mount(&self, read_only: bool) -> Result<OwnedFd, SnapshotError> {
        let (upper, work) = (self.upper(), self.dir.join(WORK));
        let mut lowers = self.lowers.dirs.clone();
        if read_only {
            lowers.insert(0, upper.clone());
        }
        if lowers.is_empty() {
            lowers.push(self.lowers.empty.clone());
        }
        let upper = (!read_only).then_some((upper.as_path(), work.as_path()));
        // Without an upper directory the kernel wants two layers at least.
        if upper.is_none() && lowers.len() == 1 {
            lowers.push(self.lowers.empty.clone());
        }
        self.stack(&lowers, upper)
    }

    /// Mounts it to be written to, with its layers as `show` gives them. What is written
    /// has the ids that are seen, on the disk, too: the directory for it takes after the
    /// root as it is shown. Before the first process is there: later that would undo what
    /// a container has made of its root.
    pub fn mount_shown(&self, show: Show<'_>) -> Result<OwnedFd, SnapshotError> {
        let failed = |source| SnapshotError::Mount {
            owner: self.owner.clone(),
            source,
        };
        let empty = [self.lowers.empty.clone()];
        let layers = match self.lowers.dirs.is_empty() {
            true => &empty[..],
            false => &self.lowers.dirs[..],
        };
        let (upper, work) = (self.upper(), self.dir.join(WORK));
        let root = self.lowers.root.as_ref().unwrap_or(&self.lowers.empty);
        let root = Layers::new(std::slice::from_ref(root), show).map_err(failed)?;
        for root in &root.paths {
            self.take_after(root, &upper)
                .map_err(|e| SnapshotError::io("set the owner of", &upper, e))?;
        }
        let shown = Layers::new(layers, show).map_err(failed)?;
        self.stack(&shown.paths, Some((&upper, &work)))
    }

    fn take_after(&self, root: &Path, upper: &Path) -> io::Result<()> {
        let (root, upper) = (fs::File::open(root)?, fs::File::open(upper)?);
        if self.lowers.root.is_some() {
            return Ok(copy_attributes(root, upper)?);
        }
        let shown = root.metadata()?;
        std::os::unix::fs::fchown(&upper, Some(shown.uid()), Some(shown.gid()))
    }

    fn stack(
        &self,
        lowers: &[PathBuf],
        upper: Option<(&Path, &Path)>,
    ) -> Result<OwnedFd, SnapshotError> {
        mount(&Stack {
            lowers,
            upper,
            place: &self.lowers.place,
        })
        .map_err(|source| SnapshotError::Mount {
            owner: self.owner.clone(),
            source,
        })
    }

    /// Makes the directories; finds them made: fine.
    pub(crate) fn make(&self) -> Result<(), SnapshotError> {
        let fail = |step, path: &Path| {
            let path = path.to_owned();
            move |e| SnapshotError::io(step, &path, e)
        };
        make_dir(&self.dir, 0o700).map_err(fail("make", &self.dir))?;
        let upper = self.upper();
        make_dir(&upper, 0o755).map_err(fail("make", &upper))?;
        let work = self.dir.join(WORK);
        make_dir(&work, 0o700).map_err(fail("make", &work))?;
        self.copy_root(&upper)
            .map_err(fail("set the mode of", &upper))?;
        let link = self.dir.join(IMAGE);
        match std::os::unix::fs::symlink(self.image.to_string(), &link) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                Err(SnapshotError::io("make", &link, e))
            }
            _ => Ok(()),
        }
    }

    /// The root directory that a container sees is the upper one, so it takes
    /// after that of the topmost layer which lists it.
    fn copy_root(&self, upper: &Path) -> io::Result<()> {
        let Some(root) = &self.lowers.root else {
            return fs::set_permissions(upper, Permissions::from_mode(0o755));
        };
        copy_attributes(fs::File::open(root)?, fs::File::open(upper)?)?;
        Ok(())
    }

    /// The image that a snapshot's directory names; `None` for an unfinished one. An error
    /// says nothing of either: a disk, or a shortage, may give it later.
    pub(crate) fn image_of(dir: &Path) -> io::Result<Option<ImageId>> {
        match fs::read_link(dir.join(IMAGE)) {
            Ok(image) => Ok(image.to_str().and_then(|id| id.parse().ok())),
            // Not there, or no link.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound
                        | io::ErrorKind::NotADirectory
                        | io::ErrorKind::InvalidInput
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}

/// Checks a name that becomes a directory's.
pub(crate) fn check_owner(owner: &str) -> Result<(), SnapshotError> {
    let valid = !owner.is_empty()
        && owner.len() <= 128
        && owner
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if valid {
        Ok(())
    } else {
        Err(SnapshotError::BadOwner {
            owner: owner.to_owned(),
        })
    }
}

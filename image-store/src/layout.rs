//! Where everything lies on disk.
//!
//! ```text
//! <root>/images/images.redb          what images there are
//! <root>/images/layers/<hex>/        unpacked layers, by DiffID
//! <root>/images/implied/<hex>        directories that a layer does not list
//! <root>/images/patches/<image>/     what those are like in an image
//! <root>/images/configs/<image>/     the image's configuration (`configs`)
//! <root>/images/staging/<n>/         layers being unpacked
//! <root>/images/trash/<n>            layers being removed
//! <root>/images/empty/               a layer with nothing in it
//! <root>/images/place/               for mounts of a moment (`overlay`)
//! <root>/images/reserve              space for deleting when the disk is full
//! <root>/snapshots/<shard>/<owner>/  upper and work directories
//! <root>/snapshots/trash/<n>         snapshots being removed
//! ```
//!
//! Layers are named by DiffID, and not by ChainID: overlayfs needs no layer to
//! know what is below it, so they can be unpacked side by side in any order,
//! and one that occurs in two images over different bases exists once. The
//! price is that what depends on the base has to be kept apart (`patch` says
//! what directories are like that a layer does not list), and that a hard link
//! into a lower layer is refused.
//!
//! Directories whose children should lie in block groups of their own get the
//! ext4 flag `T` (top of a directory hierarchy): making files in a crowded
//! group costs ten times as much. Other file systems refuse it, which is fine.
//!
//! Owns names and descriptors of these directories; never decides what may be
//! removed. A crash leaves staging and trash, both emptied at the next start.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{IFlags, Mode, OFlags, RenameFlags};

use crate::digest::{DiffId, ImageId};
use crate::error::OpenError;
use crate::trash::Trash;

/// Enough for some pages of the database.
const RESERVE: u64 = 1 << 20;

/// Snapshots are spread over this many directories.
pub(crate) const SHARDS: usize = 32;

/// The store's directories, open.
pub(crate) struct Layout {
    images: PathBuf,
    layers: OwnedFd,
    staging: OwnedFd,
    snapshots: PathBuf,
    layer_trash: Trash,
    snapshot_trash: Trash,
    next: AtomicU64,
}

/// A directory that a layer is unpacked into, thrown away unless installed.
pub(crate) struct Staging {
    layout: Arc<Layout>,
    name: String,
    /// A file beside it says what the layer does not list.
    implied: bool,
    kept: bool,
}

/// The directories of a store without anything in them.
pub(crate) fn empty_dirs(root: &Path) -> [PathBuf; 2] {
    let images = root.join("images");
    [images.join("empty"), images.join("place")]
}

impl Layout {
    /// Makes what is missing below `root`. Only the owner may look inside:
    /// images carry setuid files and devices that no other user should reach.
    pub(crate) fn open(root: &Path) -> Result<Self, OpenError> {
        make_dir(root, 0o711)?;
        // Mounts are made by these paths, from whatever directory.
        let root = fs::canonicalize(root).map_err(|source| OpenError::Io {
            step: "find",
            path: root.to_owned(),
            source,
        })?;
        let images = root.join("images");
        let snapshots = root.join("snapshots");
        for dir in [&images, &snapshots] {
            make_dir(dir, 0o700)?;
        }
        make_dir(&images.join("empty"), 0o755)?;
        let place = images.join("place");
        crate::overlay::clear(&place).map_err(|error| OpenError::Io {
            step: "clear",
            path: place.clone(),
            source: io::Error::other(error),
        })?;
        make_dir(&place, 0o700)?;
        make_dir(&images.join("implied"), 0o700)?;
        make_dir(&images.join("patches"), 0o700)?;
        make_dir(&images.join("configs"), 0o700)?;
        spread(&make_dir(&snapshots, 0o700)?);
        for shard in 0..SHARDS {
            make_dir(&snapshots.join(shard_name(shard)), 0o700)?;
        }
        let layers = make_dir(&images.join("layers"), 0o700)?;
        let staging = make_dir(&images.join("staging"), 0o700)?;
        spread(&layers);
        spread(&staging);
        let layout = Self {
            layer_trash: Trash::open(&images.join("trash"))?,
            snapshot_trash: Trash::open(&snapshots.join("trash"))?,
            images,
            layers,
            staging,
            snapshots,
            next: AtomicU64::new(1),
        };
        layout.keep_reserve();
        Ok(layout)
    }

    /// The directory that holds images; the mount point of `ImageFsInfo`.
    pub(crate) fn images(&self) -> &Path {
        &self.images
    }

    /// The database's file.
    pub(crate) fn database(&self) -> PathBuf {
        self.images.join("images.redb")
    }

    /// A directory with nothing in it, for stacks that need one more layer.
    pub(crate) fn empty(&self) -> PathBuf {
        self.images.join("empty")
    }

    /// A directory for mounts of a moment.
    pub(crate) fn place(&self) -> PathBuf {
        self.images.join("place")
    }

    /// Where a layer is once it is unpacked.
    pub(crate) fn layer(&self, id: &DiffId) -> PathBuf {
        self.images.join("layers").join(id.hex())
    }

    /// Where the names of the directories are that a layer does not list.
    pub(crate) fn implied(&self, id: &DiffId) -> PathBuf {
        self.images.join("implied").join(id.hex())
    }

    /// Where the patch of an image is.
    pub(crate) fn patch(&self, id: &ImageId) -> PathBuf {
        self.images.join("patches").join(id.hex())
    }

    /// Where the configuration of an image is.
    pub(crate) fn config(&self, id: &ImageId) -> PathBuf {
        self.images.join("configs").join(id.hex())
    }

    /// Where the snapshot of an owner is.
    pub(crate) fn snapshot(&self, owner: &str) -> PathBuf {
        // The same owner always has to give the same shard.
        let sum = owner
            .bytes()
            .fold(0usize, |sum, b| sum.wrapping_mul(31).wrapping_add(b.into()));
        self.snapshots.join(shard_name(sum % SHARDS)).join(owner)
    }

    /// Sets space aside, if there is any and none is set aside.
    pub(crate) fn keep_reserve(&self) {
        let path = self.images.join("reserve");
        if path.exists() {
            return;
        }
        let made = fs::File::create(&path).and_then(|file| {
            let flags = rustix::fs::FallocateFlags::empty();
            rustix::fs::fallocate(&file, flags, 0, RESERVE).map_err(io::Error::from)
        });
        if let Err(error) = made {
            // A full disk, most likely: the next commit tries again.
            tracing::debug!(error = %error, "no space is set aside");
            drop(fs::remove_file(&path));
        }
    }

    /// Gives back what was set aside; false when there was nothing.
    pub(crate) fn release_reserve(&self) -> bool {
        fs::remove_file(self.images.join("reserve")).is_ok()
    }

    /// All snapshots on disk.
    pub(crate) fn snapshots(&self) -> Result<Vec<PathBuf>, OpenError> {
        let mut out = Vec::new();
        for shard in 0..SHARDS {
            out.extend(entries(&self.snapshots.join(shard_name(shard)))?);
        }
        Ok(out)
    }

    /// All layers on disk.
    pub(crate) fn layers(&self) -> Result<Vec<PathBuf>, OpenError> {
        entries(&self.images.join("layers"))
    }

    /// Everything on disk that lists what layers do not list.
    pub(crate) fn all_implied(&self) -> Result<Vec<PathBuf>, OpenError> {
        entries(&self.images.join("implied"))
    }

    /// All patches on disk.
    pub(crate) fn patches(&self) -> Result<Vec<PathBuf>, OpenError> {
        entries(&self.images.join("patches"))
    }

    /// All configurations on disk.
    pub(crate) fn configs(&self) -> Result<Vec<PathBuf>, OpenError> {
        entries(&self.images.join("configs"))
    }

    /// Throws away what unfinished work of a former process left.
    pub(crate) fn clear_staging(&self) -> Result<(), OpenError> {
        for path in entries(&self.images.join("staging"))? {
            self.layer_trash
                .throw(&path)
                .map_err(|source| OpenError::Io {
                    step: "clear",
                    path: path.clone(),
                    source,
                })?;
        }
        Ok(())
    }

    /// Makes a fresh directory to unpack into.
    pub(crate) fn stage(self: &Arc<Self>) -> io::Result<(Staging, OwnedFd)> {
        let name = self.next.fetch_add(1, Ordering::Relaxed).to_string();
        rustix::fs::mkdirat(&self.staging, &name, Mode::from_raw_mode(0o755))?;
        let staging = Staging {
            layout: Arc::clone(self),
            name,
            implied: false,
            kept: false,
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.staging, &staging.name, flags, Mode::empty())?;
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o755))?;
        Ok((staging, fd))
    }

    /// Throws a layer away: one rename now, the rest in the background.
    pub(crate) fn throw_layer(&self, id: &DiffId) -> io::Result<()> {
        self.layer_trash.throw(&self.layer(id))?;
        match fs::remove_file(self.implied(id)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Throws away something else below the layers' directory.
    pub(crate) fn throw_path(&self, path: &Path) -> io::Result<()> {
        self.layer_trash.throw(path)
    }

    /// Throws a snapshot away.
    pub(crate) fn throw_snapshot(&self, path: &Path) -> io::Result<()> {
        self.snapshot_trash.throw(path)
    }

    /// Waits until all layers' data and names are on disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        rustix::fs::syncfs(&self.layers).map_err(io::Error::from)
    }

    /// Starts to empty the trash.
    pub(crate) fn empty_trash(&self) {
        self.layer_trash.wake();
        self.snapshot_trash.wake();
    }
}

impl Staging {
    /// Where the directory is now.
    pub(crate) fn path(&self) -> PathBuf {
        self.layout.images.join("staging").join(&self.name)
    }

    /// Writes down which directories the layer does not list; [`Staging::install`]
    /// puts it in its place.
    pub(crate) fn note_implied(&mut self, paths: &[u8]) -> io::Result<()> {
        self.implied = !paths.is_empty();
        if self.implied {
            fs::write(self.implied_path(), paths)?;
        }
        Ok(())
    }

    fn implied_path(&self) -> PathBuf {
        self.path().with_extension("implied")
    }

    /// Makes the directory an image's patch or configuration, of which none is in use.
    pub(crate) fn install_at(mut self, to: &Path) -> io::Result<()> {
        // One that a crash left.
        self.layout.throw_path(to)?;
        fs::rename(self.path(), to)?;
        self.kept = true;
        Ok(())
    }

    /// Gives the directory its final name. The caller has made sure that no
    /// layer of this name is in use.
    pub(crate) fn install(mut self, id: &DiffId) -> io::Result<()> {
        let layout = Arc::clone(&self.layout);
        if self.implied {
            fs::rename(self.implied_path(), layout.implied(id))?;
            self.implied = false;
        }
        let rename = || {
            let flags = RenameFlags::NOREPLACE;
            rustix::fs::renameat_with(&layout.staging, &self.name, &layout.layers, id.hex(), flags)
        };
        match rename() {
            Err(rustix::io::Errno::EXIST) => {
                layout.throw_path(&layout.layer(id))?;
                rename()?;
            }
            other => other?,
        }
        self.kept = true;
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.implied {
            drop(fs::remove_file(self.implied_path()));
        }
        if !self.kept
            && let Err(error) = self.layout.layer_trash.throw(&self.path())
        {
            tracing::warn!(error = %error, path = %self.path().display(), "staging stays behind");
        }
    }
}

fn shard_name(shard: usize) -> String {
    format!("{shard:02x}")
}

fn make_dir(path: &Path, mode: u32) -> Result<OwnedFd, OpenError> {
    let fail = |step| {
        move |source| OpenError::Io {
            step,
            path: path.to_owned(),
            source,
        }
    };
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(fail("make"))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|e| fail("open")(e.into()))
}

/// Children of this directory shall begin in block groups of their own.
fn spread(dir: &OwnedFd) {
    if let Ok(flags) = rustix::fs::ioctl_getflags(dir)
        && !flags.contains(IFlags::TOPDIR)
        && let Err(error) = rustix::fs::ioctl_setflags(dir, flags | IFlags::TOPDIR)
    {
        tracing::debug!(error = %error, "the file system has no top-of-hierarchy flag");
    }
}

/// The entries of a directory, as paths.
pub(crate) fn entries(dir: &Path) -> Result<Vec<PathBuf>, OpenError> {
    let fail = |source| OpenError::Io {
        step: "list",
        path: dir.to_owned(),
        source,
    };
    let mut out = Vec::new();
    for entry in fs::read_dir(dir).map_err(fail)? {
        out.push(entry.map_err(fail)?.path());
    }
    Ok(out)
}

//! The facade: what the engine calls.
//!
//! Owns no state of its own: it moves blocking work to threads made for it and
//! hands everything else to [`Depot`], the puller and the measurements.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::image::{Config, ImageConfiguration};
use tokio::runtime::Handle;
use tokio::task::{JoinError, spawn_blocking};

use crate::auth::Auth;
use crate::depot::Depot;
use crate::digest::ImageId;
use crate::error::{
    ConfigurationError, ImportError, LeaseError, OpenError, PullError, RemoveError,
};
use crate::image::Image;
use crate::measure::Measurements;
use crate::overlay::{Show, ShowThere};
use crate::pull::Puller;
use crate::registry::Registry;
use crate::snapshot::{Snapshot, SnapshotError};
use crate::tuning::Tuning;
use crate::usage::{Effort, Usage};

/// Where the store lives and how it introduces itself.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Everything is below this directory.
    pub root: PathBuf,
    /// Holds `HOST[:PORT]/hosts.toml`.
    pub hosts_dir: PathBuf,
    /// Sent to registries.
    pub user_agent: String,
}

/// The images and snapshots of one directory. Clones share it.
#[derive(Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

struct Inner {
    depot: Arc<Depot>,
    puller: Puller,
    runtime: Handle,
    tuning: Tuning,
    measurements: Measurements,
}

/// What a pull brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PulledImage {
    /// The image.
    pub id: ImageId,
}

/// What images occupy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsInfo {
    /// A directory of the file system that holds them.
    pub mountpoint: PathBuf,
    /// Bytes of all layers.
    pub used_bytes: u64,
    /// Inodes of all layers.
    pub inodes_used: u64,
}

impl ImageStore {
    /// Opens the store, alone; throws away what unfinished work left.
    pub async fn open(options: StoreOptions) -> Result<Self, OpenError> {
        Self::open_with(options, Tuning::default()).await
    }

    /// Opens the store with other bounds and patience than the usual.
    pub async fn open_with(options: StoreOptions, tuning: Tuning) -> Result<Self, OpenError> {
        let root = options.root;
        let depot = Arc::new(blocking(move || Depot::open(&root)).await?);
        let registry = Registry::new(options.hosts_dir, options.user_agent, tuning.clone());
        let inner = Inner {
            puller: Puller::new(Arc::clone(&depot), registry, tuning.clone()),
            depot,
            runtime: Handle::current(),
            tuning,
            measurements: Measurements::default(),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Brings an image from its registry or a mirror. A pull of the same
    /// reference with the same credentials that is on its way is joined;
    /// dropping the last caller's future ends the work and frees what it wrote.
    pub async fn pull(
        &self,
        reference: &str,
        auth: Option<Auth>,
    ) -> Result<PulledImage, PullError> {
        let id = self.inner.puller.pull(reference, auth).await?;
        Ok(PulledImage { id })
    }

    /// All images. Answers from memory.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.inner.depot.catalog().list()
    }

    /// The image of a tag, a digest reference, an id, a unique prefix of an id
    /// (6 digits or more) or a short name. Answers from memory.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Arc<Image>> {
        self.inner.depot.catalog().find(name)
    }

    /// What an image says of the processes of its containers: environment, commands,
    /// volumes and the like, 256 KiB at most.
    pub async fn process(&self, image: &ImageId) -> Result<Config, ConfigurationError> {
        let (depot, image) = (Arc::clone(&self.inner.depot), *image);
        blocking(move || depot.process(image)).await
    }

    /// The whole configuration of an image. Read one at a time, so that what is made to
    /// cost memory costs it once.
    pub async fn configuration(
        &self,
        image: &ImageId,
    ) -> Result<ImageConfiguration, ConfigurationError> {
        let (depot, image) = (Arc::clone(&self.inner.depot), *image);
        blocking(move || depot.configuration(image)).await
    }

    /// Removes the image with all its names; unknown: fine. Under a lease or a
    /// snapshot it disappears at once, and its layers go with the last user.
    pub async fn remove(&self, name: &str) -> Result<(), RemoveError> {
        let Some(image) = self.find(name) else {
            return Ok(());
        };
        let depot = Arc::clone(&self.inner.depot);
        blocking(move || depot.remove(image.id)).await
    }

    /// A directory of the file system that holds images and writable layers.
    #[must_use]
    pub fn images_dir(&self) -> &Path {
        self.inner.depot.layout.images()
    }

    /// What images occupy, from counters.
    #[must_use]
    pub fn fs_info(&self) -> FsInfo {
        let (used_bytes, inodes_used) = self.inner.depot.state().occupied();
        let mountpoint = self.inner.depot.layout.images().to_owned();
        FsInfo {
            mountpoint,
            used_bytes,
            inodes_used,
        }
    }

    /// Imports all images for this machine from an OCI layout directory, an OCI
    /// archive or a `docker save` archive, under their own names or the given one.
    pub async fn import(
        &self,
        path: &Path,
        name: Option<&str>,
    ) -> Result<Vec<ImageId>, ImportError> {
        let (path, name) = (path.to_owned(), name.map(str::to_owned));
        let depot = Arc::clone(&self.inner.depot);
        let limits = self.inner.tuning.limits.clone();
        blocking(move || crate::import::import(&depot, &path, name.as_deref(), &limits)).await
    }

    /// Keeps an image's layers until the owner releases them. In memory only:
    /// the engine renews leases at start.
    pub fn lease(&self, image: &ImageId, owner: &str) -> Result<(), LeaseError> {
        if self.inner.depot.state().lease(image, owner) {
            return Ok(());
        }
        Err(LeaseError::NotFound { image: *image })
    }

    /// Ends all leases of an owner; none: fine.
    pub fn release(&self, owner: &str) {
        let collect = {
            let mut state = self.inner.depot.state();
            state.release(owner) && !state.abandoned().is_empty()
        };
        if collect {
            self.collect();
        }
    }

    fn collect(&self) {
        let depot = Arc::clone(&self.inner.depot);
        // Nobody waits: an image that stays behind is collected at the next start.
        drop(self.inner.runtime.spawn_blocking(move || depot.collect()));
    }

    /// Makes the upper and work directory of a container; found made: fine.
    pub async fn create_snapshot(
        &self,
        owner: &str,
        image: &ImageId,
    ) -> Result<Snapshot, SnapshotError> {
        let (depot, owner, image) = (Arc::clone(&self.inner.depot), owner.to_owned(), *image);
        blocking(move || depot.create_snapshot(&owner, image)).await
    }

    /// Mounts an image for the owner of a snapshot, attached nowhere: a read-only mount
    /// of all that the image has, or of the directory or regular file at
    /// `sub_path`, which is looked up in the image as a container of it would find it: no
    /// link leads out of it; with its layers as `show` gives them. The image stays until the snapshot is thrown away, also over a
    /// restart.
    pub async fn mount_image(
        &self,
        owner: &str,
        image: &ImageId,
        sub_path: &Path,
        show: Option<ShowThere>,
    ) -> Result<OwnedFd, SnapshotError> {
        let (depot, owner, image) = (Arc::clone(&self.inner.depot), owner.to_owned(), *image);
        let sub_path = sub_path.to_owned();
        blocking(move || {
            depot.mount_image(
                &owner,
                image,
                &sub_path,
                show.as_deref().map(|show| show as Show<'_>),
            )
        })
        .await
    }

    /// The snapshot of an owner. Answers from memory.
    #[must_use]
    pub fn find_snapshot(&self, owner: &str) -> Option<Snapshot> {
        self.inner.depot.find_snapshot(owner)
    }

    /// Throws a snapshot away; unknown: fine. The files are deleted later.
    pub async fn remove_snapshot(&self, owner: &str) -> Result<(), SnapshotError> {
        let (depot, name) = (Arc::clone(&self.inner.depot), owner.to_owned());
        let collect = blocking(move || depot.remove_snapshot(&name)).await?;
        self.inner.measurements.forget(owner);
        if collect {
            self.collect();
        }
        Ok(())
    }

    /// Owners of all snapshots, sorted.
    #[must_use]
    pub fn snapshots(&self) -> Vec<String> {
        self.inner.depot.state().snapshots()
    }

    /// What a snapshot's changes occupy: the last figure, which is measured anew behind
    /// the caller if it is old. The first one is waited for for a moment; until it is
    /// there, and where there cannot be one, there is none.
    pub async fn snapshot_usage(&self, owner: &str) -> Option<Usage> {
        let snapshot = self.find_snapshot(owner)?;
        let measure = move |effort: &mut Effort| snapshot.usage(effort);
        self.inner.measurements.figure(owner, measure).await
    }
}

/// Runs blocking work on a thread made for it. A panic there is a panic here.
pub(crate) fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = T> {
    let task = spawn_blocking(work);
    async move { finish(task.await).await }
}

async fn finish<T>(result: Result<T, JoinError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is being shut down, and with it whoever waits here.
            Err(_) => std::future::pending().await,
        },
    }
}

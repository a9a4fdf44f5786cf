//! The store's depot: the directories, the database and the bookkeeping, kept
//! in step.
//!
//! Order of every change: data on disk (syncfs), then the database, then the
//! bookkeeping and the public snapshot, then what became unused is thrown
//! away. So a crash at any point leaves either the state before or the state
//! after, and at most directories that nothing names, which [`Depot::open`]
//! throws away. Everything here blocks; the facade calls it on threads made
//! for that.
//!
//! Three locks, taken in this order: `changing`, held while the database is written;
//! `moving`, held while a layer or a snapshot gets its name or loses it; `state`, held for
//! moments only and never while the disk is waited for, since calls that answer from
//! memory take it on threads that must not wait.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use oci_spec::image::{Config, ImageConfiguration};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::configs;
use crate::db::{Change, Db, DbError};
use crate::digest::{DiffId, Digest, ImageId};
use crate::error::{ConfigurationError, OpenError, PullError, RemoveError};
use crate::image::Catalog;
use crate::layout::{Layout, Staging};
use crate::overlay::Show;
use crate::patch::{self, PatchError};
use crate::shown::{self, Shown};
use crate::snapshot::{Lowers, Snapshot, SnapshotError, check_owner};
use crate::state::{NewImage, Present, State};
use crate::unpack::Unpacked;

/// See the module.
pub(crate) struct Depot {
    pub(crate) layout: Arc<Layout>,
    db: Db,
    state: Mutex<State>,
    catalog: ArcSwap<Catalog>,
    /// One change of the database at a time, from its reading of the
    /// bookkeeping to its writing of it.
    changing: Mutex<()>,
    /// One move of a layer or a snapshot at a time, with the bookkeeping that belongs to
    /// it.
    moving: Mutex<()>,
    /// One whole configuration in the works at a time.
    reading: Mutex<()>,
    /// Wakes those who wait for a layer, at each that is installed.
    arrivals: Notify,
}

/// Keeps a layer while a pull relies on it.
pub(crate) struct LayerHold {
    depot: Arc<Depot>,
    id: DiffId,
}

impl Depot {
    /// Opens the store, and throws away what no record names.
    pub(crate) fn open(root: &Path) -> Result<Self, OpenError> {
        let layout = Arc::new(Layout::open(root)?);
        let path = layout.database();
        let db = Db::open(&path)?;
        layout.clear_staging()?;
        let on_disk = layout.layers()?;
        let patches = layout.patches()?;
        let configs = layout.configs()?;
        let present = Present {
            layers: on_disk.iter().filter_map(|p| layer_of(p)).collect(),
            patches: patches.iter().filter_map(|p| image_of(p)).collect(),
            configs: configs.iter().filter_map(|p| image_of(p)).collect(),
        };
        let (mut state, broken) = State::load(db.load()?, &present);
        let mut change = Change {
            drop_layers: state.take_unused(),
            ..Change::default()
        };
        for id in broken {
            tracing::warn!(image = %id, "an image misses a part and is dropped");
            change.drop_images.push(id);
        }
        if !change.drop_images.is_empty() || !change.drop_layers.is_empty() {
            with_reserve(&layout, || db.apply(&change)).map_err(|error| OpenError::Database {
                step: "drop what is unused",
                path: path.clone(),
                source: Arc::new(error),
            })?;
        }
        for path in on_disk {
            if !layer_of(&path).is_some_and(|id| state.has_layer(&id)) {
                throw(&path, layout.throw_path(&path));
            }
        }
        for path in layout.all_implied()? {
            if !layer_of(&path).is_some_and(|id| state.has_layer(&id)) {
                throw(&path, layout.throw_path(&path));
            }
        }
        for path in patches {
            let patched = image_of(&path).and_then(|id| state.is_patched(&id));
            if patched != Some(true) {
                throw(&path, layout.throw_path(&path));
            }
        }
        for path in configs {
            if image_of(&path).is_none_or(|id| state.is_patched(&id).is_none()) {
                throw(&path, layout.throw_path(&path));
            }
        }
        adopt_snapshots(&layout, &mut state)?;
        layout.empty_trash();
        let catalog = ArcSwap::from_pointee(state.catalog());
        let depot = Self {
            layout,
            db,
            state: Mutex::new(state),
            catalog,
            changing: Mutex::new(()),
            moving: Mutex::new(()),
            reading: Mutex::new(()),
            arrivals: Notify::new(),
        };
        depot.collect();
        Ok(depot)
    }

    /// The images at this moment.
    pub(crate) fn catalog(&self) -> Arc<Catalog> {
        self.catalog.load_full()
    }

    /// The bookkeeping. Held for moments only: everyone waits for it.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // A panic while it was held left it whole: each change is one call.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn moves(&self) -> MutexGuard<'_, ()> {
        self.moving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes under the lock, so that an older view never replaces a newer.
    fn publish(&self, state: &State) {
        self.catalog.store(Arc::new(state.catalog()));
    }

    /// Holds a layer that is there already.
    pub(crate) fn hold(self: &Arc<Self>, id: &DiffId) -> Option<LayerHold> {
        self.state().hold(id)?;
        Some(LayerHold {
            depot: Arc::clone(self),
            id: *id,
        })
    }

    /// Ends with the next layer that is installed from now on, whichever it is.
    pub(crate) fn arrival(&self) -> Notified<'_> {
        self.arrivals.notified()
    }

    /// Puts an unpacked layer in its place and holds it. Where another was
    /// faster, its layer is held, and this one thrown away.
    pub(crate) fn install(
        self: &Arc<Self>,
        mut staging: Staging,
        id: DiffId,
        unpacked: &Unpacked,
    ) -> Result<LayerHold, PullError> {
        staging
            .note_implied(&unpacked.implied)
            .map_err(|e| PullError::io("note the directories of", &self.layout.layer(&id), e))?;
        let one = self.moves();
        if self.state().hold(&id).is_none() {
            let path = self.layout.layer(&id);
            staging
                .install(&id)
                .map_err(|e| PullError::io("install layer", &path, e))?;
            self.state().installed(id, unpacked.occupied);
        }
        drop(one);
        self.arrivals.notify_waiters();
        Ok(LayerHold {
            depot: Arc::clone(self),
            id,
        })
    }

    /// Writes a new image for good. The caller holds its layers.
    pub(crate) fn commit(&self, mut new: NewImage) -> Result<(), PullError> {
        let patch = self.stage_patch(&new)?;
        let path = self.layout.config(&new.id);
        let bytes = new.config.bytes_on_disk();
        new.record.config_bytes =
            bytes.map_err(|e| PullError::io("encode the configuration for", &path, e))?;
        let _one = self.change();
        let known = self.state().is_patched(&new.id);
        new.record.patched = known.unwrap_or(patch.is_some());
        let config = self.stage_config(&new)?;
        // A patch that is there is the same.
        let patch = patch.filter(|_| known.is_none());
        let is_new = known.is_none() || config.is_some();
        for (staging, path) in [
            (patch, self.layout.patch(&new.id)),
            (config, self.layout.config(&new.id)),
        ] {
            if let Some(staging) = staging {
                staging
                    .install_at(&path)
                    .map_err(|e| PullError::io("install", &path, e))?;
            }
        }
        let (change, durable) = {
            let state = self.state();
            new.record.size = state.size_of(&new);
            (
                state.commit_change(&new),
                !is_new && state.is_durable(&new.record.layers),
            )
        };
        if !durable {
            let path = self.layout.images();
            self.layout
                .sync()
                .map_err(|e| PullError::io("write layers to disk", path, e))?;
        }
        self.db
            .apply(&change)
            .map_err(|error| match error.is_disk_full() {
                true => PullError::DiskFull {
                    step: "add the image to the database".to_owned(),
                    source: Arc::new(error),
                },
                false => PullError::Database {
                    step: "add the image",
                    source: Arc::new(error),
                },
            })?;
        self.layout.keep_reserve();
        let mut state = self.state();
        state.committed(new, change);
        self.publish(&state);
        Ok(())
    }

    /// Writes the configuration of an image where it is not, or not as it should be.
    fn stage_config(&self, new: &NewImage) -> Result<Option<Staging>, PullError> {
        let path = self.layout.config(&new.id);
        let is_there = new.config.are_in(&path);
        if is_there.map_err(|e| PullError::io("read the configuration in", &path, e))? {
            return Ok(None);
        }
        let images = self.layout.images();
        let (staging, _dir) = self
            .layout
            .stage()
            .map_err(|e| PullError::io("make staging below", images, e))?;
        let path = staging.path();
        new.config
            .write(&path)
            .map_err(|e| PullError::io("write the configuration in", &path, e))?;
        Ok(Some(staging))
    }

    /// Throws a layer away, unless somebody has brought it again.
    fn throw_unknown(&self, id: &DiffId) {
        let _one = self.moves();
        if !self.state().has_layer(id) {
            throw(&self.layout.layer(id), self.layout.throw_layer(id));
        }
    }

    /// Makes the patch of an image, if it needs one. Takes its time, so it is done
    /// before anybody has to wait for it; whether the image is there already and
    /// has one is known only then.
    fn stage_patch(&self, new: &NewImage) -> Result<Option<Staging>, PullError> {
        let stack = self.state().stack(&new.record.layers);
        let at = |id: &DiffId| self.layout.layer(id);
        let mut layers = Vec::new();
        let mut any = false;
        for id in &stack {
            let implied = self.layout.implied(id);
            any |= match std::fs::metadata(&implied) {
                Ok(found) => found.len() > 0,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
                Err(error) => return Err(PullError::io("look at", &implied, error)),
            };
            let dir = std::fs::File::open(at(id))
                .map_err(|e| PullError::io("open layer", &at(id), e))?
                .into();
            layers.push(patch::Layer { dir, implied });
        }
        if !any {
            return Ok(None);
        }
        let images = self.layout.images();
        let (staging, dir) = self
            .layout
            .stage()
            .map_err(|e| PullError::io("make staging below", images, e))?;
        match patch::make(&layers, &dir) {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(staging)),
            Err(PatchError::Io(step, error)) => Err(PullError::io(step, images, error)),
            Err(error @ PatchError::TooMuch) => Err(PullError::BadManifest {
                what: "stack of layers".to_owned(),
                source: Arc::new(error),
            }),
        }
    }

    /// The configuration of an image.
    pub(crate) fn configuration(
        &self,
        image: ImageId,
    ) -> Result<ImageConfiguration, ConfigurationError> {
        let _one = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        configs::read(&self.layout.config(&image)).map_err(|source| self.not_read(image, source))
    }

    /// What of it the processes of containers get.
    pub(crate) fn process(&self, image: ImageId) -> Result<Config, ConfigurationError> {
        configs::read_process(&self.layout.config(&image))
            .map_err(|source| self.not_read(image, source))
    }

    /// A file that a known image misses is a damage, and no missing image.
    fn not_read(&self, image: ImageId, source: std::io::Error) -> ConfigurationError {
        match self.state().is_patched(&image) {
            None => ConfigurationError::NotFound { image },
            Some(_) => ConfigurationError::Io { image, source },
        }
    }

    /// Removes an image with all its names; unknown: fine.
    pub(crate) fn remove(&self, id: ImageId) -> Result<(), RemoveError> {
        let one = self.change();
        let removal = {
            let mut state = self.state();
            let Some(removal) = state.begin_removal(&id) else {
                return Ok(());
            };
            self.publish(&state);
            removal
        };
        if let Err(error) = with_reserve(&self.layout, || self.db.apply(&removal.change)) {
            let mut state = self.state();
            state.removal_failed(&removal);
            self.publish(&state);
            return Err(RemoveError::Database {
                image: id,
                source: Arc::new(error),
            });
        }
        let moving = self.moves();
        let (layers, abandoned) = {
            let mut state = self.state();
            let layers = state.removed(&removal);
            self.publish(&state);
            (layers, !state.abandoned().is_empty())
        };
        if !removal.hide {
            for path in [self.layout.patch(&id), self.layout.config(&id)] {
                throw(&path, self.layout.throw_path(&path));
            }
        }
        for layer in layers {
            throw(&self.layout.layer(&layer), self.layout.throw_layer(&layer));
        }
        drop((moving, one));
        // The last user may have gone while the image was being hidden.
        if abandoned {
            self.collect();
        }
        Ok(())
    }

    /// Removes hidden images whose last user is gone.
    pub(crate) fn collect(&self) {
        let abandoned = self.state().abandoned();
        for id in abandoned {
            if let Err(error) = self.remove(id) {
                tracing::warn!(error = %error, image = %id, "collect an image");
            }
        }
    }

    /// Makes the snapshot of an owner; found made: fine.
    pub(crate) fn create_snapshot(
        &self,
        owner: &str,
        image: ImageId,
    ) -> Result<Snapshot, SnapshotError> {
        check_owner(owner)?;
        let snapshot = {
            let mut state = self.state();
            match state.snapshot(owner) {
                Some(other) if other != image => {
                    return Err(SnapshotError::OtherImage {
                        owner: owner.into(),
                        image: other,
                    });
                }
                Some(_) if state.is_leaving(owner) => {
                    return Err(SnapshotError::Leaving {
                        owner: owner.into(),
                    });
                }
                // From here on the image stays, whoever removes it.
                _ if !state.add_snapshot(owner, &image) => {
                    return Err(SnapshotError::NoImage { image });
                }
                _ => self.snapshot(&state, owner, image),
            }
        };
        let snapshot = snapshot.ok_or(SnapshotError::NoImage { image })?;
        if let Err(error) = snapshot.make() {
            let dir = self.layout.snapshot(owner);
            self.state().drop_snapshot(owner);
            throw(&dir, self.layout.throw_snapshot(&dir));
            self.collect();
            return Err(error);
        }
        Ok(snapshot)
    }

    fn snapshot(&self, state: &State, owner: &str, image: ImageId) -> Option<Snapshot> {
        let lowers = self.lowers(state, &image)?;
        let dir = self.layout.snapshot(owner);
        Some(Snapshot::new((owner, image), dir, lowers))
    }

    /// What of an image lies below whoever sees it.
    fn lowers(&self, state: &State, image: &ImageId) -> Option<Lowers> {
        let view = state.view(image)?;
        let patch = view.patched.then(|| self.layout.patch(image));
        let layers = view.layers.iter().map(|id| self.layout.layer(id));
        Some(Lowers {
            dirs: patch.into_iter().chain(layers).collect(),
            root: view.root.map(|id| self.layout.layer(&id)),
            empty: self.layout.empty(),
            place: self.layout.place(),
        })
    }

    /// Mounts an image, or what it has at a path, for the owner of a snapshot: attached
    /// nowhere, read-only. The image stays until the snapshot is gone.
    pub(crate) fn mount_image(
        &self,
        owner: &str,
        image: ImageId,
        sub_path: &Path,
        show: Option<Show<'_>>,
    ) -> Result<OwnedFd, SnapshotError> {
        check_owner(owner)?;
        let lowers = {
            let mut state = self.state();
            let shown = state.show(owner, &image);
            shown.then(|| self.lowers(&state, &image)).flatten()
        };
        let lowers = lowers.ok_or(SnapshotError::NoImage { image })?;
        let dir = self.layout.snapshot(owner);
        Shown::new(&dir, owner, image, lowers).mount(sub_path, show)
    }

    /// The snapshot of an owner.
    pub(crate) fn find_snapshot(&self, owner: &str) -> Option<Snapshot> {
        let state = self.state();
        let image = state.snapshot(owner)?;
        self.snapshot(&state, owner, image)
    }

    /// Throws the snapshot of an owner away; true when its image may be
    /// without users now.
    pub(crate) fn remove_snapshot(&self, owner: &str) -> Result<bool, SnapshotError> {
        check_owner(owner)?;
        let dir = self.layout.snapshot(owner);
        let _one = self.moves();
        if !self.state().begin_to_drop(owner) {
            return Ok(false);
        }
        if let Err(error) = self.layout.throw_snapshot(&dir) {
            self.state().drop_failed(owner);
            return Err(SnapshotError::io("throw away", &dir, error));
        }
        let mut state = self.state();
        state.drop_snapshot(owner);
        Ok(!state.abandoned().is_empty())
    }
}

impl Drop for LayerHold {
    fn drop(&mut self) {
        if !self.depot.state().unhold(&self.id) {
            return;
        }
        let (depot, id) = (Arc::clone(&self.depot), self.id);
        let throw_away = move || depot.throw_unknown(&id);
        // Whoever drops it may be on a thread that must not wait for the disk. One that
        // stays behind is found at the next start.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(throw_away)),
            Err(_) => throw_away(),
        }
    }
}

/// Takes the snapshots on disk over, and throws away what is unfinished.
fn adopt_snapshots(layout: &Layout, state: &mut State) -> Result<(), OpenError> {
    for dir in layout.snapshots()? {
        let owner = dir.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        match Snapshot::image_of(&dir) {
            Ok(Some(image)) if state.add_snapshot(owner, &image) => {
                adopt_shown(&dir, owner, state);
            }
            Ok(_) => {
                tracing::info!(owner, "a snapshot is unfinished, or its image is gone");
                throw(&dir, layout.throw_snapshot(&dir));
            }
            Err(error) => {
                let path = dir.display();
                tracing::error!(%error, %path, "a snapshot is not read and stays as it is");
                state.be_unsure();
            }
        }
    }
    Ok(())
}

/// Takes over which images the owner of a snapshot has as volumes.
fn adopt_shown(dir: &Path, owner: &str, state: &mut State) {
    match shown::images_of(dir) {
        Ok(images) => {
            for image in images {
                if !state.show(owner, &image) {
                    tracing::warn!(owner, %image, "an image that is a volume is gone");
                }
            }
        }
        Err(error) => {
            let path = dir.display();
            tracing::error!(%error, %path, "which images are volumes is not read, all of them stay");
            state.be_unsure();
        }
    }
}

/// What cannot be moved to the trash stays until the next start.
fn throw(path: &Path, result: std::io::Result<()>) {
    if let Err(error) = result {
        tracing::warn!(error = %error, path = %path.display(), "cannot be thrown away");
    }
}

/// Deleting takes a little space too: on a full disk, what was set aside for
/// this moment is given back first.
fn with_reserve(layout: &Layout, write: impl Fn() -> Result<(), DbError>) -> Result<(), DbError> {
    match write() {
        Err(error) if error.is_disk_full() && layout.release_reserve() => write(),
        other => other,
    }
}

/// The layer that a directory is named after.
fn layer_of(path: &Path) -> Option<DiffId> {
    Digest::from_hex(path.file_name()?.to_str()?)
        .ok()
        .map(DiffId)
}

/// The image that a patch is named after.
fn image_of(path: &Path) -> Option<ImageId> {
    layer_of(path).map(|id| ImageId(id.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_of_two_equal_layers_is_thrown_away_and_the_first_held() {
        let root = tempfile::tempdir().unwrap();
        let depot = Arc::new(Depot::open(root.path()).unwrap());
        let id = DiffId(Digest::of(b"a layer"));
        let unpacked = Unpacked {
            implied: b"d\0".to_vec(),
            ..Unpacked::default()
        };
        let holds = [b"1", b"2"].map(|text| {
            let (staging, _dir) = depot.layout.stage().unwrap();
            std::fs::write(staging.path().join("f"), text).unwrap();
            depot.install(staging, id, &unpacked).unwrap()
        });
        let layer = depot.layout.layer(&id);
        assert_eq!(std::fs::read(layer.join("f")).unwrap(), b"1");
        let staging = root.path().join("images/staging");
        assert_eq!(std::fs::read_dir(staging).unwrap().count(), 0);
        let [first, second] = holds;
        drop(first);
        assert!(layer.exists() && depot.hold(&id).is_some());
        drop(second);
        assert!(!layer.exists() && depot.hold(&id).is_none());
    }
}

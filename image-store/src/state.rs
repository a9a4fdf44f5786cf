//! What is there, and who needs it: images, names, layers, leases, snapshots.
//!
//! Pure bookkeeping behind one lock, which is held for moments only: calls that answer
//! from memory take it. Nothing here touches the disk or waits; each method says what has
//! to follow. A layer is in the map exactly while its directory may be used.
//!
//! ```text
//! layer:  absent --installed--> held by pulls --committed--> in images
//!            ^                       |                          |
//!            +---- last hold gone ---+------ last image gone ---+
//! image:  absent --committed--> listed --removed--> absent
//!                                 |   (in use)  -> hidden --last user gone--> absent
//! ```

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::configs::{self, Texts};
use crate::db::{Change, Contents, ImageRecord, Named};
use crate::digest::{DiffId, Digest, ImageId};
use crate::image::{Catalog, Image};
use crate::unpack::Occupied;

/// Names with a digest that an image keeps in a repository: each pull of a tag may bring
/// another one.
const MAX_DIGESTS: usize = 8;

/// A layer whose directory exists.
#[derive(Debug)]
struct Layer {
    occupied: Occupied,
    /// Its record is in the database, so its data is on disk.
    durable: bool,
    /// Pulls and imports that rely on it.
    holds: usize,
    /// Images that contain it.
    images: usize,
}

#[derive(Debug)]
struct Entry {
    record: ImageRecord,
    /// Its removal is on the way to the database.
    leaving: bool,
}

/// Everything the store knows.
#[derive(Debug, Default)]
pub(crate) struct State {
    images: HashMap<ImageId, Entry>,
    names: BTreeMap<String, Named>,
    /// Of the next names.
    number: u64,
    layers: HashMap<DiffId, Layer>,
    leases: HashMap<String, HashSet<ImageId>>,
    snapshots: HashMap<String, Owned>,
    /// There are snapshots of which it is not known what image they are of.
    unsure: bool,
}

/// A snapshot.
#[derive(Debug, Clone)]
struct Owned {
    image: ImageId,
    /// Images that its owner has as volumes.
    shown: Vec<ImageId>,
    /// Its directory is being thrown away.
    leaving: bool,
}

/// What is on disk at the start.
#[derive(Debug, Default)]
pub(crate) struct Present {
    /// Layers.
    pub layers: HashSet<DiffId>,
    /// Images with a patch.
    pub patches: HashSet<ImageId>,
    /// Images with a configuration.
    pub configs: HashSet<ImageId>,
}

/// What a container of an image sees.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct View {
    /// Its layers, the topmost first.
    pub layers: Vec<DiffId>,
    /// A patch lies above them.
    pub patched: bool,
    /// The layer that says what the root directory is like.
    pub root: Option<DiffId>,
}

/// A new image, ready to be committed.
#[derive(Debug, Clone)]
pub(crate) struct NewImage {
    /// The digest of the configuration.
    pub id: ImageId,
    /// What goes into the database.
    pub record: ImageRecord,
    /// Its configuration.
    pub config: Texts,
    /// Tags and digest references that shall name it, with the digest that they stood
    /// for.
    pub names: Vec<(String, Option<Digest>)>,
}

/// A removal that has begun.
#[derive(Debug)]
pub(crate) struct Removal {
    /// The image.
    pub id: ImageId,
    /// The image is in use: it disappears from lists and its layers stay.
    pub hide: bool,
    /// The change for the database.
    pub change: Change,
}

impl State {
    /// Takes what the database holds. Images that miss a layer or a patch are returned for
    /// removal. One that misses its configuration is hidden: containers may run from it,
    /// and new ones need it to be pulled again.
    pub(crate) fn load(contents: Contents, present: &Present) -> (Self, Vec<ImageId>) {
        let mut state = Self::default();
        let mut broken = Vec::new();
        for (id, occupied) in contents.layers {
            if present.layers.contains(&id) {
                let layer = Layer {
                    occupied,
                    durable: true,
                    holds: 0,
                    images: 0,
                };
                state.layers.insert(id, layer);
            }
        }
        for (id, mut record) in contents.images {
            let mut layers = record.layers.iter();
            let whole = layers.all(|layer| state.layers.contains_key(layer))
                && (!record.patched || present.patches.contains(&id));
            if whole {
                record.hidden |= !present.configs.contains(&id);
                state.insert_image(id, record);
            } else {
                broken.push(id);
            }
        }
        for (name, named) in contents.names {
            if state.images.contains_key(&named.image) {
                state.number = state.number.max(named.number + 1);
                state.names.insert(name, named);
            }
        }
        (state, broken)
    }

    fn insert_image(&mut self, id: ImageId, record: ImageRecord) {
        for layer in distinct(&record.layers) {
            if let Some(layer) = self.layers.get_mut(&layer) {
                layer.images += 1;
            }
        }
        let leaving = false;
        self.images.insert(id, Entry { record, leaving });
    }

    /// The public view.
    pub(crate) fn catalog(&self) -> Catalog {
        let mut names: HashMap<ImageId, ImageNames<'_>> = HashMap::new();
        for (name, named) in &self.names {
            let of_image = names.entry(named.image).or_default();
            if name.contains('@') {
                of_image.digests.push((named.number, name));
            } else {
                of_image.tags.push((name, named.manifest));
            }
        }
        Catalog::new(
            self.images
                .iter()
                .filter(|(_, e)| !e.record.hidden && !e.leaving)
                .map(|(id, entry)| {
                    let names = names.remove(id).unwrap_or_default();
                    Arc::new(names.image(*id, &entry.record))
                }),
        )
    }

    /// Bytes and inodes of all layers and configurations.
    pub(crate) fn occupied(&self) -> (u64, u64) {
        let layers = self.layers.values().map(|layer| layer.occupied);
        let layers = layers.map(|occupied| (occupied.bytes, occupied.inodes));
        let configs = self.images.values().map(|entry| entry.record.config_bytes);
        let configs = configs.map(|bytes| (bytes, configs::INODES));
        let add = |sum: (u64, u64), one: (u64, u64)| (sum.0 + one.0, sum.1 + one.1);
        layers.chain(configs).fold((0, 0), add)
    }

    /// Takes a hold on a layer that is there.
    pub(crate) fn hold(&mut self, id: &DiffId) -> Option<Occupied> {
        let layer = self.layers.get_mut(id)?;
        layer.holds += 1;
        Some(layer.occupied)
    }

    /// Adds a layer that was just installed, with one hold on it.
    pub(crate) fn installed(&mut self, id: DiffId, occupied: Occupied) {
        self.layers.insert(
            id,
            Layer {
                occupied,
                durable: false,
                holds: 1,
                images: 0,
            },
        );
    }

    /// Gives a hold back; true when the layer is gone from the map and its
    /// directory has to be thrown away.
    pub(crate) fn unhold(&mut self, id: &DiffId) -> bool {
        let Some(layer) = self.layers.get_mut(id) else {
            return false;
        };
        layer.holds = layer.holds.saturating_sub(1);
        let unused = layer.holds == 0 && layer.images == 0;
        if unused {
            self.layers.remove(id);
        }
        unused
    }

    /// Whether all layers of an image are on disk for certain.
    pub(crate) fn is_durable(&self, layers: &[DiffId]) -> bool {
        layers
            .iter()
            .all(|id| self.layers.get(id).is_some_and(|layer| layer.durable))
    }

    /// Bytes on disk of an image's layers and configuration.
    pub(crate) fn size_of(&self, new: &NewImage) -> u64 {
        let layers = distinct(&new.record.layers);
        let bytes = |id| self.layers.get(id).map_or(0, |layer| layer.occupied.bytes);
        new.record.config_bytes + layers.iter().map(bytes).sum::<u64>()
    }

    /// What has to go into the database for a new image. Its names move from
    /// whatever image had them; of its digests in a repository the oldest go.
    pub(crate) fn commit_change(&self, new: &NewImage) -> Change {
        let named = |manifest| Named {
            image: new.id,
            manifest,
            number: self.number,
        };
        let is_known = self
            .images
            .get(&new.id)
            .is_some_and(|entry| !entry.record.hidden);
        let record = || (new.id, new.record.clone());
        Change {
            put_images: (!is_known).then(record).into_iter().collect(),
            put_names: new
                .names
                .iter()
                .map(|(name, manifest)| (name.clone(), named(*manifest)))
                .collect(),
            drop_names: self.outlived(new),
            put_layers: distinct(&new.record.layers)
                .into_iter()
                .filter_map(|id| {
                    let layer = self.layers.get(&id)?;
                    (!layer.durable).then_some((id, layer.occupied))
                })
                .collect(),
            ..Change::default()
        }
    }

    /// Names with a digest that an image has had for the longest, where new ones are
    /// more than it keeps.
    fn outlived(&self, new: &NewImage) -> Vec<String> {
        let digest_names = new.names.iter().filter(|(name, _)| name.contains('@'));
        let mut outlived = Vec::new();
        for (name, _) in digest_names {
            let (repository, _) = name.split_once('@').unwrap_or_default();
            let prefix = format!("{repository}@");
            let of_repository = self.names.range(prefix.clone()..);
            let of_repository = of_repository.take_while(|(other, _)| other.starts_with(&prefix));
            let of_image = of_repository.filter(|(_, named)| named.image == new.id);
            let mut others: Vec<_> = of_image
                .filter(|(other, _)| *other != name)
                .map(|(other, named)| (named.number, other))
                .collect();
            others.sort_unstable();
            let surplus = (others.len() + 1).saturating_sub(MAX_DIGESTS);
            outlived.extend(
                others
                    .into_iter()
                    .take(surplus)
                    .map(|(_, other)| other.clone()),
            );
        }
        outlived
    }

    /// Takes over what the database has confirmed.
    pub(crate) fn committed(&mut self, new: NewImage, change: Change) {
        for id in &new.record.layers {
            if let Some(layer) = self.layers.get_mut(id) {
                layer.durable = true;
            }
        }
        for name in change.drop_names {
            self.names.remove(&name);
        }
        self.names.extend(change.put_names);
        self.number += 1;
        match self.images.get_mut(&new.id) {
            Some(entry) => {
                entry.record.hidden = false;
                entry.record.size = new.record.size;
                entry.record.config_bytes = new.record.config_bytes;
                entry.leaving = false;
            }
            None => self.insert_image(new.id, new.record),
        }
    }

    fn in_use(&self, id: &ImageId) -> bool {
        let uses = |owned: &Owned| owned.image == *id || owned.shown.contains(id);
        self.snapshots.values().any(uses) || self.leases.values().any(|images| images.contains(id))
    }

    /// Begins to remove an image: from now on nobody can lease it anew.
    pub(crate) fn begin_removal(&mut self, id: &ImageId) -> Option<Removal> {
        let hide = self.in_use(id);
        let entry = self.images.get_mut(id)?;
        if entry.leaving || (entry.record.hidden && hide) {
            return None;
        }
        entry.leaving = true;
        let mut change = Change {
            drop_names: self
                .names
                .iter()
                .filter(|(_, named)| named.image == *id)
                .map(|(n, _)| n.clone())
                .collect(),
            ..Change::default()
        };
        if hide {
            let hidden = ImageRecord {
                hidden: true,
                ..entry.record.clone()
            };
            change.put_images.push((*id, hidden));
        } else {
            change.drop_images.push(*id);
            change.drop_layers = distinct(&entry.record.layers)
                .into_iter()
                .filter(|l| self.layers.get(l).is_some_and(|layer| layer.images == 1))
                .collect();
        }
        Some(Removal {
            id: *id,
            hide,
            change,
        })
    }

    /// Ends a removal that the database has confirmed; returns the layers
    /// whose directories have to be thrown away.
    pub(crate) fn removed(&mut self, removal: &Removal) -> Vec<DiffId> {
        self.names.retain(|_, named| named.image != removal.id);
        if removal.hide {
            if let Some(entry) = self.images.get_mut(&removal.id) {
                entry.leaving = false;
                entry.record.hidden = true;
            }
            return Vec::new();
        }
        let Some(entry) = self.images.remove(&removal.id) else {
            return Vec::new();
        };
        let mut unused = Vec::new();
        for id in distinct(&entry.record.layers) {
            let Some(layer) = self.layers.get_mut(&id) else {
                continue;
            };
            layer.images = layer.images.saturating_sub(1);
            if layer.images > 0 {
                continue;
            }
            if layer.holds == 0 {
                self.layers.remove(&id);
                unused.push(id);
            } else {
                // A pull relies on it and will write its record again.
                layer.durable = false;
            }
        }
        unused
    }

    /// Takes a removal back that the database refused.
    pub(crate) fn removal_failed(&mut self, removal: &Removal) {
        if let Some(entry) = self.images.get_mut(&removal.id) {
            entry.leaving = false;
        }
    }

    /// Notes that a snapshot is there whose image is not known: any may be under it, and
    /// none is taken for abandoned as long as this store is open.
    pub(crate) fn be_unsure(&mut self) {
        self.unsure = true;
    }

    /// Hidden images that nobody uses any more.
    pub(crate) fn abandoned(&self) -> Vec<ImageId> {
        if self.unsure {
            return Vec::new();
        }
        self.images
            .iter()
            .filter(|(id, entry)| entry.record.hidden && !entry.leaving && !self.in_use(id))
            .map(|(id, _)| *id)
            .collect()
    }

    /// Leases an image; false when there is none.
    pub(crate) fn lease(&mut self, image: &ImageId, owner: &str) -> bool {
        let usable = self.images.get(image).is_some_and(|entry| !entry.leaving);
        if usable {
            self.leases
                .entry(owner.to_owned())
                .or_default()
                .insert(*image);
        }
        usable
    }

    /// Ends all leases of an owner; true when there were any.
    pub(crate) fn release(&mut self, owner: &str) -> bool {
        self.leases.remove(owner).is_some()
    }

    /// Records a snapshot; its image stays until the snapshot is gone. An image on its way
    /// out is still there for whoever has a lease on it.
    pub(crate) fn add_snapshot(&mut self, owner: &str, image: &ImageId) -> bool {
        let leased = self
            .leases
            .get(owner)
            .is_some_and(|all| all.contains(image));
        let entry = self.images.get(image);
        let usable = entry.is_some_and(|entry| leased || !entry.leaving);
        if usable {
            let owned = Owned {
                image: *image,
                shown: Vec::new(),
                leaving: false,
            };
            self.snapshots.insert(owner.to_owned(), owned);
        }
        usable
    }

    /// Records that the owner of a snapshot has an image as a volume, which stays until the
    /// snapshot is gone. False: there is no such snapshot, or the image is gone, or on its
    /// way out and the owner has no lease on it.
    pub(crate) fn show(&mut self, owner: &str, image: &ImageId) -> bool {
        let leases = self.leases.get(owner);
        let leased = leases.is_some_and(|all| all.contains(image));
        let entry = self.images.get(image);
        let usable = entry.is_some_and(|entry| leased || !entry.leaving);
        match self.snapshots.get_mut(owner) {
            Some(owned) if usable && !owned.leaving => {
                if !owned.shown.contains(image) {
                    owned.shown.push(*image);
                }
                true
            }
            _ => false,
        }
    }

    /// Begins to throw a snapshot away; false when there is none. From now on nobody gets
    /// it.
    pub(crate) fn begin_to_drop(&mut self, owner: &str) -> bool {
        let owned = self.snapshots.get_mut(owner);
        owned.map(|owned| owned.leaving = true).is_some()
    }

    /// Takes that back: its directory could not be thrown away.
    pub(crate) fn drop_failed(&mut self, owner: &str) {
        if let Some(owned) = self.snapshots.get_mut(owner) {
            owned.leaving = false;
        }
    }

    /// Forgets a snapshot.
    pub(crate) fn drop_snapshot(&mut self, owner: &str) {
        self.snapshots.remove(owner);
    }

    /// Whether a snapshot is being thrown away.
    pub(crate) fn is_leaving(&self, owner: &str) -> bool {
        self.snapshots.get(owner).is_some_and(|owned| owned.leaving)
    }

    /// The image under a snapshot.
    pub(crate) fn snapshot(&self, owner: &str) -> Option<ImageId> {
        self.snapshots.get(owner).map(|owned| owned.image)
    }

    /// Owners of all snapshots, sorted.
    pub(crate) fn snapshots(&self) -> Vec<String> {
        let mut owners: Vec<String> = self.snapshots.keys().cloned().collect();
        owners.sort_unstable();
        owners
    }

    /// The layers of an image that a container sees, the topmost first: none
    /// below one that hides everything.
    pub(crate) fn view(&self, image: &ImageId) -> Option<View> {
        let record = &self.images.get(image)?.record;
        let layers = self.stack(&record.layers);
        let lists_root = |id: &&DiffId| self.layers.get(id).is_some_and(|l| l.occupied.root);
        Some(View {
            root: layers.iter().find(lists_root).copied(),
            patched: record.patched,
            layers,
        })
    }

    /// Whether an image has a patch; `None` when it is not there.
    pub(crate) fn is_patched(&self, image: &ImageId) -> Option<bool> {
        Some(self.images.get(image)?.record.patched)
    }

    /// What is seen of these layers, the lowest first: the topmost first.
    pub(crate) fn stack(&self, layers: &[DiffId]) -> Vec<DiffId> {
        let mut stack = Vec::new();
        for id in layers.iter().rev() {
            // Overlayfs refuses a layer that occurs twice. The upper one has all
            // that the lower one has, so nothing is lost.
            if stack.contains(id) {
                continue;
            }
            stack.push(*id);
            if self
                .layers
                .get(id)
                .is_some_and(|layer| layer.occupied.opaque)
            {
                break;
            }
        }
        stack
    }

    /// Layers that no image contains, after loading.
    pub(crate) fn take_unused(&mut self) -> Vec<DiffId> {
        let unused: Vec<DiffId> = self
            .layers
            .iter()
            .filter(|(_, l)| l.images == 0 && l.holds == 0)
            .map(|(id, _)| *id)
            .collect();
        for id in &unused {
            self.layers.remove(id);
        }
        unused
    }

    /// Whether a layer is known.
    pub(crate) fn has_layer(&self, id: &DiffId) -> bool {
        self.layers.contains_key(id)
    }
}

/// The names of one image.
#[derive(Default)]
struct ImageNames<'a> {
    tags: Vec<(&'a String, Option<Digest>)>,
    digests: Vec<(u64, &'a String)>,
}

impl ImageNames<'_> {
    fn image(mut self, id: ImageId, record: &ImageRecord) -> Image {
        self.digests.sort_unstable();
        let digests: Vec<String> = self
            .digests
            .iter()
            .map(|(_, name)| (*name).clone())
            .collect();
        let resolved = self.tags.iter().filter_map(|(tag, manifest)| {
            let (repository, _) = tag.rsplit_once(':')?;
            let name = format!("{repository}@{}", (*manifest)?);
            let is_kept = digests.contains(&name);
            is_kept.then(|| ((*tag).clone(), name))
        });
        Image {
            resolved: resolved.collect(),
            tags: self.tags.iter().map(|(tag, _)| (*tag).clone()).collect(),
            digests,
            id,
            size: record.size,
            pinned: false,
            summary: record.summary.clone(),
        }
    }
}

/// An image may list a layer twice (empty ones, mostly).
fn distinct(layers: &[DiffId]) -> Vec<DiffId> {
    let mut seen = HashSet::new();
    layers
        .iter()
        .filter(|id| seen.insert(**id))
        .copied()
        .collect()
}

#[cfg(test)]
mod tests;

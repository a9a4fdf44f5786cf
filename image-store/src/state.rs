//! What is there, and who needs it: images, names, layers, leases, snapshots.
//!
//! Pure bookkeeping behind the store's one lock. Nothing here touches the disk
//! or waits; each method says what has to follow. The lock is held for moments
//! (and for the single rename that installs or throws away a layer, so that a
//! layer is in the map exactly while its directory may be used).
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

use crate::db::{Change, Contents, ImageRecord};
use crate::digest::{DiffId, ImageId};
use crate::image::{Catalog, Image, Summary};
use crate::manifest;
use crate::unpack::Occupied;

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

/// What is in memory of an image: its record without the configuration's text.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    layers: Vec<DiffId>,
    size: u64,
    hidden: bool,
    patched: bool,
    summary: Summary,
}

impl Kept {
    /// Reads a record; `None` where its configuration cannot be read.
    pub(crate) fn of(record: ImageRecord) -> Option<Self> {
        let config = manifest::parse_config(record.config.as_bytes()).ok()?;
        let config = config.config().as_ref();
        Some(Self::new(
            record,
            config.map(Summary::of).unwrap_or_default(),
        ))
    }

    fn new(record: ImageRecord, summary: Summary) -> Self {
        let ImageRecord {
            config: _,
            layers,
            size,
            hidden,
            patched,
        } = record;
        Self {
            layers,
            size,
            hidden,
            patched,
            summary,
        }
    }
}

#[derive(Debug)]
struct Entry {
    kept: Kept,
    /// Its removal is on the way to the database.
    leaving: bool,
}

/// Everything the store knows.
#[derive(Debug, Default)]
pub(crate) struct State {
    images: HashMap<ImageId, Entry>,
    names: BTreeMap<String, ImageId>,
    layers: HashMap<DiffId, Layer>,
    leases: HashMap<String, HashSet<ImageId>>,
    snapshots: HashMap<String, ImageId>,
}

/// What is on disk at the start.
#[derive(Debug, Default)]
pub(crate) struct Present {
    /// Layers.
    pub layers: HashSet<DiffId>,
    /// Images with a patch.
    pub patches: HashSet<ImageId>,
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
    /// What of its configuration stays in memory.
    pub summary: Summary,
    /// Tags and digest references that shall name it.
    pub names: Vec<String>,
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
    /// Takes what the database holds. Images whose configuration cannot be
    /// read, or that miss a layer, are returned for removal.
    pub(crate) fn load(
        contents: Contents<Option<Kept>>,
        present: &Present,
    ) -> (Self, Vec<ImageId>) {
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
        for (id, kept) in contents.images {
            let whole = |kept: &Kept| {
                let mut layers = kept.layers.iter();
                layers.all(|layer| state.layers.contains_key(layer))
                    && (!kept.patched || present.patches.contains(&id))
            };
            match kept {
                Some(kept) if whole(&kept) => state.insert_image(id, kept),
                _ => broken.push(id),
            }
        }
        for (name, id) in contents.names {
            if state.images.contains_key(&id) {
                state.names.insert(name, id);
            }
        }
        (state, broken)
    }

    fn insert_image(&mut self, id: ImageId, kept: Kept) {
        for layer in distinct(&kept.layers) {
            if let Some(layer) = self.layers.get_mut(&layer) {
                layer.images += 1;
            }
        }
        let leaving = false;
        self.images.insert(id, Entry { kept, leaving });
    }

    /// The public view.
    pub(crate) fn catalog(&self) -> Catalog {
        let mut names: HashMap<ImageId, (Vec<String>, Vec<String>)> = HashMap::new();
        for (name, id) in &self.names {
            let (tags, digests) = names.entry(*id).or_default();
            if name.contains('@') { digests } else { tags }.push(name.clone());
        }
        Catalog::new(
            self.images
                .iter()
                .filter(|(_, e)| !e.kept.hidden && !e.leaving)
                .map(|(id, entry)| {
                    let (tags, digests) = names.remove(id).unwrap_or_default();
                    Arc::new(Image {
                        id: *id,
                        tags,
                        digests,
                        size: entry.kept.size,
                        pinned: false,
                        summary: entry.kept.summary.clone(),
                    })
                }),
        )
    }

    /// Bytes and inodes of all layers.
    pub(crate) fn occupied(&self) -> (u64, u64) {
        self.layers.values().fold((0, 0), |(bytes, inodes), layer| {
            (bytes + layer.occupied.bytes, inodes + layer.occupied.inodes)
        })
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
        new.record.config.len() as u64 + layers.iter().map(bytes).sum::<u64>()
    }

    /// What has to go into the database for a new image. Its names move from
    /// whatever image had them.
    pub(crate) fn commit_change(&self, new: &NewImage) -> Change {
        Change {
            put_images: vec![(new.id, new.record.clone())],
            put_names: new
                .names
                .iter()
                .map(|name| (name.clone(), new.id))
                .collect(),
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

    /// Takes over what the database has confirmed.
    pub(crate) fn committed(&mut self, new: NewImage) {
        for id in &new.record.layers {
            if let Some(layer) = self.layers.get_mut(id) {
                layer.durable = true;
            }
        }
        for name in new.names {
            self.names.insert(name, new.id);
        }
        match self.images.get_mut(&new.id) {
            Some(entry) => {
                entry.kept.hidden = false;
                entry.leaving = false;
            }
            None => self.insert_image(new.id, Kept::new(new.record, new.summary)),
        }
    }

    fn in_use(&self, id: &ImageId) -> bool {
        self.snapshots.values().any(|image| image == id)
            || self.leases.values().any(|images| images.contains(id))
    }

    /// Begins to remove an image: from now on nobody can lease it anew.
    pub(crate) fn begin_removal(&mut self, id: &ImageId) -> Option<Removal> {
        let hide = self.in_use(id);
        let entry = self.images.get_mut(id)?;
        if entry.leaving || (entry.kept.hidden && hide) {
            return None;
        }
        entry.leaving = true;
        let mut change = Change {
            drop_names: self
                .names
                .iter()
                .filter(|(_, i)| *i == id)
                .map(|(n, _)| n.clone())
                .collect(),
            ..Change::default()
        };
        if hide {
            change.hide_images.push(*id);
        } else {
            change.drop_images.push(*id);
            change.drop_layers = distinct(&entry.kept.layers)
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
        self.names.retain(|_, id| *id != removal.id);
        if removal.hide {
            if let Some(entry) = self.images.get_mut(&removal.id) {
                entry.leaving = false;
                entry.kept.hidden = true;
            }
            return Vec::new();
        }
        let Some(entry) = self.images.remove(&removal.id) else {
            return Vec::new();
        };
        let mut unused = Vec::new();
        for id in distinct(&entry.kept.layers) {
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

    /// Hidden images that nobody uses any more.
    pub(crate) fn abandoned(&self) -> Vec<ImageId> {
        self.images
            .iter()
            .filter(|(id, entry)| entry.kept.hidden && !entry.leaving && !self.in_use(id))
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

    /// Records a snapshot; its image stays until the snapshot is gone.
    pub(crate) fn add_snapshot(&mut self, owner: &str, image: &ImageId) -> bool {
        let usable = self.images.get(image).is_some_and(|entry| !entry.leaving);
        if usable {
            self.snapshots.insert(owner.to_owned(), *image);
        }
        usable
    }

    /// Forgets a snapshot.
    pub(crate) fn drop_snapshot(&mut self, owner: &str) -> bool {
        self.snapshots.remove(owner).is_some()
    }

    /// The image under a snapshot.
    pub(crate) fn snapshot(&self, owner: &str) -> Option<ImageId> {
        self.snapshots.get(owner).copied()
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
        let kept = &self.images.get(image)?.kept;
        let layers = self.stack(&kept.layers);
        let lists_root = |id: &&DiffId| self.layers.get(id).is_some_and(|l| l.occupied.root);
        Some(View {
            root: layers.iter().find(lists_root).copied(),
            patched: kept.patched,
            layers,
        })
    }

    /// Whether an image has a patch; `None` when it is not there.
    pub(crate) fn is_patched(&self, image: &ImageId) -> Option<bool> {
        Some(self.images.get(image)?.kept.patched)
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
mod tests {
    use super::*;
    use crate::digest::Digest;

    fn layer(n: u8) -> DiffId {
        DiffId(Digest::of(&[n]))
    }

    fn image(n: u8, layers: &[u8], names: &[&str]) -> NewImage {
        NewImage {
            id: ImageId(Digest::of(&[n, n])),
            record: ImageRecord {
                patched: false,
                config: "{}".into(),
                layers: layers.iter().map(|l| layer(*l)).collect(),
                size: 1,
                hidden: false,
            },
            summary: Summary::default(),
            names: names.iter().map(ToString::to_string).collect(),
        }
    }

    fn pull(state: &mut State, new: &NewImage) {
        for id in &new.record.layers {
            if state.hold(id).is_none() {
                state.installed(
                    *id,
                    Occupied {
                        root: true,
                        bytes: 10,
                        inodes: 1,
                        opaque: false,
                    },
                );
            }
        }
        state.committed(new.clone());
        for id in &new.record.layers {
            assert!(!state.unhold(id), "a committed layer has to stay");
        }
    }

    fn remove(state: &mut State, new: &NewImage) -> Vec<DiffId> {
        let removal = state.begin_removal(&new.id).unwrap();
        let mut gone = state.removed(&removal);
        gone.sort_unstable();
        gone
    }

    #[test]
    fn shared_layers_go_with_the_last_image() {
        let mut state = State::default();
        let (a, b) = (
            image(1, &[1, 2, 2], &["r/a:1"]),
            image(2, &[1, 3], &["r/b:1"]),
        );
        pull(&mut state, &a);
        pull(&mut state, &b);
        assert_eq!(state.occupied(), (30, 3));
        assert_eq!(remove(&mut state, &a), vec![layer(2)]);
        let mut both = vec![layer(1), layer(3)];
        both.sort_unstable();
        assert_eq!(remove(&mut state, &b), both);
        assert_eq!(state.occupied(), (0, 0));
    }

    #[test]
    fn a_layer_held_by_a_pull_outlives_its_last_image() {
        let mut state = State::default();
        let a = image(1, &[1], &["r/a:1"]);
        pull(&mut state, &a);
        assert!(state.hold(&layer(1)).is_some());
        assert_eq!(remove(&mut state, &a), vec![]);
        assert!(
            !state.is_durable(&[layer(1)]),
            "the next commit has to write its record"
        );
        assert!(state.unhold(&layer(1)));
        assert!(!state.has_layer(&layer(1)));
    }

    #[test]
    fn retagging_moves_the_tag_and_keeps_the_old_image() {
        let mut state = State::default();
        let a = image(1, &[1], &["r/a:1", "r/a@sha256:x"]);
        let b = image(2, &[2], &["r/a:1", "r/a@sha256:y"]);
        pull(&mut state, &a);
        pull(&mut state, &b);
        let catalog = state.catalog();
        assert!(catalog.get(&a.id).unwrap().tags.is_empty());
        assert_eq!(catalog.get(&a.id).unwrap().digests, ["r/a@sha256:x"]);
        assert_eq!(catalog.get(&b.id).unwrap().tags, ["r/a:1"]);
    }

    #[test]
    fn an_image_in_use_hides_and_goes_with_its_last_user() {
        let mut state = State::default();
        let a = image(1, &[1], &["r/a:1"]);
        pull(&mut state, &a);
        assert!(state.lease(&a.id, "c1"));
        assert!(state.add_snapshot("c1", &a.id));
        assert_eq!(remove(&mut state, &a), vec![]);
        assert!(state.catalog().list().is_empty());
        assert!(state.begin_removal(&a.id).is_none(), "hidden already");
        assert!(state.view(&a.id).is_some());
        state.release("c1");
        assert!(state.abandoned().is_empty());
        state.drop_snapshot("c1");
        assert_eq!(state.abandoned(), vec![a.id]);
        assert_eq!(remove(&mut state, &a), vec![layer(1)]);
    }

    #[test]
    fn a_user_that_goes_while_the_image_is_hidden_leaves_it_abandoned() {
        let mut state = State::default();
        let a = image(1, &[1], &["r/a:1"]);
        pull(&mut state, &a);
        state.lease(&a.id, "pod");
        let removal = state.begin_removal(&a.id).unwrap();
        assert!(removal.hide);
        state.release("pod");
        assert!(state.abandoned().is_empty());
        state.removed(&removal);
        assert_eq!(state.abandoned(), vec![a.id]);
    }

    #[test]
    fn pulling_a_hidden_image_shows_it_again() {
        let mut state = State::default();
        let a = image(1, &[1], &["r/a:1"]);
        pull(&mut state, &a);
        state.add_snapshot("c1", &a.id);
        remove(&mut state, &a);
        pull(&mut state, &a);
        state.drop_snapshot("c1");
        assert!(state.abandoned().is_empty());
        assert_eq!(state.catalog().list().len(), 1);
    }

    #[test]
    fn nobody_can_lease_an_image_on_its_way_out() {
        let mut state = State::default();
        let a = image(1, &[1], &["r/a:1"]);
        pull(&mut state, &a);
        let removal = state.begin_removal(&a.id).unwrap();
        assert!(!state.lease(&a.id, "c1") && !state.add_snapshot("c1", &a.id));
        state.removal_failed(&removal);
        assert!(state.lease(&a.id, "c1"));
    }

    #[test]
    fn an_opaque_root_hides_the_layers_below() {
        let mut state = State::default();
        state.installed(layer(1), Occupied::default());
        state.installed(
            layer(2),
            Occupied {
                opaque: true,
                ..Occupied::default()
            },
        );
        state.installed(layer(3), Occupied::default());
        let a = image(1, &[1, 2, 3], &[]);
        state.committed(a.clone());
        assert_eq!(state.view(&a.id).unwrap().layers, vec![layer(3), layer(2)]);
    }

    #[test]
    fn a_layer_listed_twice_is_stacked_once_at_its_topmost_place() {
        let mut state = State::default();
        for n in 1..4 {
            state.installed(layer(n), Occupied::default());
        }
        let a = image(1, &[1, 2, 1, 3, 2], &[]);
        state.committed(a.clone());
        assert_eq!(
            state.view(&a.id).unwrap().layers,
            vec![layer(2), layer(3), layer(1)]
        );
    }

    #[test]
    fn images_that_miss_a_layer_are_reported_after_loading() {
        let contents = Contents {
            images: vec![(image(1, &[1], &[]).id, Kept::of(image(1, &[1], &[]).record))],
            names: vec![("r/a:1".into(), image(1, &[], &[]).id)],
            layers: vec![(layer(1), Occupied::default())],
        };
        let (state, broken) = State::load(contents, &Present::default());
        assert_eq!(broken, vec![image(1, &[], &[]).id]);
        assert!(state.catalog().list().is_empty());
    }
}

//! Images as callers see them, and the snapshot that answers for them.
//!
//! A [`Catalog`] is immutable: every change publishes a new one, so that list
//! and find take no lock that work holds and never touch the disk.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, ImageId};
use crate::reference::Reference;

/// Shortest prefix of an id that finds an image.
const MIN_PREFIX: usize = 6;

/// One image.
#[derive(Debug, Clone)]
pub struct Image {
    /// The digest of the configuration.
    pub id: ImageId,
    /// Names with tags, sorted.
    pub tags: Vec<String>,
    /// Names with a manifest's digest, the latest last: of each repository the last few.
    pub digests: Vec<String>,
    /// For each tag the name with the digest that it stood for when it was pulled, where
    /// that is one of `digests`.
    pub resolved: BTreeMap<String, String>,
    /// Bytes on disk.
    pub size: u64,
    /// Never to be collected by the kubelet.
    pub pinned: bool,
    /// What its configuration says of every container's process.
    pub summary: Summary,
}

/// What of a configuration is in memory for as long as the image is there: few bytes,
/// whatever an image says. The rest is read when a container is made of it
/// ([`ImageStore::process`](crate::ImageStore::process)).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// `User`: `NAME-OR-ID[:GROUP]`; empty when it names none.
    pub user: String,
    /// `StopSignal`, by name or number.
    pub stop_signal: Option<String>,
}

impl Summary {
    pub(crate) fn of(config: &oci_spec::image::Config) -> Self {
        Self {
            user: config.user().clone().unwrap_or_default(),
            stop_signal: config.stop_signal().clone(),
        }
    }
}

/// All images at one moment.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    images: BTreeMap<ImageId, Arc<Image>>,
    names: HashMap<String, ImageId>,
}

impl Catalog {
    /// Builds the snapshot from images and the names in them.
    #[must_use]
    pub(crate) fn new(images: impl IntoIterator<Item = Arc<Image>>) -> Self {
        let mut catalog = Self::default();
        for image in images {
            for name in image.tags.iter().chain(&image.digests) {
                catalog.names.insert(name.clone(), image.id);
            }
            catalog.images.insert(image.id, image);
        }
        catalog
    }

    /// All images, by id.
    #[must_use]
    pub(crate) fn list(&self) -> Vec<Arc<Image>> {
        self.images.values().cloned().collect()
    }

    /// The image of this id.
    #[cfg(test)]
    pub(crate) fn get(&self, id: &ImageId) -> Option<&Arc<Image>> {
        self.images.get(id)
    }

    /// Finds an image by id, name or unique prefix of an id, in this order.
    #[must_use]
    pub(crate) fn find(&self, name: &str) -> Option<Arc<Image>> {
        let id = name.parse::<Digest>().or_else(|_| Digest::from_hex(name));
        if let Ok(id) = id {
            return self.images.get(&ImageId(id)).cloned();
        }
        self.by_name(name).or_else(|| self.by_prefix(name))
    }

    fn by_name(&self, name: &str) -> Option<Arc<Image>> {
        let reference: Reference = name.parse().ok()?;
        let key = match reference.digest() {
            Some(digest) => reference.at(digest),
            None => reference.tagged()?,
        };
        self.images.get(self.names.get(&key)?).cloned()
    }

    fn by_prefix(&self, prefix: &str) -> Option<Arc<Image>> {
        let hex = prefix.strip_prefix("sha256:").unwrap_or(prefix);
        let valid = hex.len() >= MIN_PREFIX
            && hex
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if !valid {
            return None;
        }
        let mut matching = self
            .images
            .values()
            .filter(|image| image.id.hex().starts_with(hex));
        let found = matching.next()?;
        matching.next().is_none().then(|| Arc::clone(found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(hex: &str) -> ImageId {
        ImageId(Digest::from_hex(&format!("{hex}{}", "0".repeat(64 - hex.len()))).unwrap())
    }

    fn image(hex: &str, tags: &[&str], digests: &[&str]) -> Arc<Image> {
        Arc::new(Image {
            id: id(hex),
            tags: tags.iter().map(ToString::to_string).collect(),
            digests: digests.iter().map(ToString::to_string).collect(),
            resolved: BTreeMap::new(),
            size: 1,
            pinned: false,
            summary: Summary::default(),
        })
    }

    #[test]
    fn every_spelling_finds_the_image() {
        let digest = format!("docker.io/library/busybox@sha256:{}", "ab".repeat(32));
        let catalog = Catalog::new([
            image("abcdef1", &["docker.io/library/busybox:latest"], &[&digest]),
            image(
                "abcdef2",
                &["r.io:5/x/y:1", "docker.io/library/abcdef1:latest"],
                &[],
            ),
        ]);
        let find = |name: &str| catalog.find(name).map(|i| i.id);
        for name in [
            "busybox",
            "busybox:latest",
            "docker.io/busybox",
            &digest,
            &format!("busybox@sha256:{}", "ab".repeat(32)),
            &format!("busybox:7@sha256:{}", "ab".repeat(32)),
            &id("abcdef1").to_string(),
            &id("abcdef1").hex(),
            "sha256:abcdef1",
            "abcdef10",
        ] {
            assert_eq!(find(name), Some(id("abcdef1")), "{name}");
        }
        assert_eq!(
            find("abcdef1"),
            Some(id("abcdef2")),
            "a name goes before a prefix"
        );
        assert_eq!(find("r.io:5/x/y:1"), Some(id("abcdef2")));
        for name in [
            "abcdef",
            "abcde",
            "busybox:1",
            "r.io:5/x/y",
            "",
            "@",
            "sha256:",
            "ABCDEF1",
        ] {
            assert_eq!(find(name), None, "{name}");
        }
    }
}

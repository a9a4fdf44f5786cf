//! Images from disk: OCI layouts, OCI archives and what `docker save` writes.
//!
//! Owns reading these forms; storing goes the way of every pull, with every
//! digest verified. Archives are read in place by offset, so a plain one is
//! not written twice; a compressed one is decompressed into an unnamed file
//! first. A crash leaves only staging.

mod archive;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::Deserialize;

use crate::db::ImageRecord;
use crate::depot::{Depot, LayerHold};
use crate::digest::{DiffId, Digest, ImageId, LayerDigest};
use crate::error::{ImportError, PullError};
use crate::layer::{Receiving, Wanted, receive};
use crate::manifest::{Config, Descriptor, Document, Index, MAX_CONFIG, MAX_MANIFEST, Manifest};
use crate::platform::Machine;
use crate::reference::Reference;
use crate::state::NewImage;
use crate::unpack::Limits;

use archive::Source;

const NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const MAX_NESTING: usize = 4;

/// One image of an archive, found but not yet stored.
struct Found {
    config: Config,
    layers: Vec<Part>,
    manifest: Option<Digest>,
    names: Vec<String>,
}

/// A layer as the archive has it.
struct Part {
    diff_id: DiffId,
    blob: Option<LayerDigest>,
    size: Option<u64>,
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// Imports everything for this machine that is at `path`.
pub(crate) fn import(
    depot: &Arc<Depot>,
    path: &Path,
    name: Option<&str>,
    limits: &Limits,
) -> Result<Vec<ImageId>, ImportError> {
    let source = Source::open(path)?;
    let reader = Reading {
        source,
        path,
        machine: Machine::current(),
    };
    let mut found = reader.find()?;
    if let Some(name) = name {
        let [only] = found.as_mut_slice() else {
            let count = found.len();
            return Err(ImportError::Ambiguous {
                path: path.to_owned(),
                count,
            });
        };
        only.names = vec![name.to_owned()];
    }
    let mut ids = Vec::new();
    for image in found {
        let id = reader.store(depot, image, limits)?;
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    Ok(ids)
}

struct Reading<'a> {
    source: Source,
    path: &'a Path,
    machine: Machine,
}

impl Reading<'_> {
    fn find(&self) -> Result<Vec<Found>, ImportError> {
        let mut found = Vec::new();
        if self.source.has("index.json") {
            let bytes = self.small("index.json", MAX_MANIFEST)?;
            match Document::parse(&bytes, None).map_err(|e| self.image(e))? {
                Document::Index(index) => self.walk(&index, 0, &mut found)?,
                Document::Manifest(_) => return Err(self.not_an_image("index.json is no index")),
            }
        } else if self.source.has("manifest.json") {
            let bytes = self.small("manifest.json", MAX_MANIFEST)?;
            let saved: Vec<Saved> = crate::json::parse(&bytes)
                .map_err(|e| self.not_an_image(&format!("manifest.json: {e}")))?;
            for image in saved {
                found.extend(self.saved(image)?);
            }
        } else {
            return Err(self.not_an_image("neither index.json nor manifest.json is there"));
        }
        if found.is_empty() {
            let reason = format!("no image in it is for {}", self.machine);
            return Err(self.not_an_image(&reason));
        }
        Ok(found)
    }

    /// Each entry of a layout's index is an image or a list of platforms.
    fn walk(&self, index: &Index, depth: usize, out: &mut Vec<Found>) -> Result<(), ImportError> {
        if depth > MAX_NESTING {
            return Err(self.not_an_image("indexes nested more than four deep"));
        }
        let entries: Vec<&Descriptor> = if depth == 0 {
            index.manifests.iter().collect()
        } else {
            index.candidates(&self.machine)
        };
        for entry in entries {
            if entry
                .platform
                .as_ref()
                .is_some_and(|p| !self.machine.runs(p))
            {
                continue;
            }
            let bytes = self.blob(&entry.digest, "manifest", MAX_MANIFEST)?;
            let first = out.len();
            match Document::parse(&bytes, Some(&entry.media_type)).map_err(|e| self.image(e))? {
                Document::Index(inner) => self.walk(&inner, depth + 1, out)?,
                Document::Manifest(manifest) => {
                    out.extend(self.manifest(&manifest, entry.digest)?);
                }
            }
            let names = names_of(entry);
            for image in out.iter_mut().skip(first) {
                if depth == 0 && !names.is_empty() {
                    image.names.clone_from(&names);
                    // What pulls by this name would see is the entry itself.
                    image.manifest = Some(entry.digest);
                }
            }
        }
        Ok(())
    }

    fn manifest(&self, manifest: &Manifest, digest: Digest) -> Result<Option<Found>, ImportError> {
        manifest.check().map_err(|e| self.image(e))?;
        let id = ImageId(manifest.config.digest);
        let bytes = self.blob(&id.0, "configuration", MAX_CONFIG)?;
        let config = Config::parse(id, &bytes).map_err(|e| self.image(e))?;
        if !self.machine.runs(&config.platform) {
            return Ok(None);
        }
        let layers = manifest.layers(&config).map_err(|e| self.image(e))?;
        let part = |layer: crate::manifest::Layer| Part {
            diff_id: layer.diff_id,
            blob: Some(layer.blob),
            size: Some(layer.size),
            name: blob_name(&layer.blob.0),
        };
        let layers = layers.into_iter().map(part).collect();
        Ok(Some(Found {
            config,
            layers,
            manifest: Some(digest),
            names: Vec::new(),
        }))
    }

    fn saved(&self, saved: Saved) -> Result<Option<Found>, ImportError> {
        let bytes = self.small(&saved.config, MAX_CONFIG)?;
        let id = ImageId(Digest::of(&bytes));
        let config = Config::parse(id, &bytes).map_err(|e| self.image(e))?;
        if !self.machine.runs(&config.platform) {
            return Ok(None);
        }
        let names = saved.layers.unwrap_or_default();
        if names.len() != config.diff_ids.len() {
            return Err(self.not_an_image("manifest.json and the configuration disagree"));
        }
        let part = |(name, diff_id): (String, &DiffId)| Part {
            diff_id: *diff_id,
            blob: None,
            size: None,
            name,
        };
        let layers = names.into_iter().zip(&config.diff_ids).map(part).collect();
        let names = saved.repo_tags.unwrap_or_default();
        Ok(Some(Found {
            config,
            layers,
            manifest: None,
            names,
        }))
    }

    fn store(
        &self,
        depot: &Arc<Depot>,
        image: Found,
        limits: &Limits,
    ) -> Result<ImageId, ImportError> {
        let mut names = Vec::new();
        for name in &image.names {
            let reference: Reference = name.parse().map_err(|source| ImportError::BadName {
                name: name.clone(),
                source,
            })?;
            names.extend(reference.tagged());
            names.extend(image.manifest.map(|digest| reference.at(digest)));
        }
        let names = names.into_iter().map(|name| (name, image.manifest));
        let mut holds: Vec<LayerHold> = Vec::new();
        for part in &image.layers {
            holds.push(self.layer(depot, part, limits)?);
        }
        let id = image.config.id;
        let new = NewImage {
            id,
            record: ImageRecord {
                layers: image.config.diff_ids,
                summary: image.config.summary,
                ..ImageRecord::default()
            },
            config: image.config.texts,
            names: names.collect(),
        };
        depot.commit(new).map_err(|e| self.image(e))?;
        drop(holds);
        Ok(id)
    }

    fn layer(
        &self,
        depot: &Arc<Depot>,
        part: &Part,
        limits: &Limits,
    ) -> Result<LayerHold, ImportError> {
        if let Some(hold) = depot.hold(&part.diff_id) {
            return Ok(hold);
        }
        let (reader, _) = self.source.read(&part.name)?;
        let wanted = Wanted {
            diff_id: part.diff_id,
            blob: part.blob,
            size: part.size,
        };
        let (staging, dir) = depot.layout.stage().map_err(|e| {
            self.image(PullError::io(
                "make staging below",
                depot.layout.images(),
                e,
            ))
        })?;
        let how = Receiving {
            limits,
            stop: &AtomicBool::new(false),
            // One layer at a time.
            budget: None,
        };
        let unpacked = receive(reader, &wanted, dir, &how)
            .map_err(|e| self.image(PullError::layer(part.diff_id, &staging.path(), e)))?;
        depot
            .install(staging, part.diff_id, &unpacked)
            .map_err(|e| self.image(e))
    }

    fn blob(&self, digest: &Digest, what: &str, limit: u64) -> Result<Vec<u8>, ImportError> {
        let bytes = self.small(&blob_name(digest), limit)?;
        let got = Digest::of(&bytes);
        if got != *digest {
            let what = what.to_owned();
            return Err(self.image(PullError::DigestMismatch {
                what,
                want: *digest,
                got,
            }));
        }
        Ok(bytes)
    }

    fn small(&self, name: &str, limit: u64) -> Result<Vec<u8>, ImportError> {
        let (reader, size) = self.source.read(name)?;
        if size > limit {
            let what = name.to_owned();
            return Err(self.image(PullError::TooLarge { what, size, limit }));
        }
        let mut bytes = Vec::new();
        reader
            .take(limit)
            .read_to_end(&mut bytes)
            .map_err(|source| ImportError::Io {
                step: "read",
                path: self.path.to_owned(),
                source,
            })?;
        Ok(bytes)
    }

    fn image(&self, source: PullError) -> ImportError {
        ImportError::Image {
            path: PathBuf::from(self.path),
            source,
        }
    }

    fn not_an_image(&self, reason: &str) -> ImportError {
        ImportError::NotAnImage {
            path: self.path.to_owned(),
            reason: reason.to_owned(),
        }
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The full names that an entry carries. A bare tag (`latest`), as the layout's
/// own standard has it, says nothing about the repository and is no name.
fn names_of(entry: &Descriptor) -> Vec<String> {
    let Some(notes) = &entry.annotations else {
        return Vec::new();
    };
    if let Some(name) = notes.get(NAME) {
        return vec![name.clone()];
    }
    match notes.get(REF_NAME) {
        Some(name) if name.contains(['/', ':', '@']) && name.parse::<Reference>().is_ok() => {
            vec![name.clone()]
        }
        _ => Vec::new(),
    }
}

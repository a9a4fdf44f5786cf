//! The database of images: what survives a restart.
//!
//! Owns `images.redb` and its format. Every change is one transaction, on disk
//! when the call returns; whoever calls has the layers' data on disk before. A
//! crash leaves the last whole transaction.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

use crate::digest::{DiffId, ImageId};
use crate::error::{Cause, OpenError};
use crate::unpack::Occupied;

const FORMAT: u64 = 1;
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const IMAGES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("images");
const NAMES: TableDefinition<'_, &str, &str> = TableDefinition::new("names");
const LAYERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("layers");

/// What is kept of one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    /// The configuration's exact bytes: the id is their digest.
    pub config: String,
    /// Layers from the lowest to the topmost.
    pub layers: Vec<DiffId>,
    /// Bytes on disk of layers and configuration.
    pub size: u64,
    /// Removed by its users, but still under a snapshot.
    #[serde(default)]
    pub hidden: bool,
}

/// All that the database holds.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    /// Images.
    pub images: Vec<(ImageId, ImageRecord)>,
    /// Tags and digest references and the images they name.
    pub names: Vec<(String, ImageId)>,
    /// Layers and what they occupy.
    pub layers: Vec<(DiffId, Occupied)>,
}

/// One change.
#[derive(Debug, Default)]
pub(crate) struct Change {
    /// Images to write.
    pub put_images: Vec<(ImageId, ImageRecord)>,
    /// Images to delete.
    pub drop_images: Vec<ImageId>,
    /// Names to write.
    pub put_names: Vec<(String, ImageId)>,
    /// Names to delete.
    pub drop_names: Vec<String>,
    /// Layers to write.
    pub put_layers: Vec<(DiffId, Occupied)>,
    /// Layers to delete.
    pub drop_layers: Vec<DiffId>,
}

/// The open database.
pub(crate) struct Db {
    inner: Database,
}

impl Db {
    /// Opens or makes the database; one process at a time.
    pub(crate) fn open(path: &Path) -> Result<Self, OpenError> {
        let inner = Database::create(path).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => OpenError::InUse {
                path: path.to_owned(),
            },
            other => database("open", path, other),
        })?;
        let db = Self { inner };
        db.prepare(path)?;
        Ok(db)
    }

    fn prepare(&self, path: &Path) -> Result<(), OpenError> {
        let fail = |e: redb::Error| database("prepare", path, e);
        let txn = self.inner.begin_write().map_err(|e| fail(e.into()))?;
        let found = {
            let mut meta = txn.open_table(META).map_err(|e| fail(e.into()))?;
            let found = meta
                .get("format")
                .map_err(|e| fail(e.into()))?
                .map(|v| v.value());
            if found.is_none() {
                meta.insert("format", FORMAT).map_err(|e| fail(e.into()))?;
            }
            found.unwrap_or(FORMAT)
        };
        if found != FORMAT {
            return Err(OpenError::Format {
                path: path.to_owned(),
                found,
                known: FORMAT,
            });
        }
        txn.open_table(IMAGES).map_err(|e| fail(e.into()))?;
        txn.open_table(NAMES).map_err(|e| fail(e.into()))?;
        txn.open_table(LAYERS).map_err(|e| fail(e.into()))?;
        txn.commit().map_err(|e| fail(e.into()))
    }

    /// Reads everything. A record that cannot be read is an error: dropping
    /// it would drop an image without a word.
    pub(crate) fn load(&self, path: &Path) -> Result<Contents, OpenError> {
        self.read().map_err(|source| OpenError::Database {
            step: "read",
            path: PathBuf::from(path),
            source,
        })
    }

    fn read(&self) -> Result<Contents, Cause> {
        let txn = self.inner.begin_read().map_err(cause)?;
        let mut out = Contents::default();
        for item in txn
            .open_table(IMAGES)
            .map_err(cause)?
            .iter()
            .map_err(cause)?
        {
            let (id, record) = item.map_err(cause)?;
            let record = serde_json::from_slice(record.value()).map_err(cause)?;
            out.images
                .push((id.value().parse().map_err(cause)?, record));
        }
        for item in txn
            .open_table(NAMES)
            .map_err(cause)?
            .iter()
            .map_err(cause)?
        {
            let (name, id) = item.map_err(cause)?;
            out.names
                .push((name.value().to_owned(), id.value().parse().map_err(cause)?));
        }
        for item in txn
            .open_table(LAYERS)
            .map_err(cause)?
            .iter()
            .map_err(cause)?
        {
            let (id, occupied) = item.map_err(cause)?;
            let occupied = serde_json::from_slice(occupied.value()).map_err(cause)?;
            out.layers
                .push((id.value().parse().map_err(cause)?, occupied));
        }
        Ok(out)
    }

    /// Makes one change durable, wholly or not at all.
    pub(crate) fn apply(&self, change: &Change) -> Result<(), Cause> {
        let txn = self.inner.begin_write().map_err(cause)?;
        {
            let mut images = txn.open_table(IMAGES).map_err(cause)?;
            for id in &change.drop_images {
                images.remove(&*id.to_string()).map_err(cause)?;
            }
            for (id, record) in &change.put_images {
                let bytes = serde_json::to_vec(record).map_err(cause)?;
                images.insert(&*id.to_string(), &bytes[..]).map_err(cause)?;
            }
            let mut names = txn.open_table(NAMES).map_err(cause)?;
            for name in &change.drop_names {
                names.remove(name.as_str()).map_err(cause)?;
            }
            for (name, id) in &change.put_names {
                names
                    .insert(name.as_str(), &*id.to_string())
                    .map_err(cause)?;
            }
            let mut layers = txn.open_table(LAYERS).map_err(cause)?;
            for id in &change.drop_layers {
                layers.remove(&*id.to_string()).map_err(cause)?;
            }
            for (id, occupied) in &change.put_layers {
                let bytes = serde_json::to_vec(occupied).map_err(cause)?;
                layers.insert(&*id.to_string(), &bytes[..]).map_err(cause)?;
            }
        }
        txn.commit().map_err(cause)
    }
}

fn cause(error: impl std::error::Error + Send + Sync + 'static) -> Cause {
    Arc::new(error)
}

fn database(
    step: &'static str,
    path: &Path,
    error: impl std::error::Error + Send + Sync + 'static,
) -> OpenError {
    OpenError::Database {
        step,
        path: path.to_owned(),
        source: Arc::new(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    #[test]
    fn changes_survive_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let id = ImageId(Digest::of(b"i"));
        let layer = DiffId(Digest::of(b"l"));
        let record = ImageRecord {
            config: "{}".into(),
            layers: vec![layer],
            size: 3,
            hidden: false,
        };
        let occupied = Occupied {
            bytes: 1,
            inodes: 2,
            opaque: true,
        };
        let db = Db::open(&path).unwrap();
        db.apply(&Change {
            put_images: vec![(id, record.clone())],
            put_names: vec![("a".into(), id), ("b".into(), id)],
            put_layers: vec![(layer, occupied)],
            ..Change::default()
        })
        .unwrap();
        db.apply(&Change {
            drop_names: vec!["a".into()],
            ..Change::default()
        })
        .unwrap();
        drop(db);
        let got = Db::open(&path).unwrap().load(&path).unwrap();
        assert_eq!(got.images, vec![(id, record)]);
        assert_eq!(got.names, vec![("b".into(), id)]);
        assert_eq!(got.layers, vec![(layer, occupied)]);
    }

    #[test]
    fn second_process_is_told_that_the_store_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let _first = Db::open(&path).unwrap();
        assert!(matches!(Db::open(&path), Err(OpenError::InUse { .. })));
    }

    #[test]
    fn other_format_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let db = Db::open(&path).unwrap();
        let txn = db.inner.begin_write().unwrap();
        txn.open_table(META).unwrap().insert("format", 99).unwrap();
        txn.commit().unwrap();
        drop(db);
        assert!(matches!(
            Db::open(&path),
            Err(OpenError::Format { found: 99, .. })
        ));
    }
}

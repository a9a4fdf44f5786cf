//! The database of images: what survives a restart.
//!
//! Owns `images.redb` and its format. Every change is one transaction, on disk
//! when the call returns; whoever calls has the layers' data on disk before. A
//! crash leaves the last whole transaction.
//!
//! All of it is read at the start and is in memory from then on, so it is little for
//! each image: configurations, which may have mebibytes, are files (`configs`).

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use redb::{
    Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, TableError,
};
use serde::{Deserialize, Serialize};

use crate::digest::{DiffId, Digest, ImageId};
use crate::error::{Cause, OpenError, is_disk_full};
use crate::image::Summary;
use crate::unpack::Occupied;

const FORMAT: u64 = 2;
/// Bytes of pages that the database keeps in memory.
const CACHE: usize = 4 << 20;
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const IMAGES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("images");
const NAMES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("names");
const LAYERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("layers");

/// What is kept of one image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    /// Layers from the lowest to the topmost.
    pub layers: Vec<DiffId>,
    /// Bytes on disk of layers and configuration.
    pub size: u64,
    /// Bytes on disk of the configuration alone.
    pub config_bytes: u64,
    /// What of the configuration lists show.
    pub summary: Summary,
    /// Removed by its users, but still under a snapshot.
    #[serde(default)]
    pub hidden: bool,
    /// It has a patch (see `patch`).
    #[serde(default)]
    pub patched: bool,
}

/// What a tag or a digest reference names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Named {
    /// The image.
    pub image: ImageId,
    /// The digest of the manifest or index that the name stood for when it was pulled.
    pub manifest: Option<Digest>,
    /// Counts up with each commit: the higher the later.
    pub number: u64,
}

/// All that the database holds.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    /// Images.
    pub images: Vec<(ImageId, ImageRecord)>,
    /// Tags and digest references.
    pub names: Vec<(String, Named)>,
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
    pub put_names: Vec<(String, Named)>,
    /// Names to delete.
    pub drop_names: Vec<String>,
    /// Layers to write.
    pub put_layers: Vec<(DiffId, Occupied)>,
    /// Layers to delete.
    pub drop_layers: Vec<DiffId>,
}

/// The database, open between failures: after one failed write it answers
/// nothing more until it is opened again.
pub(crate) struct Db {
    path: PathBuf,
    inner: Mutex<Option<Database>>,
}

/// Why a change is not in the database.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DbError {
    /// The database refused it.
    #[error("write the database")]
    Write(#[source] redb::Error),
    /// A record cannot be written as JSON.
    #[error("encode a record")]
    Encode(#[source] serde_json::Error),
}

impl DbError {
    /// Whether the disk is full.
    pub(crate) fn is_disk_full(&self) -> bool {
        matches!(self, Self::Write(redb::Error::Io(error)) if is_disk_full(error))
    }

    fn closes_the_database(&self) -> bool {
        matches!(
            self,
            Self::Write(redb::Error::Io(_) | redb::Error::PreviousIo)
        )
    }
}

impl Db {
    /// Opens or makes the database; one process at a time.
    pub(crate) fn open(path: &Path) -> Result<Self, OpenError> {
        let inner = builder().create(path).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => OpenError::InUse {
                path: path.to_owned(),
            },
            other => failed("open", path, other),
        })?;
        match format_of(&inner).map_err(|source| failed("read", path, source))? {
            Some(FORMAT) => {}
            Some(found) => {
                return Err(OpenError::Format {
                    path: path.to_owned(),
                    found,
                    known: FORMAT,
                });
            }
            // Written only when it is new: a full disk must not keep a store closed.
            None => prepare(&inner).map_err(|source| failed("prepare", path, source))?,
        }
        Ok(Self {
            path: path.to_owned(),
            inner: Mutex::new(Some(inner)),
        })
    }

    /// Reads everything. A record that cannot be read is an error: dropping
    /// it would drop an image without a word.
    pub(crate) fn load(&self) -> Result<Contents, OpenError> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(db) = inner.as_ref() else {
            return Ok(Contents::default());
        };
        read(db).map_err(|source| OpenError::Database {
            step: "read",
            path: self.path.clone(),
            source,
        })
    }

    /// Makes one change durable, wholly or not at all.
    pub(crate) fn apply(&self, change: &Change) -> Result<(), DbError> {
        let records = Records {
            images: encode(&change.put_images)?,
            names: encode(&change.put_names)?,
            layers: encode(&change.put_layers)?,
        };
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let db = match inner.take() {
            Some(db) => db,
            None => builder()
                .open(&self.path)
                .map_err(|e| DbError::Write(e.into()))?,
        };
        let written = write(&db, change, &records).map_err(DbError::Write);
        if !written.as_ref().is_err_and(DbError::closes_the_database) {
            *inner = Some(db);
        }
        written
    }
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE);
    builder
}

fn format_of(db: &Database) -> Result<Option<u64>, redb::Error> {
    let txn = db.begin_read()?;
    let meta = match txn.open_table(META) {
        Ok(meta) => meta,
        Err(TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Ok(meta.get("format")?.map(|v| v.value()))
}

fn prepare(db: &Database) -> Result<(), redb::Error> {
    let txn = db.begin_write()?;
    txn.open_table(META)?.insert("format", FORMAT)?;
    txn.open_table(IMAGES)?;
    txn.open_table(NAMES)?;
    txn.open_table(LAYERS)?;
    Ok(txn.commit()?)
}

fn read(db: &Database) -> Result<Contents, Cause> {
    let txn = db.begin_read().map_err(cause)?;
    let mut out = Contents::default();
    let images = txn.open_table(IMAGES).map_err(cause)?;
    for item in images.iter().map_err(cause)? {
        let (id, record) = item.map_err(cause)?;
        let record = serde_json::from_slice(record.value()).map_err(cause)?;
        out.images
            .push((id.value().parse().map_err(cause)?, record));
    }
    let names = txn.open_table(NAMES).map_err(cause)?;
    for item in names.iter().map_err(cause)? {
        let (name, named) = item.map_err(cause)?;
        let named = serde_json::from_slice(named.value()).map_err(cause)?;
        out.names.push((name.value().to_owned(), named));
    }
    let layers = txn.open_table(LAYERS).map_err(cause)?;
    for item in layers.iter().map_err(cause)? {
        let (id, occupied) = item.map_err(cause)?;
        let occupied = serde_json::from_slice(occupied.value()).map_err(cause)?;
        out.layers
            .push((id.value().parse().map_err(cause)?, occupied));
    }
    Ok(out)
}

/// Records as they stand in the database.
struct Records {
    images: Vec<(String, Vec<u8>)>,
    names: Vec<(String, Vec<u8>)>,
    layers: Vec<(String, Vec<u8>)>,
}

fn encode<K: ToString, V: Serialize>(
    records: &[(K, V)],
) -> Result<Vec<(String, Vec<u8>)>, DbError> {
    let encode = |(id, record): &(K, V)| Ok((id.to_string(), serde_json::to_vec(record)?));
    records
        .iter()
        .map(encode)
        .collect::<Result<_, _>>()
        .map_err(DbError::Encode)
}

fn write(db: &Database, change: &Change, records: &Records) -> Result<(), redb::Error> {
    let txn = db.begin_write()?;
    {
        let mut images = txn.open_table(IMAGES)?;
        for id in &change.drop_images {
            images.remove(&*id.to_string())?;
        }
        for (id, bytes) in &records.images {
            images.insert(id.as_str(), &bytes[..])?;
        }
        let mut names = txn.open_table(NAMES)?;
        for name in &change.drop_names {
            names.remove(name.as_str())?;
        }
        for (name, bytes) in &records.names {
            names.insert(name.as_str(), &bytes[..])?;
        }
        let mut layers = txn.open_table(LAYERS)?;
        for id in &change.drop_layers {
            layers.remove(&*id.to_string())?;
        }
        for (id, bytes) in &records.layers {
            layers.insert(id.as_str(), &bytes[..])?;
        }
    }
    Ok(txn.commit()?)
}

fn cause(error: impl std::error::Error + Send + Sync + 'static) -> Cause {
    Arc::new(error)
}

fn failed(
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

    #[test]
    fn changes_survive_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let id = ImageId(Digest::of(b"i"));
        let layer = DiffId(Digest::of(b"l"));
        let record = ImageRecord {
            layers: vec![layer],
            size: 3,
            config_bytes: 2,
            summary: Summary {
                user: "u".into(),
                stop_signal: None,
            },
            hidden: false,
            patched: true,
        };
        let named = Named {
            image: id,
            manifest: Some(Digest::of(b"m")),
            number: 7,
        };
        let occupied = Occupied {
            bytes: 1,
            inodes: 2,
            opaque: true,
            root: true,
        };
        let db = Db::open(&path).unwrap();
        db.apply(&Change {
            put_images: vec![(id, record.clone())],
            put_names: vec![("a".into(), named), ("b".into(), named)],
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
        let got = Db::open(&path).unwrap().load().unwrap();
        assert_eq!(got.images, vec![(id, record)]);
        assert_eq!(got.names, vec![("b".into(), named)]);
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
        let raw = db.inner.lock().unwrap().take().unwrap();
        let txn = raw.begin_write().unwrap();
        txn.open_table(META).unwrap().insert("format", 99).unwrap();
        txn.commit().unwrap();
        drop((db, raw));
        assert!(matches!(
            Db::open(&path),
            Err(OpenError::Format { found: 99, .. })
        ));
    }
}

//! The database of images: what survives a restart.
//!
//! Owns `images.redb` and its format. Every change is one transaction, on disk
//! when the call returns; whoever calls has the layers' data on disk before. A
//! crash leaves the last whole transaction.
//!
//! Configurations are here and nowhere else: they may have mebibytes, and a node
//! may have hundreds of images. Who needs one reads it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use redb::{
    Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, TableError,
};
use serde::{Deserialize, Serialize};

use crate::digest::{DiffId, ImageId};
use crate::error::{Cause, OpenError, is_disk_full};
use crate::unpack::Occupied;

const FORMAT: u64 = 1;
/// Bytes of pages that the database keeps in memory. The trees of hundreds of images
/// fit; a configuration that is larger is read from the kernel's cache of the file.
const CACHE: usize = 4 << 20;
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const IMAGES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("images");
const NAMES: TableDefinition<'_, &str, &str> = TableDefinition::new("names");
const LAYERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("layers");

/// One image as the database has it.
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
    /// It has a patch (see `patch`).
    #[serde(default)]
    pub patched: bool,
}

/// All that the database holds, with what is kept in memory of each image.
#[derive(Debug)]
pub(crate) struct Contents<T> {
    /// Images.
    pub images: Vec<(ImageId, T)>,
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
    /// Images that are only kept for their snapshots from now on.
    pub hide_images: Vec<ImageId>,
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

/// The database, open between failures: after one failed write it answers
/// nothing more until it is opened again.
pub(crate) struct Db {
    path: PathBuf,
    /// Readers do not wait for a writer: only who opens or closes it is alone.
    inner: RwLock<Option<Database>>,
}

/// Why a change is not in the database, or a record cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DbError {
    /// The database refused it.
    #[error("{0} the database")]
    Refused(&'static str, #[source] redb::Error),
    /// A record cannot be written as JSON, or is none.
    #[error("{0} a record")]
    Record(&'static str, #[source] serde_json::Error),
}

impl DbError {
    /// Whether the disk is full.
    pub(crate) fn is_disk_full(&self) -> bool {
        matches!(self, Self::Refused(_, redb::Error::Io(error)) if is_disk_full(error))
    }

    fn closes_the_database(&self) -> bool {
        matches!(
            self,
            Self::Refused(_, redb::Error::Io(_) | redb::Error::PreviousIo)
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
            inner: RwLock::new(Some(inner)),
        })
    }

    /// Reads everything, and of each image what `keep` makes of it. A record that
    /// cannot be read is an error: dropping it would drop an image without a word.
    pub(crate) fn load<T>(
        &self,
        keep: impl Fn(ImageRecord) -> T,
    ) -> Result<Contents<T>, OpenError> {
        let loaded = self.with("read", |db| Ok(read(db, &keep)));
        let loaded = loaded.map_err(cause).and_then(|loaded| loaded);
        loaded.map_err(|source| OpenError::Database {
            step: "read",
            path: self.path.clone(),
            source,
        })
    }

    /// The configuration of an image, as its registry served it.
    pub(crate) fn config(&self, id: &ImageId) -> Result<Option<String>, DbError> {
        let record = self.with("read", |db| {
            let images = db.begin_read()?.open_table(IMAGES)?;
            let record = images.get(&*id.to_string())?;
            Ok(record.map(|record| serde_json::from_slice(record.value())))
        })?;
        let record: Option<ImageRecord> = record
            .transpose()
            .map_err(|error| DbError::Record("read", error))?;
        Ok(record.map(|record| record.config))
    }

    /// Makes one change durable, wholly or not at all.
    pub(crate) fn apply(&self, change: &Change) -> Result<(), DbError> {
        let records = Records {
            images: encode(&change.put_images)?,
            layers: encode(&change.put_layers)?,
        };
        self.with("write", |db| write(db, change, &records))
    }

    /// Works with the database, opened anew if it had to be closed.
    fn with<T>(
        &self,
        step: &'static str,
        work: impl FnOnce(&Database) -> Result<T, redb::Error>,
    ) -> Result<T, DbError> {
        let refused = |error| DbError::Refused(step, error);
        let open = loop {
            let open = self.inner.read().unwrap_or_else(PoisonError::into_inner);
            if open.is_some() {
                break open;
            }
            drop(open);
            let mut closed = self.inner.write().unwrap_or_else(PoisonError::into_inner);
            if closed.is_none() {
                let opened = builder().open(&self.path);
                *closed = Some(opened.map_err(|error| refused(error.into()))?);
            }
        };
        let Some(db) = open.as_ref() else {
            unreachable!("the database was open under the lock")
        };
        let done = work(db).map_err(refused);
        drop(open);
        if done.as_ref().is_err_and(DbError::closes_the_database) {
            *self.inner.write().unwrap_or_else(PoisonError::into_inner) = None;
        }
        done
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

fn read<T>(db: &Database, keep: impl Fn(ImageRecord) -> T) -> Result<Contents<T>, Cause> {
    let txn = db.begin_read().map_err(cause)?;
    let mut out = Contents {
        images: Vec::new(),
        names: Vec::new(),
        layers: Vec::new(),
    };
    let images = txn.open_table(IMAGES).map_err(cause)?;
    for item in images.iter().map_err(cause)? {
        let (id, record) = item.map_err(cause)?;
        let record = serde_json::from_slice(record.value()).map_err(cause)?;
        out.images
            .push((id.value().parse().map_err(cause)?, keep(record)));
    }
    let names = txn.open_table(NAMES).map_err(cause)?;
    for item in names.iter().map_err(cause)? {
        let (name, id) = item.map_err(cause)?;
        out.names
            .push((name.value().to_owned(), id.value().parse().map_err(cause)?));
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
        .map_err(|error| DbError::Record("encode", error))
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
        for id in &change.hide_images {
            let id = id.to_string();
            let hidden = images
                .get(&*id)?
                .map(|record| hidden(record.value()))
                .transpose()?;
            if let Some(bytes) = hidden {
                images.insert(&*id, &bytes[..])?;
            }
        }
        let mut names = txn.open_table(NAMES)?;
        for name in &change.drop_names {
            names.remove(name.as_str())?;
        }
        for (name, id) in &change.put_names {
            names.insert(name.as_str(), &*id.to_string())?;
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

/// The record of an image with the note that it is hidden.
fn hidden(record: &[u8]) -> Result<Vec<u8>, redb::Error> {
    let broken = |error: serde_json::Error| redb::Error::Corrupted(error.to_string());
    let mut record: ImageRecord = serde_json::from_slice(record).map_err(broken)?;
    record.hidden = true;
    serde_json::to_vec(&record).map_err(broken)
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
            patched: true,
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
        db.apply(&Change {
            hide_images: vec![id, ImageId(Digest::of(b"unknown"))],
            ..Change::default()
        })
        .unwrap();
        drop(db);
        let db = Db::open(&path).unwrap();
        let got = db.load(|record| record).unwrap();
        let hidden = ImageRecord {
            hidden: true,
            ..record
        };
        assert_eq!(got.images, vec![(id, hidden)]);
        assert_eq!(db.config(&id).unwrap().as_deref(), Some("{}"));
        let unknown = ImageId(Digest::of(b"unknown"));
        assert_eq!(db.config(&unknown).unwrap(), None);
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
        let raw = db.inner.write().unwrap().take().unwrap();
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

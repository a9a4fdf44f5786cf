//! What pulls, imports and the store's other calls can fail with.
//!
//! One variant for each failure that a caller may answer differently; causes
//! are kept and shared, since several waiters may get the same failure.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::digest::{DiffId, Digest, ImageId};
use crate::hosts::HostsError;
use crate::layer::LayerError;
use crate::reference::ReferenceError;
use crate::tar::TarError;
use crate::unpack::UnpackError;

/// A cause that several waiters can hold.
pub type Cause = Arc<dyn Error + Send + Sync>;

/// Why a pull failed. Nothing of it is kept.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PullError {
    /// The name breaks the grammar.
    #[error("`{reference}` is not an image reference")]
    BadReference {
        /// What was asked for.
        reference: String,
        /// What is wrong with it.
        source: ReferenceError,
    },
    /// A `hosts.toml` cannot be used.
    #[error("the registry configuration cannot be used")]
    Hosts {
        /// The file and the key.
        source: Arc<HostsError>,
    },
    /// Neither the registry nor any mirror could be reached or did answer sense.
    #[error("registry {host} cannot be reached")]
    RegistryUnavailable {
        /// The last host tried.
        host: String,
        /// What happened there.
        source: Cause,
    },
    /// The registry wants other credentials.
    #[error("registry {host} refuses access: {reason}")]
    Unauthorized {
        /// The host that refused.
        host: String,
        /// Its words, or ours.
        reason: String,
    },
    /// The registry knows no such image.
    #[error("{reference} was not found")]
    NotFound {
        /// The normal reference.
        reference: String,
    },
    /// The image exists, but not for this machine.
    #[error("{reference} has no image for {wanted} (it offers {offered})")]
    NoMatchingPlatform {
        /// The normal reference.
        reference: String,
        /// This machine.
        wanted: String,
        /// The platforms there are.
        offered: String,
    },
    /// A manifest or configuration makes no sense.
    #[error("the {what} is invalid")]
    BadManifest {
        /// Which document.
        what: String,
        /// What is wrong with it.
        source: Cause,
    },
    /// Something other than a container image, or in a format not read here.
    #[error("the {what} has the unsupported media type `{media_type}`")]
    UnsupportedMediaType {
        /// Which part of the image.
        what: String,
        /// Its type.
        media_type: String,
    },
    /// A layer is to come from elsewhere than the registry, and that is not
    /// allowed.
    #[error(
        "the layer {layer} is to come from {url}, which is no host that foreign layers may come from"
    )]
    ForeignLayer {
        /// The layer's digest.
        layer: Digest,
        /// The first address that the manifest gives.
        url: String,
    },
    /// A document or layer is above its bound.
    #[error("the {what} has {size} bytes, above the bound of {limit}")]
    TooLarge {
        /// Which part.
        what: String,
        /// Its size, as far as known.
        size: u64,
        /// The bound.
        limit: u64,
    },
    /// The bytes are not those that the digest names.
    #[error("the {what} {want} arrived as {got}")]
    DigestMismatch {
        /// Which part.
        what: String,
        /// The digest asked for.
        want: Digest,
        /// The digest of what came.
        got: Digest,
    },
    /// More or fewer bytes came than declared.
    #[error("the {what} {digest} has {got} bytes and not {declared}")]
    SizeMismatch {
        /// Which part.
        what: String,
        /// Its digest.
        digest: Digest,
        /// The declared size.
        declared: u64,
        /// What came (for too many, where reading stopped).
        got: u64,
    },
    /// A layer's plain tar is not what the configuration names.
    #[error("the layer {want} unpacked to {got}")]
    DiffIdMismatch {
        /// The DiffID of the configuration.
        want: DiffId,
        /// The DiffID of the bytes.
        got: DiffId,
    },
    /// A layer's archive is damaged.
    #[error("the layer {layer} cannot be unpacked")]
    BadLayer {
        /// The layer.
        layer: DiffId,
        /// Where it breaks.
        source: Cause,
    },
    /// A layer's archive would do harm.
    #[error("the layer {layer} is refused for its entry {entry}: {reason}")]
    HostileEntry {
        /// The layer.
        layer: DiffId,
        /// The entry's name.
        entry: String,
        /// What it tried.
        reason: String,
    },
    /// No space is left; what the pull had written is freed.
    #[error("{step}: no space left")]
    DiskFull {
        /// What was being done.
        step: String,
        /// The kernel's answer.
        source: Cause,
    },
    /// Everyone who waited is gone.
    #[error("the pull was cancelled")]
    Cancelled,
    /// The disk failed otherwise.
    #[error("{step} {}", path.display())]
    Io {
        /// What was being done.
        step: String,
        /// Where.
        path: PathBuf,
        /// The kernel's answer.
        source: Cause,
    },
    /// The database of images failed.
    #[error("{step} in the image database")]
    Database {
        /// What was being done.
        step: &'static str,
        /// Its answer.
        source: Cause,
    },
}

impl PullError {
    pub(crate) fn io(step: impl Into<String>, path: &Path, error: io::Error) -> Self {
        if is_disk_full(&error) {
            return Self::DiskFull {
                step: step.into(),
                source: Arc::new(error),
            };
        }
        Self::Io {
            step: step.into(),
            path: path.to_owned(),
            source: Arc::new(error),
        }
    }

    /// Names the layer in what unpacking it answered.
    pub(crate) fn layer(layer: DiffId, dir: &Path, error: LayerError) -> Self {
        let what = || "layer".to_owned();
        match error {
            LayerError::Digest { want, got } => Self::DigestMismatch {
                what: what(),
                want: want.0,
                got,
            },
            LayerError::Size {
                digest,
                declared,
                got,
            } => Self::SizeMismatch {
                what: what(),
                digest: digest.0,
                declared,
                got,
            },
            LayerError::DiffId { want, got } => Self::DiffIdMismatch { want, got },
            LayerError::Compression { name } => Self::UnsupportedMediaType {
                what: what(),
                media_type: name.to_owned(),
            },
            LayerError::Unpack(UnpackError::Hostile { entry, reason }) => Self::HostileEntry {
                layer,
                entry,
                reason,
            },
            LayerError::Unpack(UnpackError::Tar(TarError::TooMany { name, limit })) => {
                let entry = crate::tar::shown(&name);
                Self::HostileEntry {
                    layer,
                    entry,
                    reason: format!("more than {limit} headers"),
                }
            }
            LayerError::Unpack(UnpackError::Tar(TarError::Unsupported { name, what })) => {
                let entry = crate::tar::shown(&name);
                Self::HostileEntry {
                    layer,
                    entry,
                    reason: format!("{what}, not supported"),
                }
            }
            LayerError::Unpack(UnpackError::Tar(TarError::Truncated { name })) => {
                let entry = crate::tar::shown(&name);
                Self::HostileEntry {
                    layer,
                    entry,
                    reason: "the archive ends inside it".into(),
                }
            }
            LayerError::Unpack(UnpackError::Io {
                step,
                entry,
                source,
            }) => Self::io(format!("{step} ({entry})"), dir, source),
            LayerError::Source(source) => Self::Io {
                step: "read layer".into(),
                path: dir.to_owned(),
                source: Arc::new(source),
            },
            other => Self::BadLayer {
                layer,
                source: Arc::new(other),
            },
        }
    }
}

/// Whether an error means that the disk (or a quota on it) is full.
pub(crate) fn is_disk_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process works in the same directory.
    #[error("another process uses the image store at {}", path.display())]
    InUse {
        /// The database.
        path: PathBuf,
    },
    /// The store was written by another version in a form not known here.
    #[error("the image store at {} has format {found}, and this version reads {known}", path.display())]
    Format {
        /// The database.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The format of this version.
        known: u64,
    },
    /// A directory cannot be made, opened or read.
    #[error("{step} {}", path.display())]
    Io {
        /// What was being done.
        step: &'static str,
        /// Where.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The database cannot be opened or read.
    #[error("{step} in the image database {}", path.display())]
    Database {
        /// What was being done.
        step: &'static str,
        /// The database.
        path: PathBuf,
        /// Its answer.
        source: Cause,
    },
}

/// Why an image cannot be removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// The database of images failed; the image is still there.
    #[error("remove the image {image} from the database")]
    Database {
        /// The image.
        image: ImageId,
        /// The database's answer.
        source: Cause,
    },
    /// The store is closing.
    #[error("the image store is closing")]
    Closed,
}

/// Why an image cannot be leased.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// There is no such image.
    #[error("image {image} is not in the store")]
    NotFound {
        /// The image.
        image: ImageId,
    },
}

/// Why the configuration of an image cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// There is no such image.
    #[error("image {image} is not in the store")]
    NotFound {
        /// The image.
        image: ImageId,
    },
    /// The disk does not give it.
    #[error("read the configuration of image {image}")]
    Io {
        /// The image.
        image: ImageId,
        /// Its answer.
        source: io::Error,
    },
}

/// Why an archive or layout cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file or directory is no image in a form known here.
    #[error("{} is no OCI layout, OCI archive or docker archive: {reason}", path.display())]
    NotAnImage {
        /// What was to be imported.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// A name in the archive or on the command line is no reference.
    #[error("`{name}` is not an image reference")]
    BadName {
        /// The name.
        name: String,
        /// What is wrong with it.
        source: ReferenceError,
    },
    /// A name was given, but there are several images to carry it.
    #[error("{} holds {count} images, and one name was given", path.display())]
    Ambiguous {
        /// The archive.
        path: PathBuf,
        /// Images in it.
        count: usize,
    },
    /// The archive names a part that it does not hold.
    #[error("{} does not hold {part}", path.display())]
    Missing {
        /// The archive.
        path: PathBuf,
        /// The part's name or digest.
        part: String,
    },
    /// Reading the archive failed.
    #[error("{step} {}", path.display())]
    Io {
        /// What was being done.
        step: &'static str,
        /// The archive.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// What is in the archive was refused, or could not be stored.
    #[error("import {}", path.display())]
    Image {
        /// The archive.
        path: PathBuf,
        /// Why.
        source: PullError,
    },
}

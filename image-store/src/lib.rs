//! Images and snapshots of one node: registry client, layers, overlay mounts
//! and garbage collection.
//!
//! Knows neither CRI nor containers: callers lease images and own snapshots by
//! names of their choice. The modules say what each owns and what a crash
//! leaves; `layout` shows the directories.

mod auth;
mod compression;
mod configs;
mod db;
mod depot;
mod digest;
mod duration;
mod error;
mod frames;
mod hosts;
mod image;
mod import;
mod join;
mod json;
mod layer;
mod layers;
mod layout;
mod manifest;
mod measure;
mod overlay;
mod patch;
mod places;
mod platform;
mod pull;
mod reference;
mod registry;
mod remove;
mod shown;
mod snapshot;
mod state;
mod store;
mod tar;
mod text;
mod trash;
mod tuning;
mod unpack;
mod usage;
mod volume;
mod windows;

pub use auth::Auth;
pub use digest::{DiffId, Digest, DigestError, ImageId, LayerDigest};
pub use duration::parse_duration;
pub use error::{
    Cause, ConfigurationError, ImportError, LeaseError, OpenError, PullError, RemoveError,
};
pub use hosts::HostsError;
pub use image::{Image, Summary};
pub use overlay::{OverlayError, Show, ShowThere, stacked_layers, try_shown};
pub use reference::{Reference, ReferenceError};
pub use snapshot::{Snapshot, SnapshotError};
pub use store::{FsInfo, ImageStore, PulledImage, StoreOptions};
pub use tuning::{Limits, Tuning};
pub use usage::Usage;
pub use volume::Filling;

//! The volumes that an image asks for (`VOLUME`): at each of these places a container
//! gets a fresh writable directory with a copy of what the image has there, whether
//! or not its root is read-only.
//!
//! The directories belong to the container's writable layer: they count with it, and
//! whatever a crash leaves of them goes with it.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use image_store::{Filling, Image, Snapshot};
use runtime::launcher::links::{clean, is_kernels};

use super::error::PodError;
use crate::model::{ContainerConfig, Mount};
use crate::spec::SpecError;

/// More of them no image has that is not made to keep an engine busy.
const MOST: usize = 256;

/// Where the image wants volumes that the request does not bring itself.
pub(super) fn places(
    image: &oci_spec::image::Config,
    config: &ContainerConfig,
) -> Result<Vec<PathBuf>, SpecError> {
    let texts = image.volumes().clone().unwrap_or_default();
    if texts.len() > MOST {
        let reason = format!("it asks for {} volumes, the most are {MOST}", texts.len());
        return Err(refused(String::new(), reason));
    }
    let mut places = BTreeSet::new();
    for text in texts {
        // A relative place is meant from the root.
        let place = clean(&Path::new("/").join(&text));
        // What is there is the kernel's, and isolation rests on it.
        if place == Path::new("/") || is_kernels(&place) || text.contains('\0') {
            return Err(refused(text, "no volume can be there".to_owned()));
        }
        let brings = |mount: &Mount| Path::new(&mount.container_path) == place;
        if !config.mounts.iter().any(brings) {
            places.insert(place);
        }
    }
    Ok(places.into_iter().collect())
}

fn refused(place: String, reason: String) -> SpecError {
    SpecError::ImageVolume { place, reason }
}

/// The bytes that volumes of an image may take in each container: they hold what the
/// image has, once, unless one is in another.
pub(super) fn most_bytes(image: &Image) -> u64 {
    image.size.saturating_mul(4).saturating_add(1 << 30)
}

/// Makes the directories and fills them, unless that is done; answers their mounts.
pub(super) fn fill(
    snapshot: &Snapshot,
    rootfs: &OwnedFd,
    places: &[PathBuf],
    mut filling: Filling,
) -> Result<Vec<Mount>, PodError> {
    let places = places.iter().enumerate();
    places
        .map(|(index, place)| {
            let host_path = snapshot.volume(&mut filling, rootfs, index, place)?;
            // Copies have the ids of what they are copied from, as the pod sees it.
            Ok(Mount::of_host(place.to_string_lossy(), host_path))
        })
        .collect()
}

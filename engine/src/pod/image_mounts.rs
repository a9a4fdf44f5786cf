//! Images as volumes of a container (`Mount.image`): which ones, for how long, and their
//! mounts.
//!
//! An image is found by its name once, when the container is asked for. It is leased like
//! the container's own until its mount is made; from then on the container's writable layer
//! keeps it (`image_store`), so that neither RemoveImage nor a restart takes it away.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use image_store::{ImageId, ShowThere};
use runtime::client::steps::mark;

use super::error::{ImageVolumeError, NoImageVolume, PodError};
use super::record::ContainerRecord;
use crate::context::Engine;
use crate::model::{ContainerConfig, Mount};
use crate::user_ns;

fn refused(mount: &Mount, source: NoImageVolume) -> PodError {
    let image = mount.image.as_ref();
    PodError::ImageVolume(Box::new(ImageVolumeError {
        container_path: mount.container_path.clone(),
        image: image.map_or_else(String::new, |image| image.name.image.clone()),
        source,
    }))
}

/// Finds out which images are meant.
///
/// # Errors
/// `ImageVolume`: one is not on the node.
pub(super) fn resolve(engine: &Engine, config: &mut ContainerConfig) -> Result<(), PodError> {
    for mount in &mut config.mounts {
        let Some(image) = &mut mount.image else {
            continue;
        };
        match engine.images.find(&image.name.image) {
            Some(found) => image.id = found.id.to_string(),
            None => return Err(refused(mount, NoImageVolume::NotPresent)),
        }
    }
    Ok(())
}

/// Leases the images of a container's volumes, with the mounts that they are for.
///
/// # Errors
/// `ImageVolume`: one is gone meanwhile.
pub(super) fn lease(
    engine: &Engine,
    record: &ContainerRecord,
) -> Result<Vec<(Mount, ImageId)>, PodError> {
    let mut leased = Vec::new();
    for mount in &record.config.mounts {
        let Some(image) = &mount.image else {
            continue;
        };
        let gone = || refused(mount, NoImageVolume::NotPresent);
        let found = engine.images.find(&image.id).ok_or_else(gone)?;
        let lease = engine.images.lease(&found.id, record.id.as_str());
        lease.map_err(|_gone| gone())?;
        leased.push((mount.clone(), found.id));
    }
    Ok(leased)
}

/// Layers with the ids of a pod's user namespace.
fn shown_with(user: &Arc<OwnedFd>) -> ShowThere {
    let user = Arc::clone(user);
    Arc::new(move |layer: &Path| user_ns::show(layer, &user))
}

/// Mounts them with the ids of the pod's user namespace, attached nowhere, by where they go in the container.
///
/// # Errors
/// `ImageVolume`: one has not the path that is asked for, or the kernel or the disk
/// refuses.
pub(super) async fn mount(
    engine: &Engine,
    record: &ContainerRecord,
    images: Vec<(Mount, ImageId)>,
    user: Option<&Arc<OwnedFd>>,
) -> Result<BTreeMap<String, OwnedFd>, PodError> {
    let mut mounted = BTreeMap::new();
    for (mount, id) in images {
        let _step = mark("image volume");
        let image = mount.image.as_ref();
        let sub_path = image.map_or_else(Default::default, |image| image.sub_path.clone());
        let owner = record.id.as_str();
        let made = engine
            .images
            .mount_image(owner, &id, &sub_path, user.map(shown_with))
            .await;
        let made = made.map_err(|error| refused(&mount, NoImageVolume::Mount(error)))?;
        mounted.insert(mount.container_path.clone(), made);
    }
    Ok(mounted)
}

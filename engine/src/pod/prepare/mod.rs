//! From a recorded container and its parts to an order to its pod's monitor.
//!
//! ```text
//! record, image, sandbox ──build──▶ specification ──adjust──▶ specification ──order──▶ message, descriptors
//! ```
//! Blocking, for a thread that may wait for the disk. What a failure leaves is
//! given back by whoever made the parts.

mod adjust;
mod build;
mod order;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use runtime::cgroup::Cgroup;
use runtime::client::CreateContainer;
use runtime::client::steps::mark;

use super::container::Sandbox;
use super::error::PodError;
use super::record::{ContainerRecord, User};
use crate::context::Engine;
use crate::model::{Bytes, Mount};
use crate::spec::Whereabouts;

/// What a container is prepared from, beside its records.
pub(super) struct Parts {
    /// What the image says of its containers' process.
    pub(super) of_image: oci_spec::image::Config,
    /// A detached mount.
    pub(super) rootfs: OwnedFd,
    /// The pod's user namespace, if it has one.
    pub(super) user: Option<Arc<OwnedFd>>,
    /// Of the image.
    pub(super) volumes: Vec<Mount>,
    /// Detached mounts of the images that the request has as volumes, by where they go.
    pub(super) images: BTreeMap<String, OwnedFd>,
    pub(super) cgroup: Cgroup,
    /// Tells whoever waits which path of the host is being looked at.
    pub(super) at: Arc<Whereabouts>,
}

/// An order, and what the record keeps of it.
pub(super) struct Prepared {
    pub(super) order: CreateContainer,
    pub(super) user: User,
    pub(super) process: oci_spec::runtime::Process,
    pub(super) raw_environment: Option<Vec<Bytes>>,
}

/// Prepares a container: in comes its record with the parts that were made for it,
/// out the order that has its monitor make it.
///
/// # Errors
/// Those of the three steps: a wish that cannot be honoured, a path of the host that
/// does not answer, a limit that the kernel refuses.
pub(super) fn prepare(
    engine: &Engine,
    sandbox: &Sandbox,
    record: &ContainerRecord,
    parts: Parts,
) -> Result<Prepared, PodError> {
    let spec = {
        let _step = mark("spec");
        let built = build::build(engine, sandbox, record, &parts)?;
        adjust::adjust(engine, record, &parts, built)?
    };
    let Parts { rootfs, cgroup, .. } = parts;
    order::order(engine, sandbox, record, spec, (rootfs, &cgroup))
}

//! ContainerStats.

use std::sync::Arc;

use proto::v1;
use tonic::Status;

use super::must_find;
use crate::context::Engine;
use crate::convert::stats;
use crate::pod::error::PodError;
use crate::stats::of_containers;
use crate::status;

/// The use of one container, whatever its state.
pub(crate) async fn handle(
    engine: &Arc<Engine>,
    request: v1::ContainerStatsRequest,
) -> Result<v1::ContainerStatsResponse, Status> {
    let v1::ContainerStatsRequest { container_id } = request;
    let unknown = PodError::NoContainer(container_id.clone());
    let found = engine.index.container(&container_id);
    let (_, container) = must_find(found, "container_id", &container_id, &unknown)?;
    let uses = of_containers(engine, vec![container])
        .await
        .map_err(|error| status::pod(&error))?;
    let mountpoint = engine.images.fs_info().mountpoint;
    let mountpoint = mountpoint.to_string_lossy();
    Ok(v1::ContainerStatsResponse {
        stats: uses.first().map(|one| stats::container(one, &mountpoint)),
    })
}

//! ListContainerStats.

use std::sync::Arc;

use proto::v1;
use tonic::Status;

use crate::context::Engine;
use crate::convert::filter::ContainerFilter;
use crate::convert::stats;
use crate::stats::of_containers;
use crate::status;

/// The use of all running containers that match.
pub(crate) async fn handle(
    engine: &Arc<Engine>,
    request: v1::ListContainerStatsRequest,
) -> Result<v1::ListContainerStatsResponse, Status> {
    let v1::ListContainerStatsRequest { filter } = request;
    let filter = ContainerFilter::from_stats(filter);
    let mut wanted = Vec::new();
    for pod in engine.index.list() {
        let matching = pod
            .containers
            .iter()
            .filter(|one| one.state.is_running() && filter.matches(&pod, one));
        wanted.extend(matching.cloned());
    }
    let uses = of_containers(engine, wanted)
        .await
        .map_err(|error| status::pod(&error))?;
    let mountpoint = engine.images.fs_info().mountpoint;
    let mountpoint = mountpoint.to_string_lossy();
    Ok(v1::ListContainerStatsResponse {
        stats: uses
            .iter()
            .map(|one| stats::container(one, &mountpoint))
            .collect(),
    })
}

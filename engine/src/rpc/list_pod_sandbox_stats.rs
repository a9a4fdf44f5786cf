//! ListPodSandboxStats.

use std::sync::Arc;

use proto::v1;
use tonic::Status;

use crate::context::Engine;
use crate::convert::filter::SandboxFilter;
use crate::convert::stats;
use crate::stats::of_pods;
use crate::status;

/// The use of all ready sandboxes that match.
pub(crate) async fn handle(
    engine: &Arc<Engine>,
    request: v1::ListPodSandboxStatsRequest,
) -> Result<v1::ListPodSandboxStatsResponse, Status> {
    let v1::ListPodSandboxStatsRequest { filter } = request;
    let filter = SandboxFilter::from_stats(filter);
    let pods = engine.index.list();
    let wanted = pods
        .into_iter()
        .filter(|pod| pod.ready && filter.matches(pod))
        .collect();
    let uses = of_pods(engine, wanted)
        .await
        .map_err(|error| status::pod(&error))?;
    let mountpoint = engine.images.fs_info().mountpoint;
    let mountpoint = mountpoint.to_string_lossy();
    let stats = uses
        .iter()
        .map(|one| stats::pod(one, &mountpoint))
        .collect();
    Ok(v1::ListPodSandboxStatsResponse { stats })
}

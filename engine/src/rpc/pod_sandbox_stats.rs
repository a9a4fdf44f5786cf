//! PodSandboxStats.

use std::sync::Arc;

use proto::v1;
use tonic::Status;

use super::must_find;
use crate::context::Engine;
use crate::convert::stats;
use crate::pod::error::PodError;
use crate::stats::of_pods;
use crate::status;

/// The use of one sandbox and its running containers.
pub(crate) async fn handle(
    engine: &Arc<Engine>,
    request: v1::PodSandboxStatsRequest,
) -> Result<v1::PodSandboxStatsResponse, Status> {
    let v1::PodSandboxStatsRequest { pod_sandbox_id } = request;
    let unknown = PodError::NoPod(pod_sandbox_id.clone());
    let found = engine.index.pod(&pod_sandbox_id);
    let pod = must_find(found, "pod_sandbox_id", &pod_sandbox_id, &unknown)?;
    let uses = of_pods(engine, vec![pod])
        .await
        .map_err(|error| status::pod(&error))?;
    let mountpoint = engine.images.fs_info().mountpoint;
    let mountpoint = mountpoint.to_string_lossy();
    Ok(v1::PodSandboxStatsResponse {
        stats: uses.first().map(|one| stats::pod(one, &mountpoint)),
    })
}

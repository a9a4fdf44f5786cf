//! ListPodSandboxMetrics.

use std::sync::Arc;

use proto::v1;
use tonic::Status;

use crate::context::Engine;
use crate::convert::metrics;
use crate::pod_metrics::{counted, of_pods, pods};
use crate::status;

/// The metrics of all ready sandboxes and of their running containers.
pub(crate) async fn handle(
    engine: &Arc<Engine>,
    request: v1::ListPodSandboxMetricsRequest,
) -> Result<v1::ListPodSandboxMetricsResponse, Status> {
    let v1::ListPodSandboxMetricsRequest {} = request;
    let failed = |error| status::pod(&error);
    let counted = counted(engine).await.map_err(failed)?;
    let readings = of_pods(engine, pods(engine)).await.map_err(failed)?;
    let pod_metrics = readings.iter().map(|one| metrics::pod(one, &counted));
    Ok(v1::ListPodSandboxMetricsResponse {
        pod_metrics: pod_metrics.collect(),
    })
}

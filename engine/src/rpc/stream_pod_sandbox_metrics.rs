//! StreamPodSandboxMetrics: what ListPodSandboxMetrics answers, a message for each pod.

use std::sync::Arc;

use futures::stream::{StreamExt, iter};
use proto::v1;
use tonic::Status;

use super::Streamed;
use crate::context::Engine;
use crate::convert::metrics;
use crate::pod_metrics::{counted, of_pods, pods};
use crate::status;

/// Pods that are read at once: so many have a slow writable layer before others wait for
/// it, and so many are in memory.
const AT_ONCE: usize = 4;

/// The metrics of all sandboxes that are ready now. Each is read when its message is about
/// to be sent, so that a list of any length takes no more memory than a short one.
pub(crate) async fn handle(
    engine: &Arc<Engine>,
    request: v1::StreamPodSandboxMetricsRequest,
) -> Result<Streamed<v1::StreamPodSandboxMetricsResponse>, Status> {
    let v1::StreamPodSandboxMetricsRequest {} = request;
    let counted = counted(engine).await.map_err(|error| status::pod(&error))?;
    let pods = pods(engine);
    let engine = Arc::clone(engine);
    let read = move |pod| {
        let engine = Arc::clone(&engine);
        async move {
            let readings = of_pods(&engine, vec![pod]).await;
            let readings = readings.map_err(|error| status::pod(&error))?;
            let of_pod = readings.iter().map(|one| metrics::pod(one, &counted));
            Ok(v1::StreamPodSandboxMetricsResponse {
                pod_sandbox_metrics: of_pod.collect(),
            })
        }
    };
    Ok(Box::pin(iter(pods).map(read).buffered(AT_ONCE)))
}

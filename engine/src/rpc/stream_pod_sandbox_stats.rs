//! StreamPodSandboxStats: ListPodSandboxStats in pieces.

use std::sync::Arc;

use proto::v1;
use tonic::Status;

use super::{Streamed, list_pod_sandbox_stats, pieces};
use crate::context::Engine;

/// What ListPodSandboxStats answers.
pub(crate) async fn handle(
    engine: &Arc<Engine>,
    request: v1::StreamPodSandboxStatsRequest,
) -> Result<Streamed<v1::StreamPodSandboxStatsResponse>, Status> {
    let v1::StreamPodSandboxStatsRequest { filter } = request;
    let list =
        list_pod_sandbox_stats::handle(engine, v1::ListPodSandboxStatsRequest { filter }).await?;
    Ok(pieces::of(list.stats, |pod_sandbox_stats| {
        v1::StreamPodSandboxStatsResponse { pod_sandbox_stats }
    }))
}

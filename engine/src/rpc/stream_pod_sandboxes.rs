//! StreamPodSandboxes: ListPodSandbox in pieces.

use std::sync::Arc;

use proto::v1;
use tonic::Status;

use super::{Streamed, list_pod_sandbox, pieces};
use crate::context::Engine;

/// What ListPodSandbox answers.
pub(crate) async fn handle(
    engine: &Arc<Engine>,
    request: v1::StreamPodSandboxesRequest,
) -> Result<Streamed<v1::StreamPodSandboxesResponse>, Status> {
    let v1::StreamPodSandboxesRequest { filter } = request;
    let list = list_pod_sandbox::handle(engine, v1::ListPodSandboxRequest { filter }).await?;
    Ok(pieces::of(list.items, |pod_sandboxes| {
        v1::StreamPodSandboxesResponse { pod_sandboxes }
    }))
}

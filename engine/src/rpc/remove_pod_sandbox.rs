//! RemovePodSandbox.

use std::sync::Arc;

use proto::v1;
use tonic::Status;

use super::{ambiguous, ask};
use crate::context::Engine;
use crate::pod::index::Lookup;
use crate::pod::task::Command;

/// Removes a sandbox with all its containers; an unknown one is removed.
pub(crate) async fn handle(
    engine: &Arc<Engine>,
    request: v1::RemovePodSandboxRequest,
) -> Result<v1::RemovePodSandboxResponse, Status> {
    let v1::RemovePodSandboxRequest { pod_sandbox_id } = request;
    super::about("pod_sandbox_id", &pod_sandbox_id);
    match engine.index.inbox(&pod_sandbox_id) {
        Lookup::Found(inbox) => {
            ask(engine, &inbox, Command::RemovePod).await?;
        }
        Lookup::Unknown => {}
        Lookup::Ambiguous => return Err(ambiguous("pod_sandbox_id", &pod_sandbox_id)),
    }
    Ok(v1::RemovePodSandboxResponse {})
}

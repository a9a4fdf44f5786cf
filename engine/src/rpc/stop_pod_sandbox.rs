//! StopPodSandbox.

use std::sync::Arc;

use proto::v1;
use tonic::Status;

use super::{ambiguous, ask};
use crate::context::Engine;
use crate::pod::index::Lookup;
use crate::pod::task::Command;

/// Ends all containers of a sandbox and gives its network back; an unknown one is stopped.
pub(crate) async fn handle(
    engine: &Arc<Engine>,
    request: v1::StopPodSandboxRequest,
) -> Result<v1::StopPodSandboxResponse, Status> {
    let v1::StopPodSandboxRequest { pod_sandbox_id } = request;
    super::about("pod_sandbox_id", &pod_sandbox_id);
    match engine.index.inbox(&pod_sandbox_id) {
        Lookup::Found(inbox) => {
            ask(engine, &inbox, Command::StopPod).await?;
        }
        Lookup::Unknown => {}
        Lookup::Ambiguous => return Err(ambiguous("pod_sandbox_id", &pod_sandbox_id)),
    }
    Ok(v1::StopPodSandboxResponse {})
}

//! StopContainer.

use std::sync::Arc;
use std::time::Duration;

use proto::v1;
use tonic::Status;

use super::{ambiguous, ask, container_inbox};
use crate::context::Engine;
use crate::pod::index::Lookup;
use crate::pod::task::Command;

/// Sends the stop signal and, after the grace period, SIGKILL; answers when the
/// container has ended. An unknown one has.
pub(crate) async fn handle(
    engine: &Arc<Engine>,
    request: v1::StopContainerRequest,
) -> Result<v1::StopContainerResponse, Status> {
    let v1::StopContainerRequest {
        container_id,
        timeout,
    } = request;
    let grace = Duration::from_secs(u64::try_from(timeout).unwrap_or(0));
    super::about("container_id", &container_id);
    match container_inbox(engine, &container_id) {
        Lookup::Found((inbox, id)) => {
            ask(engine, &inbox, |reply| Command::Stop(id, grace, reply)).await?;
        }
        Lookup::Unknown => {}
        Lookup::Ambiguous => return Err(ambiguous("container_id", &container_id)),
    }
    Ok(v1::StopContainerResponse {})
}

//! RemoveContainer.

use std::sync::Arc;

use proto::v1;
use tonic::Status;

use super::{ambiguous, ask, container_inbox};
use crate::context::Engine;
use crate::pod::index::Lookup;
use crate::pod::task::Command;

/// Removes a container, killing it first where it runs; an unknown one is removed.
pub(crate) async fn handle(
    engine: &Arc<Engine>,
    request: v1::RemoveContainerRequest,
) -> Result<v1::RemoveContainerResponse, Status> {
    let v1::RemoveContainerRequest { container_id } = request;
    super::about("container_id", &container_id);
    match container_inbox(engine, &container_id) {
        Lookup::Found((inbox, id)) => {
            ask(engine, &inbox, |reply| Command::RemoveContainer(id, reply)).await?;
        }
        Lookup::Unknown => {}
        Lookup::Ambiguous => return Err(ambiguous("container_id", &container_id)),
    }
    Ok(v1::RemoveContainerResponse {})
}

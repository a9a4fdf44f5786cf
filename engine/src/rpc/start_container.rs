//! StartContainer.

use std::sync::Arc;

use proto::v1;
use tonic::Status;

use super::{ask, container_inbox, must_find};
use crate::context::Engine;
use crate::pod::error::PodError;
use crate::pod::task::Command;
use crate::status;

/// Runs the process of a created container.
pub(crate) async fn handle(
    engine: &Arc<Engine>,
    request: v1::StartContainerRequest,
) -> Result<v1::StartContainerResponse, Status> {
    let v1::StartContainerRequest { container_id } = request;
    let unknown = || PodError::NoContainer(container_id.clone());
    let found = container_inbox(engine, &container_id);
    let (inbox, id) = must_find(found, "container_id", &container_id, &unknown())?;
    let done = ask(engine, &inbox, |reply| Command::Start(id, reply)).await?;
    done.map(|()| v1::StartContainerResponse {})
        .ok_or_else(|| status::pod(&unknown()))
}
